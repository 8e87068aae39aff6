/* Which denoising steps of an iteration are stochastic and trained (docs/spec/rl.md 1.18). A
 * function of (configuration, seed, epoch) only: equal on all ranks, nothing to save. */
#ifndef RL_WINDOW_H
#define RL_WINDOW_H
#include <stdbool.h>
#include <stdint.h>
enum window_strategy {
    WINDOW_FIXED,       /* always [start, start + size) */
    WINDOW_PROGRESSIVE, /* moves on after every `iters` epochs */
    WINDOW_RANDOM,      /* start uniform in [0, limit - size] */
    WINDOW_DECAY,       /* progressive; stays shorter the later the window is (linear) */
    WINDOW_EXP_DECAY    /* the same, exponential from step `decay_from` on */
};
struct window_config {
    int strategy; /* enum window_strategy */
    int64_t start, size;
    int64_t stride;     /* steps it moves by; 0: size (no overlap) */
    int64_t iters;      /* epochs in one place: tau; tau_max of decay */
    int64_t min_iters;  /* tau_min of decay; 0: max(1, iters / 4) */
    double decay_rate;  /* k of exp_decay */
    int64_t decay_from; /* theta of exp_decay */
    bool roll_back;     /* after the last place: from 0 again; otherwise it stays there */
    int64_t limit;      /* the window stays within [0, limit); 0: steps - 2 */
};
struct window {
    int first, size;
};
/* steps: N of the rollout. Never empty: it stops at limit - size, where the official one runs out
 * of steps. The caller has checked 1 <= size, start + size <= steps, size <= limit <= steps. */
struct window window_at(const struct window_config *c, int steps, uint64_t seed, int64_t epoch);
#endif
