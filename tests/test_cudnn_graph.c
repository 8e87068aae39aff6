/* The graphs of core/cuda/cudnn.c by their numbers: a stand-in for cuDNN (tests/fake_libcudnn.c)
 * runs them operation by operation; dq, dk and dv are compared with finite sums over the formulas,
 * in memory of the strides that the model has. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/bf16.h"
#include "core/cuda/cudnn.h"
#include "core/rng.h"
#include "tests/check.h"

enum { ROWS = 64, WIDTH = 256 };
struct memory { /* each tensor in an array of its own; what is not its own holds a mark */
    uint16_t t[SDPA_TENSORS][ROWS * WIDTH];
    float lse[ROWS * 8], row_sum[ROWS * 8], dq_sum[ROWS * WIDTH];
};

static bool of_keys(int t) { return t == SDPA_K || t == SDPA_V || t == SDPA_DK || t == SDPA_DV; }

static int64_t at(const struct sdpa_shape *s, int t, int64_t b, int64_t h, int64_t i, int64_t x)
{
    return b * s->stride[t][0] + h * s->stride[t][1] + i * s->stride[t][2] + x;
}

static double get(const struct memory *m, const struct sdpa_shape *s, int t, int64_t b, int64_t h,
                  int64_t i, int64_t x)
{
    return (double)bf16_to(m->t[t][at(s, t, b, h, i, x)]);
}

static double dot(const struct memory *m, const struct sdpa_shape *s, int64_t b, int64_t h, int t,
                  int64_t i, int u, int64_t j)
{
    double sum = 0;
    for (int64_t x = 0; x < s->dim; x++) sum += get(m, s, t, b, h, i, x) * get(m, s, u, b, h, j, x);
    return sum;
}

/* What the passes must give for one batch entry and head: [rows][dim] of o, dq, dk, dv, and lse. */
struct want {
    double o[ROWS * WIDTH], dq[ROWS * WIDTH], dk[ROWS * WIDTH], dv[ROWS * WIDTH], lse[ROWS];
};

static void expected(const struct memory *m, const struct sdpa_shape *s, int64_t b, int64_t h,
                     double scale, struct want *w)
{
    const int64_t d = s->dim;
    memset(w, 0, sizeof *w);
    for (int64_t i = 0; i < s->q_len; i++) {
        double p[ROWS], sum = 0, delta = 0;
        for (int64_t j = 0; j < s->k_len; j++)
            sum += p[j] = exp(scale * dot(m, s, b, h, SDPA_Q, i, SDPA_K, j));
        w->lse[i] = log(sum);
        for (int64_t j = 0; j < s->k_len; j++) {
            p[j] /= sum;
            for (int64_t x = 0; x < d; x++) w->o[i * d + x] += p[j] * get(m, s, SDPA_V, b, h, j, x);
            if (s->backward) delta += p[j] * dot(m, s, b, h, SDPA_DO, i, SDPA_V, j);
        }
        for (int64_t j = 0; s->backward && j < s->k_len; j++) {
            const double ds = scale * p[j] * (dot(m, s, b, h, SDPA_DO, i, SDPA_V, j) - delta);
            for (int64_t x = 0; x < d; x++) {
                w->dq[i * d + x] += ds * get(m, s, SDPA_K, b, h, j, x);
                w->dk[j * d + x] += ds * get(m, s, SDPA_Q, b, h, i, x);
                w->dv[j * d + x] += p[j] * get(m, s, SDPA_DO, b, h, i, x);
            }
        }
    }
}

static void compare(const struct memory *m, const struct sdpa_shape *s, int t, const double *want,
                    int64_t b, int64_t h)
{
    static const char *const name[] = {"q", "k", "v", "o", "d_o", "dq", "dk", "dv"};
    const int64_t rows = of_keys(t) ? s->k_len : s->q_len;
    double got[ROWS * WIDTH];
    char text[64];
    for (int64_t i = 0; i < rows * s->dim; i++) got[i] = get(m, s, t, b, h, i / s->dim, i % s->dim);
    snprintf(text, sizeof text, "%s of entry %d, head %d", name[t], (int)b, (int)h);
    expect_close(text, got, want, rows * s->dim, 1.5e-2);
}

static void compare_all(const struct memory *m, const struct sdpa_shape *s, double scale)
{
    struct want *w = malloc(sizeof *w);
    CHECK(w, "out of memory");
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t h = 0; h < s->heads; h++) {
            double lse[ROWS];
            expected(m, s, b, h, scale, w);
            compare(m, s, SDPA_O, w->o, b, h);
            for (int64_t i = 0; i < s->q_len; i++)
                lse[i] = (double)m->lse[(b * s->heads + h) * s->q_len + i];
            expect_close("lse", lse, w->lse, s->q_len, 1e-5);
            if (!s->backward) continue;
            compare(m, s, SDPA_DQ, w->dq, b, h);
            compare(m, s, SDPA_DK, w->dk, b, h);
            compare(m, s, SDPA_DV, w->dv, b, h);
        }
    free(w);
}

/* Elements between the rows of a slice keep their mark. */
static void expect_marks(const struct memory *m, const struct sdpa_shape *s, int t)
{
    static bool own[ROWS * WIDTH];
    memset(own, 0, sizeof own);
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t h = 0; h < s->heads; h++)
            for (int64_t i = 0; i < (of_keys(t) ? s->k_len : s->q_len); i++)
                for (int64_t x = 0; x < s->dim; x++) own[at(s, t, b, h, i, x)] = true;
    int64_t lost = 0;
    for (int64_t i = 0; i < ROWS * WIDTH; i++) lost += !own[i] && m->t[t][i] != 0x4242;
    EXPECT(lost == 0, "tensor %d: %lld elements beside its own were written", t, (long long)lost);
}

static struct sdpa_shape shape(int64_t b, int64_t h, int64_t q, int64_t k, int64_t d, int64_t gap)
{
    struct sdpa_shape s;
    memset(&s, 0, sizeof s);
    s.batch = b;
    s.heads = h;
    s.q_len = q;
    s.k_len = k;
    s.dim = d;
    for (int t = 0; t < SDPA_FORWARD; t++) {
        s.stride[t][2] = h * d + 8 * (t + 1); /* all different: an exchanged one is seen */
        s.stride[t][1] = d;
        s.stride[t][0] = ((of_keys(t) ? k : q) + gap) * s.stride[t][2];
    }
    return s;
}

static void add_backward(struct sdpa_shape *s, int64_t gap)
{
    s->backward = 1;
    for (int t = SDPA_DO; t < SDPA_TENSORS; t++) {
        s->stride[t][2] = s->heads * s->dim + 8 * (t + 1);
        s->stride[t][1] = s->dim;
        s->stride[t][0] = ((of_keys(t) ? s->k_len : s->q_len) + gap) * s->stride[t][2];
    }
}

static void both_passes(struct cudnn *c, struct sdpa_shape s, int64_t gap, float scale)
{
    struct memory *m = calloc(1, sizeof *m);
    struct err why = {0};
    CHECK(m, "out of memory");
    const struct rng_stream r = rng_open((struct rng_key){.seed = 8, .use = RNG_TEST});
    struct sdpa_call call = {
        .lse = m->lse, .row_sum = m->row_sum, .dq_sum = m->dq_sum, .scale = scale};
    for (int t = 0; t < SDPA_TENSORS; t++) {
        call.data[t] = m->t[t];
        for (int64_t i = 0; i < ROWS * WIDTH; i++)
            m->t[t][i] = t == SDPA_O || t > SDPA_DO
                             ? 0x4242
                             : bf16_from((float)rng_normal_at(r, (uint64_t)(t * ROWS * WIDTH + i)));
    }
    EXPECT(cudnn_run(c, &s, &call, NULL, &why), "forward: %s", why.msg);
    compare_all(m, &s, (double)scale);
    expect_marks(m, &s, SDPA_O);
    add_backward(&s, gap);
    EXPECT(cudnn_run(c, &s, &call, NULL, &why), "backward: %s", why.msg);
    compare_all(m, &s, (double)scale);
    for (int t = SDPA_DQ; t < SDPA_TENSORS; t++) expect_marks(m, &s, t);
    free(m);
}

static void test_numbers(struct comm *w)
{
    (void)w;
    struct err why = {0};
    struct cudnn *c = cudnn_open(NULL, &why);
    EXPECT(c, "%s", why.msg);
    if (!c) return;
    both_passes(c, shape(1, 1, 9, 9, 16, 0), 0, 0.25f);
    both_passes(c, shape(1, 3, 11, 5, 24, 0), 0, 0.2f);
    both_passes(c, shape(3, 2, 7, 13, 8, 2), 2, 0.4f);
    cudnn_close(c);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {.name = "both passes of attention give what their formulas say", .run = test_numbers},
    };
    char path[4096] = "";
    CHECK(readlink("/proc/self/exe", path, sizeof path - 32) > 0, "where is this program?");
    strcpy(strrchr(path, '/'), "/fake_libcudnn.so");
    setenv("OSP_CUDNN", path, 1);
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
