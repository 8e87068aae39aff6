#if defined(__x86_64__)
#include <immintrin.h>
#define VW 16
#define MR 12
#define VMAX(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define KERNELS cpu_kernels_avx512
#define ISA_NAME "AVX-512"
#include "core/cpu/ops.inc"
#else
typedef int not_for_this_machine;
#endif
