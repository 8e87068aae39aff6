/* The oracle: naive loops. Here is what does not depend on the precision; the ops themselves are
 * in ops.inc, compiled by ref_f32.c and ref_f64.c. */
#include "core/ref/ref.h"

#include <stdio.h>
#include <string.h>

#include "core/bf16.h"

void *host_alloc(struct dev *d, size_t bytes)
{
    (void)d;
    void *p = NULL;
    if (posix_memalign(&p, 256, bytes ? bytes : 256) != 0)
        err_stop(RC_TEMP, "out of host memory: %zu bytes", bytes);
    return p;
}

void host_free(struct dev *d, void *p)
{
    (void)d;
    free(p);
}

void host_copy(struct dev *d, void *dst, const void *src, size_t bytes)
{
    (void)d;
    if (bytes) memcpy(dst, src, bytes);
}

void host_sync(struct dev *d) { (void)d; }

double gelu(double z)
{
    return 0.5 * z * (1 + tanh(M_SQRT2 * M_2_SQRTPI * 0.5 * (z + 0.044715 * z * z * z)));
}

double gelu_slope(double z)
{
    const double k = M_SQRT2 * M_2_SQRTPI * 0.5;
    const double t = tanh(k * (z + 0.044715 * z * z * z));
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * k * (1 + 3 * 0.044715 * z * z);
}

double noise_at(struct rng_key key, int64_t index)
{
    return (double)(float)rng_normal_at(rng_open(key), (uint64_t)index);
}

int64_t patch_element(struct tensor x, struct tensor pos, int64_t rows, int64_t r, int64_t f,
                      enum patch_order order)
{
    const int16_t *p = (const int16_t *)pos.data + 3 * r;
    if (p[0] < 0) return -1;
    const int64_t channels = x.dim[1], b = r / (rows / x.dim[0]);
    const int64_t ch = order == PATCH_IN ? f / 4 : f % channels;
    const int64_t yx = order == PATCH_IN ? f % 4 : f / channels;
    const int64_t h = 2 * p[1] + yx / 2, w = 2 * p[2] + yx % 2;
    return (((b * channels + ch) * x.dim[2] + p[0]) * x.dim[3] + h) * x.dim[4] + w;
}

static double get(struct tensor t, int64_t i)
{
    switch (t.dtype) {
    case DT_F64:
        return ((double *)t.data)[i];
    case DT_F32:
        return (double)((float *)t.data)[i];
    case DT_BF16:
        return (double)bf16_to(((uint16_t *)t.data)[i]);
    default:
        CHECK(0, "arithmetic on %s", dtype_name(t.dtype));
        return 0;
    }
}

static void set(struct tensor t, int64_t i, double v)
{
    switch (t.dtype) {
    case DT_F64:
        ((double *)t.data)[i] = v;
        break;
    case DT_F32:
        ((float *)t.data)[i] = (float)v;
        break;
    case DT_BF16:
        ((uint16_t *)t.data)[i] = bf16_from((float)v);
        break;
    default:
        CHECK(0, "arithmetic on %s", dtype_name(t.dtype));
    }
}

void ref_sumsq(struct dev *d, struct tensor sum, const struct tensor *x, int n)
{
    (void)d;
    for (int k = 0; k < n; k++) {
        double s = 0;
        for (int64_t i = 0; i < tensor_count(x[k]); i++) s += get(x[k], i) * get(x[k], i);
        ((double *)sum.data)[0] += s;
    }
}

void ref_axpy(struct dev *d, struct tensor y, double a, struct tensor x)
{
    (void)d;
    const int64_t w = tensor_width(x);
    for (int64_t r = 0; r < x.dim[0]; r++)
        for (int64_t c = 0; c < w; c++) {
            const int64_t i = r * tensor_ld(y) + c;
            set(y, i, get(y, i) + a * get(x, r * tensor_ld(x) + c));
        }
}

void ref_scale(struct dev *d, struct tensor x, double a)
{
    (void)d;
    for (int64_t i = 0; i < tensor_count(x); i++) set(x, i, a * get(x, i));
}

void ref_fill(struct dev *d, struct tensor x, double a)
{
    (void)d;
    const size_t row = (size_t)tensor_width(x) * dtype_size(x.dtype);
    for (int64_t r = 0; row && r < x.dim[0]; r++) {
        set(x, r * tensor_ld(x), a);
        char *at = (char *)x.data + (size_t)(r * tensor_ld(x)) * dtype_size(x.dtype);
        size_t done = dtype_size(x.dtype);
        for (; 2 * done <= row; done *= 2) memcpy(at + done, at, done);
        memcpy(at + done, at, row - done);
    }
}

void ref_cast(struct dev *d, struct tensor dst, struct tensor src)
{
    (void)d;
    const int64_t w = tensor_width(src);
    CHECK(tensor_width(dst) == w && dst.dim[0] == src.dim[0], "cast between shapes");
    for (int64_t r = 0; r < src.dim[0]; r++)
        for (int64_t c = 0; c < w; c++)
            set(dst, r * tensor_ld(dst) + c, get(src, r * tensor_ld(src) + c));
}

static const struct dev_ops *ops(enum dtype compute)
{
    return compute == DT_F64 ? ref_ops_f64() : compute == DT_F32 ? ref_ops_f32() : NULL;
}

static void describe(struct dev *d, char *out, size_t size)
{
    snprintf(out, size, "ref (naive loops, %s, one thread)", dtype_name(d->compute));
}

const struct dev_backend dev_ref = {.name = "ref", .ops = ops, .describe = describe};
