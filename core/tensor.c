#include "core/tensor.h"

#include <stdio.h>

#include "core/err.h"

static const struct {
    const char *name;
    size_t size;
} types[DT_COUNT] = {
    [DT_F32] = {"f32", 4}, [DT_BF16] = {"bf16", 2}, [DT_F64] = {"f64", 8},
    [DT_I32] = {"i32", 4}, [DT_I16] = {"i16", 2},   [DT_U8] = {"u8", 1},
};

size_t dtype_size(enum dtype d) { return types[d].size; }
const char *dtype_name(enum dtype d) { return types[d].name; }
enum dtype dtype_state(enum dtype compute) { return compute == DT_F64 ? DT_F64 : DT_F32; }

struct tensor tensor_make(void *data, enum dtype d, int ndim, const int64_t *dim)
{
    CHECK(ndim >= 1 && ndim <= TENSOR_MAXDIM, "%d dimensions", ndim);
    struct tensor t = {.data = data, .dtype = d, .ndim = ndim};
    for (int i = 0; i < ndim; i++) t.dim[i] = dim[i];
    return t;
}

int64_t tensor_count(struct tensor t) { return t.ndim ? t.dim[0] * tensor_width(t) : 0; }
size_t tensor_bytes(struct tensor t) { return (size_t)tensor_count(t) * dtype_size(t.dtype); }
bool tensor_contiguous(struct tensor t) { return t.ld == 0 || t.ld == tensor_width(t); }

struct tensor tensor_view(struct tensor t, int ndim, const int64_t *dim)
{
    CHECK(tensor_contiguous(t), "view of a strided tensor");
    struct tensor v = tensor_make(t.data, t.dtype, ndim, dim);
    CHECK(tensor_count(v) == tensor_count(t), "view of %lld elements as %lld",
          (long long)tensor_count(t), (long long)tensor_count(v));
    return v;
}

struct tensor tensor_rows(struct tensor t, int64_t first, int64_t count)
{
    CHECK(first >= 0 && count >= 0 && first + count <= t.dim[0], "rows %lld+%lld of %lld",
          (long long)first, (long long)count, (long long)t.dim[0]);
    if (t.data) t.data = (char *)t.data + (size_t)(first * tensor_ld(t)) * dtype_size(t.dtype);
    t.dim[0] = count;
    return t;
}

struct tensor tensor_cols(struct tensor t, int64_t first, int64_t count)
{
    CHECK(t.ndim == 2 && first >= 0 && count >= 0 && first + count <= t.dim[1],
          "columns %lld+%lld of %lld", (long long)first, (long long)count, (long long)t.dim[1]);
    t.ld = tensor_ld(t);
    if (t.data) t.data = (char *)t.data + (size_t)first * dtype_size(t.dtype);
    t.dim[1] = count;
    return t;
}

struct tensor tensor_heads(struct tensor t, int64_t heads)
{
    CHECK(t.ndim == 2 && t.dim[1] % heads == 0, "%lld columns in %lld heads", (long long)t.dim[1],
          (long long)heads);
    t.ld = tensor_ld(t);
    t.dim[2] = t.dim[1] / heads;
    t.dim[1] = heads;
    t.ndim = 3;
    return t;
}

static int dims_text(char *out, size_t size, int ndim, const int64_t *dim)
{
    int n = snprintf(out, size, "[");
    for (int i = 0; i < ndim; i++)
        n += snprintf(out + n, size - (size_t)n, "%s%lld", i ? "," : "", (long long)dim[i]);
    return n + snprintf(out + n, size - (size_t)n, "]");
}

void tensor_expect(struct tensor t, const char *what, enum dtype d, int ndim, const int64_t *dim)
{
    bool same = t.dtype == d && t.ndim == ndim;
    for (int i = 0; same && i < ndim; i++) same = t.dim[i] == dim[i];
    if (same) return;
    char got[128], want[128];
    dims_text(got, sizeof got, t.ndim, t.dim);
    dims_text(want, sizeof want, ndim, dim);
    CHECK(same, "%s is %s %s, expected %s %s", what, dtype_name(t.dtype), got, dtype_name(d), want);
}
