/* Updates on any number of data ranks, SSP and Ulysses ranks: the gradient, the loss and the ratios
 * of one rank; and a policy that did not change finds ratio 1 in what it sampled. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "tests/policy_case.h"

enum { SAMPLES = 4 };
struct outcome { /* equal on all ranks */
    double *grad, *sums, *states, loss, log_ratio, kl;
    int64_t num_grad, num_sums, num_states;
};

static void free_outcome(struct outcome *o)
{
    free(o->grad);
    free(o->sums);
    free(o->states);
}

/* Sums [recorded][sample] and states [slot][sample][D] of the samples of all data ranks. */
static void gather(struct policy_case *c, struct outcome *r)
{
    const int64_t D = c->p.elements;
    const int n = c->t.samples;
    struct comm *dp = c->f.mesh.axis[AXIS_DP];
    r->num_sums = c->plan.num_recorded * SAMPLES;
    r->num_states = c->t.num_states * SAMPLES * D;
    r->sums = calloc((size_t)r->num_sums, sizeof *r->sums);
    r->states = calloc((size_t)r->num_states, sizeof *r->states);
    for (int k = 0; k < c->plan.num_recorded; k++)
        memcpy(r->sums + k * SAMPLES + c->first, c->t.sums + k * n, (size_t)n * sizeof(double));
    for (int i = 0; i <= c->plan.n; i++)
        if (c->t.slot[i] >= 0)
            policy_case_state(c, i, r->states + (c->t.slot[i] * SAMPLES + c->first) * D);
    comm_sum_f64(dp, r->sums, (int)r->num_sums, "sums");
    comm_sum_f64(dp, r->states, (int)r->num_states, "states");
}

/* Every micro-batch at every trained step; off: ratios far from 1, so that all terms count. */
static void updates(struct policy_case *c, bool off, struct outcome *r)
{
    const int T = c->plan.num_recorded, B = (int)c->rl.train_batch, n = c->t.samples;
    const struct update_scale scale = {1.0 / (SAMPLES * T), 1.0 / (SAMPLES * T)};
    struct update_stats stats = {0};
    if (off)
        for (int i = 0; i < T * n; i++)
            c->t.sums[i] += 0.15 * (double)(((c->first + i % n) % 3) - 1) * (double)c->p.elements;
    lora_zero_grads(c->f.lora);
    for (int m = 0; m < n; m += B)
        for (int k = 0; k < T; k++) {
            struct update_item items[SAMPLES];
            for (int b = 0; b < B; b++) {
                const int s = c->first + m + b;
                items[b] = (struct update_item){.from = &c->t,
                                                .sample = m + b,
                                                .advantage = 1.5 - s,
                                                .weight = 1,
                                                .valid = true,
                                                .order = (k + s) % T};
            }
            grpo_update(&c->p, &c->plan, items, scale, &stats);
        }
    lora_reduce_grads(c->f.lora, c->f.mesh.axis[AXIS_WORLD]);
    r->grad = problem_adapter_grads(&c->f, &r->num_grad);
    r->loss = stats.policy_loss + stats.kl_loss;
    for (int k = 0; k < T; k++) {
        r->log_ratio = fmax(r->log_ratio, stats.step[k].max_log_ratio);
        r->kl += stats.step[k].kl;
    }
    comm_sum_f64(c->f.mesh.axis[AXIS_DP], &r->loss, 1, "loss");
    comm_max_f64(c->f.mesh.axis[AXIS_DP], &r->log_ratio, 1, "ratio");
}

/* from: states and densities that another layout has sampled; NULL: this one's. */
static struct outcome run(struct comm *world, const struct policy_case_opts *o, bool off,
                          const struct outcome *from)
{
    struct policy_case c;
    struct outcome r = {0};
    policy_case_open(&c, world, o);
    policy_case_rollout(&c, NULL);
    gather(&c, &r);
    if (from) policy_case_take(&c, from->states, from->sums, SAMPLES);
    updates(&c, off, &r);
    policy_case_close(&c);
    return r;
}

/* ---- cases ------------------------------------------------------------------------------------*/
struct shape {
    const char *name;
    int dims, ratio, full_blocks, t, h, w, heads;
    double guidance, kl_beta;
    int cfg_grad;
    enum recompute recompute;
    int64_t train_batch;
    double dropout;
};
static const struct shape shapes[] = {
    {"2x3x5, guided, divergence, keeps all", 2, 2, 2, 2, 3, 5, 4, 2, 2, 0, RECOMPUTE_NONE, 4, 0},
    {"2x3x5, both branches, keeps attention", 2, 2, 2, 2, 3, 5, 4, 2, 2, 1, RECOMPUTE_ATTENTION, 4,
     0},
    {"2x1x3 (ranks without a token), keeps products", 2, 2, 0, 2, 1, 3, 3, 0, 2, 0, RECOMPUTE_GEMM,
     4, 0},
    {"1-D, P 4, 2x3x7, keeps the input", 1, 4, 2, 2, 3, 7, 2, 2, 0, 1, RECOMPUTE_ALL, 4, 0},
    {"2x3x5, dropout, guided, divergence", 2, 2, 2, 2, 3, 5, 4, 2, 2, 0, RECOMPUTE_ATTENTION, 4,
     0.3},
};
enum { NUM_SHAPES = sizeof shapes / sizeof *shapes };

static struct policy_case_opts options(const struct shape *s, const char *device, enum dtype type)
{
    struct policy_case_opts o = {.device = device,
                                 .compute = type,
                                 .model = policy_case_model(s->dims, s->ratio, s->full_blocks),
                                 .recompute = s->recompute,
                                 .t = s->t,
                                 .h = s->h,
                                 .w = s->w,
                                 .rl = policy_case_config(ALGO_MIX_GRPO)};
    o.model.num_heads = s->heads;
    o.rl.guidance = s->guidance;
    o.rl.kl_beta = s->kl_beta;
    o.rl.cfg_grad = s->cfg_grad;
    o.rl.train_batch = s->train_batch;
    o.dropout = s->dropout;
    return o;
}

struct limits { /* against one rank */
    double grad, sums;
    double ratio, ulysses; /* |ln rho| of an update on what one rank sampled; with Ulysses */
};

static void share(struct comm *world, double **x, int64_t n)
{
    if (world->rank) *x = calloc((size_t)n, sizeof **x);
    comm_broadcast_bytes(world, *x, (size_t)n * sizeof **x, 0, "one rank");
}

/* What one rank gives, made by rank 0 for all. */
static struct outcome run_alone(struct comm *world, const struct policy_case_opts *o)
{
    struct outcome r = {0};
    if (world->rank == 0) {
        struct comm *alone = comm_self(NULL);
        r = run(alone, o, true, NULL);
        comm_free(alone);
    }
    comm_broadcast_bytes(world, &r, sizeof r, 0, "one rank");
    share(world, &r.grad, r.num_grad);
    share(world, &r.sums, r.num_sums);
    share(world, &r.states, r.num_states);
    return r;
}

static void compare(struct comm *world, struct policy_case_opts o, const char *name,
                    const struct limits *most)
{
    const int W = world->size;
    const struct mesh_degrees layout[] = {{1, 1, W},     {W, 1, 1}, {1, W, W},
                                          {2, W / 2, 1}, {2, 1, W}, {1, 2, 1}};
    struct outcome want = run_alone(world, &o);
    for (int i = 0; i < (W == 2 ? 3 : 6); i += test_fast() ? 2 : 1) {
        o.degrees = layout[i];
        struct outcome own = run(world, &o, true, NULL), given = run(world, &o, false, &want);
        const double grad = norm_error(own.grad, want.grad, want.num_grad),
                     sums = norm_error(own.sums, want.sums, want.num_sums),
                     states = norm_error(own.states, want.states, want.num_states);
        EXPECT(grad < most->grad && fabs(own.loss / want.loss - 1) < most->grad,
               "%s: ssp %d x sp %d of %d: gradient %.2g, loss %.12g, not %.12g", name,
               o.degrees.ssp, o.degrees.sp, W, grad, own.loss, want.loss);
        EXPECT(sums < most->sums && states < most->sums,
               "%s: ssp %d x sp %d of %d: sums %.2g, states %.2g", name, o.degrees.ssp,
               o.degrees.sp, W, sums, states);
        EXPECT(given.log_ratio <= (o.degrees.sp > 1 ? most->ulysses : most->ratio),
               "%s: ssp %d x sp %d of %d: |log ratio| %.2g", name, o.degrees.ssp, o.degrees.sp, W,
               given.log_ratio);
        if (world->rank == 0 && test_verbose())
            printf("    %-46s ssp %d x sp %d of %d: gradient %.1e sums %.1e ratio %.1e\n", name,
                   o.degrees.ssp, o.degrees.sp, W, grad, sums, given.log_ratio);
        free_outcome(&own);
        free_outcome(&given);
    }
    free_outcome(&want);
}

static void test_f64(struct comm *world)
{
    const struct limits most = {1e-10, 1e-11, 1e-11, 1e-11};
    for (int i = 0; i < NUM_SHAPES; i += test_fast() ? 2 : 1) {
        const struct policy_case_opts o = options(&shapes[i], "ref", DT_F64);
        compare(world, o, shapes[i].name, &most);
    }
}

static void test_f32(struct comm *world)
{
    if (!dev_supports("cpu", DT_F32)) {
        test_skip("no cpu device");
        return;
    }
    const struct limits most = {1e-5, 1e-5, 1e-5, 1e-5};
    for (int i = 0; i < NUM_SHAPES; i += test_fast() ? 2 : 1) {
        const struct policy_case_opts o = options(&shapes[i], "cpu", DT_F32);
        compare(world, o, shapes[i].name, &most);
    }
}

/* What a layout changes of a velocity in bf16. Data ranks and SSP: at most the last bit of an f32
 * sum, which hardly ever reaches the next bf16. Ulysses: the keys of a sparse sequence come in
 * another order, so that its weights are rounded to bf16 below another running maximum, about half
 * a percent of v; then kappa^2 / 2 * ms(v - v') of |ln rho| does not average out over a latent.
 * Measured: 0 and 3.0e-4 (docs/rl.md). */
static void test_bf16(struct comm *world)
{
    if (!dev_supports("cpu", DT_BF16)) {
        test_skip("no cpu device in bf16");
        return;
    }
    const struct limits most = {1e-2, 4e-3, 1e-5, 1e-3};
    for (int i = 0; i < NUM_SHAPES; i += test_fast() ? 2 : 1) {
        const struct policy_case_opts o = options(&shapes[i], "cpu", DT_BF16);
        compare(world, o, shapes[i].name, &most);
    }
}

/* ---- on-policy --------------------------------------------------------------------------------*/
/* Products of the libraries behind cpu f32 may depend on the number of rows in the last bit; then
 * the limit is that of the program. */
static void on_policy(struct comm *world, const char *device, enum dtype type, bool any_batch)
{
    if (!dev_supports(device, type)) return;
    double worst = 0;
    for (int i = 0; i < NUM_SHAPES; i += test_fast() ? 2 : 1) {
        struct policy_case_opts o = options(&shapes[i], device, type);
        for (int S = 1; S <= world->size; S *= 2)
            for (int B = world->size / S; B <= SAMPLES; B *= 2) {
                if (test_fast() && B == 2) continue;
                o.degrees = (struct mesh_degrees){S, 1, 1};
                o.rl.train_batch = B;
                struct outcome r = run(world, &o, false, NULL);
                EXPECT(r.log_ratio <= (any_batch || B == SAMPLES ? 0 : 1e-6),
                       "%s %s, %s, ssp %d, batch %d: |log ratio| %.2g", device, dtype_name(type),
                       shapes[i].name, S, B, r.log_ratio);
                worst = fmax(worst, r.log_ratio);
                free_outcome(&r);
            }
    }
    if (world->rank == 0 && worst > 0)
        printf("    %s %s: |log ratio| up to %.1e where batches differ\n", device, dtype_name(type),
               worst);
}

static void test_on_policy(struct comm *world)
{
    on_policy(world, "ref", DT_F64, true);
    on_policy(world, "ref", DT_F32, true);
    on_policy(world, "cpu", DT_F32, false);
    on_policy(world, "cpu", DT_BF16, true);
}

/* Adapters that do nothing yet: the divergence from the base is 0, not only small. */
static void no_divergence(struct comm *world, const char *device, enum dtype type, double limit)
{
    struct policy_case_opts o = options(&shapes[0], device, type);
    struct policy_case c;
    struct outcome r = {0};
    if (!dev_supports(device, type)) return;
    o.degrees = (struct mesh_degrees){world->size, 1, 1};
    policy_case_open(&c, world, &o);
    lora_init_params(c.f.lora, 5);
    policy_case_rollout(&c, NULL);
    updates(&c, false, &r);
    EXPECT(r.kl == 0 && r.log_ratio <= limit, "%s %s: divergence %g, |log ratio| %g", device,
           dtype_name(type), r.kl, r.log_ratio);
    free_outcome(&r);
    policy_case_close(&c);
}

static void test_no_divergence(struct comm *world)
{
    no_divergence(world, "ref", DT_F64, 0);
    no_divergence(world, "cpu", DT_F32, 1e-6);
    no_divergence(world, "cpu", DT_BF16, 0);
}

/* Rollout and update of the same rows on the same ranks, in the type of the masters: not one bit
 * apart, and with adapters that do nothing yet not one bit from the base. */
static void same_bits(struct comm *world, struct mesh_degrees degrees, const struct shape *s,
                      bool fresh)
{
    struct policy_case_opts o = options(s, "cpu", DT_F32);
    struct policy_case c;
    struct outcome r = {0};
    o.degrees = degrees;
    policy_case_open(&c, world, &o);
    if (fresh) lora_init_params(c.f.lora, 5);
    policy_case_rollout(&c, NULL);
    updates(&c, false, &r);
    EXPECT(r.log_ratio == 0, "%s, ssp %d x sp %d of %d: |log ratio| %.2g", s->name, degrees.ssp,
           degrees.sp, world->size, r.log_ratio);
    EXPECT(s->kl_beta == 0 || (r.kl == 0) == fresh,
           "%s, ssp %d x sp %d of %d, %s adapters: divergence %g", s->name, degrees.ssp, degrees.sp,
           world->size, fresh ? "fresh" : "trained", r.kl);
    free_outcome(&r);
    policy_case_close(&c);
}

static void test_same_bits(struct comm *world)
{
    const int W = world->size;
    const struct mesh_degrees layout[] = {{1, W, 1}, {W, 1, 1}, {2, W / 2, 1}, {1, W / 2, 1}};
    if (!dev_supports("cpu", DT_F32)) {
        test_skip("no cpu device");
        return;
    }
    for (int l = 0; l < (W == 4 ? 4 : W); l++)
        for (int i = 0; i < NUM_SHAPES; i += test_fast() ? 2 : 1) {
            same_bits(world, layout[l], &shapes[i], false);
            same_bits(world, layout[l], &shapes[i], true);
        }
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "f64: any layout gives the updates of one rank",
         .run = test_f64,
         .ranks = {2, 4},
         .flags = TEST_MPI},
        {.name = "f32: any layout gives the updates of one rank", .run = test_f32, .ranks = {2, 4}},
        {.name = "bf16: any layout gives the updates of one rank",
         .run = test_bf16,
         .ranks = {2, 4}},
        {.name = "a policy that did not change has ratio 1",
         .run = test_on_policy,
         .ranks = {1, 2}},
        {.name = "cpu f32: ratio 1 and no divergence to the bit, SSP and Ulysses",
         .run = test_same_bits,
         .ranks = {1, 2, 4}},
        {.name = "no divergence from the base before the first step",
         .run = test_no_divergence,
         .ranks = {1, 4}},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
