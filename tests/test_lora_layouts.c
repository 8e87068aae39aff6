/* LoRA under sequence parallelism: for every way to spread samples over ranks, with a gate, the sum
 * over the world of every rank's adapter gradients is the gradient of one rank. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/check.h"
#include "tests/problem.h"

static const struct {
    const char *name;
    int ratio, dims, t, h, w, heads, layers, full_blocks;
} cases[] = {
    {"P 2, 2x5x6, full token group full", 2, 2, 2, 5, 6, 4, 4, 2},
    {"P 2, 2x1x3 (H < P), 3 heads", 2, 2, 2, 1, 3, 3, 2, 0},
    {"1-D, P 4, 2x3x7, 2 heads", 4, 1, 2, 3, 7, 2, 4, 2},
};

static double *layout_grads(struct comm *world, struct fixture_opts o, int global, int64_t *n,
                            double *loss)
{
    const uint8_t gate[8] = {1, 1, 0, 1, 0, 1, 1, 1};
    struct rng_key masks[8];
    for (int b = 0; b < 8; b++)
        masks[b] = (struct rng_key){.seed = 9, .use = RNG_DROPOUT, .step = 3, .item = (uint64_t)b};
    struct fixture f;
    const int dp = o.degrees.ssp ? world->size / (o.degrees.ssp * o.degrees.sp) : world->size;
    o.batch = global / dp;
    fixture_open(&f, world, &o);
    problem_fill_params(&f);
    problem_fill_adapters(&f);
    const int first = f.mesh.axis[AXIS_DP]->rank * o.batch;
    f.ctx.gate = gate + first;
    f.ctx.drop = masks + first;
    struct problem p = problem_new(&o.model, first, o.batch, o.t, o.h, o.w);
    struct step_io io = problem_io(&p, (double)global * 1000);
    io.backward = true;
    *loss = fixture_step(&f, &io);
    comm_sum_f64(world, loss, 1, "loss");
    lora_reduce_grads(f.lora, world);
    double *g = problem_adapter_grads(&f, n);
    problem_free(&p);
    fixture_close(&f);
    return g;
}

/* Worst over runs of `step` elements, each by its own norm, but not below 1e-6 of the whole. */
static double distance(const double *a, const double *b, int64_t n, int64_t step)
{
    double all = 0, worst = 0;
    for (int64_t i = 0; i < n; i++) all += b[i] * b[i];
    for (int64_t at = 0; at < n; at += step) {
        double diff = 0, size = 0;
        for (int64_t i = at; i < n && i < at + step; i++) {
            diff += (a[i] - b[i]) * (a[i] - b[i]);
            size += b[i] * b[i];
        }
        worst = fmax(worst, sqrt(diff) / fmax(sqrt(size), 1e-6 * sqrt(all)));
    }
    return worst;
}

static void check_layouts(struct comm *world, struct fixture_opts o, int classes, const char *name,
                          int *seen, int *runs, double *worst)
{
    const int W = world->size;
    int64_t n = 0;
    double want_loss = 0, loss, *want = NULL;
    if (world->rank == 0) {
        struct comm *alone = comm_self(NULL);
        want = layout_grads(alone, o, W, &n, &want_loss);
        comm_free(alone);
    }
    comm_broadcast_bytes(world, &want_loss, sizeof want_loss, 0, "loss");
    want = problem_share(world, want, &n);
    for (int S = 1; S <= W; S++)
        for (int U = 1; S * U <= W; U++)
            for (int F = 1; F <= W; F++) {
                if (W % (S * U) || W % F || classes % S) continue;
                if ((*seen)++ % (test_fast() ? 8 : 1)) continue;
                o.degrees = (struct mesh_degrees){S, U, F};
                o.recompute = (enum recompute)(*runs % 4);
                o.fsdp.prefetch = *runs % 3;
                double *g = layout_grads(world, o, W, &n, &loss);
                const double e = distance(g, want, n, 24); /* a row of A */
                EXPECT(e < 1e-10 && fabs(loss / want_loss - 1) < 1e-10,
                       "%s: ssp %d x sp %d, fsdp %d of %d: adapters %.2g, loss %.17g", name, S, U,
                       F, W, e, loss);
                *worst = fmax(*worst, e);
                ++*runs;
                free(g);
            }
    free(want);
}

static void all_layouts(struct comm *world, double dropout)
{
    struct lora_config all = lora_make_config(2, 4, (const char *const[]){"*", NULL});
    all.dropout = dropout;
    int seen = 0, runs = 0;
    double worst = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config m = fixture_model();
        m.num_heads = cases[i].heads;
        m.num_layers = cases[i].layers;
        m.num_full_blocks = cases[i].full_blocks;
        m.sparse_ratio = cases[i].ratio;
        m.skiparse_dim = cases[i].dims == 1 ? 0 : 1;
        const struct fixture_opts o = {.device = "ref",
                                       .compute = DT_F64,
                                       .model = m,
                                       .recompute = RECOMPUTE_GEMM,
                                       .t = cases[i].t,
                                       .h = cases[i].h,
                                       .w = cases[i].w,
                                       .fsdp = {.optimizer = true},
                                       .lora = &all};
        const int classes = cases[i].dims == 1 ? cases[i].ratio : cases[i].ratio * cases[i].ratio;
        check_layouts(world, o, classes, cases[i].name, &seen, &runs, &worst);
    }
    if (world->rank == 0)
        printf("    %d ranks: %d combinations, worst %.1e\n", world->size, runs, worst);
}

static void test_layouts(struct comm *world) { all_layouts(world, 0); }

static void test_dropout(struct comm *world) { all_layouts(world, 0.35); }

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "any layout gives the adapter gradients of one rank",
         .run = test_layouts,
         .ranks = {2, 4, 6, 8},
         .flags = TEST_MPI},
        {.name = "with dropout too: one mask for every layout",
         .run = test_dropout,
         .ranks = {2, 4},
         .flags = TEST_MPI},
        {.name = "any layout gives the adapter gradients of one rank, odd numbers of ranks",
         .run = test_layouts,
         .ranks = {3, 5, 7},
         .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
