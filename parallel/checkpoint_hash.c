/* The hash that names the weights of a checkpoint. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "parallel/checkpoint.h"

static json_int_t integer(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

static const char *text_of(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static int by_first(const void *a, const void *b)
{
    const json_int_t x = integer(*(json_t *const *)a, "first"),
                     y = integer(*(json_t *const *)b, "first");
    return x < y ? -1 : x > y;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(text_of(*(json_t *const *)a, "name"), text_of(*(json_t *const *)b, "name"));
}

/* The members of an array (of this kind, unless it is NULL), sorted. malloc'ed; they are borrowed.
 */
static const json_t **sorted(const json_t *array, const char *kind, size_t *n,
                             int (*order)(const void *, const void *))
{
    const json_t **all = malloc((json_array_size(array) + 1) * sizeof *all);
    CHECK(all, "out of memory");
    *n = 0;
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *t = json_array_get(array, i);
        if (!kind || strcmp(text_of(t, "kind"), kind) == 0) all[(*n)++] = t;
    }
    qsort((void *)(uintptr_t)all, *n, sizeof *all, order);
    return all;
}

/* Of the whole tensor as one flat array. */
static uint32_t tensor_crc(const json_t *t)
{
    const size_t size = strcmp(text_of(t, "dtype"), "f64") == 0 ? 8 : 4;
    size_t n;
    const json_t **piece = sorted(json_object_get(t, "pieces"), NULL, &n, by_first);
    uint32_t crc = 0;
    for (size_t i = 0; i < n; i++)
        crc = io_crc32c_join(crc, (uint32_t)integer(piece[i], "crc"),
                             (uint64_t)integer(piece[i], "count") * size);
    free((void *)(uintptr_t)piece);
    return crc;
}

static void print_line(FILE *out, const json_t *t)
{
    const json_t *shape = json_object_get(t, "shape");
    fprintf(out, "%s ", text_of(t, "name"));
    for (size_t k = 0; k < json_array_size(shape); k++)
        fprintf(out, "%s%lld", k ? "x" : "",
                (long long)json_integer_value(json_array_get(shape, k)));
    fprintf(out, " %s %08x\n", text_of(t, "dtype"), tensor_crc(t));
}

void ckpt_hash(const struct ckpt *c, enum state_kind kind, char hex[65])
{
    char *text = NULL;
    size_t size = 0, n;
    FILE *f = open_memstream(&text, &size);
    CHECK(f, "out of memory");
    const json_t **t = sorted(ckpt_tensors(c), ckpt_kind_name(kind), &n, by_name);
    for (size_t i = 0; i < n; i++) print_line(f, t[i]);
    CHECK(fclose(f) == 0, "out of memory");
    uint8_t h[32];
    io_sha256(h, text, size);
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", h[i]);
    free((void *)(uintptr_t)t);
    free(text);
}
