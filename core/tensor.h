/* A tensor is a view: it owns nothing and is passed by value. data may be a device address, so
 * only ops follow it. Row-major; dim[0] is the slowest ("rows"). The elements of one row are
 * contiguous; rows may be further apart (ld > width), so that column slices of a fused buffer
 * [rows, 3C] are tensors too. */
#ifndef CORE_TENSOR_H
#define CORE_TENSOR_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype { DT_F32, DT_BF16, DT_F64, DT_I32, DT_I16, DT_U8, DT_COUNT };
enum { TENSOR_MAXDIM = 5 };
struct tensor {
    void *data;
    enum dtype dtype;
    int ndim;
    int64_t dim[TENSOR_MAXDIM];
    int64_t ld; /* elements from row to row; 0: the width, i.e. contiguous */
};

#define DIMS(...) ((const int64_t[]){__VA_ARGS__})
/* SHAPE(x, DT_F32, 2, rows, C): a shape comment that is checked. */
#define SHAPE(t, d, n, ...) tensor_expect((t), #t, (d), (n), DIMS(__VA_ARGS__))

size_t dtype_size(enum dtype d);
const char *dtype_name(enum dtype d);
enum dtype dtype_state(enum dtype compute); /* masters, statistics, reductions: max(f32, compute) */

struct tensor tensor_make(void *data, enum dtype d, int ndim, const int64_t *dim);
int64_t tensor_count(struct tensor t);              /* number of elements */
static inline int64_t tensor_width(struct tensor t) /* elements per row */
{
    int64_t w = 1;
    for (int i = 1; i < t.ndim; i++) w *= t.dim[i];
    return w;
}
static inline int64_t tensor_ld(struct tensor t) /* elements from row to row */
{
    return t.ld ? t.ld : tensor_width(t);
}
size_t tensor_bytes(struct tensor t); /* of a contiguous tensor */
bool tensor_contiguous(struct tensor t);
struct tensor tensor_view(struct tensor t, int ndim, const int64_t *dim); /* same elements */
struct tensor tensor_rows(struct tensor t, int64_t first, int64_t count); /* slice of dim 0 */
/* Columns [first, first+count) of a 2-D tensor. */
struct tensor tensor_cols(struct tensor t, int64_t first, int64_t count);
/* Rows as [rows, heads, head_dim]; keeps ld. */
struct tensor tensor_heads(struct tensor t, int64_t heads);
void tensor_expect(struct tensor t, const char *what, enum dtype d, int ndim, const int64_t *dim);
#endif
