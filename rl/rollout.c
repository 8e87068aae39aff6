#include "rl/rollout.h"

#include <stdlib.h>
#include <string.h>

/* ---- what is kept -----------------------------------------------------------------------------*/
static void trajectory_init(struct trajectory *t, struct policy *p, const struct step_plan *plan,
                            const struct group_entry *entry, bool keep_last)
{
    const struct guided *g = p->roll;
    *t = (struct trajectory){
        .samples = g->samples, .rows = g->rows, .width = 4 * p->dit->config.in_dim};
    t->state_bytes = (size_t)(t->rows * t->width) * dtype_size(ctx_state(p->ctx));
    bool want[MAX_PLAN_STEPS + 1] = {0};
    for (int k = 0; k < plan->num_recorded; k++)
        want[plan->recorded[k]] = want[plan->recorded[k] + 1] = true;
    want[plan->n] |= keep_last;
    for (int i = 0; i <= plan->n; i++) t->slot[i] = want[i] ? t->num_states++ : -1;
    t->entry = calloc((size_t)t->samples, sizeof *t->entry);
    t->states = malloc((size_t)t->num_states * t->state_bytes + 1);
    t->sums = calloc((size_t)(plan->num_recorded * t->samples) + 1, sizeof *t->sums);
    CHECK(t->entry && t->states && t->sums, "out of memory for %d states of %.1f MB", t->num_states,
          1e-6 * (double)t->state_bytes);
    memcpy(t->entry, entry, (size_t)t->samples * sizeof *entry);
}

void trajectory_free(struct trajectory *t)
{
    free(t->entry);
    free(t->states);
    free(t->sums);
    *t = (struct trajectory){0};
}

size_t trajectory_bytes(const struct trajectory *t)
{
    return (size_t)t->num_states * t->state_bytes;
}

const void *trajectory_state(const struct trajectory *t, int i, int sample)
{
    CHECK(t->slot[i] >= 0, "state %d of the rollout was not kept", i);
    return t->states + (size_t)t->slot[i] * t->state_bytes +
           (size_t)sample * (t->state_bytes / (size_t)t->samples);
}

static void keep_state(struct trajectory *t, struct dev *d, int i, struct tensor x)
{
    if (t->slot[i] >= 0) dev_get(d, t->states + (size_t)t->slot[i] * t->state_bytes, x);
}

/* ---- the steps --------------------------------------------------------------------------------*/
struct walk { /* one rollout on the device */
    struct policy *p;
    const struct step_plan *plan;
    struct trajectory *t;
    struct guided *g; /* of the samples in hand: one of each group on the shared path, then all */
    int n, of[64];    /* how many, and which sample of the trajectory each one is */
    int shared;       /* steps of the shared path */
    struct tensor x, next, history, text, null, sum; /* x, next, history: rows of all samples */
    size_t mark;                                     /* of the keep arena, before the texts */
};

static bool branches(const struct step_plan *plan)
{
    for (int i = 0; i < plan->n; i++)
        if (plan->step[i].mode == STEP_SPLIT) return true;
    return false;
}

static bool uses_history(const struct step_plan *plan)
{
    for (int i = 0; i < plan->n; i++)
        if (plan->step[i].ch != 0) return true;
    return false;
}

/* Steps before the first noise, when members of a group start alike; without any noise they would
 * end alike, and nobody wants that. */
static int shared_steps(const struct policy *p, const struct step_plan *plan)
{
    if (!p->groups.same_noise && !branches(plan)) return 0;
    for (int i = 0; i < plan->n; i++)
        if (plan->step[i].std > 0) return i;
    return 0;
}

static const struct group_entry *entry_of(const struct walk *w, int k)
{
    return &w->t->entry[w->of[k]];
}

/* The place of sample b's group among those in hand, or how many there are. */
static int place_of(const struct walk *w, int b)
{
    int k = 0;
    while (k < w->n && entry_of(w, k)->group != w->t->entry[b].group) k++;
    return k;
}

static struct tensor in_hand(const struct walk *w, struct tensor all)
{
    return all.data ? tensor_rows(all, 0, w->g->rows) : all;
}

/* Passes and texts of the samples in hand. */
static void take_in_hand(struct walk *w)
{
    int64_t prompt[64];
    arena_release(w->p->ctx->keep, w->mark);
    w->g = policy_roll(w->p, w->n);
    for (int k = 0; k < w->n; k++) prompt[k] = entry_of(w, k)->prompt;
    w->text = policy_text(w->p, prompt, w->n);
    w->null = policy_null_text(w->p, w->n);
}

static void choose_samples(struct walk *w)
{
    w->shared = shared_steps(w->p, w->plan);
    for (int b = 0; b < w->t->samples; b++)
        if (!w->shared || place_of(w, b) == w->n) w->of[w->n++] = b;
    take_in_hand(w);
}

static void start(struct walk *w)
{
    struct policy *p = w->p;
    struct ctx *c = p->ctx;
    CHECK(w->t->samples <= 64, "batch of %d", w->t->samples);
    w->x = arena_new(c->keep, ctx_state(c), 2, DIMS(w->t->rows, w->t->width));
    w->next = arena_like(c->keep, w->x);
    if (uses_history(w->plan)) w->history = ctx_zeros(c, c->keep, ctx_state(c), 2, w->x.dim);
    w->sum = arena_new(c->keep, DT_F64, 2, DIMS(w->t->samples, TRANSITION_SUMS));
    w->mark = arena_mark(c->keep);
    choose_samples(w);
    const size_t mark = arena_mark(c->keep);
    struct tensor z = arena_new(c->keep, ctx_state(c), 5,
                                DIMS(w->n, p->latent[0], p->latent[1], p->latent[2], p->latent[3]));
    for (int k = 0; k < w->n; k++) {
        const struct rng_key key =
            groups_initial_noise(&p->groups, entry_of(w, k), branches(w->plan));
        c->dev->ops->rng_normal(c->dev, tensor_view(tensor_rows(z, k, 1), 1, DIMS(p->elements)),
                                rng_open(key), 0, 1);
    }
    c->dev->ops->patch_rows(c->dev, in_hand(w, w->x), z, guided_pos(w->g), PATCH_IN);
    arena_release(c->keep, mark);
}

/* The path of each group becomes that of its members. */
static void part(struct walk *w)
{
    struct dev *d = w->p->ctx->dev;
    const int all = w->t->samples;
    const int64_t per = w->t->rows / all;
    struct tensor *const each[] = {&w->x, &w->history};
    for (int i = 0; i < 2; i++) {
        if (!each[i]->data) continue;
        for (int b = 0; b < all; b++)
            d->ops->cast(d, tensor_rows(w->next, b * per, per),
                         tensor_rows(*each[i], place_of(w, b) * per, per));
        const struct tensor old = *each[i];
        *each[i] = w->next;
        w->next = old;
    }
    w->n = all;
    for (int b = 0; b < all; b++) w->of[b] = b;
    take_in_hand(w);
}

static void take_step(struct walk *w, int i, struct tensor v)
{
    struct policy *p = w->p;
    const struct plan_step *s = &w->plan->step[i];
    struct rng_key noise[64];
    for (int b = 0; b < w->n && s->std > 0; b++)
        noise[b] = groups_step_noise(&p->groups, entry_of(w, b), i, false);
    const struct solver_step_args a = {.next = in_hand(w, w->next),
                                       .x = in_hand(w, w->x),
                                       .h = in_hand(w, w->history),
                                       .c = guided_rows(w->g, v, GUIDED_COND),
                                       .u = guided_rows(w->g, v, GUIDED_UNCOND),
                                       .pos = guided_pos(w->g),
                                       .t = p->latent[1],
                                       .height = p->latent[2],
                                       .width = p->latent[3],
                                       .guidance = p->cfg->guidance,
                                       .cx = s->cx,
                                       .cv = s->cv,
                                       .ch = s->ch,
                                       .sigma = s->sigma,
                                       .std = s->std,
                                       .noise = s->std > 0 ? noise : NULL,
                                       .batch = w->n};
    p->ctx->dev->ops->solver_step(p->ctx->dev, &a);
}

/* How likely the step was: the same sums by the same op as in the update. */
static void record(struct walk *w, int i, int k, struct tensor v)
{
    struct policy *p = w->p;
    const struct plan_step *s = &w->plan->step[i];
    const int n = w->t->samples;
    double cx[64], cv[64], inv[64], got[TRANSITION_SUMS * 64];
    for (int b = 0; b < n; b++) cx[b] = s->cx, cv[b] = s->cv, inv[b] = 1 / (2 * s->variance);
    const struct transition_args a = {.x = w->x,
                                      .next = w->next,
                                      .c = guided_rows(p->roll, v, GUIDED_COND),
                                      .u = guided_rows(p->roll, v, GUIDED_UNCOND),
                                      .pos = guided_pos(p->roll),
                                      .guidance = p->cfg->guidance,
                                      .batch = n,
                                      .cx = cx,
                                      .cv = cv,
                                      .half_inv_v = inv,
                                      .quantum = p->quantum};
    struct dev *d = p->ctx->dev;
    d->ops->fill(d, w->sum, 0);
    d->ops->transition_sums(d, w->sum, &a);
    dev_get(d, got, w->sum);
    for (int b = 0; b < n; b++) w->t->sums[k * n + b] = got[TRANSITION_SUMS * b];
}

static void walk_all(struct walk *w, struct rollout_hooks hooks)
{
    struct policy *p = w->p;
    struct ctx *c = p->ctx;
    double sigma[64];
    struct rng_key mask[64]; /* a step that is trained on is one of the thinned model */
    int k = 0;
    for (int i = 0; i < w->plan->n; i++) {
        if (i == w->shared && w->n < w->t->samples) part(w);
        const size_t mark = arena_mark(c->keep);
        for (int b = 0; b < w->n; b++) sigma[b] = w->plan->step[i].sigma;
        keep_state(w->t, c->dev, i, w->x);
        const bool trained = w->plan->step[i].record;
        for (int b = 0; b < w->n; b++) mask[b] = policy_mask(p, entry_of(w, b), (uint32_t)i);
        const struct tensor v = policy_velocity(p, w->g, in_hand(w, w->x), w->text, w->null, sigma,
                                                trained ? mask : NULL, false);
        w->t->evaluations += w->n;
        take_step(w, i, v);
        if (trained) record(w, i, k++, v);
        const struct tensor x = w->x;
        w->x = w->next;
        w->next = x;
        arena_release(c->keep, mark);
        if (hooks.step) hooks.step(hooks.arg, i + 1);
    }
    keep_state(w->t, c->dev, w->plan->n, w->x);
}

void rollout_run(struct policy *p, const struct step_plan *plan, const struct group_entry *entry,
                 bool keep_last, struct rollout_hooks hooks, struct trajectory *t, float *latent)
{
    arena_release(p->ctx->keep, 0);
    trajectory_init(t, p, plan, entry, keep_last);
    struct walk w = {.p = p, .plan = plan, .t = t};
    start(&w);
    walk_all(&w, hooks);
    const int n = plan->num_recorded * t->samples;
    if (n) comm_sum_f64(p->seq, t->sums, n, "log-densities");
    if (latent) policy_latents(p, p->roll, w.x, latent);
}
