#include "optim/schedule.h"

#include <math.h>

double schedule_lr(const struct schedule *s, int64_t step)
{
    if (step < s->warmup_steps) return s->lr * (double)(step + 1) / (double)s->warmup_steps;
    if (!s->cosine) return s->lr;
    const int64_t span = s->total_steps - s->warmup_steps;
    const double x = span > 0 ? fmin(1, (double)(step - s->warmup_steps) / (double)span) : 1;
    return s->lr * (s->min_lr_ratio + (1 - s->min_lr_ratio) * 0.5 * (1 + cos(M_PI * x)));
}

double ema_decay_at(double decay, int warmup, int64_t n)
{
    const double d = (1 + (double)n) / (10 + (double)n);
    return warmup && d < decay ? d : decay;
}
