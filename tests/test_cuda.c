/* The cuda device beyond the cases of test_ops, which run on every device of the machine: how it is
 * found, sizes that need more than one block or strip, and equal bits from run to run. */
#include <dlfcn.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/check.h"

static bool here(void)
{
    if (dev_supports("cuda", DT_F32)) return true;
    test_skip("no cuda device (make CUDA=1, and a GPU)");
    return false;
}

static void open_cuda(void *arg)
{
    (void)arg;
    dev_close(dev_open("cuda", DT_F32, 1));
}

/* libosp_cuda.so of this build: one folder above the tests. */
static bool library_here(void)
{
    char path[PATH_MAX + 32];
    const ssize_t n = readlink("/proc/self/exe", path, PATH_MAX);
    CHECK(n > 0 && n < PATH_MAX, "/proc/self/exe cannot be read");
    path[n] = 0;
    char *slash = strrchr(path, '/');
    snprintf(slash, sizeof path - (size_t)(slash - path), "/../libosp_cuda.so");
    return access(path, F_OK) == 0;
}

/* The only reasons there may be for having no cuda device. That a library which is there cannot be
 * loaded is none: it would be so on a machine with a GPU, too. */
static const char *reason(void)
{
    if (!library_here()) return "device cuda: this build has no CUDA device";
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!driver) return "device cuda: no NVIDIA driver";
    dlclose(driver);
    return "device cuda: no GPU";
}

static void test_found(struct comm *w)
{
    (void)w;
    bool listed = false;
    for (const char *const *n = dev_names(); *n; n++) listed |= strcmp(*n, "cuda") == 0;
    EXPECT(listed == dev_supports("cuda", DT_F32), "the list and dev_supports disagree");
    EXPECT(listed == dev_supports("cuda", DT_BF16), "f32 and bf16 disagree");
    EXPECT(!dev_supports("cuda", DT_F64), "f64");
    if (!listed) {
        expect_stop(reason(), RC_CONFIG, open_cuda, NULL);
        return;
    }
    struct dev *d = dev_open("cuda", DT_BF16, 1);
    char text[256];
    dev_describe(d, text, sizeof text);
    EXPECT(strstr(text, "cuda bf16 | GPU") == text, "described as \"%s\"", text);
    dev_close(d);
}

/* c = gelu(a b' + bias), its own attention, norm and sums: the result and what it was made of. */
static void chain(struct dev *d, int64_t rows, int64_t C, int64_t heads, double *out)
{
    const enum dtype T = d->compute;
    const struct rng_stream s = rng_open((struct rng_key){.seed = 4, .use = RNG_TEST});
    struct tensor a = dev_tensor(d, T, 2, DIMS(rows, C)), b = dev_tensor(d, T, 2, DIMS(C, C));
    struct tensor y = dev_tensor(d, T, 2, DIMS(rows, C)), aux = dev_tensor(d, T, 2, DIMS(rows, C));
    struct tensor bias = dev_tensor(d, T, 1, DIMS(C)), o = dev_tensor(d, T, 2, DIMS(rows, C));
    struct tensor lse = dev_tensor(d, DT_F32, 2, DIMS(rows, heads));
    struct tensor sum = dev_tensor(d, DT_F64, 1, DIMS(1)), col = dev_tensor(d, DT_F32, 1, DIMS(C));
    d->ops->rng_normal(d, a, s, 0, 1);
    d->ops->rng_normal(d, b, s, 7, 1 / sqrt((double)C));
    d->ops->rng_uniform(d, bias, s, 3, -1, 1);
    d->ops->gemm(d, &(struct gemm_args){.c = y,
                                        .a = a,
                                        .b = b,
                                        .trans_b = true,
                                        .alpha = 1,
                                        .epilogue = EPI_BIAS_GELU,
                                        .bias = bias,
                                        .aux = aux});
    const int32_t first = 0, n = (int32_t)rows;
    const struct seqs all = {1, &first, &n, &first, &n};
    const struct attn_args attn = {
        tensor_heads(o, heads), lse,  tensor_heads(a, heads),       tensor_heads(aux, heads),
        tensor_heads(y, heads), &all, 1 / sqrt((double)(C / heads))};
    d->ops->attn_fwd(d, &attn);
    d->ops->fill(d, sum, 0);
    d->ops->sumsq(d, sum, &o, 1);
    d->ops->fill(d, col, 0);
    d->ops->gemm(d, &(struct gemm_args){.c = b, .a = o, .b = a, .trans_a = true, .alpha = 1});
    struct tensor wide = dev_tensor(d, DT_F32, 2, DIMS(rows, C));
    d->ops->cast(d, wide, o);
    d->ops->colsum_add(d, col, wide);
    dev_get_f64(d, out, o);
    dev_get_f64(d, out + rows * C, b);
    dev_get_f64(d, out + (rows + C) * C, col);
    dev_get_f64(d, out + (rows + C + 1) * C, sum);
    const struct tensor free_them[] = {a, b, y, aux, bias, o, lse, sum, col, wide};
    for (int i = 0; i < 10; i++) dev_free(d, free_them[i].data);
}

static void test_chain(struct comm *w)
{
    (void)w;
    if (!here()) return;
    const int64_t rows = 1500, C = 768, heads = 6, part[] = {rows * C, C * C, C, 1};
    const size_t n = (size_t)((rows + C + 1) * C + 1);
    double *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
    double *again = malloc(n * sizeof *again);
    CHECK(want && got && again, "out of memory");
    struct dev *c = dev_open("cpu", DT_F32, 0);
    chain(c, rows, C, heads, want);
    dev_close(c);
    for (int t = 0; t < 2; t++) {
        struct dev *d = dev_open("cuda", t ? DT_BF16 : DT_F32, 0);
        chain(d, rows, C, heads, got);
        chain(d, rows, C, heads, again);
        EXPECT(memcmp(got, again, n * sizeof *got) == 0, "%s: two runs differ", t ? "bf16" : "f32");
        dev_close(d);
        int64_t at = 0;
        for (int i = 0; i < 4; i++) {
            const char *name[] = {"attention", "weight gradient", "column sums", "sum of squares"};
            if (t)
                EXPECT(norm_error(got + at, want + at, part[i]) <= 1e-2, "%s: L2 error %.3g",
                       name[i], norm_error(got + at, want + at, part[i]));
            else
                expect_close(name[i], got + at, want + at, part[i], 1e-5);
            at += part[i];
        }
    }
    free(want);
    free(got);
    free(again);
}

/* The f32 array between a bf16 product and its epilogue holds 2^24 elements: here are more. */
static void test_strips(struct comm *w)
{
    (void)w;
    if (!here()) return;
    const int64_t m = 4200, n = 4096, k = 16;
    struct dev *d = dev_open("cuda", DT_BF16, 0);
    struct tensor c = dev_tensor(d, DT_BF16, 2, DIMS(m, n)),
                  a = dev_tensor(d, DT_BF16, 2, DIMS(m, k));
    struct tensor b = dev_tensor(d, DT_BF16, 2, DIMS(n, k)),
                  bias = dev_tensor(d, DT_BF16, 1, DIMS(n));
    d->ops->fill(d, a, 0.5);
    d->ops->fill(d, b, 0.25);
    d->ops->fill(d, bias, 3);
    d->ops->fill(d, c, NAN);
    d->ops->gemm(d, &(struct gemm_args){.c = c,
                                        .a = a,
                                        .b = b,
                                        .trans_b = true,
                                        .alpha = 1,
                                        .epilogue = EPI_BIAS,
                                        .bias = bias});
    double *got = malloc((size_t)(m * n) * sizeof *got);
    CHECK(got, "out of memory");
    dev_get_f64(d, got, c);
    int64_t wrong = 0;
    for (int64_t i = 0; i < m * n; i++) wrong += !(fabs(got[i] - 5) < 1e-6);
    EXPECT(wrong == 0, "%lld of %lld elements are not 5", (long long)wrong, (long long)(m * n));
    free(got);
    const struct tensor all[] = {c, a, b, bias};
    for (int i = 0; i < 4; i++) dev_free(d, all[i].data);
    dev_close(d);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {.name = "the cuda device is listed where it works, and its absence explained",
         .run = test_found},
        {.name = "a chain of large ops equals the cpu and itself, bit by bit", .run = test_chain},
        {.name = "a bf16 epilogue over several strips of rows", .run = test_strips},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
