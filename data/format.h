/* Files of tensors that other programs write: safetensors, and the zip files of torch.save. One
 * interface: the names, types and shapes of all tensors, known when the file is open, and any range
 * of the elements of one, read with pread. No file is ever read whole, so that checkpoints of many
 * gigabytes cost what is asked for.
 *
 * Nothing in a file is believed: every size, offset and shape is checked against the file before
 * memory is taken or a byte is read. The pickle inside a torch file is not executed: it is read by
 * a small machine that knows dictionaries of tensors (data/format_pickle.h).
 *
 *   safetensors   u64 LE length of a JSON object {name: {"dtype", "shape", "data_offsets"}}, then
 *                 the data: together they fill the file without holes
 *   torch         zip with stored entries: <top>/data.pkl names storages, <top>/data/<key> hold
 *                 them; <top>/byteorder says "little" */
#ifndef DATA_FORMAT_H
#define DATA_FORMAT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
enum format_dtype {
    FORMAT_F32,
    FORMAT_F16,
    FORMAT_BF16,
    FORMAT_F64,
    FORMAT_I64,
    FORMAT_I32,
    FORMAT_I16,
    FORMAT_I8,
    FORMAT_U8,
    FORMAT_BOOL,
    FORMAT_DTYPES
};
enum { FORMAT_MAXDIM = 8 };
struct format_tensor {
    char *name; /* as in the file; no control characters */
    enum format_dtype dtype;
    int ndim;
    int64_t dim[FORMAT_MAXDIM];
    int64_t stride[FORMAT_MAXDIM]; /* elements; torch may store a transposed view */
    int64_t count;                 /* elements */
    int64_t offset;                /* byte of the file where element (0, ..., 0) is */
};
struct format;
/* By the end of the name: ".safetensors", or torch (.bin, .pt, .pth, ...). NULL on error:
 * RC_NOINPUT or RC_IO when it cannot be read, RC_DATA when something in it is wrong, with path,
 * tensor and reason. path is copied. */
struct format *format_open(const char *path, struct err *e);
void format_close(struct format *f); /* NULL is fine */
const char *format_path(const struct format *f);
int format_num_tensors(const struct format *f);
/* Sorted by name; borrowed until format_close. */
const struct format_tensor *format_tensor_at(const struct format *f, int i);
const struct format_tensor *format_find(const struct format *f, const char *name); /* NULL: none */
const char *format_dtype_name(enum format_dtype d);                                /* "F32" */
size_t format_dtype_size(enum format_dtype d);                                     /* bytes */
bool format_is_float(enum format_dtype d);
/* Elements [first, first+count) in row-major order of the shape, on the host. f32 rounds F64 to
 * nearest. A tensor whose elements do not lie in this order (strides of a view) costs memory for
 * all that lies between its first and last one, on every call: read it at once. RC_IO: the file
 * cannot be read, or ends earlier than when it was opened. */
void format_read_f32(struct format *f, const struct format_tensor *t, int64_t first, int64_t count,
                     float *out, struct err *e);
void format_read_f64(struct format *f, const struct format_tensor *t, int64_t first, int64_t count,
                     double *out, struct err *e);
#endif
