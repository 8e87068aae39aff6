#include "model/head.h"

#include <math.h>

#include "model/params.h"

void head_init(struct head *h, struct unit *u, int unit, const struct model_config *cfg)
{
    const int64_t C = cfg->dim, out = cfg->out_dim * 4;
    *h = (struct head){.unit = unit, .dim = (int)C, .eps = cfg->eps};
    struct param *w = param_add(u, "", "head.head.weight", 0, INIT_ZERO, 0, 2, DIMS(out, C));
    h->out = (struct linear){.w = w, .b = param_add_bias(u, "", "head.head", out), .parts = 1};
    h->modulation = param_add(u, "", "head.modulation", P_FULL_PRECISION, INIT_NORMAL,
                              1 / sqrt((double)C), 3, DIMS(1, 2, C));
}

/* Row k of head.modulation, of its gradient, and columns k of a [B,2C] tensor. */
static struct tensor row(struct tensor p, int k, int64_t C)
{
    return tensor_rows(tensor_view(p, 2, DIMS(2, C)), k, 1);
}

void head_forward(struct ctx *c, const struct head *h, struct arena *keep, struct head_saved *s,
                  struct tensor out, struct tensor x, const struct tail *before, struct tensor e)
{
    const enum dtype T = ctx_compute(c), S = ctx_state(c);
    const int64_t R = x.dim[0], C = h->dim;
    s->mod = arena_new(keep, S, 2, DIMS(e.dim[0], 2 * C));
    s->mean = arena_new(keep, S, 1, DIMS(R));
    s->rstd = arena_new(keep, S, 1, DIMS(R));
    s->a = arena_new(keep, T, 2, DIMS(R, C));
    for (int k = 0; k < 2; k++) /* 1 */
        c->dev->ops->bcast_add(c->dev, tensor_cols(s->mod, k * C, C), row(h->modulation->w, k, C),
                               e);
    struct ln_args a = {.out = s->a,
                        .mean = s->mean,
                        .rstd = s->rstd,
                        .x = x,
                        .scale = tensor_cols(s->mod, C, C),
                        .shift = tensor_cols(s->mod, 0, C),
                        .one = 1,
                        .eps = h->eps};
    tail_norm(c, before, &a);                    /* 2 */
    linear_forward(c, &h->out, out, s->a, NULL); /* 3 */
}

void head_backward(struct ctx *c, const struct head *h, const struct head_saved *s,
                   struct tensor dx, struct tensor de, struct tensor dout, struct tensor x)
{
    const size_t mark = arena_mark(c->tmp);
    const int64_t C = h->dim;
    struct tensor da = arena_like(c->tmp, s->a);
    struct tensor dmod = ctx_zeros(c, c->tmp, s->mod.dtype, 2, s->mod.dim);
    linear_backward(c, &h->out, (struct linear_grad){.dx = da}, dout, s->a); /* 3' */
    struct ln_grad_args a = {.dx = dx,
                             .dscale = tensor_cols(dmod, C, C),
                             .dshift = tensor_cols(dmod, 0, C),
                             .dy = da,
                             .x = x,
                             .mean = s->mean,
                             .rstd = s->rstd,
                             .scale = tensor_cols(s->mod, C, C),
                             .one = 1};
    c->dev->ops->ln_bwd(c->dev, &a); /* 2' */
    if (h->modulation->g.data)       /* 1' */
        c->dev->ops->colsum_add(c->dev, tensor_view(h->modulation->g, 1, DIMS(2 * C)), dmod);
    for (int k = 0; k < 2; k++) c->dev->ops->axpy(c->dev, de, 1, tensor_cols(dmod, k * C, C));
    arena_release(c->tmp, mark);
}
