/* Policy objectives and sampler steps on every device, bit by bit: sums that do not depend on
 * batch, layout or order and keep what is far below their quantum, steps without noise or history,
 * and what must not pass. test_ops_policy.c compares the values. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "tests/ops_case.h"

static const struct tensor none;
static const struct rng_key keys[] = {{.seed = 3, .use = RNG_SDE, .step = 4, .item = 1},
                                      {.seed = 3, .use = RNG_SDE, .step = 4, .item = 2},
                                      {.seed = 3, .use = RNG_SDE, .step = 5, .item = 1}};

enum { B = 3, PER = 150, C = 4, ARRAYS = 7 };
struct world {
    struct dev *d;
    struct tensor pos, sum,
        row[ARRAYS]; /* from 1: x, next, c, u, ref_c, ref_u; of nft target, -, v, old, ref */
};

static struct tensor filled(struct dev *d, enum dtype t, int seed)
{
    const struct rng_stream s =
        rng_open((struct rng_key){.seed = 17, .use = RNG_TEST, .item = (uint64_t)seed});
    double v[B * PER * 4 * C];
    for (int i = 0; i < B * PER * 4 * C; i++) v[i] = 2 * rng_uniform_at(s, (uint64_t)i) - 1;
    struct tensor x = dev_tensor(d, t, 2, DIMS(B * PER, 4 * C));
    dev_put_f64(d, x, v);
    return x;
}
static void open_world(struct world *w, const struct target *t)
{
    w->d = target_open(t, 2);
    const enum dtype T = t->compute, S = dtype_state(T);
    for (int i = 1; i < ARRAYS; i++) w->row[i] = filled(w->d, i < 3 ? S : T, i);
    int16_t pos[B * PER * 3];
    for (int r = 0; r < B * PER; r++) {
        pos[3 * r] = (int16_t)(r % 13 == 5 ? -1 : 0);
        pos[3 * r + 1] = (int16_t)(r % PER / 15);
        pos[3 * r + 2] = (int16_t)(r % 15);
    }
    w->sum = dev_tensor(w->d, DT_F64, 2, DIMS(B, NFT_SUMS));
    w->pos = w->row[0] = dev_tensor(w->d, DT_I16, 2, DIMS(B * PER, 3));
    dev_put(w->d, w->pos, pos);
}
static void close_world(struct world *w)
{
    for (int i = 0; i < ARRAYS; i++) dev_free(w->d, w->row[i].data);
    dev_free(w->d, w->sum.data);
    dev_close(w->d);
}

static int width_of(int kind) { return kind ? NFT_SUMS : TRANSITION_SUMS; }

/* Sums over rows [first, first + n) as one batch; kind 0: transition, 1: nft. */
static void sums_of(struct world *w, int kind, int64_t first, int64_t n, int batch, double quantum,
                    double *out)
{
    const struct tensor sum = tensor_make(w->sum.data, DT_F64, 2, DIMS(batch, width_of(kind)));
    struct tensor t[ARRAYS];
    for (int i = 0; i < ARRAYS; i++) t[i] = tensor_rows(w->row[i], first, n);
    w->d->ops->fill(w->d, sum, 0);
    const double same[3] = {0.98, 0.98, 0.98}, v[3] = {-0.5, -0.5, -0.5}, inv[3] = {3, 3, 3};
    if (kind) {
        const struct nft_args a = {t[1], t[3], t[4], t[5], t[0], 0.3, quantum, batch};
        w->d->ops->nft_sums(w->d, sum, &a);
    } else {
        const struct transition_args a = {t[1], t[2],  t[3], t[4], t[5], t[6],   t[0],
                                          3,    batch, same, v,    inv,  quantum};
        w->d->ops->transition_sums(w->d, sum, &a);
    }
    w->d->ops->sync(w->d);
    dev_get_f64(w->d, out, sum);
}

static void expect_same(const struct target *t, const char *what, const double *a, const double *b,
                        int n)
{
    for (int i = 0; i < n; i++)
        EXPECT(memcmp(a + i, b + i, sizeof *a) == 0, "%s: %s: sum %d is %.17g and %.17g", t->name,
               what, i, a[i], b[i]);
}

/* Row 40 of sample 0 moves to where row 90 is, and back. */
static void swap_rows(struct world *w)
{
    for (int i = 1; i < ARRAYS; i++) {
        const struct tensor a = tensor_rows(w->row[i], 40, 1), b = tensor_rows(w->row[i], 90, 1);
        char x[4 * C * sizeof(double)], y[4 * C * sizeof(double)];
        dev_get(w->d, x, a);
        dev_get(w->d, y, b);
        dev_put(w->d, a, y);
        dev_put(w->d, b, x);
    }
}

static void exact_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    struct world w;
    open_world(&w, t);
    const double quantum = 0x1p-24;
    for (int kind = 0; kind < 2; kind++) {
        const int n = width_of(kind), last = n - 1; /* what is left of the one before it */
        double all[B * NFT_SUMS], one[B * NFT_SUMS], part[2][NFT_SUMS], fine[B * NFT_SUMS];
        sums_of(&w, kind, 0, B * PER, B, quantum, all);
        for (int b = 0; b < B; b++) sums_of(&w, kind, b * PER, PER, 1, quantum, one + b * n);
        expect_same(t, "batch of 3 against 3 of 1", all, one, B * n);
        for (int b = 0; b < B; b++) {
            const int64_t cut = 70 + b; /* not where a task ends */
            sums_of(&w, kind, b * PER, cut, 1, quantum, part[0]);
            sums_of(&w, kind, b * PER + cut, PER - cut, 1, quantum, part[1]);
            double up[NFT_SUMS], down[NFT_SUMS];
            for (int i = 0; i < n; i++) up[i] = part[0][i] + part[1][i];
            for (int i = 0; i < n; i++) down[i] = part[1][i] + part[0][i];
            expect_same(t, "two halves", up, all + b * n, n);
            expect_same(t, "two halves, the other order", down, all + b * n, n);
        }
        swap_rows(&w);
        sums_of(&w, kind, 0, B * PER, B, quantum, one);
        swap_rows(&w);
        expect_same(t, "two rows exchanged", all, one, B * n);
        sums_of(&w, kind, 0, B * PER, B, 0x1p-60, fine);
        for (int i = 0; i < B * n; i++) {
            const double unit = i % n == last ? quantum * DEV_FINE : quantum;
            EXPECT(all[i] != 0 && fmod(all[i], unit) == 0, "%s: %.17g is no multiple", t->name,
                   all[i]);
            if (i % n != last) {
                EXPECT(all[i] != fine[i] && fabs(all[i] - fine[i]) <= PER * quantum / 2,
                       "%s: %.17g rounded to %.17g", t->name, fine[i], all[i]);
                continue;
            }
            const double want = fine[i - 1] + fine[i], e = all[i - 1] + all[i] - want;
            EXPECT(fabs(e) <= PER * unit + 4e-15 * want, "%s: %.17g and %.17g of %.17g", t->name,
                   all[i - 1], all[i], want);
        }
    }
    close_world(&w);
}
static void test_exact(struct comm *w)
{
    (void)w;
    each_target(exact_target);
}

/* A divergence so small that every row rounds to no quantum is in what is left. */
static void small_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    const double quantum = 0x1p-26; /* that of 720p */
    struct world w;
    open_world(&w, t);
    for (int i = 3; i < ARRAYS; i++) w.d->ops->scale(w.d, w.row[i], 1e-6);
    for (int kind = 0; kind < 2; kind++) {
        const int n = width_of(kind), last = n - 1;
        double got[B * NFT_SUMS], exact[B * NFT_SUMS];
        sums_of(&w, kind, 0, B * PER, B, quantum, got);
        sums_of(&w, kind, 0, B * PER, B, 0x1p-120, exact);
        for (int b = 0; b < B; b++) {
            const double want = exact[b * n + last - 1], e = got[b * n + last] - want;
            EXPECT(got[b * n + last - 1] == 0 && want > 0 && fabs(e) <= 1e-6 * want &&
                       fmod(got[b * n + last], quantum * DEV_FINE) == 0,
                   "%s: %g and %g of %g", t->name, got[b * n + last - 1], got[b * n + last], want);
        }
    }
    close_world(&w);
}
static void test_small(struct comm *w)
{
    (void)w;
    each_target(small_target);
}

/* ---- at the size of a 720p clip ------------------------------------------------------------- */

enum { WIDE = 64 };
struct clip {
    struct dev *d;
    int64_t rows;
    struct tensor pos, x, next, c, ref, sum;
};
/* v and that of the base are 2^-20 apart. */
static void open_clip(struct clip *k, const struct target *t)
{
    const int64_t n = test_fast() ? 1000000 : 10000000;
    k->d = target_open(t, 2);
    k->rows = n / WIDE;
    float *x = calloc((size_t)n, sizeof *x);
    int16_t *pos = calloc((size_t)k->rows * 3, sizeof *pos);
    CHECK(x && pos, "out of memory");
    struct tensor *const all[] = {&k->x, &k->next, &k->c, &k->ref};
    for (int i = 0; i < 4; i++) {
        *all[i] = dev_tensor(k->d, DT_F32, 2, DIMS(k->rows, WIDE));
        for (int64_t j = 0; j < n; j++) {
            const double u = (double)((j * 7919) % 8191) / 8191; /* [0, 1) */
            x[j] = (float)(i < 2 ? 1 - u : i == 2 ? u : u + (u > 0.5 ? 0x1p-20 : -0x1p-20));
        }
        dev_put(k->d, *all[i], x);
    }
    k->pos = dev_tensor(k->d, DT_I16, 2, DIMS(k->rows, 3));
    dev_put(k->d, k->pos, pos);
    k->sum = dev_tensor(k->d, DT_F64, 2, DIMS(1, TRANSITION_SUMS));
    free(x);
    free(pos);
}
static void clip_sums(struct clip *k, int64_t first, int64_t n, double quantum, double *out)
{
    static const double one = 1, kv = -0.05, inv = 100;
    k->d->ops->fill(k->d, k->sum, 0);
    const struct transition_args a = {.x = tensor_rows(k->x, first, n),
                                      .next = tensor_rows(k->next, first, n),
                                      .c = tensor_rows(k->c, first, n),
                                      .ref_c = tensor_rows(k->ref, first, n),
                                      .pos = tensor_rows(k->pos, first, n),
                                      .batch = 1,
                                      .cx = &one,
                                      .cv = &kv,
                                      .half_inv_v = &inv,
                                      .quantum = quantum};
    k->d->ops->transition_sums(k->d, k->sum, &a);
    k->d->ops->sync(k->d);
    dev_get_f64(k->d, out, k->sum);
}
static void clip_target(const struct target *t)
{
    if (t->compute != DT_F32 || (t->gemm && strcmp(t->gemm, "own") != 0)) return;
    struct clip k;
    double all[TRANSITION_SUMS], part[2][TRANSITION_SUMS], exact[TRANSITION_SUMS];
    open_clip(&k, t);
    clip_sums(&k, 0, k.rows, 0x1p-26, all);
    clip_sums(&k, 0, k.rows, 0x1p-120, exact);
    const int64_t cut = k.rows * 2 / 5 + 3;
    clip_sums(&k, 0, cut, 0x1p-26, part[0]);
    clip_sums(&k, cut, k.rows - cut, 0x1p-26, part[1]);
    for (int i = 0; i < TRANSITION_SUMS; i++) part[0][i] += part[1][i];
    expect_same(t, "a clip in two halves", part[0], all, TRANSITION_SUMS);
    const double n = (double)(k.rows * WIDE), one = 0.05 * 0.05 * 100 * 0x1p-40; /* 2.3e-13 */
    EXPECT(all[1] == 0 && fabs(all[2] - exact[1]) <= 1e-6 * exact[1] &&
               fabs(all[2] / n - one) < 0.01 * one,
           "%s: %.9g and %.9g, exactly %.9g; %.4g an element, not %.4g", t->name, all[1], all[2],
           exact[1], all[2] / n, one);
    const struct tensor list[] = {k.pos, k.x, k.next, k.c, k.ref, k.sum};
    for (int i = 0; i < 6; i++) dev_free(k.d, list[i].data);
    dev_close(k.d);
}
static void test_clip(struct comm *w)
{
    (void)w;
    each_target(clip_target);
}

static void same_step(struct world *w, const struct target *t, const char *what,
                      const struct solver_step_args *a, const struct solver_step_args *b)
{
    enum { BYTES = B * PER * 4 * C * sizeof(float) };
    char *x = malloc(BYTES), *y = malloc(BYTES);
    CHECK(x && y, "out of memory");
    w->d->ops->solver_step(w->d, a);
    dev_get(w->d, x, a->next);
    w->d->ops->solver_step(w->d, b);
    dev_get(w->d, y, b->next);
    EXPECT(memcmp(x, y, BYTES) == 0, "%s: %s: not bit-equal", t->name, what);
    free(x);
    free(y);
}
static void plain_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    struct world w;
    open_world(&w, t);
    for (int guided = 0; guided < 2; guided++) {
        struct solver_step_args ode = {.next = filled(w.d, dtype_state(t->compute), 8),
                                       .x = w.row[1],
                                       .c = w.row[3],
                                       .u = guided ? w.row[4] : none,
                                       .pos = w.pos,
                                       .t = 1,
                                       .height = 20,
                                       .width = 30,
                                       .guidance = 5,
                                       .cx = 1,
                                       .cv = -0.0371,
                                       .batch = B};
        struct solver_step_args sde = ode;
        sde.noise = keys;
        same_step(&w, t, "std 0 against no noise", &sde, &ode);
        sde.h = w.row[2];
        sde.sigma = 0.7;
        same_step(&w, t, "history of weight 0 against none", &sde, &ode);
        sde.noise = NULL;
        sde.std = 3;
        same_step(&w, t, "no noise of any std", &sde, &ode);
        dev_free(w.d, ode.next.data);
    }
    close_world(&w);
}
static void test_plain(struct comm *w)
{
    (void)w;
    each_target(plain_target);
}

/* ---- what must not pass -------------------------------------------------------------------- */

struct bad {
    struct world *w;
    int kind;
    double quantum;
};
static void bad_quantum(void *arg)
{
    const struct bad *b = arg;
    double out[B * NFT_SUMS];
    sums_of(b->w, b->kind, 0, B * PER, B, b->quantum, out);
}
static void bad_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    struct world w;
    open_world(&w, t);
    for (int kind = 0; kind < 2; kind++) {
        const double quantum[] = {0, -1, 0.3, (double)NAN};
        for (int i = 0; i < 4; i++)
            expect_stop("power of two", RC_SOFTWARE, bad_quantum,
                        &(struct bad){&w, kind, quantum[i]});
        double v[4 * C] = {1}, sum[B * NFT_SUMS];
        const int last = kind ? 4 : 1; /* the divergence, and after it what rounding leaves */
        v[3] = (double)INFINITY;
        dev_put_f64(w.d, tensor_rows(w.row[5], PER + 1, 1), v);
        sums_of(&w, kind, 0, B * PER, B, 0x1p-24, sum);
        const double *s1 = sum + width_of(kind);
        EXPECT(isinf(s1[last] + s1[last + 1]), "%s: a divergence of %g and %g", t->name, s1[last],
               s1[last + 1]);
        v[3] = 0;
        dev_put_f64(w.d, tensor_rows(w.row[5], PER + 1, 1), v);
        const double odd[] = {(double)INFINITY, (double)NAN};
        for (int i = 0; i < 2; i++) {
            v[3] = odd[i];
            dev_put_f64(w.d, tensor_rows(w.row[kind ? 1 : 2], PER + 1, 1), v);
            sums_of(&w, kind, 0, B * PER, B, 0x1p-24, sum);
            const int n = kind ? 4 : 1; /* the sums that use this array */
            for (int b = 0; b < B; b++)
                for (int j = 0; j < n; j++) {
                    const double s = sum[b * width_of(kind) + j];
                    EXPECT(b != 1 ? isfinite(s)
                           : i    ? isnan(s)
                                  : isinf(s),
                           "%s: sum %d of sample %d is %g", t->name, j, b, s);
                }
        }
    }
    close_world(&w);
}
static void test_bad(struct comm *w)
{
    (void)w;
    each_target(bad_target);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {.name = "sums do not depend on batch, layout or order", .run = test_exact},
        {.name = "a divergence far below the quantum is kept", .run = test_small},
        {.name = "and at ten million elements, in two halves", .run = test_clip},
        {.name = "a step without noise or history is the plain step", .run = test_plain},
        {.name = "a quantum that is none stops, what is not finite is seen", .run = test_bad},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
