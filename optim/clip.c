#include "optim/clip.h"

#include <math.h>

void clip_init(struct clip *c, double init_max_grad_norm)
{
    *c = (struct clip){.decay = 0.99, .init_max = init_max_grad_norm, .limit = init_max_grad_norm};
}

static double coefficient(double limit, double norm)
{
    const double k = limit / (norm + 1e-6);
    return k < 1 ? k : 1;
}

static void enter(struct clip *c, double norm)
{
    c->mean = c->decay * c->mean + (1 - c->decay) * norm;
    const double d = c->mean - norm;
    c->var = c->decay * c->var + (1 - c->decay) * d * d;
}

struct clip_result clip_step(struct clip *c, enum clip_kind kind, double norm)
{
    struct clip_result r = {.coef = 1};
    if (kind == CLIP_RULE_FIXED) {
        c->limit = c->init_max;
        r.coef = coefficient(c->limit, norm);
        r.limit = c->limit;
        r.after = norm * r.coef;
        return r;
    }
    double seen = norm;
    if (!c->started) { /* the first norm sets the scale, after a limit of 1000 */
        r.coef = coefficient(1000, norm);
        seen = norm * r.coef;
        c->mean = fmin(c->init_max, 3 * norm);
        c->var = 0;
        c->limit = c->mean;
        c->started = 1;
    } else {
        c->limit = c->mean + 3 * sqrt(c->var);
    }
    const double k = coefficient(c->limit, seen);
    r.coef *= k;
    r.limit = c->limit;
    if (seen <= c->limit)
        enter(c, seen);
    else if (kind == CLIP_RULE_ADAPTIVE_CAPPED)
        enter(c, fmin(seen, 2 * c->limit));
    r.after = seen <= c->limit ? seen : seen * k;
    return r;
}
