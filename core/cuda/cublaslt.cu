/* Matrix products with their epilogues by cuBLASLt, in f32 arithmetic. Its matrices are
 * column-major, so it is asked for the transpose of everything: c' = op(b)' op(a)', where our rows
 * are its columns. What it needs to know of a product is made once per shape, types and alignment,
 * and kept. */
#include "core/cuda/private.h"

#include <stdlib.h>

#ifndef HAVE_CUBLASLT

size_t cublaslt_bytes(void) { return 0; }
void cublaslt_open(struct Cuda *) {}
void cublaslt_close(struct Cuda *) {}
const char *cublaslt_name(void) { return "plain kernels (no cuBLASLt in this build)"; }
bool cuda_library_gemm(struct dev *, const struct gemm_args *) { return false; }

#else

#include <cublasLt.h>
#include <stdio.h>
extern "C" {
#include "core/log.h"
}

enum { WORKSPACE = 32 << 20, LEAST_ALIGNMENT = 16 };

/* What the choice of an algorithm depends on; found by its bytes. */
struct Key {
    int64_t dim[3][2], ld[4]; /* of a, b, c; and of aux */
    int32_t type[5];          /* of a, b, c, bias, aux */
    int32_t trans_a, trans_b, epilogue, adds;
    uint32_t align[5]; /* of the same; 0: not there */
};
struct Product {
    Key key;
    bool usable; /* false: the library has no algorithm for it */
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
    Product *next;
};
struct Library {
    cublasLtHandle_t handle;
    void *workspace;
    Product *products;
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

template <class T> void set(cublasLtMatmulDesc_t op, cublasLtMatmulDescAttributes_t what, T value)
{
    check(cublasLtMatmulDescSetAttribute(op, what, &value, sizeof value), "operation");
}
template <class T>
void set(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t what, T value)
{
    check(cublasLtMatmulPreferenceSetAttribute(p, what, &value, sizeof value), "preference");
}

/* Split sums go through the workspace in f32: never through a bf16 result. */
cublasLtMatmulPreference_t preference(const Key &k)
{
    cublasLtMatmulPreference_t p;
    check(cublasLtMatmulPreferenceCreate(&p), "preference");
    set(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)WORKSPACE);
    set(p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        (uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, k.align[1]);
    set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, k.align[0]);
    set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, k.align[2]);
    set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, k.align[2]);
    return p;
}

/* Its rows are our columns: a bias along our columns is its plain bias, and the sums over our k of
 * op(a), which is its B, are its bias gradient of B. */
cublasLtEpilogue_t epilogue_of(const struct gemm_args *g)
{
    switch (g->epilogue) {
    case EPI_BIAS:
        return CUBLASLT_EPILOGUE_BIAS;
    case EPI_BIAS_GELU:
        return g->aux.data ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_BIAS;
    case EPI_DGELU:
        return CUBLASLT_EPILOGUE_DGELU;
    case EPI_BIAS_GRAD:
        return CUBLASLT_EPILOGUE_BGRADB;
    default:
        return CUBLASLT_EPILOGUE_DEFAULT;
    }
}

bool has_bias(const struct gemm_args *g)
{
    return g->epilogue == EPI_BIAS || g->epilogue == EPI_BIAS_GELU || g->epilogue == EPI_BIAS_GRAD;
}
bool has_aux(const struct gemm_args *g)
{
    return g->aux.data && (g->epilogue == EPI_BIAS_GELU || g->epilogue == EPI_DGELU);
}

Key key_of(const struct gemm_args *g)
{
    Key k;
    memset(&k, 0, sizeof k); /* the gaps too */
    const struct tensor t[] = {g->a, g->b, g->c};
    for (int i = 0; i < 3; i++) {
        k.dim[i][0] = t[i].dim[0];
        k.dim[i][1] = t[i].dim[1];
        k.ld[i] = tensor_ld(t[i]);
        k.type[i] = (int32_t)t[i].dtype;
        k.align[i] = alignment(t[i].data);
    }
    if (has_bias(g)) {
        k.type[3] = (int32_t)g->bias.dtype;
        k.align[3] = alignment(g->bias.data);
    }
    if (has_aux(g)) {
        k.type[4] = (int32_t)g->aux.dtype;
        k.align[4] = alignment(g->aux.data);
        k.ld[3] = tensor_ld(g->aux);
    }
    k.trans_a = g->trans_a;
    k.trans_b = g->trans_b;
    k.epilogue = (int32_t)epilogue_of(g);
    k.adds = g->beta != 0;
    return k;
}

/* The addresses of bias and aux belong to the operation, and change from call to call. */
void point(cublasLtMatmulDesc_t op, const struct gemm_args *g)
{
    if (has_bias(g)) set(op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)g->bias.data);
    if (has_aux(g)) set(op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, (const void *)g->aux.data);
}

cublasLtMatmulDesc_t operation(const struct gemm_args *g)
{
    cublasLtMatmulDesc_t op;
    check(cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F), "operation");
    set(op, CUBLASLT_MATMUL_DESC_TRANSA, g->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(op, CUBLASLT_MATMUL_DESC_TRANSB, g->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(op, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(g));
    if (has_bias(g)) set(op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(g->bias));
    if (has_aux(g)) {
        set(op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, type_of(g->aux));
        set(op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, (int64_t)tensor_ld(g->aux));
    }
    point(op, g);
    return op;
}

/* What the library asks of the memory beside the product's. */
bool suits(const struct gemm_args *g)
{
    if (has_aux(g) && (alignment(g->aux.data) < LEAST_ALIGNMENT || tensor_ld(g->aux) % 8))
        return false;
    return !has_bias(g) || alignment(g->bias.data) >= LEAST_ALIGNMENT;
}

/* From now on by other ways; said once for a shape and epilogue. */
void give_up(const struct Library *l, Product *p, const struct gemm_args *g, const char *why)
{
    p->usable = false;
    for (const Product *q = l->products; q; q = q->next)
        if (q != p && !q->usable && q->key.epilogue == p->key.epilogue &&
            memcmp(q->key.dim, p->key.dim, sizeof q->key.dim) == 0)
            return;
    log_info("cuBLASLt: [%lld,%lld] by [%lld,%lld] %s, %s with epilogue %d, memory aligned to %u, "
             "%u, %u, %u, %u: %s; %s",
             (long long)g->a.dim[0], (long long)g->a.dim[1], (long long)g->b.dim[0],
             (long long)g->b.dim[1], dtype_name(g->a.dtype), dtype_name(g->c.dtype),
             (int)g->epilogue, p->key.align[0], p->key.align[1], p->key.align[2], p->key.align[3],
             p->key.align[4], why, g->epilogue == EPI_NONE ? "own kernel, slow" : "epilogue apart");
}

Product *make_product(struct Library *l, const Key &key, const struct gemm_args *g)
{
    Product *p = (Product *)calloc(1, sizeof *p);
    CHECK(p, "out of memory");
    p->key = key;
    p->op = operation(g);
    p->a = layout(g->b);
    p->b = layout(g->a);
    p->c = layout(g->c);
    cublasLtMatmulPreference_t pref = preference(key);
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    const cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(l->handle, p->op, p->a, p->b, p->c,
                                                            p->c, pref, 1, &found, &count);
    cublasLtMatmulPreferenceDestroy(pref);
    p->usable = s == CUBLAS_STATUS_SUCCESS && count > 0 && found.state == CUBLAS_STATUS_SUCCESS;
    if (p->usable) p->algorithm = found.algo;
    if (!suits(g))
        give_up(l, p, g, "bias or aux not aligned");
    else if (!p->usable)
        give_up(l, p, g, s == CUBLAS_STATUS_SUCCESS ? "no algorithm" : cublasLtGetStatusString(s));
    p->next = l->products;
    return l->products = p;
}

Product *product_of(struct Library *l, const struct gemm_args *g)
{
    const Key key = key_of(g);
    for (Product *p = l->products; p; p = p->next)
        if (memcmp(&p->key, &key, sizeof key) == 0) return p;
    return make_product(l, key, g);
}

void drop(Product *p)
{
    cublasLtMatmulDescDestroy(p->op);
    cublasLtMatrixLayoutDestroy(p->a);
    cublasLtMatrixLayoutDestroy(p->b);
    cublasLtMatrixLayoutDestroy(p->c);
    free(p);
}

} // namespace

size_t cublaslt_bytes(void) { return WORKSPACE; }

void cublaslt_open(struct Cuda *c)
{
    c->library = (struct Library *)calloc(1, sizeof *c->library);
    CHECK(c->library, "out of memory");
    check(cublasLtCreate(&c->library->handle), "start");
    cuda_check(cudaMalloc(&c->library->workspace, WORKSPACE), "workspace of cuBLASLt");
}

void cublaslt_close(struct Cuda *c)
{
    for (Product *p = c->library->products, *next; p; p = next) {
        next = p->next;
        drop(p);
    }
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
    struct Library *l = c->library;
    if (tensor_count(g->a) == 0 || tensor_count(g->b) == 0) return false;
    if (has_bias(g) && !tensor_contiguous(g->bias)) return false;
    Product *p = product_of(l, g);
    if (!p->usable) return false;
    const float alpha = (float)g->alpha, beta = (float)g->beta;
    point(p->op, g);
    const cublasStatus_t s =
        cublasLtMatmul(l->handle, p->op, &alpha, g->b.data, p->a, g->a.data, p->b, &beta, g->c.data,
                       p->c, g->c.data, p->c, &p->algorithm, l->workspace, WORKSPACE, c->stream);
    /* odd strides of bf16, above all: the plain kernel takes them */
    if (s == CUBLAS_STATUS_NOT_SUPPORTED || s == CUBLAS_STATUS_INVALID_VALUE)
        give_up(l, p, g, cublasLtGetStatusString(s));
    else
        check(s, "matrix product");
    return p->usable;
}

#endif
