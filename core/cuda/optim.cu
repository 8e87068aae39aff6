/* AdamW on one flat shard. The memory traffic bounds it, so the arithmetic is double. */
#include "core/cuda/cuda.h"

namespace
{

struct AdamW {
    float *p, *m, *v, *ema;
    const float *g;
    View wire;
    double decay, beta1, beta2, rate, root, eps, grad_scale, ema_keep;
    DEVICE void operator()(int64_t i) const
    {
        const double grad = (double)g[i] * grad_scale;
        m[i] = (float)((double)m[i] + (1 - beta1) * (grad - (double)m[i]));
        v[i] = (float)(beta2 * (double)v[i] + (1 - beta2) * grad * grad);
        const double x = (double)p[i] * decay;
        p[i] = (float)(x - rate * (double)m[i] / (sqrt((double)v[i]) / root + eps));
        if (ema)
            ema[i] = (float)((double)ema[i] - (1 - ema_keep) * ((double)ema[i] - (double)p[i]));
        if (wire.p) put(wire, 0, i, p[i]);
    }
};

} // namespace

void cuda_adamw(struct dev *d, const struct adamw_args *a)
{
    CHECK(a->p.dtype == DT_F32 && a->m.dtype == DT_F32 && a->v.dtype == DT_F32 &&
              a->g.dtype == DT_F32,
          "adamw: p, m, v and g are f32");
    AdamW k = {};
    k.p = (float *)a->p.data;
    k.m = (float *)a->m.data;
    k.v = (float *)a->v.data;
    k.g = (const float *)a->g.data;
    k.ema = a->ema_keep >= 0 ? (float *)a->ema.data : NULL;
    k.wire = view(a->wire);
    k.decay = 1 - a->lr * a->weight_decay;
    k.beta1 = a->beta1;
    k.beta2 = a->beta2;
    k.rate = a->lr / a->bias1;
    k.root = sqrt(a->bias2);
    k.eps = a->eps;
    k.grad_scale = a->grad_scale;
    k.ema_keep = a->ema_keep;
    each(d, tensor_count(a->p), k);
}
