#include "rl/units.h"

#include <stdlib.h>

#include "core/err.h"
#include "core/rng.h"

struct units units_of(const struct rl_config *c, int64_t accumulation)
{
    const int64_t step = c->train_batch * accumulation;
    struct units u = {.parts = (int)(step < c->sample_batch ? c->sample_batch / step : 1)};
    u.samples = c->sample_batch / u.parts;
    u.per = step / u.samples;
    u.count = c->batches * u.parts;
    return u;
}

bool gain_counts(const struct rl_config *c, const struct sample_gain *g)
{
    return c->algo == ALGO_NFT ? g->valid : g->weight > 0 && g->advantage != 0;
}

bool gain_counts_kl(const struct rl_config *c, const struct sample_gain *g)
{
    return gain_counts(c, g) || (g->valid && c->kl_on_zero_adv);
}

static void add_unit(const struct units_place *p, const struct units *u, int64_t unit,
                     const struct sample_gain *gain, struct step_set *s)
{
    const int64_t B = p->cfg->sample_batch, first = B * p->dp_rank;
    const int64_t batch = unit / u->parts, part = unit % u->parts;
    for (int64_t i = part; i < B * p->dp; i += u->parts) {
        const struct sample_gain *g = &gain[batch * B * p->dp + i];
        s->policy_terms += gain_counts(p->cfg, g);
        s->kl_terms += gain_counts_kl(p->cfg, g);
        if (i >= first && i < first + B) s->taken[s->n++] = (struct taken){batch, i - first};
    }
}

struct step_set step_set(const struct units_place *p, const struct units *u, int64_t inner,
                         int64_t step, const struct sample_gain *gain)
{
    struct step_set s = {.taken = calloc((size_t)(u->per * u->samples), sizeof *s.taken)};
    CHECK(s.taken, "out of memory");
    const struct rng_key key = {
        .seed = p->seed, .use = RNG_UPDATE, .step = (uint32_t)inner, .item = (uint64_t)p->epoch};
    for (int64_t k = 0; k < u->per; k++)
        add_unit(p, u, (int64_t)rng_permute(key, (uint64_t)(step * u->per + k), (uint64_t)u->count),
                 gain, &s);
    return s;
}
