/* The whole model: every gradient against finite differences in f64, recompute policies, and
 * sharded ranks against one rank. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "tests/lora_case.h"
#include "tests/problem.h"

/* Direction k for one parameter: normal numbers, turned so that g.d is not negative. */
static double *direction(struct fixture *f, const struct param *q, uint64_t k, double *slope)
{
    const int64_t n = param_count(q);
    double *d = problem_draw(n, rng_hash(q->name) + k + 1), *g = calloc((size_t)n, sizeof *g),
           sum = 0;
    fsdp_get(f->fsdp, STATE_GRAD, q->name, g);
    for (int64_t e = 0; e < n; e++) sum += g[e] * d[e];
    for (int64_t e = 0; e < n && sum < 0; e++) d[e] = -d[e];
    *slope += fabs(sum);
    free(g);
    return d;
}

/* Moves all parameters by step along direction k; returns g.d. */
static double move(struct fixture *f, uint64_t k, double step)
{
    double slope = 0;
    for (int u = 0; u < f->dit->num_units; u++)
        for (int i = 0; i < f->dit->unit[u].num_params; i++) {
            const struct param *q = &f->dit->unit[u].param[i];
            const int64_t n = param_count(q);
            double *d = direction(f, q, k, &slope), *x = calloc((size_t)n, sizeof *x);
            fsdp_get(f->fsdp, STATE_MASTER, q->name, x);
            for (int64_t e = 0; e < n; e++) x[e] += step * d[e];
            fsdp_put(f->fsdp, STATE_MASTER, q->name, x);
            free(d);
            free(x);
        }
    return slope;
}

/* Central difference along random directions through all parameters at once, relative to the slope
 * g.d itself. (Relative to sum |g_i d_i|, which is larger by the root of the number of parameters,
 * an error of a hundred times the bound would pass.) Each tensor's part of a direction is turned
 * so that the parts add up: a slope that cancels to nothing would make the quotient meaningless. */
static void directions(struct fixture *f, struct problem *p, double *worst)
{
    struct problem_fd a = {.f = f, .p = p};
    for (uint64_t k = 0; k < 4; k++) {
        const double h = 1e-4, at[4] = {2, 1, -1, -2};
        double value[4], want = 0;
        for (int point = 0; point < 4; point++) {
            want = move(f, k, (at[point] - (point ? at[point - 1] : 0)) * h);
            value[point] = problem_fd_loss(&a);
        }
        const double fd = (8 * (value[1] - value[2]) - (value[0] - value[3])) / (12 * h);
        const double e = fabs(fd - want) / want;
        if (!(e <= *worst)) *worst = e;
        EXPECT(e < 1e-9, "direction %d: finite difference %.12g, gradient %.12g, error %.3g",
               (int)k, fd, want, e);
        problem_fill_params(f);
    }
}

static void check_gradients(const char *name, struct model_config m, int batch, int t, int h, int w)
{
    struct fixture f;
    struct comm *world = comm_self(NULL);
    fixture_open(&f, world,
                 &(struct fixture_opts){.device = "ref",
                                        .compute = DT_F64,
                                        .model = m,
                                        .recompute = RECOMPUTE_GEMM,
                                        .batch = batch,
                                        .t = t,
                                        .h = h,
                                        .w = w,
                                        .fsdp = {.optimizer = true}});
    f.dev->poison = false; /* thousands of passes */
    problem_fill_params(&f);
    struct problem p = problem_new(&m, 0, batch, t, h, w);
    double *dxt = calloc((size_t)p.n, sizeof *dxt),
           *dtext = calloc((size_t)p.text_n, sizeof *dtext);
    struct step_io io = problem_io(&p, (double)p.out_n);
    io.dxt = dxt;
    io.dtext = dtext;
    io.backward = true;
    fixture_step(&f, &io);
    double worst = 0, along = 0;
    directions(&f, &p, &along);
    struct problem_fd d = {.f = &f, .p = &p};
    const struct grad_case c = {
        .name = name, .loss = problem_fd_loss, .arg = &d, .step = 1e-3, .tol = 1e-6};
    int tensors = 2;
    for (int u = 0; u < f.dit->num_units; u++) {
        const struct unit *unit = &f.dit->unit[u];
        worst = fmax(worst, problem_fd_worst(&c, &d, unit->param, unit->num_params, 8));
        tensors += unit->num_params;
    }
    worst = fmax(worst, grad_worst(&c, "xt", p.xt, dxt, p.n, 8, NULL));
    worst = fmax(worst, grad_worst(&c, "text", p.text, dtext, p.text_n, 8, NULL));
    printf("    %s: %d tensors, worst error %.2g, along directions %.2g\n", name, tensors, worst,
           along);
    free(dxt);
    free(dtext);
    problem_free(&p);
    fixture_close(&f);
    comm_free(world);
}

static void test_differences(struct comm *world)
{
    (void)world;
    struct model_config m = fixture_model();
    m.num_layers = 2;
    check_gradients("token and group, odd grid 2x3x5", m, 2, 2, 3, 5);
    check_gradients("token and group, empty sub-sequences (H < P)", m, 1, 1, 1, 6);
    struct model_config full = m;
    full.skiparse_model_type = SKIPARSE_FULL;
    check_gradients("full attention", full, 1, 2, 2, 3);
    struct model_config mixed = m;
    mixed.num_layers = 4;
    mixed.num_full_blocks = 2;
    check_gradients("full, token, group, full", mixed, 1, 1, 5, 4);
    struct model_config odd = m;
    odd.num_layers = 3;
    odd.full_block_indices = (struct cfg_ints){1, {1}};
    check_gradients("explicit schedule: token, full, token", odd, 1, 1, 3, 3);
    struct model_config padded = m;
    padded.pad_mode = PAD_REF;
    check_gradients("padded layout, odd grid", padded, 2, 1, 3, 5);
    struct model_config one = m;
    one.skiparse_dim = 0;
    one.sparse_ratio = 3;
    check_gradients("1-D, ratio 3", one, 1, 2, 3, 5);
    one.pad_mode = PAD_REF;
    check_gradients("1-D, ratio 3, padded layout", one, 1, 1, 3, 5);
    struct model_config three = m;
    three.sparse_ratio = 3;
    check_gradients("2-D, ratio 3, odd grid", three, 1, 1, 4, 7);
}

static double *run_once(struct comm *world, struct fixture_opts o, int first, double share,
                        double *loss, int64_t *n)
{
    struct fixture f;
    fixture_open(&f, world, &o);
    problem_fill_params(&f);
    struct problem p = problem_new(&o.model, first, o.batch, o.t, o.h, o.w);
    struct step_io io = problem_io(&p, share);
    io.backward = true;
    *loss = fixture_step(&f, &io);
    comm_sum_f64(world, loss, 1, "loss");
    double *g = problem_grads(&f, n);
    problem_free(&p);
    fixture_close(&f);
    return g;
}

static void test_policies(struct comm *world)
{
    struct model_config m = fixture_model();
    m.num_full_blocks = 2;
    struct fixture_opts o = {.device = "ref",
                             .compute = DT_F64,
                             .model = m,
                             .batch = 2,
                             .t = 1,
                             .h = 5,
                             .w = 3,
                             .fsdp = {.optimizer = true}};
    double first_loss = 0, loss;
    int64_t n;
    double *first = NULL;
    const struct cfg_ints list = {2, {0, 2}};
    for (int policy = RECOMPUTE_ALL; policy <= RECOMPUTE_NONE + 1; policy++) {
        o.recompute = (enum recompute)(policy > RECOMPUTE_NONE ? RECOMPUTE_NONE : policy);
        o.recompute_blocks = policy > RECOMPUTE_NONE ? &list : NULL;
        double *g = run_once(world, o, 0, 1000, &loss, &n);
        if (!first) {
            first = g;
            first_loss = loss;
            continue;
        }
        EXPECT(loss == first_loss, "policy %d: loss %.17g against %.17g", policy, loss, first_loss);
        EXPECT(memcmp(g, first, (size_t)n * sizeof *g) == 0, "policy %d: gradients differ", policy);
        free(g);
    }
    free(first);
}

/* Of tensors that one op makes together, each may be there without the other. */
static void test_missing(struct comm *world)
{
    static const enum block_tensor gone[][6] = {
        {T_COUNT},
        {T_X1, T_COUNT},
        {T_MEAN3, T_RSTD3, T_N3, T_COUNT},
        {T_X1, T_MEAN3, T_RSTD3, T_N3, T_COUNT},
        {T_X2, T_COUNT},
        {T_MEAN2, T_RSTD2, T_F, T_COUNT},
        {T_X2, T_MEAN2, T_RSTD2, T_F, T_COUNT},
        {T_MEAN1, T_RSTD1, T_A, T_COUNT},
        {T_X1, T_X2, T_COUNT},
    };
    struct fixture_opts o = {.device = "ref",
                             .compute = DT_F64,
                             .model = fixture_model(),
                             .recompute = RECOMPUTE_NONE,
                             .batch = 2,
                             .t = 1,
                             .h = 5,
                             .w = 3,
                             .fsdp = {.optimizer = true}};
    struct fixture f;
    fixture_open(&f, world, &o);
    problem_fill_params(&f);
    struct problem p = problem_new(&o.model, 0, o.batch, o.t, o.h, o.w);
    struct step_io io = problem_io(&p, 1000);
    io.backward = true;
    fixture_step(&f, &io);
    struct tensor dout = arena_like(&f.keep, fixture_run.out);
    f.dev->ops->rng_normal(f.dev, dout, rng_open((struct rng_key){.seed = 8, .use = RNG_TEST}), 0,
                           1);
    struct dit_run *run = malloc(sizeof *run);
    CHECK(run, "out of memory");
    double *first = NULL;
    for (size_t k = 0; k < sizeof gone / sizeof *gone; k++) {
        int64_t n;
        *run = fixture_run;
        for (int i = 0; i < f.dit->num_blocks; i++)
            for (int j = 0; gone[k][j] != T_COUNT; j++) run->saved[i].t[gone[k][j]].data = NULL;
        fsdp_zero_grads(f.fsdp);
        dit_backward(&f.ctx, f.dit, run, dout, (struct tensor){0}, (struct tensor){0});
        fsdp_finish_backward(f.fsdp, true);
        double *g = problem_grads(&f, &n);
        if (k)
            EXPECT(memcmp(g, first, (size_t)n * sizeof *g) == 0, "case %d: gradients differ",
                   (int)k);
        if (k) free(g);
        if (!k) first = g;
    }
    free(first);
    free(run);
    problem_free(&p);
    fixture_close(&f);
}

/* v of a pass that a backward pass follows, and of one that keeps nothing and works in place. */
static void compare_forward(struct comm *world, const char *name, const struct fixture_opts *o)
{
    struct fixture f;
    if (o->lora)
        lora_open_filled(&f, world, o);
    else
        fixture_open(&f, world, o);
    if (!o->lora) problem_fill_params(&f);
    struct problem p = problem_new(&o->model, 0, o->batch, o->t, o->h, o->w);
    double *v[2];
    size_t tmp[2];
    for (int only = 0; only < 2; only++) {
        v[only] = calloc((size_t)p.out_n, sizeof **v);
        CHECK(v[only], "out of memory");
        struct step_io io = problem_io(&p, 1000);
        io.v = v[only];
        io.backward = !only;
        f.tmp.peak = 0;
        fixture_step(&f, &io);
        tmp[only] = f.tmp.peak;
    }
    EXPECT(memcmp(v[0], v[1], (size_t)p.out_n * sizeof **v) == 0, "%s, %s %s", name, o->device,
           dtype_name(o->compute));
    EXPECT(tmp[1] < tmp[0] / 2, "%s: %zu and %zu bytes of temporaries", name, tmp[0], tmp[1]);
    for (int i = 0; i < 2; i++) free(v[i]);
    problem_free(&p);
    fixture_close(&f);
}

static void test_forward_only(struct comm *world)
{
    static const char *const targets[] = {"q", "v", "self_attn.o", "ffn.0", "ffn.2", NULL};
    const struct lora_config lora = lora_make_config(2, 3, targets);
    const struct {
        const char *device;
        enum dtype t;
    } where[] = {{"ref", DT_F64}, {"cpu", DT_F32}, {"cpu", DT_BF16}};
    for (int k = 0; k < 3; k++) {
        struct fixture_opts o = {.device = where[k].device,
                                 .compute = where[k].t,
                                 .model = fixture_model(),
                                 .recompute = RECOMPUTE_GEMM,
                                 .batch = 2,
                                 .t = 1,
                                 .h = 5,
                                 .w = 3,
                                 .fsdp = {.optimizer = true}};
        if (!dev_supports(o.device, o.compute)) continue;
        if (world->size > 1) {
            o.h = o.w = 6;
            for (int ssp = 1; ssp <= 2; ssp++) {
                o.degrees = (struct mesh_degrees){ssp, world->size / ssp, world->size};
                compare_forward(world, "over ranks", &o);
            }
            continue;
        }
        o.model.num_full_blocks = 2;
        compare_forward(world, "narrow feed-forward", &o);
        o.lora = &lora;
        compare_forward(world, "with adapters", &o);
        o.lora = NULL;
        o.model.ffn_dim = 100; /* above 3 dim */
        compare_forward(world, "wide feed-forward", &o);
        o.model.pad_mode = PAD_REF;
        o.model.num_full_blocks = 0;
        compare_forward(world, "padded", &o);
    }
}

/* Every fsdp size that divides the ranks, gather slots with and without prefetch, against one rank
 * that sees the whole batch. */
static void test_ranks(struct comm *world)
{
    struct model_config m = fixture_model();
    m.num_full_blocks = 2;
    enum { GLOBAL = 8 };
    const double share = GLOBAL * 1000;
    struct fixture_opts o = {.device = "ref",
                             .compute = DT_F64,
                             .model = m,
                             .batch = GLOBAL,
                             .t = 1,
                             .h = 3,
                             .w = 5,
                             .fsdp = {.optimizer = true}};
    double want_loss = 0, loss, *want = NULL;
    int64_t n = 0;
    if (world->rank == 0) {
        struct comm *alone = comm_self(NULL);
        want = run_once(alone, o, 0, share, &want_loss, &n);
        comm_free(alone);
    }
    comm_broadcast_bytes(world, &want_loss, sizeof want_loss, 0, "loss");
    want = problem_share(world, want, &n);
    o.batch = GLOBAL / world->size;
    for (int fsdp = 1; fsdp <= world->size; fsdp++) {
        if (world->size % fsdp) continue;
        for (int mode = 0; mode < 3; mode++) {
            o.degrees = (struct mesh_degrees){1, 1, fsdp};
            o.fsdp.prefetch = mode;
            o.fsdp.keep_after_forward = mode == 2;
            world->check = mode == 1;
            double *g = run_once(world, o, world->rank * o.batch, share, &loss, &n);
            EXPECT(fabs(loss / want_loss - 1) < 1e-12, "fsdp %d: loss %.17g against %.17g", fsdp,
                   loss, want_loss);
            char what[64];
            snprintf(what, sizeof what, "gradients, fsdp %d mode %d", fsdp, mode);
            expect_close(what, g, want, n, 1e-12);
            free(g);
        }
    }
    world->check = false;
    free(want);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "every gradient equals finite differences in f64",
         .run = test_differences,
         .flags = TEST_SLOW},
        {.name = "recompute policies give the same bits", .run = test_policies},
        {.name = "a tensor that is missing is made again from those that are there",
         .run = test_missing},
        {.name = "a forward pass alone gives the same bits in less memory",
         .run = test_forward_only,
         .ranks = {1, 2, 4}},
        {.name = "sharded ranks give the gradients of one rank",
         .run = test_ranks,
         .ranks = {1, 2, 4, 8},
         .flags = TEST_MPI},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
