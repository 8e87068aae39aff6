#include "model/tail.h"

void tail_norm(struct ctx *c, const struct tail *t, const struct ln_args *ln)
{
    const struct dev_ops *ops = c->dev->ops;
    /* rows that change places cannot be written where others are still to be read */
    const bool apart = t->map.data && ln->out.data == t->y.data;
    if (t->y.data && !apart) {
        ops->gate_add_ln_fwd(c->dev, &(struct gate_add_ln_args){t->x, t->y, t->gate, t->map, *ln});
        return;
    }
    if (t->y.data)
        ops->gate_add_fwd(c->dev, &(struct gate_add_args){ln->x, t->x, t->y, t->gate, t->map});
    ops->ln_fwd(c->dev, ln);
}

struct tail tail_sum(struct ctx *c, const struct tail *t, struct tensor out)
{
    CHECK(!t->map.data, "rows change places on the way to their norm only");
    if (!t->y.data) return (struct tail){.x = t->x};
    c->dev->ops->gate_add_fwd(
        c->dev, &(struct gate_add_args){.out = out, .x = t->x, .y = t->y, .gate = t->gate});
    return (struct tail){.x = out};
}
