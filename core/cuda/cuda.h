/* Private to the cuda device: arrays as kernels see them, sums of fixed order, the ops. */
#ifndef CORE_CUDA_CUDA_H
#define CORE_CUDA_CUDA_H
#include "core/cuda/cudnn.h"
#include "core/cuda/launch.h"

/* ---- arrays -------------------------------------------------------------------------------- */

struct View {
    void *p; /* NULL: not there */
    int type;
    int64_t ld, width;
};
static inline View view(struct tensor t)
{
    return View{t.data, (int)t.dtype, t.ndim ? tensor_ld(t) : 0, t.ndim ? tensor_width(t) : 1};
}

static DEVICE float bf16_to_float(uint16_t h)
{
    const uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
/* To nearest even; NaN stays NaN. */
static DEVICE uint16_t bf16_of_float(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static DEVICE double get_f64(const View &v, int64_t row, int64_t col)
{
    const int64_t i = row * v.ld + col;
    if (v.type == DT_F32) return (double)((const float *)v.p)[i];
    if (v.type == DT_BF16) return (double)bf16_to_float(((const uint16_t *)v.p)[i]);
    return ((const double *)v.p)[i];
}
static DEVICE float get(const View &v, int64_t row, int64_t col)
{
    const int64_t i = row * v.ld + col;
    return v.type == DT_F32 ? ((const float *)v.p)[i] : bf16_to_float(((const uint16_t *)v.p)[i]);
}
static DEVICE void put_f64(const View &v, int64_t row, int64_t col, double x)
{
    const int64_t i = row * v.ld + col;
    if (v.type == DT_F32)
        ((float *)v.p)[i] = (float)x;
    else if (v.type == DT_BF16)
        ((uint16_t *)v.p)[i] = bf16_of_float((float)x);
    else
        ((double *)v.p)[i] = x;
}
static DEVICE void put(const View &v, int64_t row, int64_t col, float x)
{
    const int64_t i = row * v.ld + col;
    if (v.type == DT_F32)
        ((float *)v.p)[i] = x;
    else
        ((uint16_t *)v.p)[i] = bf16_of_float(x);
}

/* 16 bytes, moved at once */
struct __attribute__((may_alias, aligned(16))) Quad {
    uint32_t w[4];
};

/* Stops when t is not f32 or bf16 (what get and put read). */
void cuda_expect_float(struct tensor t, const char *what);
/* f64, too: get_f64 and put_f64 */
void cuda_expect_real(struct tensor t, const char *what);
/* Memory for one op, valid until the next op asks. */
void *cuda_scratch(struct dev *d, size_t bytes);

static DEVICE float gelu_of(float z)
{
    const float k = 0.7978845608028654f;
    return 0.5f * z * (1 + tanhf(k * (z + 0.044715f * z * z * z)));
}
static DEVICE float gelu_slope_of(float z)
{
    const float k = 0.7978845608028654f;
    const float t = tanhf(k * (z + 0.044715f * z * z * z));
    return 0.5f * (1 + t) + 0.5f * z * (1 - t * t) * k * (1 + 3 * 0.044715f * z * z);
}

/* ---- sums whose order depends on the shape alone --------------------------------------------- */

/* n sums of len terms, neighbours i next to each other in memory: out(i, sum of term(i, p)).
 * One thread per CHUNK terms, then one thread adds the chunks of each sum. */
enum { SUM_CHUNK = 64 };
template <class Term> struct ColumnParts {
    Term term;
    double *part;
    int64_t n, len;
    DEVICE void operator()(int64_t at) const
    {
        const int64_t i = at % n, from = at / n * SUM_CHUNK;
        const int64_t end = from + SUM_CHUNK < len ? from + SUM_CHUNK : len;
        double s = 0;
        for (int64_t p = from; p < end; p++) s += term(i, p);
        part[at] = s;
    }
};
template <class Out> struct ColumnEnds {
    Out out;
    const double *part;
    int64_t n, chunks;
    DEVICE void operator()(int64_t i) const
    {
        double s = 0;
        for (int64_t k = 0; k < chunks; k++) s += part[k * n + i];
        out(i, s);
    }
};
static inline size_t column_sums_bytes(int64_t n, int64_t len)
{
    return (size_t)((len + SUM_CHUNK - 1) / SUM_CHUNK * n) * sizeof(double);
}
template <class Term, class Out>
void column_sums(struct dev *d, int64_t n, int64_t len, const Term &term, const Out &out)
{
    const int64_t chunks = (len + SUM_CHUNK - 1) / SUM_CHUNK;
    double *part = (double *)cuda_scratch(d, column_sums_bytes(n, len));
    each(d, chunks * n, ColumnParts<Term>{term, part, n, len});
    each(d, n, ColumnEnds<Out>{out, part, n, chunks});
}

/* A few long sums, the terms of one next to each other: blocks of SUM_BLOCK terms, then one block
 * per sum. */
#ifdef CUDA_EMULATE
enum { SUM_BLOCK = 1 << 10 }; /* the tests are small */
#else
enum { SUM_BLOCK = 1 << 16 };
#endif
template <class Term> struct LongParts {
    struct Shared {
        double buf[MAX_LANES];
    };
    Term term;
    double *part;
    int64_t len, parts;
    DEVICE void operator()(Block &b, Shared &s, int64_t at) const
    {
        const int64_t i = at / parts, from = at % parts * SUM_BLOCK;
        const int64_t end = from + SUM_BLOCK < len ? from + SUM_BLOCK : len;
        double x = 0;
        for (int64_t p = from + b.lane; p < end; p += b.lanes) x += term(i, p);
        x = block_sum(b, s.buf, x);
        if (b.lane == 0) part[at] = x;
    }
};
template <class Out> struct LongEnds {
    struct Shared {
        double buf[MAX_LANES];
    };
    Out out;
    const double *part;
    int64_t parts;
    DEVICE void operator()(Block &b, Shared &s, int64_t i) const
    {
        double x = 0;
        for (int64_t k = b.lane; k < parts; k += b.lanes) x += part[i * parts + k];
        x = block_sum(b, s.buf, x);
        if (b.lane == 0) out(i, x);
    }
};
template <class Term, class Out>
void long_sums(struct dev *d, int64_t n, int64_t len, const Term &term, const Out &out)
{
    const int64_t parts = (len + SUM_BLOCK - 1) / SUM_BLOCK;
    double *part = (double *)cuda_scratch(d, (size_t)(parts * n) * sizeof(double));
    blocks(d, parts * n, LongParts<Term>{term, part, len, parts});
    blocks(d, n, LongEnds<Out>{out, part, parts});
}

/* The usual end of a sum: added to element (i / width, i % width) of an array. */
struct AddTo {
    View out;
    int64_t width;
    DEVICE void operator()(int64_t i, double s) const
    {
        const int64_t r = i / width, c = i % width;
        put_f64(out, r, c, get_f64(out, r, c) + s);
    }
};

/* ---- ops ------------------------------------------------------------------------------------- */

/* cuda.cu, or tests/cudasim in the tests */
void *cuda_alloc(struct dev *d, size_t bytes);
void cuda_free(struct dev *d, void *p);
void cuda_copy(struct dev *d, void *dst, const void *src, size_t bytes);
void cuda_to_host(struct dev *d, void *dst, const void *src, size_t bytes);
void cuda_from_host(struct dev *d, void *dst, const void *src, size_t bytes);
void cuda_sync(struct dev *d);
/* Product and epilogue by cuBLASLt; false: not for this shape or not in this build. Unlike the op
 * it writes a bias gradient and does not add it. */
bool cuda_library_gemm(struct dev *d, const struct gemm_args *g);

/* Attention by cuDNN (sdpa.cu). way [ranges]: how each is computed; the ranges that are left to the
 * own kernels are ATTENTION_OWN on return. */
enum { ATTENTION_OPEN, ATTENTION_BY_LIBRARY, ATTENTION_OWN, ATTENTION_BY_FLASH };
void cuda_library_attn_fwd(struct dev *d, const struct attn_args *a, unsigned char *way);
void cuda_library_attn_bwd(struct dev *d, const struct attn_grad_args *a, unsigned char *way);
/* bf16 on the tensor units (flash.cu): takes all or none of the ATTENTION_OWN. */
void cuda_flash_fwd(struct dev *d, const struct attn_args *a, unsigned char *way);
void cuda_flash_bwd(struct dev *d, const struct attn_grad_args *a, unsigned char *way);
struct cudnn *cuda_sdpa(struct dev *d); /* NULL: it cannot be opened here (said once) */
void *cuda_queue(struct dev *d);        /* the device's stream */

/* Scratch that an op takes at most, by its shapes alone (addresses are not followed): where
 * products go to cuBLASLt less may be taken, where cuDNN takes no attention as well. */
extern "C" size_t cuda_gemm_bytes(const struct gemm_args *g);
extern "C" size_t cuda_attn_bwd_bytes(struct dev *d, const struct attn_grad_args *a);

void cuda_gemm(struct dev *d, const struct gemm_args *g);
void cuda_attn_fwd(struct dev *d, const struct attn_args *a);
void cuda_attn_bwd(struct dev *d, const struct attn_grad_args *a);

void cuda_norm_rope_fwd(struct dev *d, const struct norm_rope_args *a);
void cuda_norm_rope_bwd(struct dev *d, const struct norm_rope_grad_args *a);
void cuda_ln_fwd(struct dev *d, const struct ln_args *a);
void cuda_ln_bwd(struct dev *d, const struct ln_grad_args *a);
void cuda_gate_add_fwd(struct dev *d, const struct gate_add_args *a);
void cuda_gate_add_bwd(struct dev *d, const struct gate_add_grad_args *a);
void cuda_gate_add_ln_fwd(struct dev *d, const struct gate_add_ln_args *a);
void cuda_gate_add_ln_bwd(struct dev *d, const struct gate_add_ln_grad_args *a);

void cuda_gelu_fwd(struct dev *d, struct tensor y, struct tensor x);
void cuda_gelu_bwd(struct dev *d, struct tensor dx, struct tensor dy, struct tensor x);
void cuda_silu_fwd(struct dev *d, struct tensor y, struct tensor x);
void cuda_silu_bwd(struct dev *d, struct tensor dx, struct tensor dy, struct tensor x);
void cuda_sinusoid(struct dev *d, struct tensor out, const double *t);
void cuda_rows_gather(struct dev *d, struct tensor out, struct tensor x, struct tensor map);
void cuda_bcast_add(struct dev *d, struct tensor out, struct tensor row, struct tensor x);
void cuda_colsum_add(struct dev *d, struct tensor drow, struct tensor dx);

void cuda_patch_rows(struct dev *d, struct tensor rows, struct tensor x, struct tensor pos,
                     enum patch_order order);
void cuda_unpatch_rows(struct dev *d, struct tensor x, struct tensor rows, struct tensor pos,
                       enum patch_order order);
void cuda_flow_rows(struct dev *d, const struct flow_args *a);
void cuda_flow_loss(struct dev *d, struct tensor sum, struct tensor dout, struct tensor pred,
                    struct tensor target, struct tensor pos, double scale);
void cuda_sample_step(struct dev *d, struct tensor x, struct tensor c, struct tensor u,
                      double guidance, double dsigma);
void cuda_rng_normal(struct dev *d, struct tensor x, struct rng_stream s, uint64_t first,
                     double std);
void cuda_rng_uniform(struct dev *d, struct tensor x, struct rng_stream s, uint64_t first,
                      double lo, double hi);
void cuda_dropout(struct dev *d, const struct dropout_args *a);

void cuda_solver_step(struct dev *d, const struct solver_step_args *a);
void cuda_transition_sums(struct dev *d, struct tensor sum, const struct transition_args *a);
void cuda_transition_grad(struct dev *d, struct tensor dc, struct tensor du,
                          const struct transition_args *a, const double *policy, const double *kl,
                          double gc, double gu);
void cuda_nft_sums(struct dev *d, struct tensor sum, const struct nft_args *a);
void cuda_nft_grad(struct dev *d, struct tensor dv, const struct nft_args *a, const double *plus,
                   const double *minus, const double *kl);

void cuda_update(struct dev *d, const struct update_args *a);
void cuda_sumsq(struct dev *d, struct tensor sum, const struct tensor *x, int n);
void cuda_axpy(struct dev *d, struct tensor y, double a, struct tensor x);
void cuda_scale(struct dev *d, struct tensor x, double a);
void cuda_fill(struct dev *d, struct tensor x, double a);
void cuda_cast(struct dev *d, struct tensor dst, struct tensor src);

extern const struct dev_ops cuda_ops; /* table.cu */
#endif
