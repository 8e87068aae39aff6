/* The epochs of a post-training run without its program: a policy case, and what run_updates needs
 * of a run. Scores come from a function. */
#ifndef TESTS_RL_CASE_H
#define TESTS_RL_CASE_H
#include "rl/run.h"
#include "tests/policy_case.h"
struct rl_case {
    struct policy_case c; /* its trajectory is not used */
    struct settings set;
    struct session ses;
    struct rl_run run;
    struct adv_stats scores; /* of the last epoch */
    struct epoch_updates updates;
};
/* Small steps of Adam, clipped at 1, no EMA. */
void rl_case_open(struct rl_case *r, struct comm *world, const struct policy_case_opts *o);
void rl_case_close(struct rl_case *r);
/* Rolls out all batches of the epoch in hand. latent [batch][sample of this rank][D]; NULL: not
 * wanted. */
void rl_case_rollouts(struct rl_case *r, const struct step_plan *plan, float *latent);
void rl_case_forget(struct rl_case *r); /* those rollouts */
/* One epoch, scored by f(latent of D elements); *mean: of the scores. Collective. */
double rl_case_epoch(struct rl_case *r, double (*f)(const struct policy *p, const float *latent));
#endif
