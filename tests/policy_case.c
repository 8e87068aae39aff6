#include "tests/policy_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct rl_config policy_case_config(int algo)
{
    return (struct rl_config){.algo = algo,
                              .shift = 3,
                              .num_epochs = 1,
                              .steps = 5,
                              .sde_steps = 3,
                              .fraction = -1,
                              .members = 2,
                              .sample_batch = 4,
                              .train_batch = 4,
                              .batches = 1,
                              .inner_epochs = 1,
                              .clip_range = 0.2,
                              .adv_clip_max = 5,
                              .group_stats = true,
                              .window_start = -1,
                              .window_size = -1,
                              .window_stride = -1,
                              .window_iters = -1,
                              .window_limit = -1,
                              .window_rate = 0.1,
                              .roll_back = true,
                              .eta = -1,
                              .compress = -1,
                              .ddof = -1,
                              .adv_eps = -1,
                              .nft = {.beta = 1, .kl = 1e-4}};
}

struct model_config policy_case_model(int dims, int ratio, int full_blocks)
{
    struct model_config m = fixture_model();
    m.num_heads = 4;
    m.sparse_ratio = ratio;
    m.skiparse_dim = dims == 1 ? 0 : 1;
    m.num_full_blocks = full_blocks;
    return m;
}

static void fill_prompt(void *arg, int64_t prompt, float *rows)
{
    const struct model_config *m = arg;
    double *x = problem_draw(m->text_len * m->text_dim, (uint64_t)(1000 + prompt));
    for (int64_t i = 0; i < m->text_len * m->text_dim; i++) rows[i] = (float)x[i];
    free(x);
}

void policy_case_open(struct policy_case *c, struct comm *world, const struct policy_case_opts *o)
{
    static const char *const every[] = {"*", NULL};
    struct lora_config lora = lora_make_config(2, 4, every);
    lora.dropout = o->dropout;
    const int dp = o->degrees.ssp ? world->size / (o->degrees.ssp * o->degrees.sp) : world->size;
    const struct fixture_opts fo = {.device = o->device,
                                    .compute = o->compute,
                                    .model = o->model,
                                    .recompute = o->recompute,
                                    .batch = 1,
                                    .t = o->t,
                                    .h = o->h,
                                    .w = o->w,
                                    .degrees = o->degrees,
                                    .fsdp = {.optimizer = true, .ema = true},
                                    .lora = &lora,
                                    .lora_old = o->rl.algo == ALGO_NFT};
    struct err e = {0};
    memset(c, 0, sizeof *c);
    c->rl = o->rl;
    c->rl.sample_batch /= dp;
    c->rl.train_batch /= dp;
    CHECK(algo_resolve(&c->rl, &e), "%s", e.msg);
    fixture_open(&c->f, world, &fo);
    problem_fill_params(&c->f);
    problem_fill_adapters(&c->f);
    c->plan = algo_step_plan(&c->rl, CASE_SEED, o->epoch);
    const struct groups_config g = algo_groups(&c->rl, 50, dp, CASE_SEED);
    CHECK(groups_check(&g, &e), "%s", e.msg);
    const int latent[4] = {(int)o->model.in_dim, o->t, 2 * o->h, 2 * o->w};
    policy_open(&c->p, &c->f.ctx, c->f.dit, &c->rl, g,
                (struct prompt_rows){fill_prompt, &c->f.dit->config}, latent);
    c->p.lora = c->f.lora;
    c->first = (int)c->rl.sample_batch * c->f.mesh.axis[AXIS_DP]->rank;
    for (int i = 0; i < c->rl.sample_batch; i++) c->entry[i] = groups_entry(&g, 0, 0, c->first + i);
}

void policy_case_close(struct policy_case *c)
{
    trajectory_free(&c->t);
    policy_close(&c->p);
    fixture_close(&c->f);
}

void policy_case_rollout(struct policy_case *c, float *latent)
{
    const bool nft = c->rl.algo == ALGO_NFT;
    trajectory_free(&c->t);
    rollout_run(&c->p, &c->plan, c->entry, nft, (struct rollout_hooks){0}, &c->t, latent);
}

void policy_case_latents(struct policy_case *c, const struct guided *g, struct tensor rows,
                         enum patch_order order, double *out)
{
    struct ctx *x = &c->f.ctx;
    const size_t mark = arena_mark(x->keep);
    struct tensor state = arena_new(x->keep, ctx_state(x), 2, rows.dim);
    x->dev->ops->cast(x->dev, state, rows);
    struct tensor z =
        ctx_zeros(x, x->keep, ctx_state(x), 5,
                  DIMS(g->samples, c->p.latent[0], c->p.latent[1], c->p.latent[2], c->p.latent[3]));
    x->dev->ops->unpatch_rows(x->dev, z, state, guided_pos(g), order);
    comm_all_reduce(c->p.seq, z, "latents", NULL);
    dev_get_f64(x->dev, out, z);
    arena_release(x->keep, mark);
}

void policy_case_masks(struct policy_case *c, int i, struct rng_key *out)
{
    for (int b = 0; b < c->rl.sample_batch; b++)
        out[b] = (struct rng_key){.seed = CASE_SEED,
                                  .use = RNG_DROPOUT,
                                  .step = (uint32_t)i,
                                  .item = (uint64_t)c->entry[b].sample};
}

void policy_case_state(struct policy_case *c, int i, double *out)
{
    struct ctx *x = &c->f.ctx;
    const size_t mark = arena_mark(x->keep);
    struct tensor rows = arena_new(x->keep, ctx_state(x), 2, DIMS(c->t.rows, c->t.width));
    dev_put(x->dev, rows, trajectory_state(&c->t, i, 0));
    policy_case_latents(c, c->p.roll, rows, PATCH_IN, out);
    arena_release(x->keep, mark);
}

void policy_case_take(struct policy_case *c, const double *states, const double *sums, int samples)
{
    struct ctx *x = &c->f.ctx;
    struct trajectory *t = &c->t;
    const int64_t D = c->p.elements;
    const int n = t->samples;
    const size_t mark = arena_mark(x->keep);
    struct tensor z =
        arena_new(x->keep, ctx_state(x), 5,
                  DIMS(n, c->p.latent[0], c->p.latent[1], c->p.latent[2], c->p.latent[3]));
    struct tensor rows = arena_new(x->keep, ctx_state(x), 2, DIMS(t->rows, t->width));
    for (int s = 0; s < t->num_states; s++) {
        dev_put_f64(x->dev, z, states + (s * samples + c->first) * D);
        x->dev->ops->patch_rows(x->dev, rows, z, guided_pos(c->p.roll), PATCH_IN);
        dev_get(x->dev, t->states + (size_t)s * t->state_bytes, rows);
    }
    for (int k = 0; k < c->plan.num_recorded; k++)
        for (int b = 0; b < n; b++) t->sums[k * n + b] = sums[k * samples + c->first + b];
    arena_release(x->keep, mark);
}

double *policy_case_weights(struct policy_case *c, enum state_kind kind)
{
    double *w = calloc((size_t)lora_num_elements(c->f.lora), sizeof *w), *at = w;
    for (int i = 0; i < c->f.lora->num_params; i++) {
        lora_get(c->f.lora, kind, c->f.lora->param[i].name, at);
        at += param_count(&c->f.lora->param[i]);
    }
    return w;
}

void policy_case_move(struct policy_case *c, const double *weights, const double *direction,
                      double step)
{
    const int64_t n = lora_num_elements(c->f.lora);
    double *w = calloc((size_t)n, sizeof *w);
    for (int64_t i = 0; i < n; i++) w[i] = weights[i] + (direction ? step * direction[i] : 0);
    const double *at = w;
    for (int i = 0; i < c->f.lora->num_params; i++) {
        lora_put(c->f.lora, STATE_LORA, c->f.lora->param[i].name, at);
        at += param_count(&c->f.lora->param[i]);
    }
    free(w);
}
