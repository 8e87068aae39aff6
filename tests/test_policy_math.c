/* Judges the ref device in f64 on sampler steps and policy objectives: the vectors of
 * docs/spec/rl.md 1.6 and 5.6, the same formulas element by element in the latents, and finite
 * differences of the sums. tests/test_ops_policy.c then holds every other device to it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "tests/check.h"
#include "tests/grad.h"

/* ---- a small world ------------------------------------------------------------------------- */

enum { B = 2, CH = 3, F = 2, H = 4, W = 6, N = CH * F * H * W, PER = N / (4 * CH) + 2 };
enum { X, NEXT, C, U, REF_C, REF_U, HIST, OUT1, OUT2, NAMED };
struct probe {
    struct dev *d;
    struct tensor pos, t[NAMED]; /* of rows */
    struct tensor sum, latent;
    int16_t at[B * PER * 3];
};

/* Padding in front and in the middle of each sample, the patches in falling order. */
static void place(struct probe *p)
{
    for (int b = 0; b < B; b++) {
        int patch = N / (4 * CH) - 1;
        for (int r = 0; r < PER; r++) {
            int16_t *at = p->at + 3 * (b * PER + r);
            const bool pad = r == 0 || r == 5;
            at[0] = (int16_t)(pad ? -1 : patch / (H / 2 * (W / 2)));
            at[1] = (int16_t)(pad ? -1 : patch / (W / 2) % (H / 2));
            at[2] = (int16_t)(pad ? -1 : patch % (W / 2));
            patch -= !pad;
        }
    }
    p->pos = tensor_make(p->at, DT_I16, 2, DIMS(B * PER, 3));
}
static void open_probe(struct probe *p)
{
    p->d = dev_open("ref", DT_F64, 1);
    place(p);
    for (int i = 0; i < NAMED; i++) {
        p->t[i] = dev_tensor(p->d, DT_F64, 2, DIMS(B * PER, 4 * CH));
        const struct rng_key key = {.seed = 7, .use = RNG_TEST, .item = (uint64_t)i};
        p->d->ops->rng_uniform(p->d, p->t[i], rng_open(key), 0, -1, 1);
    }
    p->sum = dev_tensor(p->d, DT_F64, 2, DIMS(B, NFT_SUMS));
    p->latent = dev_tensor(p->d, DT_F64, 5, DIMS(B, CH, F, H, W));
}
static void close_probe(struct probe *p)
{
    for (int i = 0; i < NAMED; i++) dev_free(p->d, p->t[i].data);
    dev_free(p->d, p->sum.data);
    dev_free(p->d, p->latent.data);
    dev_close(p->d);
}
/* The latents that these rows hold. */
static void to_latent(struct probe *p, int i, enum patch_order order, double *out)
{
    p->d->ops->unpatch_rows(p->d, p->latent, p->t[i], p->pos, order);
    dev_get_f64(p->d, out, p->latent);
}

static const struct tensor none;
static const double guidance = 5, cx[B] = {0.98, 1.1}, cv[B] = {-0.4, 0.3}, inv[B] = {1.5, 0.6},
                    policy[B] = {0.7, -1.2}, kl[B] = {0.3, 0.9}, minus[B] = {-0.8, 0.4}, beta = 0.3;
static const struct rng_key keys[B] = {{.seed = 5, .use = RNG_SDE, .step = 2, .item = 8},
                                       {.seed = 5, .use = RNG_SDE, .step = 2, .item = 9}};

static struct transition_args transition_of(struct probe *p)
{
    return (struct transition_args){p->t[X],     p->t[NEXT], p->t[C],  p->t[U], p->t[REF_C],
                                    p->t[REF_U], p->pos,     guidance, B,       cx,
                                    cv,          inv,        0x1p-90};
}
static struct nft_args nft_of(struct probe *p)
{
    return (struct nft_args){p->t[X], p->t[C], p->t[U], p->t[REF_C], p->pos, beta, 0x1p-90, B};
}

/* ---- in the latents ------------------------------------------------------------------------ */

static void test_latent_step(struct comm *w)
{
    (void)w;
    struct probe p;
    open_probe(&p);
    double x[B * N], c[B * N], u[B * N], h[B * N], next[B * N], hist[B * N], want[B * N], wh[B * N];
    to_latent(&p, X, PATCH_IN, x);
    to_latent(&p, HIST, PATCH_IN, h);
    to_latent(&p, C, PATCH_OUT, c);
    to_latent(&p, U, PATCH_OUT, u);
    const struct solver_step_args a = {.next = p.t[NEXT],
                                       .x = p.t[X],
                                       .h = p.t[HIST],
                                       .c = p.t[C],
                                       .u = p.t[U],
                                       .pos = p.pos,
                                       .t = F,
                                       .height = H,
                                       .width = W,
                                       .guidance = guidance,
                                       .cx = 0.9,
                                       .cv = -0.2,
                                       .ch = 0.4,
                                       .sigma = 0.7,
                                       .std = 0.6,
                                       .noise = keys,
                                       .batch = B};
    p.d->ops->solver_step(p.d, &a);
    to_latent(&p, NEXT, PATCH_IN, next);
    to_latent(&p, HIST, PATCH_IN, hist);
    for (int i = 0; i < B * N; i++) {
        const double n = rng_normal_at(rng_open(keys[i / N]), (uint64_t)(i % N));
        const double v = u[i] + guidance * (c[i] - u[i]);
        want[i] = 0.9 * x[i] - 0.2 * v + 0.4 * h[i] + 0.6 * (double)(float)n;
        wh[i] = x[i] - 0.7 * v;
    }
    expect_close("next", next, want, B * N, 1e-14);
    expect_close("history", hist, wh, B * N, 1e-14);
    close_probe(&p);
}

/* What rounding has left goes back to the sum before it. */
static void take_back(double *sum, int n)
{
    for (int b = 0; b < B; b++, sum += n) {
        sum[n - 2] += sum[n - 1];
        sum[n - 1] = 0;
    }
}

static void test_latent_transition(struct comm *w)
{
    (void)w;
    struct probe p;
    open_probe(&p);
    double x[B * N], next[B * N], t[4][B * N], dc[B * N], du[B * N], wc[B * N], wu[B * N];
    double sum[B * TRANSITION_SUMS], want[B * TRANSITION_SUMS] = {0};
    to_latent(&p, X, PATCH_IN, x);
    to_latent(&p, NEXT, PATCH_IN, next);
    for (int i = 0; i < 4; i++) to_latent(&p, C + i, PATCH_OUT, t[i]);
    const struct transition_args a = transition_of(&p);
    const struct tensor s = tensor_make(p.sum.data, DT_F64, 2, DIMS(B, TRANSITION_SUMS));
    p.d->ops->fill(p.d, s, 0);
    p.d->ops->transition_sums(p.d, s, &a);
    dev_get_f64(p.d, sum, s);
    p.d->ops->transition_grad(p.d, p.t[OUT1], p.t[OUT2], &a, policy, kl, 5, -4);
    to_latent(&p, OUT1, PATCH_OUT, dc);
    to_latent(&p, OUT2, PATCH_OUT, du);
    for (int i = 0; i < B * N; i++) {
        const int b = i / N;
        const double v = t[1][i] + guidance * (t[0][i] - t[1][i]);
        const double ref = t[3][i] + guidance * (t[2][i] - t[3][i]);
        const double e = next[i] - cx[b] * x[i] - cv[b] * v, k = cv[b] * (v - ref);
        want[TRANSITION_SUMS * b] += e * e * inv[b];
        want[TRANSITION_SUMS * b + 1] += k * k * inv[b];
        wc[i] = 5 * (policy[b] * e + kl[b] * (v - ref));
        wu[i] = -4 * (policy[b] * e + kl[b] * (v - ref));
    }
    take_back(sum, TRANSITION_SUMS);
    expect_close("sums", sum, want, B * TRANSITION_SUMS, 1e-13);
    expect_close("dc", dc, wc, B * N, 1e-13);
    expect_close("du", du, wu, B * N, 1e-13);
    close_probe(&p);
}

static void test_latent_nft(struct comm *w)
{
    (void)w;
    struct probe p;
    open_probe(&p);
    double t[4][B * N], sum[B * NFT_SUMS], want[B * NFT_SUMS] = {0}, dv[B * N], wv[B * N];
    const int from[] = {X, C, U, REF_C};
    for (int i = 0; i < 4; i++) to_latent(&p, from[i], PATCH_OUT, t[i]);
    const struct nft_args a = nft_of(&p);
    p.d->ops->fill(p.d, p.sum, 0);
    p.d->ops->nft_sums(p.d, p.sum, &a);
    dev_get_f64(p.d, sum, p.sum);
    p.d->ops->nft_grad(p.d, p.t[OUT1], &a, policy, minus, kl);
    to_latent(&p, OUT1, PATCH_OUT, dv);
    for (int i = 0; i < B * N; i++) {
        const double v = t[1][i], old = t[2][i], move = beta * (v - old); /* v+- = old +- move */
        const double e[] = {t[0][i] - old - move, t[0][i] - old + move, v - t[3][i]};
        double *s = want + i / N * NFT_SUMS;
        s[0] += fabs(e[0]);
        s[1] += e[0] * e[0];
        s[2] += fabs(e[1]);
        s[3] += e[1] * e[1];
        s[4] += e[2] * e[2];
        wv[i] = policy[i / N] * e[0] + minus[i / N] * e[1] + kl[i / N] * e[2];
    }
    take_back(sum, NFT_SUMS);
    expect_close("sums", sum, want, B * NFT_SUMS, 1e-13);
    expect_close("dv", dv, wv, B * N, 1e-13);
    close_probe(&p);
}

/* ---- finite differences -------------------------------------------------------------------- */

/* sum_b -policy/(2 cv) * sum (next-mean)^2 + kl/2 * sum (v-ref_v)^2, from the sums */
static double transition_loss(void *arg)
{
    struct probe *p = arg;
    const struct transition_args a = transition_of(p);
    const struct tensor sum = tensor_make(p->sum.data, DT_F64, 2, DIMS(B, TRANSITION_SUMS));
    p->d->ops->fill(p->d, sum, 0);
    p->d->ops->transition_sums(p->d, sum, &a);
    take_back(sum.data, TRANSITION_SUMS);
    const double *s = sum.data;
    double loss = 0;
    for (int b = 0; b < B; b++, s += TRANSITION_SUMS)
        loss +=
            -policy[b] / (2 * cv[b]) * s[0] / inv[b] + kl[b] / 2 * s[1] / (cv[b] * cv[b] * inv[b]);
    return loss;
}
/* sum_b -plus/(2 beta) * sum (target-v+)^2 + minus/(2 beta) * sum (target-v-)^2 + kl/2 * sum
 * (v-ref)^2 */
static double nft_loss(void *arg)
{
    struct probe *p = arg;
    const struct nft_args a = nft_of(p);
    p->d->ops->fill(p->d, p->sum, 0);
    p->d->ops->nft_sums(p->d, p->sum, &a);
    take_back(p->sum.data, NFT_SUMS);
    const double *s = p->sum.data;
    double loss = 0;
    for (int b = 0; b < B; b++, s += NFT_SUMS)
        loss += (minus[b] * s[3] - policy[b] * s[1]) / (2 * beta) + kl[b] / 2 * s[4];
    return loss;
}
static void test_differences(struct comm *w)
{
    (void)w;
    struct probe p;
    open_probe(&p);
    const int64_t n = tensor_count(p.t[C]);
    const struct transition_args a = transition_of(&p);
    p.d->ops->transition_grad(p.d, p.t[OUT1], p.t[OUT2], &a, policy, kl, guidance, 1 - guidance);
    const struct grad_case step = {"transition", transition_loss, &p, 1e-4, 1e-7};
    grad_worst(&step, "c", p.t[C].data, p.t[OUT1].data, n, 200, NULL);
    grad_worst(&step, "u", p.t[U].data, p.t[OUT2].data, n, 200, NULL);
    const struct nft_args f = nft_of(&p);
    p.d->ops->nft_grad(p.d, p.t[OUT1], &f, policy, minus, kl);
    const struct grad_case nft = {"nft", nft_loss, &p, 1e-4, 1e-7};
    grad_worst(&nft, "v", p.t[C].data, p.t[OUT1].data, n, 200, NULL);
    close_probe(&p);
}

/* ---- vectors ------------------------------------------------------------------------------- */

/* One latent of four equal elements; runs one step, returns the new element and history. */
static double one_step(double cx_, double cv_, double ch, double sigma, double x, double v,
                       double *h)
{
    struct dev *d = dev_open("ref", DT_F64, 1);
    int16_t at[3] = {0, 0, 0};
    double xs[4] = {x, x, x, x}, vs[4] = {v, v, v, v}, hs[4] = {*h, *h, *h, *h}, out[4];
    const int64_t *dim = DIMS(1, 4);
    const struct solver_step_args a = {.next = tensor_make(out, DT_F64, 2, dim),
                                       .x = tensor_make(xs, DT_F64, 2, dim),
                                       .h = tensor_make(hs, DT_F64, 2, dim),
                                       .c = tensor_make(vs, DT_F64, 2, dim),
                                       .pos = tensor_make(at, DT_I16, 2, DIMS(1, 3)),
                                       .t = 1,
                                       .height = 2,
                                       .width = 2,
                                       .cx = cx_,
                                       .cv = cv_,
                                       .ch = ch,
                                       .sigma = sigma,
                                       .batch = 1};
    d->ops->solver_step(d, &a);
    dev_close(d);
    *h = hs[3];
    return out[3];
}
/* mean over the elements of the log density of the transition */
static double log_prob(double cx_, double cv_, double variance, double x, double next, double v)
{
    struct dev *d = dev_open("ref", DT_F64, 1);
    int16_t at[3] = {0, 0, 0};
    double xs[4] = {x, x, x, x}, vs[4] = {v, v, v, v}, ns[4] = {next, next, next, next},
           s[TRANSITION_SUMS] = {0};
    const int64_t *dim = DIMS(1, 4);
    const double half = 1 / (2 * variance);
    const struct transition_args a = {.x = tensor_make(xs, DT_F64, 2, dim),
                                      .next = tensor_make(ns, DT_F64, 2, dim),
                                      .c = tensor_make(vs, DT_F64, 2, dim),
                                      .pos = tensor_make(at, DT_I16, 2, DIMS(1, 3)),
                                      .batch = 1,
                                      .cx = &cx_,
                                      .cv = &cv_,
                                      .half_inv_v = &half,
                                      .quantum = 0x1p-40};
    d->ops->transition_sums(d, tensor_make(s, DT_F64, 2, DIMS(1, TRANSITION_SUMS)), &a);
    dev_close(d);
    EXPECT(s[1] == 0 && s[2] == 0, "a KL of %g without reference", s[1]);
    return -s[0] / 4 - 0.5 * log(variance) - 0.5 * log(2 * M_PI);
}

static void expect_number(const char *what, double got, double want, double tol)
{
    EXPECT(fabs(got - want) <= tol, "%s: %.10f, expected %.10f", what, got, want);
}

static void test_sde_vectors(struct comm *w)
{
    (void)w;
    const double shift[] = {1, 7.5}, eps[] = {0.7, -1.1}, x = 0.5, v = -0.3;
    const int step[] = {1, 3};
    const double want[2][5] = {/* mean, next, log-prob, ODE, clean */
                               {0.5026304, 0.6370304, 0.4863213737, 0.512, 0.788},
                               {0.50039456, 0.41058407, 0.98142511, 0.50207320, 0.794642858}};
    const double tol[] = {1e-10, 6e-9};
    for (int k = 0; k < 2; k++) {
        double sigma[2], h = 0;
        for (int i = 0; i < 2; i++) {
            const double u = 1 - (step[k] + i) / 25.0;
            sigma[i] = shift[k] * u / (1 + (shift[k] - 1) * u);
        }
        const double s = sigma[0], dt = sigma[1] - s, std = s * sqrt(-dt);
        const double kx = 1 + s * dt / 2, kv = (1 + s * (1 - s) / 2) * dt;
        expect_number("mean", one_step(kx, kv, 0, s, x, v, &h), want[k][0], tol[k]);
        expect_number("clean", h, want[k][4], tol[k]);
        h = eps[k]; /* the given normal comes as a history of weight std */
        const double next = one_step(kx, kv, std, s, x, v, &h);
        expect_number("next", next, want[k][1], tol[k]);
        expect_number("log-prob", log_prob(kx, kv, std * std, x, next, v), want[k][2], tol[k]);
        expect_number("ODE", one_step(1, dt, 0, s, x, v, &h), want[k][3], tol[k]);
    }
}

static void test_solver_vectors(struct comm *w)
{
    (void)w;
    const double x = 0.5, m0 = 0.788, m1 = 0.75, s1 = 0.60, s0 = 0.56, s = 0.48;
    const double l1 = log((1 - s1) / s1), l0 = log((1 - s0) / s0), h = log((1 - s) / s) - l0;
    const double r0 = (l0 - l1) / h, v = (x - m0) / s0;
    const double first = (1 - s) * (1 - exp(-h)); /* weight of m0, and of D1 in the two below */
    const double of_d1[] = {0, first / 2, (1 - s) * ((exp(-h) - 1) / h + 1)};
    const double want[] = {0.5411429, 0.5464492, 0.5467327};
    /* order 1, midpoint, heun (which the op can do, but no plan asks for); m0 = x - s0*v, D1 = (m0
     * - m1)/r0 */
    for (int k = 0; k < 3; k++) {
        const double a = first + of_d1[k] / r0;
        double hist = m1;
        const double next = one_step(s / s0 + a, -a * s0, -of_d1[k] / r0, s0, x, v, &hist);
        expect_number("DPM++", next, want[k], 6e-8);
        expect_number("history", hist, m0, 1e-14);
    }
    double hist = 0;
    expect_number("Euler", one_step(1, s - s0, 0, s0, x, v, &hist), want[0], 6e-8);
}

/* ---- the null device ----------------------------------------------------------------------- */

struct dry {
    struct dev *d;
    struct tensor s, t, pos, sum;
    int batch, what;
};
static void dry_run(void *arg)
{
    const struct dry *k = arg;
    struct solver_step_args a = {
        .next = k->s, .x = k->s, .c = k->t, .pos = k->pos, .batch = k->batch};
    const struct transition_args b = {.x = k->s,
                                      .next = k->s,
                                      .c = k->t,
                                      .u = k->t,
                                      .pos = k->pos,
                                      .batch = k->batch,
                                      .quantum = 1};
    const struct nft_args c = {
        .target = k->s, .v = k->t, .old = k->t, .pos = k->pos, .batch = k->batch, .quantum = 1};
    switch (k->what) {
    case 0:
        k->d->ops->solver_step(k->d, &a);
        break;
    case 1:
        k->d->ops->transition_sums(k->d, k->sum, &b);
        break;
    case 2:
        k->d->ops->transition_grad(k->d, k->t, none, &b, NULL, NULL, 1, 0);
        break;
    case 3:
        k->d->ops->nft_sums(k->d, k->sum, &c);
        break;
    default:
        k->d->ops->nft_grad(k->d, k->t, &c, NULL, NULL, NULL);
    }
}
static void test_null(struct comm *w)
{
    (void)w;
    struct dry k = {.d = dev_open("null", DT_BF16, 1), .batch = 3};
    k.s = dev_tensor(k.d, DT_F32, 2, DIMS(6, 8));
    k.t = dev_tensor(k.d, DT_BF16, 2, DIMS(6, 8));
    k.pos = dev_tensor(k.d, DT_I16, 2, DIMS(6, 3));
    const double s = 6 * 8 * 4, t = 6 * 8 * 2;
    const double bytes[] = {2 * s + t, 2 * s + 2 * t, 2 * s + 3 * t, s + 2 * t, s + 3 * t};
    for (k.what = 0; k.what < 5; k.what++) {
        k.sum = dev_tensor(k.d, DT_F64, 2, DIMS(3, k.what == 1 ? TRANSITION_SUMS : NFT_SUMS));
        k.d->count.row_bytes = 0;
        dry_run(&k);
        expect_number("bytes", k.d->count.row_bytes, bytes[k.what], 0);
        k.batch = 4;
        expect_stop(k.what % 2 ? "sum is f64" : "rows of 4 samples", RC_SOFTWARE, dry_run, &k);
        k.batch = 3;
    }
    dev_close(k.d);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {.name = "a sampler step is its formula in the latents", .run = test_latent_step},
        {.name = "transitions are their formulas in the latents", .run = test_latent_transition},
        {.name = "nft is its formulas in the latents", .run = test_latent_nft},
        {.name = "finite differences: transitions and nft", .run = test_differences},
        {.name = "vectors: stochastic steps and their log-prob", .run = test_sde_vectors},
        {.name = "vectors: DPM++ of order 1 and 2", .run = test_solver_vectors},
        {.name = "the null device counts and checks", .run = test_null},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
