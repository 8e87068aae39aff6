/* One optimizer step of flow-matching SFT, and held-out validation. */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H
#include "data/loader.h"
#include "model/flow.h"
#include "optim/clip.h"
#include "optim/schedule.h"
#include "train/session.h"

enum { MAX_BUCKETS = 32 };
struct trainer_state { /* scalars of a checkpoint */
    int64_t cursor;    /* samples of the stream consumed: the whole state of the data */
    int64_t step, ema_updates, adam_steps, skipped, skipped_in_row;
    struct clip clip;
    double seconds; /* trained so far, over all starts */
};
struct trainer {
    struct session *ses;
    struct dataset *data;
    struct loader *loader;
    struct flow_config flow;
    struct schedule schedule;
    double shift;
    int64_t global_batch;
    int num_micro;
    struct trainer_state state;
    float *host; /* staging for uploads */
};
struct step_result {
    double loss, norm, norm_after, limit, lr;
    bool skipped;
    bool signal, clock; /* some rank must stop (signal, end of the job); the time budget is spent */
    double seconds, comm_seconds, data_seconds;
};
struct valid_result {
    int buckets;
    double sigma[MAX_BUCKETS], loss[MAX_BUCKETS], mean;
    int64_t samples;
    bool stopped; /* a rank was asked to stop: the sums are not complete */
};
/* Latents of the data set give the shape; opens no loader (trainer_start does, at the cursor). */
void trainer_init(struct trainer *t, struct session *ses, struct dataset *d);
void trainer_start(struct trainer *t);
void trainer_free(struct trainer *t);
/* clock, preempt: this rank finds its time budget spent, or its job about to end; all ranks learn
 * it with the loss and act on the sum only, so that they act alike. */
struct step_result trainer_step(struct trainer *t, bool clock, bool preempt);
struct valid_result trainer_validate(struct trainer *t, bool ema);
/* Micro-batch shape of a data set for this configuration. */
struct session_shape trainer_shape(const struct settings *s, const struct dataset *d, int ranks);
int64_t trainer_global_batch(const struct settings *s, int dp);
int trainer_micro_batch(const struct settings *s, int dp);
#endif
