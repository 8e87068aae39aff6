/* safetensors: the length of a JSON header (u64, little endian), the header, the data. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "data/format_impl.h"

enum { MAX_HEADER = 100000000 }; /* the limit of the format */

struct range { /* of bytes behind the header */
    int64_t from, to;
    const char *name;
};

static bool read_type(const struct format *f, const json_t *j, struct format_tensor *t,
                      struct err *e)
{
    const char *text = json_string_value(json_object_get(j, "dtype"));
    if (!text) return format_bad(f, e, "\"%s\" has no \"dtype\"", t->name);
    for (int d = 0; d < FORMAT_DTYPES; d++)
        if (strcmp(text, format_dtype_name((enum format_dtype)d)) == 0) {
            t->dtype = (enum format_dtype)d;
            return true;
        }
    return format_bad(f, e, "\"%s\" has the type \"%.32s\", which is not known here", t->name,
                      text);
}

static bool read_shape(const struct format *f, const json_t *j, struct format_tensor *t,
                       struct err *e)
{
    const json_t *shape = json_object_get(j, "shape");
    if (!json_is_array(shape)) return format_bad(f, e, "\"%s\" has no \"shape\"", t->name);
    if (json_array_size(shape) > FORMAT_MAXDIM)
        return format_bad(f, e, "\"%s\" has %zu dimensions, at most %d are read here", t->name,
                          json_array_size(shape), (int)FORMAT_MAXDIM);
    t->ndim = (int)json_array_size(shape);
    for (int i = 0; i < t->ndim; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        if (!json_is_integer(d))
            return format_bad(f, e, "dimension %d of \"%s\" is no whole number", i, t->name);
        t->dim[i] = json_integer_value(d);
        if (t->dim[i] < 0)
            return format_bad(f, e, "dimension %d of \"%s\" is %lld", i, t->name,
                              (long long)t->dim[i]);
    }
    if (!format_count(t))
        return format_bad(f, e, "the shape of \"%s\" is larger than any memory", t->name);
    format_in_order(t);
    return true;
}

/* The range of a tensor must lie in the data and be as long as the shape says. */
static bool read_range(const struct format *f, const json_t *j, int64_t data,
                       struct format_tensor *t, struct range *r, struct err *e)
{
    const json_t *o = json_object_get(j, "data_offsets"), *from = json_array_get(o, 0),
                 *to = json_array_get(o, 1);
    const int64_t size = (int64_t)format_dtype_size(t->dtype);
    if (json_array_size(o) != 2 || !json_is_integer(from) || !json_is_integer(to))
        return format_bad(f, e, "\"%s\" has no \"data_offsets\" [first, end]", t->name);
    *r = (struct range){json_integer_value(from), json_integer_value(to), t->name};
    if (r->from < 0 || r->to < r->from || r->to > f->size - data)
        return format_bad(f, e,
                          "the data of \"%s\" would be bytes %lld to %lld of %lld: the file is "
                          "truncated or damaged",
                          t->name, (long long)r->from, (long long)r->to,
                          (long long)(f->size - data));
    int64_t bytes;
    if (__builtin_mul_overflow(t->count, size, &bytes) || bytes != r->to - r->from)
        return format_bad(f, e, "\"%s\" has %lld elements of type %s, but %lld bytes", t->name,
                          (long long)t->count, format_dtype_name(t->dtype),
                          (long long)(r->to - r->from));
    if (r->from % size)
        return format_bad(f, e, "the data of \"%s\" (%s) begin at byte %lld: misaligned", t->name,
                          format_dtype_name(t->dtype), (long long)r->from);
    t->offset = data + r->from;
    return true;
}

static int by_place(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    if (x->from != y->from) return x->from < y->from ? -1 : 1;
    return x->to < y->to ? -1 : x->to > y->to;
}

/* The data are one tensor after the other, to the end of the file. */
static bool require_whole(const struct format *f, struct range *r, int64_t data, struct err *e)
{
    int64_t end = 0;
    if (f->num_tensors) qsort(r, (size_t)f->num_tensors, sizeof *r, by_place);
    for (int i = 0; i < f->num_tensors; i++) {
        if (r[i].from < end)
            return format_bad(f, e, "the data of \"%s\" overlap those of \"%s\"", r[i].name,
                              r[i - 1].name);
        if (r[i].from > end)
            return format_bad(f, e, "%lld bytes in front of the data of \"%s\" belong to nothing",
                              (long long)(r[i].from - end), r[i].name);
        end = r[i].to;
    }
    if (end != f->size - data)
        return format_bad(f, e, "%lld bytes behind the last tensor belong to nothing",
                          (long long)(f->size - data - end));
    return true;
}

static bool read_tensors(struct format *f, json_t *header, int64_t data, struct err *e)
{
    struct range *r = malloc((json_object_size(header) + 1) * sizeof *r);
    CHECK(r, "out of memory");
    bool ok = true;
    const char *name;
    json_t *j;
    json_object_foreach(header, name, j)
    {
        if (strcmp(name, "__metadata__") == 0) continue;
        struct format_tensor *t = format_add(f, name, strlen(name), e);
        ok = t && (json_is_object(j) || format_bad(f, e, "\"%s\" is no object", name)) &&
             read_type(f, j, t, e) && read_shape(f, j, t, e) &&
             read_range(f, j, data, t, &r[f->num_tensors - 1], e);
        if (!ok) break;
    }
    ok = ok && require_whole(f, r, data, e);
    free(r);
    return ok;
}

bool format_open_safetensors(struct format *f, struct err *e)
{
    uint64_t n;
    if (f->size < 8)
        return format_bad(f, e, "has %lld bytes: no safetensors file", (long long)f->size);
    if (!format_bytes(f, 0, &n, sizeof n, e)) return false;
    if (n > MAX_HEADER || (int64_t)n > f->size - 8)
        return format_bad(f, e,
                          "the header would be %llu bytes, the file has %lld: no safetensors file, "
                          "or a truncated one",
                          (unsigned long long)n, (long long)f->size);
    char *text = malloc(n + 1);
    CHECK(text, "out of memory");
    json_error_t why = {0};
    bool ok = format_bytes(f, 8, text, n, e);
    json_t *header = ok ? json_loadb(text, n, JSON_REJECT_DUPLICATES, &why) : NULL;
    if (ok && !json_is_object(header))
        ok = format_bad(f, e, "the header cannot be read: %s (line %d, column %d)",
                        header ? "no object" : why.text, why.line, why.column);
    ok = ok && read_tensors(f, header, 8 + (int64_t)n, e);
    json_decref(header);
    free(text);
    return ok;
}
