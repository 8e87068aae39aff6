/* Damaged files of tensors (data/format.h). Input i depends on its number only. FUZZ: how many
 * inputs; FUZZ_SECONDS: instead, for so long; FUZZ_FIRST: number of the first one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "tests/check.h"
#include "tests/foreign.h"
#include "tests/wire_damage.h"

static int64_t number; /* of the input, for whoever reads why it ended */
static struct {
    int64_t whole, opened, refused, tensors;
} seen;

/* Called by the address sanitizer. */
void __asan_on_error(void);
void __asan_on_error(void) { fprintf(stderr, "FUZZ_FIRST=%lld FUZZ=1\n", (long long)number); }

/* ---- inputs ----------------------------------------------------------------------------------*/
enum { TENSORS = 4, ELEMENTS = 24 };
static double value[TENSORS][ELEMENTS];
static char name[TENSORS][32];

/* A few small tensors of one type; what they hold fits into every type. */
static int draw_tensors(struct foreign t[TENSORS])
{
    const int n = 1 + (int)below(TENSORS);
    const enum format_dtype d = (enum format_dtype)below(FORMAT_BOOL);
    for (int i = 0; i < n; i++) {
        snprintf(name[i], sizeof name[i], "blocks.%d.%c", i, (char)('a' + below(26)));
        t[i] = (struct foreign){.name = name[i], .dtype = d, .ndim = (int)below(4), .x = value[i]};
        for (int k = 0; k < t[i].ndim; k++) t[i].dim[k] = (int64_t)below(below(8) ? 3 : 4);
        for (int k = 0; k < ELEMENTS; k++) value[i][k] = below(100);
        if (foreign_count(&t[i]) > ELEMENTS) t[i].ndim = 1;
    }
    return n;
}

static const uint64_t odd[] = {0,
                               1,
                               2,
                               7,
                               8,
                               127,
                               128,
                               255,
                               256,
                               65535,
                               65536,
                               INT32_MAX,
                               0x80000000,
                               UINT32_MAX,
                               0x100000000,
                               INT64_MAX,
                               1ull << 63,
                               UINT64_MAX,
                               UINT64_MAX - 7,
                               (uint64_t)INT64_MAX / 4,
                               1ull << 61,
                               0xfffffffe};
static const char spice[] =
    "{}[]\",:-0123456789.eEu(tRQsabchjqrKMJXUTGN\x80\x85\x86\x87\x88\x89\x8a"
    "\x8c\x93\x94\x95PK\1\2\3\4\5\6\7";

static void cut_out(struct bytes *b, size_t at, size_t n)
{
    memmove(b->p + at, b->p + at + n, b->n - at - n);
    b->n -= n;
}

static void put_in(struct bytes *b, size_t at, const uint8_t *p, size_t n)
{
    const uint8_t room[16] = {0};
    bytes_add(b, room, n);
    memmove(b->p + at + n, b->p + at, b->n - at - n);
    memcpy(b->p + at, p, n);
}

static void damage_once(struct bytes *b)
{
    const size_t at = below((uint32_t)b->n), left = b->n - at;
    const uint64_t x = odd[below(sizeof odd / sizeof *odd)];
    const size_t width = (size_t)1 << below(4);
    uint8_t piece[8];
    switch (below(9)) {
    case 0:
        b->p[at] ^= (uint8_t)(1 << below(8));
        return;
    case 1:
        b->p[at] = (uint8_t)spice[below(sizeof spice - 1)];
        return;
    case 2:
        memcpy(b->p + at, &x, width < left ? width : left);
        return;
    case 3:
        b->n = at + 1;
        return;
    case 4:
        cut_out(b, at, 1 + below((uint32_t)(left < 20 ? left : 20)));
        return;
    case 5: /* bytes from elsewhere */
        memcpy(piece, b->p + at, left < 8 ? left : 8);
        put_in(b, below((uint32_t)b->n), piece, left < 8 ? left : 8);
        return;
    case 6: /* a digit */
        for (size_t i = at; i < b->n; i++)
            if (b->p[i] >= '0' && b->p[i] <= '9') {
                b->p[i] = (uint8_t)('0' + below(10));
                return;
            }
        return;
    case 7: /* where the directory of a zip file is */
        if (b->n > 120) b->p[b->n - 1 - below(120)] = (uint8_t)spice[below(sizeof spice - 1)];
        return;
    default:
        b->p[at] = (uint8_t)(b->p[at] + 1 - 2 * (int)below(2));
    }
}

/* ---- what must hold --------------------------------------------------------------------------*/
static void check_tensor(struct format *f, const struct format_tensor *t, int64_t bytes)
{
    struct err e = {0};
    EXPECT(t->count >= 0 && t->count <= bytes && t->offset >= 0 && t->offset <= bytes &&
               format_find(f, t->name) == t,
           "input %lld: \"%s\" has %lld elements at %lld of %lld bytes", (long long)number, t->name,
           (long long)t->count, (long long)t->offset, (long long)bytes);
    if (t->count > bytes) return;
    double *all = malloc((size_t)t->count * sizeof *all + 1),
           *part = malloc((size_t)t->count * sizeof *part + 1);
    const int64_t first = t->count ? below((uint32_t)t->count) : 0,
                  n = t->count ? below((uint32_t)(t->count - first) + 1) : 0;
    format_read_f64(f, t, 0, t->count, all, &e);
    format_read_f64(f, t, first, n, part, &e);
    EXPECT(!e.code, "input %lld: %s", (long long)number, e.msg);
    EXPECT(e.code || memcmp(all + first, part, (size_t)n * sizeof *all) == 0,
           "input %lld: \"%s\" [%lld, +%lld) differs from the whole", (long long)number, t->name,
           (long long)first, (long long)n);
    seen.tensors++;
    free(all);
    free(part);
}

static void check_values(struct format *f, const struct foreign *t, int n)
{
    struct err e = {0};
    for (int i = 0; i < n; i++) {
        const struct format_tensor *x = format_find(f, t[i].name);
        double got[ELEMENTS];
        if (x && x->count <= ELEMENTS) format_read_f64(f, x, 0, x->count, got, &e);
        EXPECT(x && x->count == foreign_count(&t[i]) &&
                   memcmp(got, t[i].x, (size_t)x->count * sizeof *got) == 0,
               "input %lld: \"%s\" has other values", (long long)number, t[i].name);
    }
}

static void put_file(int fd, const struct bytes *b)
{
    CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, b->p, b->n, 0) == (ssize_t)b->n, "the test's file");
}

static void one_input(char *const path[2], const int fd[2])
{
    struct foreign t[TENSORS];
    struct bytes b = {0};
    struct err e = {0};
    draw_from(number);
    const int n = draw_tensors(t), kind = (int)below(2), times = (int)below(4);
    (kind ? torch_file : safetensors_file)(&b, t, n);
    for (int i = 0; i < times && b.n > 1; i++) damage_once(&b);
    if (!kind && times && below(2) && b.n > 16) { /* the header may still be found */
        const uint8_t *end = memchr(b.p + 8, 0, b.n - 8);
        const uint64_t size = end ? (uint64_t)(end - b.p - 8) : b.n - 8;
        memcpy(b.p, &size, 8);
    }
    put_file(fd[kind], &b);
    struct format *f = format_open(path[kind], &e);
    EXPECT(f ? !e.code : e.code == RC_DATA && strstr(e.msg, path[kind]), "input %lld: code %d, %s",
           (long long)number, e.code, e.msg);
    EXPECT(f || times, "input %lld: %s", (long long)number, e.msg);
    if (f && !times) check_values(f, t, n);
    for (int i = 0; f && i < format_num_tensors(f); i++)
        check_tensor(f, format_tensor_at(f, i), (int64_t)b.n);
    seen.refused += !f;
    seen.whole += f && !times;
    seen.opened += f && times;
    format_close(f);
    bytes_free(&b);
}

static void fuzz(struct comm *world)
{
    (void)world;
    const char *first = getenv("FUZZ_FIRST"), *seconds = getenv("FUZZ_SECONDS");
    const int64_t from = first ? atoll(first) : 0, inputs = test_inputs(test_fast() ? 5000 : 50000);
    const double end = log_seconds() + (seconds ? atof(seconds) : 0);
    char *path[2] = {io_path("%s/x.safetensors", test_dir()), io_path("%s/x.bin", test_dir())};
    int fd[2];
    for (int i = 0; i < 2; i++) { /* files in memory, under names that say what they are */
        fd[i] = memfd_create("foreign", MFD_CLOEXEC);
        char *to = io_path("/proc/self/fd/%d", fd[i]);
        CHECK(fd[i] >= 0 && symlink(to, path[i]) == 0, "%s cannot be made", path[i]);
        free(to);
    }
    int64_t n = 0;
    for (; seconds ? log_seconds() < end : n < inputs; n++) {
        number = from + n;
        one_input(path, fd);
    }
    printf("    inputs %lld to %lld: %lld whole, %lld damaged ones opened, %lld refused; %lld "
           "tensors read\n",
           (long long)from, (long long)(from + n - 1), (long long)seen.whole,
           (long long)seen.opened, (long long)seen.refused, (long long)seen.tensors);
    EXPECT(n < 1000 || (seen.whole > n / 8 && seen.opened > n / 20 && seen.refused > n / 4),
           "too few of a kind");
    for (int i = 0; i < 2; i++) {
        close(fd[i]);
        free(path[i]);
    }
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "damaged files of tensors do no harm, whole ones have their values", .run = fuzz}};
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
