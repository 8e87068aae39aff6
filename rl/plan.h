/* What an epoch of post-training costs, without running it: the dry run of its rollouts and updates
 * for all ranks of one sequence group, and an estimate of the time. Decoding, scores and
 * evaluations are not in it. */
#ifndef RL_PLAN_H
#define RL_PLAN_H
#include "rl/dry.h"
#include "train/plan.h"

struct rl_phase {
    double flops, attention;    /* of a data rank: all ranks of its samples; attention is a part */
    double matrix_s, row_bytes; /* of the slowest rank */
    struct comm_count comm[AXIS_COUNT][COMM_KINDS]; /* sent by the largest rank */
    double seconds;
    int64_t times; /* in an epoch, by a data rank */
};
struct rl_plan {
    struct plan_cost c; /* ranks, mesh, shape; rank: memory of the largest one */
    struct step_plan steps;
    int trained;             /* steps of a sample */
    int64_t evaluations;     /* of a velocity in a rollout batch, by a data rank */
    size_t host_bytes;       /* states of an epoch, in the memory of the host, by a rank */
    int64_t adapters;        /* parameters */
    struct rl_phase rollout; /* a batch of a data rank, all steps */
    struct rl_phase update;  /* a micro-batch at one trained step */
    struct rl_phase step;    /* the sum of the gradients */
    double epoch_s, epoch_flops;
};
/* s: resolved, with the model; codec: of the latents. Stops with RC_CONFIG where the run would. */
void rl_plan_make(const struct settings *s, const char *codec, int ranks, struct rl_plan *out);
void rl_plan_print(FILE *out, const struct settings *s, const struct rl_plan *p);
void rl_plan_print_json(FILE *out, const struct rl_plan *p);
#endif
