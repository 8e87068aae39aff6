#include "model/flow.h"

#include <math.h>

double flow_shift(double u, double shift) { return shift * u / (1 + (shift - 1) * u); }

double flow_shift_for(const struct flow_config *f, int64_t latent_h, int64_t latent_w)
{
    if (!f->dynamic_shift) return f->shift;
    const double seq = (double)(latent_h * latent_w / 4); /* tokens of one frame */
    const double k = (f->max_shift - f->base_shift) / (double)(f->max_seq - f->base_seq);
    return exp(k * seq + f->base_shift - k * (double)f->base_seq);
}

double flow_base(const struct flow_config *f, struct rng_key key)
{
    const struct rng_stream s = rng_open(key);
    if (!f->logit_normal) return rng_uniform_at(s, 0);
    return 1 / (1 + exp(-(f->logit_mean + f->logit_std * rng_normal_at(s, 0))));
}

void flow_sampling_sigmas(double *sigma, int steps, double shift)
{
    for (int i = 0; i <= steps; i++) sigma[i] = flow_shift(1 - (double)i / steps, shift);
}

double flow_bucket_sigma(int k, int n, double shift) { return flow_shift((k + 0.5) / n, shift); }
