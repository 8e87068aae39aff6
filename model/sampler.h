/* Euler sampling of the flow ODE with classifier-free guidance (docs/spec/sft.md 4): state and
 * guidance in S, the model in T. Works on the rows of this rank; any layout. */
#ifndef MODEL_SAMPLER_H
#define MODEL_SAMPLER_H
#include "model/guided.h"
struct sampler {
    struct guided *guided; /* both branches of guidance, or one after the other */
    bool batched;
};
struct sampler_job {
    const double *sigma; /* [steps+1], 1 to 0 */
    int steps;
    double guidance;             /* used when above 1 */
    struct tensor text, null;    /* [samples*text_len, text_dim] T: prompts; negative prompts, which
                                  * are not needed for a guidance of at most 1 without batching */
    const struct rng_key *noise; /* [samples]: index = element of [C,T,H,W] */
    void (*progress)(void *arg, int step);
    void *arg;
};
/* samples per pass; t, h, w: token grid. batched: conditional and unconditional rows in one pass.
 */
void sampler_init(struct sampler *s, struct ctx *c, const struct dit *d, int samples, int t, int h,
                  int w, bool batched);
void sampler_free(struct sampler *s);
/* latent [samples, C, T, H, W] S: the clean latent; elements of other ranks' tokens are 0. Lives in
 * the keep arena, which the caller marks and releases. */
struct tensor sampler_run(struct sampler *s, const struct sampler_job *job);
#endif
