/* Random numbers and patches inside kernels. */
#ifndef CORE_CUDA_LATENT_H
#define CORE_CUDA_LATENT_H
#include "core/cuda/cuda.h"

static DEVICE double uniform_of(uint32_t w) { return ((double)w + 0.5) * (1.0 / 4294967296.0); }

/* The four words of the group of four that holds index. */
static DEVICE void draw_four(struct rng_stream s, uint64_t index, uint32_t c[4])
{
    uint32_t k0 = s.k0, k1 = s.k1;
    c[0] = (uint32_t)(index / 4);
    c[1] = (uint32_t)(index / 4 >> 32);
    c[2] = c[3] = 0;
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c[0];
        const uint64_t p1 = (uint64_t)0xCD9E8D57u * c[2];
        c[0] = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
        c[1] = (uint32_t)p1;
        c[2] = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[3] = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

static DEVICE float normal_at(struct rng_stream s, uint64_t index)
{
    uint32_t w[4];
    draw_four(s, index, w);
    const int pair = (int)(index % 4) / 2 * 2;
    const double r = sqrt(-2 * log(uniform_of(w[pair])));
    const double angle = 2 * 3.14159265358979323846 * uniform_of(w[pair + 1]);
    return (float)(index % 2 ? r * sin(angle) : r * cos(angle));
}

struct Patches { /* rows [n, 4C] of latents x [B,C,T,H,W] */
    View rows, x;
    const int16_t *pos;
    int64_t per, C, T, H, W; /* per: rows of a sample */
    int order;

    /* Element of x in feature f of row r; -1: padding. */
    DEVICE int64_t element(int64_t r, int64_t f) const
    {
        const int16_t *p = pos + 3 * r;
        if (p[0] < 0) return -1;
        const int64_t ch = order == PATCH_IN ? f / 4 : f % C;
        const int64_t yx = order == PATCH_IN ? f % 4 : f / C;
        const int64_t h = 2 * (int64_t)p[1] + yx / 2, w = 2 * (int64_t)p[2] + yx % 2;
        return (((r / per * C + ch) * T + p[0]) * H + h) * W + w;
    }
};
#endif
