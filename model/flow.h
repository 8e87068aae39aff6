/* Flow matching (docs/spec/sft.md 1.4, 1.5, 4): x_t = s*noise + (1-s)*x0, target noise - x0,
 * t = 1000*s. Pure numbers; the tensor work is in the ops flow_rows, flow_loss and sample_step. */
#ifndef MODEL_FLOW_H
#define MODEL_FLOW_H
#include <stdbool.h>
#include <stdint.h>

#include "core/rng.h"
struct flow_config {
    bool dynamic_shift, logit_normal;
    double shift, base_shift, max_shift, logit_mean, logit_std;
    int64_t base_seq, max_seq;
};
/* s*u / (1 + (s-1)*u) */
double flow_shift(double u, double shift);
/* Static shift, or exp(k*L + c) with L = (h*w) div 4 of the latent (frames do not count). */
double flow_shift_for(const struct flow_config *f, int64_t latent_h, int64_t latent_w);
/* Base draw of a sample: uniform, or sigmoid(mean + std*normal). */
double flow_base(const struct flow_config *f, struct rng_key key);
/* sigma[steps+1] of the Euler sampler, from 1 to 0. */
void flow_sampling_sigmas(double *sigma, int steps, double shift);
/* Centre of validation bucket k of n: the base levels (k+0.5)/n, shifted. */
double flow_bucket_sigma(int k, int n, double shift);
#endif
