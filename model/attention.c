#include "model/attention.h"

static bool compacts(const struct self_attn *a) { return !a->full && a->stage->real.data; }

const struct ulysses *attn_ranks(const struct self_attn *a)
{
    return a->full ? a->stage->full_ranks : a->stage->sub_ranks;
}

int64_t self_attn_rows(const struct self_attn *a)
{
    if (attn_ranks(a)) return attn_ranks(a)->q_rows;
    return compacts(a) ? a->stage->num_real : a->stage->layout->rows;
}

int self_attn_heads(const struct self_attn *a)
{
    return attn_ranks(a) ? ulysses_heads(attn_ranks(a)) : a->heads;
}

static const struct seqs *ranges(const struct self_attn *a)
{
    if (attn_ranks(a)) return &attn_ranks(a)->seqs;
    return a->full ? &a->stage->full : &a->stage->sub;
}

/* Real rows of x as [num_real, C] in tmp. */
static struct tensor compact(struct ctx *c, const struct self_attn *a, struct tensor x)
{
    struct tensor y = arena_new(c->tmp, x.dtype, 2, DIMS(a->stage->num_real, x.dim[1]));
    c->dev->ops->rows_gather(c->dev, y, x, a->stage->real);
    return y;
}

static struct tensor compact_new(struct ctx *c, const struct self_attn *a, struct tensor like)
{
    return arena_new(c->tmp, like.dtype, 2, DIMS(a->stage->num_real, like.dim[1]));
}

void self_attn_forward(struct ctx *c, const struct self_attn *a, struct tensor o, struct tensor lse,
                       struct tensor q, struct tensor k, struct tensor v)
{
    const size_t mark = arena_mark(c->tmp);
    const int h = self_attn_heads(a);
    struct tensor out = o;
    if (compacts(a)) {
        q = compact(c, a, q);
        k = compact(c, a, k);
        v = compact(c, a, v);
        out = compact_new(c, a, o);
    }
    struct attn_args args = {.o = tensor_heads(out, h),
                             .lse = lse,
                             .q = tensor_heads(q, h),
                             .k = tensor_heads(k, h),
                             .v = tensor_heads(v, h),
                             .seqs = ranges(a),
                             .scale = a->scale};
    c->dev->ops->attn_fwd(c->dev, &args);
    if (compacts(a)) c->dev->ops->rows_gather(c->dev, o, out, a->stage->unreal);
    arena_release(c->tmp, mark);
}

void self_attn_backward(struct ctx *c, const struct self_attn *a, struct self_attn_grad g)
{
    const size_t mark = arena_mark(c->tmp);
    const int h = self_attn_heads(a);
    struct self_attn_grad s = g;
    if (compacts(a)) {
        s.q = compact(c, a, g.q);
        s.k = compact(c, a, g.k);
        s.v = compact(c, a, g.v);
        s.o = compact(c, a, g.o);
        s.d_o = compact(c, a, g.d_o);
        s.dq = compact_new(c, a, g.dq);
        s.dk = compact_new(c, a, g.dk);
        s.dv = compact_new(c, a, g.dv);
    }
    struct attn_grad_args args = {.dq = tensor_heads(s.dq, h),
                                  .dk = tensor_heads(s.dk, h),
                                  .dv = tensor_heads(s.dv, h),
                                  .d_o = tensor_heads(s.d_o, h),
                                  .o = tensor_heads(s.o, h),
                                  .lse = s.lse,
                                  .q = tensor_heads(s.q, h),
                                  .k = tensor_heads(s.k, h),
                                  .v = tensor_heads(s.v, h),
                                  .seqs = ranges(a),
                                  .scale = a->scale};
    c->dev->ops->attn_bwd(c->dev, &args);
    if (compacts(a)) {
        c->dev->ops->rows_gather(c->dev, g.dq, s.dq, a->stage->unreal);
        c->dev->ops->rows_gather(c->dev, g.dk, s.dk, a->stage->unreal);
        c->dev->ops->rows_gather(c->dev, g.dv, s.dv, a->stage->unreal);
    }
    arena_release(c->tmp, mark);
}
