/* Verb rl: builds everything, resumes, runs the epochs, evaluates, saves. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/io.h"
#include "core/log.h"
#include "parallel/launch.h"
#include "rl/dry.h"
#include "rl/prompt_file.h"
#include "rl/run.h"
#include "rl/scorer_files.h"
#include "rl/verb.h"
#include "train/args.h"
#include "train/print_config.h"

static const char usage[] =
    "osp rl CONFIG [key=value ...] [--print-config] [--help-config] [--check-comm]\n"
    "Post-training of LoRA adapters against a reward scorer: Mix-GRPO, its relatives, "
    "DiffusionNFT\n"
    "(docs/rl.md). Run it again after an interruption: it resumes from the newest checkpoint of\n"
    "output_dir.";

/* ---- building ---------------------------------------------------------------------------------*/
static void fill_prompt(void *arg, int64_t prompt, float *rows)
{
    const struct rl_run *r = arg;
    const struct prompts *p = r->evaluating ? &r->eval_prompts : &r->prompts;
    const struct model_config *m = &r->set->model;
    const char *negative = r->set->rl.negative_prompt ? r->set->rl.negative_prompt : "";
    r->text_codec->encode(rows, m->text_len, m->text_dim, prompt < 0 ? negative : p->text[prompt]);
}

static const char base_key[] = "model_config.pretrained_model_dir_or_checkpoint";

/* What is read late is looked for early, before anything is written. */
static void require_files(struct rl_run *r)
{
    struct err e = {0};
    if (scorer_files(&r->set->reward, &e)) r->scorer = scorer_command(&r->set->reward, &e);
    settings_raise(r->l, &e);
}

/* More of the base's own training must not remove what these adapters are worth nothing without. */
static void keep_base(const struct rl_run *r)
{
    const char *path = r->base.path;
    struct err e = {0};
    char *why = io_path("the base of adapters in %s\n", r->set->output_dir);
    char *manifest = io_path("%s/manifest.json", path);
    if (r->world->rank == 0) ckpt_keep(path, why, &e);
    if (e.code && !io_exists(manifest))
        settings_stop(
            r->l, RC_NOINPUT, base_key,
            "%s was removed while this run started, as by a rotation of its own run; name "
            "one that stays",
            path);
    free(manifest);
    if (e.code)
        log_warn("%s cannot be marked as the base of these adapters; do not let its run rotate it "
                 "away: %s",
                 path, e.msg);
    free(why);
}

static struct ckpt *open_base(struct rl_run *r, struct settings *s)
{
    struct err e = {0};
    settings_push(r->l, base_key);
    struct ckpt *k = ckpt_open(r->world, s->model.pretrained, true);
    const enum state_kind kind = s->init_from == 0 ? STATE_EMA : STATE_MASTER;
    if (!ckpt_has(k, STATE_MASTER))
        err_stop(RC_CONFIG,
                 "%s holds adapters, no model; name their base, or merge them into it (osp convert "
                 "merge)",
                 ckpt_path(k));
    stored_model_read(&r->model, k, &e);
    err_raise(&e);
    err_pop();
    if (!ckpt_has(k, kind))
        settings_stop(r->l, RC_CONFIG, "init_from", "%s holds no EMA weights; set init_from: base",
                      ckpt_path(k));
    r->base = adapter_base_of(k, kind);
    dry_take_base(r->l, &r->model);
    return k;
}

static void open_prompts(struct rl_run *r, const struct settings *s)
{
    const struct {
        struct prompts *p;
        const char *key, *path;
    } file[] = {{&r->prompts, "rl_config.prompt_file", s->rl.prompt_file},
                {&r->eval_prompts, "rl_config.eval_prompt_file", s->rl.eval_prompt_file}};
    struct err e = {0};
    for (int i = 0; i < 2; i++) {
        if (!file[i].path) continue;
        prompt_file_read(file[i].p, file[i].key, file[i].path, &e);
        settings_raise(r->l, &e);
        prompt_file_same(r->world, file[i].p, file[i].key, file[i].path, &e);
        settings_raise(r->l, &e);
    }
}

static struct groups_config groups_of(const struct rl_run *r)
{
    const struct mesh_degrees d = session_degrees(r->set, r->world->size);
    return algo_groups(&r->set->rl, r->prompts.n, r->world->size / (d.ssp * d.sp),
                       (uint64_t)r->set->seed);
}

static void check_groups(const struct rl_run *r)
{
    const struct groups_config g = groups_of(r);
    struct err e = {0};
    groups_check(&g, &e);
    settings_raise(r->l, &e);
}

static void open_session(struct rl_run *r, struct settings *s, struct ckpt *base)
{
    struct err e = {0};
    r->codec = video_codec_find(r->model.codec, &e);
    err_raise(&e);
    r->text_codec = text_codec_find(r->model.text_codec, &e);
    err_raise(&e);
    prompts_log_cut(&r->prompts, "rl_config.prompt_file", r->text_codec, r->model.config.text_len);
    if (s->rl.eval_prompt_file)
        prompts_log_cut(&r->eval_prompts, "rl_config.eval_prompt_file", r->text_codec,
                        r->model.config.text_len);
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
    run_require_same(r);
    ckpt_load(base, r->ses->fsdp, STATE_MASTER, r->base.kind);
    lora_init_params(r->ses->lora, (uint64_t)s->seed);
    clip_init(&r->state.adapter.clip, s->init_max_grad_norm);
    policy_open(&r->policy, &r->ses->ctx, r->ses->dit, &s->rl, groups_of(r),
                (struct prompt_rows){fill_prompt, r}, dry.latent);
    r->policy.lora = r->ses->lora;
}

static void open_scorers(struct rl_run *r, struct spawner *p)
{
    const struct settings *s = r->set;
    log_info("waiting for the scorers");
    r->scoring = scoring_open(p, &r->ses->mesh,
                              (struct scoring_opts){.reward = &s->reward,
                                                    .command = r->scorer,
                                                    .codec = r->codec,
                                                    .frames = r->model.frames,
                                                    .height = r->model.height,
                                                    .width = r->model.width,
                                                    .fps = r->model.fps > 0 ? r->model.fps : 16,
                                                    .batch = s->rl.sample_batch,
                                                    .log_dir = s->output_dir});
    char dims[REWARD_DIMS * (REWARD_NAME + 2)] = "";
    for (int k = 0; k < r->scoring->dims; k++) {
        if (k) strcat(dims, ", ");
        strcat(dims, r->scoring->name[k]);
    }
    log_info("scorers ready: %s", dims);
    if (s->reward.weights.n > r->scoring->dims)
        settings_stop(r->l, RC_CONFIG, "reward.weights",
                      "%d numbers, but the scorer has %d dimensions (%s)", s->reward.weights.n,
                      r->scoring->dims, dims);
    const struct adv_config a = algo_advantage(&s->rl, &s->reward, r->scoring->dims);
    double sum = 0, most = 0;
    for (int k = 0; k < a.dims; k++) sum += a.weight[k], most = fmax(most, fabs(a.weight[k]));
    if (most == 0) settings_stop(r->l, RC_CONFIG, "reward.weights", "all are 0: no reward is left");
    if (a.aggregate == ADV_OF_ADVANTAGES && sum <= 0)
        settings_stop(r->l, RC_CONFIG, "reward.weights",
                      "they sum to %g; adv.aggregate: advantage divides by the sum, which must be "
                      "above 0",
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

/* Once an epoch, after its checkpoint, so that a kill in it loses no epoch; what was cut short is
 * made up for by the next start. */
static void evaluate(struct rl_run *r, bool wanted)
{
    wanted = wanted && r->set->rl.eval_epochs && !r->unscored;
    if (wanted && r->state.evaluated != r->state.epoch) run_evaluate(r);
}

static int epochs(struct rl_run *r)
{
    const struct settings *s = r->set;
    enum why why = GO_ON;
    r->since = log_seconds();
    if (r->state.epoch >= s->rl.num_epochs)
        log_info("epoch %lld: num_epochs %lld is done; raise it to train on",
                 (long long)r->state.epoch, (long long)s->rl.num_epochs);
    evaluate(r, due(s->rl.eval_epochs, r->state.epoch));
    while (r->state.epoch < s->rl.num_epochs && (why = must_stop(r)) == GO_ON) {
        run_epoch(r);
        const bool look = due(s->rl.eval_epochs, r->state.epoch);
        if (look || due(s->save_interval, r->state.epoch)) run_save(r, NULL, &r->state.adapter);
        evaluate(r, look);
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
    keep_base(r);
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
    struct err e = {0};
    r.batch = calloc((size_t)s->rl.batches, sizeof *r.batch);
    CHECK(r.ses && r.batch, "out of memory");
    struct lock lock = {.fd = -1};
    session_lock_output(world, &lock, false, s->output_dir, "lock", "osp rl");
    require_files(&r);
    open_prompts(&r, s);
    struct ckpt *base = open_base(&r, s);
    settings_check_ranks(l, world->size); /* with the model of the base */
    settings_raise(l, dry_check_batches(s, &e));
    check_groups(&r);
    session_lock_output(world, &lock, true, s->output_dir, "lock", "osp rl");
    run_find(&r);
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
    free(r.scorer);
    adapter_base_free(&r.base);
    stored_model_free(&r.model);
    prompts_free(&r.prompts);
    prompts_free(&r.eval_prompts);
    lock_release(&lock);
    return rc;
}

/* With the values of the algorithm. */
static int print_resolved(const struct args *a)
{
    struct loaded_settings l;
    settings_load(&l, SETTINGS_RL, a->config, a->sets, a->num_sets);
    dry_resolve(&l);
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
    args_no_rest(&a, usage);
    if (a.help_config) return print_config(SETTINGS_RL, &a);
    if (!a.config) err_stop(RC_USAGE, "%s", usage);
    if (a.print_config) return print_resolved(&a);
    struct spawner *p = reward_prepare(&e); /* before MPI */
    err_raise(&e);
    struct comm *world = launch_start(&argc, &argv);
    struct loaded_settings l;
    session_settings(world, &l, SETTINGS_RL, a.config, a.sets, a.num_sets);
    if (a.check_comm) l.s.check_comm = true;
    for (int turn = 0; turn < 2; turn++) { /* what is wrong is said by rank 0 alone */
        if ((world->rank == 0) == (turn == 0)) dry_resolve(&l);
        comm_barrier(world, "algorithm");
    }
    const int rc = run(world, &l, p);
    reward_release(p);
    settings_free(&l);
    args_free(&a);
    launch_end(world);
    return rc;
}
