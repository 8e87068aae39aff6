/* Which products the emulated cuda device gives to a library, and what it does itself: the same
 * numbers when the library takes all, only products without an epilogue, or nothing. */
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/bf16.h"
#include "core/rng.h"
#include "tests/check.h"

extern const struct dev_backend dev_cuda_emulated;
extern bool (*emulated_gemm)(const struct gemm_args *g);
extern size_t cuda_gemm_bytes(const struct gemm_args *g);

static int calls[EPI_BIAS_GRAD + 1];

static double get(struct tensor t, int64_t i, int64_t j)
{
    const int64_t at = i * tensor_ld(t) + j;
    return t.dtype == DT_F32 ? (double)((const float *)t.data)[at]
                             : (double)bf16_to(((const uint16_t *)t.data)[at]);
}

static void put(struct tensor t, int64_t i, int64_t j, double x)
{
    const int64_t at = i * tensor_ld(t) + j;
    if (t.dtype == DT_F32)
        ((float *)t.data)[at] = (float)x;
    else
        ((uint16_t *)t.data)[at] = bf16_from((float)x);
}

static double gelu(double z)
{
    return 0.5 * z * (1 + tanh(sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)));
}
static double slope(double z) { return (gelu(z + 1e-4) - gelu(z - 1e-4)) / 2e-4; }

static double epilogue(const struct gemm_args *g, int64_t i, int64_t j, double v)
{
    if (g->epilogue == EPI_BIAS || g->epilogue == EPI_BIAS_GELU) v += get(g->bias, 0, j);
    if (g->epilogue == EPI_BIAS_GELU && g->aux.data) put(g->aux, i, j, v);
    if (g->epilogue == EPI_BIAS_GELU) return gelu(v);
    return g->epilogue == EPI_DGELU ? v * slope(get(g->aux, i, j)) : v;
}

/* A bias gradient is written, as cuBLASLt does it. */
static bool takes_all(const struct gemm_args *g)
{
    const int64_t k = g->trans_a ? g->a.dim[0] : g->a.dim[1];
    calls[g->epilogue]++;
    for (int64_t i = 0; i < g->c.dim[0]; i++) {
        double sum = 0;
        for (int64_t p = 0; p < k; p++) sum += g->trans_a ? get(g->a, p, i) : get(g->a, i, p);
        if (g->epilogue == EPI_BIAS_GRAD) {
            CHECK(g->bias.dtype == DT_F32, "the sums are f32");
            put(g->bias, 0, i, sum);
        }
        for (int64_t j = 0; j < g->c.dim[1]; j++) {
            double v = 0;
            for (int64_t p = 0; p < k; p++)
                v += (g->trans_a ? get(g->a, p, i) : get(g->a, i, p)) *
                     (g->trans_b ? get(g->b, j, p) : get(g->b, p, j));
            v = g->alpha * v + (g->beta != 0 ? g->beta * get(g->c, i, j) : 0);
            put(g->c, i, j, epilogue(g, i, j, v));
        }
    }
    return true;
}

static bool takes_plain(const struct gemm_args *g)
{
    return g->epilogue == EPI_NONE && takes_all(g);
}

enum { M = 21, N = 13, K = 9, LD = 16 };

/* Results of one product: c, aux and bias, as doubles. */
static void run(enum dtype t, enum dtype out, enum epilogue e, double beta, bool trans,
                double got[3][M * LD])
{
    struct dev *d = dev_open(dev_cuda_emulated.name, t, 1);
    const struct rng_stream r = rng_open((struct rng_key){.seed = 5, .use = RNG_TEST});
    const bool grad = e == EPI_BIAS_GRAD;
    struct tensor x[5] = {
        dev_tensor(d, out, 2, DIMS(M, LD)), dev_tensor(d, t, 2, trans ? DIMS(K, M) : DIMS(M, K)),
        dev_tensor(d, t, 2, trans ? DIMS(K, N) : DIMS(N, K)),
        dev_tensor(d, grad ? DT_F32 : t, 1, DIMS(grad ? M : N)), dev_tensor(d, t, 2, DIMS(M, LD))};
    for (int i = 0; i < 5; i++) d->ops->rng_normal(d, x[i], r, (uint64_t)i * 1000, 1);
    d->ops->gemm(d, &(struct gemm_args){.c = tensor_cols(x[0], 0, N),
                                        .a = x[1],
                                        .b = x[2],
                                        .trans_a = trans,
                                        .trans_b = !trans,
                                        .alpha = 0.5,
                                        .beta = beta,
                                        .epilogue = e,
                                        .bias = x[3],
                                        .aux = tensor_cols(x[4], 0, N)});
    memset(got[2], 0, sizeof got[2]);
    dev_get_f64(d, got[0], x[0]);
    dev_get_f64(d, got[1], x[4]);
    dev_get_f64(d, got[2], x[3]);
    for (int i = 0; i < 5; i++) dev_free(d, x[i].data);
    dev_close(d);
}

static void all_ways(enum dtype t, enum dtype out, enum epilogue e, double beta, bool trans)
{
    static bool (*const way[])(const struct gemm_args *) = {NULL, takes_plain, takes_all};
    double want[3][M * LD], got[3][M * LD];
    for (int w = 0; w < 3; w++) {
        memset(calls, 0, sizeof calls);
        emulated_gemm = way[w];
        run(t, out, e, beta, trans, w ? got : want);
        EXPECT((calls[e] > 0) == (w == 2 || (w == 1 && e == EPI_NONE)),
               "epilogue %d, way %d: %d calls of it", (int)e, w, calls[e]);
        EXPECT(w != 1 || calls[EPI_NONE] > 0, "epilogue %d: no plain product", (int)e);
        for (int i = 0; i < 3 && w; i++) {
            char text[64];
            snprintf(text, sizeof text, "epilogue %d, way %d, result %d", (int)e, w, i);
            expect_close(text, got[i], want[i], M * LD, t == DT_F32 ? 1e-5 : 1e-2);
        }
    }
    emulated_gemm = NULL;
}

static void test_ways(struct comm *w)
{
    (void)w;
    for (int e = EPI_NONE; e <= EPI_BIAS_GRAD; e++)
        for (int beta = 0; beta < 2; beta++) {
            all_ways(DT_F32, DT_F32, (enum epilogue)e, beta, e == EPI_BIAS_GRAD);
            all_ways(DT_BF16, e == EPI_BIAS_GRAD ? DT_F32 : DT_BF16, (enum epilogue)e, beta,
                     e == EPI_BIAS_GRAD);
        }
}

/* Scratch of a product: never more than planned; where there is no library, the plan is not more
 * than 5 % beyond. */
static void bytes_of(enum dtype t, enum epilogue e, int64_t m, int64_t n, int64_t k, bool library)
{
    enum { SLACK = 24 }; /* of malloc, which is asked for the size of a block */
    struct dev *d = dev_open(dev_cuda_emulated.name, t, 1);
    const bool grad = e == EPI_BIAS_GRAD;
    struct tensor x[5] = {
        dev_tensor(d, grad ? DT_F32 : t, 2, DIMS(m, n)),
        dev_tensor(d, t, 2, grad ? DIMS(k, m) : DIMS(m, k)), dev_tensor(d, t, 2, DIMS(k, n)),
        dev_tensor(d, grad ? DT_F32 : t, 1, DIMS(grad ? m : n)), dev_tensor(d, t, 2, DIMS(m, n))};
    struct gemm_args g = {.c = x[0],
                          .a = x[1],
                          .b = x[2],
                          .trans_a = grad,
                          .alpha = 1,
                          .epilogue = e,
                          .bias = x[3],
                          .aux = x[4]};
    for (int i = 0; i < 5; i++) d->ops->fill(d, x[i], 0.5);
    emulated_gemm = library ? takes_all : NULL;
    d->ops->gemm(d, &g);
    emulated_gemm = NULL;
    g.a.data = g.b.data = g.c.data = g.bias.data = g.aux.data = (void *)256; /* of a dry run */
    const size_t plan = cuda_gemm_bytes(&g), used = d->impl ? malloc_usable_size(d->impl) : 0;
    EXPECT(plan + SLACK >= used && (library || (double)plan <= 1.05 * (double)used),
           "%s, epilogue %d, [%lld,%lld] over %lld, %s library: %zu bytes planned, %zu taken",
           dtype_name(t), (int)e, (long long)m, (long long)n, (long long)k,
           library ? "with" : "without", plan, used);
    for (int i = 0; i < 5; i++) dev_free(d, x[i].data);
    dev_close(d);
}

static void test_bytes(struct comm *w)
{
    (void)w;
    static const int64_t size[][3] = {{64, 16, 8}, {300, 8, 200}, {7, 1100, 3}, {64, 64, 500}};
    for (int e = EPI_NONE; e <= EPI_BIAS_GRAD; e++)
        for (size_t i = 0; i < sizeof size / sizeof *size; i++)
            for (int way = 0; way < 4; way++)
                bytes_of(way & 1 ? DT_F32 : DT_BF16, (enum epilogue)e, size[i][0], size[i][1],
                         size[i][2], way & 2);
}

int main(int argc, char **argv)
{
    dev_register(&dev_cuda_emulated);
    const struct test t[] = {
        {.name = "products by a library, in part and not at all", .run = test_ways},
        {.name = "scratch is planned to 5 %", .run = test_bytes},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
