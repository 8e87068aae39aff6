#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/fault.h"
#include "core/io.h"
#include "core/log.h"
#include "parallel/launch.h"
#include "rl/identity.h"
#include "rl/prompt_file.h"
#include "rl/run.h"
#include "train/print_config.h"

unsigned run_kinds(const struct rl_run *r)
{
    unsigned kinds = 1u << STATE_LORA | 1u << STATE_LORA_M | 1u << STATE_LORA_V;
    if (r->set->ema_decay > 0) kinds |= 1u << STATE_LORA_EMA;
    if (r->set->rl.algo == ALGO_NFT) kinds |= 1u << STATE_LORA_OLD;
    return kinds;
}

/* What decides which samples are drawn; other keys may change, and are named when they do. */
static void add_sampling(json_t *j, const struct settings *s)
{
    const struct rl_config *c = &s->rl;
    const struct {
        const char *key;
        int64_t value;
    } whole[] = {{"window.strategy", c->window},
                 {"window.start", c->window_start},
                 {"window.size", c->window_size},
                 {"window.stride", c->window_stride},
                 {"window.iters", c->window_iters},
                 {"window.limit", c->window_limit},
                 {"window.min_iters", c->window_min_iters},
                 {"window.decay_from", c->window_from},
                 {"sde.g_rule", c->g_rule},
                 {"ode.solver", c->solver},
                 {"rollout.init_same_noise", c->same_noise},
                 {"rollout.placement", c->placement},
                 {"rl.negative_prompt",
                  (int64_t)(rng_hash(c->negative_prompt ? c->negative_prompt : "") >> 1)}};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        json_object_set_new(j, whole[i].key, json_integer(whole[i].value));
    json_object_set_new(j, "sde.eta", json_real(c->eta));
    json_object_set_new(j, "ode.compress", json_real(c->compress));
    json_object_set_new(j, "window.roll_back", json_boolean(c->roll_back));
    json_object_set_new(j, "window.decay_rate", json_real(c->window_rate));
    json_object_set_new(j, "lora_config.dropout", json_real(s->lora.dropout));
}

static const char rollout_samples[] = "samples of a rollout batch over all data ranks";
static const char step_samples[] = "samples of an optimizer step over all data ranks";
/* What a checkpoint and a run must share to be the same run. */
static json_t *identity_of(const struct rl_run *r)
{
    const struct rl_config *c = &r->set->rl;
    json_t *j = json_pack(
        "{s:s, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I}", "rl.algo", algo_name(c->algo), "seed",
        (json_int_t)r->set->seed, "rl.shift", c->shift, "rl_config.guidance_scale", c->guidance,
        "rl_config.num_inference_steps", (json_int_t)c->steps, "rl_config.num_image_per_prompt",
        (json_int_t)c->members, "rl_config.num_batches_per_epoch", (json_int_t)c->batches,
        rollout_samples, (json_int_t)(c->sample_batch * r->ses->mesh.dp), step_samples,
        (json_int_t)(c->train_batch * r->set->gradient_accumulation_steps * r->ses->mesh.dp),
        "prompts", (json_int_t)prompt_file_hash(&r->prompts));
    CHECK(j, "the description of the run cannot be built");
    add_sampling(j, r->set);
    return j;
}

static json_t *meta_of(const struct rl_run *r)
{
    const struct mesh_degrees *m = &r->ses->mesh.degrees;
    char *text = settings_text(r->l, false);
    json_t *meta =
        json_pack("{s:I, s:s, s:o, s:{s:I, s:I, s:f}, s:s, s:{s:i, s:i, s:i, s:i}}", "step",
                  (json_int_t)r->state.epoch, "stage", "rl", "identity", identity_of(r), "rl",
                  "epoch", (json_int_t)r->state.epoch, "evaluated", (json_int_t)r->state.evaluated,
                  "seconds", r->state.seconds, "config", text, "layout", "ranks", r->world->size,
                  "fsdp_size", m->fsdp, "skiparse_sp_size", m->ssp, "sp_size", m->sp);
    CHECK(meta, "the checkpoint's description cannot be built");
    free(text);
    json_object_set_new(meta, "scorer", json_string(r->scoring->identity));
    return meta;
}

void run_save(struct rl_run *r, const struct ckpt_snapshot *snap, const struct adapter_state *state)
{
    if (r->saved_epoch == r->state.epoch) return;
    const double t0 = log_seconds();
    err_push("saving epoch %lld", (long long)r->state.epoch);
    fault_hit("save");
    struct session *s = r->ses;
    struct ckpt_snapshot *now = NULL;
    if (!snap) snap = now = adapter_snapshot(s->lora, &s->mesh, run_kinds(r));
    char *dir = io_path("%s/checkpoints", r->set->output_dir);
    const struct ckpt_place place = {dir, r->set->checkpoint.keep_last,
                                     r->set->checkpoint.keep_every};
    json_t *meta = meta_of(r);
    struct err e = {0};
    watchdog_files(s->watchdog, true);
    adapter_write(s->lora, &r->set->lora, &s->mesh, &place, snap, &r->base, state, meta, &e);
    watchdog_files(s->watchdog, false);
    if (e.code) err_stop(RC_IO, "%s; the checkpoint before it is untouched", e.msg);
    log_info("saved %s/iter_%09lld (%.2f s)", dir, (long long)r->state.epoch, log_seconds() - t0);
    r->saved_epoch = r->state.epoch;
    if (now) ckpt_snapshot_free(now);
    json_decref(meta);
    free(dir);
    err_pop();
}

/* ---- resuming ---------------------------------------------------------------------------------*/
static void require_scorer(const struct rl_run *r, const struct ckpt *c)
{
    const char *then = json_string_value(json_object_get(ckpt_meta(c), "scorer"));
    char why[1024], notice[1024];
    if (!identity_same(then ? then : "", r->scoring->identity, why, notice, sizeof why))
        err_stop(RC_CONFIG,
                 "%s was made with another scorer, whose scores have another scale: %s; "
                 "use another output_dir",
                 ckpt_path(c), why);
    if (*notice) log_info("scorers, in the checkpoint against now: %s", notice);
}

static void load_states(struct rl_run *r, struct ckpt *c, unsigned kinds)
{
    static const enum state_kind all[] = {STATE_LORA_M, STATE_LORA_V, STATE_LORA_EMA,
                                          STATE_LORA_OLD, STATE_LORA};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        if (kinds >> all[k] & 1) adapter_load(c, r->ses->lora, all[k], all[k]);
}

/* Weights of another run to begin with: no moments, no state. */
static void start_from(struct rl_run *r)
{
    struct ckpt *c = r->from;
    adapter_load(c, r->ses->lora, STATE_LORA, STATE_LORA);
    if (r->set->ema_decay > 0) adapter_load(c, r->ses->lora, STATE_LORA_EMA, STATE_LORA);
    if (r->set->rl.algo == ALGO_NFT) adapter_load(c, r->ses->lora, STATE_LORA_OLD, STATE_LORA);
    log_info("adapters start from %s (epoch %lld)", ckpt_path(c), (long long)ckpt_step(c));
}

/* Samples go with data ranks times batch sizes: another number of ranks is fine as long as their
 * product stays. */
static void require_batches(const struct rl_run *r, const json_t *then)
{
    const struct rl_config *c = &r->set->rl;
    const int dp = r->ses->mesh.dp;
    const struct {
        const char *name, *key;
        int64_t per;
    } of[] = {{rollout_samples, "rl_config.sample_batch_size", c->sample_batch},
              {step_samples, "rl_config.train_batch_size",
               c->train_batch * r->set->gradient_accumulation_steps}};
    for (int i = 0; i < 2; i++) {
        const int64_t was = json_integer_value(json_object_get(then, of[i].name));
        if (was && was != of[i].per * dp)
            settings_stop(r->l, RC_CONFIG, of[i].key,
                          "%lld x %d data ranks = %lld %s, but %s was made with %lld; take as many "
                          "data ranks as then, change this key in proportion, or use another "
                          "output_dir",
                          (long long)of[i].per, dp, (long long)(of[i].per * dp), of[i].name,
                          ckpt_path(r->from), (long long)was);
    }
}

static void require_run(const struct rl_run *r)
{
    const json_t *then = json_object_get(ckpt_meta(r->from), "identity");
    const char *algo = json_string_value(json_object_get(then, "rl.algo"));
    if (algo && strcmp(algo, algo_name(r->set->rl.algo)) != 0)
        settings_stop(r->l, RC_CONFIG, "rl.algo",
                      "%s, but %s was trained by %s; use another output_dir",
                      algo_name(r->set->rl.algo), ckpt_path(r->from), algo);
    require_batches(r, then);
    json_t *identity = identity_of(r);
    const json_t *prompts = json_object_get(then, "prompts");
    if (prompts && !json_equal(prompts, json_object_get(identity, "prompts")))
        settings_stop(
            r->l, RC_CONFIG, "rl_config.prompt_file",
            "%s holds other prompts than those that %s was trained with; restore them, or "
            "use another output_dir",
            r->set->rl.prompt_file, ckpt_path(r->from));
    ckpt_require_same(r->from, "identity", identity, settings_word);
    json_decref(identity);
}

/* What came after the checkpoint of this folder was written: its evaluation, time. Equal on all
 * ranks. */
static void add_past(struct rl_run *r)
{
    struct metrics_past past = {0};
    if (r->world->rank == 0)
        past = metrics_past(r->set->output_dir, r->state.epoch, "eval/reward_mean");
    comm_broadcast_bytes(r->world, &past, sizeof past, 0, "metrics");
    if (past.has_key) r->state.evaluated = r->state.epoch;
    if (past.wall_s > r->state.seconds) r->state.seconds = past.wall_s;
}

/* What to do when the adapters of a checkpoint are not those of the configuration. */
static const char *remedy(const struct rl_run *r)
{
    return r->goes_on ? "use another output_dir" : "leave lora_config.lora_path out";
}

static struct ckpt *open_named(const struct rl_run *r, const char *key, const char *path)
{
    settings_push(r->l, key);
    struct ckpt *c = ckpt_open(r->world, path, true);
    err_pop();
    return c;
}

void run_find(struct rl_run *r)
{
    const struct settings *s = r->set;
    struct watchdog *w = launch_watchdog();
    struct err e = {0};
    const char *how = s->resume ? s->resume : "auto";
    char *dir = io_path("%s/checkpoints", s->output_dir);
    watchdog_files(w, true);
    if (strcmp(how, "auto") == 0)
        r->from = ckpt_latest(r->world, dir);
    else if (strcmp(how, "never"))
        r->from = open_named(r, "resume", how);
    r->goes_on = r->from != NULL;
    if (strcmp(how, "auto")) ckpt_require_no_newer(r->world, dir, how, r->from, "epoch");
    if (!r->from && s->lora.path) r->from = open_named(r, "lora_config.lora_path", s->lora.path);
    watchdog_files(w, false);
    free(dir);
    if (!r->from) return;
    if (r->goes_on) ckpt_require_resumable(r->from, STATE_LORA, how, s->output_dir);
    adapter_info_read(&r->with, r->from, &e);
    err_raise(&e);
    settings_push(r->l, "lora_config.rank");
    adapter_require_rank(r->from, &r->with, &s->lora, remedy(r));
    err_pop();
    if (r->goes_on)
        ckpt_require_ema(r->from, STATE_LORA_EMA, s->ema_decay,
                         "begin with its weights only: another output_dir and "
                         "lora_config.lora_path");
}

void run_require_same(const struct rl_run *r)
{
    if (!r->from) return;
    if (r->goes_on) require_run(r);
    adapter_require_base(r->from, &r->with, &r->base, false);
    settings_push(r->l, "lora_config.target_modules");
    adapter_require_targets(r->from, &r->with, r->ses->lora, &r->set->lora, remedy(r));
    err_pop();
}

static void resume_state(struct rl_run *r)
{
    struct ckpt *c = r->from;
    const double init_max = r->state.adapter.clip.init_max;
    require_scorer(r, c);
    config_log_changes(r->l, json_string_value(json_object_get(ckpt_meta(c), "config")));
    load_states(r, c, run_kinds(r));
    r->state.adapter = r->with.state;
    r->state.adapter.clip.init_max = init_max;
    const json_t *rl = json_object_get(ckpt_meta(c), "rl");
    r->state.epoch = json_integer_value(json_object_get(rl, "epoch"));
    if (json_object_get(rl, "evaluated"))
        r->state.evaluated = json_integer_value(json_object_get(rl, "evaluated"));
    r->state.seconds = json_number_value(json_object_get(rl, "seconds"));
    if (strcmp(r->set->resume ? r->set->resume : "auto", "auto") == 0) { /* of this folder */
        r->saved_epoch = r->state.epoch;
        add_past(r);
    }
    log_info("resumed from %s at epoch %lld", ckpt_path(c), (long long)r->state.epoch);
}

bool run_resume(struct rl_run *r)
{
    r->saved_epoch = r->state.evaluated = -1;
    if (!r->from) return false;
    err_push("resuming from %s", ckpt_path(r->from));
    if (r->goes_on)
        resume_state(r);
    else
        start_from(r);
    err_pop();
    adapter_info_free(&r->with);
    ckpt_close(r->from);
    r->from = NULL;
    return r->goes_on;
}
