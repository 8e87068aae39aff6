/* Ops that do the work of several: the same bits as from the ops they stand for, and the passes
 * over memory that they save. */
#include <stdlib.h>
#include <string.h>

#include "tests/ops_case.h"

#define VAR(name, kind, role, gap, lo, hi, ...)                                                    \
    case_var(&c, name, kind, role, gap, lo, hi, (int)(sizeof DIMS(__VA_ARGS__) / sizeof(int64_t)), \
             DIMS(__VA_ARGS__))
static const struct tensor none;

/* A copy of t, contiguous; free its data. */
static struct tensor twin(struct dev *d, struct tensor t)
{
    struct tensor copy = dev_tensor(d, t.dtype, t.ndim, t.dim);
    d->ops->cast(d, copy, t);
    return copy;
}
static void same_bits(struct dev *d, const char *what, struct tensor a, struct tensor b)
{
    if (ops_shifted) return;
    if (a.ndim == 1) /* one row */
        a = tensor_view(a, 2, DIMS(1, a.dim[0])), b = tensor_view(b, 2, a.dim);
    const size_t row = (size_t)tensor_width(a) * dtype_size(a.dtype);
    char *x = malloc(row), *y = malloc(row);
    CHECK(x && y, "out of memory");
    int64_t wrong = 0;
    for (int64_t r = 0; r < a.dim[0]; r++) {
        const size_t at_a = (size_t)(r * tensor_ld(a)), at_b = (size_t)(r * tensor_ld(b));
        d->ops->to_host(d, x, (char *)a.data + at_a * dtype_size(a.dtype), row);
        d->ops->to_host(d, y, (char *)b.data + at_b * dtype_size(b.dtype), row);
        wrong += memcmp(x, y, row) != 0;
    }
    EXPECT(wrong == 0, "%s %s: %s: %lld of %lld rows differ from the ops it stands for",
           d->ops->name, dtype_name(d->compute), what, (long long)wrong, (long long)a.dim[0]);
    free(x);
    free(y);
}
static void drop(struct dev *d, const struct tensor *t, int n)
{
    d->ops->sync(d);
    for (int i = 0; i < n; i++) dev_free(d, t[i].data);
}

/* ---- gate, sum and norm ------------------------------------------------------------------------
 */

struct gate_ln_case {
    double one;
    bool no_gate;
    bool same_sums; /* each sample has a scale, or there is no gate: the same partial sums */
};
/* t: x1 out mean rstd x y gate scale shift; again by the separate ops, and in place */
static void gate_ln_fwd_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct gate_ln_case *k = arg;
    struct gate_add_ln_args a = {.x = t[4],
                                 .y = t[5],
                                 .gate = k->no_gate ? none : t[6],
                                 .ln = {t[1], t[2], t[3], t[0], t[7], t[8], k->one, 1e-6}};
    d->ops->gate_add_ln_fwd(d, &a);
    struct tensor own[5];
    for (int i = 0; i < 5; i++) own[i] = twin(d, t[i]);
    struct ln_args ln = {own[1], own[2], own[3], own[0], t[7], t[8], k->one, 1e-6};
    for (int i = 0; i < 4; i++) d->ops->fill(d, own[i], 7);
    d->ops->gate_add_fwd(
        d, &(struct gate_add_args){.out = own[0], .x = t[4], .y = t[5], .gate = a.gate});
    d->ops->ln_fwd(d, &ln);
    const char *const name[] = {"x1", "out", "mean", "rstd"};
    for (int i = 0; i < 4; i++) same_bits(d, name[i], t[i], own[i]);
    a.x = a.ln.x = own[4];
    a.ln.out = own[1];
    d->ops->fill(d, own[1], 7);
    d->ops->gate_add_ln_fwd(d, &a);
    same_bits(d, "x1 in place of x", own[4], own[0]);
    same_bits(d, "out beside x1 in place", own[1], t[1]);
    struct tensor y = twin(d, t[5]), x = twin(d, t[4]);
    a.x = a.ln.x = x;
    a.y = a.ln.out = y;
    d->ops->gate_add_ln_fwd(d, &a);
    same_bits(d, "x1 and out in place of x and y", x, own[0]);
    same_bits(d, "out in place of y", y, t[1]);
    drop(d, (struct tensor[]){x, y}, 2);
    drop(d, own, 5);
}

/* t: dx dscale dshift dy' dgate dy x mean rstd scale y gate */
static void gate_ln_bwd_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct gate_ln_case *k = arg;
    struct tensor own[7];
    for (int i = 0; i < 6; i++) own[i] = twin(d, t[i]);
    own[6] = twin(d, t[5]);
    struct gate_add_ln_grad_args a = {
        .ln = {t[0], t[1], t[2], t[5], t[6], t[7], t[8], t[9], k->one}};
    if (!k->no_gate) a.dy = t[3], a.dgate = t[4], a.y = t[10], a.gate = t[11];
    d->ops->gate_add_ln_bwd(d, &a);
    struct ln_grad_args ln = a.ln;
    ln.dx = own[6];
    ln.dscale = own[1];
    ln.dshift = own[2];
    d->ops->ln_bwd(d, &ln);
    d->ops->axpy(d, own[0], 1, own[6]);
    same_bits(d, "dx", t[0], own[0]);
    if (k->same_sums) same_bits(d, "dscale", t[1], own[1]);
    if (k->same_sums) same_bits(d, "dshift", t[2], own[2]);
    if (!k->no_gate) {
        const struct gate_add_grad_args g = {
            .dy = own[3], .dgate = own[4], .dout = own[0], .y = t[10], .gate = t[11]};
        d->ops->gate_add_bwd(d, &g);
        same_bits(d, "dy", t[3], own[3]);
        same_bits(d, "dgate", t[4], own[4]);
        d->ops->fill(d, own[0], 0.5);
        d->ops->fill(d, own[6], 0.5);
        a.ln.dscale = own[1];
        a.ln.dshift = own[2];
        a.dgate = own[4];
        a.ln.dx = own[0];
        a.dy = a.ln.dy = own[5]; /* in place of the gradient of the norm's output */
        d->ops->gate_add_ln_bwd(d, &a);
        a.ln.dx = own[6];
        a.ln.dy = t[5];
        a.dy = own[3];
        d->ops->gate_add_ln_bwd(d, &a);
        same_bits(d, "dy in place", own[5], own[3]);
    }
    drop(d, own, 7);
}

/* y_gap: of the arrays of the gated alone */
static void gate_ln_one(const struct target *t, int64_t B, int64_t n, int64_t C, int64_t gap,
                        int64_t y_gap, bool one_scale, bool no_gate)
{
    const int64_t S = one_scale ? 1 : B;
    struct gate_ln_case a = {.one = !one_scale, .no_gate = no_gate, .same_sums = S == B || no_gate};
    struct ops_case c;
    case_begin(&c, t, "gate and layer norm forward [%lld,%lld,%lld] %d%d", (long long)B,
               (long long)n, (long long)C, one_scale, no_gate);
    VAR("x1", K_T, OUT, gap, -1, 1, B * n, C);
    VAR("out", K_T, OUT, 0, -1, 1, B * n, C);
    VAR("mean", K_S, OUT, 0, -1, 1, B * n);
    VAR("rstd", K_S, OUT, 0, -1, 1, B * n);
    VAR("x", K_T, IN, gap, -1, 3, B * n, C);
    VAR("y", K_T, IN, y_gap, -1, 1, B * n, C);
    VAR("gate", K_S, IN, gap, -1, 1, B, C);
    VAR("scale", K_S, IN, gap, -1, 1, S, C);
    VAR("shift", K_S, IN, gap, -1, 1, S, C);
    const bool narrow = t->compute == DT_BF16; /* x1 is rounded before its norm is taken */
    for (int i = 1; i < 4 && narrow; i++) c.var[i].tol = 1e-2;
    case_check(&c, gate_ln_fwd_run, &a);
    case_begin(&c, t, "gate and layer norm backward [%lld,%lld,%lld] %d%d", (long long)B,
               (long long)n, (long long)C, one_scale, no_gate);
    VAR("dx", K_T, OUT, gap, -1, 1, B * n, C);
    VAR("dscale", K_S, OUT, gap, -1, 1, S, C);
    VAR("dshift", K_S, OUT, gap, -1, 1, S, C);
    VAR("dy of the gated", K_T, OUT, 0, -1, 1, B * n, C);
    VAR("dgate", K_S, OUT, gap, -1, 1, B, C);
    VAR("dy", K_T, IN, gap, -1, 1, B * n, C);
    VAR("x", K_T, IN, 0, -1, 3, B * n, C);
    VAR("mean", K_S, IN, 0, 0.9, 1.1, B * n);
    VAR("rstd", K_S, IN, 0, 0.9, 1.1, B * n);
    VAR("scale", K_S, IN, gap, -1, 1, S, C);
    VAR("y", K_T, IN, y_gap, -1, 1, B * n, C);
    VAR("gate", K_S, IN, gap, -1, 1, B, C);
    if (narrow) c.var[0].tol = c.var[3].tol = c.var[4].tol = 1e-2; /* dx is rounded on the way */
    case_check(&c, gate_ln_bwd_run, &a);
}

static void gate_ln_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    gate_ln_one(t, 1, 1, 40, 0, 0, false, false);
    gate_ln_one(t, 3, 37, 40, 8, 0, false, false);
    gate_ln_one(t, 3, 37, 40, 8, 8, true, false); /* an affine norm: one scale for three samples */
    gate_ln_one(t, 2, 70, 1027, 0, 0, false, false);
    gate_ln_one(t, 2, 11, 48, 8, 3, false, false); /* packs of eight for the norm only */
    gate_ln_one(t, 2, 21, 80, 8, 0, false, true);
    gate_ln_one(t, 1, 9, 513, 3, 0, true, true);
}

/* ---- rows that move on the way -----------------------------------------------------------------
 */

/* t: out x1 normed mean rstd dx dy dgate, x y gate scale shift dout map y of the way back */
static void moved_run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    struct tensor here = twin(d, t[8]), dgate = twin(d, t[7]), own[6];
    for (int i = 0; i < 6; i++) own[i] = twin(d, t[i + 1]); /* x1 normed mean rstd dx dy */
    const struct gate_add_args sum = {t[0], t[8], t[9], t[10], t[14]};
    d->ops->gate_add_fwd(d, &sum);
    const struct gate_add_ln_args f = {
        t[8], t[9], t[10], t[14], {t[2], t[3], t[4], t[1], t[11], t[12], 1, 1e-6}};
    d->ops->gate_add_ln_fwd(d, &f);
    const struct gate_add_grad_args g = {t[6], t[7], t[13], t[15], t[10], t[5], t[14]};
    d->ops->gate_add_bwd(d, &g);
    same_bits(d, "sum of the fused norm", t[1], t[0]);
    /* a gate that is the same for all samples does not care where a row lies */
    const struct gate_add_args still = {
        .out = here, .x = t[8], .y = t[9], .gate = tensor_rows(t[10], 0, 1)};
    struct gate_add_args one = sum;
    one.gate = still.gate;
    one.out = own[1];
    d->ops->gate_add_fwd(d, &still);
    d->ops->rows_gather(d, own[0], here, t[14]);
    d->ops->gate_add_fwd(d, &one);
    same_bits(d, "sum, then the rows moved", own[1], own[0]);
    const struct ln_args ln = {own[1], own[2], own[3], t[0], t[11], t[12], 1, 1e-6};
    d->ops->ln_fwd(d, &ln);
    for (int i = 1; i < 4; i++) same_bits(d, "norm of the moved sum", own[i], t[i + 1]);
    d->ops->rows_gather(d, own[4], t[13], t[14]);
    const struct gate_add_grad_args back = {
        .dy = own[5], .dgate = dgate, .dout = own[4], .y = t[15], .gate = t[10]};
    d->ops->gate_add_bwd(d, &back);
    same_bits(d, "dx", t[5], own[4]);
    same_bits(d, "dy", t[6], own[5]);
    same_bits(d, "dgate", t[7], dgate);
    drop(d, own, 6);
    drop(d, (struct tensor[]){here, dgate}, 2);
}

/* B samples of n rows from some of B * from rows */
static void moved_one(const struct target *t, int64_t B, int64_t n, int64_t from, int64_t C,
                      int64_t gap)
{
    struct ops_case c;
    case_begin(&c, t, "gate by a row map [%lld,%lld,%lld] of %lld", (long long)B, (long long)n,
               (long long)C, (long long)from);
    VAR("out", K_T, OUT, gap, -1, 1, B * n, C);
    VAR("x1", K_T, OUT, 0, -1, 1, B * n, C);
    VAR("normed", K_T, OUT, gap, -1, 1, B * n, C);
    VAR("mean", K_S, OUT, 0, -1, 1, B * n);
    VAR("rstd", K_S, OUT, 0, -1, 1, B * n);
    VAR("dx", K_T, OUT, gap, -1, 1, B * n, C);
    VAR("dy", K_T, OUT, 0, -1, 1, B * n, C);
    VAR("dgate", K_S, OUT, gap, -1, 1, B, C);
    VAR("x", K_T, IN, gap, -1, 3, B * from, C);
    VAR("y", K_T, IN, 0, -1, 1, B * from, C);
    VAR("gate", K_S, IN, gap, -1, 1, B, C);
    VAR("scale", K_S, IN, gap, -1, 1, B, C);
    VAR("shift", K_S, IN, gap, -1, 1, B, C);
    VAR("dout", K_T, IN, gap, -1, 1, B * from, C);
    const int map = VAR("map", K_I32, IN, 0, -1, (double)(B * from), B * n);
    c.var[map].value[0] = (double)(B * from - 1);
    c.var[map].value[B * n - 1] = -1;
    VAR("y of the way back", K_T, IN, 0, -1, 1, B * n, C);
    const bool narrow = t->compute == DT_BF16; /* x1 is rounded before its norm is taken */
    for (int i = 2; i < 5 && narrow; i++) c.var[i].tol = 1e-2;
    case_check(&c, moved_run, NULL);
}

static void moved_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    moved_one(t, 1, 9, 9, 40, 0);
    moved_one(t, 3, 37, 41, 40, 8);   /* fewer rows than before: padding goes */
    moved_one(t, 2, 70, 50, 1027, 0); /* more: padding comes */
    moved_one(t, 2, 11, 11, 48, 3);
}

static void test_moved(struct comm *w)
{
    (void)w;
    each_target(moved_target);
}

/* ---- in place, and without what is not wanted ---------------------------------------------------
 */

/* Share of elements that differ. */
static double differing(struct dev *d, struct tensor a, struct tensor b)
{
    const int64_t n = tensor_count(a);
    double *x = malloc((size_t)n * sizeof *x), *y = malloc((size_t)n * sizeof *y), off = 0;
    CHECK(x && y, "out of memory");
    dev_get_f64(d, x, a);
    dev_get_f64(d, y, b);
    for (int64_t i = 0; i < n; i++) off += x[i] != y[i];
    free(x);
    free(y);
    return off / (double)n;
}

/* t: normed rstd x w pos cos sin; gelu y; c aux a b bias */
static void in_place_run(struct dev *d, const struct tensor *t, void *arg)
{
    const int heads = *(int *)arg; /* 0: no rotation */
    const struct rope rope = {{1, 1, 1}, {t[5], t[5], t[5]}, {t[6], t[6], t[6]}};
    struct norm_rope_args a = {
        t[0], t[1], t[2], t[3], heads ? t[4] : none, &rope, heads ? heads : 1, 1e-6};
    d->ops->norm_rope_fwd(d, &a);
    struct tensor x = twin(d, t[2]), y = twin(d, t[7]), c = twin(d, t[8]);
    a.out = a.x = x;
    d->ops->norm_rope_fwd(d, &a);
    same_bits(d, "norm in place", x, t[0]);
    d->ops->gelu_fwd(d, t[7], t[2]);
    d->ops->cast(d, x, t[2]);
    d->ops->gelu_fwd(d, x, x);
    same_bits(d, "gelu in place", x, t[7]);
    struct gemm_args g = {.c = t[8],
                          .a = t[10],
                          .b = t[11],
                          .alpha = 1,
                          .epilogue = EPI_BIAS_GELU,
                          .bias = t[12],
                          .aux = t[9]};
    d->ops->gemm(d, &g);
    g.c = c;
    g.aux = none;
    d->ops->gemm(d, &g);
    same_bits(d, "gelu epilogue without its argument", c, t[8]);
    d->ops->gelu_fwd(d, t[8], t[9]); /* the epilogue may have another exponential */
    struct tensor wide = twin(d, t[8]);
    const double share = d->compute == DT_BF16 ? differing(d, wide, c) : 0;
    EXPECT(share < 0.05, "%s: %.2g of the epilogue is not the gelu of what aux holds", d->ops->name,
           share);
    drop(d, (struct tensor[]){x, y, c, wide}, 4);
}

static void in_place_one(const struct target *t, int64_t n, int64_t C, int64_t gap, int heads)
{
    struct ops_case c;
    case_begin(&c, t, "in place [%lld,%lld], %d heads", (long long)n, (long long)C, heads);
    VAR("normed", K_T, OUT, gap, -1, 1, n, C);
    VAR("rstd", K_S, OUT, 0, -1, 1, n);
    VAR("x", K_T, IN, gap, -2, 2, n, C);
    VAR("w", K_S, IN, 0, 0.5, 1.5, C);
    const int pos = VAR("pos", K_I16, IN, 0, 0, 6, n, 3);
    for (int x = 0; x < 3; x++) c.var[pos].value[x] = -1;
    VAR("cos", K_S, IN, 0, -1, 1, 6, 1);
    VAR("sin", K_S, IN, 0, -1, 1, 6, 1);
    VAR("gelu", K_T, OUT, gap, -1, 1, n, C);
    VAR("c", K_T, OUT, gap, -1, 1, n, 41);
    VAR("aux", K_T, OUT, gap, -1, 1, n, 41);
    VAR("a", K_T, IN, 0, -1, 1, n, 9);
    VAR("b", K_T, IN, 0, -1, 1, 9, 41);
    VAR("bias", K_T, IN, 0, -1, 1, 41);
    if (t->compute == DT_BF16) c.var[8].tol = 1e-2; /* the gelu of a rounded number */
    case_check(&c, in_place_run, &heads);
}

static void in_place_target(const struct target *t)
{
    in_place_one(t, 33, 48, 8, 8);
    in_place_one(t, 33, 48, 8, 0);
    in_place_one(t, 40, 42, 3, 7); /* not packs of eight */
    in_place_one(t, 5, 1537, 0, 0);
}

/* What the dry run counts, in passes of one array of rows. */
static void test_passes(struct comm *w)
{
    (void)w;
    struct dev *d = dev_open("null", DT_BF16, 1);
    struct tensor x = dev_tensor(d, DT_BF16, 2, DIMS(64, 48));
    const double pass = (double)tensor_bytes(x);
    struct tensor v = dev_tensor(d, DT_F32, 2, DIMS(2, 48)), s = dev_tensor(d, DT_F32, 1, DIMS(64));
    const struct gate_add_ln_args f = {x, x, v, none, {x, s, s, x, v, v, 1, 1e-6}};
    const struct gate_add_ln_grad_args g = {{x, v, v, x, x, s, s, v, 1}, x, v, x, v};
    struct gate_add_ln_grad_args plain = g;
    plain.dy.data = NULL;
    double *count = &d->count.row_bytes;
    d->ops->gate_add_ln_fwd(d, &f);
    EXPECT(*count == 4 * pass, "forward: %g passes", *count / pass);
    *count = 0;
    struct tensor map = dev_tensor(d, DT_I32, 1, DIMS(64));
    struct gate_add_ln_args m = f;
    m.map = map;
    m.x.dim[0] = m.y.dim[0] = 80;
    d->ops->gate_add_ln_fwd(d, &m);
    EXPECT(*count == 4 * pass, "forward by a row map: %g passes", *count / pass);
    *count = 0;
    d->ops->gate_add_fwd(d, &(struct gate_add_args){x, m.x, m.y, v, map});
    EXPECT(*count == 3 * pass, "gate by a row map: %g passes", *count / pass);
    *count = 0;
    d->ops->gate_add_bwd(d, &(struct gate_add_grad_args){x, v, m.x, x, v, x, map});
    EXPECT(*count == 4 * pass, "gate backward by a row map: %g passes", *count / pass);
    *count = 0;
    d->ops->gate_add_ln_bwd(d, &g);
    EXPECT(*count == 6 * pass, "backward: %g passes", *count / pass);
    *count = 0;
    d->ops->gate_add_ln_bwd(d, &plain);
    EXPECT(*count == 4 * pass, "backward without a gate: %g passes", *count / pass);
    const struct update_shard list[] = {{.p = s, .m = s, .v = s, .g = s, .ema = s},
                                        {.p = s, .m = s, .v = s, .g = s}};
    *count = 0;
    d->ops->update(d, &(struct update_args){.shard = list, .num_shards = 2});
    EXPECT(*count == 9 * 64 * 4, "update: %g bytes", *count);
    *count = 0;
    d->ops->sumsq(d, s, (struct tensor[]){s, v}, 2);
    EXPECT(*count == (64 + 96) * 4, "sum of squares: %g bytes", *count);
    drop(d, (struct tensor[]){x, v, s, map}, 4);
    dev_close(d);
}

static void test_gate_ln(struct comm *w)
{
    (void)w;
    each_target(gate_ln_target);
}

/* ---- lists of flat arrays ----------------------------------------------------------------------
 */

enum { SHARDS = 7 }; /* empty ones at both ends and between, one of one element */
static const int64_t shard_first[SHARDS + 1] = {0, 0, 300, 300, 17000, 17001, 50000, 50000};

static struct tensor piece(struct tensor t, int i)
{
    return tensor_rows(t, shard_first[i], shard_first[i + 1] - shard_first[i]);
}
/* Shards of t: p m v g ema wire. One has no EMA, another no wire copy. */
static int shards_of(const struct tensor *t, struct update_shard *list)
{
    for (int i = 0; i < SHARDS; i++)
        list[i] = (struct update_shard){.p = piece(t[0], i),
                                        .m = piece(t[1], i),
                                        .v = piece(t[2], i),
                                        .g = piece(t[3], i),
                                        .ema = i == 3 ? none : piece(t[4], i),
                                        .wire = i == 5 ? none : piece(t[5], i),
                                        .weight_decay = 0.1 * i};
    return SHARDS;
}

/* t: p m v g ema wire sum; the whole list at once, and one shard after the other */
static void list_run(struct dev *d, const struct tensor *t, void *arg)
{
    struct tensor own[7], squares[SHARDS];
    struct update_shard list[SHARDS];
    struct update_args a = {.lr = 1e-2,
                            .beta1 = 0.9,
                            .beta2 = 0.999,
                            .eps = 1e-8,
                            .bias1 = 0.19,
                            .bias2 = 0.002,
                            .grad_scale = 0.5,
                            .ema_keep = *(double *)arg};
    for (int i = 0; i < 7; i++) own[i] = twin(d, t[i]);
    d->ops->update(d, &a);
    d->ops->sumsq(d, t[6], NULL, 0); /* empty lists */
    same_bits(d, "nothing", t[6], own[6]);
    for (int i = 0; i < SHARDS; i++) squares[i] = piece(t[3], i);
    d->ops->sumsq(d, t[6], squares, SHARDS);
    for (int i = 0; i < SHARDS; i++) d->ops->sumsq(d, own[6], &squares[i], 1);
    same_bits(d, "sum of squares", t[6], own[6]);
    a.shard = list;
    a.num_shards = shards_of(t, list);
    d->ops->update(d, &a);
    shards_of(own, list);
    a.num_shards = 1;
    for (int i = 0; i < SHARDS; i++) {
        a.shard = &list[i];
        d->ops->update(d, &a);
    }
    const char *const name[] = {"p", "m", "v", "g", "ema", "wire"};
    for (int i = 0; i < 6; i++) same_bits(d, name[i], t[i], own[i]);
    drop(d, own, 7);
}

static void list_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    const double keep[] = {0.99, -1};
    for (int k = 0; k < 2; k++) {
        const int64_t n = shard_first[SHARDS];
        double arg = keep[k];
        struct ops_case c;
        case_begin(&c, t, "update of a list, EMA %g", arg);
        VAR("p", K_S, OUT, 0, -1, 1, n);
        VAR("m", K_S, OUT, 0, -1, 1, n);
        VAR("v", K_S, OUT, 0, 0, 1, n);
        VAR("g", K_S, IN, 0, -1, 1, n);
        VAR("ema", K_S, OUT, 0, -1, 1, n);
        VAR("wire", K_T, OUT, 0, -1, 1, n);
        VAR("sum", K_F64, OUT, 0, 0, 1, 1);
        case_check(&c, list_run, &arg);
    }
}
static void test_lists(struct comm *w)
{
    (void)w;
    each_target(list_target);
}

static void test_in_place(struct comm *w)
{
    (void)w;
    each_target(in_place_target);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {.name = "gate, sum and norm in one: the bits of the ops they stand for",
         .run = test_gate_ln},
        {.name = "gates by a row map: the bits of rows moved by themselves", .run = test_moved},
        {.name = "in place, and without what is not wanted: the same bits", .run = test_in_place},
        {.name = "optimizer and sum of squares over a list: as one by one", .run = test_lists},
        {.name = "passes over memory, as the dry run counts them", .run = test_passes},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
