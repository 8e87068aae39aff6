#include "model/guided.h"

#include <stdlib.h>

static void list_kinds(struct guided *g, struct guided_opts o)
{
    if (!o.no_policy) {
        g->kind[g->num_kinds++] = GUIDED_COND;
        if (o.uncond) g->kind[g->num_kinds++] = GUIDED_UNCOND;
    }
    if (o.reference || o.no_policy) {
        g->kind[g->num_kinds++] = GUIDED_REF_COND;
        if (o.uncond) g->kind[g->num_kinds++] = GUIDED_REF_UNCOND;
    }
}

static bool of_reference(enum guided_kind k)
{
    return k == GUIDED_REF_COND || k == GUIDED_REF_UNCOND;
}

static struct shape_plan *plan_of(struct ctx *c, const struct dit *d, struct guided_opts o,
                                  int kinds)
{
    return plan_shape(c->dev, c->mesh, &d->config, o.samples * kinds, o.t, o.h, o.w,
                      (int)d->config.text_len);
}

/* From the rows the model gives to those it takes. */
static struct redist *way_back(struct ctx *c, const struct shape_plan *p)
{
    const struct stage *first = dit_first_stage(p), *last = dit_last_stage(p);
    if (first == last) return NULL;
    return redist_new(c->dev, c->mesh->axis[AXIS_SSP], last->layout, first->layout);
}

struct guided *guided_new(struct ctx *c, const struct dit *d, struct guided_opts o)
{
    struct guided *g = calloc(1, sizeof *g);
    CHECK(g, "out of memory");
    *g = (struct guided){.ctx = c, .dit = d, .samples = o.samples};
    list_kinds(g, o);
    const int batch = g->num_kinds * o.samples;
    CHECK(o.trained_kinds <= g->num_kinds, "%d of %d kinds trained", o.trained_kinds, g->num_kinds);
    g->plan = plan_of(c, d, o, g->num_kinds);
    g->back = way_back(c, g->plan);
    g->rows = dit_first_stage(g->plan)->layout->rows / g->num_kinds;
    if (o.trained_kinds) {
        g->trained = plan_of(c, d, o, o.trained_kinds);
        g->trained_back = way_back(c, g->trained);
    }
    g->time = calloc((size_t)batch, sizeof *g->time);
    g->drop = calloc((size_t)batch, sizeof *g->drop);
    g->run = calloc(1, sizeof *g->run);
    if (o.reference || o.no_policy) {
        g->gate = calloc((size_t)batch, 1);
        CHECK(g->gate, "out of memory");
        for (int b = 0; b < batch; b++) g->gate[b] = !of_reference(g->kind[b / o.samples]);
    }
    CHECK(g->time && g->drop && g->run, "out of memory");
    return g;
}

void guided_free(struct guided *g)
{
    if (!g) return;
    redist_free(g->back);
    redist_free(g->trained_back);
    plan_free(g->plan);
    if (g->trained) plan_free(g->trained);
    free(g->gate);
    free(g->drop);
    free(g->time);
    free(g->run);
    free(g);
}

const struct layout *guided_layout(const struct guided *g)
{
    return dit_first_stage(g->plan)->layout;
}

struct tensor guided_pos(const struct guided *g)
{
    return tensor_rows(dit_first_stage(g->plan)->pos, 0, g->rows);
}

/* `x` once for every kind. */
static struct tensor repeated(struct guided *g, struct tensor x)
{
    struct ctx *c = g->ctx;
    const int64_t n = x.dim[0];
    struct tensor y = arena_new(c->keep, ctx_compute(c), 2, DIMS(n * g->num_kinds, x.dim[1]));
    for (int k = 0; k < g->num_kinds; k++) c->dev->ops->cast(c->dev, tensor_rows(y, k * n, n), x);
    return y;
}

static struct tensor all_text(struct guided *g, struct tensor text, struct tensor null)
{
    if (g->num_kinds == 1) return text;
    struct ctx *c = g->ctx;
    const int64_t n = text.dim[0];
    struct tensor y = arena_new(c->keep, text.dtype, 2, DIMS(n * g->num_kinds, text.dim[1]));
    for (int k = 0; k < g->num_kinds; k++) {
        const bool uncond = g->kind[k] == GUIDED_UNCOND || g->kind[k] == GUIDED_REF_UNCOND;
        CHECK(!uncond || null.data, "unconditional rows without their text");
        c->dev->ops->cast(c->dev, tensor_rows(y, k * n, n), uncond ? null : text);
    }
    return y;
}

/* Between the two calls nobody else runs the model of c. */
static void switch_on(struct guided *g)
{
    g->ctx->gate = g->gate;
    g->ctx->drop = g->dropped ? g->drop : NULL;
}

static void switch_off(struct guided *g)
{
    g->ctx->gate = NULL;
    g->ctx->drop = NULL;
}

void guided_forward(struct guided *g, struct tensor v, struct tensor x, struct tensor text,
                    struct tensor null, const double *sigma, const struct rng_key *drop, bool train)
{
    struct ctx *c = g->ctx;
    CHECK(!train || g->trained, "a training pass of rows that are not trained");
    const size_t mark = arena_mark(c->keep);
    for (int b = 0; b < g->plan->batch; b++) g->time[b] = 1000 * sigma[b % g->samples];
    for (int b = 0; b < g->plan->batch && drop; b++) g->drop[b] = drop[b % g->samples];
    g->dropped = drop;
    const struct dit_input in = {repeated(g, x), all_text(g, text, null), g->time};
    switch_on(g);
    dit_forward(c, g->dit, g->plan, in, train, g->run);
    switch_off(g);
    if (g->back)
        redist_forward(g->back, v, g->run->out);
    else
        c->dev->ops->cast(c->dev, v, g->run->out);
    if (!train) arena_release(c->keep, mark);
}

struct tensor guided_rows(const struct guided *g, struct tensor v, enum guided_kind k)
{
    for (int i = 0; i < g->num_kinds; i++)
        if (g->kind[i] == k) return tensor_rows(v, i * g->rows, g->rows);
    return (struct tensor){0};
}

void guided_backward(struct guided *g, struct tensor dv)
{
    struct ctx *c = g->ctx;
    CHECK(g->trained, "backward of rows that are not trained");
    struct tensor dout = dv;
    if (g->trained_back) {
        dout = arena_new(c->keep, dv.dtype, 2,
                         DIMS(dit_last_stage(g->trained)->layout->rows, dv.dim[1]));
        redist_backward(g->trained_back, dout, dv);
    }
    dit_narrow(g->run, g->trained);
    switch_on(g);
    dit_backward(c, g->dit, g->run, dout, (struct tensor){0}, (struct tensor){0});
    switch_off(g);
}
