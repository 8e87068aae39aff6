/* The launch layer of the cuda device. A kernel is a small struct: its members are the arguments,
 * its call operator is the body. Three shapes are enough:
 *   each(d, n, f)    f(i) for every i < n, one thread each, in no particular order;
 *   blocks(d, n, f)  f(block, shared, i) for every i < n by one block of threads, which meet in
 *                    block.sync() and share an object of type F::Shared; the body must be right
 *                    for any number of lanes;
 *   warps(d, n, f)   the same with F::WARPS full warps, whose lanes may use what warp.h has.
 * With CUDA_EMULATE the same sources are host C++ (tests/cudasim): threads are loops (each) or
 * fibers that change at barriers, and the tests run the kernels without a GPU. A barrier that not
 * all lanes reach is an error there.
 * The kernels of this folder use no atomics: what is added in no fixed order has other bits in
 * every run. For one that counts, say, the simulator has atomicAdd. */
#ifndef CORE_CUDA_LAUNCH_H
#define CORE_CUDA_LAUNCH_H
#include <math.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define _Noreturn [[noreturn]]
extern "C" {
#include "core/dev.h"
}
#undef _Noreturn

#ifdef CUDA_EMULATE
#define DEVICE inline
#define UNROLL
enum { MAX_LANES = 4 };
#else
#include <cuda_runtime.h>
#define DEVICE __device__ inline
#define UNROLL _Pragma("unroll")
enum { MAX_LANES = 256 };
#endif

enum { WARP = 32 };
struct Block {
    int lane, lanes;
#ifdef CUDA_EMULATE
    void sync();
    /* What every lane of the warp posted (n words), [lane][word]; valid until the next but one. */
    enum { WORDS = 8 };
    const uint32_t (*exchange(const uint32_t *mine, int n))[WORDS];
#else
    DEVICE void sync() { __syncthreads(); }
#endif
};

/* What is moved 16 bytes at once starts at a multiple of that: a GPU stops otherwise, and so does
 * the simulator. */
static DEVICE void expect_aligned(const void *p)
{
#ifdef CUDA_EMULATE
    CHECK((uintptr_t)p % 16 == 0, "16 bytes are moved at once at %p, which is no multiple of 16",
          p);
#else
    (void)p;
#endif
}

/* Sum and maximum over the lanes of a block, the same on every lane, by a tree of fixed shape.
 * buf: one element per lane. */
template <class T> DEVICE T block_sum(Block &b, T *buf, T x)
{
    b.sync(); /* the last reader of buf is done */
    buf[b.lane] = x;
    b.sync();
    for (int half = b.lanes / 2; half > 0; half /= 2) {
        if (b.lane < half) buf[b.lane] += buf[b.lane + half];
        b.sync();
    }
    return buf[0];
}
template <class T> DEVICE T block_max(Block &b, T *buf, T x)
{
    b.sync();
    buf[b.lane] = x;
    b.sync();
    for (int half = b.lanes / 2; half > 0; half /= 2) {
        if (b.lane < half && buf[b.lane + half] > buf[b.lane]) buf[b.lane] = buf[b.lane + half];
        b.sync();
    }
    return buf[0];
}

#ifdef CUDA_EMULATE

/* Lanes run one after the other. That a plain += should have been one is not seen. */
template <class T> T atomicAdd(T *at, T x)
{
    const T old = *at;
    *at = old + x;
    return old;
}

template <class F> void each(struct dev *, int64_t n, const F &f)
{
    for (int64_t i = 0; i < n; i++) f(i);
}

/* Runs body(arg, block) on every lane; lanes 0: as many as the simulator likes. */
void emulate_block(void (*body)(void *arg, Block &b), void *arg, int lanes);

template <class F> struct EmulatedBlock {
    const F &f;
    typename F::Shared shared;
    int64_t i;
    static void run(void *arg, Block &b)
    {
        EmulatedBlock &e = *(EmulatedBlock *)arg;
        e.f(b, e.shared, e.i);
    }
};
template <class F> void emulate_blocks(int64_t n, const F &f, int lanes)
{
    for (int64_t i = 0; i < n; i++) {
        EmulatedBlock<F> e{f, {}, i};
        memset(&e.shared, 0x7f, sizeof e.shared); /* shared memory starts with anything */
        emulate_block(EmulatedBlock<F>::run, &e, lanes);
    }
}
template <class F> void blocks(struct dev *, int64_t n, const F &f) { emulate_blocks(n, f, 0); }
template <class F> void warps(struct dev *, int64_t n, const F &f)
{
    emulate_blocks(n, f, F::WARPS * (int)WARP);
}
/* The thread sanitizer does not follow a change of stacks: there are no warps under it. */
#if defined(__SANITIZE_THREAD__)
enum { HAVE_WARPS = 0 };
#else
enum { HAVE_WARPS = 1 };
#endif

#else

/* The stream of d, after making its GPU the current one of this thread. */
cudaStream_t cuda_stream(struct dev *d);
void cuda_check(cudaError_t e, const char *what);

template <class F> __global__ void each_kernel(F f, int64_t n)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) f(i);
}
template <class F> __global__ void __launch_bounds__(MAX_LANES) blocks_kernel(F f, int64_t n)
{
    __shared__ typename F::Shared shared;
    Block b = {(int)threadIdx.x, (int)blockDim.x};
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        b.sync(); /* the shared object of the item before is no longer read */
        f(b, shared, i);
    }
}

/* Shared memory is dynamic: beyond 48 KiB it must be. */
template <class F>
__global__ void __launch_bounds__(F::WARPS *(int)WARP) warps_kernel(F f, int64_t n)
{
    extern __shared__ __align__(16) unsigned char memory[];
    typename F::Shared &shared = *reinterpret_cast<typename F::Shared *>(memory);
    Block b = {(int)threadIdx.x, (int)blockDim.x};
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        b.sync();
        f(b, shared, i);
    }
}
enum { HAVE_WARPS = 1 };

template <class F> void each(struct dev *d, int64_t n, const F &f)
{
    if (n <= 0) return;
    const int64_t want = (n + MAX_LANES - 1) / MAX_LANES, most = 1 << 20;
    cudaStream_t stream = cuda_stream(d);
    each_kernel<F><<<(unsigned)(want < most ? want : most), MAX_LANES, 0, stream>>>(f, n);
    cuda_check(cudaGetLastError(), __PRETTY_FUNCTION__);
}
template <class F> void blocks(struct dev *d, int64_t n, const F &f)
{
    if (n <= 0) return;
    const int64_t most = 1 << 20;
    cudaStream_t stream = cuda_stream(d);
    blocks_kernel<F><<<(unsigned)(n < most ? n : most), MAX_LANES, 0, stream>>>(f, n);
    cuda_check(cudaGetLastError(), __PRETTY_FUNCTION__);
}

template <class F> void warps(struct dev *d, int64_t n, const F &f)
{
    if (n <= 0) return;
    const int64_t most = 1 << 30;
    cudaStream_t stream = cuda_stream(d);
    const int bytes = (int)sizeof(typename F::Shared);
    cuda_check(
        cudaFuncSetAttribute(warps_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        __PRETTY_FUNCTION__);
    warps_kernel<F><<<(unsigned)(n < most ? n : most), F::WARPS *(int)WARP, bytes, stream>>>(f, n);
    cuda_check(cudaGetLastError(), __PRETTY_FUNCTION__);
}

#endif
#endif
