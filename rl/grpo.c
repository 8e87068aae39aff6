#include <math.h>

#include "rl/update.h"

struct grpo_term grpo_objective(double log_ratio, double advantage, double clip)
{
    struct grpo_term t = {.ratio = exp(log_ratio)};
    const double low = 1 - clip, high = 1 + clip;
    const double held = t.ratio < low ? low : t.ratio > high ? high : t.ratio;
    const bool idle = (advantage > 0 && t.ratio > high) || (advantage < 0 && t.ratio < low);
    t.loss = fmax(-advantage * t.ratio, -advantage * held);
    t.slope = idle ? 0 : -advantage * t.ratio;
    t.clipped = t.ratio < low || t.ratio > high;
    return t;
}

enum { MAX_MICRO = 64 };
struct micro { /* one micro-batch on the device */
    struct policy *p;
    const struct step_plan *plan;
    const struct update_item *items;
    int n, step[MAX_MICRO]; /* step of the plan, per sample */
    double sigma[MAX_MICRO], cx[MAX_MICRO], cv[MAX_MICRO], inv[MAX_MICRO];
    struct transition_args a;
};

/* The stored states of all samples, in the rows of the update's batch. */
static struct tensor states(struct micro *m, int after)
{
    struct ctx *c = m->p->ctx;
    const struct guided *g = m->p->train;
    struct tensor x =
        arena_new(c->keep, ctx_state(c), 2, DIMS(g->rows, 4 * m->p->dit->config.in_dim));
    const int64_t per = g->rows / m->n;
    for (int b = 0; b < m->n; b++)
        dev_put(c->dev, tensor_rows(x, b * per, per),
                trajectory_state(m->items[b].from, m->step[b] + after, m->items[b].sample));
    return x;
}

static void choose_steps(struct micro *m)
{
    for (int b = 0; b < m->n; b++) {
        const int k = m->items[b].order;
        CHECK(k >= 0 && k < m->plan->num_recorded, "trained step %d of %d", k,
              m->plan->num_recorded);
        m->step[b] = m->plan->recorded[k];
        const struct plan_step *s = &m->plan->step[m->step[b]];
        m->sigma[b] = s->sigma;
        m->cx[b] = s->cx;
        m->cv[b] = s->cv;
        m->inv[b] = 1 / (2 * s->variance);
    }
}

static void forward(struct micro *m)
{
    struct policy *p = m->p;
    struct guided *g = p->train;
    int64_t prompt[MAX_MICRO];
    struct rng_key mask[MAX_MICRO];
    for (int b = 0; b < m->n; b++) {
        const struct group_entry *e = &m->items[b].from->entry[m->items[b].sample];
        prompt[b] = e->prompt;
        mask[b] = policy_mask(p, e, (uint32_t)m->step[b]);
    }
    const struct tensor x = states(m, 0), next = states(m, 1);
    const struct tensor text = policy_text(p, prompt, m->n), null = policy_null_text(p, m->n);
    const struct tensor v = policy_velocity(p, g, x, text, null, m->sigma, mask, true);
    m->a = (struct transition_args){.x = x,
                                    .next = next,
                                    .c = guided_rows(g, v, GUIDED_COND),
                                    .u = guided_rows(g, v, GUIDED_UNCOND),
                                    .ref_c = guided_rows(g, v, GUIDED_REF_COND),
                                    .ref_u = guided_rows(g, v, GUIDED_REF_UNCOND),
                                    .pos = guided_pos(g),
                                    .guidance = p->cfg->guidance,
                                    .batch = m->n,
                                    .cx = m->cx,
                                    .cv = m->cv,
                                    .half_inv_v = m->inv,
                                    .quantum = p->quantum};
}

/* Sums over whole samples, TRANSITION_SUMS each. */
static void whole_sums(struct micro *m, double *sums)
{
    struct ctx *c = m->p->ctx;
    struct tensor sum = arena_new(c->keep, DT_F64, 2, DIMS(m->n, TRANSITION_SUMS));
    c->dev->ops->fill(c->dev, sum, 0);
    c->dev->ops->transition_sums(c->dev, sum, &m->a);
    dev_get(c->dev, sums, sum);
    comm_sum_f64(m->p->seq, sums, TRANSITION_SUMS * m->n, "log-densities");
}

static void backward(struct micro *m, const double *policy, const double *kl)
{
    struct policy *p = m->p;
    struct guided *g = p->train;
    struct ctx *c = p->ctx;
    const bool guided = m->a.u.data, both = guided && p->cfg->cfg_grad == 1;
    struct tensor dv = arena_new(c->keep, ctx_compute(c), 2,
                                 DIMS(g->rows * (both ? 2 : 1), 4 * p->dit->config.out_dim));
    struct tensor du = {0};
    if (both) du = tensor_rows(dv, g->rows, g->rows);
    c->dev->ops->transition_grad(c->dev, tensor_rows(dv, 0, g->rows), du, &m->a, policy, kl,
                                 guided ? p->cfg->guidance : 1, 1 - p->cfg->guidance);
    guided_backward(g, dv);
}

static void note(struct step_stats *s, double log_ratio, const struct grpo_term *t, bool policy,
                 double kl, bool counts, double kappa)
{
    if (policy) {
        s->terms++;
        s->clipped += t->clipped;
        s->square_log_ratio += log_ratio * log_ratio;
        if (!(fabs(log_ratio) <= s->max_log_ratio) && !isnan(s->max_log_ratio))
            s->max_log_ratio = fabs(log_ratio); /* NaN stays */
    }
    if (counts) {
        s->kl += kl;
        s->kl_terms++;
        s->velocity_gap += sqrt(2 * kl) / kappa; /* rms(v - v_ref) */
    }
}

void grpo_update(struct policy *p, const struct step_plan *plan, const struct update_item *items,
                 struct update_scale scale, struct update_stats *stats)
{
    const struct rl_config *cfg = p->cfg;
    struct micro m = {.p = p, .plan = plan, .items = items, .n = p->train->samples};
    double sums[TRANSITION_SUMS * MAX_MICRO], policy[MAX_MICRO], kl[MAX_MICRO];
    CHECK(m.n <= MAX_MICRO, "micro-batch of %d", m.n);
    arena_release(p->ctx->keep, 0);
    choose_steps(&m);
    forward(&m);
    whole_sums(&m, sums);
    const double D = (double)p->elements;
    for (int b = 0; b < m.n; b++) {
        const struct update_item *it = &items[b];
        const struct plan_step *s = &plan->step[m.step[b]];
        const double old = it->from->sums[it->order * it->from->samples + it->sample];
        const double *sum = sums + TRANSITION_SUMS * b;
        const double log_ratio = (old - sum[0]) / D, divergence = (sum[1] + sum[2]) / D;
        const struct grpo_term t = grpo_objective(log_ratio, it->advantage, cfg->clip_range);
        const bool counts = it->weight > 0 && it->advantage != 0;
        const bool kl_counts = cfg->kl_beta > 0 && (counts || (it->valid && cfg->kl_on_zero_adv));
        /* d log rho / d v = (next - mean) cv / (V D) per element */
        policy[b] = counts ? scale.policy * t.slope * s->cv / (s->variance * D) : 0;
        kl[b] = kl_counts ? scale.kl * cfg->kl_beta * s->cv * s->cv / (s->variance * D) : 0;
        if (counts) stats->policy_loss += scale.policy * t.loss;
        if (kl_counts) stats->kl_loss += scale.kl * cfg->kl_beta * divergence;
        note(&stats->step[it->order], log_ratio, &t, counts, divergence, kl_counts, s->kappa);
    }
    backward(&m, policy, kl);
}
