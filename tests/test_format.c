/* Foreign files of tensors: every type in safetensors and torch files made byte by byte; damaged
 * files of safetensors, each with the words of its error. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/foreign.h"

/* ---- good files ------------------------------------------------------------------------------*/
static const double some[24] = {0,    1,   2,   3,    4,  5,  6,  7,  8,   9,    10,  11,
                                0.25, 2.5, 100, -1.5, -2, -3, -4, 15, 0.5, 0.75, 127, 1};
static const double whole[24] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11,
                                 12, 13, 99, 98, 97, 96, 20, 21, 22, 23, 24, 127};
static const double bits[6] = {0, 1, 1, 0, 1, 0};
static const struct foreign good[] = {
    /* larger elements first, so that all lie aligned */
    {"f64", FORMAT_F64, 2, {6, 4}, some},   {"i64", FORMAT_I64, 1, {24}, whole},
    {"f32", FORMAT_F32, 2, {4, 6}, some},   {"scalar", FORMAT_F32, 0, {0}, some + 13},
    {"empty", FORMAT_F32, 2, {0, 7}, some}, {"i32", FORMAT_I32, 1, {24}, whole},
    {"bf16", FORMAT_BF16, 1, {24}, some},   {"blocks.0.f16", FORMAT_F16, 3, {2, 3, 4}, some},
    {"i16", FORMAT_I16, 1, {24}, whole},    {"i8", FORMAT_I8, 1, {24}, whole},
    {"u8", FORMAT_U8, 1, {24}, whole},      {"bool", FORMAT_BOOL, 2, {2, 3}, bits},
};
enum { GOOD = sizeof good / sizeof *good };

static void expect_tensor(struct format *f, const struct foreign *want)
{
    const struct format_tensor *t = format_find(f, want->name);
    const int64_t n = foreign_count(want);
    struct err e = {0};
    EXPECT(t && t->dtype == want->dtype && t->ndim == want->ndim && t->count == n &&
               memcmp(t->dim, want->dim, (size_t)t->ndim * sizeof *t->dim) == 0,
           "%s", want->name);
    if (!t) return;
    double x[32];
    float y[32];
    for (int64_t first = 0; first <= n; first++)
        for (int64_t count = 0; count <= n - first; count++) {
            x[count] = y[count] = -77;
            format_read_f64(f, t, first, count, x, &e);
            format_read_f32(f, t, first, count, y, &e);
            int64_t bad = x[count] != -77 || y[count] != -77;
            for (int64_t i = 0; i < count; i++)
                bad += x[i] != want->x[first + i] || y[i] != (float)want->x[first + i];
            EXPECT(!e.code && bad == 0, "%s [%lld, +%lld): %lld wrong %s", want->name,
                   (long long)first, (long long)count, (long long)bad, e.msg);
        }
}

static void expect_all(const char *path)
{
    struct err e = {0};
    struct format *f = format_open(path, &e);
    EXPECT(f, "%s", e.msg);
    if (!f) return;
    EXPECT(format_num_tensors(f) == GOOD && strcmp(format_path(f), path) == 0, "%d tensors",
           format_num_tensors(f));
    for (int i = 0; i < GOOD; i++) expect_tensor(f, &good[i]);
    for (int i = 1; i < format_num_tensors(f); i++)
        EXPECT(strcmp(format_tensor_at(f, i - 1)->name, format_tensor_at(f, i)->name) < 0, "order");
    EXPECT(!format_find(f, "f3") && !format_find(f, "zzz"), "a tensor that is not there");
    format_close(f);
}

static void test_good(struct comm *world)
{
    (void)world;
    struct bytes b = {0};
    safetensors_file(&b, good, GOOD);
    char *path = bytes_write(&b, "good.safetensors");
    expect_all(path);
    free(path);
    b.n = 0;
    torch_file(&b, good, GOOD);
    path = bytes_write(&b, "good.bin");
    expect_all(path);
    free(path);
    bytes_free(&b);
}

/* Bit patterns of half precision, by its definition. */
static void test_half(struct comm *world)
{
    (void)world;
    static const uint16_t bit[] = {0x0000, 0x8000, 0x3c00, 0xbc00, 0x0001, 0x03ff,
                                   0x0400, 0x7bff, 0x3555, 0x7c00, 0xfc00, 0x7e01};
    static const double value[] = {
        0,     -0.0,           1,        -1,        0x1p-24, 0x1p-14 - 0x1p-24, 0x1p-14,
        65504, 0.333251953125, INFINITY, -INFINITY, NAN};
    struct bytes b = {0}, data = {0};
    bytes_add(&data, bit, sizeof bit);
    safetensors_raw(&b, "{\"h\":{\"dtype\":\"F16\",\"shape\":[12],\"data_offsets\":[0,24]}}",
                    &data);
    char *path = bytes_write(&b, "half.safetensors");
    struct err e = {0};
    struct format *f = format_open(path, &e);
    double x[12];
    EXPECT(f, "%s", e.msg);
    if (f) format_read_f64(f, format_find(f, "h"), 0, 12, x, &e);
    for (int i = 0; f && i < 12; i++)
        EXPECT((isnan(value[i]) && isnan(x[i])) ||
                   (x[i] == value[i] && signbit(x[i]) == signbit(value[i])),
               "%04x: %g", bit[i], x[i]);
    format_close(f);
    free(path);
    bytes_free(&b);
    bytes_free(&data);
}

/* More elements than are read at once, and a range in the middle of them. */
static void test_long(struct comm *world)
{
    (void)world;
    enum { N = 600001 };
    double *x = malloc(N * sizeof *x), *got = malloc(N * sizeof *got);
    for (int i = 0; i < N; i++) x[i] = i % 8191;
    const struct foreign t = {"x", FORMAT_F32, 1, {N}, x};
    struct bytes b = {0};
    safetensors_file(&b, &t, 1);
    char *path = bytes_write(&b, "long.safetensors");
    struct err e = {0};
    struct format *f = format_open(path, &e);
    EXPECT(f, "%s", e.msg);
    if (f) {
        format_read_f64(f, format_find(f, "x"), 0, N, got, &e);
        EXPECT(!e.code && memcmp(x, got, N * sizeof *x) == 0, "whole %s", e.msg);
        format_read_f64(f, format_find(f, "x"), 70000, 300007, got, &e);
        EXPECT(!e.code && memcmp(x + 70000, got, 300007 * sizeof *x) == 0, "range %s", e.msg);
        EXPECT(truncate(path, 100000) == 0, "truncate");
        format_read_f64(f, format_find(f, "x"), 0, N, got, &e);
        EXPECT(e.code == RC_IO && strstr(e.msg, "ends (it was longer"), "%s", e.msg);
    }
    format_close(f);
    free(path);
    bytes_free(&b);
    free(x);
    free(got);
}

/* ---- damaged safetensors ---------------------------------------------------------------------*/
#define F4(name, more) "\"" name "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" more "}"
static const struct {
    const char *header, *text;
    int data; /* bytes */
} headers[] = {
    {"{" F4("a", "[0,8]"), "the header cannot be read", 8},
    {"[1]", "the header cannot be read: no object", 0},
    {"{" F4("a", "[0,8]") "} x", "the header cannot be read", 8},
    {"{" F4("a", "[0,8]") "," F4("a", "[8,16]") "}", "duplicate object key", 16},
    {"{\"a\":7}", "\"a\" is no object", 0},
    {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", "\"a\" has no \"dtype\"", 8},
    {"{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[2],\"data_offsets\":[0,2]}}",
     "\"a\" has the type \"F8_E4M3\", which is not known", 2},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", "\"a\" has no \"shape\"", 8},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.5],\"data_offsets\":[0,8]}}",
     "dimension 0 of \"a\" is no whole number", 8},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2,-1],\"data_offsets\":[0,8]}}",
     "dimension 0 of \"a\" is -2", 8},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
     "the shape of \"a\" is larger than any memory", 0},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0,9223372036854775807,2],\"data_offsets\":[0,0]}}",
     "the shape of \"a\" is larger than any memory", 0},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}",
     "\"a\" has 4611686018427387904 elements of type F32, but 0 bytes", 0},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9223372036854775808],\"data_offsets\":[0,0]}}",
     "the header cannot be read", 0},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}",
     "\"a\" has 9 dimensions", 8},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", "\"a\" has no \"data_offsets\"", 8},
    {"{" F4("a", "[0,4,8]") "}", "\"a\" has no \"data_offsets\" [first, end]", 8},
    {"{" F4("a", "[-8,0]") "}", "the data of \"a\" would be bytes -8 to 0 of 8", 8},
    {"{" F4("a", "[8,0]") "}", "the data of \"a\" would be bytes 8 to 0 of 8", 8},
    {"{" F4("a", "[0,8]") "}", "would be bytes 0 to 8 of 7: the file is truncated", 7},
    {"{" F4("a", "[0,9223372036854775807]") "}", "the data of \"a\" would be bytes 0 to 9223", 8},
    {"{" F4("a", "[0,12]") "}", "\"a\" has 2 elements of type F32, but 12 bytes", 12},
    {"{" F4("a", "[0,8]") "," F4("b", "[4,12]") "}", "the data of \"b\" overlap those of \"a\"",
     12},
    {"{" F4("a", "[0,8]") "," F4("b", "[12,20]") "}",
     "4 bytes in front of the data of \"b\" belong to nothing", 20},
    {"{" F4("a", "[0,8]") "}", "3 bytes behind the last tensor belong to nothing", 11},
    {"{\"u\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}," F4("a", "[2,10]") "}",
     "the data of \"a\" (F32) begin at byte 2: misaligned", 10},
    {"{" F4("", "[0,8]") "}", "the name of a tensor (number 1, 0 bytes) is empty", 8},
    {"{" F4("a\\nb", "[0,8]") "}", "control characters", 8},
    {"{" F4("a\\u0000b", "[0,8]") "}", "the header cannot be read", 8},
    {"{" F4("\xff", "[0,8]") "}", "the header cannot be read", 8},
};

static void test_headers(struct comm *world)
{
    (void)world;
    const uint8_t zeros[32] = {0};
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        struct bytes b = {0}, data = {0};
        bytes_add(&data, zeros, (size_t)headers[i].data);
        safetensors_raw(&b, headers[i].header, &data);
        foreign_refused(&b, "bad.safetensors", headers[i].text);
        bytes_free(&b);
        bytes_free(&data);
    }
}

static void test_lengths(struct comm *world)
{
    (void)world;
    struct bytes b = {0};
    foreign_refused(&b, "bad.safetensors", "has 0 bytes: no safetensors file");
    bytes_number(&b, 2, 7);
    foreign_refused(&b, "bad.safetensors", "has 7 bytes: no safetensors file");
    b.n = 0;
    bytes_number(&b, 3, 8);
    bytes_text(&b, "{}");
    foreign_refused(&b, "bad.safetensors", "the header would be 3 bytes, the file has 10");
    b.n = 0;
    bytes_number(&b, UINT64_MAX, 8);
    bytes_text(&b, "{}");
    foreign_refused(&b, "bad.safetensors", "the header would be 18446744073709551615 bytes");
    b.n = 0;
    safetensors_file(&b, good, 4);
    const size_t all = b.n;
    for (b.n = 0; b.n < all; b.n += test_fast() ? 23 : 1)
        foreign_refused(&b, "cut.safetensors", "");
    bytes_free(&b);
    struct err e = {0};
    EXPECT(!format_open("/nowhere/x.safetensors", &e) && e.code == RC_NOINPUT &&
               strstr(e.msg, "/nowhere/x.safetensors: cannot be opened"),
           "%s", e.msg);
    EXPECT(!format_open(test_dir(), &e) && strstr(e.msg, "is no plain file"), "%s", e.msg);
    char *pipe = io_path("%s/pipe.safetensors", test_dir());
    CHECK(mkfifo(pipe, 0600) == 0, "%s cannot be made", pipe);
    EXPECT(!format_open(pipe, &e) && strstr(e.msg, "is no plain file"), "%s", e.msg);
    free(pipe);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "every type, whole and in ranges, of both formats", .run = test_good},
        {.name = "bit patterns of half precision", .run = test_half},
        {.name = "long tensors in pieces; a file that shrinks", .run = test_long},
        {.name = "damaged headers of safetensors are named", .run = test_headers},
        {.name = "truncated safetensors", .run = test_lengths},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
