#include "model/dit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/params.h"
#include "model/rope.h"
#include "parallel/mesh.h"

static void set_policies(struct dit *d, enum recompute recompute, const struct cfg_ints *blocks)
{
    for (int i = 0; i < d->num_blocks; i++)
        d->policy[i] = blocks && blocks->n ? RECOMPUTE_NONE : recompute;
    for (int k = 0; blocks && k < blocks->n; k++) {
        CHECK(blocks->v[k] >= 0 && blocks->v[k] < d->num_blocks, "recompute: block %lld of %d",
              (long long)blocks->v[k], d->num_blocks);
        d->policy[blocks->v[k]] = RECOMPUTE_ALL;
    }
}

struct dit *dit_new(struct dev *dev, const struct model_config *m, enum recompute recompute,
                    const struct cfg_ints *blocks, int max_pos)
{
    struct dit *d = calloc(1, sizeof *d);
    CHECK(d, "out of memory");
    d->config = *m;
    d->num_blocks = (int)m->num_layers;
    d->num_units = d->num_blocks + 2;
    d->unit = calloc((size_t)d->num_units, sizeof *d->unit);
    d->block = calloc((size_t)d->num_blocks, sizeof *d->block);
    d->param_store = calloc((size_t)d->num_units * UNIT_MAX_PARAMS, sizeof *d->param_store);
    CHECK(d->unit && d->block && d->param_store, "out of memory");
    for (int u = 0; u < d->num_units; u++)
        d->unit[u].param = d->param_store + (size_t)u * UNIT_MAX_PARAMS;
    snprintf(d->unit[0].name, sizeof d->unit[0].name, "embed");
    embed_init(&d->embed, &d->unit[0], 0, m);
    for (int i = 0; i < d->num_blocks; i++) {
        snprintf(d->unit[i + 1].name, sizeof d->unit[0].name, "blocks.%d", i);
        block_init(&d->block[i], &d->unit[i + 1], i + 1, m, i);
    }
    snprintf(d->unit[d->num_units - 1].name, sizeof d->unit[0].name, "head");
    head_init(&d->head, &d->unit[d->num_units - 1], d->num_units - 1, m);
    rope_init(&d->rope, dev, (int)(m->dim / m->num_heads), max_pos);
    set_policies(d, recompute, blocks);
    return d;
}

void dit_set_policies(struct dit *d, const enum recompute *policy)
{
    memcpy(d->policy, policy, (size_t)d->num_blocks * sizeof *policy);
}

void dit_freeze(struct dit *d)
{
    for (int u = 0; u < d->num_units; u++)
        for (int i = 0; i < d->unit[u].num_params; i++)
            d->unit[u].param[i].flags &= ~(unsigned)P_TRAINABLE;
}

void dit_free(struct dit *d, struct dev *dev)
{
    if (!d) return;
    rope_free(&d->rope, dev);
    free(d->param_store);
    free(d->block);
    free(d->unit);
    free(d);
}

int64_t dit_num_params(const struct dit *d)
{
    int64_t n = 0;
    for (int u = 0; u < d->num_units; u++)
        for (int p = 0; p < d->unit[u].num_params; p++) n += param_count(&d->unit[u].param[p]);
    return n;
}

const struct stage *dit_last_stage(const struct shape_plan *p)
{
    return &p->stage[p->at[p->num_layers]];
}

const struct stage *dit_first_stage(const struct shape_plan *p)
{
    for (int i = 0; i <= p->num_layers; i++)
        if (p->enter[i]) { /* the first move leaves the first stage */
            for (int s = 0; s < p->num_stages; s++)
                if (p->stage[s].layout == p->enter[i]->src) return &p->stage[s];
        }
    return dit_last_stage(p);
}

static struct block_run block_run_of(const struct dit *d, const struct dit_run *run, int i)
{
    return (struct block_run){.stage = &run->plan->stage[run->plan->at[i]],
                              .rope = &d->rope,
                              .full = run->plan->kind[i] == BLOCK_FULL,
                              .policy = d->policy[i],
                              .keep_any = run->train,
                              .forward_only = !run->train};
}

/* Where the inputs of blocks lie in a forward pass alone: a block works in place of its input, and
 * rows that move go to the spare buffer whose turn it is. The model's input is one of the two,
 * where it has room for the rows of all layouts. */
struct streams {
    struct tensor spare[2];
    int next;
};

static bool moves(const struct redist *r) { return r && r->moves; }

static struct streams streams_new(struct ctx *c, const struct dit_run *run)
{
    struct streams s = {0};
    const struct tensor x = run->embed.x;
    const int64_t R = run->plan->max_rows;
    bool any = false;
    for (int i = 0; i <= run->plan->num_layers; i++) any |= moves(run->plan->enter[i]);
    if (!any) return s;
    s.spare[0] = arena_new(c->keep, x.dtype, 2, DIMS(R, x.dim[1]));
    s.spare[1] = x.dim[0] >= R ? x : arena_new(c->keep, x.dtype, 2, DIMS(R, x.dim[1]));
    return s;
}

/* A place for x[i], [rows of its stage, C]. Training: x[i], all that is always kept of block i, is
 * its input after the move, so that an exchange is not repeated in the recompute. */
static struct tensor place(struct ctx *c, const struct dit_run *run, int i, struct streams *s,
                           const struct tail *tail)
{
    const bool moved = moves(run->plan->enter[i]);
    const int64_t rows = run->plan->stage[run->plan->at[i]].layout->rows;
    if (!moved && (!run->train || !tail->y.data)) return tail->x;
    if (run->train) return arena_new(c->keep, tail->x.dtype, 2, DIMS(rows, tail->x.dim[1]));
    s->next = !s->next;
    return tensor_rows(s->spare[!s->next], 0, rows);
}

/* Gives x[i] its place. Rows that change places on this rank are left to the norm of x[i], as is
 * the sum; what goes over ranks is added and sent here. */
static void enter_stage(struct ctx *c, struct dit_run *run, int i, struct streams *s,
                        struct tail *tail)
{
    const struct redist *r = run->plan->enter[i];
    run->x[i] = place(c, run, i, s, tail);
    if (!moves(r)) return;
    if (tail->y.data && r->forward_map.data) {
        tail->map = r->forward_map;
        return;
    }
    const size_t mark = arena_mark(c->tmp);
    const bool apart = run->train && tail->y.data; /* x of the tail may be kept */
    *tail = tail_sum(c, tail, apart ? arena_like(c->tmp, tail->x) : tail->x);
    redist_forward(r, run->x[i], tail->x);
    *tail = (struct tail){.x = run->x[i]};
    arena_release(c->tmp, mark);
}

/* Returns what is still to be added to x[num_blocks]; it lies in keep and in tmp. */
static struct tail blocks_forward(struct ctx *c, const struct dit *d, struct dit_run *run,
                                  const struct cond *cond)
{
    struct tail tail = {.x = run->embed.x};
    struct streams streams = {0};
    if (!run->train) streams = streams_new(c, run);
    const struct block_rooms rooms =
        block_rooms_new(c, &d->block[0], run->plan->max_rows, !run->train);
    for (int i = 0; i < d->num_blocks; i++) {
        struct block_run br = block_run_of(d, run, i);
        br.rooms = &rooms;
        mesh_at(c->mesh, d->unit[i + 1].name);
        enter_stage(c, run, i, &streams, &tail);
        const size_t inside = arena_mark(c->tmp);
        unit_enter(c->hooks, d->block[i].unit, PASS_FORWARD);
        block_forward(c, &d->block[i], &br, &run->saved[i], (struct tensor){0}, run->x[i], &tail,
                      cond);
        unit_leave(c->hooks, d->block[i].unit, PASS_FORWARD);
        tail = block_tail(&d->block[i], &run->saved[i]);
        block_forget(&run->saved[i], &br);
        arena_release(c->tmp, inside);
    }
    arena_release(c->tmp, rooms.tail);
    mesh_at(c->mesh, d->unit[d->head.unit].name);
    enter_stage(c, run, d->num_blocks, &streams, &tail);
    mesh_at(c->mesh, NULL);
    return tail;
}

void dit_forward(struct ctx *c, const struct dit *d, const struct shape_plan *p,
                 struct dit_input in, bool train, struct dit_run *run)
{
    const struct model_config *m = &d->config;
    SHAPE(in.xt, ctx_compute(c), 2, dit_first_stage(p)->layout->rows, 4 * m->in_dim);
    SHAPE(in.text, ctx_compute(c), 2, (int64_t)p->batch * p->text_len, m->text_dim);
    *run = (struct dit_run){.plan = p, .in = in, .gate = c->gate, .drop = c->drop, .train = train};
    c->samples = p->batch;
    run->embed.e.dim[0] = p->batch;
    unit_enter(c->hooks, d->embed.unit, PASS_FORWARD);
    embed_forward(c, &d->embed, &run->embed, (struct embed_in){in.xt, in.text, in.t});
    unit_leave(c->hooks, d->embed.unit, PASS_FORWARD);
    const struct cond cond = {run->embed.ctx, run->embed.e0};
    const size_t mark = arena_mark(c->tmp);
    const struct tail tail = blocks_forward(c, d, run, &cond);
    struct tensor x = run->x[d->num_blocks];
    run->out = arena_new(c->keep, x.dtype, 2, DIMS(x.dim[0], 4 * m->out_dim));
    unit_enter(c->hooks, d->head.unit, PASS_FORWARD);
    head_forward(c, &d->head, train ? c->keep : c->tmp, &run->head, run->out, x, &tail,
                 run->embed.e);
    unit_leave(c->hooks, d->head.unit, PASS_FORWARD);
    arena_release(c->tmp, mark);
    mesh_at(c->mesh, NULL);
}

/* dx of the stage of block i-1 from dx of the stage of block i, in the other buffer. after (NULL:
 * there is nobody): rows that change places on this rank are left to the block's first op. */
static struct tensor leave_stage(const struct dit_run *run, int i, struct tensor dx,
                                 struct tensor buffer, struct tail_grad *after)
{
    const struct redist *r = run->plan->enter[i];
    if (!moves(r)) return dx;
    struct tensor y = tensor_rows(buffer, 0, r->src->rows);
    if (after && r->backward_map.data)
        *after = (struct tail_grad){dx, r->backward_map};
    else
        redist_backward(r, y, dx);
    return y;
}

/* Whether any parameter of a unit wants a gradient. */
static bool trained(const struct unit *u)
{
    for (int i = 0; i < u->num_params; i++)
        if (u->param[i].flags & P_TRAINABLE) return true;
    return false;
}

/* What comes before the blocks: dx of the first of them, in the rows of its stage. */
static void input_backward(struct ctx *c, const struct dit *d, struct dit_run *run,
                           struct tensor dx, struct tensor buffer, struct tensor de,
                           const struct cond_grad *dcond, struct tensor dxt, struct tensor dtext)
{
    mesh_at(c->mesh, d->unit[1].name);
    dx = leave_stage(run, 0, dx, buffer, NULL);
    mesh_at(c->mesh, NULL);
    unit_enter(c->hooks, d->embed.unit, PASS_BACKWARD);
    embed_backward(c, &d->embed, &run->embed,
                   (struct embed_in){run->in.xt, run->in.text, run->in.t},
                   (struct embed_grad){.dx = dx,
                                       .dtext_ctx = dcond->text,
                                       .de = de,
                                       .de0 = dcond->e0,
                                       .dxt = dxt,
                                       .dtext = dtext});
    unit_leave(c->hooks, d->embed.unit, PASS_BACKWARD);
}

void dit_backward(struct ctx *c, const struct dit *d, struct dit_run *run, struct tensor dout,
                  struct tensor dxt, struct tensor dtext)
{
    CHECK(run->train, "backward after a forward pass that kept nothing");
    CHECK(run->gate == c->gate && run->drop == c->drop,
          "the gate or the dropout changed between the forward pass and this backward pass");
    c->samples = run->plan->batch;
    const size_t mark = arena_mark(c->tmp);
    const enum dtype T = ctx_compute(c), S = ctx_state(c);
    const int64_t C = d->config.dim;
    struct tensor buffer[2];
    for (int k = 0; k < 2; k++) buffer[k] = arena_new(c->tmp, T, 2, DIMS(run->plan->max_rows, C));
    struct tensor de = ctx_zeros(c, c->tmp, S, 2, run->embed.e.dim);
    const bool embeds = dxt.data || dtext.data || trained(&d->unit[d->embed.unit]);
    struct cond_grad dcond = {.e0 = ctx_zeros(c, c->tmp, S, 2, run->embed.e0.dim)};
    if (embeds) dcond.text = ctx_zeros(c, c->tmp, S, 2, run->embed.ctx.dim);
    const struct cond cond = {run->embed.ctx, run->embed.e0};
    struct tensor dx = tensor_rows(buffer[0], 0, run->x[d->num_blocks].dim[0]);
    unit_enter(c->hooks, d->head.unit, PASS_BACKWARD);
    head_backward(c, &d->head, &run->head, dx, de, dout, run->x[d->num_blocks]);
    unit_leave(c->hooks, d->head.unit, PASS_BACKWARD);
    for (int i = d->num_blocks - 1; i >= 0; i--) {
        mesh_at(c->mesh, d->unit[i + 2].name); /* the exchange belongs to whom it led to */
        struct tail_grad after = {0};
        dx = leave_stage(run, i + 1, dx, dx.data == buffer[0].data ? buffer[1] : buffer[0], &after);
        mesh_at(c->mesh, d->unit[i + 1].name);
        const struct block_run br = block_run_of(d, run, i);
        const size_t inside = arena_mark(c->tmp);
        unit_enter(c->hooks, d->block[i].unit, PASS_BACKWARD);
        struct block_run again = br;
        again.keep_any = false; /* what is missing is made anew, in tmp */
        block_forward(c, &d->block[i], &again, &run->saved[i], (struct tensor){0}, run->x[i], NULL,
                      &cond);
        block_backward(c, &d->block[i], &br, &run->saved[i], dx, after, run->x[i], &cond, &dcond);
        unit_leave(c->hooks, d->block[i].unit, PASS_BACKWARD);
        arena_release(c->tmp, inside);
    }
    if (embeds)
        input_backward(c, d, run, dx, dx.data == buffer[0].data ? buffer[1] : buffer[0], de, &dcond,
                       dxt, dtext);
    mesh_at(c->mesh, NULL);
    arena_release(c->tmp, mark);
}
