/* Linked into a golden test, this makes it run on the kernels of the cuda device as host code,
 * under the name and so the bounds of the device itself, and on nothing else. */
#include "tests/golden.h"

extern const struct dev_backend dev_cuda_emulated;
static struct dev_ops table;

static const struct dev_ops *ops(enum dtype compute)
{
    const struct dev_ops *emulated = dev_cuda_emulated.ops(compute);
    if (!emulated) return NULL;
    table = *emulated;
    table.name = "cuda"; /* by which dev_close finds what it has to free */
    return &table;
}

__attribute__((constructor)) static void enter(void)
{
    static struct dev_backend named;
    named = dev_cuda_emulated;
    named.name = "cuda";
    named.ops = ops;
    dev_register(&named);
    golden_only = named.name;
}
