#include "rl/policy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool policy_guided(const struct policy *p) { return p->cfg->guidance > 1; }

bool policy_has_reference(const struct policy *p)
{
    return p->cfg->algo == ALGO_NFT ? p->cfg->nft.kl > 0 : p->cfg->kl_beta > 0;
}

/* A power of two such that sums of the size of D, and eight times larger, are exact in f64. */
static double quantum_for(int64_t elements)
{
    return ldexp(1, (int)ceil(log2((double)elements)) + 3 - 52);
}

static struct guided_opts roll_opts(const struct policy *p, int samples)
{
    return (struct guided_opts){.samples = samples,
                                .uncond = policy_guided(p),
                                .t = p->latent[1],
                                .h = p->latent[2] / 2,
                                .w = p->latent[3] / 2};
}

struct guided *policy_roll(struct policy *p, int n)
{
    const int most = p->roll->samples;
    CHECK(n > 0 && n <= most && most <= 64, "%d of %d samples", n, most);
    if (n == most) return p->roll;
    if (!p->few[n]) p->few[n] = guided_new(p->ctx, p->dit, roll_opts(p, n));
    return p->few[n];
}

void policy_open(struct policy *p, struct ctx *c, const struct dit *d, const struct rl_config *cfg,
                 struct groups_config groups, struct prompt_rows prompts, const int latent[4])
{
    *p = (struct policy){.ctx = c,
                         .dit = d,
                         .seq = c->mesh->axis[AXIS_SEQ],
                         .cfg = cfg,
                         .groups = groups,
                         .prompts = prompts};
    memcpy(p->latent, latent, sizeof p->latent);
    p->elements = (int64_t)latent[0] * latent[1] * latent[2] * latent[3];
    p->quantum = quantum_for(p->elements);
    struct guided_opts o = roll_opts(p, (int)cfg->sample_batch);
    p->roll = guided_new(c, d, o);
    o.samples = (int)cfg->train_batch;
    o.reference = policy_has_reference(p);
    o.trained_kinds = cfg->cfg_grad == 1 && o.uncond ? 2 : 1;
    if (cfg->algo == ALGO_NFT) o.uncond = false; /* trained without guidance */
    if (cfg->algo == ALGO_NFT) o.trained_kinds = 1;
    p->train = guided_new(c, d, o);
    if (cfg->algo != ALGO_NFT) return;
    o.reference = false;
    o.trained_kinds = 0;
    p->old = guided_new(c, d, o);
}

void policy_close(struct policy *p)
{
    guided_free(p->roll);
    guided_free(p->train);
    guided_free(p->old);
    for (int n = 0; n < 64; n++) guided_free(p->few[n]);
}

struct tensor policy_text(struct policy *p, const int64_t *prompt, int n)
{
    struct ctx *c = p->ctx;
    const struct model_config *m = &p->dit->config;
    const int64_t per = m->text_len * m->text_dim;
    float *rows = calloc((size_t)per, sizeof *rows);
    double *wide = calloc((size_t)(per * n), sizeof *wide);
    CHECK(rows && wide, "out of memory");
    for (int i = 0; i < n; i++) {
        memset(rows, 0, (size_t)per * sizeof *rows);
        p->prompts.fill(p->prompts.arg, prompt[i], rows);
        for (int64_t k = 0; k < per; k++) wide[i * per + k] = (double)rows[k];
    }
    struct tensor t = arena_new(c->keep, ctx_compute(c), 2, DIMS(n * m->text_len, m->text_dim));
    dev_put_f64(c->dev, t, wide);
    free(rows);
    free(wide);
    return t;
}

struct tensor policy_null_text(struct policy *p, int n)
{
    if (!policy_guided(p)) return (struct tensor){0};
    int64_t none[1024];
    CHECK(n <= 1024, "batch of %d", n);
    for (int i = 0; i < n; i++) none[i] = -1;
    return policy_text(p, none, n);
}

struct rng_key policy_mask(const struct policy *p, const struct group_entry *e, uint32_t draw)
{
    return (struct rng_key){
        .seed = p->groups.seed, .use = RNG_DROPOUT, .step = draw, .item = (uint64_t)e->sample};
}

struct tensor policy_velocity(struct policy *p, struct guided *g, struct tensor x,
                              struct tensor text, struct tensor null, const double *sigma,
                              const struct rng_key *drop, bool train)
{
    struct ctx *c = p->ctx;
    struct tensor v = arena_new(c->keep, ctx_compute(c), 2,
                                DIMS(g->rows * g->num_kinds, 4 * p->dit->config.out_dim));
    guided_forward(g, v, x, text, null, sigma, drop, train);
    return v;
}

void policy_latents(struct policy *p, struct guided *g, struct tensor x, float *out)
{
    struct ctx *c = p->ctx;
    struct tensor z =
        ctx_zeros(c, c->keep, ctx_state(c), 5,
                  DIMS(g->samples, p->latent[0], p->latent[1], p->latent[2], p->latent[3]));
    c->dev->ops->unpatch_rows(c->dev, z, x, guided_pos(g), PATCH_IN);
    comm_all_reduce(p->seq, z, "latents", NULL);
    const int64_t n = tensor_count(z);
    double *wide = calloc((size_t)n, sizeof *wide);
    CHECK(wide, "out of memory");
    dev_get_f64(c->dev, wide, z);
    for (int64_t i = 0; i < n; i++) out[i] = (float)wide[i];
    free(wide);
}
