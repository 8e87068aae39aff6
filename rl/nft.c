/* DiffusionNFT (docs/spec/rl.md 5.5): the forward process on clean samples, no densities. With
 * e+- = (noise - clean) - v+- the distance of the implied clean latent is sigma * e+-. */
#include <math.h>

#include "rl/update.h"

struct nft_term nft_objective(const double sums[NFT_SUMS], double elements, double sigma,
                              double advantage, double limit, double beta)
{
    const double r = fmin(1, fmax(-1, advantage / limit)) / 2 + 0.5, s2 = sigma * sigma;
    const double w_plus = fmax(sigma * sums[0] / elements, 1e-5),
                 w_minus = fmax(sigma * sums[2] / elements, 1e-5);
    return (struct nft_term){.loss = limit / beta *
                                     (r * s2 * sums[1] / elements / w_plus +
                                      (1 - r) * s2 * sums[3] / elements / w_minus),
                             .plus = -limit * r * 2 * s2 / (elements * w_plus),
                             .minus = limit * (1 - r) * 2 * s2 / (elements * w_minus),
                             .gap = (sums[4] + sums[5]) / elements};
}

enum { MAX_MICRO = 64 };
struct noisy { /* a micro-batch at its noise levels */
    struct policy *p;
    int n;
    double sigma[MAX_MICRO];
    struct rng_key noise[MAX_MICRO], mask[MAX_MICRO];
    struct tensor xt, target, text;
};

/* Clean rows to x_t and noise - clean, both in the rows the model takes. */
static void make_noisy(struct noisy *m, const struct step_plan *plan,
                       const struct update_item *items)
{
    struct policy *p = m->p;
    struct ctx *c = p->ctx;
    const struct guided *g = p->train;
    const int64_t per = g->rows / m->n, width = 4 * p->dit->config.in_dim;
    int64_t prompt[MAX_MICRO];
    struct tensor x = arena_new(c->keep, ctx_state(c), 2, DIMS(g->rows, width));
    for (int b = 0; b < m->n; b++) {
        const struct group_entry *e = &items[b].from->entry[items[b].sample];
        prompt[b] = e->prompt;
        m->sigma[b] = plan->step[items[b].order].sigma;
        m->noise[b] = (struct rng_key){.seed = p->groups.seed,
                                       .use = RNG_UPDATE,
                                       .step = items[b].draw,
                                       .item = (uint64_t)e->sample};
        m->mask[b] = policy_mask(p, e, items[b].draw);
        dev_put(c->dev, tensor_rows(x, b * per, per),
                trajectory_state(items[b].from, plan->n, items[b].sample));
    }
    struct tensor z = ctx_zeros(c, c->keep, ctx_state(c), 5,
                                DIMS(m->n, p->latent[0], p->latent[1], p->latent[2], p->latent[3]));
    c->dev->ops->unpatch_rows(c->dev, z, x, guided_pos(g), PATCH_IN);
    m->xt = arena_new(c->keep, ctx_compute(c), 2, x.dim);
    m->target = arena_new(c->keep, ctx_state(c), 2, x.dim);
    const struct flow_args a = {.xt = m->xt,
                                .target = m->target,
                                .z = z,
                                .pos = guided_pos(g),
                                .sigma = m->sigma,
                                .noise = m->noise};
    c->dev->ops->flow_rows(c->dev, &a);
    m->text = policy_text(p, prompt, m->n);
}

/* Velocities of the adapters that sampled. */
static struct tensor old_velocity(struct noisy *m)
{
    struct policy *p = m->p;
    if (p->lora) lora_use(p->lora, STATE_LORA_OLD);
    const struct tensor v =
        policy_velocity(p, p->old, m->xt, m->text, (struct tensor){0}, m->sigma, NULL, false);
    if (p->lora) lora_use(p->lora, STATE_LORA);
    return v;
}

static void note(struct step_stats *s, const struct nft_term *t, bool reference)
{
    s->terms++;
    if (!reference) return;
    s->kl_terms++;
    s->kl += t->gap;
    s->velocity_gap += sqrt(t->gap);
}

void nft_update(struct policy *p, const struct step_plan *plan, const struct update_item *items,
                struct update_scale scale, struct update_stats *stats)
{
    struct ctx *c = p->ctx;
    const struct rl_config *cfg = p->cfg;
    struct guided *g = p->train;
    struct noisy m = {.p = p, .n = g->samples};
    const double D = (double)p->elements;
    double sums[NFT_SUMS * MAX_MICRO], plus[MAX_MICRO], minus[MAX_MICRO], kl[MAX_MICRO];
    CHECK(m.n <= MAX_MICRO, "micro-batch of %d", m.n);
    arena_release(c->keep, 0);
    make_noisy(&m, plan, items);
    const struct tensor old = old_velocity(&m);
    const struct tensor v =
        policy_velocity(p, g, m.xt, m.text, (struct tensor){0}, m.sigma, m.mask, true);
    const struct nft_args a = {.target = m.target,
                               .v = guided_rows(g, v, GUIDED_COND),
                               .old = old,
                               .ref = guided_rows(g, v, GUIDED_REF_COND),
                               .pos = guided_pos(g),
                               .beta = cfg->nft.beta,
                               .quantum = p->quantum,
                               .batch = m.n};
    struct tensor sum = ctx_zeros(c, c->keep, DT_F64, 2, DIMS(m.n, NFT_SUMS));
    c->dev->ops->nft_sums(c->dev, sum, &a);
    dev_get(c->dev, sums, sum);
    comm_sum_f64(p->seq, sums, NFT_SUMS * m.n, "objective");
    for (int b = 0; b < m.n; b++) {
        const bool counts = items[b].valid;
        const struct nft_term t =
            nft_objective(sums + NFT_SUMS * b, D, m.sigma[b], items[b].advantage, cfg->adv_clip_max,
                          cfg->nft.beta);
        plus[b] = counts ? scale.policy * t.plus : 0;
        minus[b] = counts ? scale.policy * t.minus : 0;
        kl[b] = counts ? scale.kl * cfg->nft.kl * 2 / D : 0;
        if (!counts) continue;
        stats->policy_loss += scale.policy * t.loss;
        stats->kl_loss += scale.kl * cfg->nft.kl * t.gap;
        note(&stats->step[items[b].order], &t, a.ref.data != NULL);
    }
    struct tensor dv = arena_like(c->keep, a.v);
    c->dev->ops->nft_grad(c->dev, dv, &a, plus, minus, kl);
    guided_backward(g, dv);
}

double nft_old_keep(const struct rl_config *c, int64_t steps)
{
    const double n = (double)steps;
    if (c->nft.old_decay == 0) return fmin(0.001 * n, 0.5);
    return n < 75 ? 0 : fmin(0.0075 * (n - 75), 0.999);
}
