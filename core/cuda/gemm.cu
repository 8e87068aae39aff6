/* Matrix products. cuBLASLt (cublaslt.cu) computes product and epilogue in one. What it refuses is
 * done in two steps: the product comes from it or, for a shape that it refuses too and in a build
 * without it, from one thread per element; the epilogues are small kernels after it. A bf16 result
 * with an epilogue then goes through an f32 array, a strip of rows at a time, so that it is rounded
 * once. */
#include "core/cuda/cuda.h"

namespace
{

/* Elements of that f32 array. */
#ifdef CUDA_EMULATE
enum : int64_t { STRIP = 1 << 10 };
#else
enum : int64_t { STRIP = 1 << 24 };
#endif

struct Matrix { /* op(t) as element (i, j) */
    View v;
    bool trans;
    DEVICE float operator()(int64_t i, int64_t j) const
    {
        return trans ? get(v, j, i) : get(v, i, j);
    }
};

struct Product {
    View c;
    Matrix a, b;
    int64_t k;
    float alpha, beta;
    DEVICE void operator()(int64_t at) const
    {
        const int64_t i = at / c.width, j = at % c.width;
        float s = 0;
        for (int64_t p = 0; p < k; p++) s += a(i, p) * b(p, j);
        put(c, i, j, alpha * s + (beta != 0 ? beta * get(c, i, j) : 0));
    }
};

/* c = epilogue(acc + beta * c); acc may be c itself, beta is 0 then */
struct Epilogue {
    View c, acc, bias, aux;
    int kind;
    float beta;
    DEVICE void operator()(int64_t at) const
    {
        const int64_t i = at / c.width, j = at % c.width;
        float v = get(acc, i, j) + (beta != 0 ? beta * get(c, i, j) : 0);
        if (kind != EPI_DGELU) v += get(bias, 0, j);
        if (kind == EPI_BIAS_GELU) {
            /* of the rounded number: the backward pass sees that */
            const View &rounded = aux.p ? aux : c;
            put(rounded, i, j, v);
            v = gelu_of(get(rounded, i, j));
        }
        if (kind == EPI_DGELU) v *= gelu_slope_of(get(aux, i, j));
        put(c, i, j, v);
    }
};

struct RowTerm { /* of the sum over k of op(a) */
    Matrix a;
    DEVICE double operator()(int64_t i, int64_t p) const { return (double)a(i, p); }
};

/* Without the epilogue. */
void product(struct dev *d, const struct gemm_args *g)
{
    const int64_t k = g->trans_a ? g->a.dim[0] : g->a.dim[1];
    struct gemm_args plain = *g;
    plain.epilogue = EPI_NONE;
    if (tensor_count(g->c) == 0 || cuda_library_gemm(d, &plain)) return;
    each(d, tensor_count(g->c),
         Product{view(g->c), Matrix{view(g->a), g->trans_a}, Matrix{view(g->b), g->trans_b}, k,
                 (float)g->alpha, (float)g->beta});
}

struct AddSums { /* out[i] += sum[i] */
    View out;
    const float *sum;
    DEVICE void operator()(int64_t i) const { put(out, 0, i, get(out, 0, i) + sum[i]); }
};

/* Product and epilogue by the library; a bias gradient is written by it and added here. */
bool in_one(struct dev *d, const struct gemm_args *g)
{
    if (tensor_count(g->c) == 0) return false;
    if (g->epilogue != EPI_BIAS_GRAD) return cuda_library_gemm(d, g);
    const int64_t m = g->c.dim[0];
    struct gemm_args sums = *g;
    sums.bias = tensor_make(cuda_scratch(d, (size_t)m * sizeof(float)), DT_F32, 1, &m);
    if (!cuda_library_gemm(d, &sums)) return false;
    each(d, m, AddSums{view(g->bias), (const float *)sums.bias.data});
    return true;
}

/* Rows [first, first + n) of the product, with an f32 array between product and epilogue. */
void strip(struct dev *d, const struct gemm_args *g, float *acc, int64_t first, int64_t n)
{
    const int64_t shape[2] = {n, g->c.dim[1]};
    struct gemm_args part = *g;
    part.a = g->trans_a ? tensor_cols(g->a, first, n) : tensor_rows(g->a, first, n);
    part.c = tensor_make(acc, DT_F32, 2, shape);
    part.beta = 0;
    product(d, &part);
    const struct tensor c = tensor_rows(g->c, first, n);
    const View aux = g->aux.data ? view(tensor_rows(g->aux, first, n)) : View{};
    each(d, tensor_count(c),
         Epilogue{view(c), view(part.c), view(g->bias), aux, (int)g->epilogue, (float)g->beta});
}

/* Rows of c at a time, where an epilogue needs the f32 array. */
int64_t strip_rows(const struct gemm_args *g)
{
    const int64_t m = g->c.dim[0], n = g->c.dim[1], most = n > STRIP ? 1 : STRIP / n;
    return m < most ? m : most;
}

} // namespace

size_t cuda_gemm_bytes(const struct gemm_args *g)
{
    const int64_t m = g->c.dim[0], n = g->c.dim[1], k = g->a.dim[g->trans_a ? 0 : 1];
    if (g->epilogue == EPI_BIAS_GRAD) {
        const size_t library = (size_t)m * sizeof(float), own = column_sums_bytes(m, k);
        return own > library ? own : library;
    }
    if (g->epilogue == EPI_NONE || g->c.dtype == DT_F32 || !m || !n) return 0;
    return (size_t)(strip_rows(g) * n) * sizeof(float);
}

void cuda_gemm(struct dev *d, const struct gemm_args *g)
{
    const int64_t m = g->c.dim[0], n = g->c.dim[1];
    const int64_t k = g->trans_a ? g->a.dim[0] : g->a.dim[1];
    const int64_t am = g->trans_a ? g->a.dim[1] : g->a.dim[0];
    const int64_t bk = g->trans_b ? g->b.dim[1] : g->b.dim[0];
    const int64_t bn = g->trans_b ? g->b.dim[0] : g->b.dim[1];
    CHECK(am == m && bn == n && bk == k, "gemm: [%lld,%lld] [%lld,%lld] into [%lld,%lld]",
          (long long)am, (long long)k, (long long)bk, (long long)bn, (long long)m, (long long)n);
    cuda_expect_float(g->a, "gemm");
    cuda_expect_float(g->c, "gemm");
    CHECK(g->a.dtype == g->b.dtype, "gemm of %s and %s", dtype_name(g->a.dtype),
          dtype_name(g->b.dtype));
    if (in_one(d, g)) return;
    if (g->epilogue == EPI_NONE || g->epilogue == EPI_BIAS_GRAD) {
        product(d, g);
        if (g->epilogue == EPI_BIAS_GRAD)
            column_sums(d, m, k, RowTerm{Matrix{view(g->a), g->trans_a}}, AddTo{view(g->bias), 1});
        return;
    }
    if (m == 0 || n == 0) return;
    if (g->c.dtype == DT_F32) {
        product(d, g);
        each(d, m * n,
             Epilogue{view(g->c), view(g->c), view(g->bias), view(g->aux), (int)g->epilogue, 0});
        return;
    }
    const int64_t rows = strip_rows(g);
    float *acc = (float *)cuda_scratch(d, (size_t)(rows * n) * sizeof(float));
    for (int64_t i = 0; i < m; i += rows) strip(d, g, acc, i, m - i < rows ? m - i : rows);
}
