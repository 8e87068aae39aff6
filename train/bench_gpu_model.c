/* Parts B to E of `osp bench gpu`: forward passes, training steps and single blocks, by the code
 * that trains and samples.
 *
 * A forward pass holds its weights in the compute dtype alone (all parameters frozen); a step holds
 * masters, moments and gradients, without EMA. A block at the load of a cluster runs as rank 0 of
 * its ranks over a transport that moves nothing: what would come from the others is what lies in
 * the arenas, random numbers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "model/dit.h"
#include "parallel/fsdp.h"
#include "train/bench_gpu.h"

enum { ITEM_LATENT = 31, ITEM_NOISE, ITEM_TEXT, ITEM_BX = 41, ITEM_BDY, ITEM_BTEXT, ITEM_BE0 };
static const double SIGMA = 0.6;

struct gpu_model_work {
    struct dev *dev;
    const struct gpu_case *c;
    struct comm *world;
    struct mesh mesh;
    struct dit *dit, warm_dit; /* warm_dit: its first blocks, one of each kind */
    struct fsdp *fsdp;
    struct shape_plan *plan, *warm_plan;
    struct arena keep, tmp;
    struct ctx ctx;
    struct dit_run *run;
    struct tensor xt, target, text;                /* forward, step */
    struct tensor x, y, dy, dx, ctx_text, e0, map; /* block */
    struct cond_grad dcond;                        /* ... */
    double sum;                                    /* of squared errors */
    int64_t steps;
};

static bool trains(const struct gpu_case *c) { return c->kind != GPU_FORWARD; }

static bool ends(const char *name, const char *with)
{
    const size_t n = strlen(name), k = strlen(with);
    return n >= k && strcmp(name + n - k, with) == 0;
}

/* Every value is drawn, none is zero: matrices as they are initialised, norm weights around 1,
 * vectors small. But for what decides how much attention does: sharp queries and keys and open
 * gates, so that a wrong attention is far beyond the rounding of the result. Stream: the name. */
static void init_piece(void *arg, const struct piece *p)
{
    struct dev *d = ((struct gpu_model_work *)arg)->dev;
    const struct param *q = p->param;
    double low = -0.02, high = 0.02;
    if (ends(q->name, ".weight") && q->ndim > 1) {
        high = sqrt(6 / (double)(q->dim[0] + param_count(q) / q->dim[0]));
        low = -high;
    } else if (ends(q->name, "norm_q.weight") || ends(q->name, "norm_k.weight")) {
        low = 1.2;
        high = 1.6;
    } else if (ends(q->name, ".weight")) {
        low = 0.9;
        high = 1.1;
    } else if (ends(q->name, "modulation")) {
        low = -1;
        high = 1;
    }
    const struct rng_key key = {.seed = GPU_SEED, .use = RNG_INIT, .item = rng_hash(q->name)};
    d->ops->rng_uniform(d, p->data, rng_open(key), (uint64_t)p->first, low, high);
}

static void open_params(struct gpu_model_work *w)
{
    const struct gpu_case *c = w->c;
    const int most = c->t > c->h ? c->t : c->h;
    w->dit = dit_new(w->dev, &c->model, c->policy, NULL, most > c->w ? most : c->w);
    if (!trains(c)) dit_freeze(w->dit);
    w->fsdp =
        fsdp_new(w->dev, &w->mesh, w->dit->unit, w->dit->num_units,
                 (struct fsdp_opts){.optimizer = trains(c), .no_moments = c->kind == GPU_BLOCK});
    fsdp_each_piece(w->fsdp, STATE_MASTER, init_piece, w);
    fsdp_refresh_wire(w->fsdp);
}

static void open_plans(struct gpu_model_work *w)
{
    const struct gpu_case *c = w->c;
    const int text = (int)c->model.text_len;
    w->plan = plan_shape(w->dev, &w->mesh, &c->model, 1, c->t, c->h, c->w, text);
    if (c->kind == GPU_BLOCK) return;
    struct model_config m = c->model;
    m.num_layers = gpu_sparse(c) ? 3 : 1;
    m.full_block_indices = (struct cfg_ints){.n = gpu_sparse(c), .v = {0}}; /* full, token, group */
    w->warm_plan = plan_shape(w->dev, &w->mesh, &m, 1, c->t, c->h, c->w, text);
    w->warm_dit = *w->dit;
    w->warm_dit.num_blocks = (int)m.num_layers;
}

static void open_arenas(struct gpu_model_work *w, struct gpu_arenas a)
{
    const bool dry = !a.keep;
    arena_init(&w->keep, w->dev, dry ? (size_t)1 << DRY_ARENA_SHIFT : a.keep + (1 << 16), "keep");
    arena_init(&w->tmp, w->dev, dry ? (size_t)1 << DRY_ARENA_SHIFT : a.tmp + (1 << 16), "tmp");
    w->ctx = (struct ctx){.dev = w->dev,
                          .mesh = &w->mesh,
                          .hooks = fsdp_hooks(w->fsdp),
                          .keep = &w->keep,
                          .tmp = &w->tmp};
}

/* x_t in the rows that the model takes, the target in those that it gives. */
static void open_latents(struct gpu_model_work *w)
{
    const struct gpu_case *c = w->c;
    const enum dtype T = w->dev->compute, S = dtype_state(T);
    const struct stage *first = dit_first_stage(w->plan), *last = dit_last_stage(w->plan);
    const int64_t in = 4 * c->model.in_dim, R = first->layout->rows;
    const struct rng_key noise = {.seed = GPU_SEED, .use = RNG_TEST, .item = ITEM_NOISE};
    struct tensor z = dev_tensor(w->dev, S, 5, DIMS(1, c->model.in_dim, c->t, 2 * c->h, 2 * c->w));
    gpu_normal(w->dev, z, ITEM_LATENT, 1);
    w->xt = dev_tensor(w->dev, T, 2, DIMS(R, in));
    w->target = dev_tensor(w->dev, S, 2, DIMS(R, in));
    struct tensor unused = dev_tensor(w->dev, S, 2, DIMS(R, in)),
                  unused_xt = dev_tensor(w->dev, T, 2, DIMS(R, in));
    struct flow_args a = {
        .xt = w->xt, .target = unused, .z = z, .pos = first->pos, .sigma = &SIGMA, .noise = &noise};
    w->dev->ops->flow_rows(w->dev, &a);
    a.xt = unused_xt;
    a.target = w->target;
    a.pos = last->pos;
    w->dev->ops->flow_rows(w->dev, &a);
    w->text = dev_tensor(w->dev, T, 2, DIMS(c->model.text_len, c->model.text_dim));
    gpu_normal(w->dev, w->text, ITEM_TEXT, 1);
    w->dev->ops->sync(w->dev);
    dev_free(w->dev, unused.data);
    dev_free(w->dev, unused_xt.data);
    dev_free(w->dev, z.data);
}

static int64_t token_of(const struct gpu_case *c, const int16_t *pos)
{
    return ((int64_t)pos[0] * c->h + pos[1]) * c->w + pos[2];
}

/* Rows of the block's stage out of the plain order, so that both sides have the same tokens. */
static struct tensor token_rows_of(struct gpu_model_work *w, uint64_t item)
{
    const struct gpu_case *c = w->c;
    const int64_t C = c->model.dim, N = (int64_t)c->t * c->h * c->w;
    struct tensor all = dev_tensor(w->dev, w->dev->compute, 2, DIMS(N, C));
    struct tensor x = dev_tensor(w->dev, w->dev->compute, 2, DIMS(w->map.dim[0], C));
    gpu_normal(w->dev, all, item, 1);
    w->dev->ops->rows_gather(w->dev, x, all, w->map);
    w->dev->ops->sync(w->dev);
    dev_free(w->dev, all.data);
    return x;
}

static void open_block(struct gpu_model_work *w)
{
    const struct gpu_case *c = w->c;
    const struct layout *l = w->plan->stage[0].layout;
    const enum dtype T = w->dev->compute;
    const int64_t C = c->model.dim;
    int32_t *map = calloc((size_t)l->rows, sizeof *map);
    CHECK(map, "out of memory");
    for (int64_t r = 0; r < l->rows; r++) map[r] = (int32_t)token_of(c, l->pos + 3 * r);
    w->map = dev_tensor(w->dev, DT_I32, 1, DIMS(l->rows));
    dev_put(w->dev, w->map, map);
    free(map);
    w->x = token_rows_of(w, ITEM_BX);
    w->dy = token_rows_of(w, ITEM_BDY);
    w->y = dev_tensor(w->dev, T, 2, w->x.dim);
    w->dx = dev_tensor(w->dev, T, 2, w->x.dim);
    w->ctx_text = dev_tensor(w->dev, T, 2, DIMS(c->model.text_len, C));
    gpu_normal(w->dev, w->ctx_text, ITEM_BTEXT, 1);
    w->e0 = dev_tensor(w->dev, dtype_state(T), 2, DIMS(1, 6 * C));
    gpu_normal(w->dev, w->e0, ITEM_BE0, 0.5);
}

struct gpu_model_work *gpu_model_open(struct dev *dev, const struct gpu_case *c,
                                      struct gpu_arenas a)
{
    struct gpu_model_work *w = calloc(1, sizeof *w);
    CHECK(w, "out of memory");
    w->dev = dev;
    w->c = c;
    const int ranks = c->ssp * c->sp;
    w->world = ranks > 1 ? comm_null(ranks, 0, dev) : comm_self(dev);
    mesh_init(&w->mesh, w->world, (struct mesh_degrees){c->ssp, c->sp, 1});
    open_params(w);
    open_plans(w);
    open_arenas(w, a);
    if (c->kind == GPU_BLOCK)
        open_block(w);
    else
        open_latents(w);
    w->run = calloc(1, sizeof *w->run);
    CHECK(w->run, "out of memory");
    return w;
}

struct gpu_arenas gpu_model_peaks(const struct gpu_model_work *w)
{
    return (struct gpu_arenas){w->keep.peak, w->tmp.peak};
}

static void fill_arena(struct gpu_model_work *w, const struct arena *a, uint64_t item)
{
    const int64_t n = (int64_t)(a->size / dtype_size(w->dev->compute));
    gpu_normal(w->dev, tensor_make(a->base, w->dev->compute, 1, &n), item, 1);
}

void gpu_model_ready(struct gpu_model_work *w)
{
    if (w->c->ssp * w->c->sp == 1 || strcmp(w->dev->ops->name, "null") == 0) return;
    fill_arena(w, &w->keep, 91);
    fill_arena(w, &w->tmp, 92);
}

static void forward(struct gpu_model_work *w, const struct dit *d, const struct shape_plan *p)
{
    const double t = 1000 * SIGMA;
    arena_release(&w->keep, 0);
    dit_forward(&w->ctx, d, p, (struct dit_input){w->xt, w->text, &t}, trains(w->c), w->run);
}

/* Sum over all parameters of the squared gradient, and the update: what train/trainer.c does. */
static void update(struct gpu_model_work *w)
{
    int n;
    struct shard *s = fsdp_shards(w->fsdp, &n);
    double norm = 0;
    arena_release(&w->keep, 0);
    struct tensor sum = ctx_zeros(&w->ctx, &w->keep, DT_F64, 1, DIMS(1));
    struct tensor *grad = calloc((size_t)n, sizeof *grad);
    struct update_shard *list = calloc((size_t)n, sizeof *list);
    CHECK(grad && list, "out of memory");
    for (int i = 0; i < n; i++) {
        grad[i] = s[i].grad;
        list[i] = (struct update_shard){
            .p = s[i].master, .m = s[i].m, .v = s[i].v, .g = s[i].grad, .weight_decay = 1e-3};
        if (s[i].wire.data != s[i].master.data) list[i].wire = s[i].wire;
    }
    w->dev->ops->sumsq(w->dev, sum, grad, n);
    dev_get(w->dev, &norm, sum);
    w->steps++;
    const struct update_args a = {.shard = list,
                                  .num_shards = n,
                                  .lr = 1e-6,
                                  .beta1 = 0.9,
                                  .beta2 = 0.999,
                                  .eps = 1e-15,
                                  .bias1 = 1 - pow(0.9, (double)w->steps),
                                  .bias2 = 1 - pow(0.999, (double)w->steps),
                                  .grad_scale = norm > 1 ? 1 / sqrt(norm) : 1,
                                  .ema_keep = -1};
    w->dev->ops->update(w->dev, &a);
    free(grad);
    free(list);
}

static void step(struct gpu_model_work *w, const struct dit *d, const struct shape_plan *p)
{
    fsdp_zero_grads(w->fsdp);
    forward(w, d, p);
    struct tensor dout = arena_like(&w->keep, w->run->out);
    struct tensor sum = ctx_zeros(&w->ctx, &w->keep, DT_F64, 1, DIMS(1));
    w->dev->ops->flow_loss(w->dev, sum, dout, w->run->out, w->target, dit_last_stage(p)->pos,
                           1 / (double)tensor_count(w->target));
    dit_backward(&w->ctx, d, w->run, dout, (struct tensor){0}, (struct tensor){0});
    fsdp_finish_backward(w->fsdp, true);
    dev_get(w->dev, &w->sum, sum);
    update(w);
}

/* As dit_forward and dit_backward run one block: forward, forget what the policy drops, make that
 * anew, backward. */
static void block(struct gpu_model_work *w)
{
    struct ctx *c = &w->ctx;
    const struct block *b = &w->dit->block[0];
    const struct cond cond = {w->ctx_text, w->e0};
    struct block_saved saved = {0};
    struct block_run run = {.stage = &w->plan->stage[0],
                            .rope = &w->dit->rope,
                            .full = w->plan->kind[0] == BLOCK_FULL,
                            .policy = w->c->policy,
                            .keep_any = true};
    c->samples = 1;
    arena_release(&w->keep, 0);
    arena_release(&w->tmp, 0);
    w->dcond = (struct cond_grad){.text = ctx_zeros(c, c->keep, ctx_state(c), 2, w->ctx_text.dim),
                                  .e0 = ctx_zeros(c, c->keep, ctx_state(c), 2, w->e0.dim)};
    fsdp_zero_grads(w->fsdp);
    const size_t inside = arena_mark(&w->tmp);
    unit_enter(c->hooks, b->unit, PASS_FORWARD);
    block_forward(c, b, &run, &saved, w->y, w->x, NULL, &cond);
    unit_leave(c->hooks, b->unit, PASS_FORWARD);
    block_forget(&saved, &run);
    arena_release(&w->tmp, inside);
    w->dev->ops->copy(w->dev, w->dx.data, w->dy.data, tensor_bytes(w->dy));
    unit_enter(c->hooks, b->unit, PASS_BACKWARD);
    struct block_run again = run;
    again.keep_any = false;
    block_forward(c, b, &again, &saved, (struct tensor){0}, w->x, NULL, &cond);
    block_backward(c, b, &run, &saved, w->dx, (struct tail_grad){0}, w->x, &cond, &w->dcond);
    unit_leave(c->hooks, b->unit, PASS_BACKWARD);
}

void gpu_model_run(struct gpu_model_work *w)
{
    if (w->c->kind == GPU_FORWARD) forward(w, w->dit, w->plan);
    if (w->c->kind == GPU_STEP) step(w, w->dit, w->plan);
    if (w->c->kind == GPU_BLOCK) block(w);
}

void gpu_model_warm(struct gpu_model_work *w)
{
    if (w->c->kind == GPU_FORWARD) forward(w, &w->warm_dit, w->warm_plan);
    if (w->c->kind == GPU_STEP) step(w, &w->warm_dit, w->warm_plan);
    if (w->c->kind == GPU_BLOCK) block(w);
}

/* ---- results for the other side ----------------------------------------------------------------
 */

struct dump_arg {
    struct gpu_model_work *w;
    const char *folder;
};

static void dump_grad(void *arg, const struct piece *p)
{
    const struct dump_arg *a = arg;
    if (a->w->c->kind == GPU_BLOCK && strncmp(p->param->name, "blocks.0.", 9)) return;
    char name[96];
    snprintf(name, sizeof name, "grad.%s", p->param->name);
    gpu_write(a->w->dev, p->data, NULL, a->folder, name);
}

/* [rows, 64] in PATCH_OUT order to the rows of the plain token order. */
static void dump_rows(struct gpu_model_work *w, struct tensor x, const struct layout *l,
                      const char *folder, const char *name)
{
    int64_t *row = calloc((size_t)l->rows, sizeof *row);
    CHECK(row, "out of memory");
    for (int64_t r = 0; r < l->rows; r++) row[token_of(w->c, l->pos + 3 * r)] = r;
    gpu_write(w->dev, x, row, folder, name);
    free(row);
}

void gpu_model_dump(struct gpu_model_work *w, const char *folder)
{
    CHECK(w->c->ssp * w->c->sp == 1, "results of one rank of several");
    struct dump_arg a = {w, folder};
    if (w->c->kind == GPU_BLOCK) {
        const struct layout *l = w->plan->stage[0].layout;
        dump_rows(w, w->y, l, folder, "out");
        dump_rows(w, w->dx, l, folder, "dx");
        gpu_write(w->dev, w->dcond.text, NULL, folder, "dtext");
        gpu_write(w->dev, w->dcond.e0, NULL, folder, "de0");
    } else {
        dump_rows(w, w->run->out, dit_last_stage(w->plan)->layout, folder, "out");
    }
    if (trains(w->c)) fsdp_each_piece(w->fsdp, STATE_GRAD, dump_grad, &a);
}

void gpu_model_close(struct gpu_model_work *w)
{
    w->dev->ops->sync(w->dev);
    struct tensor *own[] = {&w->xt, &w->target, &w->text,     &w->x,  &w->y,
                            &w->dy, &w->dx,     &w->ctx_text, &w->e0, &w->map};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (own[i]->data) dev_free(w->dev, own[i]->data);
    free(w->run);
    arena_free(&w->keep);
    arena_free(&w->tmp);
    plan_free(w->plan);
    plan_free(w->warm_plan);
    fsdp_free(w->fsdp);
    dit_free(w->dit, w->dev);
    mesh_free(&w->mesh);
    comm_free(w->world);
    free(w);
}
