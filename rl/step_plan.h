/* The steps of a rollout: one description for Mix-GRPO, Flow-GRPO, DanceGRPO, MixGRPO-Flash and the
 * rest (docs/spec/rl.md 1.5, 1.18, 5). Every step is
 *     next = cx*x + cv*v + ch*h + std*noise,   then h = x - sigma*v,
 * v the guided velocity, h the clean latent that the step before implied. Pure numbers in double:
 * a function of (configuration, seed, epoch), equal on all ranks. */
#ifndef RL_STEP_PLAN_H
#define RL_STEP_PLAN_H
#include <stdbool.h>
#include <stdint.h>

#include "rl/window.h"
enum g_rule {
    G_SIGMA,     /* g = sigma: OSP-Next (sigma_max = 1) */
    G_ETA_SIGMA, /* g = eta * sigma: Flow-GRPO on Wan, with eta = sigma_1 there */
    G_ETA_SNR, /* g = eta * sqrt(sigma / (1 - sigma)), at sigma = 1 with sigma_1 below: Flow-GRPO */
    G_ETA_CONST, /* g = eta: DanceGRPO */
    G_CPS /* std = next_sigma * sin(eta * pi / 2), mean by coefficients preserving sampling */
};
enum ode_solver { ODE_EULER, ODE_DPMPP_2M };
enum last_step { LAST_MEAN, LAST_EULER }; /* of a stochastic last step: its mean, or an ODE step */
enum step_mode {
    STEP_ODE,
    STEP_SDE,
    STEP_SPLIT /* stochastic; until here all members of a group are one trajectory, made once on
                * every data rank (rl/rollout.c) */
};
enum { MAX_PLAN_STEPS = 256 };
struct plan_step {
    enum step_mode mode;
    bool record;          /* trained on */
    double sigma, next;   /* noise level before and after */
    double cx, cv, ch;    /* see above; ch is 0 but for DPM-Solver++ */
    double std, variance; /* of the transition; 0: no noise */
    double kappa;         /* |cv| / std: |d log p / d v| per unit of noise; 0 without noise */
};
struct step_plan {
    int n, num_recorded;
    struct plan_step step[MAX_PLAN_STEPS];
    int recorded[MAX_PLAN_STEPS]; /* steps with record, rising */
    struct window window;
};
struct step_plan_config {
    int64_t steps; /* N */
    double shift;
    int g_rule; /* enum g_rule */
    double eta;
    int last;        /* enum last_step */
    bool split;      /* the first stochastic step is STEP_SPLIT */
    double fraction; /* share of the stochastic steps that is recorded, from the first */
    int solver;      /* enum ode_solver: of the steps after the last stochastic one */
    double compress; /* (0,1]: those steps are re-gridded to int((N-l)*compress) points, l the last
                      * stochastic step; 1: they keep their grid */
    struct window_config window;
};
/* Rules, so that nothing needs to be decided later: step N-1 never has noise and is never recorded
 * (LAST_MEAN: it takes the mean of the SDE step when it is stochastic). A step with g = 0 has the
 * coefficients of an Euler step exactly (cx = 1, cv = next - sigma). Recorded are the first
 * max(1, int(count * fraction)) of the stochastic steps that have noise. */
struct step_plan step_plan_make(const struct step_plan_config *c, uint64_t seed, int64_t epoch);
/* All ODE steps of Euler: for evaluation. */
struct step_plan step_plan_ode(int steps, double shift);
/* No stochastic step at all: solver and compress from the first one on; for NFT rollouts. */
struct step_plan step_plan_quiet(const struct step_plan_config *c);
/* g of step i of the grid sigma[0..n]. */
double step_g(int rule, double eta, const double *sigma, int n, int i);
/* cx, cv, std, variance, kappa of one stochastic step with this g (G_CPS: by eta). */
struct plan_step step_sde(double sigma, double next, double g);
struct plan_step step_cps(double sigma, double next, double eta);
/* DPM-Solver++ 2M, midpoint form, as coefficients on x, v and the h of the step before; older:
 * noise level of that step, negative: there is none (order 1). */
struct plan_step step_dpmpp(double older, double sigma, double next);
/* Log-density of next given x and v per element is  -(next - mean)^2/(2V) - log(V)/2 - log(2 pi)/2;
 * this is the part without data. */
double step_log_constant(const struct plan_step *s);
#endif
