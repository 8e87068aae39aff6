/* Training: the same losses on any number of ranks, any sharding and any recompute policy; saved
 * and resumed runs equal uninterrupted ones; non-finite steps are skipped on all ranks. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/train_case.h"

enum { STEPS = 20 };

struct run_arg {
    const char *extra[12];
    double loss[STEPS];
    int steps;
};

static void run_rank(struct comm *world, void *arg)
{
    struct run_arg *a = arg;
    struct train_case *c = calloc(1, sizeof *c);
    double loss[STEPS];
    train_case_open(c, world, a->extra);
    train_case_steps(c, a->steps, loss);
    if (world->rank == 0) memcpy(a->loss, loss, sizeof loss);
    train_case_close(c);
    free(c);
}

/* Worst relative difference to the losses of one rank over every sharding and several policies. */
static double worst_over_ranks(const char *device, const char *dtype, bool all)
{
    struct run_arg one = {.extra = {device, dtype, "resume=never", "recompute=none"},
                          .steps = STEPS};
    comm_thread_run(1, run_rank, &one);
    static const char *const policies[] = {"recompute=all", "recompute=attention", "recompute=gemm",
                                           "recompute=none", "recompute=[1,3]"};
    double worst = 0;
    int runs = 0;
    for (int ranks = 1; ranks <= 8; ranks *= 2)
        for (int fsdp = 1; fsdp <= ranks; fsdp *= 2)
            for (int p = 0; p < 5; p++) {
                if (!all && (ranks + fsdp + p) % (test_fast() ? 7 : 5)) continue;
                char size[32], ahead[64];
                snprintf(size, sizeof size, "fsdp_size=%d", fsdp);
                snprintf(ahead, sizeof ahead, "explicit_prefetching_num_blocks=%d",
                         (ranks + fsdp + p) / 5 % 3);
                struct run_arg a = {
                    .extra = {device, dtype, "resume=never", policies[p], size, ahead},
                    .steps = STEPS};
                comm_thread_run(ranks, run_rank, &a);
                runs++;
                for (int i = 0; i < STEPS; i++) {
                    const double e = fabs(a.loss[i] / one.loss[i] - 1);
                    if (!(e <= worst)) worst = e;
                }
            }
    printf("    %s %s: %d runs of %d steps, loss %.6f -> %.6f, worst relative difference %.2g\n",
           device, dtype, runs, STEPS, one.loss[0], one.loss[STEPS - 1], worst);
    return worst;
}

static void test_ranks_f64(struct comm *w)
{
    (void)w;
    EXPECT(worst_over_ranks("device=ref", "weight_dtype=fp64", test_campaign()) <= 1e-12,
           "f64 losses differ");
}

static void test_ranks_f32(struct comm *w)
{
    (void)w;
    if (!dev_supports("cpu", DT_F32)) {
        test_skip("no cpu device");
        return;
    }
    EXPECT(worst_over_ranks("device=cpu", "weight_dtype=fp32", !test_fast()) <= 1e-6,
           "f32 losses differ");
}

static void test_accumulation(struct comm *w)
{
    (void)w;
    struct run_arg whole = {.extra = {"device=ref", "weight_dtype=fp64", "resume=never"},
                            .steps = 5};
    struct run_arg parts = {
        .extra = {"device=ref", "weight_dtype=fp64", "resume=never", "data_config.batch_size=2"},
        .steps = 5};
    comm_thread_run(1, run_rank, &whole);
    comm_thread_run(2, run_rank, &parts);
    for (int i = 0; i < 5; i++)
        EXPECT(fabs(parts.loss[i] / whole.loss[i] - 1) < 1e-12, "step %d: %.17g against %.17g", i,
               parts.loss[i], whole.loss[i]);
}

/* Without a global batch the batch follows the ranks: 3 steps on 2 ranks end at a cursor that 4
 * ranks do not divide, and the stream goes on from there. */
static void odd_cursor(struct comm *world, void *arg)
{
    struct train_case *c = calloc(1, sizeof *c);
    const char *extra[] = {arg, "device=ref", "data_config.global_batch_size=null",
                           "data_config.batch_size=1", NULL};
    train_case_open(c, world, extra);
    const int64_t from = c->t.state.cursor;
    EXPECT(from == (world->size == 4 ? 6 : 0), "cursor %lld", (long long)from);
    double loss[3];
    train_case_steps(c, 3, loss);
    EXPECT(c->t.state.cursor == from + 3 * world->size, "cursor %lld",
           (long long)c->t.state.cursor);
    resume_save(&c->t, &c->l);
    train_case_close(c);
    free(c);
}

static void test_odd_cursor(struct comm *w)
{
    (void)w;
    char *out = io_path("output_dir=%s/odd", test_dir());
    comm_thread_run(2, odd_cursor, out);
    comm_thread_run(4, odd_cursor, out);
    free(out);
}

struct resume_arg {
    const char *out, *device, *dtype;
    int steps;
    bool save;
    double loss[STEPS];
    double sum; /* of all state, weighted: equal bits give equal sums */
};

struct hash_arg {
    struct dev *dev;
    double sum;
};

static void hash_piece(void *arg, const struct piece *p)
{
    struct hash_arg *h = arg;
    double *x = malloc((size_t)p->count * sizeof *x);
    dev_get_f64(h->dev, x, p->data);
    for (int64_t i = 0; i < p->count; i++)
        h->sum += x[i] * (double)(1 + (rng_hash(p->param->name) + (uint64_t)(p->first + i)) % 97);
    free(x);
}

static void resume_rank(struct comm *world, void *arg)
{
    struct resume_arg *a = arg;
    struct train_case *c = calloc(1, sizeof *c);
    double loss[STEPS];
    const char *extra[] = {a->device, a->dtype, a->out, NULL};
    train_case_open(c, world, extra);
    train_case_steps(c, a->steps, loss);
    struct hash_arg h = {c->ses.dev, 0};
    const enum state_kind kinds[] = {STATE_MASTER, STATE_M, STATE_V, STATE_EMA};
    for (int k = 0; k < 4; k++) fsdp_each_piece(c->ses.fsdp, kinds[k], hash_piece, &h);
    if (a->save) resume_save(&c->t, &c->l);
    if (world->rank == 0) {
        memcpy(a->loss, loss, sizeof loss);
        a->sum = h.sum;
    }
    train_case_close(c);
    free(c);
}

static void resume_case(const char *device, const char *dtype, int ranks, int ranks_after,
                        bool bits, double tol)
{
    static int number;
    char *whole_dir = io_path("output_dir=%s/whole%d", test_dir(), number);
    char *split_dir = io_path("output_dir=%s/split%d", test_dir(), number++);
    struct resume_arg whole = {whole_dir, device, dtype, STEPS, false, {0}, 0};
    struct resume_arg first = {split_dir, device, dtype, STEPS / 2, true, {0}, 0};
    struct resume_arg second = {split_dir, device, dtype, STEPS / 2, false, {0}, 0};
    comm_thread_run(ranks, resume_rank, &whole);
    comm_thread_run(ranks, resume_rank, &first);
    comm_thread_run(ranks_after, resume_rank, &second);
    for (int i = 0; i < STEPS / 2; i++) {
        EXPECT(first.loss[i] == whole.loss[i], "step %d differs before the save", i);
        const double want = whole.loss[STEPS / 2 + i], got = second.loss[i];
        if (bits)
            EXPECT(got == want, "step %d after the resume: %.17g, uninterrupted %.17g", i, got,
                   want);
        else
            EXPECT(fabs(got / want - 1) <= tol,
                   "step %d after the resume: %.17g, uninterrupted %.17g", i, got, want);
    }
    if (bits)
        EXPECT(second.sum == whole.sum, "weights, moments or EMA differ: %.17g, %.17g", second.sum,
               whole.sum);
    free(whole_dir);
    free(split_dir);
}

static void test_resume(struct comm *w)
{
    (void)w;
    const char *device = dev_supports("cpu", DT_F32) ? "device=cpu" : "device=ref";
    resume_case(device, "weight_dtype=fp32", 1, 1, true, 0);
    resume_case(device, "weight_dtype=fp32", 2, 2, true, 0);
    resume_case(device, "weight_dtype=fp32", 1, 4, false, 1e-6);
    if (test_fast()) return;
    resume_case(device, "weight_dtype=fp32", 2, 1, false, 1e-6);
    resume_case("device=ref", "weight_dtype=fp64", 4, 2, false, 1e-12);
    if (dev_supports("cpu", DT_BF16)) resume_case("device=cpu", "weight_dtype=bf16", 2, 2, true, 0);
}

/* A parameter becomes NaN: the step is skipped everywhere, nothing moves, and the count says so. */
static void test_skip_step(struct comm *world)
{
    struct train_case *c = calloc(1, sizeof *c);
    const char *extra[] = {"device=ref", "resume=never", NULL};
    train_case_open(c, world, extra);
    double loss;
    train_case_steps(c, 1, &loss);
    const struct param *p = fsdp_find(c->ses.fsdp, "blocks.1.norm3.weight");
    double *keep = calloc((size_t)param_count(p), sizeof *keep),
           *bad = calloc((size_t)param_count(p), sizeof *bad);
    fsdp_get(c->ses.fsdp, STATE_MASTER, p->name, keep);
    memcpy(bad, keep, (size_t)param_count(p) * sizeof *bad);
    bad[3] = NAN;
    fsdp_put(c->ses.fsdp, STATE_MASTER, p->name, bad);
    struct hash_arg before = {c->ses.dev, 0}, after = {c->ses.dev, 0};
    fsdp_each_piece(c->ses.fsdp, STATE_M, hash_piece, &before);
    const struct step_result r = trainer_step(&c->t, false, false);
    fsdp_each_piece(c->ses.fsdp, STATE_M, hash_piece, &after);
    EXPECT(r.skipped && c->t.state.skipped == 1 && c->t.state.skipped_in_row == 1, "not skipped");
    EXPECT(before.sum == after.sum && c->t.state.adam_steps == 1, "a skipped step moved the state");
    fsdp_put(c->ses.fsdp, STATE_MASTER, p->name, keep);
    const struct step_result good = trainer_step(&c->t, false, false);
    EXPECT(!good.skipped && c->t.state.skipped_in_row == 0, "did not recover");
    free(keep);
    free(bad);
    train_case_close(c);
    free(c);
}

static void test_validation(struct comm *world)
{
    struct train_case *c = calloc(1, sizeof *c);
    const char *extra[] = {"device=ref", "weight_dtype=fp64", "resume=never", NULL};
    train_case_open(c, world, extra);
    const struct valid_result raw = trainer_validate(&c->t, false),
                              ema = trainer_validate(&c->t, true);
    EXPECT(raw.samples == 4 && raw.buckets == 4, "%lld samples in %d buckets",
           (long long)raw.samples, raw.buckets);
    EXPECT(raw.mean == ema.mean, "EMA starts at the weights");
    static double alone;
    if (world->size == 1) alone = raw.mean;
    EXPECT(fabs(raw.mean / alone - 1) < 1e-12, "%d ranks: %.17g, one rank %.17g", world->size,
           raw.mean, alone);
    /* the head starts at zero: the loss is the mean square of the target */
    EXPECT(raw.mean > 1 && raw.mean < 3, "%g", raw.mean);
    train_case_close(c);
    free(c);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "20 steps give the same losses on 1, 2, 4, 8 ranks (ref f64, 1e-12)",
         .run = test_ranks_f64,
         .flags = TEST_SLOW},
        {.name = "20 steps give the same losses on 1, 2, 4, 8 ranks (cpu f32, 1e-6)",
         .run = test_ranks_f32},
        {.name = "micro-batches add up to the whole batch", .run = test_accumulation},
        {.name = "10 + save + resume + 10 equals 20", .run = test_resume},
        {.name = "a cursor that the new ranks do not divide", .run = test_odd_cursor},
        {.name = "a non-finite step is skipped on all ranks",
         .run = test_skip_step,
         .ranks = {1, 2}},
        {.name = "validation does not depend on the ranks",
         .run = test_validation,
         .ranks = {1, 2, 4}},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
