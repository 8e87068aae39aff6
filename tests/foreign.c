#include "tests/foreign.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/bf16.h"
#include "core/io.h"
#include "tests/check.h"

void bytes_add(struct bytes *b, const void *p, size_t n)
{
    if (b->n + n > b->room) {
        b->room = 2 * (b->n + n);
        b->p = realloc(b->p, b->room);
        CHECK(b->p, "out of memory");
    }
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
}

void bytes_text(struct bytes *b, const char *text) { bytes_add(b, text, strlen(text)); }
void bytes_number(struct bytes *b, uint64_t x, int n) { bytes_add(b, &x, (size_t)n); }

void bytes_free(struct bytes *b)
{
    free(b->p);
    *b = (struct bytes){0};
}

char *bytes_write(const struct bytes *b, const char *name)
{
    char *path = io_path("%s/%s", test_dir(), name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(b->p ? (const void *)b->p : "", 1, b->n, f) == b->n && fclose(f) == 0,
          "%s cannot be written", path);
    return path;
}

/* ---- elements --------------------------------------------------------------------------------*/
int64_t foreign_count(const struct foreign *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->dim[i];
    return n;
}

/* Nearest, ties to even; finite values that a half can hold. */
static uint16_t half_from(double x)
{
    if (isnan(x)) return 0x7e00;
    if (isinf(x)) return x < 0 ? 0xfc00 : 0x7c00;
    const uint16_t sign = signbit(x) ? 0x8000 : 0;
    if (x == 0) return sign;
    int e;
    frexp(x, &e);
    if (e < -13) e = -13; /* subnormal: units of 2^-24 */
    const double unit = ldexp(1, e - 11);
    const long q = lrint(fabs(x) / unit); /* up to 2048 */
    return (uint16_t)(sign + ((e + 13) << 10) + q);
}

void foreign_encode(struct bytes *b, const struct foreign *t)
{
    for (int64_t i = 0; i < foreign_count(t); i++) {
        const double x = t->x[i];
        const float f = (float)x;
        uint64_t u = 0;
        switch (t->dtype) {
        case FORMAT_F32:
            memcpy(&u, &f, 4);
            break;
        case FORMAT_F64:
            memcpy(&u, &x, 8);
            break;
        case FORMAT_F16:
            u = half_from(x);
            break;
        case FORMAT_BF16:
            u = bf16_from(f);
            break;
        default:
            u = (uint64_t)(int64_t)x;
        }
        bytes_number(b, u, (int)format_dtype_size(t->dtype));
    }
}

/* ---- safetensors -----------------------------------------------------------------------------*/
void safetensors_raw(struct bytes *b, const char *header, const struct bytes *data)
{
    bytes_number(b, strlen(header), 8);
    bytes_text(b, header);
    if (data) bytes_add(b, data->p, data->n);
}

void safetensors_file(struct bytes *b, const struct foreign *t, int n)
{
    struct bytes data = {0}, header = {0};
    bytes_text(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < n; i++) {
        char text[256];
        const size_t from = data.n;
        foreign_encode(&data, &t[i]);
        snprintf(text, sizeof text, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t[i].name,
                 format_dtype_name(t[i].dtype));
        bytes_text(&header, text);
        for (int k = 0; k < t[i].ndim; k++) {
            snprintf(text, sizeof text, "%s%lld", k ? "," : "", (long long)t[i].dim[k]);
            bytes_text(&header, text);
        }
        snprintf(text, sizeof text, "],\"data_offsets\":[%zu,%zu]}", from, data.n);
        bytes_text(&header, text);
    }
    bytes_text(&header, "}");
    while (header.n % 8) bytes_text(&header, " ");
    bytes_add(&header, "", 1);
    safetensors_raw(b, (const char *)header.p, &data);
    bytes_free(&header);
    bytes_free(&data);
}

/* ---- zip -------------------------------------------------------------------------------------*/
void zip_add(struct zip_out *z, const char *name, const void *p, size_t n, unsigned wrong)
{
    const size_t begin = z->all.n, size = strlen(name);
    bytes_add(&z->all, "PK\3\4", 4);
    bytes_number(&z->all, 20, 2);
    bytes_number(&z->all, 0, 2);
    bytes_number(&z->all, 0, 8); /* method, time, date, 2 of the checksum */
    bytes_number(&z->all, 0, 2);
    bytes_number(&z->all, n, 4);
    bytes_number(&z->all, n, 4);
    bytes_number(&z->all, size, 2);
    bytes_number(&z->all, 5, 2); /* a field of padding, as torch aligns data */
    bytes_add(&z->all, name, size);
    if (wrong & ZIP_WRONG_LOCAL) z->all.p[z->all.n - 1] ^= 1;
    bytes_add(&z->all, "FB\1\0Z", 5);
    bytes_add(&z->all, p, n);
    for (int i = 0; i < 1 + !!(wrong & ZIP_AGAIN); i++) {
        struct bytes *d = &z->directory;
        const bool big = wrong & ZIP_BIG;
        bytes_add(d, "PK\1\2", 4);
        bytes_number(d, 20, 2);
        bytes_number(d, 20, 2);
        bytes_number(d, wrong & ZIP_ENCRYPTED ? 1 : 0, 2);
        bytes_number(d, wrong & ZIP_COMPRESSED ? 8 : 0, 2);
        bytes_number(d, 0, 8); /* time, date, checksum */
        const uint64_t said = wrong & ZIP_LONG ? 1 << 20 : wrong & ZIP_LONGER ? n + 4 : n;
        bytes_number(d, big ? 0xffffffff : said, 4);
        bytes_number(d, big ? 0xffffffff : said, 4);
        bytes_number(d, size, 2);
        bytes_number(d, big ? 28 : 0, 2);
        bytes_number(d, 0, 8); /* comment, disk, attributes */
        bytes_number(d, 0, 2);
        bytes_number(d, big ? 0xffffffff : wrong & ZIP_FAR ? 1 << 20 : begin, 4);
        bytes_add(d, name, size);
        if (big) {
            bytes_number(d, 1 | 24 << 16, 4);
            bytes_number(d, said, 8);
            bytes_number(d, said, 8);
            bytes_number(d, begin, 8);
        }
        z->entries++;
    }
}

void zip_end(struct zip_out *z, unsigned wrong)
{
    const size_t at = z->all.n, size = z->directory.n;
    bytes_add(&z->all, z->directory.p, size);
    if (!(wrong & ZIP_PLAIN)) {
        const size_t end64 = z->all.n;
        bytes_add(&z->all, "PK\6\6", 4);
        bytes_number(&z->all, 44, 8);
        bytes_number(&z->all, 45 | 45 << 16, 4);
        bytes_number(&z->all, 0, 8);
        bytes_number(&z->all, (uint64_t)z->entries, 8);
        bytes_number(&z->all, (uint64_t)z->entries, 8);
        bytes_number(&z->all, size, 8);
        bytes_number(&z->all, at, 8);
        bytes_add(&z->all, "PK\6\7", 4);
        bytes_number(&z->all, 0, 4);
        bytes_number(&z->all, end64, 8);
        bytes_number(&z->all, 1, 4);
    }
    bytes_add(&z->all, "PK\5\6", 4);
    bytes_number(&z->all, 0, 4);
    bytes_number(&z->all, (uint64_t)z->entries, 2);
    bytes_number(&z->all, (uint64_t)z->entries, 2);
    bytes_number(&z->all, size, 4);
    bytes_number(&z->all, at, 4);
    bytes_number(&z->all, wrong & ZIP_COMMENT ? 4 : 0, 2);
    if (wrong & ZIP_COMMENT) bytes_text(&z->all, "PK\5\6");
}

void zip_out_free(struct zip_out *z)
{
    bytes_free(&z->all);
    bytes_free(&z->directory);
    z->entries = 0;
}

/* ---- pickle ----------------------------------------------------------------------------------*/
void pickle_global(struct bytes *b, const char *module, const char *name)
{
    bytes_text(b, "c");
    bytes_text(b, module);
    bytes_text(b, "\n");
    bytes_text(b, name);
    bytes_text(b, "\n");
}

void pickle_text(struct bytes *b, const char *text)
{
    bytes_text(b, "X");
    bytes_number(b, strlen(text), 4);
    bytes_text(b, text);
}

void pickle_int(struct bytes *b, int64_t x)
{
    if (x >= 0 && x < 256) {
        bytes_text(b, "K");
        bytes_number(b, (uint64_t)x, 1);
    } else if (x >= 0 && x < 65536) {
        bytes_text(b, "M");
        bytes_number(b, (uint64_t)x, 2);
    } else if (x == (int32_t)x) {
        bytes_text(b, "J");
        bytes_number(b, (uint64_t)x, 4);
    } else {
        bytes_add(b, "\x8a\x08", 2);
        bytes_number(b, (uint64_t)x, 8);
    }
}

void pickle_ints(struct bytes *b, const int64_t *x, int n)
{
    bytes_text(b, "(");
    for (int i = 0; i < n; i++) pickle_int(b, x[i]);
    bytes_text(b, "t");
}

const char *torch_storage(enum format_dtype d)
{
    static const char *const name[FORMAT_DTYPES] = {
        "FloatStorage", "HalfStorage",  "BFloat16Storage", "DoubleStorage", "LongStorage",
        "IntStorage",   "ShortStorage", "CharStorage",     "ByteStorage",   "BoolStorage"};
    return name[d];
}

void pickle_tensor(struct bytes *b, const struct pickled *t)
{
    pickle_global(b, "torch._utils", "_rebuild_tensor_v2");
    bytes_text(b, "((");
    pickle_text(b, "storage");
    pickle_global(b, "torch", t->storage);
    pickle_text(b, t->key);
    pickle_text(b, "cpu");
    pickle_int(b, t->numel);
    bytes_text(b, "tQ");
    pickle_int(b, t->first);
    pickle_ints(b, t->dim, t->ndim);
    pickle_ints(b, t->stride, t->ndim);
    bytes_add(b, "\x89", 1);
    pickle_global(b, "collections", "OrderedDict");
    bytes_text(b, ")RtR");
}

void torch_file(struct bytes *b, const struct foreign *t, int n)
{
    struct bytes p = {0};
    struct zip_out z = {0};
    bytes_add(&p, "\x80\x02}q\0(", 6);
    for (int i = 0; i < n; i++) {
        char key[16];
        snprintf(key, sizeof key, "%d", i);
        struct pickled v = {.storage = torch_storage(t[i].dtype),
                            .key = key,
                            .numel = foreign_count(&t[i]),
                            .ndim = t[i].ndim};
        int64_t stride = 1;
        for (int k = t[i].ndim - 1; k >= 0; k--) {
            v.dim[k] = t[i].dim[k];
            v.stride[k] = stride;
            stride *= t[i].dim[k];
        }
        pickle_text(&p, t[i].name);
        pickle_tensor(&p, &v);
    }
    bytes_text(&p, "u.");
    zip_add(&z, "archive/data.pkl", p.p, p.n, 0);
    zip_add(&z, "archive/byteorder", "little", 6, 0);
    for (int i = 0; i < n; i++) {
        char name[40];
        struct bytes x = {0};
        foreign_encode(&x, &t[i]);
        snprintf(name, sizeof name, "archive/data/%d", i);
        zip_add(&z, name, x.p, x.n, 0);
        bytes_free(&x);
    }
    zip_add(&z, "archive/version", "3\n", 2, 0);
    zip_end(&z, 0);
    bytes_add(b, z.all.p, z.all.n);
    zip_out_free(&z);
    bytes_free(&p);
}

void foreign_refused(const struct bytes *b, const char *name, const char *text)
{
    struct err e = {0};
    char *path = bytes_write(b, name);
    struct format *f = format_open(path, &e);
    EXPECT(!f && e.code == RC_DATA && strstr(e.msg, text) && strstr(e.msg, path),
           "wanted \"%s\": %s", text, f ? "it opened" : e.msg);
    format_close(f);
    free(path);
}
