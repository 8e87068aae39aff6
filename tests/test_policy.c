/* The clipped objective as one function of the adapters: its value against the formulas of
 * docs/spec/rl.md 1.12 to 1.14 in the latents, its gradient against central differences of the
 * loss that the same ranks compute; test_policy_layouts.c has the layouts against one rank. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "tests/policy_case.h"

enum { MOST = 4 };
/* What the samples of a batch are, by number: inside, over and under the range of the clip. */
static const double advantage[MOST] = {0.8, 1.3, -0.7, -1.1};
static const double shift_of[MOST] = {0.1, 0.5, -0.5, 0.4}; /* of the log ratio; clip at 0.2 */
static const struct update_scale scale = {0.125, 0.25};

static void make_items(struct policy_case *c, struct update_item *items, int order)
{
    for (int b = 0; b < c->rl.train_batch; b++) {
        const int s = c->first + b;
        items[b] = (struct update_item){.from = &c->t,
                                        .sample = b,
                                        .advantage = advantage[s],
                                        .weight = 1,
                                        .valid = true,
                                        .order = (order + s) % c->plan.num_recorded};
    }
}

/* After a rollout: the stored densities make the ratios what the table says. */
static void shift_ratios(struct policy_case *c)
{
    for (int k = 0; k < c->plan.num_recorded; k++)
        for (int b = 0; b < c->t.samples; b++)
            c->t.sums[k * c->t.samples + b] += shift_of[c->first + b] * (double)c->p.elements;
}

/* The sum over the data ranks; the ranks of a sample hold the same. */
static double over_data(struct policy_case *c, double x)
{
    comm_sum_f64(c->f.mesh.axis[AXIS_DP], &x, 1, "objective");
    return x;
}

static double update(struct policy_case *c, int order, struct update_stats *stats)
{
    struct update_item items[MOST];
    make_items(c, items, order);
    *stats = (struct update_stats){0};
    lora_zero_grads(c->f.lora);
    grpo_update(&c->p, &c->plan, items, scale, stats);
    lora_reduce_grads(c->f.lora, c->f.mesh.axis[AXIS_WORLD]);
    return over_data(c, stats->policy_loss + stats->kl_loss);
}

/* ---- the same in the latents ------------------------------------------------------------------*/
enum { VC, VU, RC, RU };
struct velocities { /* [kind][sample][D]; unguided: no VU, no RU */
    double *v[4];
};

static void free_velocities(struct velocities *z)
{
    for (int k = 0; k < 4; k++) free(z->v[k]);
}

static struct velocities velocities_at(struct policy_case *c, int order)
{
    struct ctx *x = &c->f.ctx;
    struct guided *g = c->p.train;
    struct update_item items[MOST];
    int64_t prompt[MOST];
    double sigma[MOST];
    struct rng_key mask[MOST], at[MOST];
    make_items(c, items, order);
    arena_release(x->keep, 0);
    struct tensor state = arena_new(x->keep, ctx_state(x), 2, DIMS(g->rows, c->t.width));
    const int64_t per = g->rows / g->samples;
    for (int b = 0; b < g->samples; b++) {
        const int i = c->plan.recorded[items[b].order];
        sigma[b] = c->plan.step[i].sigma;
        prompt[b] = c->entry[b].prompt;
        policy_case_masks(c, i, at);
        mask[b] = at[b];
        dev_put(x->dev, tensor_rows(state, b * per, per), trajectory_state(&c->t, i, b));
    }
    const struct tensor text = policy_text(&c->p, prompt, g->samples),
                        null = policy_null_text(&c->p, g->samples),
                        v = policy_velocity(&c->p, g, state, text, null, sigma, mask, false);
    struct velocities z = {{NULL}};
    const enum guided_kind kind[4] = {GUIDED_COND, GUIDED_UNCOND, GUIDED_REF_COND,
                                      GUIDED_REF_UNCOND};
    for (int k = 0; k < 4; k++) {
        const struct tensor rows = guided_rows(g, v, kind[k]);
        if (!rows.data) continue;
        z.v[k] = calloc((size_t)(g->samples * c->p.elements), sizeof(double));
        policy_case_latents(c, g, rows, PATCH_OUT, z.v[k]);
    }
    return z;
}

static double guided_at(const struct velocities *z, int c, int u, double w, int64_t i)
{
    return z->v[u] ? z->v[u][i] + w * (z->v[c][i] - z->v[u][i]) : z->v[c][i];
}

static double plain_sample(struct policy_case *c, const struct update_item *it,
                           const struct velocities *z, int b, const double *from, const double *to)
{
    const struct plan_step *s = &c->plan.step[c->plan.recorded[it->order]];
    const int64_t D = c->p.elements;
    const double eps = c->rl.clip_range, w = c->rl.guidance;
    double sum = 0, kl = 0;
    for (int64_t i = b * D; i < (b + 1) * D; i++) {
        const double mean = s->cx * from[i] + s->cv * guided_at(z, VC, VU, w, i), d = to[i] - mean;
        sum += d * d / (2 * s->variance);
        if (!z->v[RC]) continue;
        const double gap = mean - s->cx * from[i] - s->cv * guided_at(z, RC, RU, w, i);
        kl += gap * gap / (2 * s->variance);
    }
    const double old = c->t.sums[it->order * c->t.samples + b];
    const double ratio = exp((old - sum) / (double)D);
    const double cut = fmin(fmax(ratio, 1 - eps), 1 + eps);
    return scale.policy * fmax(-it->advantage * ratio, -it->advantage * cut) +
           scale.kl * c->rl.kl_beta * kl / (double)D;
}

/* frozen: unconditional velocities to take instead of those of now. */
static double plain_loss(struct policy_case *c, int order, const double *frozen)
{
    const int64_t n = c->t.samples * c->p.elements;
    struct update_item items[MOST];
    make_items(c, items, order);
    struct velocities z = velocities_at(c, order);
    double *state[MAX_PLAN_STEPS + 1] = {NULL}, loss = 0;
    for (int i = 0; i <= c->plan.n; i++) {
        if (c->t.slot[i] < 0) continue;
        state[i] = calloc((size_t)n, sizeof(double));
        policy_case_state(c, i, state[i]);
    }
    if (frozen) memcpy(z.v[VU], frozen, (size_t)n * sizeof(double));
    for (int b = 0; b < c->t.samples; b++) {
        const int i = c->plan.recorded[items[b].order];
        loss += plain_sample(c, &items[b], &z, b, state[i], state[i + 1]);
    }
    for (int i = 0; i <= c->plan.n; i++) free(state[i]);
    free_velocities(&z);
    return over_data(c, loss);
}

/* ---- differences ------------------------------------------------------------------------------*/
struct slope {
    struct policy_case *c;
    int order;
    const double *weights, *frozen; /* frozen: of the unconditional branch; NULL: the loss itself */
};

static double loss_at(const struct slope *s, const double *direction, double step)
{
    struct update_stats stats;
    policy_case_move(s->c, s->weights, direction, step);
    return s->frozen ? plain_loss(s->c, s->order, s->frozen) : update(s->c, s->order, &stats);
}

static double difference(const struct slope *s, const double *direction)
{
    const double h = 2e-4;
    const double d1 = loss_at(s, direction, h) - loss_at(s, direction, -h),
                 d2 = loss_at(s, direction, 2 * h) - loss_at(s, direction, -2 * h);
    policy_case_move(s->c, s->weights, NULL, 0);
    return (8 * d1 - d2) / (12 * h);
}

static double norm_of(const double *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

/* The slope along d; size: what an error is small against. Returns error / size. */
static double check_slope(const struct slope *s, const double *grad, const double *d, double size,
                          const char *name, const char *along)
{
    double want = 0;
    for (int64_t i = 0; i < lora_num_elements(s->c->f.lora); i++) want += d[i] * grad[i];
    const double got = difference(s, d), of = fmax(fabs(want), 0.1 * size);
    EXPECT(fabs(got - want) < 1e-6 * of, "%s, along %s: slope %.12g, differences give %.12g", name,
           along, want, got);
    return fabs(got - want) / of;
}

/* Along two directions over all adapters, then `single` elements. */
static double check_slopes(const struct slope *s, const double *grad, int64_t n, int single,
                           const char *name)
{
    const int whole = 2;
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs(grad[i]));
    for (int k = 0; k < whole + single; k++) {
        double *d = k < whole ? problem_draw(n, (uint64_t)(900 + k)) : calloc((size_t)n, sizeof *d);
        const int64_t one = (int64_t)(rng_hash(name) % 1009 + (uint64_t)(k * 7919)) % n;
        if (k >= whole) d[one] = 1;
        worst = fmax(worst, check_slope(s, grad, d, k < whole ? norm_of(grad, n) : largest, name,
                                        k < whole ? "all" : "an element"));
        free(d);
    }
    return worst;
}

/* Along A or B of each kind of linear, in one block or another. */
static double check_tensors(const struct slope *s, const double *grad, int64_t n, int turn,
                            const char *name)
{
    static const char *const kind[] = {
        "self_attn.q",  "self_attn.k",  "self_attn.v",  "self_attn.o", "cross_attn.q",
        "cross_attn.k", "cross_attn.v", "cross_attn.o", "ffn.0",       "ffn.2"};
    const struct lora *l = s->c->f.lora;
    const int blocks = (int)s->c->f.dit->config.num_layers, kinds = sizeof kind / sizeof *kind;
    double worst = 0;
    for (int k = 0; k < kinds; k++) {
        char want[96];
        int64_t at = 0;
        int i = 0;
        snprintf(want, sizeof want, "blocks.%d.%s.lora_%c.weight", (k + turn) % blocks, kind[k],
                 (k + turn / 2) % 2 ? 'B' : 'A');
        for (; i < l->num_params && strcmp(l->param[i].name, want); i++)
            at += param_count(&l->param[i]);
        CHECK(i < l->num_params, "no %s", want);
        const int64_t count = param_count(&l->param[i]);
        double *d = calloc((size_t)n, sizeof *d), *draw = problem_draw(count, (uint64_t)(950 + k));
        memcpy(d + at, draw, (size_t)count * sizeof *d);
        worst = fmax(worst, check_slope(s, grad, d, norm_of(grad + at, count), name, want));
        free(draw);
        free(d);
    }
    return worst;
}

struct variant {
    const char *name;
    int dims, ratio, full_blocks;
    double guidance, kl_beta;
    int cfg_grad;
    enum recompute recompute;
    int algo;
    double dropout;
};
static const struct variant variants[] = {
    {"plain, keeps all", 2, 2, 2, 0, 0, 0, RECOMPUTE_NONE, ALGO_MIX_GRPO, 0},
    {"divergence, keeps all", 2, 2, 2, 0, 3, 0, RECOMPUTE_NONE, ALGO_MIX_GRPO, 0},
    {"divergence, keeps the input", 1, 2, 2, 0, 3, 0, RECOMPUTE_ALL, ALGO_MIX_GRPO, 0},
    {"guided cond, divergence, keeps products", 2, 2, 2, 1.7, 2, 0, RECOMPUTE_GEMM, ALGO_FLOW_GRPO,
     0},
    {"guided cond, keeps attention, sparse ends", 2, 2, 0, 2.5, 0, 0, RECOMPUTE_ATTENTION,
     ALGO_MIX_GRPO, 0},
    {"guided both, divergence, keeps all", 1, 4, 2, 1.7, 2, 1, RECOMPUTE_NONE, ALGO_MIX_GRPO, 0},
    {"guided both, divergence, keeps attention", 2, 2, 2, 1.7, 2, 1, RECOMPUTE_ATTENTION,
     ALGO_DANCE_GRPO, 0},
    {"guided both, sparse ends, keeps the input", 1, 2, 0, 2.5, 0, 1, RECOMPUTE_ALL, ALGO_MIX_GRPO,
     0},
    {"dropout, guided cond, divergence, keeps products", 2, 2, 2, 1.7, 2, 0, RECOMPUTE_GEMM,
     ALGO_MIX_GRPO, 0.3},
    {"dropout, guided both, sparse ends, keeps the input", 2, 2, 0, 2.5, 2, 1, RECOMPUTE_ALL,
     ALGO_FLOW_GRPO, 0.5},
};
enum { NUM_VARIANTS = sizeof variants / sizeof *variants };

static struct policy_case_opts options(const struct variant *v)
{
    struct policy_case_opts o = {.device = "ref",
                                 .compute = DT_F64,
                                 .model = policy_case_model(v->dims, v->ratio, v->full_blocks),
                                 .recompute = v->recompute,
                                 .t = 2,
                                 .h = 3,
                                 .w = 3,
                                 .rl = policy_case_config(v->algo)};
    o.rl.guidance = v->guidance;
    o.rl.kl_beta = v->kl_beta;
    o.rl.cfg_grad = v->cfg_grad;
    o.dropout = v->dropout;
    return o;
}

static void check_clipped(struct policy_case *c, const struct update_stats *stats, const char *name)
{
    double terms = 0, clipped = 0;
    for (int k = 0; k < c->plan.num_recorded; k++) {
        terms += stats->step[k].terms;
        clipped += stats->step[k].clipped;
    }
    terms = over_data(c, terms);
    clipped = over_data(c, clipped);
    EXPECT(terms == MOST && clipped == 3, "%s: %g of %g ratios are out of range", name, clipped,
           terms);
}

/* turn: which tensors; negative: single elements instead. */
static void check_order(struct policy_case *c, const struct variant *v, int order, int turn,
                        const char *name)
{
    struct update_stats stats;
    int64_t n;
    struct velocities z = velocities_at(c, order);
    const double loss = update(c, order, &stats), plain = plain_loss(c, order, NULL);
    double *grad = problem_adapter_grads(&c->f, &n), *weights = policy_case_weights(c, STATE_LORA);
    EXPECT(fabs(loss - plain) < 1e-10 * fabs(plain), "%s: loss %.17g, plain %.17g", name, loss,
           plain);
    check_clipped(c, &stats, name);
    const bool cut = v->guidance > 1 && !v->cfg_grad;
    const struct slope s = {c, order, weights, cut ? z.v[VU] : NULL};
    double worst = check_slopes(&s, grad, n, turn >= 0 ? 0 : test_fast() ? 1 : 4, name);
    if (turn >= 0 && !test_fast()) worst = fmax(worst, check_tensors(&s, grad, n, turn, name));
    if (test_verbose() && c->f.mesh.axis[AXIS_WORLD]->rank == 0)
        printf("    %-52s worst %.1e of %.1e\n", name, worst, norm_of(grad, n));
    free(grad);
    free(weights);
    free_velocities(&z);
}

static void check_variant(struct comm *world, const struct variant *v)
{
    struct policy_case_opts o = options(v);
    struct policy_case c;
    policy_case_open(&c, world, &o);
    policy_case_rollout(&c, NULL);
    shift_ratios(&c);
    for (int order = 0; order < (test_fast() ? 1 : 2); order++)
        check_order(&c, v, order, -1, v->name);
    policy_case_close(&c);
}

static void test_gradient(struct comm *world)
{
    for (int i = 0; i < NUM_VARIANTS; i++) check_variant(world, &variants[i]);
}

/* The differences themselves are of the loss that these ranks compute together: an error that
 * ranks share with one rank's backward pass shows here, too. */
static void test_layouts(struct comm *world)
{
    static const struct mesh_degrees two[] = {{2, 1, 2}, {1, 2, 1}},
                                     four[] = {{2, 2, 4}, {2, 1, 2}};
    static const struct variant list[] = {
        {"both, divergence, 2x3x3", 2, 2, 2, 1.7, 2, 1, RECOMPUTE_ATTENTION, ALGO_MIX_GRPO, 0},
        {"cond, divergence, dropout, 2x3x3", 2, 2, 2, 1.7, 2, 0, RECOMPUTE_GEMM, ALGO_MIX_GRPO,
         0.3},
    };
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < (test_fast() ? 1 : 2); i++) {
            struct policy_case_opts o = options(&list[i]);
            struct policy_case c;
            char name[96];
            o.degrees = world->size == 2 ? two[k] : four[k];
            snprintf(name, sizeof name, "ssp %d x sp %d of %d, %s", o.degrees.ssp, o.degrees.sp,
                     world->size, list[i].name);
            policy_case_open(&c, world, &o);
            policy_case_rollout(&c, NULL);
            shift_ratios(&c);
            check_order(&c, &list[i], i, 2 * k + i + world->size / 4, name);
            policy_case_close(&c);
        }
}

/* The unconditional branch makes a difference, or the test above says nothing about it. */
static void test_branches(struct comm *world)
{
    struct policy_case_opts o = options(&variants[3]);
    double *grad[2];
    int64_t n;
    for (int k = 0; k < 2; k++) {
        struct policy_case c;
        struct update_stats stats;
        o.rl.cfg_grad = k;
        policy_case_open(&c, world, &o);
        policy_case_rollout(&c, NULL);
        update(&c, 0, &stats);
        grad[k] = problem_adapter_grads(&c.f, &n);
        policy_case_close(&c);
    }
    double gap = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        gap += (grad[0][i] - grad[1][i]) * (grad[0][i] - grad[1][i]);
        size += grad[0][i] * grad[0][i];
    }
    EXPECT(gap > 0.01 * size, "cond and both have the same gradient");
    free(grad[0]);
    free(grad[1]);
}

/* Where the clip holds, nothing moves: exactly 0, not only for the objective. */
static void test_idle(struct comm *world)
{
    struct policy_case_opts o = options(&variants[3]);
    o.rl.kl_beta = 0;
    struct policy_case c;
    policy_case_open(&c, world, &o);
    policy_case_rollout(&c, NULL);
    shift_ratios(&c);
    for (int alone = 0; alone < MOST; alone++) {
        struct update_item items[MOST];
        struct update_stats stats = {0};
        int64_t n;
        make_items(&c, items, 0);
        for (int b = 0; b < MOST; b++) items[b].weight = b == alone;
        lora_zero_grads(c.f.lora);
        grpo_update(&c.p, &c.plan, items, scale, &stats);
        double *grad = problem_adapter_grads(&c.f, &n), most = 0;
        for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(grad[i]));
        const bool idle = alone == 1 || alone == 2;
        EXPECT(idle ? most == 0 : most > 1e-6, "sample %d: largest gradient %g", alone, most);
        free(grad);
    }
    policy_case_close(&c);
}

/* A divergence is reported as it is, also where every row of it is far below the quantum of sums.
 */
static void test_quantum(struct comm *world)
{
    struct policy_case_opts o = options(&variants[3]);
    struct policy_case c;
    double kl[2];
    policy_case_open(&c, world, &o);
    policy_case_rollout(&c, NULL);
    for (int k = 0; k < 2; k++) {
        struct update_stats stats;
        if (k) c.p.quantum = 0x1p12;
        update(&c, 0, &stats);
        kl[k] = stats.kl_loss;
    }
    EXPECT(kl[0] > 0 && fabs(kl[1] - kl[0]) < 1e-6 * kl[0], "%.12g, with a large quantum %.12g",
           kl[0], kl[1]);
    policy_case_close(&c);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "the gradient is that of the objective", .run = test_gradient, .flags = TEST_SLOW},
        {.name = "on ranks the gradient is that of the objective that they compute",
         .run = test_layouts,
         .ranks = {2, 4}},
        {.name = "both branches of guidance have a gradient", .run = test_branches},
        {.name = "no gradient where the clip holds", .run = test_idle},
        {.name = "a divergence below the quantum is reported", .run = test_quantum},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
