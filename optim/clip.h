/* Limits of the global gradient norm (docs/spec/sft.md 1.7). The official rule is adaptive: the
 * limit is mean + 3*sqrt(variance) of past norms; norms above it do not enter the statistics, so a
 * lasting rise stays clipped for ever. adaptive_capped lets them in as min(norm, 2*limit). */
#ifndef OPTIM_CLIP_H
#define OPTIM_CLIP_H
#include <stdbool.h>
enum clip_kind { CLIP_RULE_ADAPTIVE, CLIP_RULE_FIXED, CLIP_RULE_ADAPTIVE_CAPPED };
struct clip { /* all of it is checkpointed */
    double mean, var, limit, decay, init_max;
    int started;
};
struct clip_result {
    double coef; /* multiply every gradient by it */
    double limit, after;
};
void clip_init(struct clip *c, double init_max_grad_norm);
struct clip_result clip_step(struct clip *c, enum clip_kind kind, double norm);
#endif
