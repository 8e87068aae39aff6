/* Activations, gathers, broadcasts, casts, fills: one thread per element. */
#include "core/cuda/cuda.h"
#include "core/cuda/rows.h"

namespace
{

enum Activation { GELU, SILU };

struct ActivationForward {
    View y, x;
    Activation kind;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / x.width, c = i % x.width;
        const float z = get(x, r, c);
        put(y, r, c, kind == GELU ? gelu_of(z) : z / (1 + expf(-z)));
    }
};

struct ActivationBackward {
    View dx, dy, x;
    Activation kind;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / x.width, c = i % x.width;
        const float z = get(x, r, c), s = 1 / (1 + expf(-z));
        const float slope = kind == GELU ? gelu_slope_of(z) : s * (1 + z * (1 - s));
        put(dx, r, c, get(dy, r, c) * slope);
    }
};

struct Sinusoid { /* row b of out: half cosines, half sines */
    View out;
    int64_t b, half;
    double t;
    DEVICE void operator()(int64_t i) const
    {
        const double angle = t * pow(10000.0, -(double)i / (double)half);
        put(out, b, i, (float)cos(angle));
        put(out, b, half + i, (float)sin(angle));
    }
};

struct Gather {
    View out, x;
    const int32_t *map;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / out.width, c = i % out.width, from = map[r];
        put(out, r, c, from < 0 ? 0 : get(x, from, c));
    }
};

struct BroadcastAdd {
    View out, row, x;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / x.width, c = i % x.width;
        put(out, r, c, get(x, r, c) + get(row, 0, c));
    }
};

struct ColumnTerm {
    View x;
    DEVICE double operator()(int64_t c, int64_t r) const { return get_f64(x, r, c); }
};

struct Axpy {
    View y, x;
    double a;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / x.width, c = i % x.width;
        put_f64(y, r, c, get_f64(y, r, c) + a * get_f64(x, r, c));
    }
};

struct Scale {
    View x;
    double a;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / x.width, c = i % x.width;
        put_f64(x, r, c, a * get_f64(x, r, c));
    }
};

struct Fill {
    View x;
    double a;
    DEVICE void operator()(int64_t i) const { put_f64(x, i / x.width, i % x.width, a); }
};

struct Cast {
    View dst, src;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t r = i / src.width, c = i % src.width;
        put_f64(dst, r, c, get_f64(src, r, c));
    }
};

void forward(struct dev *d, struct tensor y, struct tensor x, Activation kind)
{
    cuda_expect_float(x, "activation");
    cuda_expect_float(y, "activation");
    each(d, tensor_count(x), ActivationForward{view(y), view(x), kind});
}

void backward(struct dev *d, struct tensor dx, struct tensor dy, struct tensor x, Activation kind)
{
    cuda_expect_float(x, "activation");
    cuda_expect_float(dx, "activation");
    cuda_expect_float(dy, "activation");
    each(d, tensor_count(x), ActivationBackward{view(dx), view(dy), view(x), kind});
}

} // namespace

void cuda_expect_float(struct tensor t, const char *what)
{
    CHECK(t.dtype == DT_F32 || t.dtype == DT_BF16, "%s of %s", what, dtype_name(t.dtype));
}

void cuda_expect_real(struct tensor t, const char *what)
{
    CHECK(t.dtype == DT_F32 || t.dtype == DT_BF16 || t.dtype == DT_F64, "%s of %s", what,
          dtype_name(t.dtype));
}

void cuda_gelu_fwd(struct dev *d, struct tensor y, struct tensor x) { forward(d, y, x, GELU); }
void cuda_silu_fwd(struct dev *d, struct tensor y, struct tensor x) { forward(d, y, x, SILU); }
void cuda_gelu_bwd(struct dev *d, struct tensor dx, struct tensor dy, struct tensor x)
{
    backward(d, dx, dy, x, GELU);
}
void cuda_silu_bwd(struct dev *d, struct tensor dx, struct tensor dy, struct tensor x)
{
    backward(d, dx, dy, x, SILU);
}

void cuda_sinusoid(struct dev *d, struct tensor out, const double *t)
{
    cuda_expect_float(out, "sinusoid");
    const int64_t half = out.dim[1] / 2;
    for (int64_t b = 0; b < out.dim[0]; b++) each(d, half, Sinusoid{view(out), b, half, t[b]});
}

void cuda_rows_gather(struct dev *d, struct tensor out, struct tensor x, struct tensor map)
{
    cuda_expect_float(out, "gather");
    cuda_expect_float(x, "gather");
    CHECK(map.dtype == DT_I32, "gather: map is i32");
    each(d, tensor_count(out), Gather{view(out), view(x), (const int32_t *)map.data});
}

void cuda_bcast_add(struct dev *d, struct tensor out, struct tensor row, struct tensor x)
{
    cuda_expect_float(out, "broadcast");
    cuda_expect_float(row, "broadcast");
    cuda_expect_float(x, "broadcast");
    each(d, tensor_count(x), BroadcastAdd{view(out), view(row), view(x)});
}

void cuda_colsum_add(struct dev *d, struct tensor drow, struct tensor dx)
{
    const int64_t n = tensor_width(dx);
    cuda_expect_real(dx, "column sum");
    View out = view(drow);
    out.ld = n; /* [n] or [1, n] */
    column_sums(d, n, dx.dim[0], ColumnTerm{view(dx)}, AddTo{out, n});
}

void cuda_axpy(struct dev *d, struct tensor y, double a, struct tensor x)
{
    cuda_expect_real(y, "axpy");
    cuda_expect_real(x, "axpy");
    each(d, tensor_count(x), Axpy{view(y), view(x), a});
}

void cuda_scale(struct dev *d, struct tensor x, double a)
{
    cuda_expect_real(x, "scale");
    each(d, tensor_count(x), Scale{view(x), a});
}

void cuda_fill(struct dev *d, struct tensor x, double a)
{
    cuda_expect_real(x, "fill");
    each(d, tensor_count(x), Fill{view(x), a});
}

void cuda_cast(struct dev *d, struct tensor dst, struct tensor src)
{
    cuda_expect_real(dst, "cast");
    cuda_expect_real(src, "cast");
    CHECK(tensor_width(dst) == tensor_width(src) && dst.dim[0] == src.dim[0],
          "cast between shapes");
    if (wide_cast(d, dst, src)) return;
    each(d, tensor_count(src), Cast{view(dst), view(src)});
}
