/* gemm: the product is cut into parts by its shape alone; each part is one task: one engine
 * (OpenBLAS, oneDNN or our own) on one thread, then the epilogue while the part is in cache. */
#include "core/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>
#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

#include "core/bf16.h"

enum { PART_M = 1032, PART_N = 768, PART_MIN = 96, PARTS = 8 };

struct gemm_job {
    struct cpu *cpu;
    const struct gemm_args *g;
    enum gemm_engine engine;
    int64_t m, n, k, pm, pn, cols; /* part sizes, parts per row */
};

/* Equal parts of at most PART_M x PART_N, and PARTS of them where the shape has that many. */
static void plan(struct gemm_job *j)
{
    int64_t rows = (j->m + PART_M - 1) / PART_M, cols = (j->n + PART_N - 1) / PART_N;
    for (;;) {
        j->pm = ((j->m + rows - 1) / rows + 11) / 12 * 12;
        j->pn = ((j->n + cols - 1) / cols + 31) / 32 * 32;
        if (rows * cols >= PARTS) break;
        if (j->pm >= j->pn && j->pm >= 2 * PART_MIN)
            rows *= 2;
        else if (j->pn >= 2 * PART_MIN)
            cols *= 2;
        else
            break;
    }
    j->cols = (j->n + j->pn - 1) / j->pn;
}

#ifdef HAVE_OPENBLAS
static const float *start_of(struct tensor t, bool trans, int64_t row, int64_t col)
{
    return (const float *)t.data + (trans ? col * tensor_ld(t) + row : row * tensor_ld(t) + col);
}

static void blas_part(const struct gemm_part *p)
{
    const struct gemm_args *g = p->g;
    cblas_sgemm(CblasRowMajor, g->trans_a ? CblasTrans : CblasNoTrans,
                g->trans_b ? CblasTrans : CblasNoTrans, (blasint)p->m, (blasint)p->n, (blasint)p->k,
                p->alpha, start_of(g->a, g->trans_a, p->m0, 0), (blasint)tensor_ld(g->a),
                start_of(g->b, g->trans_b, 0, p->n0), (blasint)tensor_ld(g->b), p->beta, p->c,
                (blasint)p->ldc);
}
#endif

static void part_task(void *arg, int64_t task, void *scratch)
{
    const struct gemm_job *j = arg;
    const struct gemm_args *g = j->g;
    struct gemm_part p = {.g = g,
                          .m0 = task / j->cols * j->pm,
                          .n0 = task % j->cols * j->pn,
                          .k = j->k,
                          .alpha = (float)g->alpha,
                          .beta = (float)g->beta};
    p.m = j->m - p.m0 < j->pm ? j->m - p.m0 : j->pm;
    p.n = j->n - p.n0 < j->pn ? j->n - p.n0 : j->pn;
    if (p.m <= 0 || p.n <= 0) return;
    if (g->c.dtype == DT_F32) {
        p.c = (float *)g->c.data + p.m0 * tensor_ld(g->c) + p.n0;
        p.ldc = tensor_ld(g->c);
    } else { /* in f32 first; rounded once, in gemm_finish */
        p.c = (float *)scratch;
        p.ldc = j->pn;
        p.beta = 0;
    }
    bool done = false;
#ifdef HAVE_OPENBLAS
    if (j->engine == GEMM_BLAS) {
        blas_part(&p);
        done = true;
    }
#endif
    if (j->engine == GEMM_DNNL) done = dnnl_gemm_part(j->cpu->dnnl, &p);
    CHECK(done, "oneDNN cannot make this product; set CPU_GEMM=own");
    const bool plain = g->epilogue == EPI_NONE || g->epilogue == EPI_BIAS_GRAD;
    if (!plain || g->c.dtype != DT_F32) j->cpu->k->gemm_finish(g, &p, p.c, p.ldc);
}

static double value(struct tensor t, int64_t row, int64_t col)
{
    const int64_t i = row * tensor_ld(t) + col;
    return t.dtype == DT_F32 ? (double)((const float *)t.data)[i]
                             : (double)bf16_to(((const uint16_t *)t.data)[i]);
}

static void rowsum_task(void *arg, int64_t row, void *scratch)
{
    (void)scratch;
    const struct gemm_args *g = arg;
    double sum = 0;
    for (int64_t i = 0; i < g->a.dim[1]; i++) sum += value(g->a, row, i);
    ((float *)g->bias.data)[row] += (float)sum;
}

static void check(const struct gemm_args *g, int64_t m, int64_t n, int64_t k)
{
    const int64_t am = g->a.dim[g->trans_a ? 1 : 0];
    const int64_t bk = g->b.dim[g->trans_b ? 1 : 0], bn = g->b.dim[g->trans_b ? 0 : 1];
    CHECK(g->a.ndim == 2 && g->b.ndim == 2 && g->c.ndim == 2 && am == m && bk == k && bn == n,
          "gemm: [%lld,%lld] = [%lld,%lld] [%lld,%lld]", (long long)m, (long long)n, (long long)am,
          (long long)k, (long long)bk, (long long)bn);
    CHECK((g->a.dtype == DT_F32 || g->a.dtype == DT_BF16) &&
              (g->b.dtype == DT_F32 || g->b.dtype == DT_BF16) &&
              (g->c.dtype == DT_F32 || g->c.dtype == DT_BF16),
          "gemm on the cpu device: %s = %s %s", dtype_name(g->c.dtype), dtype_name(g->a.dtype),
          dtype_name(g->b.dtype));
    CHECK(m <= INT32_MAX && n <= INT32_MAX && k <= INT32_MAX, "gemm dimension above 2^31");
}

enum { SMALL = 32 };
static enum gemm_engine choose(const struct cpu *cpu, const struct gemm_job *j)
{
    const bool small = j->m < SMALL || j->n < SMALL || j->k < SMALL;
    if (j->g->a.dtype != j->g->b.dtype) return GEMM_OWN;
    const enum gemm_engine e = j->g->a.dtype == DT_F32 ? cpu->f32
                               : small                 ? cpu->small_bf16
                                                       : cpu->bf16;
    return e == GEMM_DNNL && (j->g->alpha != 1 || !j->k) ? GEMM_OWN : e;
}

size_t cpu_gemm_bytes(struct dev *d, const struct gemm_args *g)
{
    const struct cpu *cpu = cpu_of(d);
    const struct gemm_job j = {
        .g = g, .m = g->c.dim[0], .n = g->c.dim[1], .k = g->a.dim[g->trans_a ? 0 : 1]};
    if (!j.m || !j.n) return 0;
    switch (choose(cpu, &j)) {
    case GEMM_MX:
        return cpu->mx->gemm_bytes(cpu, g);
    case GEMM_OWN:
        return cpu->k->gemm_bytes(g);
    default:
        return 0; /* libraries do not say */
    }
}

void cpu_gemm(struct dev *d, const struct gemm_args *g)
{
    struct cpu *cpu = cpu_of(d);
    struct gemm_job j = {
        .cpu = cpu, .g = g, .m = g->c.dim[0], .n = g->c.dim[1], .k = g->a.dim[g->trans_a ? 0 : 1]};
    check(g, j.m, j.n, j.k);
    if (g->epilogue == EPI_BIAS_GRAD) {
        CHECK(g->bias.dtype == DT_F32, "bias gradient in %s", dtype_name(g->bias.dtype));
        if (g->trans_a)
            cpu->k->colsum(d, g->bias, g->a);
        else
            par_run(d, j.m, 0, rowsum_task, (void *)(uintptr_t)g);
    }
    if (!j.m || !j.n) return;
    j.engine = choose(cpu, &j);
    if (j.engine == GEMM_MX || j.engine == GEMM_OWN) {
        (j.engine == GEMM_MX ? cpu->mx->gemm : cpu->k->gemm)(d, g);
        return;
    }
    plan(&j);
    const int64_t parts = (j.m + j.pm - 1) / j.pm * j.cols;
    const size_t acc = g->c.dtype == DT_F32 ? 0 : (size_t)(j.pm * j.pn) * sizeof(float);
    par_run(d, parts, acc, part_task, &j);
}
