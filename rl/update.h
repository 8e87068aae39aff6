/* The objective on stored samples and its gradient (docs/spec/rl.md 1.12, 1.13, 5.5): one
 * micro-batch at one trained step. Gradients of the adapters are added up; nothing is stepped. */
#ifndef RL_UPDATE_H
#define RL_UPDATE_H
#include "rl/rollout.h"
struct update_item { /* one sample of a micro-batch */
    const struct trajectory *from;
    int sample;
    double advantage, weight; /* weight 0: no policy term */
    bool valid;               /* it has a score */
    int order;                /* which trained step this is for this sample: 0.. */
    uint32_t draw;            /* NFT: number of the noise */
};
struct update_scale { /* 1 / number of terms of the optimizer step, over all data ranks */
    double policy, kl;
};
struct step_stats { /* of one trained step index, over samples; sums unless said */
    double terms, clipped, kl, kl_terms, square_log_ratio, max_log_ratio, velocity_gap;
};
struct update_stats {
    double policy_loss, kl_loss; /* already divided */
    struct step_stats step[MAX_PLAN_STEPS];
};
/* items [train_batch]; their `order` picks the trained step: order[item] of plan->recorded. kl_beta
 * and clip_range are those of the policy's configuration. Collective over the sequence axis. */
void grpo_update(struct policy *p, const struct step_plan *plan, const struct update_item *items,
                 struct update_scale scale, struct update_stats *stats);
/* The same on noisy versions of the final states; `order` picks the noise level of plan->step. */
void nft_update(struct policy *p, const struct step_plan *plan, const struct update_item *items,
                struct update_scale scale, struct update_stats *stats);
struct nft_term {
    double loss;        /* without the divergence */
    double plus, minus; /* factors of target - v+ and target - v- in d loss / d v */
    double gap;         /* mean of (v - reference)^2 */
};
/* sums: of nft_sums (core/dev.h) over a sample of so many elements. */
struct nft_term nft_objective(const double sums[NFT_SUMS], double elements, double sigma,
                              double advantage, double limit, double beta);
/* What stays of the sampling adapters when they follow, after so many optimizer steps. */
double nft_old_keep(const struct rl_config *c, int64_t steps);
/* The scalars of the clipped objective at one ratio. */
struct grpo_term {
    double ratio, loss; /* max(-A rho, -A clip(rho)) */
    double slope;       /* d loss / d log rho: -A rho, or 0 where the clip holds */
    bool clipped;       /* rho outside of the range */
};
struct grpo_term grpo_objective(double log_ratio, double advantage, double clip);
#endif
