/* Conformance of every device, second half: norms, elementwise ops, latents, flat arrays. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/bf16.h"
#include "tests/ops_case.h"

#define VAR(name, kind, role, gap, lo, hi, ...)                                                    \
    case_var(&c, name, kind, role, gap, lo, hi, (int)(sizeof DIMS(__VA_ARGS__) / sizeof(int64_t)), \
             DIMS(__VA_ARGS__))
static const struct tensor none;

/* ---- rows ---------------------------------------------------------------------------------- */

struct rows_case {
    int heads, pairs[3];
    bool turn, no_scale;
    double one;
};
static struct rope rope_of(const struct rows_case *k, const struct tensor *t)
{
    struct rope r;
    for (int i = 0; i < 3; i++) {
        r.pairs[i] = k->pairs[i];
        r.cos[i] = t[2 * i];
        r.sin[i] = t[2 * i + 1];
    }
    return r;
}
static void norm_fwd_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct rows_case *k = arg;
    const struct rope r = k->turn ? rope_of(k, t + 5) : (struct rope){0};
    d->ops->norm_rope_fwd(d, &(struct norm_rope_args){.out = t[0],
                                                      .rstd = t[1],
                                                      .x = t[2],
                                                      .w = t[3],
                                                      .pos = k->turn ? t[4] : none,
                                                      .rope = &r,
                                                      .heads = k->heads,
                                                      .eps = 1e-6});
}
static void norm_bwd_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct rows_case *k = arg;
    const struct rope r = k->turn ? rope_of(k, t + 7) : (struct rope){0};
    d->ops->norm_rope_bwd(d, &(struct norm_rope_grad_args){.dx = t[0],
                                                           .dw = t[1],
                                                           .dy = t[2],
                                                           .x = t[3],
                                                           .rstd = t[4],
                                                           .w = t[5],
                                                           .pos = k->turn ? t[6] : none,
                                                           .rope = &r,
                                                           .heads = k->heads,
                                                           .eps = 1e-6});
}

static void norm_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    const struct rows_case k[] = {
        {4, {1, 2, 2}, true, false, 0},     {5, {4, 0, 0}, true, false, 0},
        {12, {22, 21, 21}, true, false, 0}, {1, {0}, false, false, 0},
        {5, {0}, false, false, 0},          {0, {0}, false, false, 0}};
    const int64_t rows[] = {1, 33, 70};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 3; j++)
            for (int back = 0; back < 2; back++) {
                struct rows_case a = k[i];
                const int64_t hd = a.turn ? 2 * (a.pairs[0] + a.pairs[1] + a.pairs[2]) : 115;
                const int64_t n = rows[j], C = (a.heads ? a.heads : 2) * hd, gap = j * 8;
                struct ops_case c;
                case_begin(&c, t, "RMS norm %s%s [%lld,%lld]", a.turn ? "and rotation " : "",
                           back ? "backward" : "forward", (long long)n, (long long)C);
                VAR("out", K_T, OUT, gap, -1, 1, n, C);
                VAR("stat", K_S, OUT, 0, -1, 1, back ? C : n);
                if (back) VAR("dy", K_T, IN, gap, -1, 1, n, C);
                VAR("x", K_T, IN, gap, -2, 2, n, C);
                if (back) VAR("rstd", K_S, IN, 0, 0.5, 1.5, n);
                VAR("w", K_S, IN, 0, 0.5, 1.5, C);
                const int pos = VAR("pos", K_I16, IN, 0, 0, 6, n, 3);
                for (int64_t r = 0; r < n; r += 5)
                    for (int x = 0; x < 3; x++) c.var[pos].value[3 * r + x] = -1;
                for (int axis = 0; axis < 3; axis++) {
                    const int64_t p = a.pairs[axis] ? a.pairs[axis] : 1;
                    VAR("cos", K_S, IN, 0, -1, 1, 6, p);
                    VAR("sin", K_S, IN, 0, -1, 1, 6, p);
                }
                case_check(&c, back ? norm_bwd_run : norm_fwd_run, &a);
            }
}

static void ln_fwd_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct rows_case *k = arg;
    d->ops->ln_fwd(d, &(struct ln_args){.out = t[0],
                                        .mean = t[1],
                                        .rstd = t[2],
                                        .x = t[3],
                                        .scale = k->no_scale ? none : t[4],
                                        .shift = k->no_scale ? none : t[5],
                                        .one = k->one,
                                        .eps = 1e-6});
}
static void ln_bwd_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct rows_case *k = arg;
    d->ops->ln_bwd(d, &(struct ln_grad_args){.dx = t[0],
                                             .dscale = k->no_scale ? none : t[1],
                                             .dshift = k->no_scale ? none : t[2],
                                             .dy = t[3],
                                             .x = t[4],
                                             .mean = t[5],
                                             .rstd = t[6],
                                             .scale = k->no_scale ? none : t[7],
                                             .one = k->one});
}
static void gate_fwd_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct rows_case *k = arg;
    struct gate_add_args a = {.out = t[0], .x = t[1], .y = t[2], .gate = k->no_scale ? none : t[3]};
    d->ops->gate_add_fwd(d, &a);
    a.out = a.x = t[4]; /* out is x */
    d->ops->gate_add_fwd(d, &a);
}
static void gate_bwd_run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    d->ops->gate_add_bwd(d, &(struct gate_add_grad_args){
                                .dy = t[0], .dgate = t[1], .dout = t[2], .y = t[3], .gate = t[4]});
}

static void modulation_one(const struct target *t, int64_t B, int64_t n, int64_t C, int64_t gap,
                           bool no_scale)
{
    struct rows_case a = {.one = B > 1, .no_scale = no_scale};
    struct ops_case c;
    case_begin(&c, t, "layer norm forward [%lld,%lld,%lld]", (long long)B, (long long)n,
               (long long)C);
    VAR("out", K_T, OUT, gap, -1, 1, B * n, C);
    VAR("mean", K_S, OUT, 0, -1, 1, B * n);
    VAR("rstd", K_S, OUT, 0, -1, 1, B * n);
    VAR("x", K_T, IN, gap, -1, 3, B * n, C);
    VAR("scale", K_S, IN, gap, -1, 1, B, C);
    VAR("shift", K_S, IN, gap, -1, 1, B, C);
    case_check(&c, ln_fwd_run, &a);
    case_begin(&c, t, "layer norm backward [%lld,%lld,%lld]", (long long)B, (long long)n,
               (long long)C);
    VAR("dx", K_T, OUT, gap, -1, 1, B * n, C);
    VAR("dscale", K_S, OUT, gap, -1, 1, B, C);
    VAR("dshift", K_S, OUT, gap, -1, 1, B, C);
    VAR("dy", K_T, IN, gap, -1, 1, B * n, C);
    VAR("x", K_T, IN, gap, -1, 3, B * n, C);
    VAR("mean", K_S, IN, 0, 0.9, 1.1, B * n);
    VAR("rstd", K_S, IN, 0, 0.9, 1.1, B * n);
    VAR("scale", K_S, IN, gap, -1, 1, B, C);
    case_check(&c, ln_bwd_run, &a);
    case_begin(&c, t, "gate forward [%lld,%lld,%lld]", (long long)B, (long long)n, (long long)C);
    VAR("out", K_T, OUT, gap, -1, 1, B * n, C);
    VAR("x", K_T, IN, gap, -1, 1, B * n, C);
    VAR("y", K_T, IN, 0, -1, 1, B * n, C);
    VAR("gate", K_S, IN, gap, -1, 1, B, C);
    VAR("in place", K_T, OUT, gap, -1, 1, B * n, C);
    case_check(&c, gate_fwd_run, &a);
    if (no_scale) return;
    case_begin(&c, t, "gate backward [%lld,%lld,%lld]", (long long)B, (long long)n, (long long)C);
    VAR("dy", K_T, OUT, gap, -1, 1, B * n, C);
    VAR("dgate", K_S, OUT, gap, -1, 1, B, C);
    VAR("dout", K_T, IN, gap, -1, 1, B * n, C);
    VAR("y", K_T, IN, 0, -1, 1, B * n, C);
    VAR("gate", K_S, IN, gap, -1, 1, B, C);
    case_check(&c, gate_bwd_run, &a);
}

static void modulation_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    modulation_one(t, 1, 1, 40, 0, false);
    modulation_one(t, 3, 37, 40, 8, false);
    modulation_one(t, 2, 70, 1027, 0, false);
    modulation_one(t, 1, 100, 6, 0, false);
    modulation_one(t, 1, 9, 513, 3, true);
}
static void test_rows(struct comm *w)
{
    (void)w;
    each_target(norm_target);
    each_target(modulation_target);
}

/* ---- elementwise --------------------------------------------------------------------------- */

static void unary_run(struct dev *d, const struct tensor *t, void *arg)
{
    switch (*(int *)arg) {
    case 0:
        d->ops->gelu_fwd(d, t[0], t[1]);
        break;
    case 1:
        d->ops->gelu_bwd(d, t[0], t[2], t[1]);
        break;
    case 2:
        d->ops->silu_fwd(d, t[0], t[1]);
        break;
    default:
        d->ops->silu_bwd(d, t[0], t[2], t[1]);
    }
}
static void gather_run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    d->ops->rows_gather(d, t[0], t[1], t[2]);
}
static void bcast_run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    d->ops->bcast_add(d, t[0], t[1], t[2]);
    d->ops->colsum_add(d, t[3], t[2]);
}
static void sinusoid_run(struct dev *d, const struct tensor *t, void *arg)
{
    d->ops->sinusoid(d, t[0], arg);
}

static void elementwise_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    struct ops_case c;
    const int64_t size[][2] = {{1, 1}, {7, 40}, {3, 1541}, {1, 70001}};
    for (int i = 0; i < 4; i++) {
        const int64_t n = size[i][0], C = size[i][1], gap = i == 1 ? 4 : 0;
        for (int op = 0; op < 4; op++) {
            case_begin(&c, t, "%s %s [%lld,%lld]", op < 2 ? "gelu" : "silu",
                       op % 2 ? "backward" : "forward", (long long)n, (long long)C);
            VAR("out", op >= 2 && i == 2 ? K_S : K_T, OUT, gap, -1, 1, n, C);
            VAR("x", K_T, IN, gap, -12, 12, n, C);
            VAR("dy", K_T, IN, 0, -1, 1, n, C);
            case_check(&c, unary_run, &op);
        }
        case_begin(&c, t, "gather [%lld,%lld]", (long long)n, (long long)C);
        VAR("out", K_T, OUT, gap, -1, 1, n + 5, C);
        VAR("x", K_T, IN, gap, -1, 1, n, C);
        VAR("map", K_I32, IN, 0, -1, (double)n, n + 5);
        case_check(&c, gather_run, NULL);
        case_begin(&c, t, "broadcast and column sum [%lld,%lld]", (long long)n, (long long)C);
        VAR("out", K_S, OUT, gap, -1, 1, n, C);
        VAR("row", K_S, IN, 0, -1, 1, C);
        VAR("x", K_S, IN, gap, -1, 1, n, C);
        VAR("drow", K_S, OUT, 0, -1, 1, C);
        case_check(&c, bcast_run, NULL);
    }
    double time[2] = {0.0, 731.25};
    case_begin(&c, t, "sinusoid");
    VAR("out", K_S, OUT, 0, -1, 1, 2, 256);
    case_check(&c, sinusoid_run, time);
}
static void test_elementwise(struct comm *w)
{
    (void)w;
    each_target(elementwise_target);
}

/* ---- latents ------------------------------------------------------------------------------- */

static void patch_run(struct dev *d, const struct tensor *t, void *arg)
{
    const enum patch_order o = *(enum patch_order *)arg;
    d->ops->patch_rows(d, t[0], t[1], t[2], o);
    d->ops->unpatch_rows(d, t[3], t[4], t[2], o);
}
static void flow_run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    const double sigma[2] = {0.25, 0.9};
    const struct rng_key noise[2] = {{.seed = 3, .use = RNG_NOISE, .item = 1},
                                     {.seed = 3, .use = RNG_NOISE, .item = 2}};
    d->ops->flow_rows(
        d, &(struct flow_args){
               .xt = t[0], .target = t[1], .z = t[2], .pos = t[3], .sigma = sigma, .noise = noise});
}
static void loss_run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    d->ops->flow_loss(d, t[0], t[1], t[2], t[3], t[4], 0.125);
    d->ops->flow_loss(d, t[5], none, t[2], t[3], t[4], 0.125);
}
static void step_run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    d->ops->sample_step(d, t[0], t[1], t[2], 5.0, -0.02);
    d->ops->sample_step(d, t[0], t[1], none, 0, -0.01);
}
/* each patch once, some rows padding */
static void set_pos(struct var *v, int64_t B, int64_t per, int64_t T, int64_t H, int64_t W)
{
    for (int64_t r = 0; r < B * per; r++) {
        const int64_t k = r % per;
        const bool real = k < T * H * W;
        v->value[3 * r] = real ? (double)(k / (H * W)) : -1;
        v->value[3 * r + 1] = real ? (double)(k / W % H) : -1;
        v->value[3 * r + 2] = real ? (double)(k % W) : -1;
    }
}

static void latents_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    const int64_t B = 2, ch = 5, T = 3, H = 6, W = 5, per = T * H * W + 7;
    struct ops_case c;
    for (int o = 0; o < 2; o++) {
        enum patch_order order = (enum patch_order)o;
        case_begin(&c, t, "patch rows, order %d", o);
        VAR("rows", K_T, OUT, 4, -1, 1, B * per, 4 * ch);
        VAR("x", K_S, IN, 0, -1, 1, B, ch, T, 2 * H, 2 * W);
        set_pos(&c.var[VAR("pos", K_I16, IN, 0, 0, 1, B * per, 3)], B, per, T, H, W);
        VAR("back", K_S, OUT, 0, -1, 1, B, ch, T, 2 * H, 2 * W);
        VAR("from", K_S, IN, 4, -1, 1, B * per, 4 * ch);
        case_check(&c, patch_run, &order);
    }
    case_begin(&c, t, "flow rows");
    VAR("xt", K_T, OUT, 0, -1, 1, B * per, 4 * ch);
    VAR("target", K_S, OUT, 0, -1, 1, B * per, 4 * ch);
    VAR("z", K_S, IN, 0, -1, 1, B, ch, T, 2 * H, 2 * W);
    set_pos(&c.var[VAR("pos", K_I16, IN, 0, 0, 1, B * per, 3)], B, per, T, H, W);
    case_check(&c, flow_run, NULL);
    case_begin(&c, t, "flow loss");
    VAR("sum", K_F64, OUT, 0, 0, 1, B);
    VAR("dout", K_T, OUT, 0, -1, 1, B * per, 4 * ch);
    VAR("pred", K_T, IN, 0, -1, 1, B * per, 4 * ch);
    VAR("target", K_S, IN, 0, -1, 1, B * per, 4 * ch);
    set_pos(&c.var[VAR("pos", K_I16, IN, 0, 0, 1, B * per, 3)], B, per, T, H, W);
    VAR("sum only", K_F64, OUT, 0, 0, 1, B);
    case_check(&c, loss_run, NULL);
    case_begin(&c, t, "sample step");
    VAR("x", K_S, OUT, 0, -1, 1, per, 4 * ch);
    VAR("c", K_T, IN, 0, -1, 1, per, 4 * ch);
    VAR("u", K_T, IN, 0, -1, 1, per, 4 * ch);
    case_check(&c, step_run, NULL);
}
static void test_latents(struct comm *w)
{
    (void)w;
    each_target(latents_target);
}

/* ---- flat arrays --------------------------------------------------------------------------- */

static void update_run(struct dev *d, const struct tensor *t, void *arg)
{
    const bool lean = *(int *)arg;
    const struct update_shard x = {.p = t[0],
                                   .m = t[1],
                                   .v = t[2],
                                   .g = t[3],
                                   .ema = lean ? none : t[4],
                                   .wire = lean ? none : t[5],
                                   .weight_decay = 0.1};
    d->ops->update(d, &(struct update_args){.shard = &x,
                                            .num_shards = 1,
                                            .lr = 1e-2,
                                            .beta1 = 0.9,
                                            .beta2 = 0.999,
                                            .eps = 1e-8,
                                            .bias1 = 0.19,
                                            .bias2 = 0.002,
                                            .grad_scale = 0.5,
                                            .ema_keep = 0.99});
}
static void flat_run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    d->ops->axpy(d, t[0], 0.75, t[1]);
    d->ops->sumsq(d, t[2], &t[3], 1);
    d->ops->scale(d, t[4], -3);
    d->ops->fill(d, t[5], 0.3);
    d->ops->cast(d, t[6], t[1]);
    d->ops->cast(d, t[7], t[8]);
}
static void rng_run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    const struct rng_stream s = rng_open((struct rng_key){.seed = 9, .use = RNG_TEST});
    d->ops->rng_normal(d, t[0], s, 5, 0.02);
    d->ops->rng_normal(d, t[1], s, 1000, 2);
    d->ops->rng_uniform(d, t[2], s, 3, -2, 5);
}

static void flat_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    struct ops_case c;
    const int64_t size[] = {1, 40, 9001, 40000};
    for (int i = 0; i < 4; i++) {
        const int64_t n = size[i];
        for (int lean = 0; lean < 2; lean++) {
            case_begin(&c, t, "update %lld", (long long)n);
            VAR("p", K_S, OUT, 0, -1, 1, n);
            VAR("m", K_S, OUT, 0, -1, 1, n);
            VAR("v", K_S, OUT, 0, 0, 1, n);
            VAR("g", K_S, IN, 0, -1, 1, n);
            VAR("ema", K_S, OUT, 0, -1, 1, n);
            VAR("wire", K_T, OUT, 0, -1, 1, n);
            case_check(&c, update_run, &lean);
        }
        case_begin(&c, t, "flat ops %lld", (long long)n);
        VAR("axpy", K_S, OUT, 3, -1, 1, 3, n);
        VAR("x", K_T, IN, 5, -1, 1, 3, n);
        VAR("sumsq", K_F64, OUT, 0, -1, 1, 1);
        VAR("squares", K_S, IN, 0, -1, 1, n);
        VAR("scale", K_T, OUT, 0, -1, 1, n);
        VAR("fill", K_T, OUT, 2, -1, 1, 3, n);
        VAR("cast to S", K_S, OUT, 0, -1, 1, 3, n);
        VAR("cast to T", K_T, OUT, 7, -1, 1, 3, n);
        VAR("wide", K_S, IN, 0, -1, 1, 3, n);
        case_check(&c, flat_run, NULL);
        case_begin(&c, t, "rng %lld", (long long)n);
        VAR("normal", K_S, OUT, 0, -1, 1, n);
        VAR("normal T", K_T, OUT, 0, -1, 1, n);
        VAR("uniform", K_S, OUT, 0, -1, 1, n);
        for (int k = 0; k < 3; k++) c.var[k].tol = 1e-7;
        case_check(&c, rng_run, NULL);
    }
}
static void test_flat(struct comm *w)
{
    (void)w;
    each_target(flat_target);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {.name = "norms, rotation, modulation and gates", .run = test_rows},
        {.name = "activations, gather, broadcast", .run = test_elementwise},
        {.name = "patches, flow rows, loss and sampling", .run = test_latents},
        {.name = "optimizer, sums, casts and random numbers", .run = test_flat},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
