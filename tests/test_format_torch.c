/* Files of torch.save: views, zip files and pickles made byte by byte, right and damaged; each
 * damage with the words of its error. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/foreign.h"

static const double some[24] = {0,    1,   2,   3,    4,  5,  6,  7,  8,   9,    10,  11,
                                0.25, 2.5, 100, -1.5, -2, -3, -4, 15, 0.5, 0.75, 127, 1};
static const struct foreign storage = {"0", FORMAT_F32, 1, {24}, some};

/* ---- right ones ------------------------------------------------------------------------------*/
/* A zip with this pickle and storage 0 = some[] as f32. */
static void zip_of(struct bytes *out, const struct bytes *pickle, const char *order, unsigned wrong)
{
    struct zip_out z = {0};
    struct bytes x = {0};
    foreign_encode(&x, &storage);
    zip_add(&z, "a/data.pkl", pickle->p, pickle->n, wrong & ZIP_BIG);
    if (order) zip_add(&z, "a/byteorder", order, strlen(order), 0);
    zip_add(&z, "a/data/0", x.p, x.n, wrong);
    zip_end(&z, wrong);
    bytes_add(out, z.all.p, z.all.n);
    bytes_free(&x);
    zip_out_free(&z);
}

static const struct pickled plain = {
    .storage = "FloatStorage", .key = "0", .numel = 24, .ndim = 2, .dim = {4, 6}, .stride = {6, 1}};

static void pickle_of(struct bytes *p, const struct pickled *t)
{
    bytes_add(p, "\x80\x02}", 3);
    pickle_text(p, "x");
    pickle_tensor(p, t);
    bytes_text(p, "s.");
}

static struct format *open_view(const struct pickled *t, unsigned zip, struct err *e)
{
    struct bytes p = {0}, b = {0};
    pickle_of(&p, t);
    zip_of(&b, &p, "little", zip);
    char *path = bytes_write(&b, "view.bin");
    struct format *f = format_open(path, e);
    free(path);
    bytes_free(&p);
    bytes_free(&b);
    return f;
}

/* Elements of the view by its definition. */
static void expect_view(const struct pickled *t)
{
    struct err e = {0};
    struct format *f = open_view(t, 0, &e);
    EXPECT(f, "%s", e.msg);
    if (!f) return;
    const struct format_tensor *x = format_find(f, "x");
    double want[24], got[24];
    for (int64_t i = 0; i < x->count; i++) {
        int64_t rest = i, at = t->first;
        for (int k = t->ndim - 1; k >= 0; rest /= t->dim[k--])
            at += rest % t->dim[k] * t->stride[k];
        want[i] = some[at];
    }
    for (int64_t first = 0; first < x->count; first++)
        for (int64_t n = 0; n <= x->count - first; n++) {
            format_read_f64(f, x, first, n, got, &e);
            EXPECT(!e.code && memcmp(got, want + first, (size_t)n * sizeof *got) == 0,
                   "[%lld, +%lld) %s", (long long)first, (long long)n, e.msg);
        }
    format_close(f);
}

static void test_views(struct comm *world)
{
    (void)world;
    struct pickled t = plain;
    expect_view(&t);
    t.dim[0] = 6, t.dim[1] = 4, t.stride[0] = 1, t.stride[1] = 6; /* transposed */
    expect_view(&t);
    t = plain;
    t.first = 7, t.dim[0] = 2, t.dim[1] = 3; /* a window */
    expect_view(&t);
    t.stride[0] = 6, t.stride[1] = 2, t.first = 1; /* every other column */
    expect_view(&t);
    t.ndim = 3, t.first = 2; /* a permutation */
    const int64_t dim[] = {2, 2, 3}, stride[] = {1, 12, 2};
    memcpy(t.dim, dim, sizeof dim);
    memcpy(t.stride, stride, sizeof stride);
    expect_view(&t);
    t = plain;
    t.dim[0] = 1, t.stride[0] = 999; /* the stride of one element means nothing */
    expect_view(&t);
}

static void test_zips(struct comm *world)
{
    (void)world;
    const unsigned kinds[] = {0, ZIP_PLAIN, ZIP_COMMENT, ZIP_PLAIN | ZIP_COMMENT, ZIP_BIG};
    for (int i = 0; i < 5; i++) {
        struct err e = {0};
        struct format *f = open_view(&plain, kinds[i], &e);
        double x[24];
        EXPECT(f, "%u: %s", kinds[i], e.msg);
        if (f) format_read_f64(f, format_find(f, "x"), 0, 24, x, &e);
        EXPECT(f && memcmp(x, some, sizeof x) == 0, "%u: values", kinds[i]);
        format_close(f);
    }
}

/* ---- damaged torch files ---------------------------------------------------------------------*/
static void test_bad_zips(struct comm *world)
{
    (void)world;
    struct bytes p = {0}, b = {0};
    foreign_refused(&b, "bad.bin", "is empty");
    bytes_text(&b, "a text that is no zip");
    foreign_refused(&b, "bad.bin", "is no zip file, as torch.save writes them");
    b.n = 0;
    bytes_add(&b, "\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.", 15);
    foreign_refused(&b, "bad.bin", "is in torch's form before the zip files of torch 1.6");
    pickle_of(&p, &plain);
    static const struct {
        unsigned wrong;
        const char *text;
    } cases[] = {{ZIP_COMPRESSED, "its entry \"a/data/0\" is compressed (method 8)"},
                 {ZIP_ENCRYPTED, "its entry \"a/data/0\" is encrypted"},
                 {ZIP_WRONG_LOCAL, "its entry \"a/data/0\" does not begin where"},
                 {ZIP_FAR, "its entry \"a/data/0\" would lie outside of the file"},
                 {ZIP_LONG, "its entry \"a/data/0\" would lie outside of the file"},
                 {ZIP_LONGER, "its entry \"a/data/0\" would lie outside of the file"},
                 {ZIP_AGAIN, "its entries \"a/data/0\" and \"a/data/0\" overlap"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        b.n = 0;
        zip_of(&b, &p, "little", cases[i].wrong);
        foreign_refused(&b, "bad.bin", cases[i].text);
    }
    b.n = 0;
    zip_of(&b, &p, "big", 0);
    foreign_refused(&b, "bad.bin", "its storages are not little-endian (byteorder \"big\")");
    b.n = 0;
    zip_of(&b, &p, "little", 0);
    const size_t all = b.n;
    for (b.n = 0; b.n < all; b.n += test_fast() ? 17 : 1) foreign_refused(&b, "cut.bin", "");
    b.n = all - 1;
    foreign_refused(&b, "cut.bin", "a truncated one: its directory is missing");
    bytes_free(&p);
    bytes_free(&b);
}

/* Numbers of the end records, one at a time: every one is needed. */
static void test_end_records(struct comm *world)
{
    (void)world;
    static const struct {
        int back; /* from the end of the file */
        const char *text;
    } fields[] = {{22 + 20 - 8, "its zip64 directory is missing"},  /* place of the zip64 record */
                  {22 + 20 + 56, "its zip64 directory is damaged"}, /* its signature */
                  {22 + 20 + 24, "bytes has 2147483651 entries"},
                  {22 + 20 + 16, "its zip directory does not end where it should"},
                  {22 + 20 + 8, "its zip directory does not end where it should"}};
    struct bytes p = {0};
    pickle_of(&p, &plain);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        struct bytes b = {0};
        zip_of(&b, &p, "little", 0);
        b.p[b.n - (size_t)fields[i].back + 3] ^= 0x80;
        foreign_refused(&b, "bad.bin", fields[i].text);
        bytes_free(&b);
    }
    bytes_free(&p);
}

static void test_bad_folders(struct comm *world)
{
    (void)world;
    struct bytes p = {0};
    pickle_of(&p, &plain);
    struct zip_out z = {0};
    zip_add(&z, "a/b/data.pkl", p.p, p.n, 0);
    zip_end(&z, 0);
    foreign_refused(&z.all, "bad.bin",
                    "is a zip file, but not one of torch.save: it has no data.pkl");
    zip_out_free(&z);
    zip_add(&z, "a/data.pkl", p.p, p.n, 0);
    zip_add(&z, "b/data.pkl", p.p, p.n, 0);
    zip_end(&z, 0);
    foreign_refused(&z.all, "bad.bin", "it has two pickles, \"a/data.pkl\" and \"b/data.pkl\"");
    zip_out_free(&z);
    zip_add(&z, "a/data.pkl", p.p, p.n, 0);
    zip_add(&z, "a/data.pkl", p.p, p.n, 0);
    zip_end(&z, 0);
    foreign_refused(&z.all, "bad.bin", "it has two entries \"a/data.pkl\"");
    zip_out_free(&z);
    zip_add(&z, "a/data.pkl", p.p, p.n, 0);
    zip_end(&z, 0);
    foreign_refused(&z.all, "bad.bin", "the storage of \"x\" is missing: no entry a/data/0");
    zip_out_free(&z);
    bytes_free(&p);
}

static void expect_view_refused(struct pickled t, const char *text)
{
    struct bytes p = {0}, b = {0};
    pickle_of(&p, &t);
    zip_of(&b, &p, "little", 0);
    foreign_refused(&b, "bad.bin", text);
    bytes_free(&p);
    bytes_free(&b);
}

static void test_bad_tensors(struct comm *world)
{
    (void)world;
    struct pickled t = plain;
    t.key = "1";
    expect_view_refused(t, "no entry a/data/1");
    t.key = "../0";
    expect_view_refused(t, "no entry a/data/../0");
    t = plain, t.numel = 23;
    expect_view_refused(t, "the storage of \"x\" has 23 elements of type F32, but 96 bytes");
    t.numel = -24;
    expect_view_refused(t, "a storage is described otherwise");
    t.numel = INT64_MAX;
    expect_view_refused(t, "has 9223372036854775807 elements of type F32, but 96 bytes");
    t = plain, t.storage = "HalfStorage";
    expect_view_refused(t, "has 24 elements of type F16, but 96 bytes");
    t.storage = "ComplexFloatStorage";
    expect_view_refused(t, "its pickle asks for torch.ComplexFloatStorage");
    t = plain, t.first = 1;
    expect_view_refused(t, "\"x\" would lie outside of its storage");
    t.first = INT64_MAX;
    expect_view_refused(t, "\"x\" would lie outside of its storage");
    t.first = -1;
    expect_view_refused(t, "the shape, strides or place of a tensor are negative");
    t = plain, t.dim[0] = -4;
    expect_view_refused(t, "the shape, strides or place of a tensor are negative");
    t = plain, t.stride[1] = -1;
    expect_view_refused(t, "the shape, strides or place of a tensor are negative");
    t = plain, t.stride[0] = INT64_MAX;
    expect_view_refused(t, "\"x\" would lie outside of its storage");
    t = plain, t.dim[0] = t.dim[1] = 1ll << 32;
    expect_view_refused(t, "the shape of \"x\" is larger than any memory");
    t = plain, t.stride[0] = t.stride[1] = 0;
    expect_view_refused(t, "\"x\" shows the same elements several times (an expanded view)");
    t = plain, t.ndim = 9;
    expect_view_refused(t, "it has more than 8 dimensions");
}

/* ---- pickles ---------------------------------------------------------------------------------*/
/* Raw programs: what is written is what stands there. */
#define P(text) text, sizeof text - 1
static const struct {
    const char *p;
    size_t n;
    const char *text;
} pickles[] = {
    {P("\x80\x02}"), "it ends too early"},
    {P("\x80\x06}."), "another protocol"},
    {P("\x80\x02]."), "its pickle holds a tuple or list, not a dictionary of tensors"},
    {P("\x80\x02}}."), "its pickle holds no single object"},
    {P("\x80\x02."), "its pickle holds no single object"},
    {P("\x80\x02(."), "it takes more from the stack than there is"},
    {P("\x80\x02}.N"), "it goes on after its end"},
    {P("\x80\x02}K\1Ns."), "a key of its dictionary is a number, not a text"},
    {P("\x80\x02}U\1aK\1s."), "\"a\" is a number, not a tensor"},
    {P("\x80\x02}U\5model}s."), "\"model\" is a dictionary, not a tensor"},
    {P("\x80\x02}U\2lrG\0\0\0\0\0\0\0\0s."), "\"lr\" is a number, not a tensor"},
    {P("\x80\x02}(U\1au."), "a key has no value"},
    {P("\x80\x02}u."), "a mark is missing"},
    {P("\x80\x02t."), "a mark is missing"},
    {P("\x80\x02(u."), "it takes more from the stack than there is"},
    {P("\x80\x02}s."), "it takes more from the stack than there is"},
    {P("\x80\x02\x87."), "it takes more from the stack than there is"},
    {P("\x80\x02(K\1\x86."), "it takes more from the stack than there is"},
    {P("\x80\x02NU\1aNs."), "it fills something that is no collection"},
    {P("\x80\x02}U\1aa."), "it fills something that is no collection"},
    {P("\x80\x02h\0."), "it recalls what it never remembered"},
    {P("\x80\x02}q\5h\4."), "it recalls what it never remembered"},
    {P("\x80\x02}r\xff\xff\xff\xff."), "it remembers more than it has"},
    {P("\x80\x02q\0."), "it takes more from the stack than there is"},
    {P("\x80\x02X\xff\xff\xff\xff"), "it ends in the middle of a text"},
    {P("\x80\x02J\1\2"), "it ends in the middle of an instruction"},
    {P("\x80\x02\x8a\x09\1\1\1\1\1\1\1\1\1."), "a number has more than 8 bytes"},
    {P("\x80\x02"
       "cos"),
     "it ends in the middle of a name"},
    {P("\x80\x02"
       "cos\nsystem\n(U\x05touchtR."),
     "its pickle asks for os.system, which a file of tensors does not need"},
    {P("\x80\x02"
       "c__builtin__\neval\n."),
     "its pickle asks for __builtin__.eval"},
    {P("\x80\x04\x95\0\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93."),
     "its pickle asks for posix.system"},
    {P("\x80\x02"
       "ctorch.nn.modules.linear\nLinear\n."),
     "its pickle asks for torch.nn.modules.linear.Linear"},
    {P("\x80\x02"
       "ctorch._utils\n_rebuild_device_tensor_from_numpy\n."),
     "its pickle asks for torch._utils._rebuild_device"},
    {P("\x80\x02"
       "ctorch\x1b\nX\n."),
     "its pickle asks for torch?.X"},
    {P("\x80\x02NN\x93."), "the name of a class is no text"},
    {P("\x80\x02}}R."), "it calls no function"},
    {P("\x80\x02R."), "it takes more from the stack than there is"},
    {P("\x80\x02"
       "ccollections\nOrderedDict\n(NtR."),
     "an OrderedDict is made of something"},
    {P("\x80\x02"
       "ctorch\nFloatStorage\n)R."),
     "it calls a class of storages"},
    {P("\x80\x02"
       "ctorch._utils\n_rebuild_tensor_v2\n)R."),
     "a tensor is described otherwise"},
    {P("\x80\x02"
       "ctorch._utils\n_rebuild_parameter\n(NNNtR."),
     "a parameter is made of something that is no tensor"},
    {P("\x80\x02(U\7storageNNNNtQ."), "a storage is described otherwise"},
    {P("\x80\x02(U\7storage"
       "ccollections\nOrderedDict\nU\0010U\3cpuK\1tQ."),
     "a storage is described otherwise"},
    {P("\x80\x02NQ."), "a storage is described otherwise"},
    {P("\x80\x02NNb."), "it sets the attributes of something"},
    {P("\x80\x02"
       "cos\n"),
     "it ends in the middle of a name"},
    {P("\x80\x02N\x81."), "instruction 0x81, which a file of tensors does not need"},
    {P("\x80\x02(ios\nsystem\n."), "instruction 0x69"},
    {P("\x80\x02P1\n."), "instruction 0x50"},
    {P("\x80\x02\x82\1."), "instruction 0x82"},
};

static void test_pickles(struct comm *world)
{
    (void)world;
    for (size_t i = 0; i < sizeof pickles / sizeof *pickles; i++) {
        struct bytes b = {0};
        const struct bytes p = {(uint8_t *)(uintptr_t)pickles[i].p, pickles[i].n, pickles[i].n};
        zip_of(&b, &p, "little", 0);
        foreign_refused(&b, "bad.bin", pickles[i].text);
        bytes_free(&b);
    }
}

static void expect_two(const struct bytes *p, const char *text)
{
    struct bytes b = {0};
    zip_of(&b, p, NULL, 0);
    if (text) {
        foreign_refused(&b, "two.bin", text);
    } else {
        struct err e = {0};
        char *path = bytes_write(&b, "two.bin");
        struct format *f = format_open(path, &e);
        double x[24];
        EXPECT(f && format_num_tensors(f) == 2, "%s", e.msg);
        if (f) format_read_f64(f, format_find(f, "y"), 0, 24, x, &e);
        EXPECT(f && memcmp(x, some, sizeof x) == 0, "values");
        format_close(f);
        free(path);
    }
    bytes_free(&b);
}

/* What state dictionaries and parameters look like; two names for one storage; one name twice. */
static void test_good_pickles(struct comm *world)
{
    (void)world;
    struct bytes p = {0};
    bytes_add(&p, "\x80\x02", 2);
    pickle_global(&p, "collections", "OrderedDict");
    bytes_add(&p, ")Rq\0(", 5);
    pickle_text(&p, "x");
    pickle_tensor(&p, &plain);
    bytes_add(&p, "q\1", 2);
    pickle_text(&p, "y");
    pickle_global(&p, "torch._utils", "_rebuild_parameter");
    bytes_add(&p, "h\1\x88", 3);
    pickle_global(&p, "collections", "OrderedDict");
    bytes_add(&p, ")R\x87Ru}", 6);
    pickle_text(&p, "_metadata");
    bytes_text(&p, "}sb."); /* attributes of a state_dict */
    expect_two(&p, NULL);
    p.n = 0;
    bytes_add(&p, "\x80\x02}(", 4);
    for (int i = 0; i < 2; i++) {
        pickle_text(&p, "x");
        pickle_tensor(&p, &plain);
    }
    bytes_text(&p, "u.");
    expect_two(&p, "two tensors are called \"x\"");
    bytes_free(&p);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "windows, transposed and permuted views", .run = test_views},
        {.name = "zip files with and without zip64 and comment", .run = test_zips},
        {.name = "pickles of state dictionaries and parameters", .run = test_good_pickles},
        {.name = "damaged zip files are named", .run = test_bad_zips},
        {.name = "damaged end records of a zip file", .run = test_end_records},
        {.name = "zip files that are not of torch", .run = test_bad_folders},
        {.name = "tensors that do not fit into their storage", .run = test_bad_tensors},
        {.name = "pickles that want more than tensors are read, not executed", .run = test_pickles},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
