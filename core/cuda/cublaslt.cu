/* Matrix products by cuBLASLt, in f32 arithmetic. Its matrices are column-major, so it is asked
 * for the transpose of everything: c' = op(b)' op(a)', where our rows are its columns. */
#include "core/cuda/private.h"

#include <stdlib.h>

#ifndef HAVE_CUBLASLT

void cublaslt_open(struct Cuda *) {}
void cublaslt_close(struct Cuda *) {}
const char *cublaslt_name(void) { return "plain kernels (no cuBLASLt in this build)"; }
bool cuda_library_gemm(struct dev *, const struct gemm_args *) { return false; }

#else

#include <cublasLt.h>
#include <stdio.h>

enum { WORKSPACE = 32 << 20 };
struct Library {
    cublasLtHandle_t handle;
    void *workspace;
};

namespace
{

void check(cublasStatus_t s, const char *what)
{
    if (s != CUBLAS_STATUS_SUCCESS)
        err_stop(RC_HARDWARE, "cuBLASLt: %s: %s", what, cublasLtGetStatusString(s));
}

/* The largest power of two, at most 256, that divides the address. */
uint32_t alignment(const void *p)
{
    uint32_t a = 256;
    while (a > 1 && (uintptr_t)p % a) a /= 2;
    return a;
}

cudaDataType_t type_of(struct tensor t) { return t.dtype == DT_F32 ? CUDA_R_32F : CUDA_R_16BF; }

cublasLtMatrixLayout_t layout(struct tensor t)
{
    cublasLtMatrixLayout_t l;
    check(cublasLtMatrixLayoutCreate(&l, type_of(t), (uint64_t)t.dim[1], (uint64_t)t.dim[0],
                                     tensor_ld(t)),
          "matrix layout");
    return l;
}

/* Split sums go through the workspace in f32: never through a bf16 result. */
cublasLtMatmulPreference_t preference(const struct gemm_args *g)
{
    cublasLtMatmulPreference_t p;
    const uint64_t bytes = WORKSPACE;
    const uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const struct {
        cublasLtMatmulPreferenceAttributes_t what;
        uint32_t value;
    } set[] = {{CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme},
               {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(g->b.data)},
               {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(g->a.data)},
               {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(g->c.data)},
               {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(g->c.data)}};
    check(cublasLtMatmulPreferenceCreate(&p), "preference");
    check(cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                               sizeof bytes),
          "workspace");
    for (const auto &s : set)
        check(cublasLtMatmulPreferenceSetAttribute(p, s.what, &s.value, sizeof s.value),
              "preference");
    return p;
}

} // namespace

void cublaslt_open(struct Cuda *c)
{
    c->library = (struct Library *)calloc(1, sizeof *c->library);
    CHECK(c->library, "out of memory");
    check(cublasLtCreate(&c->library->handle), "start");
    cuda_check(cudaMalloc(&c->library->workspace, WORKSPACE), "workspace of cuBLASLt");
}

void cublaslt_close(struct Cuda *c)
{
    cublasLtDestroy(c->library->handle);
    cudaFree(c->library->workspace);
    free(c->library);
}

const char *cublaslt_name(void)
{
    static char name[64];
    snprintf(name, sizeof name, "cuBLASLt %zu", cublasLtGetVersion());
    return name;
}

bool cuda_library_gemm(struct dev *d, const struct gemm_args *g)
{
    struct Cuda *c = cuda_of(d);
    if (tensor_count(g->a) == 0 || tensor_count(g->b) == 0) return false;
    const cublasOperation_t ta = g->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t tb = g->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const float alpha = (float)g->alpha, beta = (float)g->beta;
    cublasLtMatmulDesc_t op;
    check(cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F), "operation");
    check(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta),
          "transpose");
    check(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb),
          "transpose");
    cublasLtMatrixLayout_t la = layout(g->b), lb = layout(g->a), lc = layout(g->c);
    cublasLtMatmulPreference_t p = preference(g);
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(c->library->handle, op, la, lb, lc, lc, p, 1,
                                                      &found, &count);
    const bool can = s == CUBLAS_STATUS_SUCCESS && count > 0;
    if (can)
        s = cublasLtMatmul(c->library->handle, op, &alpha, g->b.data, la, g->a.data, lb, &beta,
                           g->c.data, lc, g->c.data, lc, &found.algo, c->library->workspace,
                           WORKSPACE, c->stream);
    cublasLtMatmulPreferenceDestroy(p);
    cublasLtMatrixLayoutDestroy(la);
    cublasLtMatrixLayoutDestroy(lb);
    cublasLtMatrixLayoutDestroy(lc);
    cublasLtMatmulDescDestroy(op);
    /* odd strides of bf16, above all: the plain kernel takes them */
    if (s == CUBLAS_STATUS_NOT_SUPPORTED || s == CUBLAS_STATUS_INVALID_VALUE || !can) return false;
    check(s, "matrix product");
    return true;
}

#endif
