/* Norms, rotation, modulation and gates, the common case: rows are read and written once, eight
 * elements at a time, and stay in registers between the passes over them. Sums of a row are in f32.
 * A gradient that sums down the columns comes out of the kernel that has the rows anyway: a block
 * takes CHUNK rows of one sample and each lane adds up the columns it owns; then one thread a
 * column adds the chunks, in order. */
#include "core/cuda/rows.h"

#include <initializer_list>

namespace
{

constexpr int PACK = 8, MOST_PACKS = 4;
#ifdef CUDA_EMULATE
constexpr int64_t CHUNK = 8; /* the tests are small */
#else
constexpr int64_t CHUNK = 64;
#endif

/* ---- packs ----------------------------------------------------------------------------------- */

DEVICE void load_pack(const View &v, int64_t row, int64_t col, float (&x)[PACK])
{
    const int64_t at = row * v.ld + col;
    if (v.type == DT_BF16) {
        const Quad q = *(const Quad *)((const uint16_t *)v.p + at);
        UNROLL
        for (int i = 0; i < PACK; i++) x[i] = bf16_to_float((uint16_t)(q.w[i / 2] >> i % 2 * 16));
        return;
    }
    const Quad *q = (const Quad *)((const float *)v.p + at);
    const Quad low = q[0], high = q[1];
    memcpy(x, &low, 16);
    memcpy(x + 4, &high, 16);
}
DEVICE void store_pack(const View &v, int64_t row, int64_t col, const float (&x)[PACK])
{
    const int64_t at = row * v.ld + col;
    Quad low, high;
    if (v.type == DT_BF16) {
        UNROLL
        for (int i = 0; i < PACK / 2; i++)
            low.w[i] = bf16_of_float(x[2 * i]) | (uint32_t)bf16_of_float(x[2 * i + 1]) << 16;
        *(Quad *)((uint16_t *)v.p + at) = low;
        return;
    }
    memcpy(&low, x, 16);
    memcpy(&high, x + 4, 16);
    Quad *q = (Quad *)((float *)v.p + at);
    q[0] = low;
    q[1] = high;
}
/* x as it is when it has been stored in v. */
DEVICE void round_pack(const View &v, float (&x)[PACK])
{
    if (v.type != DT_BF16) return;
    for (int i = 0; i < PACK; i++) x[i] = bf16_to_float(bf16_of_float(x[i]));
}

/* The packs of a row that belong to this lane: number p, from column c. */
#define EACH_PACK(p, c)             \
    UNROLL                          \
    for (int p = 0; p < PACKS; p++) \
        if (const int c = (p * b.lanes + b.lane) * PACK; c < width)

View flat(struct tensor t) /* one dimension: a row */
{
    View v = view(t);
    if (t.ndim == 1) v.ld = v.width = t.dim[0];
    return v;
}
bool whole_packs(struct tensor t)
{
    if (!t.data) return true;
    const View v = flat(t);
    return (t.dtype == DT_F32 || t.dtype == DT_BF16) && v.width % PACK == 0 && v.ld % PACK == 0 &&
           (uintptr_t)t.data % 16 == 0;
}
/* Packs a lane keeps for rows of this width; 0: too many */
int packs_of(int64_t width)
{
    const int64_t all = MAX_LANES * PACK, n = (width + all - 1) / all;
    return n <= MOST_PACKS ? (int)n : 0;
}
template <template <int> class Kernel, class Args>
void by_packs(struct dev *d, int64_t n, int64_t width, const Args &a)
{
    switch (packs_of(width)) {
    case 1:
        blocks(d, n, Kernel<1>{a});
        break;
    case 2:
        blocks(d, n, Kernel<2>{a});
        break;
    case 3:
        blocks(d, n, Kernel<3>{a});
        break;
    default:
        blocks(d, n, Kernel<4>{a});
    }
}

/* ---- sums down the columns ------------------------------------------------------------------- */

struct Chunks { /* rows of a sample in chunks; per chunk `kinds` rows of sums */
    int64_t per, chunks, width;
    int kinds;
    float *part;
    DEVICE int64_t sample(int64_t item) const { return item / chunks; }
    DEVICE int64_t first(int64_t item) const { return item / chunks * per + item % chunks * CHUNK; }
    DEVICE int64_t end(int64_t item) const
    {
        const int64_t left = per - item % chunks * CHUNK;
        return first(item) + (left < CHUNK ? left : CHUNK);
    }
    DEVICE View sums(int64_t item, int kind) const
    {
        return View{part + (item * kinds + kind) * width, DT_F32, width, width};
    }
};
Chunks chunks_of(struct dev *d, int64_t batch, int64_t per, int64_t width, int kinds)
{
    Chunks c = {per, (per + CHUNK - 1) / CHUNK, width, kinds, NULL};
    c.part = (float *)cuda_scratch(d, (size_t)(batch * c.chunks * kinds * width) * sizeof(float));
    return c;
}

struct AddChunks {
    Chunks c;
    View out;
    int kind;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t sample = i / c.width, col = i % c.width;
        double s = 0;
        for (int64_t k = 0; k < c.chunks; k++)
            s += (double)c.part[((sample * c.chunks + k) * c.kinds + kind) * c.width + col];
        put_f64(out, sample, col, get_f64(out, sample, col) + s);
    }
};
/* To each sample's row of out, or the sums of all samples to its only row. */
void add_chunks(struct dev *d, Chunks c, int64_t batch, struct tensor out, int kind)
{
    if (!out.data) return;
    if (out.ndim > 1 && out.dim[0] == 1) {
        c.chunks *= batch;
        batch = 1;
    }
    each(d, batch * c.width, AddChunks{c, flat(out), kind});
}

/* ---- RMS norm and rotation ------------------------------------------------------------------- */

DEVICE void turn_pack(const Turn &t, int64_t r, int c, float sign, float (&x)[PACK])
{
    UNROLL
    for (int q = 0; q < PACK; q += 2) {
        float co, si;
        if (!t.angle(r, (c + q) / 2, &co, &si)) continue;
        si *= sign;
        const float even = x[q], odd = x[q + 1];
        x[q] = even * co - odd * si;
        x[q + 1] = even * si + odd * co;
    }
}

struct NormForwardArgs {
    View out, x, w;
    float *rstd;
    Turn turn;
    float eps;
};
template <int PACKS> struct NormForward {
    struct Shared {
        float buf[MAX_LANES];
    };
    NormForwardArgs a;
    DEVICE void operator()(Block &b, Shared &sh, int64_t r) const
    {
        const int width = (int)a.x.width;
        float x[PACKS][PACK], sum = 0;
        EACH_PACK(p, c)
        {
            load_pack(a.x, r, c, x[p]);
            for (int i = 0; i < PACK; i++) sum += x[p][i] * x[p][i];
        }
        const float s = 1 / sqrtf(block_sum(b, sh.buf, sum) / (float)width + a.eps);
        if (b.lane == 0) a.rstd[r] = s;
        EACH_PACK(p, c)
        {
            float w[PACK];
            load_pack(a.w, 0, c, w);
            for (int i = 0; i < PACK; i++) x[p][i] *= s * w[i];
            turn_pack(a.turn, r, c, 1, x[p]);
            store_pack(a.out, r, c, x[p]);
        }
    }
};

/* y = dy turned back; g = y * w: dx = s * g - x * s^3 * mean(g * x); dw += y * x * s */
struct NormBackwardArgs {
    View dx, dy, x, w;
    const float *rstd;
    Turn turn;
    Chunks chunks;
};
template <int PACKS> struct NormBackward {
    struct Shared {
        float buf[MAX_LANES];
    };
    NormBackwardArgs a;
    DEVICE void operator()(Block &b, Shared &sh, int64_t item) const
    {
        const int width = (int)a.x.width;
        float dw[PACKS][PACK] = {}, w[PACKS][PACK];
        EACH_PACK(p, c) load_pack(a.w, 0, c, w[p]);
        for (int64_t r = a.chunks.first(item); r < a.chunks.end(item); r++) {
            const float s = a.rstd[r];
            float x[PACKS][PACK], y[PACKS][PACK], sum = 0;
            EACH_PACK(p, c)
            {
                load_pack(a.x, r, c, x[p]);
                load_pack(a.dy, r, c, y[p]);
                turn_pack(a.turn, r, c, -1, y[p]);
                for (int i = 0; i < PACK; i++) {
                    dw[p][i] += y[p][i] * x[p][i] * s;
                    y[p][i] *= w[p][i];
                    sum += y[p][i] * x[p][i];
                }
            }
            const float k = s * s * s * block_sum(b, sh.buf, sum) / (float)width;
            EACH_PACK(p, c)
            {
                for (int i = 0; i < PACK; i++) y[p][i] = s * y[p][i] - k * x[p][i];
                store_pack(a.dx, r, c, y[p]);
            }
        }
        EACH_PACK(p, c) store_pack(a.chunks.sums(item, 0), 0, c, dw[p]);
    }
};

/* ---- gate, layer norm and modulation --------------------------------------------------------- */

/* out = x + gate * y */
DEVICE void gate_pack(const View &x, const View &y, const View &gate, int64_t r, int64_t sample,
                      int64_t c, float (&out)[PACK])
{
    float f[PACK], g[PACK];
    load_pack(x, r, c, out);
    load_pack(y, r, c, f);
    for (int k = 0; k < PACK; k++) g[k] = 1;
    if (gate.p) load_pack(gate, sample, c, g);
    for (int k = 0; k < PACK; k++) out[k] += g[k] * f[k];
}

struct LnForwardArgs {
    View out, x, scale, shift;
    float *mean, *rstd;
    int64_t per; /* rows of a sample */
    float one, eps;
};
/* Of row r, which is in x. */
template <int PACKS>
DEVICE void ln_row(Block &b, float *buf, const LnForwardArgs &a, int64_t r, float (&x)[PACKS][PACK])
{
    const int width = (int)a.x.width;
    float sum = 0, square = 0;
    EACH_PACK(p, c)
    for (int i = 0; i < PACK; i++) sum += x[p][i];
    const float m = block_sum(b, buf, sum) / (float)width;
    EACH_PACK(p, c)
    for (int i = 0; i < PACK; i++) {
        x[p][i] -= m;
        square += x[p][i] * x[p][i];
    }
    const float s = 1 / sqrtf(block_sum(b, buf, square) / (float)width + a.eps);
    if (b.lane == 0) {
        a.mean[r] = m;
        a.rstd[r] = s;
    }
    EACH_PACK(p, c)
    {
        float scale[PACK] = {}, shift[PACK] = {};
        if (a.scale.p) {
            load_pack(a.scale, r / a.per, c, scale);
            load_pack(a.shift, r / a.per, c, shift);
        }
        for (int i = 0; i < PACK; i++)
            x[p][i] = x[p][i] * s * (a.scale.p ? a.one + scale[i] : 1) + shift[i];
        store_pack(a.out, r, c, x[p]);
    }
}
template <int PACKS> struct LnForward {
    struct Shared {
        float buf[MAX_LANES];
    };
    LnForwardArgs a;
    DEVICE void operator()(Block &b, Shared &sh, int64_t r) const
    {
        const int width = (int)a.x.width;
        float x[PACKS][PACK];
        EACH_PACK(p, c) load_pack(a.x, r, c, x[p]);
        ln_row<PACKS>(b, sh.buf, a, r, x);
    }
};

/* What is added to, x, may be ln.x, which is written. */
struct GateLnForwardArgs {
    View x, y, gate;
    int64_t per; /* rows of a sample of the gate */
    LnForwardArgs ln;
};
template <int PACKS> struct GateLnForward {
    struct Shared {
        float buf[MAX_LANES];
    };
    GateLnForwardArgs a;
    DEVICE void operator()(Block &b, Shared &sh, int64_t r) const
    {
        const int width = (int)a.x.width;
        float x[PACKS][PACK];
        EACH_PACK(p, c)
        {
            gate_pack(a.x, a.y, a.gate, r, r / a.per, c, x[p]);
            round_pack(a.ln.x, x[p]);
            store_pack(a.ln.x, r, c, x[p]);
        }
        ln_row<PACKS>(b, sh.buf, a.ln, r, x);
    }
};

/* g = dy * (one + scale): dx = s * (g - mean(g) - z * mean(g * z)), z = (x - mean) * s */
struct LnBackwardArgs {
    View dx, dy, x, scale;
    const float *mean, *rstd;
    Chunks chunks; /* sums of dy * z, of dy and, with a gate, of the new dx * y */
    float one;
    bool add, one_scale; /* dx += instead of =; one scale for all samples */
    View dgated, y, gate;
};
/* Row r of a sum and of what was gated in it: dgated = gate * dx, dgate += dx * y. */
DEVICE void gate_back_pack(const LnBackwardArgs &a, int64_t r, int64_t sample, int c,
                           const float (&dx)[PACK], float (&dgate)[PACK])
{
    float y[PACK], gate[PACK];
    load_pack(a.y, r, c, y);
    load_pack(a.gate, sample, c, gate);
    for (int i = 0; i < PACK; i++) {
        dgate[i] += dx[i] * y[i];
        gate[i] *= dx[i];
    }
    store_pack(a.dgated, r, c, gate);
}
template <int PACKS, bool GATED> struct LnBackwardOf {
    struct Shared {
        float buf[MAX_LANES];
    };
    LnBackwardArgs a;
    DEVICE void operator()(Block &b, Shared &sh, int64_t item) const
    {
        const int width = (int)a.x.width;
        const int64_t sample = a.chunks.sample(item);
        float dscale[PACKS][PACK] = {}, dshift[PACKS][PACK] = {}, factor[PACKS][PACK];
        float dgate[PACKS][PACK] = {};
        EACH_PACK(p, c)
        {
            if (a.scale.p) load_pack(a.scale, a.one_scale ? 0 : sample, c, factor[p]);
            for (int i = 0; i < PACK; i++) factor[p][i] = a.scale.p ? a.one + factor[p][i] : 1;
        }
        for (int64_t r = a.chunks.first(item); r < a.chunks.end(item); r++) {
            const float m = a.mean[r], s = a.rstd[r];
            float z[PACKS][PACK], g[PACKS][PACK], sum = 0, with = 0;
            EACH_PACK(p, c)
            {
                load_pack(a.x, r, c, z[p]);
                load_pack(a.dy, r, c, g[p]);
                for (int i = 0; i < PACK; i++) {
                    z[p][i] = (z[p][i] - m) * s;
                    dscale[p][i] += g[p][i] * z[p][i];
                    dshift[p][i] += g[p][i];
                    g[p][i] *= factor[p][i];
                    sum += g[p][i];
                    with += g[p][i] * z[p][i];
                }
            }
            const float a1 = block_sum(b, sh.buf, sum) / (float)width;
            const float a2 = block_sum(b, sh.buf, with) / (float)width;
            EACH_PACK(p, c)
            {
                for (int i = 0; i < PACK; i++) g[p][i] = s * (g[p][i] - a1 - z[p][i] * a2);
                if (a.add) {
                    float old[PACK];
                    load_pack(a.dx, r, c, old);
                    round_pack(a.dx, g[p]);
                    for (int i = 0; i < PACK; i++) g[p][i] += old[i];
                    round_pack(a.dx, g[p]);
                }
                store_pack(a.dx, r, c, g[p]);
                if (GATED) gate_back_pack(a, r, sample, c, g[p], dgate[p]);
            }
        }
        EACH_PACK(p, c)
        {
            store_pack(a.chunks.sums(item, 0), 0, c, dscale[p]);
            store_pack(a.chunks.sums(item, 1), 0, c, dshift[p]);
            if (GATED) store_pack(a.chunks.sums(item, 2), 0, c, dgate[p]);
        }
    }
};
template <int PACKS> using LnBackward = LnBackwardOf<PACKS, false>;
template <int PACKS> using GateLnBackward = LnBackwardOf<PACKS, true>;

/* ---- gates ----------------------------------------------------------------------------------- */

struct GateForward { /* out may be x; i: pack */
    View out, x, y, gate;
    int64_t per;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t packs = x.width / PACK, r = i / packs, c = i % packs * PACK;
        float sum[PACK];
        gate_pack(x, y, gate, r, r / per, c, sum);
        store_pack(out, r, c, sum);
    }
};

struct GateBackwardArgs {
    View dy, dout, y, gate;
    Chunks chunks; /* sums of dout * y */
};
template <int PACKS> struct GateBackward {
    struct Shared {
    };
    GateBackwardArgs a;
    DEVICE void operator()(Block &b, Shared &, int64_t item) const
    {
        const int width = (int)a.dout.width;
        float gate[PACKS][PACK], dgate[PACKS][PACK] = {};
        EACH_PACK(p, c) load_pack(a.gate, a.chunks.sample(item), c, gate[p]);
        for (int64_t r = a.chunks.first(item); r < a.chunks.end(item); r++) EACH_PACK(p, c)
            {
                float g[PACK], y[PACK];
                load_pack(a.dout, r, c, g);
                load_pack(a.y, r, c, y); /* dy may be y */
                for (int i = 0; i < PACK; i++) {
                    dgate[p][i] += g[i] * y[i];
                    g[i] *= gate[p][i];
                }
                store_pack(a.dy, r, c, g);
            }
        EACH_PACK(p, c) store_pack(a.chunks.sums(item, 0), 0, c, dgate[p]);
    }
};

bool fits(int64_t width, std::initializer_list<struct tensor> all)
{
    bool fit = packs_of(width) > 0;
    for (const struct tensor &t : all) fit = fit && whole_packs(t);
    return fit;
}

} // namespace

bool wide_norm_rope_fwd(struct dev *d, const struct norm_rope_args *a)
{
    const int64_t C = a->x.dim[1];
    if (!fits(C, {a->out, a->x, a->w})) return false;
    by_packs<NormForward>(d, a->x.dim[0], C,
                          NormForwardArgs{view(a->out), view(a->x), flat(a->w),
                                          (float *)a->rstd.data,
                                          turn_of(a->pos, a->rope, C, a->heads), (float)a->eps});
    return true;
}

bool wide_norm_rope_bwd(struct dev *d, const struct norm_rope_grad_args *a)
{
    const int64_t C = a->x.dim[1], rows = a->x.dim[0];
    if (!fits(C, {a->dx, a->dy, a->x, a->w})) return false;
    const Chunks c = chunks_of(d, 1, rows, C, 1);
    by_packs<NormBackward>(d, c.chunks, C,
                           NormBackwardArgs{view(a->dx), view(a->dy), view(a->x), flat(a->w),
                                            (const float *)a->rstd.data,
                                            turn_of(a->pos, a->rope, C, a->heads), c});
    add_chunks(d, c, 1, a->dw, 0);
    return true;
}

static LnForwardArgs ln_forward_args(const struct ln_args *a)
{
    const int64_t per = a->scale.data ? a->x.dim[0] / a->scale.dim[0] : 1;
    return LnForwardArgs{
        view(a->out),          view(a->x), view(a->scale), view(a->shift), (float *)a->mean.data,
        (float *)a->rstd.data, per,        (float)a->one,  (float)a->eps};
}

bool wide_ln_fwd(struct dev *d, const struct ln_args *a)
{
    const int64_t C = a->x.dim[1];
    if (!fits(C, {a->out, a->x, a->scale, a->shift})) return false;
    by_packs<LnForward>(d, a->x.dim[0], C, ln_forward_args(a));
    return true;
}

bool wide_gate_add_ln_fwd(struct dev *d, const struct gate_add_ln_args *a)
{
    const struct ln_args *ln = &a->ln;
    const int64_t C = a->x.dim[1], rows = a->x.dim[0];
    if (!fits(C, {a->x, a->y, a->gate, ln->x, ln->out, ln->scale, ln->shift})) return false;
    const int64_t per = a->gate.data ? rows / a->gate.dim[0] : 1;
    by_packs<GateLnForward>(
        d, rows, C,
        GateLnForwardArgs{view(a->x), view(a->y), view(a->gate), per, ln_forward_args(ln)});
    return true;
}

static LnBackwardArgs ln_backward_args(const struct ln_grad_args *a, const Chunks &chunks)
{
    LnBackwardArgs k = {};
    k.dx = view(a->dx);
    k.dy = view(a->dy);
    k.x = view(a->x);
    k.scale = view(a->scale);
    k.mean = (const float *)a->mean.data;
    k.rstd = (const float *)a->rstd.data;
    k.chunks = chunks;
    k.one = (float)a->one;
    return k;
}

bool wide_ln_bwd(struct dev *d, const struct ln_grad_args *a, bool add)
{
    const int64_t C = a->x.dim[1], batch = a->scale.data    ? a->scale.dim[0]
                                           : a->dscale.data ? a->dscale.dim[0]
                                                            : 1;
    if (!fits(C, {a->dx, a->dy, a->x, a->scale})) return false;
    const Chunks c = chunks_of(d, batch, a->x.dim[0] / batch, C, 2);
    LnBackwardArgs k = ln_backward_args(a, c);
    k.add = add;
    by_packs<LnBackward>(d, batch * c.chunks, C, k);
    add_chunks(d, c, batch, a->dscale, 0);
    add_chunks(d, c, batch, a->dshift, 1);
    return true;
}

bool wide_gate_add_ln_bwd(struct dev *d, const struct gate_add_ln_grad_args *a)
{
    const struct ln_grad_args *ln = &a->ln;
    const int64_t C = ln->x.dim[1], rows = ln->x.dim[0];
    if (!a->dy.data || !a->gate.data) return false;
    if (!fits(C, {ln->dx, ln->dy, ln->x, ln->scale, a->dy, a->y, a->gate})) return false;
    const int64_t batch = a->gate.dim[0];
    const bool one_scale = ln->scale.data && ln->scale.dim[0] == 1;
    CHECK(one_scale || !ln->scale.data || ln->scale.dim[0] == batch,
          "gate and layer norm: %lld samples and %lld", (long long)batch,
          (long long)ln->scale.dim[0]);
    const Chunks c = chunks_of(d, batch, rows / batch, C, 3);
    LnBackwardArgs k = ln_backward_args(ln, c);
    k.add = true;
    k.one_scale = one_scale;
    k.dgated = view(a->dy);
    k.y = view(a->y);
    k.gate = view(a->gate);
    by_packs<GateLnBackward>(d, batch * c.chunks, C, k);
    add_chunks(d, c, batch, ln->dscale, 0);
    add_chunks(d, c, batch, ln->dshift, 1);
    add_chunks(d, c, batch, a->dgate, 2);
    return true;
}

bool wide_gate_add_fwd(struct dev *d, struct tensor out, struct tensor x, struct tensor y,
                       struct tensor gate)
{
    if (!fits(x.dim[1], {out, x, y, gate})) return false;
    const int64_t per = gate.data ? x.dim[0] / gate.dim[0] : 1;
    each(d, tensor_count(x) / PACK, GateForward{view(out), view(x), view(y), view(gate), per});
    return true;
}

bool wide_gate_add_bwd(struct dev *d, struct tensor dy, struct tensor dgate, struct tensor dout,
                       struct tensor y, struct tensor gate)
{
    const int64_t C = dout.dim[1], batch = gate.dim[0];
    if (!fits(C, {dy, dout, y, gate})) return false;
    const Chunks c = chunks_of(d, batch, dout.dim[0] / batch, C, 1);
    by_packs<GateBackward>(d, batch * c.chunks, C,
                           GateBackwardArgs{view(dy), view(dout), view(y), view(gate), c});
    add_chunks(d, c, batch, dgate, 0);
    return true;
}
