/* Norms, rotation, modulation and gates. Forward and input gradients: one block per row, sums in
 * double. Gradients of weights, scales, shifts and gates: sums down the columns. For any width,
 * stride and alignment; rows_wide.cu takes the common case first. */
#include "core/cuda/rows.h"

namespace
{

/* ---- RMS norm and rotation ------------------------------------------------------------------- */

struct NormRopeForward {
    struct Shared {
        double buf[MAX_LANES];
    };
    View out, x;
    float *rstd;
    const float *w;
    Turn turn;
    double eps;

    struct Normed {
        const View &x;
        const float *w;
        int64_t r;
        float s;
        DEVICE float operator()(int64_t c) const { return get(x, r, c) * s * w[c]; }
    };
    DEVICE void operator()(Block &b, Shared &sh, int64_t r) const
    {
        double sum = 0;
        for (int64_t c = b.lane; c < x.width; c += b.lanes) {
            const double z = (double)get(x, r, c);
            sum += z * z;
        }
        sum = block_sum(b, sh.buf, sum);
        const float s = (float)(1 / sqrt(sum / (double)x.width + eps));
        if (b.lane == 0) rstd[r] = s;
        const Normed f = {x, w, r, s};
        for (int64_t c = 2 * b.lane; c < x.width; c += 2 * b.lanes) { /* a pair: out may be x */
            const bool two = c + 1 < x.width;
            const float even = turn.turned(r, c, 1, f), odd = two ? turn.turned(r, c + 1, 1, f) : 0;
            put(out, r, c, even);
            if (two) put(out, r, c + 1, odd);
        }
    }
};

/* y = dy turned back; g = y * w: dx = s * g - x * s^3 * mean(g * x); dw += y * x * s */
struct NormRopeBackward {
    struct Shared {
        double buf[MAX_LANES];
    };
    View dx, dy, x;
    const float *rstd, *w;
    Turn turn;

    struct Raw {
        const View &dy;
        int64_t r;
        DEVICE float operator()(int64_t c) const { return get(dy, r, c); }
    };
    DEVICE float turned_back(int64_t r, int64_t c) const
    {
        return turn.turned(r, c, -1, Raw{dy, r});
    }
    DEVICE void operator()(Block &b, Shared &sh, int64_t r) const
    {
        double sum = 0;
        for (int64_t c = b.lane; c < x.width; c += b.lanes)
            sum += (double)(turned_back(r, c) * w[c]) * (double)get(x, r, c);
        sum = block_sum(b, sh.buf, sum);
        const float s = rstd[r];
        const float k = (float)((double)s * (double)s * (double)s * sum / (double)x.width);
        for (int64_t c = b.lane; c < x.width; c += b.lanes)
            put(dx, r, c, s * (turned_back(r, c) * w[c]) - k * get(x, r, c));
    }
};
struct NormRopeWeight {
    NormRopeBackward k;
    DEVICE double operator()(int64_t c, int64_t r) const
    {
        return (double)k.turned_back(r, c) * (double)get(k.x, r, c) * (double)k.rstd[r];
    }
};

/* ---- layer norm and modulation --------------------------------------------------------------- */

struct LnForward {
    struct Shared {
        double buf[MAX_LANES];
    };
    View out, x, scale, shift;
    float *mean, *rstd;
    int64_t per; /* rows of a sample */
    double one, eps;
    DEVICE void operator()(Block &b, Shared &sh, int64_t r) const
    {
        double m = 0, var = 0;
        for (int64_t c = b.lane; c < x.width; c += b.lanes) m += (double)get(x, r, c);
        m = block_sum(b, sh.buf, m) / (double)x.width;
        for (int64_t c = b.lane; c < x.width; c += b.lanes) {
            const double z = (double)get(x, r, c) - m;
            var += z * z;
        }
        var = block_sum(b, sh.buf, var) / (double)x.width;
        const double s = 1 / sqrt(var + eps);
        if (b.lane == 0) {
            mean[r] = (float)m;
            rstd[r] = (float)s;
        }
        for (int64_t c = b.lane; c < x.width; c += b.lanes) {
            float y = (float)(((double)get(x, r, c) - m) * s);
            if (scale.p) y = y * ((float)one + get(scale, r / per, c)) + get(shift, r / per, c);
            put(out, r, c, y);
        }
    }
};

/* g = dy * (one + scale): dx = s * (g - mean(g) - z * mean(g * z)), z = (x - mean) * s */
struct LnBackward {
    struct Shared {
        double buf[MAX_LANES];
    };
    View dx, dy, x, scale;
    const float *mean, *rstd;
    int64_t per;
    double one;
    bool add; /* dx += instead of = */
    DEVICE float normed(int64_t r, int64_t c) const { return (get(x, r, c) - mean[r]) * rstd[r]; }
    DEVICE float into(int64_t r, int64_t c) const
    {
        const float g = get(dy, r, c);
        return scale.p ? g * ((float)one + get(scale, r / per, c)) : g;
    }
    DEVICE void result(int64_t r, int64_t c, float g) const
    {
        const float old = add ? get(dx, r, c) : 0;
        put(dx, r, c, g); /* what is added is rounded first */
        if (add) put(dx, r, c, sum_rn(old, get(dx, r, c)));
    }
    DEVICE void operator()(Block &b, Shared &sh, int64_t r) const
    {
        double m1 = 0, m2 = 0;
        for (int64_t c = b.lane; c < x.width; c += b.lanes) {
            m1 += (double)into(r, c);
            m2 += (double)into(r, c) * (double)normed(r, c);
        }
        const float a1 = (float)(block_sum(b, sh.buf, m1) / (double)x.width);
        const float a2 = (float)(block_sum(b, sh.buf, m2) / (double)x.width);
        for (int64_t c = b.lane; c < x.width; c += b.lanes)
            result(r, c, rstd[r] * (into(r, c) - a1 - normed(r, c) * a2));
    }
};
/* Sums over the rows of a sample; sum number i = sample * C + column. */
struct LnScaleTerm {
    LnBackward k;
    DEVICE double operator()(int64_t i, int64_t p) const
    {
        const int64_t r = i / k.x.width * k.per + p, c = i % k.x.width;
        return (double)get(k.dy, r, c) * (double)k.normed(r, c);
    }
};
struct ProductTerm { /* b.p NULL: 1 */
    View a, b;
    int64_t per;
    DEVICE double operator()(int64_t i, int64_t p) const
    {
        const int64_t r = i / a.width * per + p, c = i % a.width;
        return (double)get(a, r, c) * (b.p ? (double)get(b, r, c) : 1);
    }
};

/* ---- gates ----------------------------------------------------------------------------------- */

struct GateForward { /* out may be x */
    View out, x, y, gate;
    RowMap map;
    int64_t per;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / x.width, c = i % x.width, from = map[r];
        const float g = gate.p ? get(gate, r / per, c) : 1;
        put(out, r, c, from < 0 ? 0 : get(x, from, c) + g * get(y, from, c));
    }
};
struct GateBackward {
    View dy, dout, gate, dx; /* dx.p NULL: none */
    RowMap map;
    int64_t per;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / dout.width, c = i % dout.width, from = map[r];
        const float g = from < 0 ? 0 : get(dout, from, c);
        if (dx.p) put(dx, r, c, g);
        put(dy, r, c, get(gate, r / per, c) * g);
    }
};

float *state(struct tensor t, const char *what)
{
    CHECK(!t.data || t.dtype == DT_F32, "%s is f32, not %s", what, dtype_name(t.dtype));
    return (float *)t.data;
}

} // namespace

void cuda_norm_rope_fwd(struct dev *d, const struct norm_rope_args *a)
{
    if (wide_norm_rope_fwd(d, a)) return;
    cuda_expect_float(a->x, "RMS norm");
    cuda_expect_float(a->out, "RMS norm");
    blocks(d, a->x.dim[0],
           NormRopeForward{view(a->out), view(a->x), state(a->rstd, "rstd"), state(a->w, "weight"),
                           turn_of(a->pos, a->rope, a->x.dim[1], a->heads), a->eps});
}

void cuda_norm_rope_bwd(struct dev *d, const struct norm_rope_grad_args *a)
{
    if (wide_norm_rope_bwd(d, a)) return;
    cuda_expect_float(a->x, "RMS norm");
    cuda_expect_float(a->dy, "RMS norm");
    const int64_t C = a->x.dim[1];
    const NormRopeBackward k = {view(a->dx),
                                view(a->dy),
                                view(a->x),
                                state(a->rstd, "rstd"),
                                state(a->w, "weight"),
                                turn_of(a->pos, a->rope, C, a->heads)};
    blocks(d, a->x.dim[0], k);
    if (!a->dw.data) return;
    View dw = view(a->dw);
    dw.ld = C;
    column_sums(d, C, a->x.dim[0], NormRopeWeight{k}, AddTo{dw, C});
}

void cuda_ln_fwd(struct dev *d, const struct ln_args *a)
{
    if (wide_ln_fwd(d, a)) return;
    cuda_expect_float(a->x, "layer norm");
    cuda_expect_float(a->out, "layer norm");
    const int64_t per = a->scale.data ? a->x.dim[0] / a->scale.dim[0] : 1;
    state(a->scale, "scale");
    state(a->shift, "shift");
    blocks(d, a->x.dim[0],
           LnForward{view(a->out), view(a->x), view(a->scale), view(a->shift),
                     state(a->mean, "mean"), state(a->rstd, "rstd"), per, a->one, a->eps});
}

static void ln_bwd(struct dev *d, const struct ln_grad_args *a, bool add)
{
    if (wide_ln_bwd(d, a, add)) return;
    cuda_expect_float(a->x, "layer norm");
    cuda_expect_float(a->dy, "layer norm");
    const int64_t C = a->x.dim[1], batch = a->scale.data ? a->scale.dim[0] : 1;
    const int64_t per = a->x.dim[0] / batch;
    state(a->scale, "scale");
    const LnBackward k = {view(a->dx),
                          view(a->dy),
                          view(a->x),
                          view(a->scale),
                          state(a->mean, "mean"),
                          state(a->rstd, "rstd"),
                          per,
                          a->one,
                          add};
    blocks(d, a->x.dim[0], k);
    if (a->dscale.data) column_sums(d, batch * C, per, LnScaleTerm{k}, AddTo{view(a->dscale), C});
    if (a->dshift.data)
        column_sums(d, batch * C, per, ProductTerm{k.dy, View{}, per}, AddTo{view(a->dshift), C});
}

void cuda_ln_bwd(struct dev *d, const struct ln_grad_args *a) { ln_bwd(d, a, false); }

void cuda_gate_add_fwd(struct dev *d, const struct gate_add_args *a)
{
    if (wide_gate_add_fwd(d, a)) return;
    cuda_expect_float(a->x, "gate");
    cuda_expect_float(a->y, "gate");
    const int64_t per = a->gate.data ? a->out.dim[0] / a->gate.dim[0] : 1;
    each(d, tensor_count(a->out),
         GateForward{view(a->out), view(a->x), view(a->y), view(a->gate), row_map(a->map), per});
}

void cuda_gate_add_bwd(struct dev *d, const struct gate_add_grad_args *a)
{
    if (wide_gate_add_bwd(d, a)) return;
    cuda_expect_float(a->dout, "gate");
    cuda_expect_float(a->y, "gate");
    const int64_t C = a->dy.dim[1], batch = a->gate.dim[0], per = a->dy.dim[0] / batch;
    const View dx = a->map.data ? view(a->dx) : View{};
    each(d, tensor_count(a->dy),
         GateBackward{view(a->dy), view(a->dout), view(a->gate), dx, row_map(a->map), per});
    column_sums(d, batch * C, per, ProductTerm{dx.p ? dx : view(a->dout), view(a->y), per},
                AddTo{view(a->dgate), C});
}

void cuda_gate_add_ln_fwd(struct dev *d, const struct gate_add_ln_args *a)
{
    if (wide_gate_add_ln_fwd(d, a)) return;
    const struct gate_add_args sum = {a->ln.x, a->x, a->y, a->gate, a->map};
    cuda_gate_add_fwd(d, &sum);
    cuda_ln_fwd(d, &a->ln);
}

void cuda_gate_add_ln_bwd(struct dev *d, const struct gate_add_ln_grad_args *a)
{
    if (wide_gate_add_ln_bwd(d, a)) return;
    ln_bwd(d, &a->ln, true);
    const struct gate_add_grad_args gated = {a->dy, a->dgate, a->ln.dx, a->y, a->gate, {}, {}};
    if (a->dy.data) cuda_gate_add_bwd(d, &gated);
}
