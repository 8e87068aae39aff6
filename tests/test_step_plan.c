/* Step plans against the numbers of docs/spec/rl.md 1.4, 1.6, 1.12, 5.2, 5.6. */
#include <math.h>

#include "model/flow.h"
#include "rl/step_plan.h"
#include "tests/check.h"

static struct step_plan_config base(double shift, int64_t size)
{
    return (struct step_plan_config){.steps = 25,
                                     .shift = shift,
                                     .g_rule = G_SIGMA,
                                     .fraction = 1,
                                     .compress = 1,
                                     .window = {.strategy = WINDOW_FIXED, .size = size}};
}

static void near(const char *what, double got, double want, double tol)
{
    EXPECT(fabs(got - want) <= tol, "%s: %.12g, expected %.12g", what, got, want);
}

/* one step */
struct vector {
    double shift, x, v, eps, cx, cv, mean, std, next, logp, ode, tol;
    int i;
};
static void step_vectors(struct comm *world)
{
    (void)world;
    static const struct vector list[] = {
        {1, .5, -.3, .7, .9808, -.040768, .5026304, .192, .6370304, .4863213737, .512, 1e-10, 1},
        {7.5, .5, -.3, -1.1, .99660637, -.00697126, .50039456, .08164590, .41058407, .98142511,
         .50207320, 1e-8, 3}};
    for (int k = 0; k < 2; k++) {
        const struct vector *w = &list[k];
        const struct step_plan_config c = base(w->shift, 10);
        const struct step_plan p = step_plan_make(&c, 0, 0), o = step_plan_ode(25, w->shift);
        const struct plan_step *s = &p.step[w->i], *e = &o.step[w->i];
        const double mean = s->cx * w->x + s->cv * w->v + s->ch * 1e9;
        const double next = mean + s->std * w->eps;
        near("cx", s->cx, w->cx, w->tol);
        near("cv", s->cv, w->cv, w->tol);
        near("mean", mean, w->mean, w->tol);
        near("std", s->std, w->std, w->tol);
        near("next", next, w->next, w->tol);
        near("variance", s->variance, s->std * s->std, 1e-15);
        near("log-density",
             -(next - mean) * (next - mean) / (2 * s->variance) + step_log_constant(s), w->logp,
             w->tol);
        near("ODE", e->cx * w->x + e->cv * w->v, w->ode, w->tol);
    }
}

static void no_noise_is_euler(struct comm *world)
{
    (void)world;
    double sigma[26];
    flow_sampling_sigmas(sigma, 25, 7.5);
    for (int i = 0; i < 25; i++) {
        const struct plan_step a = step_sde(sigma[i], sigma[i + 1], 0),
                               b = step_cps(sigma[i], sigma[i + 1], 0);
        const double dt = sigma[i + 1] - sigma[i];
        EXPECT(a.cx == 1 && a.cv == dt && a.std == 0 && a.variance == 0 && a.kappa == 0, "g = 0");
        EXPECT(b.cx == 1 && b.cv == dt && b.std == 0, "eta = 0");
    }
    struct step_plan_config c = base(7.5, 10);
    c.g_rule = G_ETA_CONST;
    c.split = true;
    const struct step_plan p = step_plan_make(&c, 0, 0);
    EXPECT(p.num_recorded == 0 && p.step[0].mode == STEP_SDE, "nothing to record without noise");
}

static void preserving_coefficients(struct comm *world)
{
    (void)world;
    const double eta[] = {.3, .8, 1};
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < 25; i++) {
            double sigma[26];
            flow_sampling_sigmas(sigma, 25, 3);
            const double s = sigma[i], t = sigma[i + 1], x = .5, v = -.3;
            const struct plan_step p = step_cps(s, t, eta[k]);
            const double std = t * sin(eta[k] * M_PI / 2), clean = x - s * v,
                         noise = x + (1 - s) * v;
            near("std", p.std, std, 1e-15);
            near("mean", p.cx * x + p.cv * v,
                 (1 - t) * clean + sqrt(fmax(0, t * t - std * std)) * noise, 1e-8);
            near("kappa", p.kappa, p.std > 0 ? fabs(p.cv) / p.std : 0, 1e-14);
        }
}

static void rules_of_g(struct comm *world)
{
    (void)world;
    double s[26];
    flow_sampling_sigmas(s, 25, 1);
    near("sigma", step_g(G_SIGMA, 9, s, 25, 3), .88, 1e-14);
    near("eta sigma", step_g(G_ETA_SIGMA, .96, s, 25, 3), .96 * .88, 1e-14);
    near("eta snr", step_g(G_ETA_SNR, .7, s, 25, 3), .7 * sqrt(.88 / .12), 1e-13);
    near("eta snr at 1", step_g(G_ETA_SNR, .7, s, 25, 0), .7 * sqrt(1 / .04), 1e-13);
    near("eta", step_g(G_ETA_CONST, .25, s, 25, 3), .25, 0);
}

static void tables(struct comm *world)
{
    (void)world;
    static const double shift[] = {1, 2.904, 7, 7.5}, s10[] = {.6, .8133, .9130, .9184},
                        sum_v[] = {.2742, .1573, .0804, .0758};
    static const double kappa[2][10] = {
        {.200, .212, .225, .239, .254, .270, .287, .306, .326, .349},
        {.0743, .0777, .0814, .0854, .0898, .0947, .1002, .1063, .1131, .1209}};
    for (int k = 0; k < 4; k++) {
        const struct step_plan_config c = base(shift[k], 10);
        const struct step_plan p = step_plan_make(&c, 0, 0);
        double sum = 0;
        for (int i = 0; i < p.n; i++) sum += p.step[i].variance;
        near("sum of variances", sum, sum_v[k], 5e-5);
        near("sigma_10", p.step[10].sigma, s10[k], 5e-5);
        EXPECT(p.step[9].next == p.step[10].sigma && p.step[0].sigma == 1 && p.step[24].next == 0,
               "grid");
        for (int i = 0; i < 10 && k % 3 == 0; i++)
            near("kappa", p.step[i].kappa, kappa[k / 3][i], k ? 5.1e-5 : 5.1e-4);
    }
}

/* a whole rollout of data ~ N(0, tau^2) */
static double exact(double s, double tau) /* v / x */
{
    const double t = (1 - s) * tau;
    return (s - (1 - s) * tau * tau) / (t * t + s * s);
}

static double final_std(const struct step_plan *p, double tau)
{
    double var = 1;
    for (int i = 0; i < p->n; i++) {
        const struct plan_step *s = &p->step[i];
        const double a = s->cx + s->cv * exact(s->sigma, tau);
        CHECK(s->ch == 0, "not for steps with history");
        var = a * a * var + s->variance;
    }
    return sqrt(var) / tau;
}

static void analytic_rollouts(struct comm *world)
{
    (void)world;
    static const double want[4][7] = {/* s, tau, ODE, first 10, all, Flow-GRPO, DanceGRPO */
                                      {1, 1, .9498564, .9586707, .9612358, .9987, .9522},
                                      {1, .5, .9424028, .9523382, .9590284, .9919, .9483},
                                      {7.5, 1, .8685517, .8689385, .8706694, .8968, .8703},
                                      {7.5, .5, .7682074, .7685535, .7691356, .7932, .7763}};
    for (int k = 0; k < 4; k++) {
        const double *w = want[k];
        struct step_plan_config c = base(w[0], 10);
        struct step_plan p = step_plan_ode(25, w[0]);
        near("ODE", final_std(&p, w[1]), w[2], 1e-7);
        p = step_plan_make(&c, 0, 0);
        near("first 10", final_std(&p, w[1]), w[3], 1e-7);
        c.window.size = 25;
        p = step_plan_make(&c, 0, 0);
        near("all", final_std(&p, w[1]), w[4], 1e-7);
        c.g_rule = G_ETA_CONST;
        c.eta = .25;
        c.last = LAST_EULER;
        p = step_plan_make(&c, 0, 0);
        near("DanceGRPO", final_std(&p, w[1]), w[6], 5.1e-5);
        c.g_rule = G_ETA_SNR;
        c.eta = .7;
        c.window.size = 10;
        p = step_plan_make(&c, 0, 0);
        near("Flow-GRPO", final_std(&p, w[1]), w[5], 5.1e-5);
    }
}

/* multistep */
static double dpmpp(double older, double sigma, double next, double x, double m0, double m1)
{
    const struct plan_step s = step_dpmpp(older, sigma, next);
    return s.cx * x + s.cv * (x - m0) / sigma + s.ch * m1;
}

static void multistep_vectors(struct comm *world)
{
    (void)world;
    near("order 1", dpmpp(-1, .56, .48, .5, .788, 1e9), .5411429, 5.1e-8);
    near("midpoint", dpmpp(.60, .56, .48, .5, .788, .75), .5464492, 5.1e-8);
    static const double special[][3] = {{-1, 1, .98}, {1, .98, .95}, {-1, .9, .7}, {.2, .1, 0}};
    for (int i = 0; i < 4; i++) {
        const double *s = special[i];
        const struct plan_step p = step_dpmpp(s[0], s[1], s[2]);
        EXPECT(p.cx == 1 && p.cv == s[2] - s[1] && p.ch == 0 && p.std == 0 && p.mode == STEP_ODE,
               "order 1 from %g is Euler", s[1]);
    }
    /* by the formula of order 1: (t/s) x + (1-t)(1 - exp(-h)) m0 */
    for (double s = .95; s > .1; s -= .07) {
        const double t = s - .06, x = .5, v = -.3, h = log((1 - t) / t) - log((1 - s) / s);
        const struct plan_step p = step_dpmpp(-1, s, t);
        near("order 1 is Euler", p.cx * x + p.cv * v,
             t / s * x + (1 - t) * (1 - exp(-h)) * (x - s * v), 1e-12);
    }
    near("to 0: the clean latent", dpmpp(.3, .2, 0, .5, .788, .75), .788, 1e-15);
}

static struct step_plan flash(int64_t size, double compress, int solver)
{
    struct step_plan_config c = base(7, size);
    c.solver = solver;
    c.compress = compress;
    return step_plan_make(&c, 0, 0);
}

static void evaluations(struct comm *world)
{
    (void)world;
    static const struct {
        int size, n;
        double compress;
    } list[] = {{4, 11, .4}, {4, 7, .2},   {10, 15, .4}, {10, 17, .5}, {10, 25, 1},
                {4, 5, .01}, {24, 25, .4}, {25, 25, .4}, {25, 25, 1},  {23, 24, .5}};
    for (int k = 0; k < 10; k++)
        for (int solver = ODE_EULER; solver <= ODE_DPMPP_2M; solver++) {
            const struct step_plan p = flash(list[k].size, list[k].compress, solver);
            EXPECT(p.n == list[k].n, "window %d, compress %g: %d evaluations", list[k].size,
                   list[k].compress, p.n);
            EXPECT(p.step[p.n - 1].next == 0, "ends at %g", p.step[p.n - 1].next);
            for (int i = 0; i + 1 < p.n; i++)
                EXPECT(p.step[i].next == p.step[i + 1].sigma && p.step[i].next < p.step[i].sigma,
                       "grid at %d", i);
        }
    /* the points are equally spaced before the shift, and an uncompressed grid is the sampler's */
    const struct step_plan p = flash(4, .4, ODE_DPMPP_2M), whole = flash(4, 1, ODE_DPMPP_2M);
    for (int j = 0; j <= 7; j++)
        near("point", j < 7 ? p.step[4 + j].sigma : p.step[10].next,
             flow_shift(21. / 25 * (7 - j) / 7, 7), 1e-15);
    double sigma[26];
    flow_sampling_sigmas(sigma, 25, 7);
    for (int i = 0; i < 25; i++) EXPECT(whole.step[i].sigma == sigma[i], "point %d", i);
}

/* A rollout with exact v and no noise, its multistep part by the formulas of 5.6 with their own
 * history: x-hat of every step before, stochastic or not, goes into it. */
static void history(struct comm *world)
{
    (void)world;
    const struct step_plan p = flash(4, .4, ODE_DPMPP_2M);
    double x = .7, h = 1e9, y = .7, m1 = 1e9;
    for (int i = 0; i < p.n; i++) {
        const struct plan_step *s = &p.step[i];
        const double tau = .5, v = x * exact(s->sigma, tau), w = y * exact(s->sigma, tau);
        const double m0 = y - s->sigma * w, a = 1 - s->next;
        if (i < 4 || i == p.n - 1) {
            y = s->cx * y + s->cv * w;
            EXPECT(s->ch == 0, "step %d uses the history", i);
        } else {
            const double s1 = p.step[i - 1].sigma, l0 = log((1 - s->sigma) / s->sigma),
                         lam = log(a / s->next) - l0, r0 = (l0 - log((1 - s1) / s1)) / lam;
            y = s->next / s->sigma * y + a * (1 - exp(-lam)) * (m0 + .5 * (m0 - m1) / r0);
            EXPECT(s->ch < 0, "step %d does not use the history", i);
        }
        m1 = m0;
        const double next = s->cx * x + s->cv * v + s->ch * h;
        h = x - s->sigma * v;
        x = next;
        near("state", x, y, 1e-12);
    }
}

/* Deterministic from sigma .9 with the exact history: the error of the second order falls by four
 * where that of Euler falls by two. */
static double solver_error(int n, int solver)
{
    double x = 1, h = 0, sigma = .9, older = -1;
    const double tau = .5, end = .1;
    for (int i = 0; i < n; i++) {
        const double next = .9 + (end - .9) * (i + 1) / n, v = x * exact(sigma, tau);
        const struct plan_step s = step_dpmpp(solver == ODE_EULER ? -1 : older, sigma, next);
        const double to = s.cx * x + s.cv * v + s.ch * h;
        h = x - sigma * v;
        x = to;
        older = sigma;
        sigma = next;
    }
    /* the flow keeps x / std(sigma) */
    return fabs(x - sqrt((.9 * .9 * tau * tau + .01) / (.01 * tau * tau + .81)));
}

static void order(struct comm *world)
{
    (void)world;
    const double e1 = solver_error(40, ODE_EULER) / solver_error(80, ODE_EULER),
                 e2 = solver_error(40, ODE_DPMPP_2M) / solver_error(80, ODE_DPMPP_2M);
    EXPECT(e1 > 1.8 && e1 < 2.3, "Euler: %g", e1);
    EXPECT(e2 > 3.5 && e2 < 4.6, "2M: %g", e2);
}

/* plans */
static void recorded(struct comm *world)
{
    (void)world;
    struct step_plan_config c = base(7, 25);
    struct step_plan p = step_plan_make(&c, 0, 0);
    const struct plan_step *last = &p.step[24];
    EXPECT(p.n == 25 && p.num_recorded == 24 && !last->record && last->std == 0 &&
               last->variance == 0 && last->kappa == 0 && last->cx < 1,
           "the last step: its mean, not recorded");
    c.last = LAST_EULER;
    p = step_plan_make(&c, 0, 0);
    EXPECT(last->mode == STEP_ODE && last->cx == 1 && last->cv == -last->sigma &&
               p.num_recorded == 24,
           "the last step: Euler");
    static const struct {
        double fraction;
        int n;
    } list[] = {{1, 10}, {.99, 9}, {.6, 6}, {.3, 3}, {.01, 1}};
    for (int k = 0; k < 5; k++) {
        c = base(7, 10);
        c.window.start = 3;
        c.fraction = list[k].fraction;
        c.split = k == 0;
        p = step_plan_make(&c, 0, 0);
        EXPECT(p.num_recorded == list[k].n && p.window.first == 3 && p.window.size == 10,
               "fraction %g: %d", c.fraction, p.num_recorded);
        for (int i = 0; i < 25; i++) {
            const struct plan_step *s = &p.step[i];
            const bool noise = i >= 3 && i < 13;
            EXPECT((s->std > 0) == noise && (s->mode != STEP_ODE) == noise &&
                       s->record == (i >= 3 && i < 3 + list[k].n) &&
                       (s->mode == STEP_SPLIT) == (i == 3 && k == 0),
                   "step %d", i);
        }
        for (int j = 0; j < p.num_recorded; j++) EXPECT(p.recorded[j] == 3 + j, "list");
    }
}

static void by_epoch(struct comm *world)
{
    (void)world;
    struct step_plan_config c = base(7, 4);
    c.window =
        (struct window_config){.strategy = WINDOW_PROGRESSIVE, .size = 4, .stride = 1, .iters = 25};
    const struct step_plan p = step_plan_make(&c, 1, 60), q = step_plan_make(&c, 2, 60);
    EXPECT(p.window.first == 2 && p.recorded[0] == 2 && p.num_recorded == 4, "epoch 60");
    for (int i = 0; i < 25; i++)
        EXPECT(p.step[i].mode == q.step[i].mode && p.step[i].cx == q.step[i].cx,
               "the seed changes nothing at step %d", i);
    struct step_plan_config one = base(7, 1);
    one.steps = 1;
    const struct step_plan single = step_plan_make(&one, 0, 0);
    EXPECT(single.n == 1 && single.num_recorded == 0 && single.step[0].std == 0, "one step");
}

static void beyond(void *arg)
{
    (void)arg;
    struct step_plan_config c = base(7, 26);
    (void)step_plan_make(&c, 0, 0);
}
static void refused(struct comm *world)
{
    (void)world;
    expect_stop("window [0, 26) of 25 steps", RC_SOFTWARE, beyond, NULL);
}

/* Euler on its grid is the plan of evaluations; DPM-Solver++ has the coefficients of its levels; a
 * coarser grid ends at 0 too. */
static void quiet_plans(struct comm *world)
{
    (void)world;
    for (int k = 0; k < 4; k++) {
        struct step_plan_config c = base(3, 10);
        c.solver = k % 2 ? ODE_DPMPP_2M : ODE_EULER;
        c.compress = k < 2 ? 1 : 0.4;
        const struct step_plan p = step_plan_quiet(&c), ode = step_plan_ode(25, 3);
        EXPECT(p.n == (k < 2 ? 25 : 9) && p.num_recorded == 0 && p.step[0].sigma == 1 &&
                   p.step[p.n - 1].next == 0,
               "%d steps, %d recorded, from %g to %g", p.n, p.num_recorded, p.step[0].sigma,
               p.step[p.n - 1].next);
        for (int i = 0; i < p.n; i++) {
            const struct plan_step *s = &p.step[i];
            const struct plan_step want =
                k % 2 ? step_dpmpp(i ? p.step[i - 1].sigma : -1, s->sigma, s->next) : ode.step[i];
            EXPECT(s->std == 0 && s->mode == STEP_ODE && (i == 0 || p.step[i - 1].next == s->sigma),
                   "step %d of plan %d", i, k);
            if (k == 2)
                EXPECT(s->cx == 1 && s->cv == s->next - s->sigma, "step %d is not Euler", i);
            else
                EXPECT(s->cx == want.cx && s->cv == want.cv && s->ch == want.ch &&
                           (k || s->sigma == want.sigma),
                       "step %d of plan %d has other coefficients", i, k);
            if (k % 2 && i > 1 && i < p.n - 1) EXPECT(s->ch != 0, "step %d has no history", i);
        }
    }
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {"vectors of a step", step_vectors, {0}, 0},
        {"a step without noise is an Euler step exactly", no_noise_is_euler, {0}, 0},
        {"coefficients preserving sampling", preserving_coefficients, {0}, 0},
        {"rules of g", rules_of_g, {0}, 0},
        {"variances, levels and kappa of the tables", tables, {0}, 0},
        {"analytic rollouts have the expected spread", analytic_rollouts, {0}, 0},
        {"vectors of DPM-Solver++", multistep_vectors, {0}, 0},
        {"compressed grids: evaluations, points, end at 0", evaluations, {0}, 0},
        {"the history is the clean latent of the step before", history, {0}, 0},
        {"order of the solvers", order, {0}, 0},
        {"which steps are recorded", recorded, {0}, 0},
        {"the plan of an epoch", by_epoch, {0}, 0},
        {"plans without a stochastic step", quiet_plans, {0}, 0},
        {"what makes no sense is refused", refused, {0}, 0},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
