/* What the readers of foreign formats share (private to data/format*.c). Functions that return bool
 * have filled e when they return false. */
#ifndef DATA_FORMAT_IMPL_H
#define DATA_FORMAT_IMPL_H
#include "data/format.h"
struct format {
    int fd;
    char *path;
    int64_t size; /* of the file, bytes */
    int num_tensors, room;
    struct format_tensor *tensor;
};
/* "PATH: text", RC_DATA; returns false. */
bool format_bad(const struct format *f, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* n bytes at `at`, which must lie inside of the file. */
bool format_bytes(const struct format *f, int64_t at, void *out, size_t n, struct err *e);
/* A new tensor with this name (n bytes, copied), its other members zero. NULL: a name that cannot
 * be. Valid until the next one. */
struct format_tensor *format_add(struct format *f, const char *name, size_t n, struct err *e);
/* Sets count. False: a negative dimension, or more elements than numbers. e is not touched. */
bool format_count(struct format_tensor *t);
/* After it: strides of row-major order. */
void format_in_order(struct format_tensor *t);
/* Elements from the first to the last that the tensor has in memory; -1: more than fit. */
int64_t format_span(const struct format_tensor *t);

bool format_open_safetensors(struct format *f, struct err *e);
bool format_open_torch(struct format *f, struct err *e);
#endif
