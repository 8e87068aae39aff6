/* What the plain C ops of the cpu device share: elements of any floating dtype, blocks of rows,
 * patch features, normals. */
#ifndef CORE_CPU_LATENT_H
#define CORE_CPU_LATENT_H
#include <math.h>

#include "core/bf16.h"
#include "core/cpu/cpu.h"

enum { ROWS = 64 }; /* of one task */

static inline double get(struct tensor t, int64_t i)
{
    return t.dtype == DT_F32    ? (double)((const float *)t.data)[i]
           : t.dtype == DT_BF16 ? (double)bf16_to(((const uint16_t *)t.data)[i])
                                : ((const double *)t.data)[i];
}

static inline void set(struct tensor t, int64_t i, double v)
{
    if (t.dtype == DT_F32)
        ((float *)t.data)[i] = (float)v;
    else if (t.dtype == DT_BF16)
        ((uint16_t *)t.data)[i] = bf16_from((float)v);
    else
        ((double *)t.data)[i] = v;
}

static inline void expect_float(struct tensor t, const char *what)
{
    CHECK(t.dtype == DT_F32 || t.dtype == DT_BF16 || t.dtype == DT_F64, "%s: %s", what,
          dtype_name(t.dtype));
}

static inline int64_t end_row(int64_t task, int64_t rows)
{
    return (task + 1) * ROWS < rows ? (task + 1) * ROWS : rows;
}
static inline int64_t row_tasks(int64_t rows) { return (rows + ROWS - 1) / ROWS; }

static inline int64_t feature(enum patch_order order, int64_t channels, int64_t ch, int64_t yx)
{
    return order == PATCH_IN ? ch * 4 + yx : yx * channels + ch;
}

/* Normals index and index + 1, index even: they share one radius and one angle. */
static inline void normal_pair(struct rng_stream s, uint64_t index, float out[2])
{
    const uint64_t q = index / 4;
    const uint32_t counter[4] = {(uint32_t)q, (uint32_t)(q >> 32), 0, 0};
    uint32_t w[4];
    philox(w, counter, s.k0, s.k1);
    const uint32_t *u = w + index % 4;
    const double r = sqrt(-2 * log(((double)u[0] + 0.5) * 0x1p-32));
    const double angle = 2 * M_PI * (((double)u[1] + 0.5) * 0x1p-32);
    out[0] = (float)(r * cos(angle));
    out[1] = (float)(r * sin(angle));
}

/* Normals index and index + 1. */
static inline void normal_two(struct rng_stream s, uint64_t index, float out[2])
{
    if (index % 2 == 0) {
        normal_pair(s, index, out);
        return;
    }
    out[0] = (float)rng_normal_at(s, index);
    out[1] = (float)rng_normal_at(s, index + 1);
}
#endif
