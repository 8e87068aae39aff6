/* The kernels of the cuda device, compiled for the host, on the cases of test_ops: their logic is
 * tested where there is no GPU. */
#include "core/dev.h"

int test_ops_main(int argc, char **argv);
#define main test_ops_main
#include "tests/test_ops.c"
#undef main

extern const struct dev_backend dev_cuda_emulated;

int main(int argc, char **argv)
{
    dev_register(&dev_cuda_emulated);
    ops_only = dev_cuda_emulated.name;
    return test_ops_main(argc, argv);
}
