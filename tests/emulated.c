/* Linked into a test of ops, this makes it run on the kernels of the cuda device as host code, and
 * on nothing else: their logic is tested where there is no GPU. */
#include "tests/ops_case.h"

extern const struct dev_backend dev_cuda_emulated;

__attribute__((constructor)) static void enter(void)
{
    dev_register(&dev_cuda_emulated);
    ops_only = dev_cuda_emulated.name;
}
