/* From the one key rl.algo to the parts of a run (docs/rl.md has the table). */
#ifndef RL_ALGO_H
#define RL_ALGO_H
#include "core/rng.h"
#include "rl/advantage.h"
#include "rl/config.h"
#include "rl/groups.h"
#include "rl/step_plan.h"
const char *algo_name(int algo);
/* Replaces every "auto" and null by what the algorithm has; explicit values stay. RC_CONFIG with
 * the key where the result makes no sense. */
bool algo_resolve(struct rl_config *c, struct err *e);
/* Of a resolved configuration. */
struct step_plan_config algo_plan(const struct rl_config *c);
struct adv_config algo_advantage(const struct rl_config *c, const struct reward_settings *r,
                                 int dims);
struct groups_config algo_groups(const struct rl_config *c, int64_t num_prompts, int dp,
                                 uint64_t seed);
/* The plan of an epoch: rollouts of NFT have no stochastic steps. */
struct step_plan algo_step_plan(const struct rl_config *c, uint64_t seed, int64_t epoch);
/* Trained steps of a sample. */
int algo_steps_trained(const struct rl_config *c, const struct step_plan *p);
static inline bool algo_shuffles_steps(const struct rl_config *c) { return c->shuffle_steps == 2; }
#endif
