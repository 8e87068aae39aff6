/* Random numbers, patches, noise and the flow loss. Numbers are drawn in double and rounded to
 * float once, as core/rng.h says. */
#include "core/cuda/latent.h"

namespace
{

/* ---- numbers ------------------------------------------------------------------------------- */

struct Normal {
    View x;
    struct rng_stream s;
    uint64_t first;
    double std;
    DEVICE void operator()(int64_t i) const
    {
        const double v = std * (double)normal_at(s, first + (uint64_t)i);
        put_f64(x, i / x.width, i % x.width, (double)(float)v);
    }
};

struct Uniform {
    View x;
    struct rng_stream s;
    uint64_t first;
    double lo, hi;
    DEVICE void operator()(int64_t i) const
    {
        uint32_t w[4];
        const uint64_t index = first + (uint64_t)i;
        draw_four(s, index, w);
        const double v = lo + (hi - lo) * uniform_of(w[index % 4]);
        put_f64(x, i / x.width, i % x.width, (double)(float)v);
    }
};

struct Dropout { /* the rows of a sample, four neighbours a thread: they are one or two draws */
    View out, x;
    const int16_t *pos;         /* NULL: a row per token */
    int64_t row, height, width; /* row: the sample's first */
    uint64_t first;
    struct rng_stream s;
    uint32_t limit;
    double p;
    bool add;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t quads = (x.width + 3) / 4, k = i / quads, r = row + k;
        const int16_t *at = pos ? pos + 3 * r : NULL;
        const int64_t token = at ? ((int64_t)at[0] * height + at[1]) * width + at[2] : k;
        const bool padding = at && at[0] < 0;
        uint32_t w[4];
        for (int64_t j = 0, c = i % quads * 4; j < 4 && c < x.width; j++, c++) {
            const uint64_t index = first + (uint64_t)(token * x.width + c);
            if (j == 0 || index % 4 == 0) draw_four(s, index, w);
            const bool kept = !padding && w[index % 4] >= limit;
            const double v = kept ? get_f64(x, r, c) / (1 - p) : 0;
            put_f64(out, r, c, add ? get_f64(out, r, c) + v : v);
        }
    }
};

/* ---- patches ------------------------------------------------------------------------------- */

Patches patches(struct tensor rows, struct tensor x, struct tensor pos, enum patch_order order)
{
    CHECK(x.ndim == 5 && tensor_contiguous(x) && rows.dim[1] == 4 * x.dim[1] &&
              pos.dtype == DT_I16 && rows.dim[0] % x.dim[0] == 0,
          "patches: [%lld,%lld] rows of %lld channels", (long long)rows.dim[0],
          (long long)rows.dim[1], (long long)x.dim[1]);
    cuda_expect_float(rows, "patch rows");
    cuda_expect_float(x, "latents");
    return Patches{view(rows),
                   view(x),
                   (const int16_t *)pos.data,
                   rows.dim[0] / x.dim[0],
                   x.dim[1],
                   x.dim[2],
                   x.dim[3],
                   x.dim[4],
                   (int)order};
}

struct PatchRows {
    Patches k;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / k.rows.width, f = i % k.rows.width, at = k.element(r, f);
        put(k.rows, r, f, at < 0 ? 0 : get(k.x, 0, at));
    }
};

struct UnpatchRows {
    Patches k;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / k.rows.width, f = i % k.rows.width, at = k.element(r, f);
        if (at >= 0) put(k.x, 0, at, get(k.rows, r, f));
    }
};

/* ---- flow ---------------------------------------------------------------------------------- */

struct FlowRows { /* the rows of sample b; k.rows is xt */
    Patches k;
    View target;
    int64_t b;
    double sigma;
    struct rng_stream noise;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = b * k.per + i / k.rows.width, f = i % k.rows.width;
        const int64_t at = k.element(r, f), other = f % 4 * k.C + f / 4;
        if (at < 0) {
            put(k.rows, r, f, 0);
            put(target, r, other, 0);
            return;
        }
        const double z = (double)get(k.x, 0, at);
        const double e = (double)normal_at(noise, (uint64_t)(at - b * k.x.width));
        put(k.rows, r, f, (float)(sigma * e + (1 - sigma) * z));
        put(target, r, other, (float)(e - z));
    }
};

struct LossTerm { /* element p of sample b */
    View dout, pred, target;
    const int16_t *pos;
    int64_t per;
    double scale;
    DEVICE double operator()(int64_t b, int64_t p) const
    {
        const int64_t r = b * per + p / pred.width, c = p % pred.width;
        const double e = pos[3 * r] < 0 ? 0 : (double)get(pred, r, c) - (double)get(target, r, c);
        if (dout.p) put(dout, r, c, (float)(2 * scale * e));
        return e * e;
    }
};

struct SampleStep {
    View x, c, u;
    double guidance, dsigma;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / x.width, f = i % x.width, from = f % 4 * (x.width / 4) + f / 4;
        double v = (double)get(c, r, from);
        if (u.p) {
            const double base = (double)get(u, r, from);
            v = base + guidance * (v - base);
        }
        put(x, r, f, (float)((double)get(x, r, f) + dsigma * v));
    }
};

} // namespace

void cuda_rng_normal(struct dev *d, struct tensor x, struct rng_stream s, uint64_t first,
                     double std)
{
    each(d, tensor_count(x), Normal{view(x), s, first, std});
}

void cuda_rng_uniform(struct dev *d, struct tensor x, struct rng_stream s, uint64_t first,
                      double lo, double hi)
{
    each(d, tensor_count(x), Uniform{view(x), s, first, lo, hi});
}

void cuda_dropout(struct dev *d, const struct dropout_args *a)
{
    dev_check_dropout(a);
    cuda_expect_float(a->x, "dropout");
    cuda_expect_float(a->out, "dropout");
    const int64_t per = a->x.dim[0] / a->batch, quads = (a->x.dim[1] + 3) / 4;
    for (int64_t b = 0; b < a->batch; b++)
        each(d, per * quads,
             Dropout{view(a->out), view(a->x), (const int16_t *)a->pos.data, b * per, a->height,
                     a->width, a->first, rng_open(a->mask[b]), dev_dropout_limit(a->p), a->p,
                     a->add});
}

void cuda_patch_rows(struct dev *d, struct tensor rows, struct tensor x, struct tensor pos,
                     enum patch_order order)
{
    each(d, tensor_count(rows), PatchRows{patches(rows, x, pos, order)});
}

void cuda_unpatch_rows(struct dev *d, struct tensor x, struct tensor rows, struct tensor pos,
                       enum patch_order order)
{
    each(d, tensor_count(rows), UnpatchRows{patches(rows, x, pos, order)});
}

void cuda_flow_rows(struct dev *d, const struct flow_args *a)
{
    const Patches k = patches(a->xt, a->z, a->pos, PATCH_IN);
    cuda_expect_float(a->target, "flow target");
    for (int64_t b = 0; b < a->z.dim[0]; b++)
        each(d, k.per * k.rows.width,
             FlowRows{k, view(a->target), b, a->sigma[b], rng_open(a->noise[b])});
}

void cuda_flow_loss(struct dev *d, struct tensor sum, struct tensor dout, struct tensor pred,
                    struct tensor target, struct tensor pos, double scale)
{
    cuda_expect_float(pred, "flow loss");
    cuda_expect_float(target, "flow loss");
    CHECK(sum.dtype == DT_F64 && pos.dtype == DT_I16 && pred.dim[0] % sum.dim[0] == 0,
          "flow loss: sum is f64, pos i16");
    const int64_t per = pred.dim[0] / sum.dim[0];
    const LossTerm term = {view(dout), view(pred), view(target), (const int16_t *)pos.data,
                           per,        scale};
    long_sums(d, sum.dim[0], per * tensor_width(pred), term, AddTo{view(sum), 1});
}

void cuda_sample_step(struct dev *d, struct tensor x, struct tensor c, struct tensor u,
                      double guidance, double dsigma)
{
    cuda_expect_float(x, "sample step");
    cuda_expect_float(c, "sample step");
    each(d, tensor_count(x), SampleStep{view(x), view(c), view(u), guidance, dsigma});
}
