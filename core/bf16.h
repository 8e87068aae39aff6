/* bfloat16: the upper half of a float; rounding to nearest even, NaN stays NaN. */
#ifndef CORE_BF16_H
#define CORE_BF16_H
#include <stdint.h>
#include <string.h>
static inline uint16_t bf16_from(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static inline float bf16_to(uint16_t b)
{
    const uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
#endif
