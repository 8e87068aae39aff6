#include "model/block.h"

#include <math.h>

/* The least recompute policy under which a tensor is kept. */
static const unsigned char kept_from[T_COUNT] = {
    [T_MOD] = RECOMPUTE_NONE,      [T_MEAN1] = RECOMPUTE_NONE,   [T_RSTD1] = RECOMPUTE_NONE,
    [T_A] = RECOMPUTE_NONE,        [T_QKV] = RECOMPUTE_GEMM,     [T_RSTD_Q] = RECOMPUTE_NONE,
    [T_RSTD_K] = RECOMPUTE_NONE,   [T_Q] = RECOMPUTE_NONE,       [T_K] = RECOMPUTE_NONE,
    [T_QKV_ALL] = RECOMPUTE_NONE,  [T_O_ALL] = RECOMPUTE_NONE,   [T_O] = RECOMPUTE_ATTENTION,
    [T_LSE] = RECOMPUTE_ATTENTION, [T_Y1] = RECOMPUTE_GEMM,      [T_X1] = RECOMPUTE_NONE,
    [T_MEAN3] = RECOMPUTE_NONE,    [T_RSTD3] = RECOMPUTE_NONE,   [T_N3] = RECOMPUTE_NONE,
    [T_QC] = RECOMPUTE_GEMM,       [T_RSTD_QC] = RECOMPUTE_NONE, [T_QN] = RECOMPUTE_NONE,
    [T_KV] = RECOMPUTE_GEMM,       [T_RSTD_KC] = RECOMPUTE_NONE, [T_KN] = RECOMPUTE_NONE,
    [T_OC] = RECOMPUTE_GEMM,       [T_LSEC] = RECOMPUTE_GEMM,    [T_Y2] = RECOMPUTE_GEMM,
    [T_X2] = RECOMPUTE_NONE,       [T_MEAN2] = RECOMPUTE_NONE,   [T_RSTD2] = RECOMPUTE_NONE,
    [T_F] = RECOMPUTE_NONE,        [T_H] = RECOMPUTE_GEMM,       [T_G] = RECOMPUTE_NONE,
    [T_Y3] = RECOMPUTE_GEMM};

/* Where a tensor lies in a pass without a backward pass; before one only the tail of the block is
 * in rooms. Read from step to step, what a step reads is never in the room it writes, but for sums,
 * which are in place, and for the norm of a sum in the place of what was added. */
enum room { OWN, NARROW /* [R, C] */, WIDE /* [R, the larger of 3C and F] */, STREAM, MODULATION };
static const unsigned char room_of[T_COUNT] = {
    [T_MOD] = MODULATION,                                                   /* 1 */
    [T_A] = NARROW,       [T_QKV] = WIDE,  [T_O] = NARROW, [T_Y1] = WIDE,   /* 2, 3, 5, 6 */
    [T_X1] = STREAM,      [T_N3] = NARROW, [T_QC] = WIDE,  [T_OC] = NARROW, /* 7 to 10 */
    [T_Y2] = WIDE,        [T_X2] = STREAM, [T_F] = NARROW, [T_G] = WIDE,    /* 11 to 13 */
    [T_Y3] = NARROW};                                                       /* 14 */

static bool of_tail(enum block_tensor id) { return id == T_MOD || id == T_X2 || id == T_Y3; }

struct linear *block_linear(struct block *b, enum block_linear id)
{
    struct linear *const all[LINEAR_COUNT] = {&b->qkv,     &b->o,      &b->cross_q, &b->cross_kv,
                                              &b->cross_o, &b->ffn_in, &b->ffn_out};
    return all[id];
}

static struct self_attn attention_of(const struct block *b, const struct block_run *run)
{
    return (struct self_attn){run->stage, run->full, b->heads, 1 / sqrt((double)b->dim / b->heads)};
}

static bool kept(const struct block_run *run, enum block_tensor id)
{
    const bool over_ranks = run->full ? run->stage->full_ranks : run->stage->sub_ranks;
    if (over_ranks && (id == T_Q || id == T_K)) return false; /* their gathered forms are */
    return run->keep_any && kept_from[id] <= run->policy;
}

/* Makes tensor id when it is not there: in keep or tmp by the policy. False: it is there. */
static bool make(struct ctx *c, const struct block_run *run, struct block_saved *s,
                 enum block_tensor id, enum dtype d, int ndim, const int64_t *dim)
{
    if (s->t[id].data) return false;
    const bool in_room =
        run->forward_only ? room_of[id] != OWN : run->rooms && of_tail(id) && !kept(run, id);
    if (!in_room) {
        s->t[id] = arena_new(kept(run, id) ? c->keep : c->tmp, d, ndim, dim);
        return true;
    }
    const struct tensor room = s->room[room_of[id]];
    s->t[id] = tensor_make(room.data, d, ndim, dim);
    CHECK(tensor_bytes(s->t[id]) <= tensor_bytes(room), "tensor %d of a block: %zu bytes in %zu",
          (int)id, tensor_bytes(s->t[id]), tensor_bytes(room));
    return true;
}

/* The same for x normed, which may be in place of x when no backward pass wants that. */
static bool make_normed(struct ctx *c, const struct block_run *run, struct block_saved *s,
                        enum block_tensor id, struct tensor x)
{
    if (!run->forward_only) return make(c, run, s, id, x.dtype, 2, x.dim);
    if (s->t[id].data) return false;
    s->t[id] = x;
    return true;
}

struct block_rooms block_rooms_new(struct ctx *c, const struct block *b, int64_t rows,
                                   bool forward_only)
{
    const enum dtype T = ctx_compute(c), S = ctx_state(c);
    const int64_t C = b->dim, F = b->ffn_dim;
    struct block_rooms r = {.narrow = arena_new(c->tmp, T, 2, DIMS(rows, C))};
    for (int k = 0; k < 2; k++) r.mod[k] = arena_new(c->tmp, S, 2, DIMS(c->samples, 6 * C));
    if (!forward_only) r.sum = arena_new(c->tmp, T, 2, DIMS(rows, C));
    r.tail = arena_mark(c->tmp);
    if (forward_only) r.wide = arena_new(c->tmp, T, 2, DIMS(rows, F > 3 * C ? F : 3 * C));
    return r;
}

/* The modulation of the block before, of which the gate is still to be read, is in the other. */
static void take_rooms(const struct block *b, const struct block_run *run, struct block_saved *s,
                       struct tensor x)
{
    CHECK(run->rooms || !run->forward_only, "a forward pass alone without rooms");
    if (!run->rooms) return;
    s->room[MODULATION] = run->rooms->mod[b->unit % 2];
    s->room[NARROW] = run->rooms->narrow;
    s->room[WIDE] = run->rooms->wide;
    s->room[STREAM] = run->forward_only ? x : run->rooms->sum;
}

/* h of an adapter is kept where the output it belongs to is. */
static bool linears_kept(const struct block_run *run)
{
    return run->keep_any && RECOMPUTE_GEMM <= run->policy;
}

static struct linear_saved *saved(struct ctx *c, const struct block_run *run, struct block_saved *s,
                                  enum block_linear id)
{
    struct linear_saved *l = &s->linear[id];
    const struct grid *g = &run->stage->layout->grid;
    l->arena = linears_kept(run) ? c->keep : c->tmp;
    l->at = (struct token_rows){.height = g->h, .width = g->w};
    if (id != LINEAR_CROSS_KV) l->at.pos = run->stage->pos;
    return l;
}

void block_forget(struct block_saved *s, const struct block_run *run)
{
    for (int i = 0; i < LINEAR_COUNT && !linears_kept(run); i++) s->linear[i].h.data = NULL;
    for (int i = 0; i < T_COUNT; i++)
        if (!kept(run, (enum block_tensor)i)) s->t[i].data = NULL;
}

/* Column slice k of the six modulation vectors: [B, C]. */
static struct tensor mod(struct tensor m, int k, int64_t C) { return tensor_cols(m, k * C, C); }

static struct tensor row_of(struct param *p) { return tensor_view(p->w, 2, DIMS(1, p->dim[0])); }

/* The three layer norms. The first and the last are modulated by the rows `row` (shift) and
 * row + 1 (scale) of T_MOD, the middle one has weights of its own. */
enum norm_id { NORM_SELF, NORM_CROSS, NORM_FFN };
struct norm {
    enum block_tensor mean, rstd, out;
    int row; /* negative: weights of its own */
};
static const struct norm norms[] = {[NORM_SELF] = {T_MEAN1, T_RSTD1, T_A, 0},
                                    [NORM_CROSS] = {T_MEAN3, T_RSTD3, T_N3, -1},
                                    [NORM_FFN] = {T_MEAN2, T_RSTD2, T_F, 3}};

/* Makes place for norm id of x [R, C]; false: it is there. */
static bool make_norm(struct ctx *c, const struct block *b, const struct block_run *run,
                      struct block_saved *s, enum norm_id id, struct tensor x, struct ln_args *a)
{
    const struct norm *n = &norms[id];
    const int64_t R = x.dim[0], C = b->dim;
    make(c, run, s, n->mean, ctx_state(c), 1, DIMS(R));
    make(c, run, s, n->rstd, ctx_state(c), 1, DIMS(R));
    const bool missing = make(c, run, s, n->out, ctx_compute(c), 2, DIMS(R, C));
    const bool own = n->row < 0;
    *a = (struct ln_args){.out = s->t[n->out],
                          .mean = s->t[n->mean],
                          .rstd = s->t[n->rstd],
                          .x = x,
                          .scale = own ? row_of(b->norm3_w) : mod(s->t[T_MOD], n->row + 1, C),
                          .shift = own ? row_of(b->norm3_b) : mod(s->t[T_MOD], n->row, C),
                          .one = own ? 0 : 1,
                          .eps = b->eps};
    return missing;
}

/* sum = x + gate * y and its norm: in one pass when neither is there. */
static void add_and_norm(struct ctx *c, const struct block *b, const struct block_run *run,
                         struct block_saved *s, enum block_tensor sum, struct tensor x,
                         struct tensor y, struct tensor gate, enum norm_id id)
{
    struct gate_add_ln_args a = {.x = x, .y = y, .gate = gate};
    const bool add = make(c, run, s, sum, ctx_compute(c), 2, x.dim);
    const bool norm = make_norm(c, b, run, s, id, s->t[sum], &a.ln);
    if (add && norm)
        c->dev->ops->gate_add_ln_fwd(c->dev, &a);
    else if (add)
        c->dev->ops->gate_add_fwd(
            c->dev, &(struct gate_add_args){.out = s->t[sum], .x = x, .y = y, .gate = gate});
    else if (norm)
        c->dev->ops->ln_fwd(c->dev, &a.ln);
}

static void norm_rope(struct ctx *c, const struct block *b, const struct block_run *run,
                      struct tensor out, struct tensor rstd, struct tensor x, struct param *w,
                      bool rotate)
{
    struct norm_rope_args a = {.out = out,
                               .rstd = rstd,
                               .x = x,
                               .w = w->w,
                               .rope = run->rope,
                               .heads = b->heads,
                               .eps = b->eps};
    if (rotate) a.pos = run->stage->pos;
    c->dev->ops->norm_rope_fwd(c->dev, &a);
}

/* Step 4: q and k normed and rotated. */
static void norm_qk(struct ctx *c, const struct block *b, const struct block_run *run,
                    struct block_saved *s)
{
    struct tensor *t = s->t;
    const int64_t C = b->dim;
    const struct tensor q = tensor_cols(t[T_QKV], 0, C), k = tensor_cols(t[T_QKV], C, C);
    if (make_normed(c, run, s, T_Q, q))
        norm_rope(c, b, run, t[T_Q], t[T_RSTD_Q], q, b->norm_q, true);
    if (make_normed(c, run, s, T_K, k))
        norm_rope(c, b, run, t[T_K], t[T_RSTD_K], k, b->norm_k, true);
}

/* Steps 4 and 5 where sequences span ranks: one exchange of q, k, v, one of o. What is kept of a
 * recompute is not sent again: from o comes its gathered form without the attention. */
static void attend_over_ranks(struct ctx *c, const struct block *b, const struct block_run *run,
                              struct block_saved *s, const struct self_attn *attn)
{
    const struct ulysses *u = attn_ranks(attn);
    const enum dtype T = ctx_compute(c);
    struct tensor *t = s->t;
    const int64_t C = b->dim, w = C / u->head_groups;
    if (make(c, run, s, T_QKV_ALL, T, 2, DIMS(ulysses_rows(u), w))) {
        norm_qk(c, b, run, s);
        ulysses_gather_qkv(u, c->tmp, t[T_QKV_ALL], t[T_Q], t[T_K],
                           tensor_cols(t[T_QKV], 2 * C, C));
    }
    const bool o_kept = t[T_O].data;
    if (make(c, run, s, T_O_ALL, T, 2, DIMS(u->q_rows, w))) {
        if (o_kept)
            ulysses_gather(u, c->tmp, t[T_O_ALL], t[T_O]);
        else
            self_attn_forward(c, attn, t[T_O_ALL], t[T_LSE], ulysses_q(u, t[T_QKV_ALL]),
                              ulysses_k(u, t[T_QKV_ALL]), ulysses_v(u, t[T_QKV_ALL]));
    }
    if (make(c, run, s, T_O, T, 2, DIMS(t[T_QKV].dim[0], C)))
        ulysses_scatter(u, c->tmp, t[T_O], t[T_O_ALL]);
}

/* Steps 2 to 6: y1 = o(attention(LN(x)*(1+sc1)+sh1)) */
static void self_forward(struct ctx *c, const struct block *b, const struct block_run *run,
                         struct block_saved *s, struct tensor x, const struct tail *before)
{
    const enum dtype T = ctx_compute(c), S = ctx_state(c);
    const int64_t R = x.dim[0], C = b->dim;
    struct tensor *t = s->t;
    const struct self_attn attn = attention_of(b, run);
    struct ln_args a;
    if (make_norm(c, b, run, s, NORM_SELF, x, &a)) /* 2 */
        tail_norm(c, before ? before : &(struct tail){0}, &a);
    if (make(c, run, s, T_QKV, T, 2, DIMS(R, 3 * C))) /* 3 */
        linear_forward(c, &b->qkv, t[T_QKV], t[T_A], saved(c, run, s, LINEAR_QKV));
    make(c, run, s, T_RSTD_Q, S, 1, DIMS(R));
    make(c, run, s, T_RSTD_K, S, 1, DIMS(R));
    make(c, run, s, T_LSE, S, 2, DIMS(self_attn_rows(&attn), self_attn_heads(&attn)));
    if (attn_ranks(&attn)) { /* 4, 5 */
        attend_over_ranks(c, b, run, s, &attn);
    } else {
        norm_qk(c, b, run, s);                      /* 4 */
        if (make(c, run, s, T_O, T, 2, DIMS(R, C))) /* 5 */
            self_attn_forward(c, &attn, t[T_O], t[T_LSE], t[T_Q], t[T_K],
                              tensor_cols(t[T_QKV], 2 * C, C));
    }
    if (make(c, run, s, T_Y1, T, 2, DIMS(R, C))) /* 6 */
        linear_forward(c, &b->o, t[T_Y1], t[T_O], saved(c, run, s, LINEAR_O));
}

/* Steps 7 to 11: x1 = x + g1*y1, y2 = o(attention of LN(x1) over the text) */
static void cross_forward(struct ctx *c, const struct block *b, const struct block_run *run,
                          struct block_saved *s, struct tensor x, const struct cond *cond)
{
    const enum dtype T = ctx_compute(c), S = ctx_state(c);
    struct tensor *t = s->t;
    const int64_t R = x.dim[0], C = b->dim, L = cond->text.dim[0];
    add_and_norm(c, b, run, s, T_X1, x, t[T_Y1], mod(t[T_MOD], 2, C), NORM_CROSS); /* 7, 8 */
    if (make(c, run, s, T_QC, T, 2, DIMS(R, C)))                                   /* 9 */
        linear_forward(c, &b->cross_q, t[T_QC], t[T_N3], saved(c, run, s, LINEAR_CROSS_Q));
    if (make(c, run, s, T_KV, T, 2, DIMS(L, 2 * C)))
        linear_forward(c, &b->cross_kv, t[T_KV], cond->text, saved(c, run, s, LINEAR_CROSS_KV));
    make(c, run, s, T_RSTD_QC, S, 1, DIMS(R));
    make(c, run, s, T_RSTD_KC, S, 1, DIMS(L));
    if (make_normed(c, run, s, T_QN, t[T_QC]))
        norm_rope(c, b, run, t[T_QN], t[T_RSTD_QC], t[T_QC], b->cross_norm_q, false);
    const struct tensor k = tensor_cols(t[T_KV], 0, C);
    if (make_normed(c, run, s, T_KN, k))
        norm_rope(c, b, run, t[T_KN], t[T_RSTD_KC], k, b->cross_norm_k, false);
    make(c, run, s, T_LSEC, S, 2, DIMS(R, b->heads));
    if (make(c, run, s, T_OC, T, 2, DIMS(R, C))) { /* 10 */
        struct attn_args a = {.o = tensor_heads(t[T_OC], b->heads),
                              .lse = t[T_LSEC],
                              .q = tensor_heads(t[T_QN], b->heads),
                              .k = tensor_heads(t[T_KN], b->heads),
                              .v = tensor_heads(tensor_cols(t[T_KV], C, C), b->heads),
                              .seqs = &run->stage->cross,
                              .scale = attention_of(b, run).scale};
        c->dev->ops->attn_fwd(c->dev, &a);
    }
    if (make(c, run, s, T_Y2, T, 2, DIMS(R, C))) /* 11 */
        linear_forward(c, &b->cross_o, t[T_Y2], t[T_OC], saved(c, run, s, LINEAR_CROSS_O));
}

/* Steps 12 to 15: x2 = x1 + y2, y = x2 + g2 * W2 gelu(W1 (LN(x2)*(1+sc2)+sh2)); the sum of 15 is
 * the tail's, but for a block by itself */
static void ffn_forward(struct ctx *c, const struct block *b, const struct block_run *run,
                        struct block_saved *s, struct tensor y)
{
    const enum dtype T = ctx_compute(c);
    struct tensor *t = s->t;
    const int64_t R = t[T_X1].dim[0], C = b->dim, F = b->ffn_dim;
    add_and_norm(c, b, run, s, T_X2, t[T_X1], t[T_Y2], (struct tensor){0}, NORM_FFN); /* 12 */
    const bool h_kept = !run->forward_only && !make(c, run, s, T_H, T, 2, DIMS(R, F));
    if (make(c, run, s, T_G, T, 2, DIMS(R, F))) { /* 13 */
        if (h_kept)
            c->dev->ops->gelu_fwd(c->dev, t[T_G], t[T_H]);
        else
            linear_gelu_forward(c, &b->ffn_in, t[T_G], t[T_H], t[T_F],
                                saved(c, run, s, LINEAR_FFN_IN));
    }
    if (make(c, run, s, T_Y3, T, 2, DIMS(R, C))) /* 14 */
        linear_forward(c, &b->ffn_out, t[T_Y3], t[T_G], saved(c, run, s, LINEAR_FFN_OUT));
    const struct tail tail = block_tail(b, s);
    if (y.data) tail_sum(c, &tail, y); /* 15 */
}

struct tail block_tail(const struct block *b, const struct block_saved *s)
{
    return (struct tail){
        .x = s->t[T_X2], .y = s->t[T_Y3], .gate = mod(s->t[T_MOD], 5, (int64_t)b->dim)};
}

void block_forward(struct ctx *c, const struct block *b, const struct block_run *run,
                   struct block_saved *s, struct tensor y, struct tensor x,
                   const struct tail *before, const struct cond *cond)
{
    const int64_t C = b->dim, B = cond->e0.dim[0];
    SHAPE(x, ctx_compute(c), 2, run->stage->layout->rows, C);
    SHAPE(cond->e0, ctx_state(c), 2, B, 6 * C);
    take_rooms(b, run, s, x);
    if (make(c, run, s, T_MOD, ctx_state(c), 2, DIMS(B, 6 * C))) /* 1 */
        c->dev->ops->bcast_add(c->dev, s->t[T_MOD],
                               tensor_view(b->modulation->w, 2, DIMS(1, 6 * C)), cond->e0);
    self_forward(c, b, run, s, x, before);
    cross_forward(c, b, run, s, x, cond);
    ffn_forward(c, b, run, s, y);
}

static void norm_rope_back(struct ctx *c, const struct block *b, const struct block_run *run,
                           struct tensor dx, struct tensor dy, struct tensor x, struct tensor rstd,
                           struct param *w, bool rotate)
{
    struct norm_rope_grad_args a = {.dx = dx,
                                    .dw = w->g,
                                    .dy = dy,
                                    .x = x,
                                    .rstd = rstd,
                                    .w = w->w,
                                    .rope = run->rope,
                                    .heads = b->heads,
                                    .eps = b->eps};
    if (rotate) a.pos = run->stage->pos;
    c->dev->ops->norm_rope_bwd(c->dev, &a);
}

/* What to call for dx += the gradient of x through norm id, whose output has the gradient dy. */
static struct ln_grad_args norm_back(const struct block *b, const struct block_saved *s,
                                     enum norm_id id, struct tensor dx, struct tensor dy,
                                     struct tensor x, struct tensor dmod)
{
    const struct norm *n = &norms[id];
    const int64_t C = b->dim;
    struct ln_grad_args a = {
        .dx = dx, .dy = dy, .x = x, .mean = s->t[n->mean], .rstd = s->t[n->rstd]};
    if (n->row >= 0) {
        a.one = 1;
        a.scale = mod(s->t[T_MOD], n->row + 1, C);
        a.dscale = mod(dmod, n->row + 1, C);
        a.dshift = mod(dmod, n->row, C);
        return a;
    }
    a.scale = row_of(b->norm3_w);
    if (!b->norm3_w->g.data) return a; /* frozen */
    a.dscale = tensor_view(b->norm3_w->g, 2, DIMS(1, C));
    a.dshift = tensor_view(b->norm3_b->g, 2, DIMS(1, C));
    return a;
}

/* 15' to 12': dx = dy on entry, or `after` has it; d(x2) on return */
static void ffn_backward(struct ctx *c, const struct block *b, const struct block_saved *s,
                         struct tensor dx, struct tail_grad after, struct tensor dmod)
{
    const size_t mark = arena_mark(c->tmp);
    const struct tensor *t = s->t;
    const int64_t C = b->dim;
    struct tensor dy3 = arena_like(c->tmp, dx), dh = arena_like(c->tmp, t[T_H]);
    struct tensor df = arena_like(c->tmp, dx);
    const struct gate_add_grad_args g = {.dy = dy3,
                                         .dgate = mod(dmod, 5, C),
                                         .dout = after.dout.data ? after.dout : dx,
                                         .y = t[T_Y3],
                                         .gate = mod(t[T_MOD], 5, C),
                                         .dx = dx,
                                         .map = after.map};
    c->dev->ops->gate_add_bwd(c->dev, &g); /* 15' */
    linear_backward(
        c, &b->ffn_out,
        (struct linear_grad){.dx = dh, .aux = t[T_H], .saved = &s->linear[LINEAR_FFN_OUT]}, dy3,
        t[T_G]);
    linear_backward(c, &b->ffn_in,
                    (struct linear_grad){.dx = df, .saved = &s->linear[LINEAR_FFN_IN]}, dh,
                    t[T_F]); /* 14', 13' */
    const struct gate_add_ln_grad_args a = {.ln = norm_back(b, s, NORM_FFN, dx, df, t[T_X2], dmod)};
    c->dev->ops->gate_add_ln_bwd(c->dev, &a); /* 12' */
    arena_release(c->tmp, mark);
}

/* 11' to 7': dx = d(x2) on entry, d(x1) on return, which is d(x) past the attention; dy1 = d(y1) */
static void cross_backward(struct ctx *c, const struct block *b, const struct block_run *run,
                           const struct block_saved *s, struct tensor dx, struct tensor dy1,
                           const struct cond *cond, struct cond_grad *dcond, struct tensor dmod)
{
    const size_t mark = arena_mark(c->tmp);
    const struct tensor *t = s->t;
    const int64_t C = b->dim;
    struct tensor d_o = arena_like(c->tmp, dx), dq = arena_like(c->tmp, dx);
    struct tensor dk = arena_like(c->tmp, t[T_KN]), dkv = arena_like(c->tmp, t[T_KV]);
    linear_backward(c, &b->cross_o,
                    (struct linear_grad){.dx = d_o, .saved = &s->linear[LINEAR_CROSS_O]}, dx,
                    t[T_OC]); /* 11' */
    struct attn_grad_args a = {.dq = tensor_heads(dq, b->heads),
                               .dk = tensor_heads(dk, b->heads),
                               .dv = tensor_heads(tensor_cols(dkv, C, C), b->heads),
                               .d_o = tensor_heads(d_o, b->heads),
                               .o = tensor_heads(t[T_OC], b->heads),
                               .lse = t[T_LSEC],
                               .q = tensor_heads(t[T_QN], b->heads),
                               .k = tensor_heads(t[T_KN], b->heads),
                               .v = tensor_heads(tensor_cols(t[T_KV], C, C), b->heads),
                               .seqs = &run->stage->cross,
                               .scale = attention_of(b, run).scale};
    c->dev->ops->attn_bwd(c->dev, &a); /* 10' */
    struct tensor dqc = d_o;           /* d_o is spent */
    norm_rope_back(c, b, run, dqc, dq, t[T_QC], t[T_RSTD_QC], b->cross_norm_q, false);
    norm_rope_back(c, b, run, tensor_cols(dkv, 0, C), dk, tensor_cols(t[T_KV], 0, C), t[T_RSTD_KC],
                   b->cross_norm_k, false);
    linear_backward(
        c, &b->cross_kv,
        (struct linear_grad){.dx = dcond->text, .add = true, .saved = &s->linear[LINEAR_CROSS_KV]},
        dkv, cond->text);
    struct tensor dn = dq; /* dq is spent */
    linear_backward(c, &b->cross_q,
                    (struct linear_grad){.dx = dn, .saved = &s->linear[LINEAR_CROSS_Q]}, dqc,
                    t[T_N3]); /* 9' */
    const struct gate_add_ln_grad_args g = {.ln =
                                                norm_back(b, s, NORM_CROSS, dx, dn, t[T_X1], dmod),
                                            .dy = dy1,
                                            .dgate = mod(dmod, 2, C),
                                            .y = t[T_Y1],
                                            .gate = mod(t[T_MOD], 2, C)};
    c->dev->ops->gate_add_ln_bwd(c->dev, &g); /* 8', 7' */
    arena_release(c->tmp, mark);
}

/* 5' where sequences span ranks: do goes out as o came in, dq, dk, dv come back as q, k, v went. */
static void attend_back_over_ranks(struct ctx *c, const struct block_saved *s,
                                   const struct self_attn *attn, const struct self_attn_grad *g)
{
    const size_t mark = arena_mark(c->tmp);
    const struct ulysses *u = attn_ranks(attn);
    const struct tensor *t = s->t;
    struct tensor d_o = arena_like(c->tmp, t[T_O_ALL]), d = arena_like(c->tmp, t[T_QKV_ALL]);
    ulysses_gather(u, c->tmp, d_o, g->d_o);
    self_attn_backward(c, attn,
                       (struct self_attn_grad){.dq = ulysses_q(u, d),
                                               .dk = ulysses_k(u, d),
                                               .dv = ulysses_v(u, d),
                                               .d_o = d_o,
                                               .o = t[T_O_ALL],
                                               .lse = t[T_LSE],
                                               .q = ulysses_q(u, t[T_QKV_ALL]),
                                               .k = ulysses_k(u, t[T_QKV_ALL]),
                                               .v = ulysses_v(u, t[T_QKV_ALL])});
    ulysses_scatter_qkv(u, c->tmp, g->dq, g->dk, g->dv, d);
    arena_release(c->tmp, mark);
}

/* 6' to 2': dx = d(x1) on entry, d(x) on return; dy1 is spent */
static void self_backward(struct ctx *c, const struct block *b, const struct block_run *run,
                          const struct block_saved *s, struct tensor dx, struct tensor dy1,
                          struct tensor x, struct tensor dmod)
{
    const size_t mark = arena_mark(c->tmp);
    const struct tensor *t = s->t;
    const int64_t C = b->dim;
    struct tensor d_o = arena_like(c->tmp, dx), dk = arena_like(c->tmp, dx);
    struct tensor dqkv = arena_like(c->tmp, t[T_QKV]);
    linear_backward(c, &b->o, (struct linear_grad){.dx = d_o, .saved = &s->linear[LINEAR_O]}, dy1,
                    t[T_O]); /* 6' */
    struct tensor dq = dy1;
    const struct self_attn attn = attention_of(b, run);
    const struct self_attn_grad g = {.dq = dq,
                                     .dk = dk,
                                     .dv = tensor_cols(dqkv, 2 * C, C),
                                     .d_o = d_o,
                                     .o = t[T_O],
                                     .lse = t[T_LSE],
                                     .q = t[T_Q],
                                     .k = t[T_K],
                                     .v = tensor_cols(t[T_QKV], 2 * C, C)};
    if (attn_ranks(&attn)) /* 5' */
        attend_back_over_ranks(c, s, &attn, &g);
    else
        self_attn_backward(c, &attn, g);
    norm_rope_back(c, b, run, tensor_cols(dqkv, 0, C), dq, tensor_cols(t[T_QKV], 0, C), t[T_RSTD_Q],
                   b->norm_q, true); /* 4' */
    norm_rope_back(c, b, run, tensor_cols(dqkv, C, C), dk, tensor_cols(t[T_QKV], C, C), t[T_RSTD_K],
                   b->norm_k, true);
    struct tensor da = d_o; /* d_o is spent */
    linear_backward(c, &b->qkv, (struct linear_grad){.dx = da, .saved = &s->linear[LINEAR_QKV]},
                    dqkv, t[T_A]); /* 3' */
    const struct gate_add_ln_grad_args a = {.ln = norm_back(b, s, NORM_SELF, dx, da, x, dmod)};
    c->dev->ops->gate_add_ln_bwd(c->dev, &a); /* 2' */
    arena_release(c->tmp, mark);
}

void block_backward(struct ctx *c, const struct block *b, const struct block_run *run,
                    const struct block_saved *s, struct tensor dx, struct tail_grad after,
                    struct tensor x, const struct cond *cond, struct cond_grad *dcond)
{
    const size_t mark = arena_mark(c->tmp);
    const int64_t C = b->dim, B = cond->e0.dim[0];
    struct tensor dmod = ctx_zeros(c, c->tmp, ctx_state(c), 2, DIMS(B, 6 * C));
    ffn_backward(c, b, s, dx, after, dmod);
    struct tensor dy1 = arena_like(c->tmp, dx);
    cross_backward(c, b, run, s, dx, dy1, cond, dcond, dmod);
    self_backward(c, b, run, s, dx, dy1, x, dmod);
    if (b->modulation->g.data) /* 1' */
        c->dev->ops->colsum_add(c->dev, tensor_view(b->modulation->g, 1, DIMS(6 * C)), dmod);
    c->dev->ops->axpy(c->dev, dcond->e0, 1, dmod);
    arena_release(c->tmp, mark);
}
