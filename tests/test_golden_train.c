/* A few whole training steps against the golden files: stored batches through forward, backward,
 * clipping, AdamW and EMA over the shards. Dimensions, steps and settings come from the files. */
#include <math.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "optim/clip.h"
#include "tests/check.h"
#include "tests/golden.h"

struct train_case {
    struct golden_case *c;
    struct fixture fx;
    struct clip clip;
    int step;             /* 0-based */
    enum state_kind kind; /* what is being compared, in group `after` */
    const char *after;
    double diff, update; /* squared: error, total change since the start */
    double size;         /* squared: the values */
    double half;         /* squared: half a unit in the last place of the values as float32 */
    int count;
};

/* The file's grid: latent extents are twice the token extents. */
static void open_run(struct train_case *t)
{
    struct golden_case *c = t->c;
    const struct h5_array x = golden_read(c, "batch_0/xt");
    struct fixture_opts o = {.device = c->v.device,
                             .compute = c->v.compute,
                             .model = golden_model(c->file),
                             .batch = (int)x.dim[0],
                             .t = (int)x.dim[2],
                             .h = (int)x.dim[3] / 2,
                             .w = (int)x.dim[4] / 2,
                             .fsdp = {.optimizer = true, .ema = true}};
    o.model.pad_mode = c->v.pad_mode;
    fixture_open(&t->fx, comm_self(NULL), &o);
    const struct h5_array kind = golden_read(c, "block_kind");
    for (int i = 0; i < t->fx.plan->num_layers; i++)
        EXPECT((int)kind.v[i] == (int)t->fx.plan->kind[i], "block %d: kind %d", i,
               t->fx.plan->kind[i]);
}

static void put_param(void *arg, const char *name, bool is_group)
{
    struct train_case *t = arg;
    char path[128];
    CHECK(!is_group, "group %s among the parameters", name);
    snprintf(path, sizeof path, "params/%s", name);
    const struct h5_array a = golden_read(t->c, path);
    const struct param *p = fsdp_find(t->fx.fsdp, name);
    CHECK(p && param_count(p) == a.count, "parameter %s of the file", name);
    fsdp_put(t->fx.fsdp, STATE_MASTER, name, a.v);
    fsdp_put(t->fx.fsdp, STATE_EMA, name, a.v);
    t->count++;
}

static double grad_norm(struct train_case *t)
{
    struct fixture *fx = &t->fx;
    double sum;
    struct tensor total = arena_new(&fx->tmp, DT_F64, 1, DIMS(1));
    fx->dev->ops->fill(fx->dev, total, 0);
    int n;
    const struct shard *sh = fsdp_shards(fx->fsdp, &n);
    for (int i = 0; i < n; i++) fx->dev->ops->sumsq(fx->dev, total, &sh[i].grad, 1);
    dev_get_f64(fx->dev, &sum, total);
    return sqrt(sum);
}

static void update(struct train_case *t, double coef)
{
    struct golden_case *c = t->c;
    struct fixture *fx = &t->fx;
    const double b1 = golden_attr(c, "beta1"), b2 = golden_attr(c, "beta2"), at = t->step + 1;
    int n;
    const struct shard *sh = fsdp_shards(fx->fsdp, &n);
    struct update_shard *list = calloc((size_t)n + 1, sizeof *list);
    CHECK(list, "out of memory");
    for (int i = 0; i < n; i++) {
        list[i] = (struct update_shard){.p = sh[i].master,
                                        .m = sh[i].m,
                                        .v = sh[i].v,
                                        .g = sh[i].grad,
                                        .ema = sh[i].ema,
                                        .weight_decay = golden_attr(c, "weight_decay")};
        if (sh[i].wire.data != sh[i].master.data) list[i].wire = sh[i].wire;
        EXPECT(sh[i].decay_end == sh[i].frozen_from, "a parameter without decay");
    }
    fx->dev->ops->update(fx->dev, &(struct update_args){.shard = list,
                                                        .num_shards = n,
                                                        .lr = golden_attr(c, "lr"),
                                                        .beta1 = b1,
                                                        .beta2 = b2,
                                                        .eps = golden_attr(c, "opt_eps"),
                                                        .bias1 = 1 - pow(b1, at),
                                                        .bias2 = 1 - pow(b2, at),
                                                        .grad_scale = coef,
                                                        .ema_keep = golden_attr(c, "ema")});
    free(list);
}

static struct h5_array batch(struct train_case *t, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "batch_%d/%s", t->step, name);
    return golden_read(t->c, path);
}

static void train_step(struct train_case *t, double *loss, double *norm)
{
    struct golden_case *c = t->c;
    const struct h5_array xt = batch(t, "xt"), x0 = batch(t, "x0"), noise = batch(t, "noise");
    const struct h5_array text = batch(t, "text"), time = batch(t, "t");
    for (int64_t i = 0; i < x0.count; i++) noise.v[i] -= x0.v[i];
    const struct step_io io = {.xt = xt.v,
                               .target = noise.v,
                               .text = text.v,
                               .t = time.v,
                               .share = (double)x0.count,
                               .backward = true};
    fsdp_zero_grads(t->fx.fsdp);
    loss[t->step] = fixture_step(&t->fx, &io);
    norm[t->step] = grad_norm(t);
    const struct clip_result r = clip_step(&t->clip, CLIP_RULE_FIXED, norm[t->step]);
    EXPECT(fabs(r.coef - fmin(1, golden_attr(c, "max_norm") / (norm[t->step] + 1e-6))) < 1e-15,
           "coefficient %g", r.coef);
    update(t, r.coef);
}

/* Each tensor on its own (f64), and the error of all against how far training moved them. */
static void check_after(void *arg, const char *name, bool is_group)
{
    (void)is_group;
    struct train_case *t = arg;
    char path[128];
    snprintf(path, sizeof path, "%s/%s", t->after, name);
    const struct h5_array want = golden_read(t->c, path);
    snprintf(path, sizeof path, "params/%s", name);
    const struct h5_array start = golden_read(t->c, path);
    double *got = golden_doubles(t->c, want.count);
    fsdp_get(t->fx.fsdp, t->kind, name, got);
    for (int64_t i = 0; i < want.count; i++) {
        t->diff += (got[i] - want.v[i]) * (got[i] - want.v[i]);
        t->update += (want.v[i] - start.v[i]) * (want.v[i] - start.v[i]);
        t->size += want.v[i] * want.v[i];
        const float x = fabsf((float)want.v[i]), half = (nextafterf(x, INFINITY) - x) / 2;
        t->half += (double)half * (double)half;
    }
    if (t->c->v.compute == DT_F64) /* in f32 a gradient near 0 may turn a step of AdamW around */
        golden_compare(&t->c->v, path, got, want.v, want.count, want.stored_f64,
                       (struct bound){2e-7, 0, 0});
    t->count++;
}

/* In bf16 AdamW turns the error of a small gradient into one of a whole step, so that the error of
 * all is 4e-2 to 6e-2 of the total update; by the norm of the values it is 6e-4 and less. */
static void check_state_bf16(const struct train_case *t, const char *after)
{
    const double l2 = sqrt(t->diff / t->size), update = sqrt(t->diff / t->update);
    printf("    %s: L2 error %.2g (at most 0.001), %.2g of the total update (at most 0.1)\n", after,
           l2, update);
    EXPECT(l2 <= 1e-3 && update <= 0.1, "%s: L2 error %.3g, %.3g of the total update", after, l2,
           update);
}

/* roundings: to float32, that lie between the exact values and the compared ones. Each is off by an
 * even spread over half a unit in the last place, so by half / sqrt(3) in the mean square; 5 %
 * more for chance. The EMA moves a thousand times less than the parameters, and this is most of
 * its error. */
static void check_state(struct train_case *t, enum state_kind kind, const char *after, double tol64,
                        double tol32, int roundings)
{
    const int all = t->count;
    t->kind = kind;
    t->after = after;
    t->diff = t->update = t->size = t->half = 0;
    t->count = 0;
    h5_each(t->c->file, after, check_after, t);
    EXPECT(t->count == all, "%s has %d tensors of %d", after, t->count, all);
    if (t->c->v.compute == DT_BF16) {
        check_state_bf16(t, after);
        return;
    }
    const double e = sqrt(t->diff / t->update), stored = sqrt(roundings * t->half / 3 / t->update);
    const double tol = (t->c->v.compute == DT_F64 ? tol64 : tol32) + 1.05 * stored;
    printf("    %s: error %.2g of the total update (at most %.2g)\n", after, e, tol);
    EXPECT(e <= tol, "%s: L2 error %.3g of the total update > %.3g", after, e, tol);
}

static void run_training(struct golden_case *c)
{
    struct train_case t = {.c = c};
    open_run(&t);
    h5_each(c->file, "params", put_param, &t);
    int units = 0;
    for (int u = 0; u < t.fx.dit->num_units; u++) units += t.fx.dit->unit[u].num_params;
    EXPECT(t.count == units, "%d parameters in the file, %d in the model", t.count, units);
    clip_init(&t.clip, golden_attr(c, "max_norm"));
    const int steps = (int)golden_attr(c, "steps");
    double *loss = golden_doubles(c, steps), *norm = golden_doubles(c, steps);
    for (t.step = 0; t.step < steps; t.step++) train_step(&t, loss, norm);
    golden_check_values(c, "loss", loss, false, (struct bound){1e-12, 5e-6, 3e-3});
    golden_check_values(c, "grad_norm", norm, false, (struct bound){1e-12, 5e-6, 1e-2});
    /* the files store float32: one rounding of theirs, and in f32 one of ours at each step */
    check_state(&t, STATE_MASTER, "params_after", 1e-5, 5e-4, 0);
    check_state(&t, STATE_EMA, "ema_after", 1e-5, 5e-4, c->v.compute == DT_F64 ? 1 : steps + 1);
    struct comm *world = t.fx.mesh.axis[AXIS_WORLD];
    fixture_close(&t.fx);
    comm_free(world);
}

static void training(struct comm *w)
{
    (void)w;
    golden_each("model_train", "params_after", GOLDEN_DEVICES, false, run_training);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "training steps: loss, gradient norm, parameters and EMA", .run = training},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
