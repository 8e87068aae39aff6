#include "rl/algo.h"

/* What an algorithm sets where the configuration says nothing. Sources: docs/spec/rl.md 5. */
struct preset {
    const char *name;
    enum window_strategy window;
    int64_t start, size, stride, iters; /* size -1: sde_steps; 0: all steps */
    bool half;                          /* the window stays in the first half of the steps */
    enum g_rule g;
    double eta;
    enum last_step last;
    bool split;
    double fraction;
    bool shuffle;
    enum ode_solver solver;
    double compress;
    bool same_noise;
    int64_t ddof;
    double adv_eps;
};
static const struct preset presets[] = {[ALGO_MIX_GRPO] = {.name = "mix_grpo",
                                                           .window = WINDOW_FIXED,
                                                           .size = -1,
                                                           .g = G_SIGMA,
                                                           .fraction = 1,
                                                           .compress = 1,
                                                           .adv_eps = 1e-4},
                                        [ALGO_MIX_GRPO_WINDOW] = {.name = "mix_grpo_window",
                                                                  .window = WINDOW_PROGRESSIVE,
                                                                  .size = 4,
                                                                  .stride = 1,
                                                                  .iters = 25,
                                                                  .g = G_ETA_SNR,
                                                                  .eta = 0.7,
                                                                  .fraction = 1,
                                                                  .compress = 1,
                                                                  .same_noise = true,
                                                                  .ddof = 1,
                                                                  .adv_eps = 1e-8},
                                        [ALGO_MIX_GRPO_FLASH] = {.name = "mix_grpo_flash",
                                                                 .window = WINDOW_PROGRESSIVE,
                                                                 .size = 4,
                                                                 .stride = 1,
                                                                 .iters = 25,
                                                                 .g = G_ETA_SNR,
                                                                 .eta = 0.7,
                                                                 .fraction = 1,
                                                                 .solver = ODE_DPMPP_2M,
                                                                 .compress = 0.4,
                                                                 .same_noise = true,
                                                                 .ddof = 1,
                                                                 .adv_eps = 1e-8},
                                        [ALGO_FLOW_GRPO] = {.name = "flow_grpo",
                                                            .window = WINDOW_FIXED,
                                                            .g = G_ETA_SNR,
                                                            .eta = 0.7,
                                                            .fraction = 1,
                                                            .compress = 1,
                                                            .adv_eps = 1e-4},
                                        [ALGO_FLOW_GRPO_FAST] = {.name = "flow_grpo_fast",
                                                                 .window = WINDOW_RANDOM,
                                                                 .size = 2,
                                                                 .half = true,
                                                                 .g = G_ETA_SNR,
                                                                 .eta = 0.7,
                                                                 .split = true,
                                                                 .fraction = 1,
                                                                 .compress = 1,
                                                                 .same_noise = true,
                                                                 .adv_eps = 1e-4},
                                        [ALGO_DANCE_GRPO] = {.name = "dance_grpo",
                                                             .window = WINDOW_FIXED,
                                                             .g = G_ETA_CONST,
                                                             .eta = 0.25,
                                                             .last = LAST_EULER,
                                                             .fraction = 0.6,
                                                             .shuffle = true,
                                                             .compress = 1,
                                                             .same_noise = true,
                                                             .ddof = 1,
                                                             .adv_eps = 1e-8},
                                        [ALGO_NFT] = {.name = "nft",
                                                      .window = WINDOW_FIXED,
                                                      .size = 1,
                                                      .fraction = 0.99,
                                                      .shuffle = true,
                                                      .compress = 1,
                                                      .adv_eps = 1e-4}};

const char *algo_name(int algo) { return presets[algo].name; }

static void fill_int(int64_t *x, int64_t value)
{
    if (*x < 0) *x = value;
}
static void fill_real(double *x, double value)
{
    if (*x < 0) *x = value;
}
static void fill_choice(int *x, int value)
{
    if (*x == 0) *x = 1 + value;
}

/* Of a rule that is not the algorithm's own. */
static double usual_eta(int rule)
{
    return rule == G_ETA_SNR ? 0.7 : rule == G_ETA_CONST ? 0.25 : rule == G_CPS ? 0.8 : 1;
}

/* Every epoch must have a step with noise that is not the last one. */
static bool check_noise(const struct rl_config *c, struct err *e)
{
    const int rule = c->g_rule - 1;
    const bool fixed = c->window == 1 + WINDOW_FIXED;
    const int64_t last = fixed ? c->window_start + c->window_size : c->window_limit;
    if (rule != G_SIGMA && !(c->eta > 0))
        err_set(e, RC_CONFIG, "sde.eta: %g; without noise nothing can be trained", c->eta);
    else if (rule == G_CPS && c->eta > 1)
        err_set(e, RC_CONFIG, "sde.eta: %g; at most 1 with sde.g_rule: cps", c->eta);
    else if (c->window_size == 1 && last == c->steps)
        err_set(e, RC_CONFIG,
                "window.%s: a window of one step may not be at the last of the %lld steps, which "
                "has no noise",
                fixed ? "start" : "limit", (long long)c->steps);
    return !e->code;
}

static bool check_window(const struct rl_config *c, struct err *e)
{
    const int64_t limit = c->window_limit, N = c->steps;
    if (c->window_size < 1 || c->window_size > N)
        err_set(e, RC_CONFIG, "window.size: %lld of %lld steps", (long long)c->window_size,
                (long long)N);
    else if (c->window_start + c->window_size > N)
        err_set(e, RC_CONFIG, "window.start: %lld + size %lld is above the %lld steps",
                (long long)c->window_start, (long long)c->window_size, (long long)N);
    else if (c->window != 1 + WINDOW_FIXED && (limit < c->window_size || limit > N))
        err_set(e, RC_CONFIG, "window.limit: %lld must be from window.size %lld to %lld steps",
                (long long)limit, (long long)c->window_size, (long long)N);
    return !e->code;
}

static void fill_window(struct rl_config *c, const struct preset *p)
{
    fill_choice(&c->window, (int)p->window);
    fill_int(&c->window_start, p->start);
    fill_int(&c->sde_steps, c->steps < 10 ? c->steps : 10);
    fill_int(&c->window_size, p->size < 0 ? c->sde_steps : p->size ? p->size : c->steps);
    fill_int(&c->window_stride, p->stride);
    fill_int(&c->window_iters, p->iters ? p->iters : 1);
    const int64_t whole = c->steps > 2 ? c->steps - 2 : 1;
    int64_t limit = p->half ? c->steps / 2 : whole;
    if (limit < c->window_size) limit = c->window_size;
    fill_int(&c->window_limit, limit);
}

bool algo_resolve(struct rl_config *c, struct err *e)
{
    const struct preset *p = &presets[c->algo];
    fill_window(c, p);
    fill_choice(&c->g_rule, (int)p->g);
    fill_real(&c->eta, c->g_rule == 1 + (int)p->g ? p->eta : usual_eta(c->g_rule - 1));
    fill_real(&c->fraction, p->fraction);
    fill_choice(&c->shuffle_steps, p->shuffle);
    fill_choice(&c->solver, (int)p->solver);
    fill_real(&c->compress, p->compress);
    fill_choice(&c->same_noise, p->same_noise);
    if (c->algo == ALGO_NFT) c->same_noise = 1 + false; /* nothing else tells its samples apart */
    fill_int(&c->ddof, p->ddof);
    fill_real(&c->adv_eps, p->adv_eps);
    if (c->steps >= MAX_PLAN_STEPS)
        err_set(e, RC_CONFIG, "rl_config.num_inference_steps: %lld is above %d",
                (long long)c->steps, MAX_PLAN_STEPS - 1);
    if (!e->code && c->algo != ALGO_NFT && c->steps < 2)
        err_set(e, RC_CONFIG,
                "rl_config.num_inference_steps: the last step is never trained, so "
                "at least 2 are needed");
    if (e->code || c->algo == ALGO_NFT) return !e->code;
    return check_window(c, e) && check_noise(c, e);
}

struct step_plan_config algo_plan(const struct rl_config *c)
{
    const struct preset *p = &presets[c->algo];
    return (struct step_plan_config){.steps = c->steps,
                                     .shift = c->shift,
                                     .g_rule = c->g_rule - 1,
                                     .eta = c->eta,
                                     .last = (int)p->last,
                                     .split = p->split,
                                     .fraction = c->fraction,
                                     .solver = c->solver - 1,
                                     .compress = c->compress,
                                     .window = {.strategy = c->window - 1,
                                                .start = c->window_start,
                                                .size = c->window_size,
                                                .stride = c->window_stride,
                                                .iters = c->window_iters,
                                                .min_iters = c->window_min_iters,
                                                .decay_rate = c->window_rate,
                                                .decay_from = c->window_from,
                                                .roll_back = c->roll_back,
                                                .limit = c->window_limit}};
}

struct step_plan algo_step_plan(const struct rl_config *c, uint64_t seed, int64_t epoch)
{
    const struct step_plan_config p = algo_plan(c);
    if (c->algo == ALGO_NFT) return step_plan_quiet(&p);
    return step_plan_make(&p, seed, epoch);
}

int algo_steps_trained(const struct rl_config *c, const struct step_plan *p)
{
    const int n = (int)(p->n * c->fraction);
    return c->algo != ALGO_NFT ? p->num_recorded : n > 0 ? n : 1;
}

struct adv_config algo_advantage(const struct rl_config *c, const struct reward_settings *r,
                                 int dims)
{
    struct adv_config a = {.dims = dims,
                           .scale = c->global_std ? ADV_GLOBAL_STD : ADV_GROUP_STD,
                           .aggregate = c->adv_aggregate,
                           .ddof = c->ddof,
                           .eps = c->adv_eps,
                           .clip_max = c->adv_clip_max,
                           .min_group = r->min_group,
                           .merge_same_prompt = c->merge_same_prompt,
                           .best_of = c->best_of,
                           .whole_epoch = !c->group_stats || c->members == 1};
    for (int k = 0; k < dims; k++) a.weight[k] = k < r->weights.n ? r->weights.v[k] : 1;
    return a;
}

struct groups_config algo_groups(const struct rl_config *c, int64_t num_prompts, int dp,
                                 uint64_t seed)
{
    return (struct groups_config){.num_prompts = num_prompts,
                                  .members = c->members,
                                  .batch = c->sample_batch,
                                  .batches = c->batches,
                                  .dp = dp,
                                  .scatter = c->placement == 0,
                                  .same_noise = c->same_noise == 2,
                                  .seed = seed};
}
