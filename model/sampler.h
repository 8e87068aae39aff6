/* Euler sampling of the flow ODE with classifier-free guidance (docs/spec/sft.md 4): state and
 * guidance in S, the model in T. Works on the rows of this rank; any layout. */
#ifndef MODEL_SAMPLER_H
#define MODEL_SAMPLER_H
#include "model/dit.h"
struct sampler {
    struct ctx *ctx;
    const struct dit *dit;
    const struct shape_plan *plan; /* batch: samples, twice with batched guidance */
    struct redist *back;           /* rows of the last stage to those of the first; NULL: same */
    int samples;                   /* per pass */
    bool batched;                  /* conditional and unconditional rows in one pass */
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
void sampler_init(struct sampler *s, struct ctx *c, const struct dit *d, const struct shape_plan *p,
                  struct comm *ssp, bool batched);
void sampler_free(struct sampler *s);
/* latent [samples, C, T, H, W] S: the clean latent; elements of other ranks' tokens are 0. Lives in
 * the keep arena, which the caller marks and releases. */
struct tensor sampler_run(struct sampler *s, const struct sampler_job *job);
#endif
