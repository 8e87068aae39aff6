/* LoRA on the whole model: every adapter gradient against finite differences in f64, the gate,
 * recompute policies, a frozen base that costs nothing, AdamW and EMA. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "optim/schedule.h"
#include "tests/check.h"
#include "tests/lora_case.h"

static const char *const everything[] = {"*", NULL};

/* ---- gradients -------------------------------------------------------------------------------*/
static void check_gradients(const char *name, struct fixture_opts o, const uint8_t *gate)
{
    struct fixture f;
    struct comm *world = comm_self(NULL);
    lora_open_filled(&f, world, &o);
    f.dev->poison = false; /* thousands of passes */
    f.ctx.gate = gate;
    f.ctx.drop = lora_masks;
    struct problem p = problem_new(&o.model, 0, o.batch, o.t, o.h, o.w);
    double *dxt = calloc((size_t)p.n, sizeof *dxt),
           *dtext = calloc((size_t)p.text_n, sizeof *dtext);
    struct step_io io = problem_io(&p, (double)p.out_n);
    io.dxt = dxt;
    io.dtext = dtext;
    io.backward = true;
    fixture_step(&f, &io);
    struct problem_fd d = {.f = &f, .p = &p, .adapters = true};
    const struct grad_case c = {
        .name = name, .loss = problem_fd_loss, .arg = &d, .step = 1e-3, .tol = 1e-6};
    double worst = problem_fd_worst(&c, &d, f.lora->param, f.lora->num_params, 6);
    worst = fmax(worst, grad_worst(&c, "xt", p.xt, dxt, p.n, 6, NULL));
    worst = fmax(worst, grad_worst(&c, "text", p.text, dtext, p.text_n, 6, NULL));
    printf("    %s: %d tensors, worst error %.2g\n", name, f.lora->num_params + 2, worst);
    free(dxt);
    free(dtext);
    problem_free(&p);
    fixture_close(&f);
    comm_free(world);
}

static void test_differences(struct comm *world)
{
    (void)world;
    const struct model_config m = lora_small_model();
    struct model_config full = m;
    full.skiparse_model_type = SKIPARSE_FULL;
    const uint8_t mixed[] = {0, 1}, spread[] = {1, 0, 1};
    const struct lora_config all = lora_make_config(3, 6, everything),
                             official = lora_make_config(2, 4, lora_official_targets);
    const char *const some[] = {"blocks.0.self_attn.[qv]", "blocks.1.cross_attn.v", "ffn.2", NULL};
    const struct lora_config part = lora_make_config(1, 1, some);
    check_gradients("every linear, sparse", lora_options(&m, &all), NULL);
    check_gradients("every linear, sparse, one of two samples off", lora_options(&m, &all), mixed);
    struct fixture_opts o = lora_options(&full, &official);
    o.batch = 3;
    check_gradients("official targets, full, one of three off", o, spread);
    check_gradients("q and v, v, second ffn; one of two off", lora_options(&m, &part), mixed);
    const struct lora_config thin = lora_thinned(all, 0.4), thin_part = lora_thinned(part, 0.25);
    check_gradients("every linear, dropout", lora_options(&m, &thin), NULL);
    check_gradients("q and v, v, second ffn; dropout, one of two off", lora_options(&m, &thin_part),
                    mixed);
}

/* Each policy, gated: the same bits; and the base has no gradient to speak of. */
static void check_policies(struct comm *world, double dropout)
{
    struct model_config m = fixture_model();
    m.num_full_blocks = 2;
    const struct lora_config all = lora_thinned(lora_make_config(3, 6, everything), dropout);
    const uint8_t gate[] = {1, 0};
    double first_loss = 0, *first = NULL;
    int64_t n;
    const struct cfg_ints list = {2, {0, 2}};
    for (int policy = RECOMPUTE_ALL; policy <= RECOMPUTE_NONE + 1; policy++) {
        struct fixture_opts o = lora_options(&m, &all);
        o.recompute = (enum recompute)(policy > RECOMPUTE_NONE ? RECOMPUTE_NONE : policy);
        o.recompute_blocks = policy > RECOMPUTE_NONE ? &list : NULL;
        struct fixture f;
        lora_open_filled(&f, world, &o);
        f.ctx.gate = gate;
        f.ctx.drop = lora_masks;
        struct problem p = problem_new(&m, 0, o.batch, o.t, o.h, o.w);
        struct step_io io = problem_io(&p, 1000);
        io.backward = true;
        const double loss = fixture_step(&f, &io);
        double *g = problem_adapter_grads(&f, &n);
        if (!first) {
            first = g;
            first_loss = loss;
        } else {
            EXPECT(loss == first_loss && memcmp(g, first, (size_t)n * sizeof *g) == 0,
                   "policy %d: loss %.17g against %.17g", policy, loss, first_loss);
            free(g);
        }
        problem_free(&p);
        fixture_close(&f);
    }
    free(first);
}

static void test_policies(struct comm *world)
{
    check_policies(world, 0);
    check_policies(world, 0.4);
}

/* ---- gate ------------------------------------------------------------------------------------*/
static double *outputs(struct comm *world, struct fixture_opts o, const uint8_t *gate, int64_t *n)
{
    struct fixture f;
    lora_open_filled(&f, world, &o);
    f.ctx.gate = gate;
    struct problem p = problem_new(&o.model, 0, o.batch, o.t, o.h, o.w);
    double *v = calloc((size_t)p.out_n, sizeof *v);
    struct step_io io = problem_io(&p, 1);
    io.v = v;
    fixture_step(&f, &io);
    *n = p.out_n;
    problem_free(&p);
    fixture_close(&f);
    return v;
}

static void gate_on(struct comm *world, const char *device, enum dtype type)
{
    if (!dev_supports(device, type)) return;
    const struct model_config m = lora_small_model();
    const struct lora_config all = lora_make_config(4, 8, everything);
    const uint8_t gate[] = {1, 0, 1}, off[] = {0, 0, 0};
    struct fixture_opts o = lora_options(&m, &all);
    o.device = device;
    o.compute = type;
    o.batch = 3;
    int64_t n;
    double *mixed = outputs(world, o, gate, &n), *none = outputs(world, o, off, &n),
           *on = outputs(world, o, NULL, &n);
    o.lora = NULL;
    double *base = outputs(world, o, NULL, &n);
    const int64_t per = n / 3;
    const size_t bytes = (size_t)per * sizeof *base;
    EXPECT(memcmp(none, base, 3 * bytes) == 0, "%s %s: all off differs from the base", device,
           dtype_name(type));
    EXPECT(memcmp(mixed + per, base + per, bytes) == 0, "%s %s: a row that is off differs", device,
           dtype_name(type));
    for (int b = 0; b < 3; b += 2) {
        EXPECT(memcmp(mixed + b * per, base + b * per, bytes), "%s: sample %d is as the base",
               device, b);
        EXPECT(max_error(mixed + b * per, on + b * per, per, NULL) < (type == DT_BF16 ? 0.1 : 1e-5),
               "%s: sample %d differs from a batch that is on", device, b);
    }
    free(mixed);
    free(none);
    free(on);
    free(base);
}

static void test_gate(struct comm *world)
{
    gate_on(world, "ref", DT_F64);
    gate_on(world, "ref", DT_F32);
    gate_on(world, "cpu", DT_F32);
    gate_on(world, "cpu", DT_BF16);
}

/* ---- frozen base -----------------------------------------------------------------------------*/
static void test_frozen(struct comm *world)
{
    const struct model_config m = lora_small_model();
    const struct lora_config all = lora_make_config(4, 8, lora_official_targets);
    struct fixture_opts o = lora_options(&m, &all);
    o.device = "cpu";
    o.compute = DT_BF16;
    if (!dev_supports(o.device, o.compute)) {
        test_skip("no cpu device");
        return;
    }
    struct fixture f;
    lora_open_filled(&f, world, &o);
    int n;
    const struct shard *s = fsdp_shards(f.fsdp, &n);
    int64_t bytes = 0, elements = 0;
    for (int i = 0; i < n; i++) {
        EXPECT(s[i].frozen && !s[i].grad.data && !s[i].m.data && !s[i].v.data && !s[i].ema.data &&
                   s[i].master.data == s[i].wire.data,
               "shard %d has more than its wire copy", i);
        EXPECT(s[i].wire.dtype == (s[i].full_precision ? DT_F32 : DT_BF16), "shard %d", i);
        bytes += (int64_t)tensor_bytes(s[i].wire);
        elements += tensor_count(s[i].wire);
    }
    EXPECT(bytes < 3 * elements, "%lld bytes for %lld parameters", (long long)bytes,
           (long long)elements);
    int64_t count;
    struct problem p = problem_new(&m, world->rank * 2, o.batch, o.t, o.h, o.w);
    struct step_io io = problem_io(&p, 1000);
    io.backward = true;
    for (int a = 0; a < AXIS_COUNT; a++) comm_reset_counts(f.mesh.axis[a]);
    fixture_step(&f, &io);
    EXPECT(f.mesh.axis[AXIS_FSDP]->count[COMM_REDUCE_SCATTER].calls == 0, "gradients of the base");
    double *g = problem_grads(&f, &count);
    for (int64_t i = 0; i < count; i++) EXPECT(g[i] == 0, "gradient of the base");
    free(g);
    problem_free(&p);
    fixture_close(&f);
}

/* Parts of one linear are frozen together. */
static bool held(const struct param *p)
{
    return strstr(p->name, "self_attn") || strstr(p->name, "modulation") ||
           strstr(p->name, "norm3") || strstr(p->name, "text_embedding.0");
}

/* Some parameters frozen, without adapters: the others have the gradients that they have when
 * nothing is frozen. */
static void test_partly(struct comm *world)
{
    const struct model_config m = lora_small_model();
    struct fixture_opts o = lora_options(&m, NULL);
    o.fsdp.prefetch = 1;
    struct fixture all, half;
    lora_open_filled(&all, world, &o);
    fixture_open(&half, world, &o);
    fsdp_free(half.fsdp);
    for (int u = 0; u < half.dit->num_units; u++)
        for (int i = 0; i < half.dit->unit[u].num_params; i++)
            if (held(&half.dit->unit[u].param[i]))
                half.dit->unit[u].param[i].flags &= ~(unsigned)P_TRAINABLE;
    half.fsdp = fsdp_new(half.dev, &half.mesh, half.dit->unit, half.dit->num_units, o.fsdp);
    half.ctx.hooks = fsdp_hooks(half.fsdp);
    problem_fill_params(&half);
    struct problem p = problem_new(&m, world->rank * o.batch, o.batch, o.t, o.h, o.w);
    struct step_io io = problem_io(&p, 1000);
    io.backward = true;
    const double a = fixture_step(&all, &io), b = fixture_step(&half, &io);
    EXPECT(a == b, "loss %.17g, partly frozen %.17g", a, b);
    int64_t n, at = 0;
    double *want = problem_grads(&all, &n), *got = problem_grads(&half, &n);
    for (int u = 0; u < half.dit->num_units; u++)
        for (int i = 0; i < half.dit->unit[u].num_params; i++) {
            const struct param *q = &half.dit->unit[u].param[i];
            const int64_t k = param_count(q);
            if (held(q)) memset(want + at, 0, (size_t)k * sizeof *want);
            EXPECT(memcmp(want + at, got + at, (size_t)k * sizeof *want) == 0, "%s", q->name);
            at += k;
        }
    free(want);
    free(got);
    problem_free(&p);
    fixture_close(&all);
    fixture_close(&half);
}

static double max_abs(const double *x, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(x[i]));
    return most;
}

/* A ~ N(0, 1/r), B = 0, so that the model is the base until the first step. */
static void test_init(struct comm *world)
{
    const struct model_config m = lora_small_model();
    const struct lora_config all = lora_make_config(8, 16, everything);
    struct fixture_opts o = lora_options(&m, &all);
    struct fixture f;
    fixture_open(&f, world, &o);
    lora_init_params(f.lora, 5);
    double sum = 0, squares = 0;
    int64_t n = 0;
    for (int i = 0; i < f.lora->num_params; i++) {
        const struct param *p = &f.lora->param[i];
        double *x = calloc((size_t)param_count(p), sizeof *x),
               *e = calloc((size_t)param_count(p), sizeof *e);
        lora_get(f.lora, STATE_LORA, p->name, x);
        lora_get(f.lora, STATE_LORA_EMA, p->name, e);
        EXPECT(memcmp(x, e, (size_t)param_count(p) * sizeof *x) == 0, "%s: EMA", p->name);
        if (strstr(p->name, "lora_B"))
            EXPECT(max_abs(x, param_count(p)) == 0, "%s is not 0", p->name);
        for (int64_t k = 0; k < param_count(p) && strstr(p->name, "lora_A"); k++, n++) {
            sum += x[k];
            squares += x[k] * x[k];
        }
        free(x);
        free(e);
    }
    EXPECT(fabs(sqrt(squares / (double)n) - 1.0 / 8) < 3e-3 && fabs(sum / (double)n) < 5e-3,
           "A: std %g of 0.125, mean %g over %lld", sqrt(squares / (double)n), sum / (double)n,
           (long long)n);
    struct problem p = problem_new(&m, 0, o.batch, o.t, o.h, o.w);
    double *v = calloc((size_t)p.out_n, sizeof *v), *base;
    struct step_io io = problem_io(&p, 1);
    io.v = v;
    problem_fill_params(&f);
    fixture_step(&f, &io);
    o.lora = NULL;
    base = outputs(world, o, NULL, &n);
    EXPECT(memcmp(v, base, (size_t)n * sizeof *v) == 0, "the model at the start is not the base");
    free(v);
    free(base);
    problem_free(&p);
    fixture_close(&f);
}

/* The numbers of docs/spec/rl.md 2.1. */
static void test_sizes(struct comm *world)
{
    (void)world;
    const struct {
        int64_t dim, ffn, layers, heads, want;
    } size[] = {{5120, 13824, 40, 40, 104857600}, {1536, 8960, 30, 12, 23592960}};
    const struct lora_config cfg = lora_make_config(32, 64, lora_official_targets);
    for (int i = 0; i < 2; i++) {
        struct model_config m = fixture_model();
        m.dim = size[i].dim;
        m.ffn_dim = size[i].ffn;
        m.num_layers = size[i].layers;
        m.num_heads = size[i].heads;
        struct dev *dev = dev_open("null", DT_BF16, 1);
        struct dit *d = dit_new(dev, &m, RECOMPUTE_ALL, NULL, 8);
        struct lora *l = lora_new(dev, d, &cfg, (struct lora_opts){.optimizer = true, .ema = true});
        EXPECT(lora_num_elements(l) == size[i].want, "%lld parameters, expected %lld",
               (long long)lora_num_elements(l), (long long)size[i].want);
        EXPECT(l->num_params == 16 * size[i].layers && l->store.scale == 2, "%d tensors",
               l->num_params);
        EXPECT(lora_bytes(l) == 22 * (size_t)size[i].want, "%zu bytes", lora_bytes(l));
        lora_free(l);
        dit_free(d, dev);
        dev_close(dev);
    }
}

/* ---- mistakes --------------------------------------------------------------------------------*/
struct attempt {
    struct lora_config cfg;
};

static void try_attach(void *arg)
{
    const struct attempt *a = arg;
    const struct model_config m = lora_small_model();
    struct dev *dev = dev_open("null", DT_F32, 1);
    struct dit *d = dit_new(dev, &m, RECOMPUTE_ALL, NULL, 8);
    lora_new(dev, d, &a->cfg, (struct lora_opts){0});
}

static void test_mistakes(struct comm *world)
{
    (void)world;
    const char *const wrong[] = {"self_attn.q", "self_attn.w", "ttn.k", NULL},
                      *const none[] = {NULL}, *const embed[] = {"text_embedding.0", NULL};
    struct attempt a = {lora_make_config(4, 8, wrong)};
    expect_stop("lora_config.target_modules: nothing is called \"self_attn.w\", \"ttn.k\"; there "
                "are blocks.0.self_attn.q, blocks.0.self_attn.k",
                RC_CONFIG, try_attach, &a);
    expect_stop("blocks.0.ffn.2 (blocks 0 to 1)", RC_CONFIG, try_attach, &a);
    a.cfg = lora_make_config(4, 8, embed);
    expect_stop("nothing is called \"text_embedding.0\"", RC_CONFIG, try_attach, &a);
    a.cfg = lora_make_config(4, 8, none);
    expect_stop("target_modules: is empty", RC_CONFIG, try_attach, &a);
    a.cfg = lora_make_config(0, 8, everything);
    expect_stop("lora_config.rank: 0; it must be at least 1", RC_CONFIG, try_attach, &a);
    a.cfg = lora_make_config(25, 8, everything);
    expect_stop("lora_config.rank: 25 is above 24", RC_CONFIG, try_attach, &a);
    a.cfg = lora_make_config(4, 0, everything);
    expect_stop("lora_config.alpha: 0; it must be above 0", RC_CONFIG, try_attach, &a);
    a.cfg = lora_thinned(lora_make_config(4, 8, everything), 1);
    expect_stop("lora_config.dropout: 1; it must be at least 0 and below 1", RC_CONFIG, try_attach,
                &a);
}

/* ---- optimizer -------------------------------------------------------------------------------*/
/* Steps against AdamW written out here (eps 1e-15, decay on A and B, EMA with its warm-up), on any
 * number of ranks with equal bits. */
static void test_steps(struct comm *world)
{
    const struct model_config m = lora_small_model();
    const struct lora_config all = lora_make_config(2, 4, lora_official_targets);
    struct fixture_opts o = lora_options(&m, &all);
    struct fixture f;
    o.batch = 8 / world->size;
    lora_open_filled(&f, world, &o);
    lora_init_params(f.lora, 3);
    struct problem p = problem_new(&m, world->rank * o.batch, o.batch, o.t, o.h, o.w);
    struct step_io io = problem_io(&p, 8000);
    io.backward = true;
    const int64_t n = f.lora->count;
    double *w = calloc((size_t)n, sizeof *w), *mm = calloc((size_t)n, sizeof *w),
           *vv = calloc((size_t)n, sizeof *w), *e = calloc((size_t)n, sizeof *w),
           *g = calloc((size_t)n, sizeof *w), *got = calloc((size_t)n, sizeof *w), first = 0,
           loss = 0;
    dev_get_f64(f.dev, w, f.lora->w);
    memcpy(e, w, (size_t)n * sizeof *w);
    for (int t = 1; t <= 12; t++) {
        const struct lora_step s = {.lr = 1e-2,
                                    .beta1 = 0.9,
                                    .beta2 = 0.999,
                                    .eps = 1e-15,
                                    .weight_decay = 1e-2,
                                    .step = t,
                                    .grad_scale = 0.5,
                                    .ema_keep = ema_decay_at(0.9999, 1, t - 1)};
        lora_zero_grads(f.lora);
        loss = fixture_step(&f, &io);
        comm_sum_f64(world, &loss, 1, "loss");
        if (t == 1) first = loss;
        lora_reduce_grads(f.lora, world);
        dev_get_f64(f.dev, g, f.lora->grad);
        lora_update(f.lora, &s);
        const double keep = fmin(0.9999, (double)t / (9.0 + t));
        for (int64_t i = 0; i < n; i++) {
            mm[i] = 0.9 * mm[i] + 0.1 * (0.5 * g[i]);
            vv[i] = 0.999 * vv[i] + 0.001 * (0.25 * g[i] * g[i]);
            const double mh = mm[i] / (1 - pow(0.9, t)), vh = vv[i] / (1 - pow(0.999, t));
            w[i] = w[i] * (1 - 1e-4) - 1e-2 * mh / (sqrt(vh) + 1e-15);
            e[i] += (1 - keep) * (w[i] - e[i]);
        }
    }
    dev_get_f64(f.dev, got, f.lora->w);
    expect_close("weights after 12 steps", got, w, n, 1e-10);
    dev_get_f64(f.dev, got, f.lora->ema);
    expect_close("EMA after 12 steps", got, e, n, 1e-10);
    EXPECT(loss < first, "the loss went from %g to %g", first, loss);
    EXPECT(lora_grad_norm(f.lora, &f.tmp) > 0, "no gradient");
    double *every = calloc((size_t)(n * world->size), sizeof *every);
    dev_get_f64(f.dev, got, f.lora->w);
    comm_gather_bytes(world, every, got, (size_t)n * sizeof *got, "weights");
    for (int r = 0; r < world->size; r++)
        EXPECT(memcmp(every + r * n, got, (size_t)n * sizeof *got) == 0, "rank %d differs", r);
    double *all_arrays[] = {w, mm, vv, e, g, got, every};
    for (int i = 0; i < 7; i++) free(all_arrays[i]);
    problem_free(&p);
    fixture_close(&f);
}

/* ---- dry run ---------------------------------------------------------------------------------*/
static void test_dryrun(struct comm *world)
{
    struct model_config m = fixture_model();
    m.num_full_blocks = 2;
    const struct lora_config all = lora_make_config(2, 4, everything);
    for (int policy = RECOMPUTE_ALL; policy <= RECOMPUTE_NONE; policy++) {
        struct fixture_opts o = lora_options(&m, &all);
        o.recompute = (enum recompute)policy;
        o.degrees = (struct mesh_degrees){1, world->size, world->size};
        struct fixture f;
        lora_open_filled(&f, world, &o);
        struct problem p = problem_new(&m, 0, o.batch, o.t, o.h, o.w);
        struct step_io io = problem_io(&p, 1000);
        fixture_step(&f, &io); /* as validation does */
        io.backward = true;
        fixture_step(&f, &io);
        const struct dryrun_in d = fixture_dryrun(&o, world);
        struct dryrun_out with, without;
        dryrun(&d, &with);
        struct dryrun_in plain = d;
        plain.lora = NULL;
        dryrun(&plain, &without);
        EXPECT(with.tmp_bytes == f.tmp.peak, "policy %d: tmp %zu, predicted %zu", policy,
               f.tmp.peak, with.tmp_bytes);
        const struct comm_count *sum = &with.comm[AXIS_WORLD][COMM_ALL_REDUCE];
        EXPECT(sum->calls == 1 && (sum->bytes > 0) == (world->size > 1), "%lld sums of %g bytes",
               (long long)sum->calls, sum->bytes);
        EXPECT(with.lora_bytes == lora_bytes(f.lora), "%zu bytes of adapters", with.lora_bytes);
        EXPECT(with.moment_bytes + with.grad_bytes + with.master_bytes == 0, "states of the base");
        EXPECT(with.backward.gemm_flops < without.backward.gemm_flops, "dW is computed");
        EXPECT((with.keep_bytes > without.keep_bytes) == (policy >= RECOMPUTE_GEMM),
               "policy %d keeps %zu bytes, %zu without adapters", policy, with.keep_bytes,
               without.keep_bytes);
        problem_free(&p);
        fixture_close(&f);
    }
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "every adapter gradient equals finite differences in f64",
         .run = test_differences,
         .flags = TEST_SLOW},
        {.name = "recompute policies give the same bits", .run = test_policies},
        {.name = "samples that the gate switches off are the base, bit for bit", .run = test_gate},
        {.name = "the frozen base is its wire copy and nothing else",
         .run = test_frozen,
         .ranks = {1, 2, 4}},
        {.name = "a part of the parameters can be frozen", .run = test_partly, .ranks = {1, 2, 4}},
        {.name = "A is normal, B is 0, and the model starts as the base", .run = test_init},
        {.name = "the sizes of the 14B and 1.3B adapters", .run = test_sizes},
        {.name = "wrong targets and ranks are named", .run = test_mistakes},
        {.name = "steps are AdamW with EMA, with equal bits on all ranks",
         .run = test_steps,
         .ranks = {1, 2, 4, 8},
         .flags = TEST_MPI},
        {.name = "the dry run knows what adapters cost", .run = test_dryrun, .ranks = {1, 2}},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
