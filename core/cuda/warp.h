/* What the 32 lanes of a warp do together: shuffles, tiles of shared memory as operands of the
 * tensor units, and their product. Layouts are those of the PTX instructions ldmatrix and
 * mma.m16n8k16; g = lane / 4, t = lane % 4:
 *   A [16 rows][16]  a[0] (g, 2t..2t+1)  a[1] (g+8, 2t..)  a[2] (g, 2t+8..)  a[3] (g+8, 2t+8..)
 *   B [16][8 cols]   b0 (2t..2t+1, g)    b1 (2t+8.., g)
 *   C [16 rows][8]   c[0] (g, 2t)  c[1] (g, 2t+1)  c[2] (g+8, 2t)  c[3] (g+8, 2t+1)
 * A word holds two bf16, the lower index in the lower half. */
#ifndef CORE_CUDA_WARP_H
#define CORE_CUDA_WARP_H
#include "core/cuda/cuda.h"

static DEVICE uint32_t bf16_pair(float low, float high)
{
#ifdef CUDA_EMULATE
    return bf16_of_float(low) | (uint32_t)bf16_of_float(high) << 16;
#else
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}

/* x of the lane whose number differs by the bits of mask. */
static DEVICE float warp_xor(Block &b, float x, int mask)
{
#ifdef CUDA_EMULATE
    uint32_t word;
    memcpy(&word, &x, 4);
    const uint32_t(*all)[Block::WORDS] = b.exchange(&word, 1);
    memcpy(&x, &all[(b.lane % WARP) ^ mask][0], 4);
    return x;
#else
    (void)b;
    return __shfl_xor_sync(0xffffffffu, x, mask);
#endif
}

/* Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned).
 * r[m]: row g, columns 2t and 2t+1 of matrix m; turned: rows 2t and 2t+1, column g. */
template <bool TURNED> DEVICE void load_matrices(Block &b, uint32_t (&r)[4], const uint16_t *row)
{
#ifdef CUDA_EMULATE
    uint32_t mine[4];
    memcpy(mine, row, 16);
    const uint32_t(*all)[Block::WORDS] = b.exchange(mine, 4);
    const int g = b.lane % WARP / 4, t = b.lane % 4;
    for (int m = 0; m < 4; m++) {
        if (!TURNED) {
            r[m] = all[8 * m + g][t];
            continue;
        }
        const uint32_t *low = all[8 * m + 2 * t], *high = all[8 * m + 2 * t + 1];
        r[m] = (low[g / 2] >> g % 2 * 16 & 0xffff) | (high[g / 2] >> g % 2 * 16 & 0xffff) << 16;
    }
#else
    (void)b;
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    if (TURNED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
#endif
}

/* c += a b, sums in f32 */
static DEVICE void mma(Block &b, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
#ifdef CUDA_EMULATE
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const uint32_t(*all)[Block::WORDS] = b.exchange(mine, 6);
    const int g = b.lane % WARP / 4, t = b.lane % 4;
    for (int e = 0; e < 4; e++) {
        const int row = e / 2, col = 2 * t + e % 2; /* row: + 8 */
        for (int k = 0; k < 16; k++) {
            const int from = k % 8 / 2, half = k % 2 * 16;
            const uint32_t x = all[4 * g + from][row + k / 8 * 2] >> half & 0xffff;
            const uint32_t y = all[4 * col + from][4 + k / 8] >> half & 0xffff;
            c[e] += bf16_to_float((uint16_t)x) * bf16_to_float((uint16_t)y);
        }
    }
#else
    (void)b;
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/* ---- operands from a tile in shared memory, rows of LD elements ------------------------------ */

/* A: rows row.. of the tile, columns col.. */
template <int LD>
DEVICE void load_a(Block &b, uint32_t (&a)[4], const uint16_t (*tile)[LD], int row, int col)
{
    const int l = b.lane % WARP;
    load_matrices<false>(b, a, &tile[row + l % 16][col + l / 16 * 8]);
}
/* Two B side by side, of tile^T: rows of the tile are columns of B. r[0..1] the first, r[2..3] */
template <int LD>
DEVICE void load_b_rows(Block &b, uint32_t (&r)[4], const uint16_t (*tile)[LD], int row, int col)
{
    const int l = b.lane % WARP;
    load_matrices<false>(b, r, &tile[row + l % 8 + l / 16 * 8][col + l / 8 % 2 * 8]);
}
/* Two B side by side, of the tile itself. */
template <int LD>
DEVICE void load_b(Block &b, uint32_t (&r)[4], const uint16_t (*tile)[LD], int row, int col)
{
    const int l = b.lane % WARP;
    load_matrices<true>(b, r, &tile[row + l % 16][col + l / 16 * 8]);
}
/* A of 16 columns from two neighbouring C of 8 */
static DEVICE void a_of_c(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4])
{
    a[0] = bf16_pair(left[0], left[1]);
    a[1] = bf16_pair(left[2], left[3]);
    a[2] = bf16_pair(right[0], right[1]);
    a[3] = bf16_pair(right[2], right[3]);
}
#endif
