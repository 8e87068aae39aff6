/* What all foreign formats share: opening, the table of tensors, reading elements. */
#include "data/format.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/bf16.h"
#include "data/format_impl.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "elements are read as they lie");
enum { MAX_NAME = 512, BUFFER = 1 << 18 };

static const struct {
    const char *name;
    size_t size;
    bool is_float;
} types[FORMAT_DTYPES] = {
    [FORMAT_F32] = {"F32", 4, true},   [FORMAT_F16] = {"F16", 2, true},
    [FORMAT_BF16] = {"BF16", 2, true}, [FORMAT_F64] = {"F64", 8, true},
    [FORMAT_I64] = {"I64", 8, false},  [FORMAT_I32] = {"I32", 4, false},
    [FORMAT_I16] = {"I16", 2, false},  [FORMAT_I8] = {"I8", 1, false},
    [FORMAT_U8] = {"U8", 1, false},    [FORMAT_BOOL] = {"BOOL", 1, false},
};

const char *format_dtype_name(enum format_dtype d) { return types[d].name; }
size_t format_dtype_size(enum format_dtype d) { return types[d].size; }
bool format_is_float(enum format_dtype d) { return types[d].is_float; }
const char *format_path(const struct format *f) { return f->path; }
int format_num_tensors(const struct format *f) { return f->num_tensors; }

const struct format_tensor *format_tensor_at(const struct format *f, int i)
{
    CHECK(i >= 0 && i < f->num_tensors, "tensor %d of %d", i, f->num_tensors);
    return &f->tensor[i];
}

/* ---- the table -------------------------------------------------------------------------------*/
bool format_bad(const struct format *f, struct err *e, const char *fmt, ...)
{
    char text[700];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    err_set(e, RC_DATA, "%s: %s", f->path, text);
    return false;
}

struct format_tensor *format_add(struct format *f, const char *name, size_t n, struct err *e)
{
    bool fine = n > 0 && n <= MAX_NAME;
    for (size_t i = 0; fine && i < n; i++) fine = (unsigned char)name[i] >= 32 && name[i] != 127;
    if (!fine) {
        format_bad(f, e,
                   "the name of a tensor (number %d, %zu bytes) is empty, longer than %d bytes or "
                   "holds control characters",
                   f->num_tensors + 1, n, (int)MAX_NAME);
        return NULL;
    }
    if (f->num_tensors == f->room) {
        f->room = f->room ? 2 * f->room : 64;
        f->tensor = realloc(f->tensor, (size_t)f->room * sizeof *f->tensor);
        CHECK(f->tensor, "out of memory");
    }
    struct format_tensor *t = &f->tensor[f->num_tensors++];
    *t = (struct format_tensor){.name = strndup(name, n)};
    CHECK(t->name, "out of memory");
    return t;
}

bool format_count(struct format_tensor *t)
{
    int64_t all = 1; /* as if an empty dimension had one element: strides must be numbers too */
    bool empty = false;
    for (int i = 0; i < t->ndim; i++) {
        if (t->dim[i] < 0 || __builtin_mul_overflow(all, t->dim[i] ? t->dim[i] : 1, &all))
            return false;
        empty = empty || t->dim[i] == 0;
    }
    t->count = empty ? 0 : all;
    return true;
}

void format_in_order(struct format_tensor *t)
{
    int64_t stride = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        t->stride[i] = stride;
        stride *= t->dim[i] ? t->dim[i] : 1;
    }
}

int64_t format_span(const struct format_tensor *t)
{
    int64_t last = 0;
    if (t->count == 0) return 0;
    for (int i = 0; i < t->ndim; i++) {
        int64_t step;
        if (__builtin_mul_overflow(t->dim[i] - 1, t->stride[i], &step) ||
            __builtin_add_overflow(last, step, &last))
            return -1;
    }
    return last < INT64_MAX ? last + 1 : -1;
}

static int by_name(const void *a, const void *b)
{
    const struct format_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

const struct format_tensor *format_find(const struct format *f, const char *name)
{
    const struct format_tensor key = {.name = (char *)(uintptr_t)name};
    return f->num_tensors
               ? bsearch(&key, f->tensor, (size_t)f->num_tensors, sizeof *f->tensor, by_name)
               : NULL;
}

static bool sort_names(struct format *f, struct err *e)
{
    if (f->num_tensors) qsort(f->tensor, (size_t)f->num_tensors, sizeof *f->tensor, by_name);
    for (int i = 1; i < f->num_tensors; i++)
        if (strcmp(f->tensor[i - 1].name, f->tensor[i].name) == 0)
            return format_bad(f, e, "two tensors are called \"%s\"", f->tensor[i].name);
    return true;
}

/* ---- open ------------------------------------------------------------------------------------*/
static bool open_file(struct format *f, struct err *e)
{
    struct stat st;
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not wait */
    if (f->fd < 0) {
        err_set(e, errno == ENOENT ? RC_NOINPUT : RC_IO, "%s: cannot be opened: %s", f->path,
                strerror(errno));
        return false;
    }
    if (fstat(f->fd, &st) != 0 || !S_ISREG(st.st_mode)) return format_bad(f, e, "is no plain file");
    f->size = st.st_size;
    return true;
}

struct format *format_open(const char *path, struct err *e)
{
    static const char end[] = ".safetensors";
    struct format *f = calloc(1, sizeof *f);
    CHECK(f, "out of memory");
    f->path = strdup(path);
    CHECK(f->path, "out of memory");
    const size_t n = strlen(path), tail = sizeof end - 1;
    const bool plain = n >= tail && strcmp(path + n - tail, end) == 0;
    if (open_file(f, e) && (plain ? format_open_safetensors(f, e) : format_open_torch(f, e)) &&
        sort_names(f, e))
        return f;
    format_close(f);
    return NULL;
}

void format_close(struct format *f)
{
    if (!f) return;
    for (int i = 0; i < f->num_tensors; i++) free(f->tensor[i].name);
    free(f->tensor);
    free(f->path);
    if (f->fd >= 0) close(f->fd);
    free(f);
}

/* ---- read ------------------------------------------------------------------------------------*/
bool format_bytes(const struct format *f, int64_t at, void *out, size_t n, struct err *e)
{
    char *to = out;
    while (n > 0) {
        const ssize_t got = pread(f->fd, to, n, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            err_set(e, RC_IO, "%s: %s at byte %lld", f->path,
                    got < 0 ? strerror(errno) : "ends (it was longer when it was opened)",
                    (long long)at);
            return false;
        }
        to += got;
        at += got;
        n -= (size_t)got;
    }
    return true;
}

/* Sign, 5 bits of exponent (bias 15), 10 of fraction. */
static float half_to_float(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h >> 15) << 31, exponent = h >> 10 & 31, fraction = h & 1023;
    uint32_t u = sign | (exponent + 112) << 23 | fraction << 13;
    if (exponent == 31) u = sign | 0x7f800000u | fraction << 13;
    float f;
    memcpy(&f, &u, 4);
    if (exponent == 0) f = (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f; /* exact */
    return f;
}

#define CASE(tag, type, value)                                      \
    case tag:                                                       \
        for (int64_t i = 0; i < n; i++, p += step * sizeof(type)) { \
            type x;                                                 \
            memcpy(&x, p, sizeof x);                                \
            out[i] = (double)(value);                               \
        }                                                           \
        break
/* n elements, `step` elements apart */
static void decode(enum format_dtype d, const uint8_t *p, size_t step, int64_t n, double *out)
{
    switch (d) {
        CASE(FORMAT_F32, float, x);
        CASE(FORMAT_F16, uint16_t, half_to_float(x));
        CASE(FORMAT_BF16, uint16_t, bf16_to(x));
        CASE(FORMAT_F64, double, x);
        CASE(FORMAT_I64, int64_t, x);
        CASE(FORMAT_I32, int32_t, x);
        CASE(FORMAT_I16, int16_t, x);
        CASE(FORMAT_I8, int8_t, x);
        CASE(FORMAT_U8, uint8_t, x);
        CASE(FORMAT_BOOL, uint8_t, x != 0);
    case FORMAT_DTYPES:
        CHECK(false, "no type");
    }
}
#undef CASE

static bool in_order(const struct format_tensor *t)
{
    int64_t stride = 1;
    if (t->count == 0) return true;
    for (int i = t->ndim - 1; i >= 0; stride *= t->dim[i--])
        if (t->dim[i] != 1 && t->stride[i] != stride) return false;
    return true;
}

/* Elements [first, first+n) of a tensor whose span is in `all`: row by row of its last dimension.
 */
static void pick(const struct format_tensor *t, const uint8_t *all, int64_t first, int64_t n,
                 double *out)
{
    const size_t size = types[t->dtype].size;
    const int last = t->ndim - 1; /* there is one: a scalar lies in order */
    while (n > 0) {
        int64_t rest = first, at = 0;
        for (int i = last; i >= 0; rest /= t->dim[i--]) at += rest % t->dim[i] * t->stride[i];
        int64_t run = t->dim[last] - first % t->dim[last];
        if (run > n) run = n;
        decode(t->dtype, all + (size_t)at * size, (size_t)t->stride[last], run, out);
        out += run;
        first += run;
        n -= run;
    }
}

/* At most BUFFER elements of them at a time go to `take`, as doubles. */
static void read_range(struct format *f, const struct format_tensor *t, int64_t first, int64_t n,
                       void (*take)(void *out, int64_t at, const double *x, int64_t n), void *out,
                       struct err *e)
{
    CHECK(first >= 0 && n >= 0 && n <= t->count - first, "%s: elements %lld to %lld of %lld",
          t->name, (long long)first, (long long)(first + n), (long long)t->count);
    const size_t size = types[t->dtype].size;
    const bool plain = in_order(t);
    const int64_t room = n < BUFFER ? n + 1 : BUFFER;
    const size_t bytes = (size_t)(plain ? room : format_span(t)) * size;
    double *x = malloc((size_t)room * sizeof *x);
    uint8_t *raw = malloc(bytes);
    if (!x || !raw)
        err_set(e, RC_TEMP, "%s: no memory for %zu bytes of \"%s\"", f->path, bytes, t->name);
    bool ok = x && raw && (plain || n == 0 || format_bytes(f, t->offset, raw, bytes, e));
    for (int64_t at = 0; ok && at < n; at += BUFFER) {
        const int64_t part = n - at < BUFFER ? n - at : BUFFER;
        if (plain) {
            ok = format_bytes(f, t->offset + (first + at) * (int64_t)size, raw, (size_t)part * size,
                              e);
            if (ok) decode(t->dtype, raw, 1, part, x);
        } else {
            pick(t, raw, first + at, part, x);
        }
        if (ok) take(out, at, x, part);
    }
    free(raw);
    free(x);
}

static void take_f32(void *out, int64_t at, const double *x, int64_t n)
{
    float *to = (float *)out + at;
    for (int64_t i = 0; i < n; i++) to[i] = (float)x[i];
}

static void take_f64(void *out, int64_t at, const double *x, int64_t n)
{
    memcpy((double *)out + at, x, (size_t)n * sizeof *x);
}

void format_read_f32(struct format *f, const struct format_tensor *t, int64_t first, int64_t count,
                     float *out, struct err *e)
{
    read_range(f, t, first, count, take_f32, out, e);
}

void format_read_f64(struct format *f, const struct format_tensor *t, int64_t first, int64_t count,
                     double *out, struct err *e)
{
    read_range(f, t, first, count, take_f64, out, e);
}
