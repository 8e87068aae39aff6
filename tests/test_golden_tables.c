/* Index tables, noise levels and the optimiser against the golden files: layouts exactly, numbers
 * to the last digits. Groups and dimensions come from the files. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/flow.h"
#include "optim/clip.h"
#include "parallel/comm.h"
#include "parallel/redist.h"
#include "tests/check.h"
#include "tests/golden.h"

/* ---- skiparse -------------------------------------------------------------------------------- */
struct tables {             /* of one phase */
    const char *phase_name; /* "token" */
    enum phase phase;
    struct grid grid, whole; /* as given; grown to Hp x Wp, without padding */
    int64_t K, n;            /* sub-sequences, places in each */
};

static struct h5_array phase_read(struct golden_case *c, const struct tables *t, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "%s_%s", t->phase_name, name);
    return golden_read(c, path);
}

static int64_t index_of(struct grid g, const int16_t *p)
{
    return p[0] < 0 ? -1 : ((int64_t)p[0] * g.h + p[1]) * g.w + p[2];
}

/* Places of the padded layout hold the tokens of the file; reverse and mask say the same. */
static void check_padded(struct golden_case *c, const struct tables *t)
{
    const struct h5_array idx = phase_read(c, t, "idx"), mask = phase_read(c, t, "mask");
    const struct h5_array reverse = phase_read(c, t, "reverse");
    struct layout *l = layout_padded(t->grid, 1, t->phase);
    EXPECT(l->rows == idx.count && l->rows == t->K * t->n && l->num_seqs == t->K, "%lld rows in %d",
           (long long)l->rows, l->num_seqs);
    const int kind = t->phase == PHASE_TOKEN ? 1 : 2;
    for (int64_t r = 0; r < l->rows && r < idx.count; r++) {
        const int16_t *p = l->pos + 3 * r;
        const int64_t at = index_of(t->grid, p);
        EXPECT(at == (int64_t)idx.v[r], "%s place %lld holds token %lld, file %g", t->phase_name,
               (long long)r, (long long)at, idx.v[r]);
        EXPECT((at >= 0) == (mask.v[r] != 0), "mask of %s place %lld", t->phase_name, (long long)r);
        if (at < 0) continue;
        EXPECT((int64_t)reverse.v[at] == r, "%s reverse of %lld: %lld, file %g", t->phase_name,
               (long long)at, (long long)r, reverse.v[at]);
        const int64_t place = golden_place(kind, t->grid.ratio, t->grid.t, t->grid.h, t->grid.w, 1,
                                           0, p[0], p[1], p[2]);
        EXPECT(place == r, "place by formula %lld", (long long)place);
    }
    EXPECT(reverse.count == grid_tokens(t->grid), "%lld tokens", (long long)reverse.count);
    layout_free(l);
}

/* Sub-sequences of a chunk layout, over all ranks of a cut, hold the tokens of the file. */
static void check_chunks(struct golden_case *c, const struct tables *t, int ssp, int sp)
{
    const struct h5_array reverse = phase_read(c, t, "reverse"), mask = phase_read(c, t, "mask");
    double *seen = golden_doubles(c, reverse.count), *len = golden_doubles(c, t->K);
    int64_t rows = 0;
    for (int rank = 0; rank < ssp * sp; rank++) {
        const struct part part = {ssp, rank / sp, sp, rank % sp};
        struct layout *l = layout_new(t->grid, 1, t->phase, part);
        const int G = (int)t->K / ssp;
        EXPECT(l->num_seqs == G, "%d sub-sequences of %d", l->num_seqs, G);
        rows += l->rows;
        for (int q = 0; q < l->num_seqs && q < G; q++) {
            const int cls = part.ssp_rank * G + q;
            len[cls] += l->seq_len[q];
            for (int64_t r = l->seq_first[q]; r < l->seq_first[q] + l->seq_len[q]; r++) {
                const int64_t at = index_of(t->grid, l->pos + 3 * r);
                EXPECT(at >= 0, "padding in a chunk layout");
                if (at < 0) continue;
                seen[at]++;
                EXPECT((int64_t)reverse.v[at] / t->n == cls, "%s: token %lld in sub-sequence %d",
                       t->phase_name, (long long)at, cls);
            }
        }
        layout_free(l);
    }
    EXPECT(rows == reverse.count, "%lld rows for %lld tokens", (long long)rows,
           (long long)reverse.count);
    for (int64_t i = 0; i < reverse.count; i++) EXPECT(seen[i] == 1, "token %lld", (long long)i);
    for (int64_t s = 0; s < t->K; s++) {
        double real = 0;
        for (int64_t j = 0; j < t->n; j++) real += mask.v[s * t->n + j];
        EXPECT(real == len[s], "%s sub-sequence %lld: %g tokens, file %g", t->phase_name,
               (long long)s, len[s], real);
    }
}

static void check_perm(struct golden_case *c, const struct tables *t)
{
    char name[32];
    snprintf(name, sizeof name, "%s_perm", t->phase_name);
    if (!golden_has(c, name)) return; /* small grids only */
    const struct h5_array perm = golden_read(c, name);
    struct layout *l = layout_padded(t->whole, 1, t->phase);
    EXPECT(l->rows == perm.count, "%lld places", (long long)l->rows);
    for (int64_t r = 0; r < l->rows && r < perm.count; r++)
        EXPECT(index_of(t->whole, l->pos + 3 * r) == (int64_t)perm.v[r], "%s place %lld: file %g",
               name, (long long)r, perm.v[r]);
    layout_free(l);
}

/* The move between the two padded layouts is the stored table, and its own inverse. */
static void check_switch(struct golden_case *c, const struct tables *t)
{
    if (!golden_has(c, "token_to_group")) return; /* small grids only */
    const struct h5_array to = golden_read(c, "token_to_group"),
                          back = golden_read(c, "group_to_token");
    struct layout *token = layout_padded(t->whole, 1, PHASE_TOKEN);
    struct layout *group = layout_padded(t->whole, 1, PHASE_GROUP);
    struct comm *self = comm_self(c->dev);
    struct redist *move = redist_new(c->dev, self, token, group);
    double *place = golden_doubles(c, to.count);
    for (int64_t k = 0; k < to.count; k++) place[k] = (double)k;
    const struct tensor src = golden_put(c, DT_F64, 2, DIMS(to.count, 1), place);
    const struct tensor dst = golden_new(c, DT_F64, 2, src.dim),
                        again = golden_new(c, DT_F64, 2, src.dim);
    redist_forward(move, dst, src);
    redist_backward(move, again, dst);
    const double *forth = move->moves ? golden_get(c, dst) : place;
    EXPECT(move->moves || t->grid.ratio == 1, "the two orders differ");
    for (int64_t k = 0; k < to.count; k++) {
        EXPECT(forth[k] == to.v[k], "group place %lld: %g, file %g", (long long)k, forth[k],
               to.v[k]);
        EXPECT((int64_t)to.v[(int64_t)to.v[k]] == k, "involution at %lld", (long long)k);
        EXPECT(to.v[k] == back.v[k], "group_to_token at %lld", (long long)k);
    }
    if (move->moves) expect_close("there and back", golden_get(c, again), place, to.count, 0);
    redist_free(move);
    comm_free(self);
    layout_free(token);
    layout_free(group);
}

static void run_skiparse(struct golden_case *c)
{
    const int P = (int)golden_attr(c, "P");
    const struct grid g = {(int)golden_attr(c, "T"), (int)golden_attr(c, "H"),
                           (int)golden_attr(c, "W"), P, 2};
    struct grid whole = g;
    whole.h = (int)golden_attr(c, "Hp");
    whole.w = (int)golden_attr(c, "Wp");
    for (int phase = 0; phase < PHASE_COUNT; phase++) {
        const struct tables t = {phase == PHASE_TOKEN ? "token" : "group",
                                 (enum phase)phase,
                                 g,
                                 whole,
                                 (int64_t)golden_attr(c, "S"),
                                 (int64_t)golden_attr(c, "n")};
        EXPECT(grid_classes(g) == t.K, "%d classes", grid_classes(g));
        check_padded(c, &t);
        check_perm(c, &t);
        check_chunks(c, &t, 1, 1);
        check_chunks(c, &t, P, 1);
        check_chunks(c, &t, (int)t.K, 1);
        check_chunks(c, &t, 1, 3);
        if (phase == PHASE_GROUP) check_switch(c, &t);
    }
}

/* ---- noise levels ---------------------------------------------------------------------------- */
static void run_sampling_sigmas(struct golden_case *c)
{
    const int steps = (int)golden_attr(c, "steps");
    double *s = golden_doubles(c, steps + 1);
    flow_sampling_sigmas(s, steps, golden_attr(c, "shift"));
    const struct h5_array sigma = golden_read(c, "sigma"), f32 = golden_read(c, "sigma_f32");
    const struct h5_array t = golden_read(c, "timestep_f32");
    EXPECT(sigma.count == steps + 1, "%lld levels", (long long)sigma.count);
    expect_close("sigma", s, sigma.v, steps + 1, 1e-15);
    expect_close("sigma_f32", s, f32.v, steps + 1, 3e-7);
    for (int i = 0; i <= steps; i++)
        EXPECT(fabs(1000 * s[i] - t.v[i]) <= 2e-4, "timestep %d: %.9g, file %.9g", i, 1000 * s[i],
               t.v[i]);
    EXPECT(s[0] == 1 && s[steps] == 0, "from %g to %g", s[0], s[steps]);
}

/* Published settings: 256 tokens -> 0.5, 4096 -> 1.15. */
static struct flow_config published(void)
{
    return (struct flow_config){.dynamic_shift = true,
                                .logit_normal = true,
                                .base_shift = 0.5,
                                .max_shift = 1.15,
                                .logit_std = 1,
                                .base_seq = 256,
                                .max_seq = 4096};
}

static void run_training_sigmas(struct golden_case *c)
{
    const struct h5_array hw = golden_read(c, "latent_hw"), shift = golden_read(c, "shift");
    const struct h5_array u = golden_read(c, "u"), z = golden_read(c, "z");
    const struct h5_array uniform = golden_read(c, "sigma_uniform");
    const struct h5_array normal = golden_read(c, "sigma_logitnormal");
    const int64_t K = hw.dim[0], n = u.count;
    double *got_shift = golden_doubles(c, K), *got_u = golden_doubles(c, K * n);
    double *got_z = golden_doubles(c, K * n);
    for (int64_t k = 0; k < K; k++) {
        struct flow_config f = published();
        got_shift[k] = flow_shift_for(&f, (int64_t)hw.v[2 * k], (int64_t)hw.v[2 * k + 1]);
        f.logit_std = 0; /* the draw itself is the mean: any z goes through the library */
        for (int64_t i = 0; i < n; i++) {
            f.logit_mean = z.v[i];
            got_u[k * n + i] = flow_shift(u.v[i], got_shift[k]);
            got_z[k * n + i] =
                flow_shift(flow_base(&f, (struct rng_key){.use = RNG_TEST}), got_shift[k]);
        }
    }
    expect_close("shift", got_shift, shift.v, K, 4e-15);
    expect_close("sigma_uniform", got_u, uniform.v, K * n, 4e-15);
    expect_close("sigma_logitnormal", got_z, normal.v, K * n, 4e-15);
    const struct rng_key key = {.seed = 7, .use = RNG_TEST};
    const struct flow_config f = published();
    const double draw = rng_normal_at(rng_open(key), 0);
    EXPECT(fabs(flow_base(&f, key) - 1 / (1 + exp(-draw))) < 1e-15, "a draw of its own");
}

/* ---- optimiser ------------------------------------------------------------------------------- */
static const struct bound VECTOR = {1e-13, 2e-6, 0};

static void adamw_run(struct golden_case *c, const char *ema_name, double decay)
{
    const enum dtype T = c->v.compute, S = dtype_state(T);
    const struct h5_array p0 = golden_read(c, "p0"), grad = golden_read(c, "grad");
    const int64_t n = p0.count, steps = grad.dim[0];
    struct update_shard x = {.p = golden_put(c, S, 1, DIMS(n), p0.v),
                             .m = golden_new(c, S, 1, DIMS(n)),
                             .v = golden_new(c, S, 1, DIMS(n)),
                             .ema = golden_put(c, S, 1, DIMS(n), p0.v),
                             .weight_decay = golden_attr(c, "weight_decay")};
    struct update_args a = {.shard = &x,
                            .num_shards = 1,
                            .lr = golden_attr(c, "lr"),
                            .beta1 = golden_attr(c, "beta1"),
                            .beta2 = golden_attr(c, "beta2"),
                            .eps = golden_attr(c, "eps"),
                            .grad_scale = 1,
                            .ema_keep = decay};
    if (T != S) x.wire = golden_new(c, T, 1, DIMS(n));
    double *trace[4]; /* p, m, v, ema of every step */
    for (int k = 0; k < 4; k++) trace[k] = golden_doubles(c, steps * n);
    for (int64_t i = 0; i < steps; i++) {
        x.g = golden_put(c, S, 1, DIMS(n), grad.v + i * n);
        a.bias1 = 1 - pow(a.beta1, (double)i + 1);
        a.bias2 = 1 - pow(a.beta2, (double)i + 1);
        c->dev->ops->update(c->dev, &a);
        const struct tensor now[4] = {x.p, x.m, x.v, x.ema};
        for (int k = 0; k < 4; k++)
            memcpy(trace[k] + i * n, golden_get(c, now[k]), (size_t)n * sizeof **trace);
    }
    golden_check_values(c, "p", trace[0], true, VECTOR);
    golden_check_values(c, "m", trace[1], true, VECTOR);
    golden_check_values(c, "v", trace[2], true, VECTOR);
    golden_check_values(c, ema_name, trace[3], true, VECTOR);
    if (x.wire.data)
        expect_close("wire copy", golden_get(c, x.wire), trace[0] + (steps - 1) * n, n, 4e-3);
}

struct ema_visit {
    struct golden_case *c;
    int count;
};

static void each_ema(void *arg, const char *name, bool is_group)
{
    struct ema_visit *e = arg;
    if (is_group || strncmp(name, "ema_", 4) != 0) return;
    e->count++;
    adamw_run(e->c, name, strtod(name + 4, NULL));
}

static void run_adamw(struct golden_case *c)
{
    struct ema_visit e = {c, 0};
    h5_each(c->file, c->group, each_ema, &e);
    EXPECT(e.count > 0, "no EMA in %s", c->group);
}

static void run_clip(struct golden_case *c)
{
    const enum dtype S = dtype_state(c->v.compute);
    struct tensor g[16], sum = golden_new(c, DT_F64, 1, DIMS(1));
    char name[32];
    int n = 0;
    for (; n < 16 && (snprintf(name, sizeof name, "g%d", n), golden_has(c, name)); n++) {
        const struct h5_array a = golden_read(c, name);
        g[n] = golden_put(c, S, 1, DIMS(a.count), a.v);
    }
    c->dev->ops->sumsq(c->dev, sum, g, n);
    const double norm = sqrt(*golden_get(c, sum));
    struct clip clip;
    clip_init(&clip, golden_attr(c, "max_norm"));
    const struct clip_result r = clip_step(&clip, CLIP_RULE_FIXED, norm);
    golden_check_values(c, "norm", &norm, true, VECTOR);
    golden_check_values(c, "coef", &r.coef, true, VECTOR);
    double after = 0;
    for (int i = 0; i < n; i++) {
        c->dev->ops->scale(c->dev, g[i], r.coef);
        snprintf(name, sizeof name, "g%d_clipped", i);
        const double *v = golden_get(c, g[i]);
        golden_check_values(c, name, v, true, VECTOR);
        for (int64_t k = 0; k < tensor_count(g[i]); k++) after += v[k] * v[k];
    }
    EXPECT(fabs(sqrt(after) - r.after) <= 1e-6 * r.after, "norm after: %g, said %g", sqrt(after),
           r.after);
}

static void run_adaptive(struct golden_case *c)
{
    static const char *const column[] = {"norm seen",  "limit used",     "coefficient",
                                         "norm after", "moving average", "moving variance"};
    const struct h5_array norm = golden_read(c, "norm"), trace = golden_read(c, "trace");
    const int64_t n = norm.count;
    EXPECT(trace.count == 6 * n, "%lld columns", (long long)(trace.count / n));
    double *got = golden_doubles(c, 6 * n), *want = golden_doubles(c, 6 * n);
    struct clip clip;
    clip_init(&clip, golden_attr(c, "init_max_norm"));
    clip.decay = golden_attr(c, "decay");
    for (int64_t i = 0; i < n; i++) {
        const struct clip_result r = clip_step(&clip, CLIP_RULE_ADAPTIVE, norm.v[i]);
        /* what the limit was applied to: the norm before it, from the coefficient that is applied
         */
        const double seen = r.coef < 1 ? r.after / r.coef : norm.v[i];
        const double row[6] = {seen, r.limit, r.coef, r.after, clip.mean, clip.var};
        for (int k = 0; k < 6; k++) {
            got[k * n + i] = row[k];
            want[k * n + i] = trace.v[6 * i + k];
        }
    }
    for (int k = 0; k < 6; k++) expect_close(column[k], got + k * n, want + k * n, n, 1e-13);
}

/* ---- cases ----------------------------------------------------------------------------------- */
#define CASE(name, file, key, on, f)                                               \
    static void name(struct comm *w)                                               \
    {                                                                              \
        (void)w;                                                                   \
        golden_each(file, key, on, (on) != GOLDEN_HOST || (f) == run_skiparse, f); \
    }
CASE(skiparse_case, "model_skiparse", "token_idx", GOLDEN_HOST, run_skiparse)
CASE(sampling_case, "model_schedule", "timestep_f32", GOLDEN_HOST, run_sampling_sigmas)
CASE(training_case, "model_schedule", "latent_hw", GOLDEN_HOST, run_training_sigmas)
CASE(adamw_case, "model_optim", "p0", GOLDEN_DEVICES, run_adamw)
CASE(clip_case, "model_optim", "g0", GOLDEN_DEVICES, run_clip)
CASE(adaptive_case, "model_optim", "trace", GOLDEN_HOST, run_adaptive)

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "index tables of token and group order, exactly", .run = skiparse_case},
        {.name = "noise levels of the sampler", .run = sampling_case},
        {.name = "noise levels of training with dynamic shift", .run = training_case},
        {.name = "AdamW and EMA step by step", .run = adamw_case},
        {.name = "clipping at a fixed norm", .run = clip_case},
        {.name = "adaptive clipping, every column of the trace", .run = adaptive_case},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
