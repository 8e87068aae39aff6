#if defined(__x86_64__)
#include <immintrin.h>
/* -DWIDE_VECTORS: the tile sizes of AVX-512 on AVX2 registers (slow; a test of that algorithm for
 * machines without AVX-512). */
#ifdef WIDE_VECTORS
#define VW 16
#define MR 12
#else
#define VW 8
#define MR 6
#define VMAX(a, b) ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#endif
#define KERNELS cpu_kernels_avx2
#define ISA_NAME "AVX2"
#include "core/cpu/ops.inc"
#else
typedef int not_for_this_machine;
#endif
