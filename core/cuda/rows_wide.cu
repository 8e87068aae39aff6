/* Norms, rotation, modulation and gates, the common case: rows are read and written once, eight
 * elements at a time, and stay in registers between the passes over them. Sums of a row are in f32.
 * A gradient that sums down the columns comes out of the kernel that has the rows anyway: a block
 * takes CHUNK rows of one sample and each lane adds up the columns it owns; then one thread a
 * column adds the chunks, in order. */
#include "core/cuda/packs.h"

namespace
{

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

/* The row of a map that has none for this place: zeros. */
DEVICE void load_or_zero(const View &v, int64_t from, int64_t col, float (&x)[PACK])
{
    for (int k = 0; k < PACK; k++) x[k] = 0;
    if (from >= 0) load_pack(v, from, col, x);
}

struct GateArgs {
    View x, y, gate;
    RowMap map;
    int64_t per; /* rows of a sample, of the rows that are written */
};
/* Columns of row r of x + gate * y in the order of the map. */
DEVICE void gate_pack(const GateArgs &a, int64_t r, int64_t c, float (&out)[PACK])
{
    const int64_t from = a.map[r];
    float f[PACK], g[PACK];
    load_or_zero(a.x, from, c, out);
    if (from < 0) return;
    load_pack(a.y, from, c, f);
    for (int k = 0; k < PACK; k++) g[k] = 1;
    if (a.gate.p) load_pack(a.gate, r / a.per, c, g);
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
    GateArgs gate;
    LnForwardArgs ln;
};
template <int PACKS> struct GateLnForward {
    struct Shared {
        float buf[MAX_LANES];
    };
    GateLnForwardArgs a;
    DEVICE void operator()(Block &b, Shared &sh, int64_t r) const
    {
        const int width = (int)a.ln.x.width;
        float x[PACKS][PACK];
        EACH_PACK(p, c)
        {
            gate_pack(a.gate, r, c, x[p]);
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
                    for (int i = 0; i < PACK; i++) g[p][i] = sum_rn(g[p][i], old[i]);
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
    View out;
    GateArgs a;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t packs = out.width / PACK, r = i / packs, c = i % packs * PACK;
        float sum[PACK];
        gate_pack(a, r, c, sum);
        store_pack(out, r, c, sum);
    }
};

struct GateBackwardArgs {
    View dy, dout, y, gate, dx; /* dx.p NULL: none */
    RowMap map;
    Chunks chunks; /* sums of dx * y */
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
                load_or_zero(a.dout, a.map[r], c, g);
                if (a.dx.p) store_pack(a.dx, r, c, g);
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

static GateArgs gate_args(struct tensor out, struct tensor x, struct tensor y, struct tensor gate,
                          struct tensor map)
{
    const int64_t per = gate.data ? out.dim[0] / gate.dim[0] : 1;
    return GateArgs{view(x), view(y), view(gate), row_map(map), per};
}

bool wide_gate_add_ln_fwd(struct dev *d, const struct gate_add_ln_args *a)
{
    const struct ln_args *ln = &a->ln;
    const int64_t C = ln->x.dim[1];
    if (!fits(C, {a->x, a->y, a->gate, ln->x, ln->out, ln->scale, ln->shift})) return false;
    by_packs<GateLnForward>(
        d, ln->x.dim[0], C,
        GateLnForwardArgs{gate_args(ln->x, a->x, a->y, a->gate, a->map), ln_forward_args(ln)});
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

bool wide_gate_add_fwd(struct dev *d, const struct gate_add_args *a)
{
    if (!fits(a->x.dim[1], {a->out, a->x, a->y, a->gate})) return false;
    each(d, tensor_count(a->out) / PACK,
         GateForward{view(a->out), gate_args(a->out, a->x, a->y, a->gate, a->map)});
    return true;
}

bool wide_gate_add_bwd(struct dev *d, const struct gate_add_grad_args *a)
{
    const int64_t C = a->dy.dim[1], batch = a->gate.dim[0];
    const struct tensor dx = a->map.data ? a->dx : tensor{};
    if (!fits(C, {a->dy, a->dout, a->y, a->gate, dx})) return false;
    const Chunks c = chunks_of(d, batch, a->dy.dim[0] / batch, C, 1);
    by_packs<GateBackward>(d, batch * c.chunks, C,
                           GateBackwardArgs{view(a->dy), view(a->dout), view(a->y), view(a->gate),
                                            view(dx), row_map(a->map), c});
    add_chunks(d, c, batch, a->dgate, 0);
    return true;
}

/* ---- copies ---------------------------------------------------------------------------------- */

namespace
{

struct CastPacks {
    View dst, src;
    int64_t packs; /* of a row */
    DEVICE void operator()(int64_t i) const
    {
        float x[PACK];
        load_pack(src, i / packs, i % packs * PACK, x);
        store_pack(dst, i / packs, i % packs * PACK, x);
    }
};

} // namespace

bool wide_cast(struct dev *d, struct tensor dst, struct tensor src)
{
    if (!whole_packs(dst) || !whole_packs(src)) return false;
    const View to = flat(dst), from = flat(src);
    each(d, tensor_count(src) / PACK, CastPacks{to, from, from.width / PACK});
    return true;
}
