/* Which samples an optimizer step takes. It takes whole units; a unit is: of rollout batch b, the
 * entries i with i mod parts == part. Every data rank holds equally many of them, and the same
 * samples meet in a step on any number of data ranks. */
#ifndef RL_UNITS_H
#define RL_UNITS_H
#include "rl/config.h"
struct sample_gain { /* what the table of scores says of one sample */
    double advantage, weight;
    bool valid;
};
/* Whether a sample counts for the policy and, where there is one, for the divergence. */
bool gain_counts(const struct rl_config *c, const struct sample_gain *g);
bool gain_counts_kl(const struct rl_config *c, const struct sample_gain *g);

struct units {
    int parts;       /* a rollout batch is cut into */
    int64_t per;     /* units of a step */
    int64_t count;   /* units of an epoch */
    int64_t samples; /* of a unit on this rank */
};
/* c: with the batches of a data rank. accumulation: micro-batches of a step. */
struct units units_of(const struct rl_config *c, int64_t accumulation);

struct units_place {
    const struct rl_config *cfg;
    uint64_t seed;
    int64_t epoch;
    int dp, dp_rank;
};
struct taken { /* a sample of this rank in an optimizer step */
    int64_t batch, local;
};
struct step_set {
    struct taken *taken; /* [n]; malloc'ed */
    int64_t n;
    double policy_terms, kl_terms; /* over all data ranks */
};
/* Step `step` of the count / per steps of an inner epoch. gain [batch][entry of the batch over all
 * data ranks]. */
struct step_set step_set(const struct units_place *p, const struct units *u, int64_t inner,
                         int64_t step, const struct sample_gain *gain);
#endif
