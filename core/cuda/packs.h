/* Private to rows_wide.cu: rows as packs of eight elements in registers, and sums down the columns
 * over chunks of rows. */
#ifndef CORE_CUDA_PACKS_H
#define CORE_CUDA_PACKS_H
#include <initializer_list>

#include "core/cuda/rows.h"

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
    expect_aligned((const char *)v.p + at * (v.type == DT_BF16 ? 2 : 4));
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
    expect_aligned((const char *)v.p + at * (v.type == DT_BF16 ? 2 : 4));
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
bool fits(int64_t width, std::initializer_list<struct tensor> all)
{
    bool fit = packs_of(width) > 0;
    for (const struct tensor &t : all) fit = fit && whole_packs(t);
    return fit;
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

/* 32 columns of a sample; of its chunks every eighth by one thread, and the eight in order. */
struct AddChunks {
    enum { COLUMNS = 32, PARTS = 8 };
    struct Shared {
        double part[PARTS][COLUMNS];
    };
    Chunks c;
    View out;
    int kind;
    int64_t groups; /* of columns */

    DEVICE double sum(int64_t sample, int64_t col, int64_t first) const
    {
        double s = 0;
        for (int64_t k = first; k < c.chunks; k += PARTS)
            s += (double)c.part[((sample * c.chunks + k) * c.kinds + kind) * c.width + col];
        return s;
    }
    DEVICE void operator()(Block &b, Shared &sh, int64_t item) const
    {
        const int64_t sample = item / groups, col = item % groups * COLUMNS;
        for (int v = b.lane; v < PARTS * COLUMNS; v += b.lanes)
            if (col + v % COLUMNS < c.width)
                sh.part[v / COLUMNS][v % COLUMNS] = sum(sample, col + v % COLUMNS, v / COLUMNS);
        b.sync();
        for (int v = b.lane; v < COLUMNS && col + v < c.width; v += b.lanes) {
            double s = 0;
            for (int k = 0; k < PARTS; k++) s += sh.part[k][v];
            put_f64(out, sample, col + v, get_f64(out, sample, col + v) + s);
        }
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
    const int64_t groups = (c.width + AddChunks::COLUMNS - 1) / AddChunks::COLUMNS;
    blocks(d, batch * groups, AddChunks{c, flat(out), kind, groups});
}

} // namespace
#endif
