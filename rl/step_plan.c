#include "rl/step_plan.h"

#include <math.h>

#include "core/err.h"
#include "model/flow.h"

static const double PI = 3.14159265358979323846;

double step_g(int rule, double eta, const double *sigma, int n, int i)
{
    CHECK(i >= 0 && i < n, "step %d of %d", i, n);
    const double s = sigma[i];
    switch (rule) {
    case G_SIGMA:
        return s;
    case G_ETA_SIGMA:
        return eta * s;
    case G_ETA_SNR:
        return eta * sqrt(s / (1 - (s == 1 ? sigma[1] : s)));
    default:
        CHECK(rule == G_ETA_CONST, "rule %d has no g", rule);
        return eta;
    }
}

static struct plan_step euler(double sigma, double next)
{
    return (struct plan_step){
        .mode = STEP_ODE, .sigma = sigma, .next = next, .cx = 1, .cv = next - sigma};
}

static void set_noise(struct plan_step *s, double std, double variance)
{
    s->mode = STEP_SDE;
    s->std = std;
    s->variance = variance;
    s->kappa = std > 0 ? fabs(s->cv) / std : 0;
}

struct plan_step step_sde(double sigma, double next, double g)
{
    CHECK(sigma > next && next >= 0 && g >= 0, "stochastic step from %g to %g with g = %g", sigma,
          next, g);
    struct plan_step s = euler(sigma, next);
    const double dt = next - sigma, half = g * g / (2 * sigma);
    s.cx = 1 + half * dt;
    s.cv = (1 + half * (1 - sigma)) * dt;
    set_noise(&s, g * sqrt(-dt), g * g * -dt);
    return s;
}

/* mean = (1-next)*clean + sqrt(next^2 - std^2)*noise, clean = x - sigma*v, noise = x + (1-sigma)*v
 */
struct plan_step step_cps(double sigma, double next, double eta)
{
    CHECK(sigma > next && next >= 0 && eta >= 0 && eta <= 1,
          "coefficients preserving step from %g to %g with eta = %g", sigma, next, eta);
    struct plan_step s = euler(sigma, next);
    const double std = next * sin(eta * PI / 2), keep = next * cos(eta * PI / 2);
    if (std > 0) {
        s.cx = 1 - next + keep;
        s.cv = (1 - sigma) * keep - sigma * (1 - next);
    }
    set_noise(&s, std, std * std);
    return s;
}

static double log_snr(double sigma) { return log((1 - sigma) / sigma); }

/* Order 1 is an Euler step: with clean = x - sigma*v its x and v terms collapse to that. At
 * sigma = 1 the log-SNR is -inf and with it the difference of the history 0. */
struct plan_step step_dpmpp(double older, double sigma, double next)
{
    CHECK(sigma > next && next >= 0 && (older < 0 || older > sigma), "multistep from %g, %g to %g",
          older, sigma, next);
    struct plan_step s = euler(sigma, next);
    if (older < 0 || older >= 1 || next == 0) return s;
    const double h = log_snr(next) - log_snr(sigma);
    const double r0 = (log_snr(sigma) - log_snr(older)) / h;
    const double half = (1 - next) * -expm1(-h) / (2 * r0);
    s.cx += half;
    s.cv -= half * sigma;
    s.ch = -half;
    return s;
}

double step_log_constant(const struct plan_step *s)
{
    CHECK(s->variance > 0, "a step without noise has no density");
    return -0.5 * log(s->variance) - 0.5 * log(2 * PI);
}

static struct plan_step stochastic(const struct step_plan_config *c, const double *sigma, int i)
{
    const int n = (int)c->steps;
    struct plan_step s = c->g_rule == G_CPS ? step_cps(sigma[i], sigma[i + 1], c->eta)
                                            : step_sde(sigma[i], sigma[i + 1],
                                                       step_g(c->g_rule, c->eta, sigma, n, i));
    if (i == n - 1) set_noise(&s, 0, 0); /* its mean */
    return s;
}

/* The steps after the last stochastic one, from point `from` of the grid on; at least one when
 * sigma is not 0 there. */
static void add_ode(struct step_plan *p, const struct step_plan_config *c, int from)
{
    const double start = 1 - (double)from / (double)c->steps;
    int steps = (int)c->steps - from;
    const bool regrid = steps > 1 && c->compress < 1;
    if (regrid) {
        const int points = (int)((double)(steps + 1) * c->compress);
        steps = points < 2 ? 1 : points - 1;
    }
    double older = p->n ? p->step[p->n - 1].sigma : -1;
    double sigma = flow_shift(start, c->shift);
    for (int j = 1; j <= steps; j++) {
        /* a grid that is kept is kept to the last bit */
        const double u =
            regrid ? start * (1 - (double)j / steps) : 1 - (double)(from + j) / (double)c->steps;
        const double next = flow_shift(u, c->shift);
        p->step[p->n++] =
            c->solver == ODE_DPMPP_2M ? step_dpmpp(older, sigma, next) : euler(sigma, next);
        older = sigma;
        sigma = next;
    }
}

static void mark(struct step_plan *p, const struct step_plan_config *c)
{
    int count = 0;
    for (int i = 0; i < p->n; i++) count += p->step[i].std > 0;
    int record = (int)((double)count * c->fraction);
    if (record < 1) record = 1;
    for (int i = 0; i < p->n && p->num_recorded < record; i++) {
        struct plan_step *s = &p->step[i];
        if (s->std <= 0) continue;
        if (c->split && p->num_recorded == 0) s->mode = STEP_SPLIT;
        s->record = true;
        p->recorded[p->num_recorded++] = i;
    }
}

static void check(const struct step_plan_config *c)
{
    CHECK(c->steps >= 1 && c->steps <= MAX_PLAN_STEPS, "%lld steps", (long long)c->steps);
    CHECK(c->shift > 0 && c->eta >= 0, "shift %g, eta %g", c->shift, c->eta);
    CHECK(c->fraction > 0 && c->fraction <= 1, "fraction %g of the steps", c->fraction);
    CHECK(c->compress > 0 && c->compress <= 1, "compress %g", c->compress);
}

struct step_plan step_plan_make(const struct step_plan_config *c, uint64_t seed, int64_t epoch)
{
    check(c);
    const int n = (int)c->steps;
    struct step_plan p = {.window = window_at(&c->window, n, seed, epoch)};
    double sigma[MAX_PLAN_STEPS + 1];
    flow_sampling_sigmas(sigma, n, c->shift);
    int end = p.window.first + p.window.size;
    if (end == n && c->last == LAST_EULER) end--; /* step n-1 belongs to the ODE part */
    for (; p.n < end; p.n++)
        p.step[p.n] =
            p.n < p.window.first ? euler(sigma[p.n], sigma[p.n + 1]) : stochastic(c, sigma, p.n);
    add_ode(&p, c, end);
    mark(&p, c);
    return p;
}

struct step_plan step_plan_ode(int steps, double shift)
{
    CHECK(steps >= 1 && steps <= MAX_PLAN_STEPS && shift > 0, "%d steps, shift %g", steps, shift);
    struct step_plan p = {.n = steps};
    double sigma[MAX_PLAN_STEPS + 1];
    flow_sampling_sigmas(sigma, steps, shift);
    for (int i = 0; i < steps; i++) p.step[i] = euler(sigma[i], sigma[i + 1]);
    return p;
}

struct step_plan step_plan_quiet(const struct step_plan_config *c)
{
    struct step_plan p = {0};
    check(c);
    add_ode(&p, c, 0);
    return p;
}
