/* A policy over a fixture, for tests: configuration, plan, prompts of made-up numbers, one rollout
 * batch. */
#ifndef TESTS_POLICY_CASE_H
#define TESTS_POLICY_CASE_H
#include "rl/update.h"
#include "tests/problem.h"
struct policy_case_opts {
    const char *device;
    enum dtype compute;
    struct model_config model;
    enum recompute recompute;
    int t, h, w; /* token grid */
    struct mesh_degrees degrees;
    struct rl_config rl; /* sample_batch and train_batch over all data ranks; not resolved */
    int64_t epoch;       /* of the plan */
    double dropout;      /* of the adapters */
};
struct policy_case {
    struct fixture f;
    struct rl_config rl; /* resolved, batches of this rank */
    struct step_plan plan;
    struct policy p;
    struct group_entry entry[64]; /* [rl.sample_batch] of this data rank */
    struct trajectory t;
    int first; /* number of the first sample of this rank */
};
enum { CASE_SEED = 77 };
/* Defaults of the configuration file, with small numbers. */
struct rl_config policy_case_config(int algo);
/* Tiny model with a full block at both ends, or, blocks 0, a sparse one. */
struct model_config policy_case_model(int dims, int ratio, int full_blocks);
/* Base and adapters filled with normal numbers. */
void policy_case_open(struct policy_case *c, struct comm *world, const struct policy_case_opts *o);
void policy_case_close(struct policy_case *c);
/* Rolls out batch 0 of epoch 0; latent as in rollout_run. */
void policy_case_rollout(struct policy_case *c, float *latent);
/* Rows of one kind of g to latents on the host of every rank: [samples][D]. */
void policy_case_latents(struct policy_case *c, const struct guided *g, struct tensor rows,
                         enum patch_order order, double *out);
/* Masks of the dropout of all samples of this rank at step i of the plan. */
void policy_case_masks(struct policy_case *c, int i, struct rng_key *out);
/* State i of all samples of the rollout as latents. */
void policy_case_state(struct policy_case *c, int i, double *out);
/* The trajectory of this rank as if its states (latents of all data ranks, [slot][sample][D]) and
 * sums ([recorded][sample]) had come from elsewhere. */
void policy_case_take(struct policy_case *c, const double *states, const double *sums, int samples);
/* Whole adapters, in the order of problem_adapter_grads; malloc'ed. */
double *policy_case_weights(struct policy_case *c, enum state_kind kind);
/* weights + step * direction into the adapters; direction NULL: 0. */
void policy_case_move(struct policy_case *c, const double *weights, const double *direction,
                      double step);
#endif
