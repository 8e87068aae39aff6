/* Clock, and which part of a run the matrix products and attention take. */
#include "core/log.h"
#include "train/bench_gpu.h"

double gpu_seconds(struct gpu_work *w, int inner)
{
    w->dev->ops->sync(w->dev);
    const double t0 = log_seconds();
    for (int i = 0; i < inner; i++) gpu_run(w);
    w->dev->ops->sync(w->dev);
    return (log_seconds() - t0) / inner;
}

/* Whole models are long enough, and one run must not depend on the one before. */
int gpu_inner(struct gpu_work *w)
{
    if (gpu_has_model(w->c)) return 1;
    const double one = gpu_seconds(w, 1);
    const double n = one > 0 ? 0.05 / one : 100;
    return n < 1 ? 1 : n > 100 ? 100 : (int)n;
}

/* A table of ops like the device's own, but for a clock around three of them. Ops get their device
 * and nothing else, so where the clock keeps its sums is static: one profile at a time. */
static struct {
    const struct dev_ops *real;
    double products, attention;
} meter;

static double begin(struct dev *d)
{
    meter.real->sync(d);
    return log_seconds();
}

static void end(struct dev *d, double since, double *sum)
{
    meter.real->sync(d);
    *sum += log_seconds() - since;
}

static void timed_gemm(struct dev *d, const struct gemm_args *a)
{
    const double t0 = begin(d);
    meter.real->gemm(d, a);
    end(d, t0, &meter.products);
}

static void timed_forward(struct dev *d, const struct attn_args *a)
{
    const double t0 = begin(d);
    meter.real->attn_fwd(d, a);
    end(d, t0, &meter.attention);
}

static void timed_backward(struct dev *d, const struct attn_grad_args *a)
{
    const double t0 = begin(d);
    meter.real->attn_bwd(d, a);
    end(d, t0, &meter.attention);
}

struct gpu_shares gpu_profile(struct gpu_work *w)
{
    struct dev_ops timed = *w->dev->ops;
    timed.gemm = timed_gemm;
    timed.attn_fwd = timed_forward;
    timed.attn_bwd = timed_backward;
    meter.real = w->dev->ops;
    meter.products = meter.attention = 0;
    gpu_ready(w);
    w->dev->ops = &timed;
    const double all = gpu_seconds(w, 1);
    w->dev->ops = meter.real;
    return (struct gpu_shares){meter.products, meter.attention,
                               all - meter.products - meter.attention};
}
