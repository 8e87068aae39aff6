/* Conformance of every device: sampler steps with noise and history, sums and gradients of the
 * policy objectives; test_ops_exact.c has what must hold bit by bit, test_policy_math.c judges the
 * ref device. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "tests/ops_case.h"

static const struct tensor none;

struct policy_case {
    int batch;
    int64_t ch, t, height, width; /* of the grid of patches */
    int64_t gap;
    bool guided, ref, hist, noise;
};
static const struct policy_case shapes[] = {
    {1, 1, 1, 1, 1, 0, false, false, false, false}, {3, 5, 2, 3, 4, 4, true, true, true, true},
    {1, 16, 3, 5, 9, 0, true, false, false, true},  {2, 4, 1, 7, 3, 8, false, true, true, false},
    {2, 4, 2, 4, 10, 0, false, false, true, true},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static int64_t patches(const struct policy_case *k) { return k->t * k->height * k->width; }
static int64_t rows_per(const struct policy_case *k) { return patches(k) + patches(k) / 3 + 1; }

/* Each patch once, in another order in every second sample; padding between and behind. */
static int pos_var(struct ops_case *c, const struct policy_case *k)
{
    const int64_t per = rows_per(k), n = patches(k);
    const int at = case_var(c, "pos", K_I16, IN, 0, 0, 1, 2, DIMS(k->batch * per, 3));
    for (int b = 0; b < k->batch; b++) {
        int64_t next = 0;
        for (int64_t i = 0; i < per; i++) {
            double *p = c->var[at].value + 3 * (b * per + i);
            const bool pad = i % 4 == 2 || next == n;
            const int64_t patch = b % 2 ? n - 1 - next : next;
            p[0] = pad ? -1 : (double)(patch / (k->height * k->width));
            p[1] = pad ? -1 : (double)(patch / k->width % k->height);
            p[2] = pad ? -1 : (double)(patch % k->width);
            next += !pad;
        }
    }
    return at;
}

/* The rows of an array; what padding rows hold must never be used. */
static int rows_var(struct ops_case *c, const struct policy_case *k, const char *name,
                    enum kind kind, enum role role, int64_t gap, int pos)
{
    const int at =
        case_var(c, name, kind, role, gap, -1, 1, 2, DIMS(k->batch * rows_per(k), 4 * k->ch));
    struct var *v = &c->var[at];
    for (int64_t i = 0; i < v->count; i++)
        if (c->var[pos].value[i / v->width * 3] < 0) v->value[i] = (double)NAN;
    return at;
}

static const struct rng_key keys[] = {{.seed = 3, .use = RNG_SDE, .step = 4, .item = 1},
                                      {.seed = 3, .use = RNG_SDE, .step = 4, .item = 2},
                                      {.seed = 3, .use = RNG_SDE, .step = 5, .item = 1}};

/* ---- solver -------------------------------------------------------------------------------- */

static struct solver_step_args solver_of(const struct policy_case *k, const struct tensor *t)
{
    return (struct solver_step_args){.next = t[1],
                                     .x = t[2],
                                     .h = k->hist ? t[3] : none,
                                     .c = t[4],
                                     .u = k->guided ? t[5] : none,
                                     .pos = t[0],
                                     .t = (int)k->t,
                                     .height = 2 * (int)k->height,
                                     .width = 2 * (int)k->width,
                                     .guidance = 5,
                                     .cx = 0.98,
                                     .cv = -0.041,
                                     .ch = k->hist ? 0.3 : 0,
                                     .sigma = 0.96,
                                     .std = 0.192,
                                     .noise = k->noise ? keys : NULL,
                                     .batch = k->batch};
}
static void solver_run(struct dev *d, const struct tensor *t, void *arg)
{
    struct solver_step_args a = solver_of(arg, t);
    d->ops->solver_step(d, &a);
    a.next = a.x = t[6]; /* in place, with the history of the first step */
    d->ops->solver_step(d, &a);
    a.next = t[7]; /* a first step: its history was never written */
    a.h = t[8];
    a.ch = 0;
    d->ops->solver_step(d, &a);
}
static void solver_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    for (int i = 0; i < SHAPES; i++) {
        struct policy_case k = shapes[i];
        struct ops_case c;
        case_begin(&c, t, "solver step, shape %d", i);
        const int pos = pos_var(&c, &k);
        rows_var(&c, &k, "next", K_S, OUT, k.gap, pos);
        rows_var(&c, &k, "x", K_S, IN, 0, pos);
        rows_var(&c, &k, "h", K_S, k.hist ? OUT : IN, k.gap, pos);
        rows_var(&c, &k, "c", K_T, IN, k.gap, pos);
        rows_var(&c, &k, "u", K_T, IN, 0, pos);
        rows_var(&c, &k, "in place", K_S, OUT, k.gap, pos);
        rows_var(&c, &k, "next after the first", K_S, OUT, 0, pos);
        struct var *h = &c.var[rows_var(&c, &k, "first history", K_S, OUT, 0, pos)];
        for (int64_t j = 0; j < h->count; j++) h->value[j] = (double)NAN;
        case_check(&c, solver_run, &k);
    }
}

/* ---- transitions and nft ------------------------------------------------------------------- */

static const double cx[] = {0.98, 1.01, 0.9}, cv[] = {-0.5, -0.3, -0.7},
                    half_inv_v[] = {2, 1.25, 0.75}, policy[] = {0.7, -0.4, 1.1},
                    kl[] = {0.3, 0.8, -0.6}, minus[] = {-0.9, 0.5, 0.2};

static struct transition_args transition_of(const struct policy_case *k, const struct tensor *t)
{
    const bool both = k->ref && k->guided;
    return (struct transition_args){.x = t[1],
                                    .next = t[2],
                                    .c = t[3],
                                    .u = k->guided ? t[4] : none,
                                    .ref_c = k->ref ? t[5] : none,
                                    .ref_u = both ? t[6] : none,
                                    .pos = t[0],
                                    .guidance = 3,
                                    .batch = k->batch,
                                    .cx = cx,
                                    .cv = cv,
                                    .half_inv_v = half_inv_v,
                                    .quantum = 0x1p-40};
}
static void transition_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct policy_case *k = arg;
    const struct transition_args a = transition_of(k, t);
    d->ops->transition_sums(d, t[7], &a);
    d->ops->transition_grad(d, t[8], t[9], &a, policy, k->ref ? kl : NULL, 3, -2);
    d->ops->transition_grad(d, t[10], none, &a, policy, k->ref ? kl : NULL, 1, 0);
    d->ops->transition_grad(d, none, t[11], &a, policy, k->ref ? kl : NULL, 0, 1);
}
static struct nft_args nft_of(const struct policy_case *k, const struct tensor *t)
{
    return (struct nft_args){.target = t[1],
                             .v = t[2],
                             .old = t[3],
                             .ref = k->ref ? t[4] : none,
                             .pos = t[0],
                             .beta = 0.3,
                             .quantum = 0x1p-40,
                             .batch = k->batch};
}
static void nft_run(struct dev *d, const struct tensor *t, void *arg)
{
    const struct policy_case *k = arg;
    const struct nft_args a = nft_of(k, t);
    d->ops->nft_sums(d, t[5], &a);
    d->ops->nft_grad(d, t[6], &a, policy, minus, k->ref ? kl : NULL);
}

static void transition_one(const struct target *t, struct policy_case k)
{
    struct ops_case c;
    case_begin(&c, t, "transition %s%s, %d samples", k.guided ? "guided " : "",
               k.ref ? "with reference" : "alone", k.batch);
    const int pos = pos_var(&c, &k);
    rows_var(&c, &k, "x", K_S, IN, k.gap, pos);
    rows_var(&c, &k, "next", K_S, IN, 0, pos);
    rows_var(&c, &k, "c", K_T, IN, k.gap, pos);
    rows_var(&c, &k, "u", K_T, IN, 0, pos);
    rows_var(&c, &k, "ref c", K_T, IN, k.gap, pos);
    rows_var(&c, &k, "ref u", K_T, IN, 0, pos);
    case_var(&c, "sum", K_F64, OUT, k.gap, -1, 1, 2, DIMS(k.batch, TRANSITION_SUMS));
    rows_var(&c, &k, "dc", K_T, OUT, k.gap, pos);
    rows_var(&c, &k, "du", K_T, OUT, 0, pos);
    rows_var(&c, &k, "dc alone", K_T, OUT, 0, pos);
    rows_var(&c, &k, "du alone", K_T, OUT, k.gap, pos);
    case_check(&c, transition_run, &k);
    if (k.guided) return;
    case_begin(&c, t, "nft %s, %d samples", k.ref ? "with reference" : "alone", k.batch);
    pos_var(&c, &k);
    rows_var(&c, &k, "target", K_S, IN, k.gap, pos);
    rows_var(&c, &k, "v", K_T, IN, 0, pos);
    rows_var(&c, &k, "old", K_T, IN, k.gap, pos);
    rows_var(&c, &k, "ref", K_T, IN, 0, pos);
    case_var(&c, "sum", K_F64, OUT, k.gap, -1, 1, 2, DIMS(k.batch, NFT_SUMS));
    rows_var(&c, &k, "dv", K_T, OUT, k.gap, pos);
    case_check(&c, nft_run, &k);
}
static void objective_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    for (int i = 0; i < SHAPES; i++)
        for (int way = 0; way < 4; way++) {
            struct policy_case k = shapes[i];
            k.guided = way & 1;
            k.ref = way & 2;
            transition_one(t, k);
        }
}

static void test_solver(struct comm *w)
{
    (void)w;
    each_target(solver_target);
}
static void test_objectives(struct comm *w)
{
    (void)w;
    each_target(objective_target);
}

/* ---- dropout ------------------------------------------------------------------------------- */

struct dropout_case {
    struct policy_case k;
    double p;
    bool text; /* no places: a row per token */
};
static struct dropout_args dropout_of(const struct dropout_case *k, const struct tensor *t)
{
    return (struct dropout_args){.out = t[1],
                                 .x = t[2],
                                 .pos = k->text ? none : t[0],
                                 .height = (int)k->k.height,
                                 .width = (int)k->k.width,
                                 .p = k->p,
                                 .first = (uint64_t)277 << 44,
                                 .mask = keys,
                                 .batch = k->k.batch};
}
static void dropout_run(struct dev *d, const struct tensor *t, void *arg)
{
    struct dropout_args a = dropout_of(arg, t);
    d->ops->dropout(d, &a);
    a.out = t[3]; /* of S, added */
    a.add = true;
    d->ops->dropout(d, &a);
    a.out = a.x = t[4]; /* in place */
    a.add = false;
    d->ops->dropout(d, &a);
}
/* n columns: not always whole draws. */
static void dropout_one(const struct target *t, const struct dropout_case *k, int64_t n)
{
    struct ops_case c;
    case_begin(&c, t, "dropout %g of %lld columns%s", k->p, (long long)n, k->text ? ", text" : "");
    pos_var(&c, &k->k);
    const int64_t rows = k->k.batch * rows_per(&k->k);
    case_var(&c, "out", K_T, OUT, k->k.gap, -1, 1, 2, DIMS(rows, n));
    case_var(&c, "x", K_T, IN, k->k.gap, -1, 1, 2, DIMS(rows, n));
    case_var(&c, "added", K_S, OUT, 0, -1, 1, 2, DIMS(rows, n));
    case_var(&c, "in place", K_T, OUT, 0, -1, 1, 2, DIMS(rows, n));
    case_check(&c, dropout_run, (void *)(uintptr_t)k);
}
static void dropout_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    for (int i = 0; i < SHAPES; i++)
        for (int text = 0; text < 2; text++) {
            const struct dropout_case k = {shapes[i], i % 2 ? 0.3 : 0.75, text};
            dropout_one(t, &k, 1 + 7 * i);
        }
    const struct dropout_case zero = {shapes[1], 0, false};
    dropout_one(t, &zero, 12);
}
static void test_dropout(struct comm *w)
{
    (void)w;
    each_target(dropout_target);
}

enum { DROP_ROWS = 400, DROP_COLS = 64 };
/* The mask of sample `key` and linear `first`, of ones: 0 or 1/(1-p). */
static void mask_of(struct dev *d, struct rng_key key, uint64_t first, double p, double *out)
{
    struct tensor x = dev_tensor(d, d->compute, 2, DIMS(DROP_ROWS, DROP_COLS));
    d->ops->fill(d, x, 1);
    const struct dropout_args a = {
        .out = x, .x = x, .p = p, .first = first, .mask = &key, .batch = 1};
    d->ops->dropout(d, &a);
    dev_get_f64(d, out, x);
    dev_free(d, x.data);
}
/* Correlation of what two masks keep. */
static double agreement(const double *a, const double *b, double p)
{
    double s = 0;
    const int n = DROP_ROWS * DROP_COLS;
    for (int i = 0; i < n; i++) s += ((a[i] > 0) - (1 - p)) * ((b[i] > 0) - (1 - p));
    return s / (n * p * (1 - p));
}
/* Rate and mean within 5 deviations; other samples, steps and linears have other masks. */
static void keep_target(const struct target *t)
{
    if (t->gemm && strcmp(t->gemm, "own") != 0) return;
    enum { N = DROP_ROWS * DROP_COLS };
    static double m[5][N];
    struct dev *d = target_open(t, 2);
    const double rates[] = {0, 0.1, 0.5, 0.9};
    for (int i = 0; i < 4; i++) {
        const double p = rates[i];
        struct rng_key key = {.seed = 5, .use = RNG_DROPOUT, .step = 2, .item = 9};
        mask_of(d, key, 0, p, m[0]);
        mask_of(d, key, (uint64_t)1 << 44, p, m[1]);
        key.step = 3;
        mask_of(d, key, 0, p, m[2]);
        key.item = 10;
        mask_of(d, key, 0, p, m[3]);
        key.seed = 6;
        mask_of(d, key, 0, p, m[4]);
        double sum = 0;
        int kept = 0;
        for (int k = 0; k < N; k++) {
            kept += m[0][k] > 0;
            sum += m[0][k];
        }
        const double deviation = sqrt(p * (1 - p) / N);
        EXPECT(fabs((double)kept / N - (1 - p)) <= 5 * deviation, "%s: %d of %d kept at p = %g",
               t->name, kept, (int)N, p);
        EXPECT(fabs(sum / N - 1) <= 5 * deviation / (1 - p) + 4e-3, "%s: mean %g at p = %g",
               t->name, sum / N, p);
        for (int a = 0; a < 5 && p > 0; a++)
            for (int b = 0; b < a; b++)
                EXPECT(fabs(agreement(m[a], m[b], p)) < 5 / sqrt(N), "%s: masks %d and %d: %g",
                       t->name, a, b, agreement(m[a], m[b], p));
    }
    dev_close(d);
}
static void test_keep(struct comm *w)
{
    (void)w;
    each_target(keep_target);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {.name = "sampler steps with noise and history", .run = test_solver},
        {.name = "sums and gradients of the policy objectives", .run = test_objectives},
        {.name = "dropout by place, added and in place", .run = test_dropout},
        {.name = "dropout keeps its share and the mean, every mask is its own", .run = test_keep},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
