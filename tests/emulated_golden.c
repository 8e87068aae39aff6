/* Linked into a golden test, this makes it run on the kernels of the cuda device as host code,
 * under the name and so the bounds of the device itself, and on nothing else. */
#include "tests/golden.h"

extern const struct dev_backend dev_cuda_emulated;

__attribute__((constructor)) static void enter(void)
{
    static struct dev_backend named;
    named = dev_cuda_emulated;
    named.name = "cuda";
    dev_register(&named);
    golden_only = named.name;
}
