#include "tests/fake_cudnn.h"

#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/bf16.h"
#include "core/err.h"

enum { WORKSPACE = 777 };

int64_t cudnn_workspace(struct cudnn *c, const struct sdpa_shape *s, struct err *why)
{
    if (s->q_len != c->refused_len) return WORKSPACE;
    err_set(why, RC_HARDWARE, "the stand-in has no plan for this length");
    return -1;
}

struct item { /* one batch entry and head */
    const struct sdpa_shape *s;
    const struct sdpa_call *call;
    int64_t b, h;
};

static uint16_t *at(const struct item *m, enum sdpa_tensor t, int64_t row, int64_t x)
{
    const int64_t *by = m->s->stride[t];
    return (uint16_t *)m->call->data[t] + m->b * by[0] + m->h * by[1] + row * by[2] + x;
}

static double get(const struct item *m, enum sdpa_tensor t, int64_t row, int64_t x)
{
    return (double)bf16_to(*at(m, t, row, x));
}

static double dot(const struct item *m, enum sdpa_tensor t, int64_t i, enum sdpa_tensor u,
                  int64_t j)
{
    double sum = 0;
    for (int64_t x = 0; x < m->s->dim; x++) sum += get(m, t, i, x) * get(m, u, j, x);
    return sum;
}

static float *column(const struct item *m, void *p, int64_t row)
{
    return (float *)p + (m->b * m->s->heads + m->h) * m->s->q_len + row;
}

static void forward(const struct item *m)
{
    const int64_t n = m->s->k_len;
    double *p = malloc((size_t)n * sizeof *p);
    CHECK(p, "out of memory");
    for (int64_t i = 0; i < m->s->q_len; i++) {
        double top = -INFINITY, sum = 0;
        for (int64_t j = 0; j < n; j++) {
            p[j] = (double)m->call->scale * dot(m, SDPA_Q, i, SDPA_K, j);
            if (p[j] > top) top = p[j];
        }
        for (int64_t j = 0; j < n; j++) sum += p[j] = exp(p[j] - top);
        *column(m, m->call->lse, i) = (float)(top + log(sum));
        for (int64_t x = 0; x < m->s->dim; x++) {
            double o = 0;
            for (int64_t j = 0; j < n; j++) o += p[j] / sum * get(m, SDPA_V, j, x);
            *at(m, SDPA_O, i, x) = bf16_from((float)o);
        }
    }
    free(p);
}

/* out[row][x] = sum over the other side of weight[row][other] * t[other][x] */
static void product(const struct item *m, enum sdpa_tensor out, int64_t rows, const double *weight,
                    int64_t step, int64_t other_step, enum sdpa_tensor t, int64_t others)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t x = 0; x < m->s->dim; x++) {
            double sum = 0;
            for (int64_t j = 0; j < others; j++)
                sum += weight[i * step + j * other_step] * get(m, t, j, x);
            *at(m, out, i, x) = bf16_from((float)sum);
        }
}

static void backward(const struct item *m)
{
    const int64_t q = m->s->q_len, k = m->s->k_len;
    double *p = calloc((size_t)(q * k), sizeof *p), *ds = calloc((size_t)(q * k), sizeof *ds);
    CHECK(p && ds, "out of memory");
    for (int64_t i = 0; i < q; i++) {
        const float d = *column(m, m->call->row_sum, i) = (float)dot(m, SDPA_DO, i, SDPA_O, i);
        const double lse = (double)*column(m, m->call->lse, i), scale = (double)m->call->scale;
        for (int64_t j = 0; j < k; j++) {
            p[i * k + j] = exp(scale * dot(m, SDPA_Q, i, SDPA_K, j) - lse);
            ds[i * k + j] = scale * p[i * k + j] * (dot(m, SDPA_DO, i, SDPA_V, j) - (double)d);
        }
    }
    product(m, SDPA_DQ, q, ds, k, 1, SDPA_K, k);
    product(m, SDPA_DK, k, ds, 1, k, SDPA_Q, q);
    product(m, SDPA_DV, k, p, 1, k, SDPA_DO, q);
    free(p);
    free(ds);
}

static void expect_bytes(const void *p, int value, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        CHECK(((const unsigned char *)p)[i] == value, "the room for part %d of a call is shared",
              value);
}

/* Room that the library may write: none of it is another part's, nor the statistics'. */
static void use_room(const struct sdpa_shape *s, const struct sdpa_call *call)
{
    const int64_t column = s->batch * s->heads * s->q_len * 4, wide = column * s->dim;
    memset(call->workspace, 1, WORKSPACE);
    if (!s->backward) memset(call->lse, 2, (size_t)column);
    if (s->backward) {
        memset(call->row_sum, 3, (size_t)column);
        memset(call->dq_sum, 4, (size_t)wide);
        expect_bytes(call->row_sum, 3, column);
    }
    expect_bytes(call->workspace, 1, WORKSPACE);
}

bool cudnn_run(struct cudnn *c, const struct sdpa_shape *s, const struct sdpa_call *call,
               void *stream, struct err *why)
{
    (void)stream, (void)why;
    CHECK(s->q_len != c->refused_len, "this shape was refused");
    c->calls++;
    if (s->batch > c->most_batch) c->most_batch = s->batch;
    const size_t room = malloc_usable_size(call->lse);
    if (room > c->most_room) c->most_room = room;
    use_room(s, call);
    for (int t = 0; t < (s->backward ? SDPA_TENSORS : SDPA_FORWARD); t++)
        CHECK((uintptr_t)call->data[t] % 16 == 0, "tensor %d is not aligned", t);
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t h = 0; h < s->heads; h++)
            (s->backward ? backward : forward)(&(struct item){s, call, b, h});
    return true;
}
