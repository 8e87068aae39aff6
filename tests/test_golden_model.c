/* Whole models against the golden files: velocity, loss, input gradients, every parameter's
 * gradient, the stored activations; Euler sampling with guidance. Names, groups and dimensions
 * come from the files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/flow.h"
#include "tests/check.h"
#include "tests/golden.h"

struct model_case {
    long long file;
    const char *name; /* of the file */
    char group[64];   /* "/padded" */
    struct variant v;
    struct fixture *fx;
    struct grad_sum grads;
};

static void put_param(void *arg, const char *name, bool is_group)
{
    (void)is_group;
    struct model_case *m = arg;
    char path[256];
    snprintf(path, sizeof path, "/params/%s", name);
    struct h5_array a = h5_read(m->file, path);
    CHECK(fsdp_find(m->fx->fsdp, name), "%s has parameter %s, the model does not", m->name, name);
    fsdp_put(m->fx->fsdp, STATE_MASTER, name, a.v);
    h5_free(&a);
}

static void check_grad(void *arg, const char *name, bool is_group)
{
    (void)is_group;
    struct model_case *m = arg;
    char path[256];
    snprintf(path, sizeof path, "%s/grads/%s", m->group, name);
    struct h5_array a = h5_read(m->file, path);
    double *g = calloc((size_t)a.count, sizeof *g);
    fsdp_get(m->fx->fsdp, STATE_GRAD, name, g);
    golden_grad(&m->v, &m->grads, name, g, a.v, a.count, a.stored_f64);
    free(g);
    h5_free(&a);
}

static struct h5_array in_group(struct model_case *m, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", m->group, name);
    return h5_read(m->file, path);
}

/* rows of a tensor in stage order against a stored [.., C] array in the reference layout */
static void check_rows(struct model_case *m, const char *name, struct tensor rows,
                       const struct stage *st, int kind)
{
    char path[256];
    snprintf(path, sizeof path, "%s/intermediate/%s", m->group, name);
    if (!h5_has(m->file, path)) return;
    struct h5_array a = h5_read(m->file, path);
    const struct layout *l = st->layout;
    const int64_t C = rows.dim[1], per = l->rows / l->batch;
    double *got = calloc((size_t)(l->rows * C), sizeof *got),
           *want = calloc((size_t)(l->rows * C), sizeof *want);
    dev_get_f64(m->fx->dev, got, rows);
    for (int64_t r = 0; r < l->rows; r++) {
        const int16_t *p = l->pos + 3 * r;
        if (p[0] < 0) {
            memset(got + r * C, 0, (size_t)C * sizeof *got);
            continue;
        }
        const int64_t at =
            golden_place(kind, (int)m->fx->dit->config.sparse_ratio, l->grid.t, l->grid.h,
                         l->grid.w, l->batch, (int)(r / per), p[0], p[1], p[2]);
        memcpy(want + r * C, a.v + at * C, (size_t)C * sizeof *want);
    }
    golden_compare(&m->v, name, got, want, l->rows * C, a.stored_f64,
                   (struct bound){1e-12, 5e-6, 2e-2});
    free(got);
    free(want);
    h5_free(&a);
}

static void check_flat(struct model_case *m, const char *name, struct tensor t)
{
    char path[256];
    snprintf(path, sizeof path, "%s/intermediate/%s", m->group, name);
    if (!h5_has(m->file, path)) return;
    struct h5_array a = h5_read(m->file, path);
    double *got = calloc((size_t)a.count, sizeof *got);
    EXPECT(tensor_count(t) == a.count, "%s has %lld values", name, (long long)tensor_count(t));
    dev_get_f64(m->fx->dev, got, t);
    golden_compare(&m->v, name, got, a.v, a.count, a.stored_f64, (struct bound){1e-12, 5e-6, 2e-2});
    free(got);
    h5_free(&a);
}

static void check_intermediates(struct model_case *m)
{
    const struct shape_plan *p = m->fx->plan;
    check_flat(m, "text_emb", fixture_run.embed.ctx);
    check_flat(m, "time_emb", fixture_run.embed.e);
    check_flat(m, "time_proj", fixture_run.embed.e0);
    check_rows(m, "tokens", fixture_run.embed.x, dit_first_stage(p), 0);
    for (int i = 0; i < p->num_layers; i++) {
        char name[64];
        snprintf(name, sizeof name, "block_out.%d", i);
        /* layout of the file: a sparse block that does not give back the full layout keeps its own
         */
        const bool sparse = p->kind[i] != BLOCK_FULL;
        const bool back = sparse && (i + 1 == p->num_layers || p->kind[i + 1] == BLOCK_FULL);
        const int kind = !sparse || back ? 0 : p->kind[i] == BLOCK_TOKEN ? 1 : 2;
        check_rows(m, name, fixture_run.x[i + 1], &p->stage[p->at[i + 1]], kind);
    }
}

static void compare_schedule(struct model_case *m)
{
    const struct shape_plan *p = m->fx->plan;
    struct h5_array kind = h5_read(m->file, "/block_kind");
    for (int i = 0; i < p->num_layers; i++)
        EXPECT((int)kind.v[i] == (int)p->kind[i], "block %d: kind %d, file %g", i, p->kind[i],
               kind.v[i]);
    h5_free(&kind);
}

static void open_model(struct model_case *m, struct fixture *fx, int B, int T, int H, int W)
{
    struct fixture_opts o = {.device = m->v.device,
                             .compute = m->v.compute,
                             .model = golden_model(m->file),
                             .batch = B,
                             .t = T,
                             .h = H,
                             .w = W,
                             .fsdp = {.optimizer = true}};
    o.model.pad_mode = m->v.pad_mode;
    struct comm *world = comm_self(NULL);
    fixture_open(fx, world, &o);
    m->fx = fx;
    h5_each(m->file, "/params", put_param, m);
}

static void close_model(struct model_case *m)
{
    struct comm *world = m->fx->mesh.axis[AXIS_WORLD];
    fixture_close(m->fx);
    comm_free(world);
}

static void run_model_group(struct model_case *m)
{
    struct fixture fx;
    open_model(m, &fx, (int)h5_attr(m->file, m->group, "B"), (int)h5_attr(m->file, m->group, "T"),
               (int)h5_attr(m->file, m->group, "H"), (int)h5_attr(m->file, m->group, "W"));
    compare_schedule(m);
    struct h5_array xt = in_group(m, "xt"), x0 = in_group(m, "x0"), noise = in_group(m, "noise");
    struct h5_array text = in_group(m, "text"), t = in_group(m, "t"), v = in_group(m, "v");
    struct h5_array loss = in_group(m, "loss"), dxt = in_group(m, "dxt"),
                    dtext = in_group(m, "dtext");
    for (int64_t i = 0; i < x0.count; i++) noise.v[i] -= x0.v[i];
    double *got_v = calloc((size_t)v.count, sizeof *got_v),
           *got_x = calloc((size_t)dxt.count, sizeof *got_x);
    double *got_t = calloc((size_t)dtext.count, sizeof *got_t);
    const struct step_io io = {.xt = xt.v,
                               .target = noise.v,
                               .text = text.v,
                               .t = t.v,
                               .v = got_v,
                               .dxt = got_x,
                               .dtext = got_t,
                               .share = (double)v.count,
                               .backward = true};
    const double l = fixture_step(&fx, &io);
    golden_compare(&m->v, "v", got_v, v.v, v.count, true, (struct bound){1e-12, 5e-6, 2e-2});
    golden_compare(&m->v, "loss", &l, loss.v, 1, true, (struct bound){1e-12, 2e-6, 3e-3});
    golden_compare(&m->v, "dxt", got_x, dxt.v, dxt.count, true, (struct bound){1e-12, 1e-5, 2e-2});
    golden_compare(&m->v, "dtext", got_t, dtext.v, dtext.count, true,
                   (struct bound){1e-12, 1e-5, 2e-2});
    char path[128];
    snprintf(path, sizeof path, "%s/intermediate", m->group);
    if (h5_has(m->file, path)) check_intermediates(m);
    snprintf(path, sizeof path, "%s/grads", m->group);
    if (h5_has(m->file, path)) {
        h5_each(m->file, path, check_grad, m);
        golden_grad_end(&m->v, &m->grads);
    }
    struct h5_array *all[] = {&xt, &x0, &noise, &text, &t, &v, &loss, &dxt, &dtext};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) h5_free(all[i]);
    free(got_v);
    free(got_x);
    free(got_t);
    close_model(m);
}

/* Euler steps with classifier-free guidance on the latent, in the state dtype's precision. */
static void run_sample_group(struct model_case *m)
{
    struct fixture fx;
    struct h5_array x = in_group(m, "x"), text = in_group(m, "text"), neg = in_group(m, "text_neg");
    struct h5_array vc = in_group(m, "v_cond"), vu = in_group(m, "v_uncond");
    struct h5_array ts = in_group(m, "timestep_f32"), sg = in_group(m, "sigma_f32");
    const int steps = (int)h5_attr(m->file, m->group, "steps");
    const double guidance = h5_attr(m->file, m->group, "guidance");
    open_model(m, &fx, (int)x.dim[1], (int)x.dim[3], (int)x.dim[4] / 2, (int)x.dim[5] / 2);
    const int64_t n = x.count / (steps + 1);
    double *state = calloc((size_t)n, sizeof *state), *zero = calloc((size_t)n, sizeof *zero);
    double *c = calloc((size_t)n, sizeof *c), *u = calloc((size_t)n, sizeof *u);
    memcpy(state, x.v, (size_t)n * sizeof *state);
    double *exact = calloc((size_t)steps + 1, sizeof *exact);
    flow_sampling_sigmas(exact, steps, h5_attr(m->file, m->group, "shift"));
    expect_close("sigma", exact, sg.v, steps + 1, 3e-7);
    const struct bound step = {1e-12, 1e-5, 2e-2}; /* the last one has the errors of all */
    for (int i = 0; i < steps; i++) {
        struct step_io io = {
            .xt = state, .target = zero, .text = text.v, .t = &ts.v[i], .v = c, .share = 1};
        fixture_step(&fx, &io);
        io.text = neg.v;
        io.v = u;
        fixture_step(&fx, &io);
        golden_compare(&m->v, "v_cond", c, vc.v + i * n, n, true, step);
        golden_compare(&m->v, "v_uncond", u, vu.v + i * n, n, true, step);
        /* the op works on rows; here its arithmetic on one latent in both orders is enough */
        struct tensor rows = arena_new(&fx.keep, dtype_state(m->v.compute), 2,
                                       DIMS(dit_first_stage(fx.plan)->layout->rows, x.dim[2] * 4));
        struct tensor rc = arena_like(&fx.keep, rows), ru = arena_like(&fx.keep, rows);
        struct tensor lx = arena_new(&fx.keep, rows.dtype, 5,
                                     DIMS(x.dim[1], x.dim[2], x.dim[3], x.dim[4], x.dim[5]));
        const struct tensor pos = dit_first_stage(fx.plan)->pos;
        dev_put_f64(fx.dev, lx, state);
        fx.dev->ops->patch_rows(fx.dev, rows, lx, pos, PATCH_IN);
        dev_put_f64(fx.dev, lx, c);
        fx.dev->ops->patch_rows(fx.dev, rc, lx, pos, PATCH_OUT);
        dev_put_f64(fx.dev, lx, u);
        fx.dev->ops->patch_rows(fx.dev, ru, lx, pos, PATCH_OUT);
        fx.dev->ops->sample_step(fx.dev, rows, rc, ru, guidance, sg.v[i + 1] - sg.v[i]);
        fx.dev->ops->unpatch_rows(fx.dev, lx, rows, pos, PATCH_IN);
        dev_get_f64(fx.dev, state, lx);
        golden_compare(&m->v, "x", state, x.v + (i + 1) * n, n, true, step);
    }
    free(exact);
    free(state);
    free(zero);
    free(c);
    free(u);
    struct h5_array *all[] = {&x, &text, &neg, &vc, &vu, &ts, &sg};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) h5_free(all[i]);
    close_model(m);
}

static const char *wanted; /* "v" for model groups, "v_cond" for sampling groups */
static void (*runner)(struct model_case *);
static const struct variant *now;
static int found;

static void each_group(void *arg, const char *name, bool is_group)
{
    struct model_case *m = arg;
    char path[128];
    snprintf(path, sizeof path, "/%s/%s", name, wanted);
    if (!is_group || !h5_has(m->file, path)) return;
    snprintf(m->group, sizeof m->group, "/%s", name);
    m->v = *now;
    found++;
    char label[256];
    golden_label(label, sizeof label, now, m->name, name);
    printf("    %s\n", label);
    runner(m);
}

static void each_file(void *arg, long long file, const char *name)
{
    (void)arg;
    if (!h5_has(file, "/params") || !h5_has_attr(file, "/", "layers")) return;
    struct model_case m = {.file = file, .name = name};
    h5_each(file, "/", each_group, &m);
}

static void run_variant(int k, const char *dataset, void (*f)(struct model_case *))
{
    now = golden_variant(k);
    if (!dev_supports(now->device, now->compute)) {
        test_skip("no device %s here", now->device);
        return;
    }
    wanted = dataset;
    runner = f;
    found = 0;
    golden_files("model_", each_file, NULL);
    if (!found) test_skip("no golden file with %s in %s", dataset, golden_dir());
}

#define VARIANT(k)                                  \
    static void models_##k(struct comm *w)          \
    {                                               \
        (void)w;                                    \
        run_variant(k, "v", run_model_group);       \
    }                                               \
    static void samples_##k(struct comm *w)         \
    {                                               \
        (void)w;                                    \
        run_variant(k, "v_cond", run_sample_group); \
    }
VARIANT(0)
VARIANT(1)
VARIANT(2)
VARIANT(3)
VARIANT(4)
VARIANT(5)
VARIANT(6)
VARIANT(7)

static const struct {
    void (*models)(struct comm *w), (*samples)(struct comm *w);
    unsigned flags; /* of the models: the padded ref, and ref in f32, take long */
} runs[] = {{models_0, samples_0, 0},         {models_1, samples_1, TEST_SLOW},
            {models_2, samples_2, TEST_SLOW}, {models_3, samples_3, 0},
            {models_4, samples_4, 0},         {models_5, samples_5, 0},
            {models_6, samples_6, 0},         {models_7, samples_7, 0}};
_Static_assert(sizeof runs / sizeof *runs == GOLDEN_VARIANTS, "a variant is never run");

int main(int argc, char **argv)
{
    struct test tests[2 * GOLDEN_VARIANTS];
    char name[2 * GOLDEN_VARIANTS][96];
    int n = 0;
    for (int k = 0; k < GOLDEN_VARIANTS; k++) {
        const struct variant *v = golden_variant(k);
        if (!v) continue;
        const char *padded = v->pad_mode == PAD_REF ? ", padded layout" : "";
        snprintf(name[n], sizeof name[n], "models: velocity, loss and all gradients (%s %s%s)",
                 v->device, dtype_name(v->compute), padded);
        const unsigned slow = golden_only ? TEST_SLOW : 0; /* kernels as host code */
        tests[n] =
            (struct test){.name = name[n], .run = runs[k].models, .flags = runs[k].flags | slow};
        n++;
        snprintf(name[n], sizeof name[n], "sampling with guidance (%s %s%s)", v->device,
                 dtype_name(v->compute), padded);
        tests[n] = (struct test){.name = name[n], .run = runs[k].samples};
        n++;
    }
    return test_main(argc, argv, tests, n);
}
