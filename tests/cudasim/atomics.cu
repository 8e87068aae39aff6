/* A kernel with atomics, for the test of the simulator: the device's own kernels have none. */
#include "core/cuda/cuda.h"

namespace
{
struct Count {
    const int32_t *x;
    unsigned *bins;
    float *sum;
    DEVICE void operator()(int64_t i) const
    {
        atomicAdd(&bins[x[i]], 1u);
        atomicAdd(sum, (float)x[i]);
    }
};
struct Places { /* every lane of every block takes a place of its own */
    struct Shared {
        int taken;
    };
    int32_t *owner;
    int *next;
    DEVICE void operator()(Block &b, Shared &s, int64_t) const
    {
        if (b.lane == 0) s.taken = 0;
        b.sync();
        atomicAdd(&s.taken, 1);
        b.sync();
        owner[atomicAdd(next, 1)] = s.taken;
    }
};
} // namespace

extern "C" void emulated_count(struct dev *d, const int32_t *x, int64_t n, unsigned *bins,
                               float *sum);
void emulated_count(struct dev *d, const int32_t *x, int64_t n, unsigned *bins, float *sum)
{
    each(d, n, Count{x, bins, sum});
}
extern "C" int emulated_places(struct dev *d, int64_t blocks_wanted, int32_t *owner, int *next);
int emulated_places(struct dev *d, int64_t blocks_wanted, int32_t *owner, int *next)
{
    blocks(d, blocks_wanted, Places{owner, next});
    return MAX_LANES;
}
