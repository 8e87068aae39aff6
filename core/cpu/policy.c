/* Sampler steps and policy objectives: plain C in f64 with one rounding at the end, a row at a
 * time. Small beside the blocks. */
#include <stdlib.h>
#include <string.h>

#include "core/cpu/latent.h"

static bool padding(struct tensor pos, int64_t r) { return ((const int16_t *)pos.data)[3 * r] < 0; }

static void clear_row(struct tensor t, int64_t r)
{
    if (!t.data) return;
    for (int64_t f = 0; f < t.dim[1]; f++) set(t, r * tensor_ld(t) + f, 0);
}

static double velocity(struct tensor c, struct tensor u, double guidance, int64_t r, int64_t f)
{
    const double v = get(c, r * tensor_ld(c) + f);
    if (!u.data) return v;
    const double base = get(u, r * tensor_ld(u) + f);
    return base + guidance * (v - base);
}

/* Every tensor is [rows, 4C] like x, or not there. */
static void expect_rows(struct tensor x, const struct tensor *t, int n, struct tensor pos,
                        int batch, const char *what)
{
    CHECK(batch > 0 && x.dim[0] % batch == 0 && x.dim[1] % 4 == 0 && pos.dtype == DT_I16 &&
              pos.dim[0] == x.dim[0],
          "%s: [%lld,%lld] rows of %d samples", what, (long long)x.dim[0], (long long)x.dim[1],
          batch);
    for (int i = 0; i < n; i++) {
        if (!t[i].data) continue;
        expect_float(t[i], what);
        CHECK(t[i].dim[0] == x.dim[0] && t[i].dim[1] == x.dim[1], "%s: array %d has another shape",
              what, i);
    }
}

/* ---- solver -------------------------------------------------------------------------------- */

static void solver_element(const struct solver_step_args *a, int64_t r, int64_t f, double noise)
{
    const double x = get(a->x, r * tensor_ld(a->x) + f);
    const int64_t channels = a->x.dim[1] / 4;
    const double v =
        velocity(a->c, a->u, a->guidance, r, feature(PATCH_OUT, channels, f / 4, f % 4));
    const int64_t h = r * tensor_ld(a->h) + f;
    double next = a->cx * x + a->cv * v;
    if (a->ch != 0) next += a->ch * get(a->h, h);
    if (a->noise && a->std != 0) next += a->std * noise;
    set(a->next, r * tensor_ld(a->next) + f, next);
    if (a->h.data) set(a->h, h, x - a->sigma * v);
}

static void solver_row(const struct solver_step_args *a, int64_t r, struct rng_stream s)
{
    const int16_t *p = (const int16_t *)a->pos.data + 3 * r;
    const int64_t channels = a->x.dim[1] / 4;
    for (int64_t ch = 0; ch < channels; ch++)
        for (int64_t dy = 0; dy < 2; dy++) {
            const int64_t y = (ch * a->t + p[0]) * a->height + 2 * p[1] + dy;
            float n[2] = {0, 0};
            if (a->noise && a->std != 0) normal_two(s, (uint64_t)(y * a->width + 2 * p[2]), n);
            for (int64_t dx = 0; dx < 2; dx++)
                solver_element(a, r, feature(PATCH_IN, channels, ch, 2 * dy + dx), (double)n[dx]);
        }
}

static void solver_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct solver_step_args *a = arg;
    const int64_t rows = a->x.dim[0], per = rows / a->batch;
    for (int64_t r = task * ROWS; r < end_row(task, rows); r++) {
        if (padding(a->pos, r)) {
            clear_row(a->next, r);
            clear_row(a->h, r);
            continue;
        }
        solver_row(a, r, a->noise ? rng_open(a->noise[r / per]) : (struct rng_stream){0, 0});
    }
}

void cpu_solver_step(struct dev *d, const struct solver_step_args *a)
{
    const struct tensor t[] = {a->next, a->x, a->h, a->c, a->u};
    expect_rows(a->x, t, 5, a->pos, a->batch, "solver step");
    CHECK(a->ch == 0 || a->h.data, "solver step without the history it needs");
    par_run(d, row_tasks(a->x.dim[0]), 0, solver_task, (void *)(uintptr_t)a);
}

/* ---- sums of rows -------------------------------------------------------------------------- */

struct row_sums { /* row fills all sums but the last: what rounding leaves of the one before it */
    void (*row)(const void *args, int64_t r, int64_t b, double *s);
    const void *args;
    struct tensor pos;
    double quantum, *part; /* n partial sums per ROWS rows of a sample */
    int64_t n, per, tasks; /* rows and tasks of a sample */
};

static double rounded(double s, double quantum) { return nearbyint(s / quantum) * quantum; }

static void sums_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct row_sums *a = arg;
    const int64_t b = task / a->tasks, k = task % a->tasks;
    double *part = a->part + task * a->n;
    memset(part, 0, (size_t)a->n * sizeof *part);
    for (int64_t r = b * a->per + k * ROWS; r < b * a->per + end_row(k, a->per); r++) {
        if (padding(a->pos, r)) continue;
        double s[NFT_SUMS] = {0};
        a->row(a->args, r, b, s);
        const double whole = rounded(s[a->n - 2], a->quantum);
        s[a->n - 1] = isfinite(whole) ? s[a->n - 2] - whole : 0;
        for (int64_t i = 0; i < a->n; i++)
            part[i] += rounded(s[i], i < a->n - 1 ? a->quantum : a->quantum * DEV_FINE);
    }
}

static void add_sums(struct dev *d, struct tensor sum, int64_t rows, struct row_sums *a)
{
    const int64_t batch = sum.dim[0];
    dev_check_quantum(a->quantum);
    a->n = tensor_width(sum);
    a->per = rows / batch;
    a->tasks = row_tasks(a->per);
    a->part = cpu_scratch((size_t)(batch * a->tasks * a->n) * sizeof(double));
    par_run(d, batch * a->tasks, 0, sums_task, a);
    for (int64_t task = 0; task < batch * a->tasks; task++)
        for (int64_t i = 0; i < a->n; i++)
            ((double *)sum.data)[task / a->tasks * tensor_ld(sum) + i] += a->part[task * a->n + i];
    free(a->part);
}

static void expect_sum(struct tensor sum, int batch, int64_t n, const char *what)
{
    CHECK(sum.dtype == DT_F64 && sum.ndim == 2 && sum.dim[0] == batch && sum.dim[1] == n,
          "%s: sum is f64 [%d,%lld]", what, batch, (long long)n);
}

/* ---- transitions --------------------------------------------------------------------------- */

/* Feature f of row r (PATCH_IN order): next - mean, v - ref_v (0 without reference). */
static void transition_errors(const struct transition_args *a, int64_t r, int64_t b, int64_t f,
                              double e[2])
{
    const int64_t from = feature(PATCH_OUT, a->x.dim[1] / 4, f / 4, f % 4);
    const double v = velocity(a->c, a->u, a->guidance, r, from);
    const double mean = a->cx[b] * get(a->x, r * tensor_ld(a->x) + f) + a->cv[b] * v;
    e[0] = get(a->next, r * tensor_ld(a->next) + f) - mean;
    e[1] = a->ref_c.data ? v - velocity(a->ref_c, a->ref_u, a->guidance, r, from) : 0;
}

static void transition_row(const void *args, int64_t r, int64_t b, double *s)
{
    const struct transition_args *a = args;
    for (int64_t f = 0; f < a->x.dim[1]; f++) {
        double e[2];
        transition_errors(a, r, b, f, e);
        s[0] += e[0] * e[0];
        s[1] += e[1] * e[1];
    }
    s[0] *= a->half_inv_v[b];
    s[1] *= a->cv[b] * a->cv[b] * a->half_inv_v[b];
}

static void check_transition(const struct transition_args *a)
{
    const struct tensor t[] = {a->x, a->next, a->c, a->u, a->ref_c, a->ref_u};
    expect_rows(a->x, t, 6, a->pos, a->batch, "transition");
    CHECK(!a->ref_c.data || !a->ref_u.data == !a->u.data, "transition: one of two is guided");
}

void cpu_transition_sums(struct dev *d, struct tensor sum, const struct transition_args *a)
{
    check_transition(a);
    expect_sum(sum, a->batch, TRANSITION_SUMS, "transition");
    struct row_sums s = {.row = transition_row, .args = a, .pos = a->pos, .quantum = a->quantum};
    add_sums(d, sum, a->x.dim[0], &s);
}

struct policy_grad {
    const struct transition_args *a;
    struct tensor dc, du;
    const double *policy, *kl;
    double gc, gu;
};

static void policy_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct policy_grad *g = arg;
    const struct transition_args *a = g->a;
    const int64_t rows = a->x.dim[0], width = a->x.dim[1];
    for (int64_t r = task * ROWS; r < end_row(task, rows); r++) {
        const int64_t b = r / (rows / a->batch);
        if (padding(a->pos, r)) {
            clear_row(g->dc, r);
            clear_row(g->du, r);
            continue;
        }
        for (int64_t f = 0; f < width; f++) {
            double e[2];
            transition_errors(a, r, b, f, e);
            const double v = g->policy[b] * e[0] + (a->ref_c.data ? g->kl[b] * e[1] : 0);
            const int64_t to = feature(PATCH_OUT, width / 4, f / 4, f % 4);
            if (g->dc.data) set(g->dc, r * tensor_ld(g->dc) + to, g->gc * v);
            if (g->du.data) set(g->du, r * tensor_ld(g->du) + to, g->gu * v);
        }
    }
}

void cpu_transition_grad(struct dev *d, struct tensor dc, struct tensor du,
                         const struct transition_args *a, const double *policy, const double *kl,
                         double gc, double gu)
{
    check_transition(a);
    const struct tensor t[] = {dc, du};
    expect_rows(a->x, t, 2, a->pos, a->batch, "transition gradient");
    struct policy_grad g = {a, dc, du, policy, kl, gc, gu};
    par_run(d, row_tasks(a->x.dim[0]), 0, policy_task, &g);
}

/* ---- negative-aware finetuning --------------------------------------------------------------- */

/* target - v+, target - v-, v - ref (0 without reference). */
static void nft_errors(const struct nft_args *a, int64_t r, int64_t f, double e[3])
{
    const double target = get(a->target, r * tensor_ld(a->target) + f);
    const double v = get(a->v, r * tensor_ld(a->v) + f);
    const double old = get(a->old, r * tensor_ld(a->old) + f);
    e[0] = target - (a->beta * v + (1 - a->beta) * old);
    e[1] = target - ((1 + a->beta) * old - a->beta * v);
    e[2] = a->ref.data ? v - get(a->ref, r * tensor_ld(a->ref) + f) : 0;
}

static void nft_row(const void *args, int64_t r, int64_t b, double *s)
{
    (void)b;
    const struct nft_args *a = args;
    for (int64_t f = 0; f < a->v.dim[1]; f++) {
        double e[3];
        nft_errors(a, r, f, e);
        s[0] += fabs(e[0]);
        s[1] += e[0] * e[0];
        s[2] += fabs(e[1]);
        s[3] += e[1] * e[1];
        s[4] += e[2] * e[2];
    }
}

static void check_nft(const struct nft_args *a)
{
    const struct tensor t[] = {a->target, a->v, a->old, a->ref};
    expect_rows(a->v, t, 4, a->pos, a->batch, "nft");
}

void cpu_nft_sums(struct dev *d, struct tensor sum, const struct nft_args *a)
{
    check_nft(a);
    expect_sum(sum, a->batch, NFT_SUMS, "nft");
    struct row_sums s = {.row = nft_row, .args = a, .pos = a->pos, .quantum = a->quantum};
    add_sums(d, sum, a->v.dim[0], &s);
}

struct nft_grad {
    const struct nft_args *a;
    struct tensor dv;
    const double *plus, *minus, *kl;
};

static void nft_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct nft_grad *g = arg;
    const int64_t rows = g->a->v.dim[0];
    for (int64_t r = task * ROWS; r < end_row(task, rows); r++) {
        const int64_t b = r / (rows / g->a->batch);
        if (padding(g->a->pos, r)) {
            clear_row(g->dv, r);
            continue;
        }
        for (int64_t f = 0; f < g->a->v.dim[1]; f++) {
            double e[3];
            nft_errors(g->a, r, f, e);
            const double v = g->plus[b] * e[0] + g->minus[b] * e[1];
            set(g->dv, r * tensor_ld(g->dv) + f, v + (g->a->ref.data ? g->kl[b] * e[2] : 0));
        }
    }
}

void cpu_nft_grad(struct dev *d, struct tensor dv, const struct nft_args *a, const double *plus,
                  const double *minus, const double *kl)
{
    check_nft(a);
    expect_rows(a->v, &dv, 1, a->pos, a->batch, "nft gradient");
    struct nft_grad g = {a, dv, plus, minus, kl};
    par_run(d, row_tasks(a->v.dim[0]), 0, nft_task, &g);
}
