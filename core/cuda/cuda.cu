/* The cuda device: the GPU of this rank, its stream, memory and copies, and the way in. */
#include "core/cuda/private.h"

#include <stdio.h>
#include <stdlib.h>

extern "C" {
#include "core/log.h"
}

enum : size_t { STAGE = 8 << 20 }; /* bytes of a pinned buffer */

struct Cuda *cuda_of(struct dev *d)
{
    struct Cuda *c = (struct Cuda *)d->impl;
    cuda_check(cudaSetDevice(c->gpu), "choosing the GPU"); /* it is a property of the thread */
    return c;
}

cudaStream_t cuda_stream(struct dev *d) { return cuda_of(d)->stream; }

void cuda_check(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    err_stop(RC_HARDWARE, "CUDA: %s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e));
}

/* ---- memory -------------------------------------------------------------------------------- */

void *cuda_alloc(struct dev *d, size_t bytes)
{
    void *p = NULL;
    cuda_of(d);
    const cudaError_t e = cudaMalloc(&p, bytes ? bytes : 256);
    if (e == cudaErrorMemoryAllocation) {
        size_t left = 0, all = 0;
        cudaGetLastError();
        cudaMemGetInfo(&left, &all);
        err_stop(RC_TEMP, "out of GPU memory: %zu MiB asked, %zu of %zu MiB free", bytes >> 20,
                 left >> 20, all >> 20);
    }
    cuda_check(e, "cudaMalloc");
    return p;
}

/* cudaFree waits for the kernels that may still use the memory. */
void cuda_free(struct dev *d, void *p)
{
    cuda_of(d);
    cuda_check(cudaFree(p), "cudaFree");
}

void cuda_copy(struct dev *d, void *dst, const void *src, size_t bytes)
{
    if (!bytes) return;
    cuda_check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_stream(d)), "copy");
}

void cuda_to_host(struct dev *d, void *dst, const void *src, size_t bytes)
{
    staged_to_host(d, &cuda_of(d)->staging, dst, src, bytes);
    if (!bytes) cuda_sync(d);
}

/* The caller may change its array at once. */
void cuda_from_host(struct dev *d, void *dst, const void *src, size_t bytes)
{
    staged_from_host(d, &cuda_of(d)->staging, dst, src, bytes);
}

char *cuda_pinned(struct dev *d, size_t bytes)
{
    void *p = NULL;
    cuda_of(d);
    const cudaError_t e = cudaHostAlloc(&p, bytes, cudaHostAllocDefault);
    if (e == cudaErrorMemoryAllocation)
        err_stop(RC_TEMP,
                 "no %zu MiB of host memory can be pinned for copies to the GPU (%s); see "
                 "ulimit -l and the memory limit of the job",
                 bytes >> 20, cudaGetErrorString(e));
    cuda_check(e, "pinning host memory");
    return (char *)p;
}

void cuda_copy_async(struct dev *d, void *dst, const void *src, size_t bytes, bool to_device)
{
    const enum cudaMemcpyKind kind = to_device ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
    cuda_check(cudaMemcpyAsync(dst, src, bytes, kind, cuda_stream(d)),
               to_device ? "copy from the host" : "copy to the host");
}

void cuda_mark(struct dev *d, int which)
{
    struct Cuda *c = cuda_of(d);
    cuda_check(cudaEventRecord(c->mark[which], c->stream), "recording the end of a copy");
}

void cuda_wait_mark(struct dev *d, int which)
{
    cuda_check(cudaEventSynchronize(cuda_of(d)->mark[which]), "waiting for a copy");
}

void cuda_sync(struct dev *d)
{
    cuda_check(cudaStreamSynchronize(cuda_stream(d)), "waiting for the GPU");
}

/* Grows and stays. Ops of one stream run one after the other, so they share it. */
void *cuda_scratch(struct dev *d, size_t bytes)
{
    struct Cuda *c = cuda_of(d);
    if (bytes > c->scratch_bytes) {
        void *old = c->scratch;
        c->scratch = NULL;
        c->scratch_bytes = 0;
        if (old) cuda_free(d, old);
        c->scratch = cuda_alloc(d, bytes);
        c->scratch_bytes = bytes;
        dev_own(d, cublaslt_bytes() + bytes);
    }
    return c->scratch;
}

void *cuda_queue(struct dev *d) { return cuda_stream(d); }

struct cudnn *cuda_sdpa(struct dev *d)
{
    struct Cuda *c = cuda_of(d);
    struct err why = {};
    if (c->sdpa_tried) return c->sdpa;
    c->sdpa_tried = true;
    c->sdpa = cudnn_open(NULL, &why);
    if (c->sdpa)
        log_info("attention by cuDNN %d.%d.%d", cudnn_version(c->sdpa) / 10000,
                 cudnn_version(c->sdpa) / 100 % 100, cudnn_version(c->sdpa) % 100);
    else
        log_warn("attention by own kernels, slow: %s", why.msg);
    return c->sdpa;
}

/* ---- start and stop ------------------------------------------------------------------------ */

static bool start(struct dev *d, struct err *e)
{
    (void)e;
    struct Cuda *c = (struct Cuda *)calloc(1, sizeof *c);
    CHECK(c, "out of memory");
    int gpus = 0;
    cuda_check(cudaGetDeviceCount(&gpus), "counting the GPUs");
    CHECK(gpus > 0, "the GPUs are gone");
    c->gpu = dev_local_rank() % gpus;
    c->staging.size = STAGE;
    d->impl = c;
    cuda_of(d);
    cuda_check(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "creating a stream");
    for (int i = 0; i < 2; i++)
        cuda_check(cudaEventCreateWithFlags(&c->mark[i], cudaEventDisableTiming),
                   "creating an event");
    cublaslt_open(c);
    dev_own(d, cublaslt_bytes());
    return true;
}

static void stop(struct dev *d)
{
    struct Cuda *c = cuda_of(d);
    cudaStreamSynchronize(c->stream);
    cudnn_close(c->sdpa);
    cublaslt_close(c);
    cudaFree(c->scratch);
    for (int i = 0; i < 2; i++) {
        cudaFreeHost(c->staging.buffer[i]);
        cudaEventDestroy(c->mark[i]);
    }
    cudaStreamDestroy(c->stream);
    free(c);
}

static void describe(struct dev *d, char *out, size_t size)
{
    const struct Cuda *c = cuda_of(d);
    cudaDeviceProp p;
    int driver = 0;
    cuda_check(cudaGetDeviceProperties(&p, c->gpu), "reading the properties of the GPU");
    cudaDriverGetVersion(&driver);
    snprintf(out, size, "cuda %s | GPU %d: %s, %zu GiB | driver for CUDA %d.%d | gemm %s",
             dtype_name(d->compute), c->gpu, p.name, p.totalGlobalMem >> 30, driver / 1000,
             driver % 1000 / 10, cublaslt_name());
}

static const struct dev_ops *ops(enum dtype compute)
{
    return compute == DT_F32 || compute == DT_BF16 ? &cuda_ops : NULL;
}

/* ---- queues for transports ------------------------------------------------------------------ */

/* A transport's kernels are small and others wait for them: they go first. */
static void *queue_open(struct dev *d)
{
    int least = 0, greatest = 0;
    cudaStream_t s;
    cuda_of(d);
    cuda_check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities of streams");
    cuda_check(cudaStreamCreateWithPriority(&s, cudaStreamNonBlocking, greatest),
               "creating a stream");
    return s;
}

static void queue_close(struct dev *d, void *queue)
{
    cuda_of(d);
    cuda_check(cudaStreamDestroy((cudaStream_t)queue), "ending a stream");
}

static void *event_new(struct dev *d)
{
    cudaEvent_t e;
    cuda_of(d);
    cuda_check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "creating an event");
    return e;
}

static void event_drop(struct dev *d, void *event)
{
    cuda_of(d);
    cuda_check(cudaEventDestroy((cudaEvent_t)event), "ending an event");
}

static cudaStream_t queue_of(struct dev *d, void *queue)
{
    cudaStream_t own = cuda_stream(d); /* and the GPU of this thread */
    return queue ? (cudaStream_t)queue : own;
}

static void event_record(struct dev *d, void *event, void *queue)
{
    cuda_check(cudaEventRecord((cudaEvent_t)event, queue_of(d, queue)), "recording an event");
}

static void event_await(struct dev *d, void *queue, void *event)
{
    cuda_check(cudaStreamWaitEvent(queue_of(d, queue), (cudaEvent_t)event, 0),
               "waiting for an event");
}

static bool event_came(struct dev *d, void *event)
{
    cuda_of(d);
    const cudaError_t e = cudaEventQuery((cudaEvent_t)event);
    if (e == cudaErrorNotReady) {
        cudaGetLastError(); /* it is no error, and must not be found by the next kernel */
        return false;
    }
    cuda_check(e, "an event of a transport");
    return true;
}

static const struct dev_queues queues = {.open = queue_open,
                                         .close = queue_close,
                                         .event = event_new,
                                         .drop = event_drop,
                                         .record = event_record,
                                         .await = event_await,
                                         .came = event_came};

static size_t free_bytes(struct dev *d)
{
    size_t left = 0, all = 0;
    cuda_of(d);
    cuda_check(cudaMemGetInfo(&left, &all), "reading the free memory of the GPU");
    return left;
}

/* Scratch of the ops beside products and attention is less than theirs in any pass with both. */
static size_t own_bytes(struct dev *d, const struct gemm_args *g, const struct attn_grad_args *a)
{
    return cublaslt_bytes() + (g ? cuda_gemm_bytes(g) : cuda_attn_bwd_bytes(d, a));
}

static int units(void)
{
    int gpus = 0;
    return cudaGetDeviceCount(&gpus) == cudaSuccess ? gpus : 0;
}

/* By UUID, which slices of one GPU have too. */
static bool unit_name(char out[DEV_UNIT_NAME])
{
    cudaDeviceProp p;
    const int gpus = units();
    if (!gpus || cudaGetDeviceProperties(&p, dev_local_rank() % gpus) != cudaSuccess) return false;
    for (int i = 0; i < 16; i++) snprintf(out + 2 * i, 3, "%02x", (unsigned char)p.uuid.bytes[i]);
    return true;
}

static const struct dev_backend backend = {.name = "cuda",
                                           .ops = ops,
                                           .start = start,
                                           .stop = stop,
                                           .describe = describe,
                                           .queues = &queues,
                                           .units = units,
                                           .unit_name = unit_name,
                                           .free_bytes = free_bytes,
                                           .own_bytes = own_bytes};

extern "C" __attribute__((visibility("default"))) dev_cuda_entry osp_cuda_backend;
const struct dev_backend *osp_cuda_backend(size_t sizes, struct err *why)
{
    if (sizes != DEV_CUDA_SIZES) {
        err_set(why, RC_SOFTWARE, "libosp_cuda.so is of another build; make CUDA=1");
        return NULL;
    }
    int gpus = 0;
    const cudaError_t e = cudaGetDeviceCount(&gpus);
    if (e == cudaErrorInsufficientDriver || e == cudaErrorNoDevice || (e == cudaSuccess && !gpus)) {
        int driver = 0;
        cudaDriverGetVersion(&driver);
        const bool old = e == cudaErrorInsufficientDriver && driver;
        err_set(why, old ? RC_SOFTWARE : RC_CONFIG, "%s: %s",
                e != cudaErrorInsufficientDriver ? "no GPU"
                : old                            ? "the NVIDIA driver is too old"
                                                 : "no NVIDIA driver",
                cudaGetErrorString(e));
    } else if (e != cudaSuccess) {
        err_set(why, RC_HARDWARE, "no usable GPU: %s", cudaGetErrorString(e));
    }
    return e == cudaSuccess && gpus > 0 ? &backend : NULL;
}
