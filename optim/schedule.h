/* Learning rate of step n (0-based): linear warm-up from lr/warmup to lr, then constant or cosine
 * down to min_lr_ratio * lr at the last step. */
#ifndef OPTIM_SCHEDULE_H
#define OPTIM_SCHEDULE_H
#include <stdint.h>
struct schedule {
    double lr, min_lr_ratio;
    int cosine;
    int64_t warmup_steps, total_steps;
};
double schedule_lr(const struct schedule *s, int64_t step);
/* EMA decay of update n (0-based): d, or with warm-up min(d, (1+n)/(10+n)). */
double ema_decay_at(double decay, int warmup, int64_t n);
#endif
