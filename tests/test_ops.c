/* Every op of every device against the ref device in f64, on the same cases. */
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

/* ---- gemm ---------------------------------------------------------------------------------- */

struct gemm_case {
    int64_t m, n, k, gap;
    bool ta, tb;
    double alpha, beta;
    enum epilogue epilogue;
    bool wide; /* c in S */
};
static void gemm_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct gemm_case *g = arg;
    struct gemm_args a = {.c = t[0],
                          .a = t[1],
                          .b = t[2],
                          .trans_a = g->ta,
                          .trans_b = g->tb,
                          .alpha = g->alpha,
                          .beta = g->beta,
                          .epilogue = g->epilogue};
    if (g->epilogue != EPI_NONE && g->epilogue != EPI_DGELU) a.bias = t[3];
    if (g->epilogue == EPI_BIAS_GELU || g->epilogue == EPI_DGELU)
        a.aux = t[g->epilogue == EPI_DGELU ? 3 : 4];
    d->ops->gemm(d, &a);
}

static void gemm_one(const struct target *t, struct gemm_case g)
{
    struct ops_case c;
    case_begin(&c, t, "gemm %lldx%lldx%lld %c%c beta %g epilogue %d %s", (long long)g.m,
               (long long)g.n, (long long)g.k, g.ta ? 'T' : 'N', g.tb ? 'T' : 'N', g.beta,
               (int)g.epilogue, g.wide ? "S" : "T");
    VAR("c", g.wide ? K_S : K_T, OUT, g.gap, -1, 1, g.m, g.n);
    VAR("a", K_T, IN, g.gap, -1, 1, g.ta ? g.k : g.m, g.ta ? g.m : g.k);
    VAR("b", K_T, IN, g.gap, -1, 1, g.tb ? g.n : g.k, g.tb ? g.k : g.n);
    if (g.epilogue == EPI_BIAS || g.epilogue == EPI_BIAS_GELU) VAR("bias", K_T, IN, 0, -1, 1, g.n);
    if (g.epilogue == EPI_BIAS_GRAD) VAR("bias", K_S, OUT, 0, -1, 1, g.m);
    if (g.epilogue == EPI_BIAS_GELU) {
        VAR("aux", K_T, OUT, g.gap, -1, 1, g.m, g.n);
        c.var[0].tol = 1e-2; /* bf16: the gelu of a rounded number */
        if (t->compute == DT_F32) c.var[0].tol = 0;
    }
    if (g.epilogue == EPI_DGELU) VAR("aux", K_T, IN, g.gap, -4, 4, g.m, g.n);
    case_check(&c, gemm_run, &g);
}

static void gemm_target(const struct target *t)
{
    const int64_t size[][4] = {{1, 1, 1, 0},     {5, 7, 3, 0},      {40, 40, 40, 8},
                               {97, 131, 65, 3}, {13, 300, 270, 0}, {260, 96, 40, 32}};
    for (int i = 0; i < 6; i++)
        for (int trans = 0; trans < 4; trans++) {
            if (test_fast() && i != 1 && i != 3) continue;
            struct gemm_case g = {size[i][0], size[i][1], size[i][2], size[i][3], trans & 1,
                                  trans & 2,  1,          0,          EPI_NONE,   false};
            gemm_one(t, g);
            g.beta = 1;
            g.wide = true;
            gemm_one(t, g);
            g.alpha = 0.5;
            g.beta = -0.75;
            g.wide = i & 1;
            gemm_one(t, g);
            g.alpha = 1;
            for (int e = EPI_BIAS; e <= EPI_BIAS_GRAD; e++) {
                g.epilogue = (enum epilogue)e;
                g.beta = e == EPI_BIAS_GRAD;
                g.wide = e == EPI_BIAS_GRAD;
                gemm_one(t, g);
            }
        }
    /* parts wider than a packed block */
    if (t->isa && strcmp(t->isa, "plain") != 0 && strcmp(t->gemm, "own") == 0 && !test_fast())
        gemm_one(t, (struct gemm_case){2100, 3000, 3, 0, false, true, 1, 0, EPI_BIAS, false});
    gemm_one(t, (struct gemm_case){4, 5, 0, 0, false, true, 1, 0, EPI_BIAS, false});
}
static void test_gemm(struct comm *w)
{
    (void)w;
    each_target(gemm_target);
}

/* ---- attention ----------------------------------------------------------------------------- */

struct attn_case {
    struct seqs seqs;
    double scale;
};
static void attn_fwd_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct attn_case *a = arg;
    d->ops->attn_fwd(d, &(struct attn_args){.o = t[0],
                                            .lse = t[1],
                                            .q = t[2],
                                            .k = t[3],
                                            .v = t[4],
                                            .seqs = &a->seqs,
                                            .scale = a->scale});
}
static void attn_bwd_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct attn_case *a = arg;
    d->ops->attn_fwd(d, &(struct attn_args){.o = t[3],
                                            .lse = t[4],
                                            .q = t[5],
                                            .k = t[6],
                                            .v = t[7],
                                            .seqs = &a->seqs,
                                            .scale = a->scale});
    d->ops->attn_bwd(d, &(struct attn_grad_args){.dq = t[0],
                                                 .dk = t[1],
                                                 .dv = t[2],
                                                 .d_o = t[8],
                                                 .o = t[3],
                                                 .lse = t[4],
                                                 .q = t[5],
                                                 .k = t[6],
                                                 .v = t[7],
                                                 .seqs = &a->seqs,
                                                 .scale = a->scale});
}

static void attn_one(const struct target *t, const struct seqs *s, int64_t heads, int64_t hd,
                     int64_t gap, double size)
{
    int64_t nq = 0, nk = 0;
    for (int i = 0; i < s->n; i++) {
        if (s->q_first[i] + s->q_len[i] > nq) nq = s->q_first[i] + s->q_len[i];
        if (s->k_first[i] + s->k_len[i] > nk) nk = s->k_first[i] + s->k_len[i];
    }
    nq += 1; /* a row that no range covers */
    struct attn_case a = {*s, 1 / sqrt((double)hd)};
    struct ops_case c;
    for (int back = 0; back < 2; back++) {
        const bool f32 = t->compute == DT_F32;
        case_begin(&c, t, "attention %s %lld x %lld, %d ranges, %lld and %lld rows",
                   back ? "backward" : "forward", (long long)heads, (long long)hd, s->n,
                   (long long)nq, (long long)nk);
        if (back) {
            VAR("dq", K_T, OUT, gap, -1, 1, nq, heads, hd);
            VAR("dk", K_T, OUT, gap, -1, 1, nk, heads, hd);
            VAR("dv", K_T, OUT, 0, -1, 1, nk, heads, hd);
            for (int i = 0; i < 3; i++) { /* bf16: delta comes from the rounded o */
                c.var[i].tol = f32 ? 1e-5 : 2e-2;
                c.var[i].floor = 0.1; /* one key: the gradient of its score is 0 */
            }
        }
        VAR("o", K_T, OUT, gap, -1, 1, nq, heads, hd);
        VAR("lse", K_S, OUT, 0, -1, 1, nq, heads);
        VAR("q", K_T, IN, gap, -size, size, nq, heads, hd);
        VAR("k", K_T, IN, gap, -size, size, nk, heads, hd);
        VAR("v", K_T, IN, gap, -1, 1, nk, heads, hd);
        if (back) VAR("d_o", K_T, IN, gap, -1, 1, nq, heads, hd);
        case_check(&c, back ? attn_bwd_run : attn_fwd_run, &a);
    }
}

static void attn_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    const int32_t zero[4] = {0, 0, 0, 0};
    const int32_t one[] = {1}, len[] = {67}, long_q[] = {530}, long_k[] = {301};
    const int32_t qf[] = {0, 3, 3, 40}, ql[] = {3, 0, 37, 5}, kf[] = {0, 1, 20, 20};
    const int32_t kl[] = {1, 19, 97, 0};
    const int64_t hd[] = {2, 6, 20, 28, 128, 192, 256};
    for (int i = 0; i < 7; i++) {
        if (test_fast() && i % 2 == 0) continue;
        attn_one(t, &(struct seqs){1, zero, one, zero, one}, 2, hd[i], 0, 1);
        attn_one(t, &(struct seqs){1, zero, len, zero, len}, 1, hd[i], 6, 4);
        attn_one(t, &(struct seqs){4, qf, ql, kf, kl}, 2, hd[i], i % 2 ? 10 : 0, 2);
    }
    if (!(ops_only && test_fast())) /* slow in the emulation */
        attn_one(t, &(struct seqs){1, zero, long_q, zero, long_k}, 3, 32, 0, 2);
    attn_one(t, &(struct seqs){0, zero, zero, zero, zero}, 3, 32, 0, 2);
}
static void test_attn(struct comm *w)
{
    (void)w;
    each_target(attn_target);
}

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
    const struct rows_case k[] = {{4, {1, 2, 2}, true, false, 0},
                                  {5, {4, 0, 0}, true, false, 0},
                                  {12, {22, 21, 21}, true, false, 0},
                                  {1, {0}, false, false, 0},
                                  {5, {0}, false, false, 0}};
    const int64_t rows[] = {1, 33, 70};
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 3; j++)
            for (int back = 0; back < 2; back++) {
                struct rows_case a = k[i];
                const int64_t hd = a.turn ? 2 * (a.pairs[0] + a.pairs[1] + a.pairs[2]) : 115;
                const int64_t n = rows[j], C = a.heads * hd, gap = j * 8;
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
    d->ops->gate_add_fwd(d, t[0], t[1], t[2], k->no_scale ? none : t[3]);
    d->ops->gate_add_fwd(d, t[4], t[4], t[2], k->no_scale ? none : t[3]); /* out is x */
}
static void gate_bwd_run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    d->ops->gate_add_bwd(d, t[0], t[1], t[2], t[3], t[4]);
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

static void adamw_run(struct dev *d, const struct tensor *t, void *arg)
{
    const bool lean = *(int *)arg;
    struct adamw_args a = {.p = t[0],
                           .m = t[1],
                           .v = t[2],
                           .g = t[3],
                           .ema = lean ? none : t[4],
                           .wire = lean ? none : t[5],
                           .lr = 1e-2,
                           .beta1 = 0.9,
                           .beta2 = 0.999,
                           .eps = 1e-8,
                           .weight_decay = 0.1,
                           .bias1 = 0.19,
                           .bias2 = 0.002,
                           .grad_scale = 0.5,
                           .ema_keep = 0.99};
    d->ops->adamw(d, &a);
}
static void flat_run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    d->ops->axpy(d, t[0], 0.75, t[1]);
    d->ops->sumsq(d, t[2], t[3]);
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
            case_begin(&c, t, "adamw %lld", (long long)n);
            VAR("p", K_S, OUT, 0, -1, 1, n);
            VAR("m", K_S, OUT, 0, -1, 1, n);
            VAR("v", K_S, OUT, 0, 0, 1, n);
            VAR("g", K_S, IN, 0, -1, 1, n);
            VAR("ema", K_S, OUT, 0, -1, 1, n);
            VAR("wire", K_T, OUT, 0, -1, 1, n);
            case_check(&c, adamw_run, &lean);
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

/* ---- NaN ----------------------------------------------------------------------------------- */

/* A NaN in a query, a key or an activation must come out: the checks of a training run live on it.
 */
static void nan_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    if (t->isa) setenv("CPU_ISA", t->isa, 1);
    struct dev *d = dev_open(t->dev, t->compute, 2);
    unsetenv("CPU_ISA");
    enum { N = 33, HD = 20 };
    static double x[N * HD], y[N * HD];
    struct tensor q = dev_tensor(d, t->compute, 3, DIMS(N, 1, HD)), k = q, o = q;
    k.data = dev_alloc(d, tensor_bytes(q) + 64);
    o.data = dev_alloc(d, tensor_bytes(q) + 64);
    struct tensor lse = dev_tensor(d, dtype_state(t->compute), 2, DIMS(N, 1));
    const int32_t zero = 0, n = N;
    const struct seqs s = {1, &zero, &n, &zero, &n};
    for (int i = 0; i < N * HD; i++) x[i] = sin(i);
    dev_put_f64(d, k, x);
    x[17 * HD + 3] = NAN;
    dev_put_f64(d, q, x);
    d->ops->attn_fwd(d, &(struct attn_args){o, lse, q, k, k, &s, 0.2});
    dev_get_f64(d, y, o);
    EXPECT(isnan(y[17 * HD]) && isnan(y[18 * HD - 1]), "%s: NaN of a query is lost", t->name);
    EXPECT(isfinite(y[16 * HD]), "%s: NaN of a query reached another", t->name);
    d->ops->attn_fwd(d, &(struct attn_args){o, lse, k, q, k, &s, 0.2});
    dev_get_f64(d, y, o);
    EXPECT(isnan(y[0]) && isnan(y[N * HD - 1]), "%s: NaN of a key is lost", t->name);
    d->ops->gelu_fwd(d, o, q);
    dev_get_f64(d, y, o);
    EXPECT(isnan(y[17 * HD + 3]) && isfinite(y[0]), "%s: NaN is lost in gelu", t->name);
    dev_free(d, q.data);
    dev_free(d, k.data);
    dev_free(d, o.data);
    dev_free(d, lse.data);
    dev_close(d);
}
static void test_nan(struct comm *w)
{
    (void)w;
    each_target(nan_target);
}

/* ---- several ranks in one process ------------------------------------------------------------ */

static void rank_run(struct dev *d, double *out)
{
    const int32_t zero = 0, n = 70;
    const struct seqs s = {1, &zero, &n, &zero, &n};
    const struct rng_stream r = rng_open((struct rng_key){.seed = 2, .use = RNG_TEST});
    struct tensor x = dev_tensor(d, DT_F32, 2, DIMS(70, 120)),
                  w = dev_tensor(d, DT_F32, 2, DIMS(120, 120));
    struct tensor y = dev_tensor(d, DT_F32, 2, DIMS(70, 120)),
                  o = dev_tensor(d, DT_F32, 2, DIMS(70, 120));
    struct tensor lse = dev_tensor(d, DT_F32, 2, DIMS(70, 6));
    d->ops->rng_normal(d, x, r, 0, 1);
    d->ops->rng_normal(d, w, r, 0, 0.1);
    for (int i = 0; i < 20; i++) {
        d->ops->gemm(d, &(struct gemm_args){.c = y, .a = x, .b = w, .trans_b = true, .alpha = 1});
        d->ops->attn_fwd(d, &(struct attn_args){tensor_heads(o, 6), lse, tensor_heads(y, 6),
                                                tensor_heads(y, 6), tensor_heads(x, 6), &s, 0.2});
        d->ops->cast(d, x, o);
        d->ops->scale(d, x, 3);
    }
    dev_get_f64(d, out, x);
    const struct tensor all[] = {x, w, y, o, lse};
    for (int i = 0; i < 5; i++) dev_free(d, all[i].data);
}

static void test_ranks(struct comm *w)
{
    (void)w;
    if (!dev_supports("cpu", DT_F32)) {
        test_skip("no cpu device");
        return;
    }
    double *got = malloc(70 * 120 * sizeof *got), *want = malloc(70 * 120 * sizeof *want);
    CHECK(got && want, "out of memory");
    for (int threads = 1; threads < 4; threads++) {
        struct dev *d = dev_open("cpu", DT_F32, threads);
        rank_run(d, threads == 1 ? want : got);
        if (threads > 1)
            EXPECT(memcmp(got, want, 70 * 120 * sizeof *got) == 0, "%d threads differ", threads);
        dev_close(d);
    }
    free(got);
    free(want);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {.name = "gemm: transposes, strides, alpha and beta, epilogues", .run = test_gemm},
        {.name = "attention forward and backward over ranges", .run = test_attn},
        {.name = "norms, rotation, modulation and gates", .run = test_rows},
        {.name = "activations, gather, broadcast", .run = test_elementwise},
        {.name = "patches, flow rows, loss and sampling", .run = test_latents},
        {.name = "optimizer, sums, casts and random numbers", .run = test_flat},
        {.name = "NaN passes through", .run = test_nan},
        {.name = "ranks that share a process do not disturb each other",
         .run = test_ranks,
         .ranks = {3}},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
