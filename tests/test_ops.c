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
    if (t->isa && strcmp(t->isa, "plain") != 0 && strcmp(t->gemm, "own") == 0 && !test_fast()) {
        gemm_one(t, (struct gemm_case){2100, 3000, 3, 0, false, true, 1, 0, EPI_BIAS, false});
        /* packed in two runs of columns */
        gemm_one(t, (struct gemm_case){5, 5000, 1700, 0, false, false, 1, 1, EPI_NONE, false});
    }
    if (strcmp(t->mx ? t->mx : "no", "no") != 0 && !test_fast()) { /* several parts and passes */
        gemm_one(t, (struct gemm_case){420, 530, 70, 0, false, true, 1, 0, EPI_BIAS_GELU, false});
        gemm_one(t, (struct gemm_case){64, 96, 1700, 0, true, false, 1, 1, EPI_BIAS_GRAD, true});
        gemm_one(t, (struct gemm_case){70, 64, 2100, 0, false, false, 1, 0, EPI_DGELU, false});
    }
    gemm_one(t, (struct gemm_case){4, 5, 0, 0, false, true, 1, 0, EPI_BIAS, false});
}
static void test_gemm(struct comm *w)
{
    (void)w;
    const enum dtype types[] = {DT_F32, DT_BF16}; /* engines as this machine chooses them */
    for (int i = 0; i < 2; i++) {
        const struct target t = {.name = "cpu, as chosen", .dev = "cpu", .compute = types[i]};
        if (dev_supports("cpu", types[i]) && (!ops_only || strcmp(ops_only, "cpu") == 0))
            gemm_target(&t);
    }
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

/* Later rows are longer: 1, 2, 4, ... times, by powers of two, so that bf16 stays exact. */
static void grow_rows(struct var *v, int levels)
{
    for (int64_t r = 0; r < v->dim[0]; r++)
        for (int64_t i = 0; i < v->width; i++)
            v->value[r * v->width + i] *= ldexp(1, (int)(r * levels / v->dim[0]));
}

static void attn_grown(const struct target *t, const struct seqs *s, int64_t heads, int64_t hd,
                       int64_t gap, double size, int levels)
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
        grow_rows(&c.var[c.n - 1], levels);
        VAR("k", K_T, IN, gap, -size, size, nk, heads, hd);
        grow_rows(&c.var[c.n - 1], levels);
        VAR("v", K_T, IN, gap, -1, 1, nk, heads, hd);
        if (back) VAR("d_o", K_T, IN, gap, -1, 1, nq, heads, hd);
        case_check(&c, back ? attn_bwd_run : attn_fwd_run, &a);
    }
}

static void attn_one(const struct target *t, const struct seqs *s, int64_t heads, int64_t hd,
                     int64_t gap, double size)
{
    attn_grown(t, s, heads, hd, gap, size, 1);
}

/* Scores so high that 2^score is no f32. */
static void attn_high(const struct target *t)
{
    const int32_t zero = 0, n = 200;
    struct attn_case a = {{1, &zero, &n, &zero, &n}, 1};
    struct ops_case c;
    case_begin(&c, t, "attention with scores of 256");
    VAR("o", K_T, OUT, 0, -1, 1, n, 1, 16);
    VAR("lse", K_S, OUT, 0, -1, 1, n, 1);
    VAR("q", K_T, IN, 0, 4, 4, n, 1, 16);
    VAR("k", K_T, IN, 0, 4, 4, n, 1, 16);
    VAR("v", K_T, IN, 0, -1, 1, n, 1, 16);
    case_check(&c, attn_fwd_run, &a);
}

static int draw(uint64_t *x, int n)
{
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return (int)((*x >> 33) % (unsigned)n);
}

/* Ranges of lengths near the edges of tiles and blocks, one behind the other; short and long
 * vectors, so that scores with and without a maximum are mixed. */
static void attn_random(const struct target *t, uint64_t x)
{
    static const int edge[] = {0, 1, 12, 32, 96, 128, 192, 264, 288};
    static const double size[] = {0.1, 0.5, 1, 2};
    int32_t first[2][3], len[2][3];
    for (int i = 0; i < 6; i++) {
        int32_t *f = first[i / 3] + i % 3, *l = len[i / 3] + i % 3;
        *l = draw(&x, 4) ? edge[draw(&x, 9)] + draw(&x, 3) - 1 : draw(&x, 320);
        if (*l < 0) *l = 0;
        *f = i % 3 ? f[-1] + l[-1] + draw(&x, 2) : 0;
    }
    const struct seqs s = {1 + draw(&x, 3), first[0], len[0], first[1], len[1]};
    const int64_t heads = 1 + draw(&x, 2), hd = 2 + 2 * draw(&x, 128), gap = 2 * draw(&x, 4);
    const double most = size[draw(&x, 4)]; /* a score of 40 is exact to 2e-6 only */
    attn_grown(t, &s, heads, hd, gap, most, most > 1 ? 1 : 1 + draw(&x, 2));
}

static void attn_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0 && strcmp(t->gemm, "mx") != 0) return;
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
    attn_high(t);
    if (!(ops_only && test_fast())) { /* slow in the emulation */
        attn_one(t, &(struct seqs){1, zero, long_q, zero, long_k}, 3, 32, 0, 2);
        /* short queries and keys, and ever longer ones: scores that need their maximum subtracted,
         * from some key on */
        attn_grown(t, &(struct seqs){1, zero, long_q, zero, long_k}, 2, 48, 0, 1.2, 3);
    }
    attn_one(t, &(struct seqs){0, zero, zero, zero, zero}, 3, 32, 0, 2);
    int32_t first[40], short_len[40]; /* many short ranges */
    for (int i = 0; i < 40; i++) {
        first[i] = 3 * i;
        short_len[i] = 1 + i % 3;
    }
    attn_one(t, &(struct seqs){40, first, short_len, first, short_len}, 2, 24, 0, 2);
    for (uint64_t i = 0; i < (test_fast() ? 1 : 8); i++) attn_random(t, i);
    if (t->mx && strcmp(t->mx, "no") != 0 && !test_fast()) { /* several groups of queries, keys */
        const int32_t many[] = {2600}, more[] = {1100};
        attn_one(t, &(struct seqs){1, zero, many, zero, more}, 1, 64, 0, 2);
        attn_one(t, &(struct seqs){1, zero, more, zero, many}, 1, 32, 0, 2);
    }
}
static void test_attn(struct comm *w)
{
    (void)w;
    each_target(attn_target);
}

/* ---- NaN ----------------------------------------------------------------------------------- */

/* A NaN in a query, a key or an activation must come out: the checks of a training run live on it.
 */
static void nan_one(const struct target *t, double bad)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0 && strcmp(t->gemm, "mx") != 0) return;
    struct dev *d = target_open(t, 2);
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
    x[17 * HD + 3] = bad;
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
/* All NaN are meant: those of arithmetic have no payload, those of poisoned memory are all ones. */
static void nan_target(const struct target *t)
{
    nan_one(t, NAN);
    nan_one(t, nan("0xfffffffffffff"));
    nan_one(t, copysign(nan("0xfffffffffffff"), -1));
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
        {.name = "NaN passes through", .run = test_nan},
        {.name = "ranks that share a process do not disturb each other",
         .run = test_ranks,
         .ranks = {3}},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
