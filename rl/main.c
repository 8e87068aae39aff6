/* Verb rl: builds everything, resumes, runs the epochs, evaluates, saves. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "parallel/launch.h"
#include "rl/prompt_file.h"
#include "rl/run.h"
#include "rl/verb.h"
#include "train/args.h"
#include "train/print_config.h"

static const char usage[] =
    "osp rl CONFIG [key=value ...] [--print-config] [--help-config] [--check-comm]\n"
    "Post-training of LoRA adapters against a reward scorer: Mix-GRPO, its relatives, "
    "DiffusionNFT\n"
    "(docs/rl.md). Run it again after an interruption: it resumes from the newest checkpoint of\n"
    "output_dir.";

/* ---- what the arenas must hold ----------------------------------------------------------------*/
struct dry {
    const struct rl_config *cfg;
    int latent[4];
};

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

static void dry_body(void *arg, struct ctx *c, struct dit *d)
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

/* ---- building ---------------------------------------------------------------------------------*/
static void fill_prompt(void *arg, int64_t prompt, float *rows)
{
    const struct rl_run *r = arg;
    const struct prompts *p = r->evaluating ? &r->eval_prompts : &r->prompts;
    const struct model_config *m = &r->set->model;
    const char *negative = r->set->rl.negative_prompt ? r->set->rl.negative_prompt : "";
    r->text_codec->encode(rows, m->text_len, m->text_dim, prompt < 0 ? negative : p->text[prompt]);
}

static void require_size(const char *key, int64_t asked, int64_t stored)
{
    if (asked && asked != stored)
        err_stop(RC_CONFIG,
                 "rl_config.%s: %lld, but the base was trained with %lld; leave the key "
                 "out",
                 key, (long long)asked, (long long)stored);
}

/* Updates take whole shares of rollout batches (updates.c). */
static void require_batches(const struct settings *s)
{
    const struct rl_config *c = &s->rl;
    const int64_t step = c->train_batch * s->gradient_accumulation_steps, B = c->sample_batch;
    const bool whole = step % B == 0 && c->batches % (step / B) == 0, part = B % step == 0;
    if (!whole && !part)
        err_stop(
            RC_CONFIG,
            "rl_config.train_batch_size %lld x gradient_accumulation_steps %lld = %lld samples "
            "of a data rank per optimizer step: it must divide sample_batch_size %lld, or be "
            "a multiple of it that divides the %lld samples of an epoch",
            (long long)c->train_batch, (long long)s->gradient_accumulation_steps, (long long)step,
            (long long)B, (long long)(B * c->batches));
}

static void require_file(const char *key, const char *path)
{
    if (path && access(path, R_OK) != 0)
        err_stop(RC_NOINPUT, "%s: %s: %s", key, path, strerror(errno));
}

/* What is read late is looked for early. */
static void require_files(const struct settings *s)
{
    require_file("model_config.pretrained_model_dir_or_checkpoint", s->model.pretrained);
    require_file("reward.videoalign_dir", s->reward.videoalign_dir);
    require_file("reward.model_dir", s->reward.model_dir);
    require_file("reward.template", s->reward.template_dir);
}

static struct ckpt *open_base(struct rl_run *r, struct settings *s)
{
    struct err e = {0};
    struct ckpt *k = ckpt_open(r->world, s->model.pretrained, true);
    const enum state_kind kind = s->init_from == 0 ? STATE_EMA : STATE_MASTER;
    if (!ckpt_has(k, STATE_MASTER))
        err_stop(RC_CONFIG, "model_config.pretrained_model_dir_or_checkpoint: %s holds no model",
                 ckpt_path(k));
    if (!ckpt_has(k, kind))
        err_stop(RC_CONFIG, "init_from: %s holds no EMA weights; set init_from: base",
                 ckpt_path(k));
    stored_model_read(&r->model, k, &e);
    err_raise(&e);
    require_size("num_frames", s->rl.frames, r->model.frames);
    require_size("height", s->rl.height, r->model.height);
    require_size("width", s->rl.width, r->model.width);
    r->base = adapter_base_of(k, kind);
    const struct settings asked = *s;
    s->model = r->model.config;
    s->model.pretrained = asked.model.pretrained;
    s->rl.frames = r->model.frames;
    s->rl.height = r->model.height;
    s->rl.width = r->model.width;
    settings_changed(r->l, &asked, "the base");
    return k;
}

static void open_prompts(struct rl_run *r, const struct settings *s)
{
    struct err e = {0};
    prompt_file_read(&r->prompts, "rl_config.prompt_file", s->rl.prompt_file, &e);
    if (!e.code && s->rl.eval_prompt_file)
        prompt_file_read(&r->eval_prompts, "rl_config.eval_prompt_file", s->rl.eval_prompt_file,
                         &e);
    err_raise(&e);
}

static void open_session(struct rl_run *r, struct settings *s, struct ckpt *base)
{
    struct err e = {0};
    r->codec = video_codec_find(r->model.codec, &e);
    err_raise(&e);
    r->text_codec = text_codec_find(r->model.text_codec, &e);
    err_raise(&e);
    int64_t z[4];
    r->codec->shape(r->model.frames, r->model.height, r->model.width, z, &e);
    err_raise(&e);
    struct dry dry = {.cfg = &s->rl};
    for (int i = 0; i < 4; i++) dry.latent[i] = (int)z[i];
    const struct session_shape shape = {.batch = (int)s->rl.train_batch,
                                        .t = z[1],
                                        .h = z[2],
                                        .w = z[3],
                                        .channels = z[0],
                                        .body = dry_body,
                                        .body_arg = &dry,
                                        .lora_old = s->rl.algo == ALGO_NFT};
    session_open(r->ses, s, r->world, shape, true);
    ckpt_load(base, r->ses->fsdp, STATE_MASTER, r->base.kind);
    lora_init_params(r->ses->lora, (uint64_t)s->seed);
    clip_init(&r->state.adapter.clip, s->init_max_grad_norm);
    const struct groups_config g =
        algo_groups(&s->rl, r->prompts.n, r->ses->mesh.dp, (uint64_t)s->seed);
    if (!groups_check(&g, &e)) err_raise(&e);
    policy_open(&r->policy, &r->ses->ctx, r->ses->dit, &s->rl, g,
                (struct prompt_rows){fill_prompt, r}, dry.latent);
    r->policy.lora = r->ses->lora;
}

static void open_scorers(struct rl_run *r, struct spawner *p)
{
    const struct settings *s = r->set;
    log_info("waiting for the scorers");
    r->scoring = scoring_open(p, &r->ses->mesh,
                              (struct scoring_opts){.reward = &s->reward,
                                                    .codec = r->codec,
                                                    .frames = r->model.frames,
                                                    .height = r->model.height,
                                                    .width = r->model.width,
                                                    .fps = r->model.fps > 0 ? r->model.fps : 16,
                                                    .log_dir = s->output_dir});
    char dims[REWARD_DIMS * (REWARD_NAME + 2)] = "";
    for (int k = 0; k < r->scoring->dims; k++) {
        if (k) strcat(dims, ", ");
        strcat(dims, r->scoring->name[k]);
    }
    log_info("scorers ready: %s", dims);
    if (s->reward.weights.n > r->scoring->dims)
        err_stop(RC_CONFIG, "reward.weights: %d numbers, but the scorer has %d dimensions (%s)",
                 s->reward.weights.n, r->scoring->dims, dims);
    const struct adv_config a = algo_advantage(&s->rl, &s->reward, r->scoring->dims);
    double sum = 0, most = 0;
    for (int k = 0; k < a.dims; k++) sum += a.weight[k], most = fmax(most, fabs(a.weight[k]));
    if (most == 0) err_stop(RC_CONFIG, "reward.weights: all are 0: no reward is left");
    if (a.aggregate == ADV_OF_ADVANTAGES && sum <= 0)
        err_stop(RC_CONFIG,
                 "reward.weights: they sum to %g; adv.aggregate: advantage divides by "
                 "the sum, which must be above 0",
                 sum);
}

/* ---- the loop ---------------------------------------------------------------------------------*/
static bool job_ends(const struct settings *s)
{
    const char *end = getenv("SLURM_JOB_END_TIME");
    return s->stop_before_end_s > 0 && end &&
           difftime(atol(end), time(NULL)) < s->stop_before_end_s;
}

enum why { GO_ON, NO_TIME, PREEMPTED };
/* Collective; clocks of hosts differ. */
static enum why must_stop(struct rl_run *r)
{
    const struct settings *s = r->set;
    double x[2] = {s->max_seconds > 0 && r->state.seconds >= s->max_seconds,
                   launch_signal() != 0 || job_ends(s)};
    comm_max_f64(r->world, x, 2, "stop");
    return x[1] > 0 ? PREEMPTED : x[0] > 0 ? NO_TIME : GO_ON;
}

static bool due(int64_t interval, int64_t epoch) { return interval > 0 && epoch % interval == 0; }

/* Once an epoch, after its checkpoint; what was cut short is made up for by the next start. */
static void evaluate(struct rl_run *r, bool wanted)
{
    if (wanted && r->set->rl.eval_epochs && r->state.evaluated != r->state.epoch) run_evaluate(r);
}

static int epochs(struct rl_run *r)
{
    const struct settings *s = r->set;
    enum why why = GO_ON;
    r->since = log_seconds();
    evaluate(r, due(s->rl.eval_epochs, r->state.epoch));
    while (r->state.epoch < s->rl.num_epochs && (why = must_stop(r)) == GO_ON) {
        run_epoch(r);
        if (due(s->save_interval, r->state.epoch)) run_save(r, NULL, &r->state.adapter);
        evaluate(r, due(s->rl.eval_epochs, r->state.epoch));
    }
    run_save(r, NULL, &r->state.adapter);
    if (why != PREEMPTED) evaluate(r, true);
    run_spend(r);
    return why == PREEMPTED ? RC_PREEMPTED : RC_OK;
}

static void save_config(const struct rl_run *r)
{
    if (r->world->rank) return;
    char *path = io_path("%s/config.yaml", r->set->output_dir), *text = settings_text(r->l, true);
    struct err e = {0};
    io_write_file(path, text, strlen(text), &e);
    err_raise(&e);
    free(text);
    free(path);
}

static int work(struct rl_run *r)
{
    struct err e = {0};
    const bool resumed = run_resume(r);
    save_config(r);
    r->metrics =
        metrics_open(r->set->output_dir, r->world->rank, resumed ? r->state.epoch : -1, &e);
    err_raise(&e);
    char *text = settings_text(r->l, false);
    metrics_text(r->metrics, "config", text);
    free(text);
    const int rc = epochs(r);
    metrics_event_at(r->metrics, rc == RC_OK ? "finished" : "preempted", r->state.epoch,
                     r->state.seconds);
    metrics_close(r->metrics);
    return rc;
}

static int run(struct comm *world, struct loaded_settings *l, struct spawner *p)
{
    struct settings *s = &l->s;
    struct rl_run r = {.l = l, .set = s, .world = world, .ses = calloc(1, sizeof *r.ses)};
    r.batch = calloc((size_t)s->rl.batches, sizeof *r.batch);
    CHECK(r.ses && r.batch, "out of memory");
    struct lock lock = session_lock_output(world, s->output_dir, "lock", "osp rl");
    require_files(s);
    struct ckpt *base = open_base(&r, s);
    settings_check_ranks(l, world->size); /* with the model of the base */
    require_batches(s);
    open_prompts(&r, s);
    open_session(&r, s, base);
    ckpt_close(base);
    open_scorers(&r, p);
    log_info("%s: %lld samples in %lld groups an epoch; base %s (step %lld, %s weights)",
             algo_name(s->rl.algo),
             (long long)(s->rl.sample_batch * s->rl.batches * r.ses->mesh.dp),
             (long long)(s->rl.sample_batch * s->rl.batches * r.ses->mesh.dp / s->rl.members),
             r.base.path, (long long)r.base.step, r.base.kind == STATE_EMA ? "averaged" : "raw");
    const int rc = work(&r);
    scoring_close(r.scoring);
    policy_close(&r.policy);
    session_close(r.ses);
    free(r.ses);
    free(r.batch);
    adapter_base_free(&r.base);
    stored_model_free(&r.model);
    prompts_free(&r.prompts);
    prompts_free(&r.eval_prompts);
    lock_release(&lock);
    return rc;
}

static void resolve(struct loaded_settings *l)
{
    const struct settings asked = l->s;
    struct err e = {0};
    if (!algo_resolve(&l->s.rl, &e)) err_raise(&e);
    settings_changed(l, &asked, "rl.algo");
}

/* Unlike osp print-config, with the values of the algorithm. */
static int print_resolved(const struct args *a)
{
    struct loaded_settings l;
    settings_load(&l, SETTINGS_RL, a->config, a->sets, a->num_sets);
    resolve(&l);
    char *text = settings_text(&l, true);
    fputs(text, stdout);
    free(text);
    settings_free(&l);
    return RC_OK;
}

int verb_rl(int argc, char **argv)
{
    struct args a;
    struct err e = {0};
    args_parse(&a, argc, argv, usage);
    if (a.help_config) return print_config(SETTINGS_RL, &a);
    if (!a.config) err_stop(RC_USAGE, "%s", usage);
    if (a.print_config) return print_resolved(&a);
    struct spawner *p = reward_prepare(&e); /* before MPI */
    err_raise(&e);
    struct comm *world = launch_start(&argc, &argv);
    struct loaded_settings l;
    session_settings(world, &l, SETTINGS_RL, a.config, a.sets, a.num_sets);
    if (a.check_comm) l.s.check_comm = true;
    resolve(&l);
    const int rc = run(world, &l, p);
    reward_release(p);
    settings_free(&l);
    args_free(&a);
    launch_end(world);
    return rc;
}
