#include "rl/dry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"

/* ---- settings ---------------------------------------------------------------------------------*/
/* What the table of algorithms has values for (docs/rl.md). */
static const char *const decided[] = {"window.strategy",  "window.size",
                                      "window.stride",    "window.iters",
                                      "window.limit",     "sde.g_rule",
                                      "sde.eta",          "ode.solver",
                                      "ode.compress",     "rl_config.timestep_fraction",
                                      "rl.shuffle_steps", "rollout.init_same_noise",
                                      "adv.ddof",         "adv.eps"};

static bool is_decided(const char *key, bool nft)
{
    if (nft && (!strncmp(key, "window.", 7) || !strncmp(key, "sde.", 4) ||
                !strcmp(key, "rollout.init_same_noise")))
        return false;
    for (size_t i = 0; i < sizeof decided / sizeof *decided; i++)
        if (strcmp(decided[i], key) == 0) return true;
    return false;
}

static size_t size_of(const struct cfg_field *f)
{
    return f->type == CFG_ENUM  ? sizeof(int)
           : f->type == CFG_INT ? sizeof(int64_t)
                                : sizeof(double);
}

/* As if the configuration said "auto" or null. */
static void leave_open(struct settings *s, const struct cfg_field *f)
{
    void *at = (char *)s + f->offset;
    if (f->type == CFG_ENUM)
        *(int *)at = 0;
    else if (f->type == CFG_INT)
        *(int64_t *)at = -1;
    else
        *(double *)at = -1;
}

static bool comes_from(const struct loaded_settings *l, int row, const char *where)
{
    return l->origin[row].file && strcmp(l->origin[row].file, where) == 0;
}

/* rl.algo on the command line switches the algorithm, and keys of the file that say something else
 * than it would stay: this is where they are named. */
static void tell_kept(const struct loaded_settings *l, const struct settings *asked)
{
    struct settings free_choice = *asked;
    struct err e = {0};
    char kept[512] = "";
    bool switched = false;
    int n;
    const struct cfg_field *f = settings_schema(l->verb, &n);
    const bool nft = l->s.rl.algo == ALGO_NFT;
    for (int i = 0; i < n; i++) {
        switched |= !strcmp(f[i].key, "rl.algo") && comes_from(l, i, "command line");
        if (is_decided(f[i].key, nft) && comes_from(l, i, l->path)) leave_open(&free_choice, &f[i]);
    }
    if (!switched || !algo_resolve(&free_choice.rl, &e)) return;
    for (int i = 0; i < n; i++) {
        const size_t used = strlen(kept);
        if (!is_decided(f[i].key, nft) || !comes_from(l, i, l->path)) continue;
        if (memcmp((const char *)&free_choice + f[i].offset, (const char *)&l->s + f[i].offset,
                   size_of(&f[i])))
            snprintf(kept + used, sizeof kept - used, "%s%s", used ? ", " : "", f[i].key);
    }
    if (*kept)
        log_warn_all("%s sets %s: not what rl.algo=%s alone would set (docs/rl.md has the table)",
                     l->path, kept, algo_name(l->s.rl.algo));
}

void dry_resolve(struct loaded_settings *l)
{
    const struct settings asked = l->s;
    struct err e = {0};
    algo_resolve(&l->s.rl, &e);
    const bool sized = asked.rl.window_size < 0 && l->s.rl.window_size == asked.rl.sde_steps;
    if (sized && asked.rl.sde_steps > l->s.rl.steps)
        settings_stop(l, RC_CONFIG, "rl_config.sde_steps", "%lld of %lld steps",
                      (long long)asked.rl.sde_steps, (long long)l->s.rl.steps);
    settings_raise(l, &e);
    const struct rl_config *c = &l->s.rl;
    const bool steps = asked.rl.sde_steps >= 0, window = c->algo != ALGO_NFT;
    if (steps && (!window || c->window_size != c->sde_steps))
        log_warn_all("rl_config.sde_steps: %lld has no effect: %s%s", (long long)c->sde_steps,
                     asked.rl.window_size >= 0 ? "window.size is given"
                                               : "rl.algo decides, and mix_grpo alone reads it",
                     window ? "" : " (nft has no stochastic steps)");
    if (c->kl_beta > 0 && c->algo == ALGO_NFT) {
        log_warn_all("rl_config.kl_beta: %g has no effect: nft weighs the divergence by nft.kl, %g",
                     c->kl_beta, c->nft.kl);
        l->s.rl.kl_beta = 0;
    }
    if (asked.rl.same_noise == 2 && c->algo == ALGO_NFT) /* without noise they would be one clip */
        log_warn_all("rollout.init_same_noise: true has no effect: samples of nft differ by their "
                     "first noise alone");
    tell_kept(l, &asked);
    settings_changed(l, &asked, "rl.algo");
}

const struct err *dry_check_batches(const struct settings *s, struct err *e)
{
    const struct rl_config *c = &s->rl;
    const int64_t step = c->train_batch * s->gradient_accumulation_steps, B = c->sample_batch;
    const bool whole = step % B == 0 && c->batches % (step / B) == 0, part = B % step == 0;
    if (!whole && !part)
        err_set(
            e, RC_CONFIG,
            "rl_config.train_batch_size: %lld x gradient_accumulation_steps %lld = %lld samples "
            "of a data rank per optimizer step: it must divide sample_batch_size %lld, or be "
            "a multiple of it that divides the %lld samples of an epoch",
            (long long)c->train_batch, (long long)s->gradient_accumulation_steps, (long long)step,
            (long long)B, (long long)(B * c->batches));
    return e;
}

static void require_size(const struct loaded_settings *l, const char *key, int64_t asked,
                         int64_t stored)
{
    if (asked && asked != stored)
        settings_stop(l, RC_CONFIG, key,
                      "%lld, but the base was trained with %lld; leave the key out",
                      (long long)asked, (long long)stored);
}

void dry_take_base(struct loaded_settings *l, const struct stored_model *m)
{
    struct settings *s = &l->s;
    require_size(l, "rl_config.num_frames", s->rl.frames, m->frames);
    require_size(l, "rl_config.height", s->rl.height, m->height);
    require_size(l, "rl_config.width", s->rl.width, m->width);
    const struct settings asked = *s;
    s->model = m->config;
    s->model.pretrained = asked.model.pretrained;
    s->rl.frames = m->frames;
    s->rl.height = m->height;
    s->rl.width = m->width;
    settings_changed(l, &asked, "the base");
}

/* ---- walks ------------------------------------------------------------------------------------*/
static void no_text(void *arg, int64_t prompt, float *rows)
{
    (void)arg;
    (void)prompt;
    (void)rows;
}

/* One recorded step and one without noise: every kind of pass that a run makes. */
static struct step_plan small_plan(const struct rl_config *cfg)
{
    const struct step_plan all = algo_step_plan(cfg, 0, 0);
    struct step_plan p = {.n = 2};
    p.step[0] = all.step[all.num_recorded ? all.recorded[0] : 0];
    p.step[1] = all.step[all.n - 1];
    if (cfg->solver == 1 + ODE_DPMPP_2M) p.step[1].ch = 1; /* has a history in some epoch */
    if (all.num_recorded) p.recorded[p.num_recorded++] = 0;
    return p;
}

void dry_body(void *arg, struct ctx *c, struct dit *d)
{
    const struct dry *dry = arg;
    struct policy p;
    const struct groups_config g = algo_groups(dry->cfg, 1 << 30, 1, 0);
    policy_open(&p, c, d, dry->cfg, g, (struct prompt_rows){no_text, NULL}, dry->latent);
    const struct step_plan plan = small_plan(dry->cfg);
    struct group_entry entry[64] = {{0}};
    struct trajectory t;
    float *latent = calloc((size_t)(p.elements * dry->cfg->sample_batch), sizeof *latent);
    CHECK(latent, "out of memory");
    const bool nft = dry->cfg->algo == ALGO_NFT;
    rollout_run(&p, &plan, entry, nft, (struct rollout_hooks){0}, &t, latent);
    struct update_item item[64];
    struct update_stats stats = {0};
    for (int b = 0; b < dry->cfg->train_batch; b++)
        item[b] = (struct update_item){.from = &t, .advantage = 1, .weight = 1, .valid = true};
    if (nft)
        nft_update(&p, &plan, item, (struct update_scale){1, 1}, &stats);
    else
        grpo_update(&p, &plan, item, (struct update_scale){1, 1}, &stats);
    trajectory_free(&t);
    free(latent);
    policy_close(&p);
}

struct mark { /* counters at one moment */
    struct dev_counters dev;
    struct comm_count comm[AXIS_COUNT][COMM_KINDS];
};

static struct mark mark_of(const struct ctx *c)
{
    struct mark m = {.dev = c->dev->count};
    for (int a = 0; a < AXIS_COUNT; a++)
        memcpy(m.comm[a], c->mesh->axis[a]->count, sizeof m.comm[a]);
    return m;
}

static struct dry_counts since(const struct ctx *c, const struct mark *m)
{
    const struct mark now = mark_of(c);
    struct dry_counts d = {.gemm = now.dev.gemm_flops - m->dev.gemm_flops,
                           .attn_fwd = now.dev.attn_fwd_flops - m->dev.attn_fwd_flops,
                           .attn_bwd = now.dev.attn_bwd_flops - m->dev.attn_bwd_flops,
                           .row_bytes = now.dev.row_bytes - m->dev.row_bytes};
    for (int a = 0; a < AXIS_COUNT; a++)
        for (int k = 0; k < COMM_KINDS; k++) {
            d.comm[a][k].calls = now.comm[a][k].calls - m->comm[a][k].calls;
            d.comm[a][k].bytes = now.comm[a][k].bytes - m->comm[a][k].bytes;
        }
    return d;
}

void dry_epoch_body(void *arg, struct ctx *c, struct dit *d)
{
    struct dry_epoch *e = arg;
    const struct rl_config *cfg = e->dry.cfg;
    const bool nft = cfg->algo == ALGO_NFT;
    struct policy p;
    struct trajectory t;
    struct group_entry entry[64];
    struct update_item item[64];
    struct update_stats stats = {0};
    float *latent;
    dry_body(&e->dry, c, d); /* what a run sizes its memory by */
    const struct groups_config g = algo_groups(cfg, 1 << 30, c->mesh->dp, e->seed);
    policy_open(&p, c, d, cfg, g, (struct prompt_rows){no_text, NULL}, e->dry.latent);
    latent = calloc((size_t)(p.elements * cfg->sample_batch), sizeof *latent);
    CHECK(latent, "out of memory");
    e->plan = algo_step_plan(cfg, e->seed, 0);
    for (int64_t i = 0; i < cfg->sample_batch; i++)
        entry[i] = groups_entry(&g, 0, 0, cfg->sample_batch * c->mesh->axis[AXIS_DP]->rank + i);
    struct mark from = mark_of(c);
    rollout_run(&p, &e->plan, entry, nft, (struct rollout_hooks){0}, &t, latent);
    e->rollout = since(c, &from);
    e->evaluations = t.evaluations;
    e->host_bytes = trajectory_bytes(&t) * (size_t)cfg->batches;
    for (int b = 0; b < cfg->train_batch; b++)
        item[b] = (struct update_item){.from = &t, .advantage = 1, .weight = 1, .valid = true};
    from = mark_of(c);
    (nft ? nft_update : grpo_update)(&p, &e->plan, item, (struct update_scale){1, 1}, &stats);
    e->update = since(c, &from);
    trajectory_free(&t);
    free(latent);
    policy_close(&p);
}
