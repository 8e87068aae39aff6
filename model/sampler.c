#include "model/sampler.h"

#include <stdlib.h>

void sampler_init(struct sampler *s, struct ctx *c, const struct dit *d, const struct shape_plan *p,
                  struct comm *ssp, bool batched)
{
    *s = (struct sampler){.ctx = c,
                          .dit = d,
                          .plan = p,
                          .batched = batched,
                          .samples = batched ? p->batch / 2 : p->batch};
    CHECK(!batched || p->batch % 2 == 0, "batched guidance needs an even batch");
    const struct stage *first = dit_first_stage(p), *last = dit_last_stage(p);
    if (first != last) s->back = redist_new(c->dev, ssp, last->layout, first->layout);
}

void sampler_free(struct sampler *s) { redist_free(s->back); }

/* Rows of x for the samples of the pass: once, or twice with batched guidance. */
static struct tensor model_rows(struct sampler *s, struct tensor x)
{
    struct dev *d = s->ctx->dev;
    const int64_t rows = x.dim[0];
    struct tensor in = arena_new(s->ctx->keep, ctx_compute(s->ctx), 2,
                                 DIMS(rows * (s->batched ? 2 : 1), x.dim[1]));
    for (int k = 0; k < (s->batched ? 2 : 1); k++)
        d->ops->cast(d, tensor_rows(in, k * rows, rows), x);
    return in;
}

/* One pass; velocities in the row order of the first stage. */
static struct tensor velocity(struct sampler *s, struct tensor in, struct tensor text, double sigma,
                              struct dit_run *run, struct tensor out)
{
    const size_t mark = arena_mark(s->ctx->keep);
    double t[256];
    CHECK(s->plan->batch <= 256, "batch of %d", s->plan->batch);
    for (int b = 0; b < s->plan->batch; b++) t[b] = 1000 * sigma;
    dit_forward(s->ctx, s->dit, s->plan, (struct dit_input){in, text, t}, false, run);
    if (s->back)
        redist_forward(s->back, out, run->out);
    else
        s->ctx->dev->ops->copy(s->ctx->dev, out.data, run->out.data, tensor_bytes(out));
    arena_release(s->ctx->keep, mark);
    return out;
}

static struct tensor joined_text(struct sampler *s, const struct sampler_job *job)
{
    if (!s->batched) return job->text;
    struct dev *d = s->ctx->dev;
    const int64_t n = job->text.dim[0];
    struct tensor both = arena_new(s->ctx->keep, job->text.dtype, 2, DIMS(2 * n, job->text.dim[1]));
    d->ops->cast(d, tensor_rows(both, 0, n), job->text);
    d->ops->cast(d, tensor_rows(both, n, n), job->null);
    return both;
}

static struct tensor initial_noise(struct sampler *s, const struct sampler_job *job,
                                   struct tensor latent, struct tensor pos)
{
    struct ctx *c = s->ctx;
    const int64_t per = tensor_width(latent);
    for (int i = 0; i < s->samples; i++)
        c->dev->ops->rng_normal(c->dev, tensor_view(tensor_rows(latent, i, 1), 1, DIMS(per)),
                                rng_open(job->noise[i]), 0, 1);
    struct tensor x = arena_new(c->keep, latent.dtype, 2, DIMS(pos.dim[0], 4 * latent.dim[1]));
    c->dev->ops->patch_rows(c->dev, x, latent, pos, PATCH_IN);
    return x;
}

struct tensor sampler_run(struct sampler *s, const struct sampler_job *job)
{
    struct ctx *c = s->ctx;
    const struct model_config *m = &s->dit->config;
    const struct stage *first = dit_first_stage(s->plan);
    const bool guided = job->guidance > 1;
    const int64_t rows = first->layout->rows / s->plan->batch * s->samples;
    struct tensor latent = arena_new(
        c->keep, ctx_state(c), 5,
        DIMS(s->samples, m->in_dim, s->plan->grid.t, 2 * s->plan->grid.h, 2 * s->plan->grid.w));
    const struct tensor pos = tensor_rows(first->pos, 0, rows);
    struct tensor x = initial_noise(s, job, latent, pos);
    struct tensor text = joined_text(s, job);
    const struct tensor v =
        arena_new(c->keep, ctx_compute(c), 2, DIMS(first->layout->rows, 4 * m->out_dim));
    const struct tensor u = s->batched ? v : arena_new(c->keep, v.dtype, 2, v.dim);
    struct dit_run *run = calloc(1, sizeof *run);
    CHECK(run, "out of memory");
    for (int i = 0; i < job->steps; i++) {
        const size_t mark = arena_mark(c->keep);
        struct tensor in = model_rows(s, x);
        velocity(s, in, text, job->sigma[i], run, v);
        struct tensor null = {0};
        if (guided && s->batched) null = tensor_rows(v, rows, rows);
        if (guided && !s->batched) null = velocity(s, in, job->null, job->sigma[i], run, u);
        c->dev->ops->sample_step(c->dev, x, tensor_rows(v, 0, rows), null, job->guidance,
                                 job->sigma[i + 1] - job->sigma[i]);
        arena_release(c->keep, mark);
        if (job->progress) job->progress(job->arg, i + 1);
    }
    free(run);
    c->dev->ops->fill(c->dev, latent, 0);
    c->dev->ops->unpatch_rows(c->dev, latent, x, pos, PATCH_IN);
    return latent;
}
