/* The table of docs/spec/rl.md 1.6: samplers on data of N(0, tau^2), whose velocity is known
 * exactly. The deviation of a million elements, and the same by the scalar recursion. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "rl/algo.h"
#include "tests/check.h"
#include "tests/policy_case.h"

enum { C = 4, T = 4, H = 256, W = 256, ROWS = T * (H / 2) * (W / 2), D = C * T * H * W, N = 25 };
enum sampler { ODE, SDE_10, SDE_ALL, FLOW, DANCE, SAMPLERS };
static const char *const names[] = {"ODE", "SDE first 10", "SDE all", "Flow-GRPO", "DanceGRPO"};
static const struct {
    double shift, tau, want[SAMPLERS], exact[3];
} table[] = {
    {1.0, 1.0, {.9499, .9587, .9612, .9987, .9522}, {.9498564, .9586707, .9612358}},
    {1.0, 0.5, {.9424, .9523, .9590, .9919, .9483}, {.9424028, .9523382, .9590284}},
    {7.5, 1.0, {.8686, .8689, .8707, .8968, .8703}, {.8685517, .8689385, .8706694}},
    {7.5, 0.5, {.7682, .7686, .7691, .7932, .7763}, {.7682074, .7685535, .7691356}},
};
enum { ROWS_OF_TABLE = sizeof table / sizeof *table };

static struct step_plan plan_of(enum sampler s, double shift)
{
    static const int algo[] = {ALGO_MIX_GRPO, ALGO_MIX_GRPO, ALGO_MIX_GRPO, ALGO_FLOW_GRPO,
                               ALGO_DANCE_GRPO};
    struct rl_config c = policy_case_config(algo[s]);
    struct err e = {0};
    c.steps = N;
    c.sde_steps = s == SDE_ALL ? N : 10;
    c.shift = shift;
    if (s == FLOW) c.window_size = 10;
    CHECK(algo_resolve(&c, &e), "%s", e.msg);
    return s == ODE ? step_plan_ode(N, shift) : algo_step_plan(&c, 1, 0);
}

/* v / x */
static double slope(double sigma, double tau)
{
    const double k = 1 - sigma;
    return (sigma - k * tau * tau) / (k * k * tau * tau + sigma * sigma);
}

static double recursion(const struct step_plan *p, double tau)
{
    double var = 1;
    for (int i = 0; i < p->n; i++) {
        const struct plan_step *s = &p->step[i];
        const double f = s->cx + s->cv * slope(s->sigma, tau);
        var = f * f * var + s->variance;
    }
    return sqrt(var) / tau;
}

static void test_recursion(struct comm *world)
{
    (void)world;
    for (int r = 0; r < ROWS_OF_TABLE; r++)
        for (int s = 0; s < SAMPLERS; s++) {
            const struct step_plan p = plan_of((enum sampler)s, table[r].shift);
            const double got = recursion(&p, table[r].tau);
            EXPECT(fabs(got - table[r].want[s]) < 6e-5 &&
                       (s > SDE_ALL || fabs(got - table[r].exact[s]) < 1e-6),
                   "shift %g, tau %g, %s: %.7f, not %.4f", table[r].shift, table[r].tau, names[s],
                   got, table[r].want[s]);
        }
}

/* ---- a million elements -----------------------------------------------------------------------*/
struct field {
    struct dev *dev;
    struct tensor x, next, v, pos;
    float *host, *wide;
};

static struct field field_open(void)
{
    struct field f = {.dev = dev_open("cpu", DT_F32, 1)};
    int16_t *at = calloc((size_t)(3 * ROWS), sizeof *at);
    for (int r = 0; r < ROWS; r++) {
        at[3 * r] = (int16_t)(r / (H / 2 * (W / 2)));
        at[3 * r + 1] = (int16_t)(r / (W / 2) % (H / 2));
        at[3 * r + 2] = (int16_t)(r % (W / 2));
    }
    f.x = dev_tensor(f.dev, DT_F32, 2, DIMS(ROWS, 4 * C));
    f.next = dev_tensor(f.dev, DT_F32, 2, DIMS(ROWS, 4 * C));
    f.v = dev_tensor(f.dev, DT_F32, 2, DIMS(ROWS, 4 * C));
    f.pos = dev_tensor(f.dev, DT_I16, 2, DIMS(ROWS, 3));
    dev_put(f.dev, f.pos, at);
    f.host = calloc(D, sizeof *f.host);
    f.wide = calloc(D, sizeof *f.wide);
    free(at);
    return f;
}

static void field_close(struct field *f)
{
    const struct tensor all[] = {f->x, f->next, f->v, f->pos};
    for (int i = 0; i < 4; i++) dev_free(f->dev, all[i].data);
    free(f->host);
    free(f->wide);
    dev_close(f->dev);
}

static struct rng_key key(uint32_t step)
{
    return (struct rng_key){.seed = 3, .use = RNG_SDE, .step = step, .item = 8};
}

/* Rows of x in PATCH_IN order, v in PATCH_OUT order. */
static void exact_velocity(struct field *f, double sigma, double tau)
{
    const float a = (float)slope(sigma, tau);
    dev_get(f->dev, f->host, f->x);
    for (int64_t r = 0; r < ROWS; r++)
        for (int ch = 0; ch < C; ch++)
            for (int q = 0; q < 4; q++)
                f->wide[r * 4 * C + q * C + ch] = a * f->host[r * 4 * C + ch * 4 + q];
    dev_put(f->dev, f->v, f->wide);
}

static double deviation(struct field *f)
{
    double sum = 0, square = 0;
    dev_get(f->dev, f->host, f->x);
    for (int64_t i = 0; i < D; i++) {
        sum += (double)f->host[i];
        square += (double)f->host[i] * (double)f->host[i];
    }
    return sqrt(square / D - sum / D * (sum / D));
}

static double sampled(struct field *f, const struct step_plan *p, double tau)
{
    f->dev->ops->rng_normal(f->dev, tensor_view(f->x, 1, DIMS(D)), rng_open(key(0)), 0, 1);
    for (int i = 0; i < p->n; i++) {
        const struct plan_step *s = &p->step[i];
        const struct rng_key noise = key((uint32_t)i + 1);
        exact_velocity(f, s->sigma, tau);
        const struct solver_step_args a = {.next = f->next,
                                           .x = f->x,
                                           .c = f->v,
                                           .pos = f->pos,
                                           .t = T,
                                           .height = H,
                                           .width = W,
                                           .cx = s->cx,
                                           .cv = s->cv,
                                           .ch = s->ch,
                                           .sigma = s->sigma,
                                           .std = s->std,
                                           .noise = s->std > 0 ? &noise : NULL,
                                           .batch = 1};
        f->dev->ops->solver_step(f->dev, &a);
        const struct tensor x = f->x;
        f->x = f->next;
        f->next = x;
    }
    return deviation(f) / tau;
}

static void test_samples(struct comm *world)
{
    (void)world;
    if (!dev_supports("cpu", DT_F32)) {
        test_skip("no cpu device");
        return;
    }
    struct field f = field_open();
    for (int r = 0; r < ROWS_OF_TABLE; r++)
        for (int s = 0; s < SAMPLERS; s++) {
            if (test_fast() && (r + s) % 4) continue;
            const struct step_plan p = plan_of((enum sampler)s, table[r].shift);
            const double got = sampled(&f, &p, table[r].tau);
            EXPECT(fabs(got - table[r].want[s]) < 3e-3, "shift %g, tau %g, %s: %.4f, not %.4f",
                   table[r].shift, table[r].tau, names[s], got, table[r].want[s]);
        }
    field_close(&f);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "the table by its recursion", .run = test_recursion},
        {.name = "the table by a million elements", .run = test_samples},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
