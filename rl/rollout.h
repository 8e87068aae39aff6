/* Samples from the policy, and what updates need of them (docs/spec/rl.md 1.3 to 1.7). States are
 * kept once, in host memory, each rank its own rows.
 * Members of a group that start from the same noise are one path until the first step with noise:
 * a rank makes it once for all of its members. */
#ifndef RL_ROLLOUT_H
#define RL_ROLLOUT_H
#include "rl/policy.h"
struct trajectory { /* of one rollout batch */
    int samples;
    struct group_entry *entry;    /* [samples] */
    int64_t rows, width;          /* of a state on this rank, all samples */
    int slot[MAX_PLAN_STEPS + 1]; /* where state i is kept; -1: it is not */
    int num_states;
    char *states; /* [num_states][rows, width] S */
    size_t state_bytes;
    /* [recorded step][sample]: sum of (next - mean)^2 / (2V) over the whole sample, so that the
     * log-density per element is -sum/D + constant */
    double *sums;
    int64_t evaluations; /* of the velocity of one sample, with whatever guidance needs */
};
struct rollout_hooks {
    void (*step)(void *arg, int step); /* after each; may end the program by launch_leave */
    void *arg;
};
/* Collective over the sequence axis. entry: those of this data rank. keep_last: also the final
 * state (for NFT). latent [samples * D]: the clean latents; NULL: not wanted. Uses the keep arena
 * from its start. */
void rollout_run(struct policy *p, const struct step_plan *plan, const struct group_entry *entry,
                 bool keep_last, struct rollout_hooks hooks, struct trajectory *t, float *latent);
void trajectory_free(struct trajectory *t);
size_t trajectory_bytes(const struct trajectory *t);
/* Rows of sample b of state i: rows/samples * width elements of S on the host. */
const void *trajectory_state(const struct trajectory *t, int i, int sample);
#endif
