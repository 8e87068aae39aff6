#include "model/sampler.h"

void sampler_init(struct sampler *s, struct ctx *c, const struct dit *d, int samples, int t, int h,
                  int w, bool batched)
{
    *s = (struct sampler){.batched = batched};
    s->guided = guided_new(
        c, d, (struct guided_opts){.samples = samples, .uncond = batched, .t = t, .h = h, .w = w});
}

void sampler_free(struct sampler *s) { guided_free(s->guided); }

static struct tensor initial_noise(struct ctx *c, const struct sampler_job *job,
                                   struct tensor latent, struct tensor pos)
{
    const int64_t per = tensor_width(latent);
    for (int64_t i = 0; i < latent.dim[0]; i++)
        c->dev->ops->rng_normal(c->dev, tensor_view(tensor_rows(latent, i, 1), 1, DIMS(per)),
                                rng_open(job->noise[i]), 0, 1);
    struct tensor x = arena_new(c->keep, latent.dtype, 2, DIMS(pos.dim[0], 4 * latent.dim[1]));
    c->dev->ops->patch_rows(c->dev, x, latent, pos, PATCH_IN);
    return x;
}

struct tensor sampler_run(struct sampler *s, const struct sampler_job *job)
{
    struct guided *g = s->guided;
    struct ctx *c = g->ctx;
    const struct model_config *m = &g->dit->config;
    const struct grid *grid = &g->plan->grid;
    const bool guided = job->guidance > 1;
    struct tensor latent = arena_new(
        c->keep, ctx_state(c), 5, DIMS(g->samples, m->in_dim, grid->t, 2 * grid->h, 2 * grid->w));
    const struct tensor pos = guided_pos(g), none = {0};
    struct tensor x = initial_noise(c, job, latent, pos);
    const struct tensor v =
        arena_new(c->keep, ctx_compute(c), 2, DIMS(g->num_kinds * g->rows, 4 * m->out_dim));
    const struct tensor other = s->batched ? none : arena_new(c->keep, v.dtype, 2, v.dim);
    double sigma[256];
    CHECK(g->samples <= 256, "batch of %d", g->samples);
    for (int i = 0; i < job->steps; i++) {
        for (int b = 0; b < g->samples; b++) sigma[b] = job->sigma[i];
        guided_forward(g, v, x, job->text, job->null, sigma, NULL, false);
        struct tensor null = guided ? guided_rows(g, v, GUIDED_UNCOND) : none;
        if (guided && !s->batched) {
            guided_forward(g, other, x, job->null, none, sigma, NULL, false);
            null = other;
        }
        c->dev->ops->sample_step(c->dev, x, guided_rows(g, v, GUIDED_COND), null, job->guidance,
                                 job->sigma[i + 1] - job->sigma[i]);
        if (job->progress) job->progress(job->arg, i + 1);
    }
    c->dev->ops->fill(c->dev, latent, 0);
    c->dev->ops->unpatch_rows(c->dev, latent, x, pos, PATCH_IN);
    return latent;
}
