/* The cpu device: chooses the instruction set, owns memory and threads. */
#include "core/cpu/cpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

/* CPU_ISA=plain|avx2|avx512 asks for one instruction set (tests, measurements); one that the
 * machine lacks is an error. */
static const struct kernels *choose(void)
{
    const char *want = getenv("CPU_ISA");
    if (want && !*want) want = NULL;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool has2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has512 && (!want || strcmp(want, "avx512") == 0)) return &cpu_kernels_avx512;
    if (has2 && (!want || strcmp(want, "avx2") == 0)) return &cpu_kernels_avx2;
#endif
    if (want && strcmp(want, "plain") != 0)
        err_stop(RC_CONFIG, "CPU_ISA=%s: not on this machine (plain, avx2, avx512)", want);
    return &cpu_kernels_plain;
}

/* CPU_MX=no|amx|emulated asks for one kind of matrix units (tests, measurements). */
static const struct mx_kernels *choose_mx(const struct kernels *k)
{
    const char *want = getenv("CPU_MX");
    if (want && strcmp(want, "no") == 0) return NULL;
    if (want && strcmp(want, "emulated") == 0) return &cpu_mx_emulated;
    const bool amx = want && strcmp(want, "amx") == 0;
    if ((amx || k == &cpu_kernels_avx512) && cpu_has_amx()) return &cpu_mx_amx;
    if (amx) err_stop(RC_CONFIG, "CPU_MX=amx: not on this machine (no, emulated)");
    return NULL;
}

static const struct dev_ops *ops(enum dtype compute)
{
    return compute == DT_F32 || compute == DT_BF16 ? &choose()->ops : NULL;
}

static int default_threads(void)
{
    const char *env = getenv("OMP_NUM_THREADS");
    const int n = env ? atoi(env) : 0;
    if (n > 0) return n;
#ifdef _OPENMP
    return omp_get_num_procs(); /* honours the affinity mask of this rank */
#else
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
#endif
}

/* CPU_GEMM=own|blas|dnnl|mx asks for one engine (tests, measurements); mx and blas know one dtype
 * only. In f32 our own kernel is faster than OpenBLAS with AVX-512, and slower without
 * (docs/speed.md). */
static void choose_gemm(struct cpu *c)
{
    c->f32 = c->bf16 = GEMM_OWN;
#ifdef HAVE_OPENBLAS
    if (c->k != &cpu_kernels_avx512) c->f32 = GEMM_BLAS;
#endif
    if (dnnl_has_fast_bf16()) c->bf16 = GEMM_DNNL;
    c->small_bf16 = c->bf16;
    if (c->mx == &cpu_mx_amx) c->bf16 = GEMM_MX;
    const char *want = getenv("CPU_GEMM");
    if (want && strcmp(want, "own") == 0) c->f32 = c->bf16 = c->small_bf16 = GEMM_OWN;
#ifdef HAVE_OPENBLAS
    if (want && strcmp(want, "blas") == 0) c->f32 = GEMM_BLAS, c->bf16 = c->small_bf16 = GEMM_OWN;
#endif
    if (want && strcmp(want, "dnnl") == 0) c->f32 = c->bf16 = c->small_bf16 = GEMM_DNNL;
    if (want && strcmp(want, "mx") == 0 && c->mx) c->bf16 = c->small_bf16 = GEMM_MX;
    if (c->f32 == GEMM_DNNL || c->small_bf16 == GEMM_DNNL || c->bf16 == GEMM_DNNL)
        c->dnnl = dnnl_cache_open();
}

static bool start(struct dev *d, struct err *e)
{
    (void)e;
    struct cpu *c = calloc(1, sizeof *c);
    CHECK(c, "out of memory");
    c->k = choose();
    CHECK(d->ops == &c->k->ops, "CPU_ISA changed while a device was opened");
    c->mx = choose_mx(c->k);
    c->threads = d->threads > 0 ? d->threads : default_threads();
    choose_gemm(c);
    d->impl = c;
    return true;
}

static void stop(struct dev *d)
{
    struct cpu *c = cpu_of(d);
    if (c->dnnl) dnnl_cache_close(c->dnnl);
    free(c->pack);
    free(c);
}

static const char *engine_name(enum gemm_engine e)
{
#ifdef HAVE_OPENBLAS
    if (e == GEMM_BLAS) return openblas_get_config();
#endif
    return e == GEMM_DNNL ? dnnl_name() : e == GEMM_MX ? "own tiles" : "own";
}

static void describe(struct dev *d, char *out, size_t size)
{
    const struct cpu *c = cpu_of(d);
    const bool mx = c->mx && d->compute == DT_BF16;
    snprintf(out, size, "cpu %s | %s%s%s | %d thread%s | gemm %s: %s", dtype_name(d->compute),
             c->k->name, mx ? ", " : "", mx ? c->mx->name : "", c->threads,
             c->threads == 1 ? "" : "s", dtype_name(d->compute),
             engine_name(d->compute == DT_BF16 ? c->bf16 : c->f32));
}

/* ---- memory -------------------------------------------------------------------------------- */

/* Large memory in pages of 2 MB where the system grants them: heads and columns are read across
 * rows, one small page each, and the walks through the page tables cost more than the reads. */
enum { HUGE_PAGE = 2 << 20 };
static void *get_memory(size_t bytes, size_t align)
{
    const bool large = bytes >= HUGE_PAGE;
    void *p = NULL;
    if (posix_memalign(&p, large ? HUGE_PAGE : align, bytes ? bytes : align) != 0)
        err_stop(RC_TEMP, "out of host memory: %zu bytes", bytes);
#ifdef MADV_HUGEPAGE
    if (large) (void)madvise(p, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* or not */
#endif
    return p;
}

void *cpu_alloc(struct dev *d, size_t bytes)
{
    (void)d;
    return get_memory(bytes, 256);
}

void cpu_free(struct dev *d, void *p)
{
    (void)d;
    free(p);
}

void *cpu_scratch(size_t bytes) { return get_memory(bytes, 64); }

void *cpu_pack(struct dev *d, size_t bytes)
{
    struct cpu *c = cpu_of(d);
    if (bytes > c->pack_bytes) {
        free(c->pack);
        c->pack = cpu_scratch(bytes);
        c->pack_bytes = bytes;
        dev_own(d, bytes);
    }
    return c->pack;
}

static size_t own_bytes(struct dev *d, const struct gemm_args *g, const struct attn_grad_args *a)
{
    const struct cpu *c = cpu_of(d);
    if (g) return cpu_gemm_bytes(d, g);
    const bool mx = c->mx && a->q.dtype == DT_BF16;
    return mx ? c->mx->attn_bwd_bytes(a) : c->k->attn_bwd_bytes(a);
}

enum { COPY_TASK = 1 << 20 };
struct copy {
    char *dst;
    const char *src;
    size_t bytes;
};
static void copy_task(void *arg, int64_t task, void *scratch)
{
    (void)scratch;
    const struct copy *c = arg;
    const size_t from = (size_t)task * COPY_TASK, left = c->bytes - from;
    memcpy(c->dst + from, c->src + from, left < COPY_TASK ? left : COPY_TASK);
}

void cpu_copy(struct dev *d, void *dst, const void *src, size_t bytes)
{
    struct copy c = {dst, src, bytes};
    par_run(d, (int64_t)((bytes + COPY_TASK - 1) / COPY_TASK), 0, copy_task, &c);
}

void cpu_sync(struct dev *d) { (void)d; }

/* ---- threads ------------------------------------------------------------------------------- */

struct par {
    atomic_llong next;
    int64_t tasks;
    size_t scratch;
    void (*f)(void *arg, int64_t task, void *scratch);
    void *arg;
};

/* Scratch that a thread keeps until it ends: fresh pages cost more than many a task. */
struct kept {
    void *p;
    size_t bytes;
};
static pthread_key_t kept_key;
static void kept_free(void *arg)
{
    struct kept *k = arg;
    free(k->p);
    free(k);
}
static void kept_start(void) { CHECK(pthread_key_create(&kept_key, kept_free) == 0, "threads"); }

static void *thread_scratch(size_t bytes)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, kept_start);
    struct kept *k = pthread_getspecific(kept_key);
    if (!k) {
        k = calloc(1, sizeof *k);
        CHECK(k && pthread_setspecific(kept_key, k) == 0, "out of memory");
    }
    if (k->bytes < bytes) {
        free(k->p);
        if (bytes > HUGE_PAGE / 4) bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        k->p = cpu_scratch(bytes);
        k->bytes = bytes;
    }
    return k->p;
}

static void par_work(struct par *p)
{
#ifdef _OPENMP
    omp_set_num_threads(1); /* of this task only: libraries called from here stay on one thread */
#endif
    void *scratch = p->scratch ? thread_scratch(p->scratch) : NULL;
    for (;;) {
        const int64_t i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (i >= p->tasks) break;
        p->f(p->arg, i, scratch);
    }
}

void par_run(struct dev *d, int64_t tasks, size_t scratch,
             void (*f)(void *arg, int64_t task, void *scratch), void *arg)
{
    if (tasks <= 0) return;
    struct par p = {.tasks = tasks, .scratch = scratch, .f = f, .arg = arg};
#ifdef _OPENMP
    const int64_t threads = cpu_of(d)->threads;
#pragma omp parallel num_threads((int)(threads < tasks ? threads : tasks))
#else
    (void)d;
#endif
    par_work(&p);
}

const struct dev_backend dev_cpu = {.name = "cpu",
                                    .ops = ops,
                                    .start = start,
                                    .stop = stop,
                                    .describe = describe,
                                    .own_bytes = own_bytes};
