#include "model/embed.h"

#include <math.h>
#include <stdlib.h>

#include "core/bf16.h"
#include "model/params.h"

void embed_init(struct embed *m, struct unit *u, int unit, const struct model_config *cfg)
{
    const int64_t C = cfg->dim, in = cfg->in_dim * 4;
    *m = (struct embed){.unit = unit,
                        .dim = (int)C,
                        .freq_dim = (int)cfg->freq_dim,
                        .round_t = cfg->timestep_bf16_round};
    struct param *w = param_add(u, "", "patch_embedding.weight", 0, INIT_UNIFORM,
                                sqrt(6.0 / (double)(C + in)), 5, DIMS(C, cfg->in_dim, 1, 2, 2));
    struct param *b =
        param_add(u, "", "patch_embedding.bias", 0, INIT_UNIFORM, 1 / sqrt((double)in), 1, DIMS(C));
    m->patch = (struct linear){.w = w, .b = b, .parts = 1};
    const struct {
        struct linear *l;
        const char *name;
        int64_t out, in;
        double std;
    } rest[] = {{&m->text_in, "text_embedding.0", C, cfg->text_dim, 0.02},
                {&m->text_out, "text_embedding.2", C, C, 0.02},
                {&m->time_in, "time_embedding.0", C, cfg->freq_dim, 0.02},
                {&m->time_out, "time_embedding.2", C, C, 0.02},
                {&m->time_proj, "time_projection.1", 6 * C, C, 0}};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) {
        rest[i].l->w = param_add_weight(u, "", rest[i].name, rest[i].out, rest[i].in, rest[i].std);
        rest[i].l->b = param_add_bias(u, "", rest[i].name, rest[i].out);
        rest[i].l->parts = 1;
    }
}

static void time_forward(struct ctx *c, const struct embed *m, struct embed_saved *s, int64_t B,
                         const double *t)
{
    const enum dtype T = ctx_compute(c), S = ctx_state(c);
    const int64_t C = m->dim;
    double *rounded = malloc((size_t)B * sizeof *rounded);
    CHECK(rounded, "out of memory");
    for (int64_t b = 0; b < B; b++)
        rounded[b] = m->round_t ? (double)bf16_to(bf16_from((float)t[b])) : t[b];
    s->wave = arena_new(c->keep, T, 2, DIMS(B, m->freq_dim));
    s->h = arena_new(c->keep, S, 2, DIMS(B, C));
    s->silu_h = arena_new(c->keep, T, 2, DIMS(B, C));
    s->e = arena_new(c->keep, S, 2, DIMS(B, C));
    s->silu_e = arena_new(c->keep, T, 2, DIMS(B, C));
    s->e0 = arena_new(c->keep, S, 2, DIMS(B, 6 * C));
    c->dev->ops->sinusoid(c->dev, s->wave, rounded);          /* 1 */
    linear_forward(c, &m->time_in, s->h, s->wave, NULL);      /* 2 */
    c->dev->ops->silu_fwd(c->dev, s->silu_h, s->h);           /* 3 */
    linear_forward(c, &m->time_out, s->e, s->silu_h, NULL);   /* 4 */
    c->dev->ops->silu_fwd(c->dev, s->silu_e, s->e);           /* 5 */
    linear_forward(c, &m->time_proj, s->e0, s->silu_e, NULL); /* 6 */
    free(rounded);
}

void embed_forward(struct ctx *c, const struct embed *m, struct embed_saved *s, struct embed_in in)
{
    const enum dtype T = ctx_compute(c);
    const int64_t R = in.xt.dim[0], L = in.text.dim[0], C = m->dim;
    time_forward(c, m, s, s->e.dim[0], in.t);
    s->text_h = arena_new(c->keep, T, 2, DIMS(L, C));
    s->text_g = arena_new(c->keep, T, 2, DIMS(L, C));
    s->ctx = arena_new(c->keep, T, 2, DIMS(L, C));
    s->x = arena_new(c->keep, T, 2, DIMS(R, C));
    linear_gelu_forward(c, &m->text_in, s->text_g, s->text_h, in.text, NULL); /* 7 */
    linear_forward(c, &m->text_out, s->ctx, s->text_g, NULL);                 /* 8 */
    linear_forward(c, &m->patch, s->x, in.xt, NULL);                          /* 9 */
}

/* 6' to 1': everything in S except the matrix products' inputs. */
static void time_backward(struct ctx *c, const struct embed *m, const struct embed_saved *s,
                          struct tensor de, struct tensor de0)
{
    const enum dtype T = ctx_compute(c), S = ctx_state(c);
    const int64_t B = de.dim[0], C = m->dim;
    struct tensor g0 = arena_new(c->tmp, T, 2, DIMS(B, 6 * C)),
                  g = arena_new(c->tmp, T, 2, DIMS(B, C));
    struct tensor ds = arena_new(c->tmp, S, 2, DIMS(B, C)),
                  dz = arena_new(c->tmp, S, 2, DIMS(B, C));
    c->dev->ops->cast(c->dev, g0, de0);
    linear_backward(c, &m->time_proj, (struct linear_grad){.dx = ds}, g0, s->silu_e); /* 6' */
    c->dev->ops->silu_bwd(c->dev, dz, ds, s->e);                                      /* 5' */
    c->dev->ops->axpy(c->dev, dz, 1, de); /* the head's share of e */
    c->dev->ops->cast(c->dev, g, dz);
    linear_backward(c, &m->time_out, (struct linear_grad){.dx = ds}, g, s->silu_h); /* 4' */
    c->dev->ops->silu_bwd(c->dev, dz, ds, s->h);                                    /* 3' */
    c->dev->ops->cast(c->dev, g, dz);
    linear_backward(c, &m->time_in, (struct linear_grad){0}, g, s->wave); /* 2' */
}

void embed_backward(struct ctx *c, const struct embed *m, const struct embed_saved *s,
                    struct embed_in in, struct embed_grad g)
{
    const size_t mark = arena_mark(c->tmp);
    struct tensor dctx = arena_like(c->tmp, s->ctx), dh = arena_like(c->tmp, s->text_h);
    linear_backward(c, &m->patch, (struct linear_grad){.dx = g.dxt}, g.dx, in.xt); /* 9' */
    c->dev->ops->cast(c->dev, dctx, g.dtext_ctx);
    linear_backward(c, &m->text_out, (struct linear_grad){.dx = dh, .aux = s->text_h}, dctx,
                    s->text_g);                                                        /* 8' */
    linear_backward(c, &m->text_in, (struct linear_grad){.dx = g.dtext}, dh, in.text); /* 7' */
    time_backward(c, m, s, g.de, g.de0);
    arena_release(c->tmp, mark);
}
