/* Matrix units of Intel CPUs: AMX, with AVX-512 beside it. */
#include "core/cpu/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define VW 16
#define VMAX(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#include "core/cpu/vec.inc"

/* The memory clobbers keep the compiler's own stores and loads in order with these. */
#define MX_ZERO(n) __asm__ volatile("tilezero %%tmm" #n ::)
#define MX_LOAD(n, p) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #n ::"r"(p), "r"((int64_t)64) : "memory")
#define MX_STORE(p, n) \
    __asm__ volatile("tilestored %%tmm" #n ", (%0,%1,1)" ::"r"(p), "r"((int64_t)64) : "memory")
#define MX_DOT(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

static void amx_begin(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    _Static_assert(sizeof shape == 64, "the operand of ldtilecfg");
    for (int i = 0; i < 8; i++) {
        shape.bytes[i] = 64;
        shape.rows[i] = 16;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shape));
}
#define MX_BEGIN() amx_begin()
/* Idle tiles would be saved at every switch of threads. */
#define MX_END() __asm__ volatile("tilerelease" ::)

static ALWAYS_INLINE vf mx_exp2(vf x)
{
    const vf t = x + EXP2_ROUND, n = t - EXP2_ROUND, f = x - n;
    vf p = EXP2_C4 + EXP2_C5 * f;
    p = EXP2_C3 + p * f;
    p = EXP2_C2 + p * f;
    p = EXP2_C1 + p * f;
    p = EXP2_C0 + p * f;
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
}

static ALWAYS_INLINE float vmax_lane(vf v) { return _mm512_reduce_max_ps((__m512)v); }

static ALWAYS_INLINE void round32(uint16_t *out, const vf *v)
{
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh((__m512)v[1], (__m512)v[0]));
}

static ALWAYS_INLINE void wide32(vf *v, const uint16_t *p)
{
    for (int i = 0; i < 2; i++) {
        const __m256i h = _mm256_loadu_si256((const __m256i *)(p + 16 * i));
        v[i] = (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
    }
}

/* 16 numbers of row a and of row b in turn */
static ALWAYS_INLINE void pair_rows(uint16_t *out, const uint16_t *a, const uint16_t *b)
{
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)a));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)b));
    _mm512_storeu_si512(out, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

/* 16 x 16 pairs of numbers transposed: halves, quarters, ... change places */
static ALWAYS_INLINE void turn_tile(uint16_t *out, const uint16_t *x, int64_t ld)
{
    __m512i v[16];
    UNROLL(16)
    for (int i = 0; i < 16; i++) v[i] = _mm512_loadu_si512(x + i * ld);
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    UNROLL(4)
    for (int k = 3; k >= 0; k--) {
        const int b = 1 << k;
        const __m512i bit = _mm512_set1_epi32(b), off = _mm512_set1_epi32(16 - b);
        const __mmask16 odd = _mm512_test_epi32_mask(lane, bit);
        const __m512i lo = _mm512_mask_add_epi32(lane, odd, lane, off);
        const __m512i hi =
            _mm512_mask_add_epi32(_mm512_add_epi32(lane, bit), odd, lane, _mm512_set1_epi32(16));
        UNROLL(16)
        for (int i = 0; i < 16; i++) {
            if (i & b) continue;
            const __m512i p = v[i], q = v[i + b];
            v[i] = _mm512_permutex2var_epi32(p, lo, q);
            v[i + b] = _mm512_permutex2var_epi32(p, hi, q);
        }
    }
    UNROLL(16)
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + i * 32, v[i]);
}

#include "core/cpu/attention_tasks.inc"
#include "core/cpu/mx.inc"
#include "core/cpu/mx_attention.inc"
#include "core/cpu/mx_attention_bwd.inc"
#include "core/cpu/mx_gemm.inc"

const struct mx_kernels cpu_mx_amx = {.name = "AMX",
                                      .attn_fwd = mx_attn_fwd,
                                      .attn_bwd = mx_attn_bwd,
                                      .gemm = mx_gemm,
                                      .gemm_bytes = mx_gemm_bytes,
                                      .attn_bwd_bytes = mx_attn_bwd_bytes};

bool cpu_has_amx(void)
{
    enum { REQ_XCOMP_PERM = 0x1023, XTILE_DATA = 18 }; /* <asm/prctl.h> of Linux 5.16 */
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(d & AMX_BF16) || !(d & AMX_TILE)) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1 << 5)) return false; /* AVX512-BF16 */
    return syscall(SYS_arch_prctl, REQ_XCOMP_PERM, XTILE_DATA) == 0;
}
#else
const struct mx_kernels cpu_mx_amx = {.name = "AMX"};
bool cpu_has_amx(void) { return false; }
#endif
