/* Single transformer blocks against the golden files: output, loss, input gradients, parameter
 * gradients and the activations inside, for every kind of block, in chunk order and in the padded
 * layout. The file's tensors are matched to the rows of the block's own stage token by token. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/check.h"
#include "tests/golden.h"

struct block_case {
    struct golden_case *c;
    struct fixture fx;
    int index;       /* of the block in the model: its names are blocks.INDEX.* */
    int at, in, out; /* layouts: the block's own, of x, of y: 0 full, 1 token, 2 group */
    int P;
    const struct stage *stage;
    struct block_saved saved;
    struct block_run run;
    struct tensor x, y, dx;
    struct cond cond;
    struct cond_grad dcond;
    int num_params, num_grads; /* in the file */
    struct grad_sum grads;
};

static int layout_kind(const char *name)
{
    static const char *const kinds[] = {"full", "token", "group"};
    for (int k = 0; k < 3; k++)
        if (strcmp(name, kinds[k]) == 0) return k;
    CHECK(0, "unknown block kind %s", name);
    return 0;
}

/* "full", "A_from_B" (B in, A out) or "A_to_full". A block that ends the sparse run gets the other
 * sparse layout. */
static void parse_kind(struct block_case *b)
{
    char kind[64];
    h5_attr_text(b->c->file, b->c->group, "kind", kind, sizeof kind);
    char *from = strstr(kind, "_from_"), *to = strstr(kind, "_to_");
    if (from) *from = 0;
    if (to) *to = 0;
    b->at = b->in = b->out = layout_kind(kind);
    if (from) b->in = layout_kind(from + strlen("_from_"));
    if (to) {
        b->out = layout_kind(to + strlen("_to_"));
        b->in = b->at == 1 ? 2 : 1;
    }
    b->P = (int)golden_attr(b->c, "P");
    b->index = b->at == 2 ? 1 : 0; /* of two sparse blocks the second one is a group block */
}

static struct fixture_opts options(const struct block_case *b)
{
    const struct golden_case *c = b->c;
    const int64_t dim = (int64_t)h5_attr(c->file, "/", "dim");
    struct model_config m = fixture_model();
    m.dim = dim;
    m.ffn_dim = (int64_t)h5_attr(c->file, "/", "ffn");
    m.num_heads = (int64_t)h5_attr(c->file, "/", "heads");
    m.text_len = (int64_t)h5_attr(c->file, "/", "text_len");
    m.eps = h5_attr(c->file, "/", "eps");
    m.num_layers = 2;
    m.num_full_blocks = 0;
    m.skiparse_model_type = b->at == 0 ? SKIPARSE_FULL : SKIPARSE_DUAL_END;
    m.sparse_ratio = b->P;
    m.pad_mode = c->v.pad_mode;
    return (struct fixture_opts){.device = c->v.device,
                                 .compute = c->v.compute,
                                 .model = m,
                                 .batch = (int)golden_attr(c, "B"),
                                 .t = (int)golden_attr(c, "T"),
                                 .h = (int)golden_attr(c, "H"),
                                 .w = (int)golden_attr(c, "W"),
                                 .fsdp = {.optimizer = true}};
}

static void param_name(const struct block_case *b, char out[96], const char *name)
{
    snprintf(out, 96, "blocks.%d.%s", b->index, name);
}

static void put_param(void *arg, const char *name, bool is_group)
{
    struct block_case *b = arg;
    char path[128], full[96];
    CHECK(!is_group, "group %s among the parameters", name);
    snprintf(path, sizeof path, "/params/%s", name);
    param_name(b, full, name);
    struct h5_array a = h5_read(b->c->file, path);
    const struct param *p = fsdp_find(b->fx.fsdp, full);
    CHECK(p && param_count(p) == a.count, "parameter %s of the file", name);
    fsdp_put(b->fx.fsdp, STATE_MASTER, full, a.v);
    h5_free(&a);
    b->num_params++;
}

static void check_grad(void *arg, const char *name, bool is_group)
{
    (void)is_group;
    struct block_case *b = arg;
    char path[128], full[96];
    snprintf(path, sizeof path, "grads/%s", name);
    param_name(b, full, name);
    const struct h5_array want = golden_read(b->c, path);
    double *g = golden_doubles(b->c, want.count);
    fsdp_get(b->fx.fsdp, STATE_GRAD, full, g);
    golden_grad(&b->c->v, &b->grads, path, g, want.v, want.count, want.stored_f64);
    b->num_grads++;
}

/* ---- rows ------------------------------------------------------------------------------------ */
/* Row of a file tensor in layout `kind` for row r of the stage; -1: padding. */
static int64_t file_row(const struct block_case *b, int kind, int64_t r)
{
    const struct layout *l = b->stage->layout;
    const int16_t *p = l->pos + 3 * r;
    if (p[0] < 0) return -1;
    const int sample = (int)(r / (l->rows / l->batch));
    return golden_place(kind, b->P, l->grid.t, l->grid.h, l->grid.w, l->batch, sample, p[0], p[1],
                        p[2]);
}

/* File tensor as rows of the stage. Padding rows get filler: nothing there may reach a real row. */
static double *to_stage(struct block_case *b, const struct h5_array *a, int kind, double filler)
{
    const int64_t C = b->fx.dit->config.dim, R = b->stage->layout->rows;
    double *v = golden_doubles(b->c, R * C);
    for (int64_t r = 0; r < R; r++) {
        const int64_t at = file_row(b, kind, r);
        CHECK(at < a->count / C, "row %lld of %lld", (long long)at, (long long)(a->count / C));
        if (at >= 0) memcpy(v + r * C, a->v + at * C, (size_t)C * sizeof *v);
        for (int64_t i = 0; at < 0 && i < C; i++) v[r * C + i] = filler * sin((double)(r * C + i));
    }
    return v;
}

/* Real rows of t against dataset `name`, which is in layout `kind`. */
static void check_rows(struct block_case *b, const char *name, struct tensor t, int kind,
                       struct bound bound)
{
    if (!golden_has(b->c, name)) return;
    const struct h5_array a = golden_read(b->c, name);
    const int64_t C = b->fx.dit->config.dim, R = b->stage->layout->rows;
    double *want = to_stage(b, &a, kind, 0), *got = golden_doubles(b->c, R * C);
    struct tensor flat = arena_new(&b->fx.tmp, t.dtype, 2, DIMS(R, C));
    b->fx.dev->ops->cast(b->fx.dev, flat, t);
    dev_get_f64(b->fx.dev, got, flat);
    for (int64_t r = 0; r < R; r++)
        if (file_row(b, kind, r) < 0)
            for (int64_t i = 0; i < C; i++) {
                EXPECT(isfinite(got[r * C + i]), "%s at padding row %lld", name, (long long)r);
                got[r * C + i] = 0;
            }
    golden_compare(&b->c->v, name, got, want, R * C, a.stored_f64, bound);
}

/* Where the file marks real tokens, the stage has them, and only there. */
static void check_mask(struct block_case *b, const char *name, int kind)
{
    if (!golden_has(b->c, name)) return;
    const struct h5_array mask = golden_read(b->c, name);
    double *seen = golden_doubles(b->c, mask.count);
    for (int64_t r = 0; r < b->stage->layout->rows; r++) {
        const int64_t at = file_row(b, kind, r);
        if (at >= 0) seen[at]++;
    }
    EXPECT(max_error(seen, mask.v, mask.count, NULL) == 0, "%s", name);
}

/* ---- one block ------------------------------------------------------------------------------- */
static void setup(struct block_case *b)
{
    struct golden_case *c = b->c;
    struct fixture *fx = &b->fx;
    const struct fixture_opts o = options(b);
    fixture_open(fx, comm_self(NULL), &o);
    EXPECT((int)fx->plan->kind[b->index] == b->at, "block %d is of kind %d", b->index,
           fx->plan->kind[b->index]);
    b->stage = &fx->plan->stage[fx->plan->at[b->index]];
    h5_each(c->file, "/params", put_param, b);
    const enum dtype T = c->v.compute, S = dtype_state(T);
    const int64_t C = o.model.dim, R = b->stage->layout->rows, L = o.batch * o.model.text_len;
    const struct h5_array x = golden_read(c, "x"), e0 = golden_read(c, "e0"),
                          w = golden_read(c, "w");
    const struct h5_array text = golden_read(c, "text");
    b->x = arena_new(&fx->keep, T, 2, DIMS(R, C));
    b->y = arena_like(&fx->keep, b->x);
    b->dx = arena_like(&fx->keep, b->x);
    dev_put_f64(fx->dev, b->x, to_stage(b, &x, b->in, 0.7));
    dev_put_f64(fx->dev, b->dx, to_stage(b, &w, b->out, 0)); /* dy */
    b->cond = (struct cond){arena_new(&fx->keep, T, 2, DIMS(L, C)),
                            arena_new(&fx->keep, S, 2, DIMS(o.batch, 6 * C))};
    dev_put_f64(fx->dev, b->cond.text, text.v);
    dev_put_f64(fx->dev, b->cond.e0, e0.v);
    b->dcond.text = ctx_zeros(&fx->ctx, &fx->keep, S, 2, b->cond.text.dim);
    b->dcond.e0 = ctx_zeros(&fx->ctx, &fx->keep, S, 2, b->cond.e0.dim);
    b->run = (struct block_run){.stage = b->stage,
                                .rope = &fx->dit->rope,
                                .full = b->at == 0,
                                .policy = RECOMPUTE_NONE,
                                .keep_any = true};
    check_mask(b, "mask_in", b->in);
    check_mask(b, "mask_out", b->out);
}

static void check_intermediates(struct block_case *b)
{
    const struct bound in = {1e-12, 5e-6, 2e-2};
    const struct tensor *t = b->saved.t;
    const int64_t C = b->fx.dit->config.dim;
    check_rows(b, "intermediate/norm1_mod", t[T_A], b->at, in);
    check_rows(b, "intermediate/q_rope", t[T_Q], b->at, in);
    check_rows(b, "intermediate/k_rope", t[T_K], b->at, in);
    check_rows(b, "intermediate/v", tensor_cols(t[T_QKV], 2 * C, C), b->at, in);
    check_rows(b, "intermediate/attn", t[T_O], b->at, in);
    check_rows(b, "intermediate/after_self", t[T_X1], b->at, in);
    check_rows(b, "intermediate/after_cross", t[T_X2], b->at, in);
}

/* sum(w*y) over the real tokens. It cancels: the error is measured against |w||y|, but for f64. */
static void check_loss(struct block_case *b, const double *dy)
{
    const struct h5_array want = golden_read(b->c, "loss");
    const int64_t n = tensor_count(b->y);
    double *y = golden_doubles(b->c, n), loss = 0, size = 0;
    dev_get_f64(b->fx.dev, y, b->y);
    for (int64_t i = 0; i < n; i++) {
        loss += dy[i] * y[i];
        size += dy[i] * y[i] * dy[i] * y[i];
    }
    const double e = fabs(loss - want.v[0]);
    if (b->c->v.compute == DT_F64)
        EXPECT(e <= 1e-12 * fabs(want.v[0]), "loss %.17g, file %.17g", loss, want.v[0]);
    else
        EXPECT(e <= (b->c->v.compute == DT_F32 ? 2e-6 : 2e-2) * sqrt(size), "loss %.9g, file %.9g",
               loss, want.v[0]);
}

static void check_cond_grad(struct block_case *b, const char *name, struct tensor t)
{
    double *v = golden_doubles(b->c, tensor_count(t));
    EXPECT(golden_read(b->c, name).count == tensor_count(t), "%s", name);
    dev_get_f64(b->fx.dev, v, t);
    golden_check_values(b->c, name, v, false, (struct bound){1e-12, 1e-5, 2e-2});
}

/* dx at padding rows is exactly 0. */
static void check_padding_grad(struct block_case *b)
{
    const int64_t C = b->fx.dit->config.dim, R = b->stage->layout->rows;
    double *v = golden_doubles(b->c, R * C);
    dev_get_f64(b->fx.dev, v, b->dx);
    for (int64_t r = 0; r < R; r++)
        for (int64_t i = 0; i < C && file_row(b, b->in, r) < 0; i++)
            EXPECT(v[r * C + i] == 0, "dx at padding row %lld is %g", (long long)r, v[r * C + i]);
}

static void run_block(struct golden_case *c)
{
    struct block_case b = {.c = c};
    parse_kind(&b);
    setup(&b);
    struct ctx *ctx = &b.fx.ctx;
    const struct block *block = &b.fx.dit->block[b.index];
    const int unit = block->unit;
    double *dy = golden_doubles(c, tensor_count(b.dx));
    dev_get_f64(b.fx.dev, dy, b.dx);
    unit_enter(ctx->hooks, unit, PASS_FORWARD);
    block_forward(ctx, block, &b.run, &b.saved, b.y, b.x, NULL, &b.cond);
    unit_leave(ctx->hooks, unit, PASS_FORWARD);
    check_rows(&b, "y", b.y, b.out, (struct bound){1e-12, 5e-6, 2e-2});
    check_loss(&b, dy);
    check_intermediates(&b);
    unit_enter(ctx->hooks, unit, PASS_BACKWARD);
    block_backward(ctx, block, &b.run, &b.saved, b.dx, (struct tail_grad){0}, b.x, &b.cond,
                   &b.dcond);
    unit_leave(ctx->hooks, unit, PASS_BACKWARD);
    fsdp_finish_backward(b.fx.fsdp, true);
    check_rows(&b, "dx", b.dx, b.in, (struct bound){1e-12, 1e-5, 2e-2});
    check_padding_grad(&b);
    check_cond_grad(&b, "de0", b.dcond.e0);
    check_cond_grad(&b, "dtext", b.dcond.text);
    char path[128];
    snprintf(path, sizeof path, "%s/grads", c->group);
    h5_each(c->file, path, check_grad, &b);
    golden_grad_end(&c->v, &b.grads);
    const int n = b.fx.dit->unit[unit].num_params;
    EXPECT(b.num_params == n && b.num_grads == n, "%d parameters, in the file %d and %d gradients",
           n, b.num_params, b.num_grads);
    struct comm *world = b.fx.mesh.axis[AXIS_WORLD];
    fixture_close(&b.fx);
    comm_free(world);
}

static void blocks(struct comm *w)
{
    (void)w;
    golden_each("model_block", "de0", GOLDEN_ALL, false, run_block);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "blocks of every kind: output, loss, activations, all gradients", .run = blocks},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
