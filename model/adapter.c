#include "model/adapter.h"

/* Rows [first, end) of neighbouring samples in the same state of the gate. */
struct span {
    int64_t first, end;
    bool on;
};

/* The span after s; false at the end. The batch is the slowest dimension of all rows. */
static bool next_span(const struct ctx *c, int64_t rows, struct span *s)
{
    s->first = s->end;
    if (s->first >= rows) return false;
    if (!c->gate) {
        s->end = rows;
        s->on = true;
        return true;
    }
    CHECK(c->samples > 0 && rows % c->samples == 0, "%lld rows of %d samples behind a gate",
          (long long)rows, c->samples);
    const int64_t per = rows / c->samples;
    int64_t b = s->first / per;
    s->on = c->gate[b];
    while (b < c->samples && !c->gate[b] == !s->on) b++;
    s->end = b * per;
    return true;
}

static struct tensor rows_of(struct tensor t, const struct span *s)
{
    return tensor_rows(t, s->first, s->end - s->first);
}

/* out = alpha * op(a) op(b) + beta * out */
static void product(struct ctx *c, struct tensor out, struct tensor a, bool trans_a,
                    struct tensor b, bool trans_b, double alpha, double beta)
{
    unit_poll(c->hooks);
    const struct gemm_args g = {.c = out,
                                .a = a,
                                .b = b,
                                .trans_a = trans_a,
                                .trans_b = trans_b,
                                .alpha = alpha,
                                .beta = beta};
    c->dev->ops->gemm(c->dev, &g);
}

/* Elements of a flat buffer as a matrix. */
static struct tensor matrix(struct tensor flat, int64_t first, int64_t rows, int64_t cols)
{
    return tensor_view(tensor_rows(flat, first, rows * cols), 2, DIMS(rows, cols));
}

static struct tensor all_a(const struct adapter *a, struct tensor flat)
{
    return matrix(flat, a->a, a->pairs * a->store->rank, a->in);
}

static struct tensor one_b(const struct adapter *a, struct tensor flat, int i)
{
    return matrix(flat, a->b[i], a->out, a->store->rank);
}

/* Columns of pair i: of h, and of the linear's output. */
static struct tensor h_of(const struct adapter *a, struct tensor h, int i)
{
    return tensor_cols(h, i * a->store->rank, a->store->rank);
}

static struct tensor y_of(const struct adapter *a, struct tensor y, int i)
{
    return tensor_cols(y, a->part[i] * a->out, a->out);
}

/* ---- dropout ----------------------------------------------------------------------------------*/
static bool drops(const struct ctx *c, const struct adapter *a)
{
    return c->drop && a->store->dropout > 0;
}

/* out = mask(x), or += : the rows of span r of all `rows`. */
static void drop_rows(struct ctx *c, const struct adapter *a, struct tensor out, struct tensor x,
                      const struct token_rows *at, const struct span *r, int64_t rows, bool add)
{
    CHECK(c->samples > 0 && rows % c->samples == 0, "%lld rows of %d samples", (long long)rows,
          c->samples);
    const int64_t per = rows / c->samples;
    const struct dropout_args d = {.out = out,
                                   .x = x,
                                   .pos = at->pos.data ? rows_of(at->pos, r) : at->pos,
                                   .height = at->height,
                                   .width = at->width,
                                   .p = a->store->dropout,
                                   .first = (uint64_t)a->number << 44, /* above all elements */
                                   .mask = c->drop + r->first / per,
                                   .batch = (int)((r->end - r->first) / per),
                                   .add = add};
    if (per) c->dev->ops->dropout(c->dev, &d);
}

/* What A sees of the rows of span r: x itself, or a copy in tmp. */
static struct tensor seen(struct ctx *c, const struct adapter *a, struct tensor x,
                          const struct token_rows *at, const struct span *r)
{
    struct tensor xr = rows_of(x, r);
    if (!drops(c, a)) return xr;
    struct tensor y = arena_new(c->tmp, x.dtype, 2, xr.dim);
    drop_rows(c, a, y, xr, at, r, x.dim[0], false);
    return y;
}

/* dx = or += the gradient through the mask of dh A, span r. */
static void back_to_input(struct ctx *c, const struct adapter *a, struct tensor dx, bool add,
                          struct tensor dh, const struct token_rows *at, const struct span *r,
                          int64_t rows)
{
    const struct tensor w = all_a(a, a->store->w);
    if (!drops(c, a)) {
        product(c, dx, dh, false, w, false, 1, add ? 1 : 0);
        return;
    }
    struct tensor d = add ? arena_new(c->tmp, dx.dtype, 2, dx.dim) : dx;
    product(c, d, dh, false, w, false, 1, 0);
    drop_rows(c, a, dx, d, at, r, rows, add);
}

/* ---- forward and backward ---------------------------------------------------------------------*/
struct tensor adapter_forward(struct ctx *c, const struct adapter *a, struct tensor y,
                              struct tensor x, const struct token_rows *at, struct arena *arena)
{
    const struct adapter_store *s = a->store;
    struct tensor h = arena_new(arena, ctx_compute(c), 2, DIMS(x.dim[0], a->pairs * s->rank));
    const size_t mark = arena_mark(c->tmp);
    for (struct span r = {0}; next_span(c, x.dim[0], &r);) {
        if (!r.on) continue;
        struct tensor hr = rows_of(h, &r), yr = rows_of(y, &r);
        product(c, hr, seen(c, a, x, at, &r), false, all_a(a, s->w), true, 1, 0);
        for (int i = 0; i < a->pairs; i++)
            product(c, y_of(a, yr, i), h_of(a, hr, i), false, one_b(a, s->w, i), true, s->scale, 1);
    }
    arena_release(c->tmp, mark);
    return h;
}

/* The rows of one span that is on; dh: room of the shape of h. */
static void span_backward(struct ctx *c, const struct adapter *a, struct tensor dx, bool add,
                          struct tensor dy, struct tensor x, const struct token_rows *at,
                          const struct span *r, struct tensor h, struct tensor dh)
{
    const struct adapter_store *s = a->store;
    for (int i = 0; i < a->pairs; i++) {
        struct tensor dyi = y_of(a, dy, i);
        product(c, h_of(a, dh, i), dyi, false, one_b(a, s->w, i), false, s->scale, 0);
        if (s->g.data) product(c, one_b(a, s->g, i), dyi, true, h_of(a, h, i), false, s->scale, 1);
    }
    if (s->g.data) product(c, all_a(a, s->g), dh, true, seen(c, a, x, at, r), false, 1, 1);
    if (dx.data) back_to_input(c, a, dx, add, dh, at, r, x.dim[0]);
}

void adapter_backward(struct ctx *c, const struct adapter *a, struct tensor dx, bool add,
                      struct tensor dy, struct tensor x, const struct token_rows *at,
                      struct tensor h)
{
    const size_t mark = arena_mark(c->tmp);
    CHECK(h.data && h.dim[0] == x.dim[0], "backward of an adapter without its forward");
    struct tensor dh = arena_like(c->tmp, h);
    for (struct span r = {0}; next_span(c, x.dim[0], &r);) {
        struct tensor dxr = dx.data ? rows_of(dx, &r) : dx;
        const size_t inside = arena_mark(c->tmp);
        if (r.on)
            span_backward(c, a, dxr, add, rows_of(dy, &r), x, at, &r, rows_of(h, &r),
                          rows_of(dh, &r));
        else if (dx.data && !add)
            c->dev->ops->fill(c->dev, dxr, 0);
        arena_release(c->tmp, inside);
    }
    arena_release(c->tmp, mark);
}
