/* Rollouts: every step by hand in the latents, what members of a group share, densities that do not
 * depend on the layout, and the table of docs/spec/rl.md 1.6. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "tests/policy_case.h"

enum { SAMPLES = 4 };

static struct policy_case_opts options(int algo, int epoch)
{
    struct policy_case_opts o = {.device = "ref",
                                 .compute = DT_F64,
                                 .model = policy_case_model(2, 2, 2),
                                 .t = 2,
                                 .h = 3,
                                 .w = 3,
                                 .rl = policy_case_config(algo),
                                 .epoch = epoch};
    o.rl.steps = 8;
    o.rl.sde_steps = 3;
    o.rl.guidance = algo == ALGO_FLOW_GRPO ? 2.5 : 0;
    return o;
}

static double worst_gap(const double *a, const double *b, int64_t n)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++) worst = fmax(worst, fabs(a[i] - b[i]));
    return worst;
}

/* ---- by hand ----------------------------------------------------------------------------------*/
/* Guided velocities at x before step i, all [SAMPLES][D]; a trained step has dropout. */
static void velocity(struct policy_case *c, const double *x, int step, double *v)
{
    const struct plan_step *s = &c->plan.step[step];
    struct ctx *d = &c->f.ctx;
    const struct guided *g = c->p.roll;
    const int64_t n = SAMPLES * c->p.elements;
    int64_t prompt[SAMPLES];
    double level[SAMPLES];
    struct rng_key mask[SAMPLES];
    policy_case_masks(c, step, mask);
    arena_release(d->keep, 0);
    struct tensor z =
        arena_new(d->keep, DT_F64, 5,
                  DIMS(SAMPLES, c->p.latent[0], c->p.latent[1], c->p.latent[2], c->p.latent[3]));
    struct tensor rows = arena_new(d->keep, DT_F64, 2, DIMS(g->rows, 4 * c->p.latent[0]));
    dev_put_f64(d->dev, z, x);
    d->dev->ops->patch_rows(d->dev, rows, z, guided_pos(g), PATCH_IN);
    for (int b = 0; b < SAMPLES; b++) prompt[b] = c->entry[b].prompt, level[b] = s->sigma;
    const struct tensor text = policy_text(&c->p, prompt, SAMPLES),
                        null = policy_null_text(&c->p, SAMPLES),
                        all = policy_velocity(&c->p, c->p.roll, rows, text, null, level,
                                              s->record ? mask : NULL, false),
                        u = guided_rows(g, all, GUIDED_UNCOND);
    policy_case_latents(c, g, guided_rows(g, all, GUIDED_COND), PATCH_OUT, v);
    if (!u.data) return;
    double *base = calloc((size_t)n, sizeof *base);
    policy_case_latents(c, g, u, PATCH_OUT, base);
    for (int64_t i = 0; i < n; i++) v[i] = base[i] + c->rl.guidance * (v[i] - base[i]);
    free(base);
}

/* step 0: the initial noise; member -1: the sample's own number. */
static void noise(const struct policy_case *c, int b, uint32_t step, bool of_group, double *out)
{
    const struct group_entry *e = &c->entry[b];
    const struct rng_stream s = rng_open(
        (struct rng_key){.seed = CASE_SEED,
                         .use = RNG_SDE,
                         .step = step,
                         .item = (uint64_t)(of_group ? e->group * c->rl.members : e->sample)});
    for (int64_t i = 0; i < c->p.elements; i++)
        out[i] = (double)(float)rng_normal_at(s, (uint64_t)i);
}

struct by_hand {
    double *x, *next, *h, *v, *eps, *kept;
};

static double step_by_hand(struct policy_case *c, struct by_hand *w, int i)
{
    const struct plan_step *s = &c->plan.step[i];
    const int64_t D = c->p.elements;
    double worst = 0;
    velocity(c, w->x, i, w->v);
    for (int b = 0; b < SAMPLES; b++) {
        double sum = 0;
        if (s->std > 0) noise(c, b, (uint32_t)i + 1, false, w->eps);
        for (int64_t k = b * D; k < (b + 1) * D; k++) {
            const double mean = s->cx * w->x[k] + s->cv * w->v[k];
            w->next[k] = mean + s->ch * w->h[k] + (s->std > 0 ? s->std * w->eps[k - b * D] : 0);
            w->h[k] = w->x[k] - s->sigma * w->v[k];
            if (s->record) sum += (w->next[k] - mean) * (w->next[k] - mean) / (2 * s->variance);
        }
        for (int k = 0; k < c->plan.num_recorded; k++)
            if (c->plan.recorded[k] == i)
                worst = fmax(worst, fabs(c->t.sums[k * SAMPLES + b] / sum - 1));
    }
    return worst;
}

static void check_rollout(struct comm *world, struct policy_case_opts o)
{
    const int algo = o.rl.algo;
    struct policy_case c;
    policy_case_open(&c, world, &o);
    const int64_t D = c.p.elements, n = SAMPLES * D;
    const bool split = algo == ALGO_FLOW_GRPO_FAST;
    float *latent = calloc((size_t)n, sizeof *latent);
    struct by_hand w;
    double **all[] = {&w.x, &w.next, &w.h, &w.v, &w.eps, &w.kept};
    for (int k = 0; k < 6; k++) *all[k] = calloc((size_t)n, sizeof(double));
    policy_case_rollout(&c, latent);
    for (int b = 0; b < SAMPLES; b++) noise(&c, b, 0, split || c.rl.same_noise == 2, w.x + b * D);
    int kept = 0;
    for (int i = 0; i <= c.plan.n; i++) {
        const bool needed = (i < c.plan.n && c.plan.step[i].record) ||
                            (i > 0 && c.plan.step[i - 1].record) ||
                            (i == c.plan.n && algo == ALGO_NFT);
        EXPECT((c.t.slot[i] >= 0) == needed, "%s: state %d", algo_name(algo), i);
        if (c.t.slot[i] >= 0) {
            policy_case_state(&c, i, w.kept);
            EXPECT(worst_gap(w.kept, w.x, n) < 1e-10, "%s: state %d is off by %g", algo_name(algo),
                   i, worst_gap(w.kept, w.x, n));
            kept++;
        }
        if (i == c.plan.n) break;
        const double e = step_by_hand(&c, &w, i);
        EXPECT(e < 1e-9, "%s: sums of step %d are off by %g", algo_name(algo), i, e);
        double *x = w.x;
        w.x = w.next;
        w.next = x;
    }
    double worst = 0;
    for (int64_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)latent[i] - w.x[i]));
    EXPECT(worst < 1e-6 && kept == c.t.num_states, "%s: the latent is off by %g", algo_name(algo),
           worst);
    for (int k = 0; k < 6; k++) free(*all[k]);
    free(latent);
    policy_case_close(&c);
}

static void check_algorithm(struct comm *world, int algo, int epoch, double dropout)
{
    struct policy_case_opts o = options(algo, epoch);
    o.dropout = dropout;
    check_rollout(world, o);
}

/* Rollouts without any noise, by either solver, on its grid or a coarser one; each makes its own
 * sample. */
static void test_solvers(struct comm *world)
{
    enum { D = 3 * 2 * 6 * 6 };
    static float z[4][SAMPLES * D];
    for (int k = 0; k < 4; k++) {
        struct policy_case_opts o = options(ALGO_NFT, 0);
        struct policy_case c;
        o.rl.solver = 1 + (k % 2 ? ODE_DPMPP_2M : ODE_EULER);
        o.rl.compress = k < 2 ? 1 : 0.6;
        check_rollout(world, o);
        policy_case_open(&c, world, &o);
        policy_case_rollout(&c, z[k]);
        EXPECT(c.plan.n == (k < 2 ? 8 : 4), "%d steps", c.plan.n);
        EXPECT(c.t.evaluations == c.plan.n * SAMPLES, "%lld velocities",
               (long long)c.t.evaluations);
        policy_case_close(&c);
        for (int i = 0; i < k; i++)
            EXPECT(memcmp(z[i], z[k], sizeof z[k]), "solvers %d and %d give the same", i, k);
    }
}

static void test_by_hand(struct comm *world)
{
    for (int algo = 0; algo <= ALGO_NFT; algo++)
        for (int epoch = 0; epoch < (test_fast() ? 1 : 60); epoch += 20)
            check_algorithm(world, algo, epoch, 0);
}

static void test_dropout(struct comm *world)
{
    check_algorithm(world, ALGO_MIX_GRPO, 0, 0.4);
    check_algorithm(world, ALGO_FLOW_GRPO_FAST, 0, 0.4);
    check_algorithm(world, ALGO_NFT, 0, 0.4); /* none at all */
}

/* ---- groups -----------------------------------------------------------------------------------*/
/* Members of a group at state i: the same, or not. */
static void check_members(struct policy_case *c, int i, bool same)
{
    const int64_t D = c->p.elements;
    double *x = calloc((size_t)(SAMPLES * D), sizeof *x);
    int pairs = 0;
    policy_case_state(c, i, x);
    for (int a = 0; a < SAMPLES; a++)
        for (int b = 0; b < a; b++) {
            const bool mates = c->entry[a].group == c->entry[b].group;
            const double gap = worst_gap(x + a * D, x + b * D, D);
            EXPECT(mates && same ? gap == 0 : gap > 1e-3,
                   "state %d of samples %d and %d, %s group: they differ by %g", i, a, b,
                   mates ? "one" : "another", gap);
            pairs += mates;
        }
    EXPECT(pairs == 2, "%d pairs", pairs);
    free(x);
}

static void test_members(struct comm *world)
{
    struct policy_case c;
    int late = 0;
    for (int epoch = 0; epoch < 4; epoch++) {
        struct policy_case_opts o = options(ALGO_FLOW_GRPO_FAST, epoch);
        o.rl.same_noise = epoch % 2; /* one path before the split, whatever it says */
        policy_case_open(&c, world, &o);
        policy_case_rollout(&c, NULL);
        const int first = c.plan.recorded[0];
        EXPECT(c.plan.step[first].mode == STEP_SPLIT, "step %d does not split", first);
        check_members(&c, first, true);
        check_members(&c, first + 1, false);
        late += first > 0;
        policy_case_close(&c);
    }
    EXPECT(late > 0, "every split was at the start");
    for (int same = 1; same <= 2; same++) {
        struct policy_case_opts o = options(ALGO_MIX_GRPO, 0);
        o.rl.same_noise = same;
        policy_case_open(&c, world, &o);
        policy_case_rollout(&c, NULL);
        check_members(&c, 0, same == 2);
        check_members(&c, 1, false);
        policy_case_close(&c);
    }
}

/* ---- the path that members share --------------------------------------------------------------*/
/* Latents of batch 0, all members of a rollout together or each one alone, and how many velocities
 * that took on this rank. */
static int64_t path(struct comm *world, struct policy_case_opts o, int batch, float *latent)
{
    struct policy_case c;
    int64_t n = 0;
    const int dp = o.degrees.ssp ? world->size / (o.degrees.ssp * o.degrees.sp) : 1;
    policy_case_open(&c, world, &o);
    const struct groups_config g = c.p.groups;
    policy_case_close(&c);
    o.rl.sample_batch = o.rl.train_batch = batch * dp;
    o.rl.members = batch > 1 ? o.rl.members : 1;
    policy_case_open(&c, world, &o);
    c.p.groups.members = g.members;
    c.p.groups.batch = g.batch;
    const int64_t first = g.batch * c.f.mesh.axis[AXIS_DP]->rank;
    for (int64_t i = 0; i < g.batch; i += batch) {
        for (int b = 0; b < batch; b++) c.entry[b] = groups_entry(&g, 0, 0, first + i + b);
        policy_case_rollout(&c, latent + i * c.p.elements);
        n += c.t.evaluations;
    }
    policy_case_close(&c);
    return n;
}

static void check_path(struct comm *world, struct policy_case_opts o, int dp, const char *name)
{
    enum { D = 3 * 2 * 6 * 6 };
    const int share = SAMPLES / dp;
    float *all = calloc((size_t)SAMPLES * D, sizeof *all),
          *alone = calloc((size_t)SAMPLES * D, sizeof *alone);
    struct policy_case c;
    policy_case_open(&c, world, &o);
    int groups = 0, until = 0;
    while (c.plan.step[until].std <= 0) until++;
    for (int a = 0; a < share; a++) {
        int b = 0;
        while (c.entry[b].group != c.entry[a].group) b++;
        groups += a == b;
    }
    const int steps = c.plan.n;
    const bool alike = c.rl.same_noise == 2 || c.plan.step[until].mode == STEP_SPLIT;
    policy_case_close(&c);
    const int64_t n = path(world, o, share, all), many = path(world, o, 1, alone);
    EXPECT(many == steps * share, "%s: %lld velocities of single samples", name, (long long)many);
    EXPECT(n == (alike ? until * groups : until * share) + (steps - until) * share,
           "%s: %lld velocities, %d steps until the first noise of %d, %d groups of %d samples",
           name, (long long)n, until, steps, groups, share);
    EXPECT(memcmp(all, alone, (size_t)(share * D) * sizeof *all) == 0,
           "%s: other latents than each alone", name);
    free(all);
    free(alone);
}

static struct policy_case_opts late_window(int algo, const char *device, enum dtype type)
{
    struct policy_case_opts o = options(algo, 0);
    o.device = device;
    o.compute = type;
    o.rl.window = 1 + WINDOW_FIXED;
    o.rl.window_start = 3;
    o.rl.window_size = 2;
    o.rl.window_limit = 6;
    o.rl.guidance = 1.5;
    return o;
}

static void test_path(struct comm *world)
{
    const int W = world->size;
    const struct {
        const char *device;
        enum dtype type;
    } on[] = {{"ref", DT_F64}, {"ref", DT_F32}, {"cpu", DT_BF16}};
    for (int i = 0; i < 3; i++) {
        if (!dev_supports(on[i].device, on[i].type)) continue;
        struct policy_case_opts o = late_window(ALGO_FLOW_GRPO_FAST, on[i].device, on[i].type);
        for (int S = 1; S <= W; S *= 2) {
            o.degrees = (struct mesh_degrees){S, 1, 1};
            for (o.rl.placement = 0; o.rl.placement < 2; o.rl.placement++)
                check_path(world, o, W / S, "split");
        }
        o.rl.placement = 0;
        o.degrees = (struct mesh_degrees){W, 1, 1};
        o.rl.algo = ALGO_MIX_GRPO_FLASH; /* the same noise, and a history after the window */
        check_path(world, o, 1, "window");
        o.rl.same_noise = 1;
        check_path(world, o, 1, "noise of its own");
    }
}

/* ---- bits -------------------------------------------------------------------------------------*/
static double *roll(struct comm *world, const struct policy_case_opts *o, float *latent)
{
    struct policy_case c;
    policy_case_open(&c, world, o);
    policy_case_rollout(&c, latent);
    double *sums = calloc((size_t)(c.plan.num_recorded * SAMPLES), sizeof *sums);
    memcpy(sums, c.t.sums, (size_t)(c.plan.num_recorded * SAMPLES) * sizeof *sums);
    policy_case_close(&c);
    return sums;
}

/* The grid that flash keeps when nothing is left out, with steps of Euler. */
static void test_flash(struct comm *world)
{
    enum { D = 3 * 2 * 6 * 6 };
    struct policy_case_opts window = options(ALGO_MIX_GRPO_WINDOW, 0),
                            flash = options(ALGO_MIX_GRPO_FLASH, 0);
    float a[SAMPLES * D], b[SAMPLES * D], c[SAMPLES * D];
    free(roll(world, &window, a));
    free(roll(world, &flash, c));
    flash.rl.compress = 1;
    flash.rl.solver = 1 + ODE_EULER;
    free(roll(world, &flash, b));
    EXPECT(memcmp(a, b, sizeof a) == 0, "flash without its savings is not the window");
    EXPECT(memcmp(a, c, sizeof a) != 0, "flash saves nothing");
}

/* A head without weights: velocities that have the same bits in every layout and batch. */
static void flatten(struct policy_case *c)
{
    for (int i = 0; i < c->f.dit->unit[c->f.dit->head.unit].num_params; i++) {
        const struct param *p = &c->f.dit->unit[c->f.dit->head.unit].param[i];
        double *zero = calloc((size_t)param_count(p), sizeof *zero);
        if (strstr(p->name, "weight")) fsdp_put(c->f.fsdp, STATE_MASTER, p->name, zero);
        free(zero);
    }
}

/* Sums and latents of batch 0 in rollouts of `batch` samples. */
static void flat_rollouts(struct comm *world, struct policy_case_opts o, int batch, double *sums,
                          float *latent)
{
    struct policy_case c;
    o.rl.sample_batch = o.rl.train_batch = batch;
    o.rl.members = 1;
    policy_case_open(&c, world, &o);
    flatten(&c);
    const struct groups_config all = algo_groups(&c.rl, 50, SAMPLES / batch, CASE_SEED);
    for (int first = 0; first < SAMPLES; first += batch) {
        for (int i = 0; i < batch; i++) c.entry[i] = groups_entry(&all, 0, 0, first + i);
        policy_case_rollout(&c, latent + first * c.p.elements);
        for (int k = 0; k < c.plan.num_recorded; k++)
            memcpy(sums + k * SAMPLES + first, c.t.sums + k * batch, (size_t)batch * sizeof *sums);
    }
    policy_case_close(&c);
}

static void test_bits(struct comm *world)
{
    enum { D = 3 * 2 * 6 * 6, MOST = 8 * SAMPLES };
    const int W = world->size;
    const struct mesh_degrees layout[] = {{W, 1, 1}, {1, W, 1}, {2, 2, 1}};
    struct policy_case_opts o = options(ALGO_FLOW_GRPO, 0);
    double want[MOST] = {0}, got[MOST];
    float want_z[SAMPLES * D], got_z[SAMPLES * D];
    struct comm *alone = comm_self(NULL);
    flat_rollouts(alone, o, SAMPLES, want, want_z);
    comm_free(alone);
    for (int l = 0; l < (W == 4 ? 3 : W == 2 ? 2 : 1); l++)
        for (int batch = 1; batch <= SAMPLES; batch *= 2) {
            o.degrees = layout[l];
            memset(got, 0, sizeof got);
            flat_rollouts(world, o, batch, got, got_z);
            EXPECT(memcmp(got, want, sizeof got) == 0 && want[0] > 0,
                   "ssp %d x sp %d, batch %d: other sums", layout[l].ssp, layout[l].sp, batch);
            EXPECT(memcmp(got_z, want_z, sizeof got_z) == 0,
                   "ssp %d x sp %d, batch %d: other latents", layout[l].ssp, layout[l].sp, batch);
        }
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "every algorithm, step by step", .run = test_by_hand},
        {.name = "rollouts of NFT by every solver", .run = test_solvers},
        {.name = "dropout in the trained steps and in no other", .run = test_dropout},
        {.name = "what members of a group share", .run = test_members},
        {.name = "the path that members share is made once, to the same bits",
         .run = test_path,
         .ranks = {1, 2}},
        {.name = "flash without its savings", .run = test_flash},
        {.name = "densities have the same bits on any ranks, in any batch",
         .run = test_bits,
         .ranks = {1, 2, 4},
         .flags = TEST_MPI},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
