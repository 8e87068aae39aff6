#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "train/inspect.h"

void shape_string(char *out, size_t size, const struct ckpt_tensor *t)
{
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < t->ndim && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%lld", i ? "x" : "", (long long)t->dim[i]);
}

/* The bytes that are in the file: a double that came from a float goes back without a loss. */
static uint32_t add_crc(uint32_t crc, enum dtype type, const double *x, float *room, int64_t n)
{
    if (type == DT_F64) return io_crc32c(crc, x, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) room[i] = (float)x[i];
    return io_crc32c(crc, room, (size_t)n * sizeof *room);
}

static void scan_tensor(struct ckpt *c, struct tensor_scan *s, double *x, float *room)
{
    double sum = 0, squares = 0;
    for (int64_t at = 0; at < s->t.count; at += SCAN_ELEMENTS) {
        const int64_t n = s->t.count - at < SCAN_ELEMENTS ? s->t.count - at : SCAN_ELEMENTS;
        ckpt_read_f64(c, &s->t, at, n, x);
        s->crc = add_crc(s->crc, s->t.dtype, x, room, n);
        for (int64_t i = 0; i < n; i++) {
            if (!isfinite(x[i])) {
                s->not_finite++;
                continue;
            }
            sum += x[i];
            squares += x[i] * x[i];
            s->max = fmax(s->max, fabs(x[i]));
        }
    }
    const int64_t finite = s->t.count - s->not_finite;
    s->l2 = sqrt(squares);
    s->mean = finite ? sum / (double)finite : 0;
}

static int by_kind_and_name(const void *a, const void *b)
{
    const struct tensor_scan *x = a, *y = b;
    if (x->t.kind != y->t.kind) return x->t.kind < y->t.kind ? -1 : 1;
    return strcmp(x->t.name, y->t.name);
}

struct tensor_scan *scan_checkpoint(struct ckpt *c, int *n)
{
    *n = ckpt_num_tensors(c);
    struct tensor_scan *s = calloc((size_t)*n + 1, sizeof *s);
    double *x = malloc(SCAN_ELEMENTS * sizeof *x);
    float *room = malloc(SCAN_ELEMENTS * sizeof *room);
    CHECK(s && x && room, "out of memory");
    for (int i = 0; i < *n; i++) {
        s[i].t = ckpt_tensor_at(c, i);
        scan_tensor(c, &s[i], x, room);
    }
    qsort(s, (size_t)*n, sizeof *s, by_kind_and_name);
    free(room);
    free(x);
    return s;
}

void scan_hash(const struct tensor_scan *s, int n, enum state_kind kind, char hex[65])
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    CHECK(f, "out of memory");
    for (int i = 0; i < n; i++) {
        char shape[96];
        if (s[i].t.kind != kind) continue;
        shape_string(shape, sizeof shape, &s[i].t);
        fprintf(f, "%s %s %s %08x\n", s[i].t.name, shape, dtype_name(s[i].t.dtype), s[i].crc);
    }
    CHECK(fclose(f) == 0, "out of memory");
    uint8_t h[32];
    io_sha256(h, text, size);
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", h[i]);
    free(text);
}
