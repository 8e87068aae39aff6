/* A stand-in for core/cuda/cudnn.c: plain loops over the memory that the shape and the addresses
 * describe, for tests of what calls it on the emulated device. */
#ifndef TESTS_FAKE_CUDNN_H
#define TESTS_FAKE_CUDNN_H
#include <stddef.h>

#include "core/cuda/cudnn.h"
struct cudnn {
    int calls;
    int64_t most_batch;
    int64_t refused_len; /* q_len of shapes it has no plan for */
    size_t most_room;    /* bytes of the blocks that calls were given; their first part is lse */
};
#endif
