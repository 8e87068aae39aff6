/* Single ops against the golden files: norms and activations, patches, sinusoid, attention with
 * masked tokens, rotary embedding, AdamW with EMA, gradient clipping. Groups and dimensions come
 * from the files. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/rope.h"
#include "tests/check.h"
#include "tests/golden.h"

static const double EPS = 1e-6; /* of all norms in model_ops.h5 */
static const struct bound OP = {1e-12, 2e-6, 1e-2}, OP_GRAD = {1e-12, 2e-6, 2e-2};
static const struct bound ATTN = {1e-12, 5e-6, 2e-2};

static enum dtype state_of(const struct golden_case *c) { return dtype_state(c->v.compute); }

static struct tensor put_rows(struct golden_case *c, const char *name, enum dtype d)
{
    const struct h5_array a = golden_read(c, name);
    return golden_put(c, d, 2, DIMS(a.dim[0], a.count / a.dim[0]), a.v);
}

/* a stored vector as one row */
static struct tensor put_row(struct golden_case *c, const char *name, enum dtype d)
{
    const struct h5_array a = golden_read(c, name);
    return golden_put(c, d, 2, DIMS(1, a.count), a.v);
}

/* ---- norms and activations ------------------------------------------------------------------- */
static void check_layernorm(struct golden_case *c, const char *name, bool affine)
{
    const enum dtype T = c->v.compute, S = state_of(c);
    const struct tensor x = put_rows(c, "x", T), dy = put_rows(c, "dy", T);
    const int64_t R = x.dim[0], C = x.dim[1];
    struct ln_args a = {.out = golden_new(c, T, 2, x.dim),
                        .mean = golden_new(c, S, 1, DIMS(R)),
                        .rstd = golden_new(c, S, 1, DIMS(R)),
                        .x = x,
                        .eps = EPS,
                        .one = affine ? 0 : 1};
    struct ln_grad_args g = {.dx = golden_new(c, T, 2, x.dim),
                             .dy = dy,
                             .x = x,
                             .mean = a.mean,
                             .rstd = a.rstd,
                             .one = a.one};
    if (affine) {
        g.scale = a.scale = put_row(c, "weight", S);
        a.shift = put_row(c, "bias", S);
        g.dscale = golden_new(c, S, 2, DIMS(1, C));
        g.dshift = golden_new(c, S, 2, DIMS(1, C));
    }
    c->dev->ops->ln_fwd(c->dev, &a);
    c->dev->ops->ln_bwd(c->dev, &g);
    char key[64];
    golden_check(c, (snprintf(key, sizeof key, "%s_y", name), key), a.out, OP);
    golden_check(c, (snprintf(key, sizeof key, "%s_dx", name), key), g.dx, OP_GRAD);
    if (!affine) return;
    golden_check(c, (snprintf(key, sizeof key, "%s_dw", name), key), g.dscale, OP_GRAD);
    golden_check(c, (snprintf(key, sizeof key, "%s_db", name), key), g.dshift, OP_GRAD);
}

static void check_rmsnorm(struct golden_case *c)
{
    const enum dtype T = c->v.compute, S = state_of(c);
    const struct tensor x = put_rows(c, "x", T), dy = put_rows(c, "dy", T);
    const struct h5_array weight = golden_read(c, "weight");
    const struct tensor w = golden_put(c, S, 1, DIMS(weight.count), weight.v);
    struct norm_rope_args a = {.out = golden_new(c, T, 2, x.dim),
                               .x = x,
                               .w = w,
                               .heads = 1,
                               .rstd = golden_new(c, S, 1, DIMS(x.dim[0])),
                               .eps = EPS};
    struct norm_rope_grad_args g = {.dx = golden_new(c, T, 2, x.dim),
                                    .dy = dy,
                                    .x = x,
                                    .w = w,
                                    .dw = golden_new(c, S, 1, w.dim),
                                    .rstd = a.rstd,
                                    .heads = 1,
                                    .eps = EPS};
    c->dev->ops->norm_rope_fwd(c->dev, &a);
    c->dev->ops->norm_rope_bwd(c->dev, &g);
    golden_check(c, "rmsnorm_y", a.out, OP);
    golden_check(c, "rmsnorm_dx", g.dx, OP_GRAD);
    golden_check(c, "rmsnorm_dw", g.dw, OP_GRAD);
}

static void check_activations(struct golden_case *c)
{
    const struct dev_ops *ops = c->dev->ops;
    const enum dtype T = c->v.compute;
    const struct tensor x = put_rows(c, "x", T), dy = put_rows(c, "dy", T);
    const struct tensor y = golden_new(c, T, 2, x.dim), dx = golden_new(c, T, 2, x.dim);
    ops->gelu_fwd(c->dev, y, x);
    ops->gelu_bwd(c->dev, dx, dy, x);
    golden_check(c, "gelu_tanh_y", y, OP);
    golden_check(c, "gelu_tanh_dx", dx, OP_GRAD);
    ops->silu_fwd(c->dev, y, x);
    ops->silu_bwd(c->dev, dx, dy, x);
    golden_check(c, "silu_y", y, OP);
    golden_check(c, "silu_dx", dx, OP_GRAD);
}

static void run_rows(struct golden_case *c)
{
    check_layernorm(c, "layernorm", false);
    check_layernorm(c, "layernorm_affine", true);
    check_rmsnorm(c);
    check_activations(c);
}

/* ---- patches and sinusoid -------------------------------------------------------------------- */
static struct tensor put_pos(struct golden_case *c, const struct layout *l)
{
    struct tensor pos = golden_new(c, DT_I16, 2, DIMS(l->rows, 3));
    dev_put(c->dev, pos, l->pos);
    return pos;
}

/* Row of the plain [B,N] order that row r of a layout holds. */
static int64_t plain_row(const struct layout *l, int64_t r)
{
    const int16_t *p = l->pos + 3 * r;
    const struct grid g = l->grid;
    const int b = (int)(r / (l->rows / l->batch));
    return golden_place(0, g.ratio, g.t, g.h, g.w, l->batch, b, p[0], p[1], p[2]);
}

/* Rows of width C moved between the plain order and a layout. */
static double *reorder(struct golden_case *c, const struct layout *l, const double *v, int64_t C,
                       bool to_plain)
{
    double *out = golden_doubles(c, l->rows * C);
    for (int64_t r = 0; r < l->rows; r++) {
        const int64_t at = plain_row(l, r);
        memcpy(out + (to_plain ? at : r) * C, v + (to_plain ? r : at) * C, (size_t)C * sizeof *v);
    }
    return out;
}

/* Conv with stride = kernel as a matrix product over patch rows, in the order of a layout. */
static void check_patch(struct golden_case *c, const struct layout *l)
{
    const enum dtype T = c->v.compute, S = state_of(c);
    const struct h5_array x = golden_read(c, "x"), w = golden_read(c, "weight");
    const struct h5_array bias = golden_read(c, "bias"), head = golden_read(c, "head_out");
    const struct h5_array image = golden_read(c, "unpatchified");
    const int64_t C = w.dim[0], in = w.count / C, out = head.dim[2];
    const struct tensor pos = put_pos(c, l), latent = golden_put(c, S, 5, x.dim, x.v);
    struct tensor rows = golden_new(c, S, 2, DIMS(l->rows, in)), rows_t = rows;
    c->dev->ops->patch_rows(c->dev, rows, latent, pos, PATCH_IN);
    if (T != S) c->dev->ops->cast(c->dev, rows_t = golden_new(c, T, 2, rows.dim), rows);
    struct gemm_args g = {.c = golden_new(c, T, 2, DIMS(l->rows, C)),
                          .a = rows_t,
                          .b = golden_put(c, T, 2, DIMS(C, in), w.v),
                          .trans_b = true,
                          .alpha = 1,
                          .epilogue = EPI_BIAS,
                          .bias = golden_put(c, T, 1, DIMS(C), bias.v)};
    c->dev->ops->gemm(c->dev, &g);
    golden_check_values(c, "tokens", reorder(c, l, golden_get(c, g.c), C, true), false, OP);
    /* rows to latent and back are copies: exact */
    const struct tensor back = golden_new(c, S, 5, x.dim);
    c->dev->ops->unpatch_rows(c->dev, back, rows, pos, PATCH_IN);
    EXPECT(max_error(golden_get(c, back), x.v, x.count, NULL) == 0, "latent to rows and back");
    const struct tensor features =
        golden_put(c, S, 2, DIMS(l->rows, out), reorder(c, l, head.v, out, false));
    const struct tensor made = golden_new(c, S, 5, image.dim);
    c->dev->ops->unpatch_rows(c->dev, made, features, pos, PATCH_OUT);
    EXPECT(max_error(golden_get(c, made), image.v, image.count, NULL) == 0, "unpatchify");
}

static void run_patchify(struct golden_case *c)
{
    const struct h5_array x = golden_read(c, "x"), w = golden_read(c, "weight");
    if (w.dim[2] != 1 || w.dim[3] != 2 || w.dim[4] != 2) {
        test_note_skip(c->group, "the model has patches of 1 x 2 x 2 only");
        return;
    }
    for (int ratio = 1; ratio <= 2; ratio++)
        for (int phase = 0; phase < PHASE_COUNT; phase++) {
            const struct grid g = {(int)x.dim[2], (int)x.dim[3] / 2, (int)x.dim[4] / 2, ratio, 2};
            struct layout *l =
                layout_new(g, (int)x.dim[0], (enum phase)phase, (struct part){1, 0, 1, 0});
            check_patch(c, l);
            layout_free(l);
        }
}

static void run_sinusoid(struct golden_case *c)
{
    const struct h5_array t = golden_read(c, "t"), emb = golden_read(c, "emb");
    const struct tensor out = golden_new(c, c->v.compute, 2, emb.dim);
    c->dev->ops->sinusoid(c->dev, out, t.v);
    golden_check(c, "emb", out, OP);
}

/* ---- attention ------------------------------------------------------------------------------- */
struct ranges {           /* real tokens of [B,N] as compact rows */
    int32_t *first, *len; /* [B] */
    int32_t *row;         /* row[i] = row of the stored tensor */
    int64_t rows;
};

static struct ranges compact(struct golden_case *c, const struct h5_array *a, const double *mask)
{
    struct ranges r = {0};
    r.first = (int32_t *)golden_doubles(c, a->dim[0]);
    r.len = (int32_t *)golden_doubles(c, a->dim[0]);
    r.row = (int32_t *)golden_doubles(c, a->dim[0] * a->dim[1]);
    for (int64_t b = 0; b < a->dim[0]; b++) {
        r.first[b] = (int32_t)r.rows;
        for (int64_t n = b * a->dim[1]; n < (b + 1) * a->dim[1]; n++)
            if (!mask || mask[n] != 0) r.row[r.rows++] = (int32_t)n;
        r.len[b] = (int32_t)r.rows - r.first[b];
    }
    return r;
}

static struct tensor pack(struct golden_case *c, const struct ranges *r, const struct h5_array *a)
{
    const int64_t heads = a->dim[2], hd = a->dim[3], C = heads * hd;
    double *v = golden_doubles(c, r->rows * C);
    for (int64_t i = 0; i < r->rows; i++)
        memcpy(v + i * C, a->v + r->row[i] * C, (size_t)C * sizeof *v);
    return golden_put(c, c->v.compute, 3, DIMS(r->rows, heads, hd), v);
}

static void check_packed(struct golden_case *c, const char *name, const struct ranges *r,
                         struct tensor t)
{
    const int64_t C = t.dim[1] * t.dim[2], n = golden_read(c, name).count;
    double *all = golden_doubles(c, n), *v = golden_get(c, t);
    for (int64_t i = 0; i < r->rows; i++)
        memcpy(all + r->row[i] * C, v + i * C, (size_t)C * sizeof *v);
    golden_check_values(c, name, all, false, ATTN);
}

static void run_attention(struct golden_case *c)
{
    const struct h5_array q = golden_read(c, "q"), k = golden_read(c, "k"), v = golden_read(c, "v");
    const struct h5_array d_o = golden_read(c, "do");
    char masked[16];
    h5_attr_text(c->file, c->group, "masked", masked, sizeof masked);
    const double *mask = golden_has(c, "mask") ? golden_read(c, "mask").v : NULL;
    EXPECT((mask != NULL) == (strcmp(masked, "none") != 0), "mask of %s", masked);
    const struct ranges rq = compact(c, &q, mask);
    const struct ranges rk = compact(c, &k, strcmp(masked, "self") == 0 ? mask : NULL);
    const struct seqs seqs = {(int)q.dim[0], rq.first, rq.len, rk.first, rk.len};
    const struct tensor tq = pack(c, &rq, &q), tk = pack(c, &rk, &k), tv = pack(c, &rk, &v);
    const double scale = 1 / sqrt((double)q.dim[3]);
    struct attn_args a = {.o = golden_new(c, tq.dtype, 3, tq.dim),
                          .q = tq,
                          .k = tk,
                          .v = tv,
                          .lse = golden_new(c, state_of(c), 2, tq.dim),
                          .seqs = &seqs,
                          .scale = scale};
    c->dev->ops->attn_fwd(c->dev, &a);
    struct attn_grad_args g = {.dq = golden_new(c, tq.dtype, 3, tq.dim),
                               .dk = golden_new(c, tk.dtype, 3, tk.dim),
                               .dv = golden_new(c, tv.dtype, 3, tv.dim),
                               .d_o = pack(c, &rq, &d_o),
                               .o = a.o,
                               .lse = a.lse,
                               .q = tq,
                               .k = tk,
                               .v = tv,
                               .seqs = &seqs,
                               .scale = scale};
    c->dev->ops->attn_bwd(c->dev, &g);
    check_packed(c, "o", &rq, a.o);
    check_packed(c, "dq", &rq, g.dq);
    check_packed(c, "dk", &rk, g.dk);
    check_packed(c, "dv", &rk, g.dv);
}

/* ---- rotary embedding ------------------------------------------------------------------------ */
/* The op normalises rows first; weight 1, and the factor of the norm divided out again. file_row:
 * row of the stored tensor of row r of the layout. */
static void check_rope(struct golden_case *c, const char *which, const struct layout *l,
                       const int64_t *file_row)
{
    char x_name[16], y_name[16];
    snprintf(x_name, sizeof x_name, "x_%s", which);
    snprintf(y_name, sizeof y_name, "y_%s", which);
    const enum dtype T = c->v.compute, S = state_of(c);
    const struct h5_array x = golden_read(c, x_name), y = golden_read(c, y_name);
    const int64_t C = x.dim[2] * x.dim[3];
    const int most = l->grid.t > l->grid.h ? l->grid.t : l->grid.h;
    struct rope rope;
    rope_init(&rope, c->dev, (int)x.dim[3], most > l->grid.w ? most : l->grid.w);
    double *in = golden_doubles(c, l->rows * C), *want = golden_doubles(c, l->rows * C);
    for (int64_t r = 0; r < l->rows; r++) {
        memcpy(in + r * C, x.v + file_row[r] * C, (size_t)C * sizeof *in);
        memcpy(want + r * C, y.v + file_row[r] * C, (size_t)C * sizeof *in);
    }
    double *ones = golden_doubles(c, C);
    for (int64_t i = 0; i < C; i++) ones[i] = 1;
    struct norm_rope_args a = {.out = golden_new(c, T, 2, DIMS(l->rows, C)),
                               .x = golden_put(c, T, 2, DIMS(l->rows, C), in),
                               .rstd = golden_new(c, S, 1, DIMS(l->rows)),
                               .w = golden_put(c, S, 1, DIMS(C), ones),
                               .pos = put_pos(c, l),
                               .rope = &rope,
                               .heads = (int)x.dim[2],
                               .eps = EPS};
    c->dev->ops->norm_rope_fwd(c->dev, &a);
    double *got = golden_get(c, a.out);
    for (int64_t r = 0; r < l->rows; r++) {
        double sum = 0;
        for (int64_t i = 0; i < C; i++) sum += in[r * C + i] * in[r * C + i];
        for (int64_t i = 0; i < C; i++) got[r * C + i] *= sqrt(sum / (double)C + EPS);
    }
    golden_compare(&c->v, y_name, got, want, l->rows * C, y.stored_f64, OP);
    rope_free(&rope, c->dev);
}

/* kind 0 plain, 1 token, 2 group: in chunk order by token, and in the padded layout, where padding
 * rows must come out unrotated. */
static void check_rope_layouts(struct golden_case *c, const char *which, int kind, struct grid g,
                               int B)
{
    const enum phase phase = kind == 2 ? PHASE_GROUP : PHASE_TOKEN;
    for (int padded = 0; padded <= (kind > 0); padded++) {
        struct layout *l = padded ? layout_padded(g, B, phase)
                                  : layout_new(g, B, phase, (struct part){1, 0, 1, 0});
        int64_t *row = (int64_t *)golden_doubles(c, l->rows);
        const int64_t n = l->rows / l->num_seqs; /* places of a padded sub-sequence */
        for (int64_t r = 0; r < l->rows; r++) {
            const int16_t *p = l->pos + 3 * r;
            const int64_t q = r / n; /* padded: [b][class], in the file [class][b] */
            row[r] = padded ? (q % l->num_classes * B + q / l->num_classes) * n + r % n
                            : golden_place(kind, g.ratio, g.t, g.h, g.w, B,
                                           (int)(r / (l->rows / B)), p[0], p[1], p[2]);
        }
        check_rope(c, which, l, row);
        layout_free(l);
    }
}

static void run_rope(struct golden_case *c)
{
    struct grid g = {(int)golden_attr(c, "T"), (int)golden_attr(c, "H"), (int)golden_attr(c, "W"),
                     1, 2};
    const int B = (int)golden_attr(c, "B"), P = (int)golden_attr(c, "P");
    check_rope_layouts(c, "full", 0, g, B);
    g.ratio = P;
    check_rope_layouts(c, "full", 0, g, B);
    if (golden_has(c, "x_token")) check_rope_layouts(c, "token", 1, g, B);
    if (golden_has(c, "x_group")) check_rope_layouts(c, "group", 2, g, B);
}

static void run_rope_table(struct golden_case *c)
{
    const char *axes[] = {"angle_t", "angle_h", "angle_w"};
    struct rope rope;
    const struct h5_array first = golden_read(c, axes[0]);
    rope_init(&rope, c->dev, (int)golden_attr(c, "hd"), (int)first.dim[0]);
    for (int axis = 0; axis < 3; axis++) {
        const struct h5_array a = golden_read(c, axes[axis]);
        const int64_t pairs = a.dim[1];
        EXPECT(rope.pairs[axis] == pairs, "%s: %d pairs, file %lld", axes[axis], rope.pairs[axis],
               (long long)pairs);
        if (rope.pairs[axis] != pairs) continue;
        double *angle = golden_doubles(c, a.count), *wave = golden_doubles(c, 2 * a.count);
        for (int64_t i = 0; i < a.count; i++) {
            angle[i] = rope_angle((int)(i / pairs), (int)(i % pairs), (int)pairs);
            wave[i] = cos(a.v[i]);
            wave[a.count + i] = sin(a.v[i]);
        }
        expect_close(axes[axis], angle, a.v, a.count, 1e-15);
        struct variant v = c->v; /* the tables are S */
        v.compute = state_of(c);
        golden_compare(&v, "cos", golden_get(c, rope.cos[axis]), wave, a.count, true, OP);
        golden_compare(&v, "sin", golden_get(c, rope.sin[axis]), wave + a.count, a.count, true, OP);
    }
    rope_free(&rope, c->dev);
}

/* ---- cases ----------------------------------------------------------------------------------- */
#define CASE(name, file, key, f)                         \
    static void name(struct comm *w)                     \
    {                                                    \
        (void)w;                                         \
        golden_each(file, key, GOLDEN_DEVICES, true, f); \
    }
CASE(rows_case, "model_ops", "layernorm_y", run_rows)
CASE(patch_case, "model_ops", "unpatchified", run_patchify)
CASE(sinusoid_case, "model_ops", "emb", run_sinusoid)
CASE(attention_case, "model_attn", "o", run_attention)
CASE(rope_case, "model_rope", "y_full", run_rope)
CASE(table_case, "model_rope", "angle_t", run_rope_table)

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "norms and activations, forward and backward", .run = rows_case},
        {.name = "patch embedding and unpatchify in every row order", .run = patch_case},
        {.name = "sinusoid of the timestep", .run = sinusoid_case},
        {.name = "attention forward and backward over the real tokens", .run = attention_case},
        {.name = "rotary embedding in plain, chunk and padded order", .run = rope_case},
        {.name = "rotary angles and tables", .run = table_case},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
