/* Which prompts an iteration samples, how many times, and where (docs/spec/rl.md 1.2, 1.3). A
 * function of (configuration, seed, epoch, batch), equal on all ranks. */
#ifndef RL_GROUPS_H
#define RL_GROUPS_H
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "core/rng.h"
struct groups_config {
    int64_t num_prompts; /* in the file */
    int64_t members;     /* G: samples of a prompt and rollout batch */
    int64_t batch;       /* samples of a data rank and rollout batch */
    int64_t batches;     /* rollout batches of an epoch */
    int64_t dp;          /* data ranks */
    bool scatter;        /* members spread over data ranks; otherwise next to each other */
    bool same_noise;     /* members start from the same noise */
    uint64_t seed;
};
struct group_entry {
    int64_t group;  /* unique in the run */
    int64_t prompt; /* line of the prompt file */
    int64_t member; /* 0..G-1 */
    int64_t sample; /* unique in the run: group * G + member */
};
/* RC_CONFIG with the key and the remedy: dp*batch not a multiple of G, fewer prompts than a batch
 * needs. The calls below want a configuration that passed. */
bool groups_check(const struct groups_config *c, struct err *e);
/* Entry i (0..dp*batch-1) of rollout batch b: data rank i / batch. Prompts come in shuffled passes
 * over the file; those of one batch differ (the up to num_prompts mod m last ones of a pass are
 * left out, m = dp*batch/G). */
struct group_entry groups_entry(const struct groups_config *c, int64_t epoch, int64_t b, int64_t i);
/* Initial noise (index: element of [C,T,H,W]) and noise of step `step` (from 0): RNG_SDE, step 0
 * and step + 1, item: the sample, or the group's first sample for what its members share. shared:
 * until the split all members of a group are one trajectory. */
struct rng_key groups_initial_noise(const struct groups_config *c, const struct group_entry *g,
                                    bool shared);
struct rng_key groups_step_noise(const struct groups_config *c, const struct group_entry *g,
                                 int step, bool shared);
#endif
