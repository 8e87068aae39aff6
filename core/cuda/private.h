/* What the files that talk to CUDA itself share: the state behind a device. */
#ifndef CORE_CUDA_PRIVATE_H
#define CORE_CUDA_PRIVATE_H
#include "core/cuda/cuda.h"
extern "C" {
#include "core/cuda/staging.h"
}

struct Cuda { /* dev.impl */
    int gpu;
    cudaStream_t stream;
    void *scratch;
    size_t scratch_bytes;
    struct staging staging;
    cudaEvent_t mark[2];     /* of staging */
    struct Library *library; /* cublaslt.cu; NULL: not in this build */
    struct cudnn *sdpa;      /* opened when attention first wants it */
    bool sdpa_tried;
};
struct Cuda *cuda_of(struct dev *d);

size_t cublaslt_bytes(void); /* of GPU memory that it takes when it is opened */
void cublaslt_open(struct Cuda *c);
void cublaslt_close(struct Cuda *c);
const char *cublaslt_name(void);
#endif
