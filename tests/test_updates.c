/* The optimizer steps of an epoch: any number of ranks comes to the same weights, and what happens
 * where there is nothing to learn. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "tests/rl_case.h"

/* ---- weights ----------------------------------------------------------------------------------*/
static struct policy_case_opts options(int algo, int S, int U)
{
    struct policy_case_opts o = {.device = "ref",
                                 .compute = DT_F64,
                                 .model = policy_case_model(2, 2, 2),
                                 .recompute = RECOMPUTE_NONE,
                                 .t = 1,
                                 .h = 3,
                                 .w = 3,
                                 .degrees = {S, U, 1},
                                 .rl = policy_case_config(algo)};
    o.rl.sample_batch = 8;
    o.rl.train_batch = 4;
    o.rl.batches = 2;
    o.rl.steps = 3;
    o.rl.sde_steps = 2;
    o.rl.inner_epochs = 2;
    return o;
}

enum pattern { MIXED, ONE_RANK_ZERO, ONE_ALONE, ALL_ZERO, ALL_INVALID, PATTERNS };

/* [batch][entry over all data ranks]; the entries of the last quarter are those of one rank of 4.
 */
static void fill_gains(enum pattern p, struct sample_gain gain[16])
{
    for (int i = 0; i < 16; i++) {
        const bool zero = p == ALL_ZERO || p == ALL_INVALID || (p == ONE_RANK_ZERO && i % 8 >= 6) ||
                          (p == ONE_ALONE && i != 5);
        gain[i] =
            (struct sample_gain){zero ? 0 : 1.2 - 0.4 * (i % 7), zero ? 0 : 1, p != ALL_INVALID};
    }
}

static const enum state_kind kinds[] = {STATE_LORA, STATE_LORA_M, STATE_LORA_V, STATE_LORA_EMA};
enum { KINDS = sizeof kinds / sizeof *kinds };
struct result {
    double *state[KINDS];
    struct adapter_state after;
    struct epoch_updates u;
    int64_t n;
};

static void free_result(struct result *r)
{
    for (int k = 0; k < KINDS; k++) free(r->state[k]);
}

static struct result epoch(struct comm *world, const struct policy_case_opts *o,
                           const struct sample_gain *gain, struct result *before)
{
    struct rl_case *r = calloc(1, sizeof *r);
    struct result x = {0};
    rl_case_open(r, world, o);
    r->set.ema_decay = 0.9;
    const struct step_plan plan = algo_step_plan(&r->set.rl, CASE_SEED, 0);
    for (int k = 0; k < KINDS && before; k++)
        before->state[k] = policy_case_weights(&r->c, kinds[k]);
    if (before) before->after = r->run.state.adapter;
    rl_case_rollouts(r, &plan, NULL);
    x.u = run_updates(&r->run, &plan, gain);
    for (int k = 0; k < KINDS; k++) x.state[k] = policy_case_weights(&r->c, kinds[k]);
    x.after = r->run.state.adapter;
    x.n = lora_num_elements(r->c.f.lora);
    rl_case_close(r);
    free(r);
    return x;
}

static double distance(const double *a, const double *b, int64_t n)
{
    double diff = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        diff += (a[i] - b[i]) * (a[i] - b[i]);
        size += b[i] * b[i];
    }
    return size > 0 ? sqrt(diff / size) : sqrt(diff);
}

/* Compared on rank 0, which alone makes what one rank comes to. */
static void compare(const struct result *got, const struct result *want, const char *name,
                    const struct mesh_degrees *d, int ranks)
{
    for (int k = 0; k < KINDS; k++) {
        const double e = distance(got->state[k], want->state[k], want->n);
        EXPECT(e < 1e-9, "%s, ssp %d x sp %d of %d: state %d differs by %.2g", name, d->ssp, d->sp,
               ranks, k, e);
    }
    EXPECT(got->u.steps == 8 && fabs(got->u.loss - want->u.loss) < 1e-9,
           "%s: %lld steps, loss %.12g, not %.12g", name, (long long)got->u.steps, got->u.loss,
           want->u.loss);
    for (int k = 0; k < MAX_PLAN_STEPS; k++) {
        const struct step_stats *a = &got->u.stats.step[k], *b = &want->u.stats.step[k];
        EXPECT(a->terms == b->terms && a->kl_terms == b->kl_terms && a->clipped == b->clipped &&
                   fabs(a->kl - b->kl) <= 1e-9 * fabs(b->kl),
               "%s: step %d has %g and %g terms, not %g and %g", name, k, a->terms, a->kl_terms,
               b->terms, b->kl_terms);
    }
}

static void test_weights(struct comm *world)
{
    static const int algos[] = {ALGO_MIX_GRPO, ALGO_DANCE_GRPO, ALGO_NFT};
    static const struct mesh_degrees layouts[] = {{1, 1, 1}, {2, 1, 1}, {1, 2, 1}, {2, 2, 1}};
    struct sample_gain gain[16];
    fill_gains(MIXED, gain);
    for (int a = 0; a < 3; a += test_fast() ? 2 : 1) {
        struct policy_case_opts o = options(algos[a], 1, 1);
        struct result want = {0};
        o.rl.kl_beta = 0.1 * (algos[a] == ALGO_MIX_GRPO);
        if (world->rank == 0) {
            struct comm *alone = comm_self(NULL);
            want = epoch(alone, &o, gain, NULL);
            comm_free(alone);
        }
        for (int l = 0; l < (test_fast() ? 2 : 4); l++) {
            if (world->size % (layouts[l].ssp * layouts[l].sp)) continue;
            o.degrees = layouts[l];
            struct result got = epoch(world, &o, gain, NULL);
            if (world->rank == 0)
                compare(&got, &want, algo_name(algos[a]), &layouts[l], world->size);
            free_result(&got);
        }
        free_result(&want);
    }
}

/* ---- nothing to learn -------------------------------------------------------------------------*/
static void check_pattern(struct comm *world, struct policy_case_opts o, enum pattern p)
{
    struct sample_gain gain[16];
    struct result before = {0};
    fill_gains(p, gain);
    struct result r = epoch(world, &o, gain, &before);
    const bool idle = p >= ALL_ZERO;
    for (int k = 0; k < KINDS; k++) {
        const bool same = memcmp(r.state[k], before.state[k], (size_t)r.n * sizeof(double)) == 0;
        EXPECT(same == idle, "pattern %d: state %d %s", (int)p, k, same ? "stays" : "moves");
    }
    const bool counters = memcmp(&r.after, &before.after, sizeof r.after) == 0;
    EXPECT(counters == idle, "pattern %d: counters %s", (int)p, counters ? "stay" : "move");
    const int64_t steps = idle ? 0 : p == ONE_ALONE ? 2 : 8;
    EXPECT(r.u.steps == steps && r.u.skipped_empty == 8 - steps && !r.u.skipped_bad,
           "pattern %d: %lld steps, %lld left out", (int)p, (long long)r.u.steps,
           (long long)r.u.skipped_empty);
    double sum[2] = {0, 0}; /* all ranks have the same */
    for (int64_t i = 0; i < r.n; i++) sum[0] += r.state[0][i] * (double)(i % 17);
    sum[1] = -sum[0];
    comm_max_f64(world, sum, 2, "weights");
    EXPECT(sum[0] == -sum[1], "pattern %d: ranks end with different weights", (int)p);
    free_result(&before);
    free_result(&r);
}

static void test_patterns(struct comm *world)
{
    for (int p = 0; p < PATTERNS; p++) {
        const int S = world->size == 8 ? 2 : 1;
        check_pattern(world, options(ALGO_MIX_GRPO, S, 1), p);
        if (world->size >= 4) check_pattern(world, options(ALGO_FLOW_GRPO, 2, 2), p);
    }
}

/* Weights that stay: every ratio is 1, the loss of a step minus the mean advantage of its samples
 * that count, whatever the number of trained steps, micro-batches and ranks. */
static void test_loss(struct comm *world)
{
    struct sample_gain gain[16];
    fill_gains(ONE_RANK_ZERO, gain);
    for (int i = 0; i < 16; i++) gain[i].advantage *= 1 + 0.1 * i; /* no mean of 0 */
    for (int k = 0; k < 4; k++) {
        struct policy_case_opts o = options(ALGO_FLOW_GRPO, 1, 1);
        struct rl_case *r = calloc(1, sizeof *r);
        o.rl.train_batch = k % 2 ? 8 : 4;
        o.rl.kl_beta = k == 3 ? 0.5 : 0;
        rl_case_open(r, world, &o);
        r->set.optimizer.lr = 0;
        if (k == 2) r->set.gradient_accumulation_steps = 2;
        if (k == 3) lora_init_params(r->c.f.lora, 1);
        const struct step_plan plan = algo_step_plan(&r->set.rl, CASE_SEED, 0);
        rl_case_rollouts(r, &plan, NULL);
        const struct epoch_updates u = run_updates(&r->run, &plan, gain);
        double want = 0, parts = k ? 1 : 2;
        for (int part = 0; part < 2 * parts; part++) {
            double sum = 0, n = 0;
            for (int i = 0; i < 8; i++) {
                const struct sample_gain *g = &gain[part / (int)parts * 8 + i];
                if (i % (int)parts != part % (int)parts || g->weight == 0) continue;
                sum -= g->advantage;
                n += g->advantage != 0;
            }
            want += sum / n / (2 * parts);
        }
        EXPECT(fabs(want) > 1e-2 && fabs(u.loss - want) < 1e-12 &&
                   fabs(u.stats.policy_loss - want) < 1e-12 && u.first_log_ratio == 0 &&
                   u.stats.kl_loss == 0,
               "case %d: loss %.15g, not %.15g", k, u.loss, want);
        rl_case_close(r);
        free(r);
    }
}

/* The same of the divergence: its weight times its mean over samples and trained steps. */
static void test_kl(struct comm *world)
{
    struct sample_gain gain[16];
    struct policy_case_opts o = options(ALGO_FLOW_GRPO, 1, 1);
    struct rl_case *r = calloc(1, sizeof *r);
    fill_gains(MIXED, gain);
    o.rl.kl_beta = 0.25;
    o.rl.kl_on_zero_adv = true;
    rl_case_open(r, world, &o);
    r->set.optimizer.lr = 0;
    const struct step_plan plan = algo_step_plan(&r->set.rl, CASE_SEED, 0);
    rl_case_rollouts(r, &plan, NULL);
    const struct epoch_updates u = run_updates(&r->run, &plan, gain);
    double kl = 0, terms = 0;
    for (int k = 0; k < plan.num_recorded; k++) {
        kl += u.stats.step[k].kl;
        terms += u.stats.step[k].kl_terms;
    }
    const double want = 0.25 * kl / terms;
    EXPECT(terms == 2 * 16 * plan.num_recorded && want > 0 &&
               fabs(u.stats.kl_loss / want - 1) < 1e-12,
           "divergence %.15g, not %.15g of %g terms", u.stats.kl_loss, want, terms);
    rl_case_close(r);
    free(r);
}

/* The divergence alone is a reason for a step, if it is asked for. */
static void test_divergence(struct comm *world)
{
    struct sample_gain gain[16];
    fill_gains(ALL_ZERO, gain);
    for (int k = 0; k < 2; k++) {
        struct policy_case_opts o = options(ALGO_MIX_GRPO, 1, 1);
        o.rl.kl_beta = 0.1;
        o.rl.kl_on_zero_adv = k;
        struct result r = epoch(world, &o, gain, NULL);
        EXPECT(r.u.steps == 8 * k && (r.u.stats.kl_loss > 0) == (k == 1), "%lld steps, kl %g",
               (long long)r.u.steps, r.u.stats.kl_loss);
        free_result(&r);
    }
}

/* ---- what must not happen ---------------------------------------------------------------------*/
static double bad_score(const struct policy *p, const float *latent)
{
    (void)p;
    const double x = (double)latent[0];
    return x > 1 ? NAN : x > 0.5 ? INFINITY : x < -1.2 ? 1e200 : x;
}
static double always_bad(const struct policy *p, const float *latent)
{
    (void)p;
    (void)latent;
    return NAN;
}

static void test_bad_scores(struct comm *world)
{
    for (int k = 0; k < 2; k++) {
        struct rl_case *r = calloc(1, sizeof *r);
        const struct policy_case_opts o = options(ALGO_MIX_GRPO, 1, 1);
        rl_case_open(r, world, &o);
        double *before = policy_case_weights(&r->c, STATE_LORA);
        for (int e = 0; e < 3; e++) rl_case_epoch(r, k ? always_bad : bad_score);
        double *after = policy_case_weights(&r->c, STATE_LORA);
        int64_t bad = 0, moved = 0, n = lora_num_elements(r->c.f.lora);
        for (int64_t i = 0; i < n; i++) bad += !isfinite(after[i]), moved += after[i] != before[i];
        EXPECT(!bad && (moved > 0) == !k, "%lld weights are not finite, %lld moved", (long long)bad,
               (long long)moved);
        free(before);
        free(after);
        rl_case_close(r);
        free(r);
    }
}

struct broken {
    struct comm *world;
    bool drift;
    int64_t allowed;
};

/* drift: weights that change between rollout and update; otherwise NaN in a state of one rank. */
static void break_epoch(void *arg)
{
    const struct broken *b = arg;
    struct sample_gain gain[16];
    struct rl_case *r = calloc(1, sizeof *r);
    const struct policy_case_opts o = options(ALGO_MIX_GRPO, 1, 1);
    fill_gains(MIXED, gain);
    rl_case_open(r, b->world, &o);
    r->set.max_skipped_steps = b->allowed;
    const struct step_plan plan = algo_step_plan(&r->set.rl, CASE_SEED, 0);
    rl_case_rollouts(r, &plan, NULL);
    double *w = policy_case_weights(&r->c, STATE_LORA);
    if (b->drift) policy_case_move(&r->c, w, w, 1e-3);
    for (int k = 0; k < r->run.batch[0].num_states && !b->drift && b->world->rank == 0; k++)
        *(double *)(void *)(r->run.batch[0].states + (size_t)k * r->run.batch[0].state_bytes) = NAN;
    const struct epoch_updates u = run_updates(&r->run, &plan, gain);
    double *after = policy_case_weights(&r->c, STATE_LORA);
    int64_t bad = 0;
    for (int64_t i = 0; i < lora_num_elements(r->c.f.lora); i++) bad += !isfinite(after[i]);
    EXPECT(u.skipped_bad > 0 && u.skipped_bad < u.steps && !bad, "%lld of %lld steps, %lld weights",
           (long long)u.skipped_bad, (long long)u.steps, (long long)bad);
    free(w);
    free(after);
    rl_case_close(r);
    free(r);
}

static void test_broken(struct comm *world)
{
    struct broken b = {world, false, 100};
    break_epoch(&b);
    b.allowed = 0;
    expect_stop("steps in a row were not finite", RC_NUMERIC, break_epoch, &b);
    b.drift = true;
    expect_stop("rollout and update do not compute the same", RC_NUMERIC, break_epoch, &b);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "any ranks come to the same weights", .run = test_weights, .ranks = {1, 2, 4}},
        {.name = "nothing to learn, nothing moves",
         .run = test_patterns,
         .ranks = {1, 2, 4, 8},
         .flags = TEST_MPI},
        {.name = "the loss of an unchanged policy", .run = test_loss, .ranks = {1, 2, 4}},
        {.name = "the weight of the divergence", .run = test_kl, .ranks = {1, 2}},
        {.name = "the divergence alone", .run = test_divergence, .ranks = {1, 2}},
        {.name = "scores that are none", .run = test_bad_scores, .ranks = {1, 4}},
        {.name = "what must not happen", .run = test_broken, .ranks = {1, 2}},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
