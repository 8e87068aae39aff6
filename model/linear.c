#include "model/linear.h"

/* The view over `parts` neighbouring parameters. */
static struct tensor joined(const struct param *p, int parts, bool grad)
{
    struct tensor t = grad ? p->g : p->w;
    if (!t.data) return t;
    const size_t bytes = tensor_bytes(t);
    for (int i = 1; i < parts; i++) {
        const struct tensor n = grad ? p[i].g : p[i].w;
        CHECK((char *)n.data == (char *)t.data + (size_t)i * bytes && n.dim[0] == t.dim[0],
              "%s does not follow %s in its unit", p[i].name, p->name);
    }
    int64_t dim[2] = {t.dim[0] * parts, tensor_width(t)};
    return tensor_make(t.data, t.dtype, p->ndim == 1 ? 1 : 2, dim);
}

static void product(struct ctx *c, const struct linear *l, struct tensor y, struct tensor aux,
                    struct tensor x, enum epilogue e)
{
    unit_poll(c->hooks);
    struct gemm_args g = {.c = y,
                          .a = x,
                          .b = joined(l->w, l->parts, false),
                          .trans_b = true,
                          .alpha = 1,
                          .epilogue = e,
                          .bias = joined(l->b, l->parts, false),
                          .aux = aux};
    c->dev->ops->gemm(c->dev, &g);
}

/* pre = x W' + b and the adapter's term; gelu [same shape] = gelu(pre) unless data is NULL. With
 * gelu, pre may be left out (data NULL). */
static void forward(struct ctx *c, const struct linear *l, struct tensor pre, struct tensor gelu,
                    struct tensor x, struct linear_saved *s)
{
    if (!l->lora) {
        if (gelu.data)
            product(c, l, gelu, pre, x, EPI_BIAS_GELU);
        else
            product(c, l, pre, (struct tensor){0}, x, EPI_BIAS);
        return;
    }
    if (!pre.data) pre = gelu;
    CHECK(s, "%s has an adapter, but no place for what it saves", l->w->name);
    product(c, l, pre, (struct tensor){0}, x, EPI_BIAS);
    s->h = adapter_forward(c, l->lora, pre, x, &s->at, s->arena);
    if (gelu.data) c->dev->ops->gelu_fwd(c->dev, gelu, pre);
}

void linear_forward(struct ctx *c, const struct linear *l, struct tensor y, struct tensor x,
                    struct linear_saved *s)
{
    forward(c, l, y, (struct tensor){0}, x, s);
}

void linear_gelu_forward(struct ctx *c, const struct linear *l, struct tensor y, struct tensor aux,
                         struct tensor x, struct linear_saved *s)
{
    forward(c, l, aux, y, x, s);
}

void linear_backward(struct ctx *c, const struct linear *l, struct linear_grad g, struct tensor dy,
                     struct tensor x)
{
    struct tensor dw = joined(l->w, l->parts, true);
    if (l->lora) { /* first, so that the epilogue below sees the whole sum */
        adapter_backward(c, l->lora, g.dx, g.add, dy, x, &g.saved->at, g.saved->h);
        g.add = true;
    }
    unit_poll(c->hooks);
    if (g.dx.data) {
        struct gemm_args a = {.c = g.dx,
                              .a = dy,
                              .b = joined(l->w, l->parts, false),
                              .alpha = 1,
                              .beta = g.add ? 1 : 0,
                              .aux = g.aux,
                              .epilogue = g.aux.data ? EPI_DGELU : EPI_NONE};
        c->dev->ops->gemm(c->dev, &a);
    }
    unit_poll(c->hooks);
    if (dw.data) {
        struct gemm_args a = {.c = dw,
                              .a = dy,
                              .b = x,
                              .trans_a = true,
                              .alpha = 1,
                              .beta = 1,
                              .epilogue = EPI_BIAS_GRAD,
                              .bias = joined(l->b, l->parts, true)};
        c->dev->ops->gemm(c->dev, &a);
    }
}
