/* DiffusionNFT (docs/spec/rl.md 5.5): the objective against its formulas in the latents, its
 * gradient against central differences, on every layout against one rank. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "tests/policy_case.h"

enum { SAMPLES = 4 };
/* Inside the range, over it, under it, and one without a score. */
static const double advantage[SAMPLES] = {0.9, 3.5, -1.1, 0.4};
static const struct update_scale scale = {0.3, 0.7};

static struct policy_case_opts options(double beta, double kl, int full_blocks)
{
    struct policy_case_opts o = {.device = "ref",
                                 .compute = DT_F64,
                                 .model = policy_case_model(2, 2, full_blocks),
                                 .recompute = kl > 0 ? RECOMPUTE_NONE : RECOMPUTE_GEMM,
                                 .t = 2,
                                 .h = 3,
                                 .w = 3,
                                 .rl = policy_case_config(ALGO_NFT)};
    o.rl.adv_clip_max = 2;
    o.rl.nft.beta = beta;
    o.rl.nft.kl = kl;
    return o;
}

static struct policy_case_opts thinned(struct policy_case_opts o)
{
    o.dropout = 0.3;
    return o;
}

static void make_items(struct policy_case *c, struct update_item *items)
{
    for (int b = 0; b < c->rl.train_batch; b++) {
        const int s = c->first + b;
        items[b] = (struct update_item){.from = &c->t,
                                        .sample = b,
                                        .advantage = advantage[s],
                                        .weight = 1,
                                        .valid = s != 3,
                                        .order = (s + 1) % c->plan.n,
                                        .draw = (uint32_t)(7 + s)};
    }
}

static double update(struct policy_case *c, struct update_stats *stats)
{
    struct update_item items[SAMPLES];
    make_items(c, items);
    *stats = (struct update_stats){0};
    lora_zero_grads(c->f.lora);
    nft_update(&c->p, &c->plan, items, scale, stats);
    return stats->policy_loss + stats->kl_loss;
}

/* Sampling adapters other than the trained ones. */
static void open_case(struct policy_case *c, struct comm *world, const struct policy_case_opts *o)
{
    policy_case_open(c, world, o);
    for (int i = 0; i < c->f.lora->num_params; i++) {
        const struct param *p = &c->f.lora->param[i];
        double *x = problem_draw(param_count(p), rng_hash(p->name) + 1);
        for (int64_t k = 0; k < param_count(p); k++) x[k] *= 0.3;
        lora_put(c->f.lora, STATE_LORA_OLD, p->name, x);
        free(x);
    }
    lora_use(c->f.lora, STATE_LORA_OLD);
    policy_case_rollout(c, NULL);
    lora_use(c->f.lora, STATE_LORA);
}

/* ---- the same in the latents ------------------------------------------------------------------*/
struct plain { /* [sample][D] */
    double *clean, *noise, *xt, *v, *old, *ref;
    double sigma[SAMPLES];
    struct rng_key mask[SAMPLES];
};

static void draw_states(struct policy_case *c, struct plain *z)
{
    const int64_t D = c->p.elements;
    struct update_item items[SAMPLES];
    make_items(c, items);
    policy_case_state(c, c->plan.n, z->clean);
    for (int b = 0; b < SAMPLES; b++) {
        const struct rng_stream s =
            rng_open((struct rng_key){.seed = CASE_SEED,
                                      .use = RNG_UPDATE,
                                      .step = items[b].draw,
                                      .item = (uint64_t)c->entry[b].sample});
        z->mask[b] = (struct rng_key){.seed = CASE_SEED,
                                      .use = RNG_DROPOUT,
                                      .step = items[b].draw,
                                      .item = (uint64_t)c->entry[b].sample};
        z->sigma[b] = c->plan.step[items[b].order].sigma;
        for (int64_t i = 0; i < D; i++) {
            z->noise[b * D + i] = (double)(float)rng_normal_at(s, (uint64_t)i);
            z->xt[b * D + i] =
                (1 - z->sigma[b]) * z->clean[b * D + i] + z->sigma[b] * z->noise[b * D + i];
        }
    }
}

static void velocities(struct policy_case *c, struct guided *g, struct plain *z, double *v,
                       double *ref)
{
    struct ctx *x = &c->f.ctx;
    int64_t prompt[SAMPLES];
    arena_release(x->keep, 0);
    struct tensor lat =
        arena_new(x->keep, DT_F64, 5,
                  DIMS(SAMPLES, c->p.latent[0], c->p.latent[1], c->p.latent[2], c->p.latent[3]));
    struct tensor rows = arena_new(x->keep, DT_F64, 2, DIMS(g->rows, c->t.width));
    dev_put_f64(x->dev, lat, z->xt);
    x->dev->ops->patch_rows(x->dev, rows, lat, guided_pos(g), PATCH_IN);
    for (int b = 0; b < SAMPLES; b++) prompt[b] = c->entry[b].prompt;
    const struct tensor text = policy_text(&c->p, prompt, SAMPLES),
                        all = policy_velocity(&c->p, g, rows, text, (struct tensor){0}, z->sigma,
                                              g == c->p.old ? NULL : z->mask, false),
                        of_ref = guided_rows(g, all, GUIDED_REF_COND);
    policy_case_latents(c, g, guided_rows(g, all, GUIDED_COND), PATCH_OUT, v);
    if (of_ref.data) policy_case_latents(c, g, of_ref, PATCH_OUT, ref);
}

static struct plain plain_new(struct policy_case *c)
{
    const size_t n = (size_t)(SAMPLES * c->p.elements);
    struct plain z;
    double **all[] = {&z.clean, &z.noise, &z.xt, &z.v, &z.old, &z.ref};
    for (int i = 0; i < 6; i++) *all[i] = calloc(n, sizeof(double));
    draw_states(c, &z);
    lora_use(c->f.lora, STATE_LORA_OLD);
    velocities(c, c->p.old, &z, z.old, NULL);
    lora_use(c->f.lora, STATE_LORA);
    return z;
}

static void plain_free(struct plain *z)
{
    double *all[] = {z->clean, z->noise, z->xt, z->v, z->old, z->ref};
    for (int i = 0; i < 6; i++) free(all[i]);
}

/* omega [sample][2]: the denominators; from the velocities of now where `fresh`. */
static double plain_loss(struct policy_case *c, struct plain *z, double *omega, bool fresh)
{
    const struct rl_config *cfg = &c->rl;
    const int64_t D = c->p.elements;
    const double beta = cfg->nft.beta, most = cfg->adv_clip_max;
    double loss = 0;
    velocities(c, c->p.train, z, z->v, z->ref);
    for (int b = 0; b < SAMPLES; b++) {
        if (b == 3) continue;
        double off[2] = {0, 0}, square[2] = {0, 0}, gap = 0;
        for (int64_t i = b * D; i < (b + 1) * D; i++) {
            const double v[2] = {beta * z->v[i] + (1 - beta) * z->old[i],
                                 (1 + beta) * z->old[i] - beta * z->v[i]};
            for (int k = 0; k < 2; k++) {
                const double d = z->xt[i] - z->sigma[b] * v[k] - z->clean[i];
                off[k] += fabs(d) / (double)D;
                square[k] += d * d / (double)D;
            }
            if (cfg->nft.kl > 0) gap += (z->v[i] - z->ref[i]) * (z->v[i] - z->ref[i]) / (double)D;
        }
        for (int k = 0; k < 2 && fresh; k++) omega[2 * b + k] = fmax(off[k], 1e-5);
        const double r = fmin(fmax(advantage[b] / most, -1), 1) / 2 + 0.5;
        loss += scale.policy * most / beta *
                    (r * square[0] / omega[2 * b] + (1 - r) * square[1] / omega[2 * b + 1]) +
                scale.kl * cfg->nft.kl * gap;
    }
    return loss;
}

static double difference(struct policy_case *c, struct plain *z, double *omega, const double *w,
                         const double *direction)
{
    const double h = 2e-4, at[4] = {h, -h, 2 * h, -2 * h};
    double f[4];
    for (int k = 0; k < 4; k++) {
        policy_case_move(c, w, direction, at[k]);
        f[k] = plain_loss(c, z, omega, false);
    }
    policy_case_move(c, w, NULL, 0);
    return (8 * (f[0] - f[1]) - (f[2] - f[3])) / (12 * h);
}

static void check_gradient(struct comm *world, const struct policy_case_opts *o)
{
    struct policy_case c;
    struct update_stats stats;
    double omega[2 * SAMPLES];
    int64_t n;
    open_case(&c, world, o);
    struct plain z = plain_new(&c);
    const double plain = plain_loss(&c, &z, omega, true), loss = update(&c, &stats);
    double *grad = problem_adapter_grads(&c.f, &n), *w = policy_case_weights(&c, STATE_LORA);
    EXPECT(fabs(loss - plain) < 1e-10 * fabs(plain), "beta %g: loss %.17g, plain %.17g",
           o->rl.nft.beta, loss, plain);
    double terms = 0, size = 0;
    for (int k = 0; k < c.plan.n; k++) terms += stats.step[k].terms;
    EXPECT(terms == 3, "%g terms", terms);
    for (int64_t i = 0; i < n; i++) size += grad[i] * grad[i];
    for (int k = 0; k < (test_fast() ? 3 : 8); k++) {
        double *d = problem_draw(n, (uint64_t)(900 + k)), want = 0;
        for (int64_t i = 0; i < n && k > 3; i++) d[i] *= i % 97 == 8 * k; /* a few elements */
        for (int64_t i = 0; i < n; i++) want += d[i] * grad[i];
        const double got = difference(&c, &z, omega, w, d), of = fmax(fabs(want), 0.1 * sqrt(size));
        EXPECT(fabs(got - want) < 1e-6 * of, "beta %g, kl %g: slope %.12g, differences %.12g",
               o->rl.nft.beta, o->rl.nft.kl, want, got);
        free(d);
    }
    free(grad);
    free(w);
    plain_free(&z);
    policy_case_close(&c);
}

static void test_gradient(struct comm *world)
{
    const struct policy_case_opts list[] = {options(1, 0.5, 2), options(0.1, 0.01, 0),
                                            options(1, 0, 2), thinned(options(0.5, 0.2, 2))};
    for (int i = 0; i < 4; i++) check_gradient(world, &list[i]);
}

/* ---- layouts ----------------------------------------------------------------------------------*/
static double *layout_gradient(struct comm *world, const struct policy_case_opts *o, int64_t *n,
                               double *loss)
{
    struct policy_case c;
    struct update_stats stats;
    open_case(&c, world, o);
    *loss = update(&c, &stats);
    comm_sum_f64(c.f.mesh.axis[AXIS_DP], loss, 1, "loss");
    lora_reduce_grads(c.f.lora, world);
    double *g = problem_adapter_grads(&c.f, n);
    policy_case_close(&c);
    return g;
}

static void test_layouts(struct comm *world)
{
    const int W = world->size;
    const struct mesh_degrees layout[] = {{1, 1, W}, {W, 1, 1}, {1, W, 1}, {2, W / 2, W}};
    for (int i = 0; i < (W == 2 ? 3 : 4); i++) {
        struct policy_case_opts o = thinned(options(0.5, 0.2, 2));
        struct comm *alone = comm_self(NULL);
        int64_t n;
        double loss, want_loss, diff = 0, size = 0,
                                *want = layout_gradient(alone, &o, &n, &want_loss);
        comm_free(alone);
        o.degrees = layout[i];
        double *got = layout_gradient(world, &o, &n, &loss);
        for (int64_t k = 0; k < n; k++) {
            diff += (got[k] - want[k]) * (got[k] - want[k]);
            size += want[k] * want[k];
        }
        EXPECT(diff < 1e-20 * size && fabs(loss / want_loss - 1) < 1e-10,
               "ssp %d x sp %d of %d: gradient %.2g, loss %.12g, not %.12g", layout[i].ssp,
               layout[i].sp, W, sqrt(diff / size), loss, want_loss);
        free(want);
        free(got);
    }
}

/* ---- the adapters that sample -----------------------------------------------------------------*/
static void test_follow(struct comm *world)
{
    const struct policy_case_opts o = options(1, 0, 2);
    struct rl_config early = o.rl, late = o.rl;
    struct policy_case c;
    late.nft.old_decay = 1;
    EXPECT(nft_old_keep(&early, 0) == 0 && nft_old_keep(&early, 100) == 0.1 &&
               nft_old_keep(&early, 4000) == 0.5,
           "early");
    EXPECT(nft_old_keep(&late, 74) == 0 && nft_old_keep(&late, 75) == 0 &&
               fabs(nft_old_keep(&late, 95) - 0.15) < 1e-15 && nft_old_keep(&late, 9999) == 0.999,
           "late");
    open_case(&c, world, &o);
    double *w = policy_case_weights(&c, STATE_LORA), *old = policy_case_weights(&c, STATE_LORA_OLD);
    lora_follow(c.f.lora, 0.25);
    double *now = policy_case_weights(&c, STATE_LORA_OLD), worst = 0;
    for (int64_t i = 0; i < lora_num_elements(c.f.lora); i++)
        worst = fmax(worst, fabs(now[i] - 0.25 * old[i] - 0.75 * w[i]));
    EXPECT(worst < 1e-14, "off by %g", worst);
    free(w);
    free(old);
    free(now);
    policy_case_close(&c);
}

/* (v - v_base)^2 is reported as it is, also where every row of it is far below the quantum. */
static void test_quantum(struct comm *world)
{
    const struct policy_case_opts o = options(1, 0.05, 2);
    struct policy_case c;
    double kl[2];
    open_case(&c, world, &o);
    struct plain z = plain_new(&c);
    for (int k = 0; k < 2; k++) {
        struct update_stats stats;
        if (k) c.p.quantum = 0x1p12;
        update(&c, &stats);
        kl[k] = stats.kl_loss;
    }
    EXPECT(kl[0] > 0 && fabs(kl[1] - kl[0]) < 1e-6 * kl[0], "%.12g, with a large quantum %.12g",
           kl[0], kl[1]);
    plain_free(&z);
    policy_case_close(&c);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "the gradient is that of the objective", .run = test_gradient},
        {.name = "any layout gives the gradient of one rank", .run = test_layouts, .ranks = {2, 4}},
        {.name = "the sampling adapters follow", .run = test_follow},
        {.name = "a divergence below the quantum is reported", .run = test_quantum},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
