/* Private to cudnn.c: cuDNN and what it needs, opened at run time. */
#ifndef CORE_CUDA_CUDNN_LIB_H
#define CORE_CUDA_CUDNN_LIB_H
#include "core/cuda/cudnn_api.h"
#include "core/err.h"

struct cudnn_lib {
    void *so; /* to be closed; NULL: none */
    struct library call;
    struct err no_compiler; /* why NVRTC is not there */
};
/* l is zero; e: no library, one that is too old, or without what ends the process when missing. */
void cudnn_lib_open(struct cudnn_lib *l, struct err *why);
#endif
