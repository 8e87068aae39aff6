/* Attention by cuDNN, opened at run time: OSP_CUDNN names its file, or libcudnn.so.9 is looked for
 * by the loader; so are cuBLASLt and NVRTC (OSP_NVRTC names its folder), and beside cuDNN as pip
 * lays them out. Host code in C: it builds the two operation graphs (forward with statistics;
 * backward), lets the library choose an engine, and keeps the plan of every shape it has seen.
 * bf16, no mask. Plans can be made for a GPU that is not there, from a description. */
#ifndef CORE_CUDA_CUDNN_H
#define CORE_CUDA_CUDNN_H
#include <stdbool.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

struct cudnn;
struct err;
enum sdpa_tensor {
    SDPA_Q,
    SDPA_K,
    SDPA_V,
    SDPA_O,
    SDPA_FORWARD, /* tensors of the forward pass; the backward pass has all */
    SDPA_DO = SDPA_FORWARD,
    SDPA_DQ,
    SDPA_DK,
    SDPA_DV,
    SDPA_TENSORS
};
/* What a plan is made for. Plans are found by its bytes: members that do not apply are 0. */
struct sdpa_shape {
    int64_t batch, heads, q_len, k_len, dim, backward;
    /* elements from one batch entry, head and row to the next; those of a head lie together */
    int64_t stride[SDPA_TENSORS][3];
};
/* Bytes of workspace that no plan has been seen to exceed (test_cudnn): for planning ahead. */
enum { SDPA_WORKSPACE = 1024 };
struct sdpa_call { /* addresses of the device, multiples of 16 bytes */
    void *data[SDPA_TENSORS];
    void *lse;              /* f32 [batch, heads, q_len] */
    void *row_sum, *dq_sum; /* backward: room for f32 [batch, heads, q_len], and the same by dim */
    void *workspace;
    float scale;
};

/* properties: JSON text of a GPU to make plans for (they cannot be run); NULL: the GPU of this
 * thread. NULL with the reason: no library, too old, or it does not start here. */
struct cudnn *cudnn_open(const char *properties, struct err *why);
void cudnn_close(struct cudnn *c);
int cudnn_version(const struct cudnn *c); /* 91900: 9.19.0 */
/* Engine configurations that the library offers for this shape; 0 with the reason. */
int cudnn_engines(struct cudnn *c, const struct sdpa_shape *s, struct err *why);
/* Bytes of workspace; -1 with the reason when there is no plan for this shape. */
int64_t cudnn_workspace(struct cudnn *c, const struct sdpa_shape *s, struct err *why);
/* Queues the work on the stream. False with the reason. */
bool cudnn_run(struct cudnn *c, const struct sdpa_shape *s, const struct sdpa_call *call,
               void *stream, struct err *why);

#ifdef __cplusplus
}
#endif
#endif
