/* Private to the cpu device. Every op is written once, in the .inc files, on vectors of VW floats;
 * ops_plain.c, ops_avx2.c and ops_avx512.c compile them for one instruction set each and export
 * one table. cpu.c chooses the table at run time.
 *
 * Work is cut into tasks by the shape alone and each task sums in a fixed order, so results do
 * not depend on the number of threads. All threading goes through par_run. */
#ifndef CORE_CPU_CPU_H
#define CORE_CPU_CPU_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/dev.h"

#define PRAGMA_(x) _Pragma(#x)
#define PRAGMA(x) PRAGMA_(x)
#ifdef _OPENMP
#define SIMD PRAGMA(omp simd)
#define SIMD_SUM(...) PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#else
#define SIMD
#define SIMD_SUM(...)
#endif
#if defined(__clang__)
#define UNROLL(n) PRAGMA(unroll n)
#else
#define UNROLL(n) PRAGMA(GCC unroll n)
#endif
#define ALWAYS_INLINE inline __attribute__((always_inline))

/* Part of c = alpha * op(a) op(b) + beta * c in f32: rows [m0, m0+m), columns [n0, n0+n). */
struct gemm_part {
    const struct gemm_args *g;
    int64_t m0, n0, m, n, k;
    float *c;
    int64_t ldc;
    float alpha, beta;
};

struct kernels {
    const char *name;
    struct dev_ops ops;
    void (*gemm)(struct dev *d, const struct gemm_args *g); /* all but the bias gradient */
    /* acc: f32 [m, n] at row m0, column n0 of c (acc may be c itself): adds beta * c, applies the
     * epilogue, rounds */
    void (*gemm_finish)(const struct gemm_args *g, const struct gemm_part *p, float *acc,
                        int64_t ld);
    void (*colsum)(struct dev *d, struct tensor sum, struct tensor x); /* sum [C] += */
    /* what they ask of cpu_pack */
    size_t (*gemm_bytes)(const struct gemm_args *g);
    size_t (*attn_bwd_bytes)(const struct attn_grad_args *a);
};
extern const struct kernels cpu_kernels_plain, cpu_kernels_avx2, cpu_kernels_avx512;

/* bf16 on matrix units (mx.inc). */
struct cpu;
struct mx_kernels {
    const char *name;
    void (*attn_fwd)(struct dev *d, const struct attn_args *a);
    void (*attn_bwd)(struct dev *d, const struct attn_grad_args *a);
    void (*gemm)(struct dev *d, const struct gemm_args *g); /* all but the bias gradient */
    /* what they ask of cpu_pack */
    size_t (*gemm_bytes)(const struct cpu *c, const struct gemm_args *g);
    size_t (*attn_bwd_bytes)(const struct attn_grad_args *a);
};
extern const struct mx_kernels cpu_mx_amx, cpu_mx_emulated;
bool cpu_has_amx(void); /* and the kernel of the operating system lets this process use it */

struct dnnl_cache;
enum gemm_engine { GEMM_OWN, GEMM_BLAS, GEMM_DNNL, GEMM_MX };
struct cpu { /* dev.impl */
    const struct kernels *k;
    const struct mx_kernels *mx; /* NULL: no matrix units */
    int threads;
    enum gemm_engine f32, bf16, small_bf16; /* small: where packing does not pay */
    struct dnnl_cache *dnnl;
    void *pack; /* see cpu_pack */
    size_t pack_bytes;
};
static inline struct cpu *cpu_of(struct dev *d) { return d->impl; }

/* Runs f(arg, task, scratch) for every task, taken in rising order by up to `threads` threads.
 * scratch: 64-byte aligned, one per thread. */
void par_run(struct dev *d, int64_t tasks, size_t scratch,
             void (*f)(void *arg, int64_t task, void *scratch), void *arg);
void *cpu_scratch(size_t bytes); /* 64-byte aligned; free() */
/* Memory that the device keeps from call to call: fresh pages cost as much as filling them. */
void *cpu_pack(struct dev *d, size_t bytes);

/* gemm.c, gemm_dnnl.c */
void cpu_gemm(struct dev *d, const struct gemm_args *g);
size_t cpu_gemm_bytes(struct dev *d, const struct gemm_args *g); /* what it asks of cpu_pack */
struct dnnl_cache *dnnl_cache_open(void);                        /* NULL: not in this build */
void dnnl_cache_close(struct dnnl_cache *c);
bool dnnl_has_fast_bf16(void);
bool dnnl_gemm_part(struct dnnl_cache *c, const struct gemm_part *p);
const char *dnnl_name(void);

/* flow.c */
void cpu_sinusoid(struct dev *d, struct tensor out, const double *t);
void cpu_patch_rows(struct dev *d, struct tensor rows, struct tensor x, struct tensor pos,
                    enum patch_order order);
void cpu_unpatch_rows(struct dev *d, struct tensor x, struct tensor rows, struct tensor pos,
                      enum patch_order order);
void cpu_flow_rows(struct dev *d, const struct flow_args *a);
void cpu_flow_loss(struct dev *d, struct tensor sum, struct tensor dout, struct tensor pred,
                   struct tensor target, struct tensor pos, double scale);
void cpu_sample_step(struct dev *d, struct tensor x, struct tensor c, struct tensor u,
                     double guidance, double dsigma);
void cpu_rng_normal(struct dev *d, struct tensor x, struct rng_stream s, uint64_t first,
                    double std);
void cpu_rng_uniform(struct dev *d, struct tensor x, struct rng_stream s, uint64_t first, double lo,
                     double hi);
void cpu_dropout(struct dev *d, const struct dropout_args *a);

/* policy.c */
void cpu_solver_step(struct dev *d, const struct solver_step_args *a);
void cpu_transition_sums(struct dev *d, struct tensor sum, const struct transition_args *a);
void cpu_transition_grad(struct dev *d, struct tensor dc, struct tensor du,
                         const struct transition_args *a, const double *policy, const double *kl,
                         double gc, double gu);
void cpu_nft_sums(struct dev *d, struct tensor sum, const struct nft_args *a);
void cpu_nft_grad(struct dev *d, struct tensor dv, const struct nft_args *a, const double *plus,
                  const double *minus, const double *kl);

/* cpu.c */
void *cpu_alloc(struct dev *d, size_t bytes);
void cpu_free(struct dev *d, void *p);
void cpu_copy(struct dev *d, void *dst, const void *src, size_t bytes);
void cpu_sync(struct dev *d);
#endif
