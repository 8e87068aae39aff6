/* Speed of the hot ops of a device, one JSON line per case: GF/s of the best and the median run.
 *   bench_ops [-d DEVICE] [-t THREADS] [-n RUNS] [-o FOLDER] [CASE-PART ...]
 * -o: writes the inputs and the outputs of each case to FOLDER/<case>.<array>.bin, as they lie in
 * memory, for a comparison with another program (scripts/bench_cpu.py). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/dev.h"
#include "core/log.h"

enum { MAXRUNS = 64, ARRAYS = 12 };
struct bench {
    const char *name;
    int row; /* of the table in the performance notes */
    enum dtype dtype;
    void (*run)(struct dev *d, const struct tensor *t, const struct bench *b);
    int64_t m, n, k; /* gemm; or attention: rows, heads, head_dim */
};
static const char *folder, *device = "cpu";
static int runs = 5, threads;

/* y = x W^T, dx = dy W, dW = dy^T x; array 0 is the result */
static void forward(struct dev *d, const struct tensor *t, const struct bench *b)
{
    (void)b;
    d->ops->gemm(d,
                 &(struct gemm_args){.c = t[0], .a = t[1], .b = t[2], .trans_b = true, .alpha = 1});
}
static void backward_x(struct dev *d, const struct tensor *t, const struct bench *b)
{
    (void)b;
    d->ops->gemm(d, &(struct gemm_args){.c = t[0], .a = t[1], .b = t[2], .alpha = 1});
}
static void backward_w(struct dev *d, const struct tensor *t, const struct bench *b)
{
    (void)b;
    d->ops->gemm(d,
                 &(struct gemm_args){.c = t[0], .a = t[1], .b = t[2], .trans_a = true, .alpha = 1});
}
static void attn(struct dev *d, const struct tensor *t, const struct bench *b)
{
    const int32_t zero = 0, n = (int32_t)b->m;
    const struct seqs s = {1, &zero, &n, &zero, &n};
    const double scale = 1 / sqrt((double)b->k);
    d->ops->attn_fwd(d, &(struct attn_args){t[0], t[1], t[2], t[3], t[4], &s, scale});
}
/* The sub-sequences of one Skiparse block with P = 2: four of a quarter each. */
static void attn_skiparse(struct dev *d, const struct tensor *t, const struct bench *b)
{
    int32_t first[4], len[4];
    for (int i = 0; i < 4; i++) {
        first[i] = (int32_t)(b->m / 4 * i);
        len[i] = (int32_t)(b->m / 4);
    }
    const struct seqs s = {4, first, len, first, len};
    const double scale = 1 / sqrt((double)b->k);
    d->ops->attn_fwd(d, &(struct attn_args){t[0], t[1], t[2], t[3], t[4], &s, scale});
}

static void attn_both(struct dev *d, const struct tensor *t, const struct bench *b)
{
    const int32_t zero = 0, n = (int32_t)b->m;
    const struct seqs s = {1, &zero, &n, &zero, &n};
    const double scale = 1 / sqrt((double)b->k);
    attn(d, t, b);
    d->ops->attn_bwd(d, &(struct attn_grad_args){.dq = t[5],
                                                 .dk = t[6],
                                                 .dv = t[7],
                                                 .d_o = t[8],
                                                 .o = t[0],
                                                 .lse = t[1],
                                                 .q = t[2],
                                                 .k = t[3],
                                                 .v = t[4],
                                                 .seqs = &s,
                                                 .scale = scale});
}

#define LINEAR(row, type, t, n, k)                                                 \
    {"linear_" type "_4096x" #n "x" #k "_fwd", row, t, forward, 4096, n, k},       \
        {"linear_" type "_4096x" #n "x" #k "_dx", row, t, backward_x, 4096, k, n}, \
    {                                                                              \
        "linear_" type "_4096x" #n "x" #k "_dw", row, t, backward_w, n, k, 4096    \
    }
static const struct bench table[] = {
    LINEAR(1, "f32", DT_F32, 1536, 1536),
    LINEAR(1, "f32", DT_F32, 8960, 1536),
    LINEAR(2, "bf16", DT_BF16, 1536, 1536),
    LINEAR(2, "bf16", DT_BF16, 8960, 1536),
    {"attn_f32_4096_fwd", 3, DT_F32, attn, 4096, 12, 128},
    {"attn_bf16_4096_fwd", 4, DT_BF16, attn, 4096, 12, 128},
    {"attn_f32_4096_skiparse_fwd", 6, DT_F32, attn_skiparse, 4096, 12, 128},
    {"attn_f32_1024_fwd", 0, DT_F32, attn, 1024, 12, 128},
    {"attn_f32_2048_fwdbwd", 5, DT_F32, attn_both, 2048, 12, 128},
    {"attn_bf16_2048_fwdbwd", 5, DT_BF16, attn_both, 2048, 12, 128},
};

static struct tensor filled(struct dev *d, enum dtype t, int ndim, const int64_t *dim, int item)
{
    struct tensor x = dev_tensor(d, t, ndim, dim);
    d->ops->rng_uniform(
        d, x, rng_open((struct rng_key){.seed = 1, .use = RNG_TEST, .item = (uint64_t)item}), 0, -1,
        1);
    return x;
}

static int make(struct dev *d, const struct bench *b, struct tensor *t)
{
    if (b->run != attn && b->run != attn_skiparse && b->run != attn_both) {
        const bool ta = b->run == backward_w, tb = b->run == forward;
        t[0] = filled(d, b->dtype, 2, DIMS(b->m, b->n), 0);
        t[1] = filled(d, b->dtype, 2, DIMS(ta ? b->k : b->m, ta ? b->m : b->k), 1);
        t[2] = filled(d, b->dtype, 2, DIMS(tb ? b->n : b->k, tb ? b->k : b->n), 2);
        return 3;
    }
    const int n = b->run == attn_both ? 9 : 5;
    for (int i = 0; i < n; i++)
        t[i] = i == 1 ? filled(d, DT_F32, 2, DIMS(b->m, b->n), i)
                      : filled(d, b->dtype, 3, DIMS(b->m, b->n, b->k), i);
    return n;
}

static void dump(struct dev *d, const struct bench *b, const struct tensor *t, int n)
{
    for (int i = 0; i < n; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s.%d.bin", folder, b->name, i);
        void *host = malloc(tensor_bytes(t[i]));
        CHECK(host, "out of memory");
        dev_get(d, host, t[i]);
        FILE *f = fopen(path, "wb");
        if (!f || fwrite(host, 1, tensor_bytes(t[i]), f) != tensor_bytes(t[i]) || fclose(f) != 0)
            err_stop(RC_CANTCREAT, "cannot write %s", path);
        free(host);
    }
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void bench_one(const struct bench *b)
{
    struct dev *d = dev_open(device, b->dtype, threads);
    struct tensor t[ARRAYS];
    const int n = make(d, b, t);
    const double pairs = (double)b->m * (double)b->m * (double)b->n * (double)b->k;
    const double flops = b->run == attn            ? 4 * pairs
                         : b->run == attn_skiparse ? pairs
                         : b->run == attn_both     ? 14 * pairs /* 2 products forward, 5 backward */
                                                   : 2 * (double)b->m * (double)b->n * (double)b->k;
    double s[MAXRUNS], cpu[MAXRUNS];  /* by the clock, and of all threads */
    for (int r = -1; r < runs; r++) { /* the first run is not counted */
        const double t0 = log_seconds();
        const clock_t c0 = clock();
        b->run(d, t, b);
        d->ops->sync(d);
        if (r < 0) continue;
        cpu[r] = (double)(clock() - c0) / CLOCKS_PER_SEC;
        s[r] = log_seconds() - t0;
    }
    if (folder) dump(d, b, t, n);
    char what[256];
    dev_describe(d, what, sizeof what);
    qsort(s, (size_t)runs, sizeof *s, by_value);
    printf("{\"case\": \"%s\", \"row\": %d, \"gflops_best\": %.1f, \"gflops_median\": %.1f, "
           "\"seconds\": [",
           b->name, b->row, flops / s[0] / 1e9, flops / s[runs / 2] / 1e9);
    for (int r = 0; r < runs; r++) printf("%s%.5f", r ? ", " : "", s[r]);
    printf("], \"cpu_seconds\": [");
    for (int r = 0; r < runs; r++) printf("%s%.5f", r ? ", " : "", cpu[r]);
    printf("], \"device\": \"%s\"}\n", what);
    fflush(stdout);
    for (int i = 0; i < n; i++) dev_free(d, t[i].data);
    dev_close(d);
}

int main(int argc, char **argv)
{
    const char *part[16];
    int parts = 0;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-' && i + 1 < argc) {
            const char *v = argv[i + 1];
            switch (argv[i++][1]) {
            case 'd':
                device = v;
                break;
            case 't':
                threads = atoi(v);
                break;
            case 'n':
                runs = atoi(v) < 1 ? 1 : atoi(v) > MAXRUNS ? MAXRUNS : atoi(v);
                break;
            case 'o':
                folder = v;
                break;
            default:
                err_stop(RC_USAGE, "bench_ops: unknown option %s", argv[i - 1]);
            }
        } else if (parts < 16) {
            part[parts++] = argv[i];
        }
    }
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        bool wanted = parts == 0;
        for (int p = 0; p < parts; p++) wanted |= strstr(table[i].name, part[p]) != NULL;
        if (wanted) bench_one(&table[i]);
    }
    return 0;
}
