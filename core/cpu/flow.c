/* Latents, noise and the flow loss. Numbers are drawn in double and rounded to float, as
 * core/rng.h says; everything here is small beside the blocks, so it is written once, in plain C.
 */
#include "core/cpu/latent.h"

#include <math.h>
#include <stdlib.h>

enum { FLAT = 8192 };

/* ---- numbers ------------------------------------------------------------------------------- */

struct draw {
    struct tensor x;
    struct rng_stream s;
    uint64_t first;
    double a, b;
};
static void normal_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct draw *d = arg;
    const int64_t n = tensor_count(d->x), end = (task + 1) * FLAT < n ? (task + 1) * FLAT : n;
    for (int64_t i = task * FLAT; i < end;) {
        const uint64_t index = d->first + (uint64_t)i;
        float v[2];
        int count = 1;
        if (index % 2 == 0) {
            normal_pair(d->s, index, v);
            count = i + 1 < end ? 2 : 1;
        } else {
            v[0] = (float)rng_normal_at(d->s, index);
        }
        for (int k = 0; k < count; k++, i++) set(d->x, i, (double)(float)(d->a * (double)v[k]));
    }
}

void cpu_rng_normal(struct dev *d, struct tensor x, struct rng_stream s, uint64_t first, double std)
{
    expect_float(x, "rng");
    struct draw a = {x, s, first, std, 0};
    par_run(d, (tensor_count(x) + FLAT - 1) / FLAT, 0, normal_task, &a);
}

static void uniform_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct draw *d = arg;
    const int64_t n = tensor_count(d->x), end = (task + 1) * FLAT < n ? (task + 1) * FLAT : n;
    for (int64_t i = task * FLAT; i < end; i++) {
        const double u = rng_uniform_at(d->s, d->first + (uint64_t)i);
        set(d->x, i, (double)(float)(d->a + (d->b - d->a) * u));
    }
}

void cpu_rng_uniform(struct dev *d, struct tensor x, struct rng_stream s, uint64_t first, double lo,
                     double hi)
{
    expect_float(x, "rng");
    struct draw a = {x, s, first, lo, hi};
    par_run(d, (tensor_count(x) + FLAT - 1) / FLAT, 0, uniform_task, &a);
}

/* One row whose first element has this index; a draw gives four neighbours. */
static void dropout_row(const struct dropout_args *a, int64_t r, struct rng_stream s,
                        uint64_t index, bool padding)
{
    const int64_t n = a->x.dim[1], x = r * tensor_ld(a->x), out = r * tensor_ld(a->out);
    const uint32_t limit = dev_dropout_limit(a->p);
    uint32_t w[4];
    for (int64_t c = 0; c < n; c++, index++) {
        if (c == 0 || index % 4 == 0) {
            const uint64_t q = index / 4;
            const uint32_t counter[4] = {(uint32_t)q, (uint32_t)(q >> 32), 0, 0};
            philox(w, counter, s.k0, s.k1);
        }
        const bool kept = !padding && w[index % 4] >= limit;
        const double v = kept ? get(a->x, x + c) / (1 - a->p) : 0;
        set(a->out, out + c, a->add ? get(a->out, out + c) + v : v);
    }
}

static void dropout_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct dropout_args *a = arg;
    const int64_t rows = a->x.dim[0], per = rows / a->batch;
    for (int64_t r = task * ROWS; r < end_row(task, rows); r++) {
        const int16_t *p = a->pos.data ? (const int16_t *)a->pos.data + 3 * r : NULL;
        const int64_t token = p ? ((int64_t)p[0] * a->height + p[1]) * a->width + p[2] : r % per;
        dropout_row(a, r, rng_open(a->mask[r / per]), a->first + (uint64_t)(token * a->x.dim[1]),
                    p && p[0] < 0);
    }
}

void cpu_dropout(struct dev *d, const struct dropout_args *a)
{
    dev_check_dropout(a);
    expect_float(a->x, "dropout");
    expect_float(a->out, "dropout");
    par_run(d, row_tasks(a->x.dim[0]), 0, dropout_task, (void *)(uintptr_t)a);
}

void cpu_sinusoid(struct dev *d, struct tensor out, const double *t)
{
    (void)d;
    expect_float(out, "sinusoid");
    const int64_t half = out.dim[1] / 2;
    for (int64_t b = 0; b < out.dim[0]; b++)
        for (int64_t i = 0; i < half; i++) {
            const double angle = t[b] * pow(10000, -(double)i / (double)half);
            set(out, b * tensor_ld(out) + i, cos(angle));
            set(out, b * tensor_ld(out) + half + i, sin(angle));
        }
}

/* ---- patches ------------------------------------------------------------------------------- */

struct patch {
    struct tensor rows, x, pos;
    enum patch_order order;
};
/* Element of x [B,C,T,H,W] at the corner of row r's patch in channel 0; -1: padding. */
static int64_t corner(struct tensor x, struct tensor pos, int64_t rows, int64_t r)
{
    const int16_t *p = (const int16_t *)pos.data + 3 * r;
    if (p[0] < 0) return -1;
    const int64_t b = r / (rows / x.dim[0]);
    return ((b * x.dim[1] * x.dim[2] + p[0]) * x.dim[3] + 2 * p[1]) * x.dim[4] + 2 * p[2];
}

static void patch_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct patch *a = arg;
    const int64_t C = a->x.dim[1], plane = a->x.dim[2] * a->x.dim[3] * a->x.dim[4];
    for (int64_t r = task * ROWS; r < end_row(task, a->rows.dim[0]); r++) {
        const int64_t from = corner(a->x, a->pos, a->rows.dim[0], r), row = r * tensor_ld(a->rows);
        for (int64_t ch = 0; ch < C; ch++)
            for (int64_t yx = 0; yx < 4; yx++) {
                const int64_t i = from + ch * plane + yx / 2 * a->x.dim[4] + yx % 2;
                set(a->rows, row + feature(a->order, C, ch, yx), from < 0 ? 0 : get(a->x, i));
            }
    }
}

static void unpatch_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct patch *a = arg;
    const int64_t C = a->x.dim[1], plane = a->x.dim[2] * a->x.dim[3] * a->x.dim[4];
    for (int64_t r = task * ROWS; r < end_row(task, a->rows.dim[0]); r++) {
        const int64_t to = corner(a->x, a->pos, a->rows.dim[0], r), row = r * tensor_ld(a->rows);
        if (to < 0) continue;
        for (int64_t ch = 0; ch < C; ch++)
            for (int64_t yx = 0; yx < 4; yx++)
                set(a->x, to + ch * plane + yx / 2 * a->x.dim[4] + yx % 2,
                    get(a->rows, row + feature(a->order, C, ch, yx)));
    }
}

static void check_patch(struct tensor rows, struct tensor x, struct tensor pos)
{
    expect_float(rows, "patch rows");
    expect_float(x, "latents");
    CHECK(x.ndim == 5 && tensor_contiguous(x) && rows.dim[1] == 4 * x.dim[1] &&
              pos.dtype == DT_I16 && rows.dim[0] % x.dim[0] == 0,
          "patches: [%lld,%lld] rows of %lld channels", (long long)rows.dim[0],
          (long long)rows.dim[1], (long long)x.dim[1]);
}

void cpu_patch_rows(struct dev *d, struct tensor rows, struct tensor x, struct tensor pos,
                    enum patch_order order)
{
    check_patch(rows, x, pos);
    struct patch a = {rows, x, pos, order};
    par_run(d, row_tasks(rows.dim[0]), 0, patch_task, &a);
}

void cpu_unpatch_rows(struct dev *d, struct tensor x, struct tensor rows, struct tensor pos,
                      enum patch_order order)
{
    check_patch(rows, x, pos);
    struct patch a = {rows, x, pos, order};
    par_run(d, row_tasks(rows.dim[0]), 0, unpatch_task, &a);
}

/* ---- flow ---------------------------------------------------------------------------------- */

static void flow_row(const struct flow_args *a, int64_t r, int64_t b, struct rng_stream s)
{
    const int64_t C = a->z.dim[1], W = a->z.dim[4], sample = tensor_width(a->z);
    const int64_t plane = a->z.dim[2] * a->z.dim[3] * W;
    const int64_t from = corner(a->z, a->pos, a->xt.dim[0], r);
    const int64_t xt = r * tensor_ld(a->xt), target = r * tensor_ld(a->target);
    const double sigma = a->sigma[b];
    for (int64_t ch = 0; ch < C; ch++)
        for (int64_t yx = 0; yx < 4; yx += 2) {
            const int64_t i = from + ch * plane + yx / 2 * W;
            float n[2] = {0, 0};
            if (from >= 0) normal_two(s, (uint64_t)(i - b * sample), n);
            for (int64_t x = 0; x < 2; x++) {
                const double z = from < 0 ? 0 : get(a->z, i + x), e = (double)n[x];
                set(a->xt, xt + feature(PATCH_IN, C, ch, yx + x), sigma * e + (1 - sigma) * z);
                set(a->target, target + feature(PATCH_OUT, C, ch, yx + x), e - z);
            }
        }
}

static void flow_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct flow_args *a = arg;
    const int64_t rows = a->xt.dim[0], per = rows / a->z.dim[0];
    for (int64_t r = task * ROWS; r < end_row(task, rows); r++)
        flow_row(a, r, r / per, rng_open(a->noise[r / per]));
}

void cpu_flow_rows(struct dev *d, const struct flow_args *a)
{
    check_patch(a->xt, a->z, a->pos);
    expect_float(a->target, "flow target");
    par_run(d, row_tasks(a->xt.dim[0]), 0, flow_task, (void *)(uintptr_t)a);
}

struct loss {
    struct tensor dout, pred, target, pos;
    double scale, *part; /* one partial sum per ROWS rows of a sample */
    int64_t per, tasks;  /* rows and tasks of a sample */
};
static void loss_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct loss *a = arg;
    const int64_t b = task / a->tasks, k = task % a->tasks, n = tensor_width(a->pred);
    double sum = 0;
    for (int64_t r = b * a->per + k * ROWS; r < b * a->per + end_row(k, a->per); r++) {
        const bool pad = ((const int16_t *)a->pos.data)[3 * r] < 0;
        for (int64_t c = 0; c < n; c++) {
            const double e = pad ? 0
                                 : get(a->pred, r * tensor_ld(a->pred) + c) -
                                       get(a->target, r * tensor_ld(a->target) + c);
            sum += e * e;
            if (a->dout.data) set(a->dout, r * tensor_ld(a->dout) + c, 2 * a->scale * e);
        }
    }
    a->part[task] = sum;
}

void cpu_flow_loss(struct dev *d, struct tensor sum, struct tensor dout, struct tensor pred,
                   struct tensor target, struct tensor pos, double scale)
{
    expect_float(pred, "flow loss");
    expect_float(target, "flow loss");
    CHECK(sum.dtype == DT_F64 && pos.dtype == DT_I16 && pred.dim[0] % sum.dim[0] == 0,
          "flow loss: sum is f64, pos i16");
    struct loss a = {dout, pred, target, pos, scale, NULL, pred.dim[0] / sum.dim[0], 0};
    a.tasks = row_tasks(a.per);
    a.part = cpu_scratch((size_t)(sum.dim[0] * a.tasks) * sizeof(double));
    par_run(d, sum.dim[0] * a.tasks, 0, loss_task, &a);
    for (int64_t b = 0; b < sum.dim[0]; b++) {
        double s = 0;
        for (int64_t k = 0; k < a.tasks; k++) s += a.part[b * a.tasks + k];
        ((double *)sum.data)[b] += s;
    }
    free(a.part);
}

struct step {
    struct tensor x, c, u;
    double guidance, dsigma;
};
static void step_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct step *a = arg;
    const int64_t channels = a->x.dim[1] / 4;
    for (int64_t r = task * ROWS; r < end_row(task, a->x.dim[0]); r++)
        for (int64_t f = 0; f < 4 * channels; f++) {
            const int64_t from = f % 4 * channels + f / 4, i = r * tensor_ld(a->x) + f;
            double v = get(a->c, r * tensor_ld(a->c) + from);
            if (a->u.data) {
                const double u = get(a->u, r * tensor_ld(a->u) + from);
                v = u + a->guidance * (v - u);
            }
            set(a->x, i, get(a->x, i) + a->dsigma * v);
        }
}

void cpu_sample_step(struct dev *d, struct tensor x, struct tensor c, struct tensor u,
                     double guidance, double dsigma)
{
    expect_float(x, "sample step");
    expect_float(c, "sample step");
    struct step a = {x, c, u, guidance, dsigma};
    par_run(d, row_tasks(x.dim[0]), 0, step_task, &a);
}
