/* The rows of a guided pass (model/guided.h): each kind is what a pass of its own gives, with its
 * text, with its adapters or without, every sample at its noise level. */
#include <math.h>
#include <stdlib.h>

#include "tests/check.h"
#include "tests/policy_case.h"

enum { SAMPLES = 4 };
static const double sigma[SAMPLES] = {0.9, 0.35, 0.6, 0.1};

static struct policy_case_opts options(double guidance, double kl_beta, int S, int U)
{
    struct policy_case_opts o = {.device = "ref",
                                 .compute = DT_F64,
                                 .model = policy_case_model(2, 2, 2),
                                 .t = 2,
                                 .h = 3,
                                 .w = 3,
                                 .degrees = {S, U, 1},
                                 .rl = policy_case_config(ALGO_MIX_GRPO)};
    o.rl.guidance = guidance;
    o.rl.kl_beta = kl_beta;
    return o;
}

/* Velocities of all kinds of the pass at the same states; negative: all samples with the text of
 * the negative prompt. */
static void velocities(struct policy_case *c, bool negative, double *out[GUIDED_KINDS])
{
    struct ctx *x = &c->f.ctx;
    struct guided *g = c->p.train;
    const int64_t n = SAMPLES * c->p.elements;
    int64_t prompt[SAMPLES];
    arena_release(x->keep, 0);
    double *z = problem_draw(n, 44);
    struct tensor latent =
        arena_new(x->keep, DT_F64, 5,
                  DIMS(SAMPLES, c->p.latent[0], c->p.latent[1], c->p.latent[2], c->p.latent[3]));
    struct tensor rows = arena_new(x->keep, DT_F64, 2, DIMS(g->rows, 4 * c->p.latent[0]));
    dev_put_f64(x->dev, latent, z);
    x->dev->ops->patch_rows(x->dev, rows, latent, guided_pos(g), PATCH_IN);
    for (int b = 0; b < SAMPLES; b++) prompt[b] = negative ? -1 : 7 * b;
    const struct tensor text = policy_text(&c->p, prompt, SAMPLES),
                        null = policy_null_text(&c->p, SAMPLES),
                        v = policy_velocity(&c->p, g, rows, text, null, sigma, NULL, false);
    for (int k = 0; k < GUIDED_KINDS; k++) {
        const struct tensor of = guided_rows(g, v, (enum guided_kind)k);
        out[k] = of.data ? calloc((size_t)n, sizeof(double)) : NULL;
        if (out[k]) policy_case_latents(c, g, of, PATCH_OUT, out[k]);
    }
    free(z);
}

static double gap(const double *a, const double *b, int64_t n)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++) worst = fmax(worst, fabs(a[i] - b[i]));
    return worst;
}

static void check_layout(struct comm *world, int S, int U)
{
    struct policy_case c;
    const struct policy_case_opts all = options(2, 1, S, U), one = options(0, 0, S, U);
    double *got[GUIDED_KINDS], *want[GUIDED_KINDS], *alone[GUIDED_KINDS];
    policy_case_open(&c, world, &all);
    const int64_t n = SAMPLES * c.p.elements;
    velocities(&c, false, got);
    policy_case_close(&c);
    policy_case_open(&c, world, &one);
    for (int k = 0; k < GUIDED_KINDS; k++) {
        if (k == GUIDED_REF_COND) lora_init_params(c.f.lora, 1); /* no effect: the base */
        velocities(&c, k == GUIDED_UNCOND || k == GUIDED_REF_UNCOND, alone);
        want[k] = alone[GUIDED_COND];
    }
    policy_case_close(&c);
    for (int k = 0; k < GUIDED_KINDS; k++)
        for (int j = 0; j < GUIDED_KINDS; j++) {
            const double e = gap(got[k], want[j], n);
            EXPECT(k == j ? e < 1e-12 : e > 1e-3, "ssp %d x sp %d: kind %d is %g from kind %d", S,
                   U, k, e, j);
        }
    for (int k = 0; k < GUIDED_KINDS; k++) {
        free(got[k]);
        free(want[k]);
    }
}

static void test_kinds(struct comm *world)
{
    check_layout(world, world->size, 1);
    if (world->size > 1) check_layout(world, 1, world->size);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "every kind is a pass of its own", .run = test_kinds, .ranks = {1, 2, 4}},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
