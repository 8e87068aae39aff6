/* Sampler steps and policy objectives. Arithmetic in f64, one rounding at the end; the sums of a
 * row are one thread's, in the order of its features. */
#include "core/cuda/latent.h"

namespace
{

DEVICE double velocity(const View &c, const View &u, double guidance, int64_t r, int64_t f)
{
    const double v = (double)get(c, r, f);
    if (!u.p) return v;
    const double base = (double)get(u, r, f);
    return base + guidance * (v - base);
}

/* Every tensor is [rows, 4C] like x, or not there. */
void expect_rows(struct tensor x, const struct tensor *t, int n, struct tensor pos, int batch,
                 const char *what)
{
    CHECK(batch > 0 && x.dim[0] % batch == 0 && x.dim[1] % 4 == 0 && pos.dtype == DT_I16 &&
              pos.dim[0] == x.dim[0],
          "%s: [%lld,%lld] rows of %d samples", what, (long long)x.dim[0], (long long)x.dim[1],
          batch);
    for (int i = 0; i < n; i++) {
        if (!t[i].data) continue;
        cuda_expect_float(t[i], what);
        CHECK(t[i].dim[0] == x.dim[0] && t[i].dim[1] == x.dim[1], "%s: array %d has another shape",
              what, i);
    }
}

/* ---- solver -------------------------------------------------------------------------------- */

struct SolverStep { /* the rows of sample b; k.rows is next */
    Patches k;
    View x, h, c, u;
    double guidance, cx, cv, ch, sigma, std;
    int64_t b;
    struct rng_stream noise;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = b * k.per + i / x.width, f = i % x.width, at = k.element(r, f);
        if (at < 0) {
            put(k.rows, r, f, 0);
            if (h.p) put(h, r, f, 0);
            return;
        }
        const double from = (double)get(x, r, f);
        const double v = velocity(c, u, guidance, r, f % 4 * k.C + f / 4);
        double next = cx * from + cv * v;
        if (ch != 0) next += ch * (double)get(h, r, f);
        if (std != 0) {
            const int64_t sample = k.C * k.T * k.H * k.W;
            next += std * (double)normal_at(noise, (uint64_t)(at - b * sample));
        }
        put(k.rows, r, f, (float)next);
        if (h.p) put(h, r, f, (float)(from - sigma * v));
    }
};

/* ---- sums of rows -------------------------------------------------------------------------- */

DEVICE double rounded(double s, double quantum) { return nearbyint(s / quantum) * quantum; }

/* part[i * per + k]: sum i of row k of a sample; the last one is what rounding leaves of the one
 * before it. */
template <class Row> struct RowParts {
    Row row;
    const int16_t *pos;
    double *part, quantum;
    int64_t first, per; /* row and number of rows of the sample */
    DEVICE void operator()(int64_t k) const
    {
        double s[Row::SUMS] = {0};
        const int last = Row::SUMS - 1;
        if (pos[3 * (first + k)] >= 0) row(first + k, s);
        const double whole = rounded(s[last - 1], quantum);
        s[last] = isfinite(whole) ? s[last - 1] - whole : 0;
        for (int i = 0; i <= last; i++)
            part[i * per + k] = rounded(s[i], i < last ? quantum : quantum * DEV_FINE);
    }
};

/* row_of(b): the sums of one row of sample b. */
template <class RowOf>
void row_sums(struct dev *d, struct tensor sum, struct tensor pos, double quantum,
              const RowOf &row_of)
{
    typedef decltype(row_of(0)) Row;
    CHECK(sum.dtype == DT_F64 && sum.ndim == 2 && sum.dim[1] == Row::SUMS, "sum is f64 [%lld,%d]",
          (long long)sum.dim[0], (int)Row::SUMS);
    dev_check_quantum(quantum);
    const int64_t batch = sum.dim[0], per = pos.dim[0] / batch, n = batch * Row::SUMS;
    double *part = (double *)cuda_scratch(d, (size_t)(n * per) * sizeof(double));
    for (int64_t b = 0; b < batch; b++)
        each(d, per,
             RowParts<Row>{row_of(b), (const int16_t *)pos.data, part + b * Row::SUMS * per,
                           quantum, b * per, per});
    blocks(d, n, LongEnds<AddTo>{AddTo{view(sum), Row::SUMS}, part, per});
}

/* ---- transitions --------------------------------------------------------------------------- */

struct Transition { /* of one sample */
    View x, next, c, u, ref_c, ref_u;
    double guidance, cx, cv;
    /* Feature f of row r: next - mean, v - ref_v (0 without reference). */
    DEVICE void errors(int64_t r, int64_t f, double e[2]) const
    {
        const int64_t from = f % 4 * (x.width / 4) + f / 4;
        const double v = velocity(c, u, guidance, r, from);
        const double mean = cx * (double)get(x, r, f) + cv * v;
        e[0] = (double)get(next, r, f) - mean;
        e[1] = ref_c.p ? v - velocity(ref_c, ref_u, guidance, r, from) : 0;
    }
};

struct TransitionRow {
    enum { SUMS = TRANSITION_SUMS };
    Transition t;
    double half_inv_v;
    DEVICE void operator()(int64_t r, double *s) const
    {
        for (int64_t f = 0; f < t.x.width; f++) {
            double e[2];
            t.errors(r, f, e);
            s[0] += e[0] * e[0];
            s[1] += e[1] * e[1];
        }
        s[0] *= half_inv_v;
        s[1] *= t.cv * t.cv * half_inv_v;
    }
};

struct TransitionGrad {
    Transition t;
    View dc, du;
    const int16_t *pos;
    int64_t first; /* row of the sample */
    double policy, kl, gc, gu;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = first + i / t.x.width, f = i % t.x.width;
        const int64_t to = f % 4 * (t.x.width / 4) + f / 4;
        double e[2], g = 0;
        if (pos[3 * r] >= 0) {
            t.errors(r, f, e);
            g = policy * e[0] + kl * e[1];
        }
        if (dc.p) put(dc, r, to, (float)(gc * g));
        if (du.p) put(du, r, to, (float)(gu * g));
    }
};

Transition transition(const struct transition_args *a, int64_t b)
{
    return Transition{view(a->x),     view(a->next), view(a->c), view(a->u), view(a->ref_c),
                      view(a->ref_u), a->guidance,   a->cx[b],   a->cv[b]};
}

void check_transition(const struct transition_args *a)
{
    const struct tensor t[] = {a->x, a->next, a->c, a->u, a->ref_c, a->ref_u};
    expect_rows(a->x, t, 6, a->pos, a->batch, "transition");
    CHECK(!a->ref_c.data || !a->ref_u.data == !a->u.data, "transition: one of two is guided");
}

/* ---- negative-aware finetuning --------------------------------------------------------------- */

struct Nft {
    View target, v, old, ref;
    double beta;
    /* target - v+, target - v-, v - ref (0 without reference). */
    DEVICE void errors(int64_t r, int64_t f, double e[3]) const
    {
        const double to = (double)get(target, r, f), now = (double)get(v, r, f);
        const double before = (double)get(old, r, f);
        e[0] = to - (beta * now + (1 - beta) * before);
        e[1] = to - ((1 + beta) * before - beta * now);
        e[2] = ref.p ? now - (double)get(ref, r, f) : 0;
    }
};

struct NftRow {
    enum { SUMS = NFT_SUMS };
    Nft t;
    DEVICE void operator()(int64_t r, double *s) const
    {
        for (int64_t f = 0; f < t.v.width; f++) {
            double e[3];
            t.errors(r, f, e);
            s[0] += fabs(e[0]);
            s[1] += e[0] * e[0];
            s[2] += fabs(e[1]);
            s[3] += e[1] * e[1];
            s[4] += e[2] * e[2];
        }
    }
};

struct NftGrad {
    Nft t;
    View dv;
    const int16_t *pos;
    int64_t first; /* row of the sample */
    double plus, minus, kl;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = first + i / dv.width, f = i % dv.width;
        double e[3], g = 0;
        if (pos[3 * r] >= 0) {
            t.errors(r, f, e);
            g = plus * e[0] + minus * e[1] + kl * e[2];
        }
        put(dv, r, f, (float)g);
    }
};

Nft nft(const struct nft_args *a)
{
    return Nft{view(a->target), view(a->v), view(a->old), view(a->ref), a->beta};
}

void check_nft(const struct nft_args *a)
{
    const struct tensor t[] = {a->target, a->v, a->old, a->ref};
    expect_rows(a->v, t, 4, a->pos, a->batch, "nft");
}

} // namespace

void cuda_solver_step(struct dev *d, const struct solver_step_args *a)
{
    const struct tensor t[] = {a->next, a->x, a->h, a->c, a->u};
    expect_rows(a->x, t, 5, a->pos, a->batch, "solver step");
    CHECK(a->ch == 0 || a->h.data, "solver step without the history it needs");
    const int64_t per = a->x.dim[0] / a->batch;
    const Patches k = {view(a->next), View{},          (const int16_t *)a->pos.data,
                       per,           a->x.dim[1] / 4, a->t,
                       a->height,     a->width,        PATCH_IN};
    for (int64_t b = 0; b < a->batch; b++)
        each(d, per * a->x.dim[1],
             SolverStep{k, view(a->x), view(a->h), view(a->c), view(a->u), a->guidance, a->cx,
                        a->cv, a->ch, a->sigma, a->noise ? a->std : 0, b,
                        a->noise ? rng_open(a->noise[b]) : rng_stream{0, 0}});
}

void cuda_transition_sums(struct dev *d, struct tensor sum, const struct transition_args *a)
{
    check_transition(a);
    CHECK(sum.dim[0] == a->batch, "transition: sums of %d samples", a->batch);
    row_sums(d, sum, a->pos, a->quantum, [a](int64_t b) {
        return TransitionRow{transition(a, b), a->half_inv_v[b]};
    });
}

void cuda_transition_grad(struct dev *d, struct tensor dc, struct tensor du,
                          const struct transition_args *a, const double *policy, const double *kl,
                          double gc, double gu)
{
    check_transition(a);
    const struct tensor t[] = {dc, du};
    expect_rows(a->x, t, 2, a->pos, a->batch, "transition gradient");
    const int64_t per = a->x.dim[0] / a->batch;
    for (int64_t b = 0; b < a->batch; b++)
        each(d, per * a->x.dim[1],
             TransitionGrad{transition(a, b), view(dc), view(du), (const int16_t *)a->pos.data,
                            b * per, policy[b], a->ref_c.data ? kl[b] : 0, gc, gu});
}

void cuda_nft_sums(struct dev *d, struct tensor sum, const struct nft_args *a)
{
    check_nft(a);
    CHECK(sum.dim[0] == a->batch, "nft: sums of %d samples", a->batch);
    row_sums(d, sum, a->pos, a->quantum, [a](int64_t) { return NftRow{nft(a)}; });
}

void cuda_nft_grad(struct dev *d, struct tensor dv, const struct nft_args *a, const double *plus,
                   const double *minus, const double *kl)
{
    check_nft(a);
    expect_rows(a->v, &dv, 1, a->pos, a->batch, "nft gradient");
    const int64_t per = a->v.dim[0] / a->batch;
    for (int64_t b = 0; b < a->batch; b++)
        each(d, per * a->v.dim[1],
             NftGrad{nft(a), view(dv), (const int16_t *)a->pos.data, b * per, plus[b], minus[b],
                     a->ref.data ? kl[b] : 0});
}
