/* Private to rows.cu and rows_wide.cu. */
#ifndef CORE_CUDA_ROWS_H
#define CORE_CUDA_ROWS_H
#include "core/cuda/cuda.h"

struct Turn { /* rotation per head; pos NULL: none */
    const int16_t *pos;
    View cos[3], sin[3];
    int pairs[3];
    unsigned half; /* pairs of a head; of 32 bits, for GPUs divide those far faster */

    /* Angle of pair `pair` (counted over the whole row) of row r; false: it does not turn. */
    DEVICE bool angle(int64_t r, int64_t pair, float *c, float *s) const
    {
        if (!pos || pos[3 * r] < 0) return false;
        int i = (int)((unsigned)pair % half);
        for (int axis = 0; axis < 3; axis++) {
            if (i < pairs[axis]) {
                *c = get(cos[axis], pos[3 * r + axis], i);
                *s = get(sin[axis], pos[3 * r + axis], i);
                return true;
            }
            i -= pairs[axis];
        }
        return false;
    }
    /* Element c of the row whose elements f(c) are turned forward (sign 1) or back (-1). */
    template <class F> DEVICE float turned(int64_t r, int64_t c, float sign, const F &f) const
    {
        float co, si;
        if (!angle(r, c / 2, &co, &si)) return f(c);
        si *= sign;
        return c % 2 ? f(c - 1) * si + f(c) * co : f(c) * co - f(c + 1) * si;
    }
};

static inline Turn turn_of(struct tensor pos, const struct rope *rope, int64_t C, int heads)
{
    Turn t = {};
    t.half = 1;
    if (!pos.data) return t;
    CHECK(heads > 0, "rotation of %lld columns in %d heads", (long long)C, heads);
    t.half = (unsigned)(C / heads / 2);
    CHECK(pos.dtype == DT_I16 && rope && C % (2 * heads) == 0, "rotation: pos is i16, heads even");
    t.pos = (const int16_t *)pos.data;
    for (int axis = 0; axis < 3; axis++) {
        t.pairs[axis] = rope->pairs[axis];
        t.cos[axis] = view(rope->cos[axis]);
        t.sin[axis] = view(rope->sin[axis]);
    }
    return t;
}

/* a + b rounded by itself: a compiler may join a product and a sum where both are in one kernel,
 * and cannot where each is in its own; their bits would differ. */
static DEVICE float sum_rn(float a, float b)
{
#ifdef CUDA_EMULATE
    const volatile float x = a, y = b;
    return x + y;
#else
    return __fadd_rn(a, b);
#endif
}

struct RowMap { /* which row goes to row r; negative: none. NULL: row r */
    const int32_t *from;
    DEVICE int64_t operator[](int64_t r) const { return from ? from[r] : r; }
};
static inline RowMap row_map(struct tensor map)
{
    CHECK(!map.data || map.dtype == DT_I32, "a row map is i32, not %s", dtype_name(map.dtype));
    return RowMap{(const int32_t *)map.data};
}

/* The same ops on packs of eight elements; false: widths, strides or addresses are not multiples of
 * a pack, or a row is longer than a block can keep. */
bool wide_cast(struct dev *d, struct tensor dst, struct tensor src);
bool wide_norm_rope_fwd(struct dev *d, const struct norm_rope_args *a);
bool wide_norm_rope_bwd(struct dev *d, const struct norm_rope_grad_args *a);
bool wide_ln_fwd(struct dev *d, const struct ln_args *a);
bool wide_ln_bwd(struct dev *d, const struct ln_grad_args *a, bool add); /* add: dx += */
bool wide_gate_add_fwd(struct dev *d, const struct gate_add_args *a);
bool wide_gate_add_bwd(struct dev *d, const struct gate_add_grad_args *a);
bool wide_gate_add_ln_fwd(struct dev *d, const struct gate_add_ln_args *a);
bool wide_gate_add_ln_bwd(struct dev *d, const struct gate_add_ln_grad_args *a); /* with a gate */
#endif
