/* Part A of `osp bench gpu`: a copy, the matrix products and the attention of the 14B model, each
 * by one call of the device's table. And what all cases share: opening, random numbers, files. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "train/bench_gpu.h"

enum { ITEM_X = 11, ITEM_W, ITEM_DY, ITEM_Q = 21, ITEM_K, ITEM_V, ITEM_DO };
enum { Q, K, V, DO, O, DQ, DK, DV, LSE, ARRAYS };
struct gpu_ops_work {
    struct dev *dev;
    const struct gpu_case *c;
    struct tensor result, a, b; /* gemm: c = a b; copy: b to a */
    struct tensor t[ARRAYS];    /* attention */
    int32_t first[4];
    struct seqs seqs;
};

static struct rng_stream stream_of(uint64_t item)
{
    return rng_open((struct rng_key){.seed = GPU_SEED, .use = RNG_TEST, .item = item});
}

void gpu_normal(struct dev *dev, struct tensor x, uint64_t item, double std)
{
    dev->ops->rng_normal(dev, x, stream_of(item), 0, std);
}

double gpu_normal_at(uint64_t item, uint64_t index)
{
    return (double)(float)rng_normal_at(stream_of(item), index);
}

void gpu_write(struct dev *dev, struct tensor x, const int64_t *row, const char *folder,
               const char *name)
{
    const int64_t rows = x.dim[0], width = tensor_width(x);
    double *host = malloc((size_t)(rows * width) * sizeof *host);
    float *out = malloc((size_t)(rows * width) * sizeof *out);
    CHECK(host && out, "out of memory");
    dev_get_f64(dev, host, x);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++)
            out[r * width + i] = (float)host[(row ? row[r] : r) * width + i];
    char *path = io_path("%s/%s.f32", folder, name);
    struct err e = {0};
    const int fd = io_open_write(path, &e);
    err_raise(&e);
    io_pwrite(fd, out, (size_t)(rows * width) * sizeof *out, 0, path, &e);
    err_raise(&e);
    close(fd);
    free(path);
    free(out);
    free(host);
}

static struct tensor normal(struct gpu_ops_work *w, int64_t rows, int64_t cols, uint64_t item,
                            double std)
{
    struct tensor x = dev_tensor(w->dev, w->dev->compute, 2, DIMS(rows, cols));
    gpu_normal(w->dev, x, item, std);
    return x;
}

static void open_copy(struct gpu_ops_work *w)
{
    const int64_t n = w->c->bytes / (int64_t)dtype_size(w->dev->compute);
    w->a = dev_tensor(w->dev, w->dev->compute, 2, DIMS(1, n));
    w->b = normal(w, 1, n, ITEM_X, 1);
}

static void open_gemm(struct gpu_ops_work *w)
{
    const struct gpu_case *c = w->c;
    const enum dtype T = w->dev->compute;
    const bool y = c->product == PRODUCT_Y, dw = c->product == PRODUCT_DW;
    w->a = y ? normal(w, c->rows, c->in, ITEM_X, 1) : normal(w, c->rows, c->out, ITEM_DY, 1);
    w->b = dw ? normal(w, c->rows, c->in, ITEM_X, 1)
              : normal(w, c->out, c->in, ITEM_W, 1 / sqrt((double)c->in));
    w->result = dev_tensor(w->dev, dw ? dtype_state(T) : T, 2,
                           DIMS(dw ? c->out : c->rows, y ? c->out : c->in));
}

static void attend(struct gpu_ops_work *w)
{
    const int heads = w->c->heads;
    const double scale = 1 / sqrt((double)w->c->head_dim);
    w->dev->ops->attn_fwd(
        w->dev, &(struct attn_args){tensor_heads(w->t[O], heads), w->t[LSE],
                                    tensor_heads(w->t[Q], heads), tensor_heads(w->t[K], heads),
                                    tensor_heads(w->t[V], heads), &w->seqs, scale});
}

static void open_attention(struct gpu_ops_work *w)
{
    const struct gpu_case *c = w->c;
    const int64_t width = (int64_t)c->heads * c->head_dim;
    int64_t rows = 0;
    for (int i = 0; i < c->num_lens; i++) {
        w->first[i] = (int32_t)rows;
        rows += c->lens[i];
    }
    w->seqs = (struct seqs){c->num_lens, w->first, c->lens, w->first, c->lens};
    const int last = c->backward ? LSE : O + 1;
    for (int i = 0; i < last; i++)
        w->t[i] = i < O ? normal(w, rows, width, ITEM_Q + (uint64_t)i, 1)
                        : dev_tensor(w->dev, w->dev->compute, 2, DIMS(rows, width));
    w->t[LSE] = dev_tensor(w->dev, dtype_state(w->dev->compute), 2, DIMS(rows, c->heads));
    if (c->backward) attend(w);
}

struct gpu_ops_work *gpu_ops_open(struct dev *dev, const struct gpu_case *c)
{
    struct gpu_ops_work *w = calloc(1, sizeof *w);
    CHECK(w, "out of memory");
    w->dev = dev;
    w->c = c;
    if (c->kind == GPU_COPY) open_copy(w);
    if (c->kind == GPU_GEMM) open_gemm(w);
    if (c->kind == GPU_ATTENTION) open_attention(w);
    return w;
}

/* As the model calls it: the gradient of a weight is added to. */
static void run_gemm(struct gpu_ops_work *w)
{
    const bool dw = w->c->product == PRODUCT_DW;
    w->dev->ops->gemm(w->dev, &(struct gemm_args){.c = w->result,
                                                  .a = w->a,
                                                  .b = w->b,
                                                  .trans_a = dw,
                                                  .trans_b = w->c->product == PRODUCT_Y,
                                                  .alpha = 1,
                                                  .beta = dw ? 1 : 0});
}

static void run_backward(struct gpu_ops_work *w)
{
    struct tensor h[ARRAYS];
    for (int i = 0; i < LSE; i++) h[i] = tensor_heads(w->t[i], w->c->heads);
    w->dev->ops->attn_bwd(w->dev,
                          &(struct attn_grad_args){.dq = h[DQ],
                                                   .dk = h[DK],
                                                   .dv = h[DV],
                                                   .d_o = h[DO],
                                                   .o = h[O],
                                                   .lse = w->t[LSE],
                                                   .q = h[Q],
                                                   .k = h[K],
                                                   .v = h[V],
                                                   .seqs = &w->seqs,
                                                   .scale = 1 / sqrt((double)w->c->head_dim)});
}

void gpu_ops_run(struct gpu_ops_work *w)
{
    if (w->c->kind == GPU_COPY)
        w->dev->ops->copy(w->dev, w->a.data, w->b.data, tensor_bytes(w->b));
    else if (w->c->kind == GPU_GEMM)
        run_gemm(w);
    else if (w->c->backward)
        run_backward(w);
    else
        attend(w);
}

void gpu_ops_dump(struct gpu_ops_work *w, const char *folder)
{
    if (w->c->kind == GPU_COPY) gpu_write(w->dev, w->a, NULL, folder, "out");
    if (w->c->kind == GPU_GEMM) gpu_write(w->dev, w->result, NULL, folder, "out");
    if (w->c->kind != GPU_ATTENTION) return;
    gpu_write(w->dev, w->t[O], NULL, folder, "out");
    if (!w->c->backward) return;
    gpu_write(w->dev, w->t[DQ], NULL, folder, "dq");
    gpu_write(w->dev, w->t[DK], NULL, folder, "dk");
    gpu_write(w->dev, w->t[DV], NULL, folder, "dv");
}

void gpu_ops_close(struct gpu_ops_work *w)
{
    struct tensor *one[] = {&w->result, &w->a, &w->b};
    for (int i = 0; i < 3; i++)
        if (one[i]->data) dev_free(w->dev, one[i]->data);
    for (int i = 0; i < ARRAYS; i++)
        if (w->t[i].data) dev_free(w->dev, w->t[i].data);
    free(w);
}

struct gpu_work gpu_open(struct dev *dev, const struct gpu_case *c, struct gpu_arenas a)
{
    struct gpu_work w = {.dev = dev, .c = c};
    if (gpu_has_model(c))
        w.model = gpu_model_open(dev, c, a);
    else
        w.ops = gpu_ops_open(dev, c);
    return w;
}

void gpu_close(struct gpu_work *w)
{
    if (w->model) gpu_model_close(w->model);
    if (w->ops) gpu_ops_close(w->ops);
}

void gpu_ready(struct gpu_work *w)
{
    if (w->model)
        gpu_model_ready(w->model);
    else if (w->c->kind == GPU_GEMM && w->c->product == PRODUCT_DW)
        w->dev->ops->fill(w->dev, w->ops->result, 0);
}

void gpu_warm(struct gpu_work *w)
{
    gpu_ready(w);
    if (w->model)
        gpu_model_warm(w->model);
    else
        gpu_run(w);
    w->dev->ops->sync(w->dev);
}

void gpu_run(struct gpu_work *w)
{
    if (w->model)
        gpu_model_run(w->model);
    else
        gpu_ops_run(w->ops);
}

void gpu_dump(struct gpu_work *w, const char *folder)
{
    if (w->model)
        gpu_model_dump(w->model, folder);
    else
        gpu_ops_dump(w->ops, folder);
}
