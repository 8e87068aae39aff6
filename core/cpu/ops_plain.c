/* Any machine: vectors of four floats, which the compiler maps to what there is. */
#define VW 4
#define MR 6
#define KERNELS cpu_kernels_plain
#define ISA_NAME "plain C"
#include "core/cpu/ops.inc"
