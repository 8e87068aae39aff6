/* Post-training on the null device: how large the arenas of a run must be, and what an epoch costs;
 * and what makes settings complete before either. */
#ifndef RL_DRY_H
#define RL_DRY_H
#include "rl/update.h"
#include "train/session.h"
#include "train/stored_model.h"

/* Fills in what rl.algo decides; stops with RC_CONFIG where the result makes no sense. */
void dry_resolve(struct loaded_settings *l);
/* Model and size of the clips are the base's; stops with RC_CONFIG when others were asked for. */
void dry_take_base(struct loaded_settings *l, const struct stored_model *m);
/* Updates take whole shares of rollout batches (updates.c), or e says what does not fit. Returns e.
 */
const struct err *dry_check_batches(const struct settings *s, struct err *e);

struct dry { /* every kind of pass that a run makes, once */
    const struct rl_config *cfg;
    int latent[4]; /* C, T, H, W */
};
void dry_body(void *dry, struct ctx *c, struct dit *d); /* dryrun_in.body */

struct dry_counts { /* of one rank */
    double gemm, attn_fwd, attn_bwd, row_bytes;
    struct comm_count comm[AXIS_COUNT][COMM_KINDS];
};
struct dry_epoch { /* the first rollout batch of epoch 0, and one micro-batch at one trained step */
    struct dry dry;
    uint64_t seed;
    struct step_plan plan; /* from here on: what came out */
    struct dry_counts rollout, update;
    int64_t evaluations; /* of a velocity, by this data rank, in the rollout batch */
    size_t host_bytes;   /* states of an epoch on this rank */
};
void dry_epoch_body(void *dry_epoch, struct ctx *c, struct dit *d);
#endif
