/* Evaluation: the same prompts from the same noise, no stochastic step, scored (docs/spec/rl.md
 * 1.16, 7.1 D-18). Evaluation samples have negative numbers, so that no noise of training is used.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/fault.h"
#include "core/io.h"
#include "core/log.h"
#include "data/video.h"
#include "parallel/launch.h"
#include "rl/run.h"

static struct group_entry item_entry(const struct rl_run *r, int64_t item)
{
    const int64_t per = r->set->rl.eval_samples, n = r->eval_prompts.n * per;
    return (struct group_entry){
        .group = -1 - item, .prompt = item < n ? item / per : 0, .member = 0, .sample = -1 - item};
}

static char *folder(const struct rl_run *r)
{
    return io_path("%s/eval/epoch_%06lld", r->set->output_dir, (long long)r->state.epoch);
}

static void write_video(struct rl_run *r, int64_t item)
{
    const int64_t per = r->set->rl.eval_samples;
    const struct stored_model *m = &r->model;
    char *dir = folder(r);
    char *path = io_path("%s/prompt_%03lld_%02lld.mp4", dir, (long long)(item / per),
                         (long long)(item % per));
    struct err e = {0};
    io_mkdir(dir, &e);
    if (!e.code)
        video_write(path, scoring_clip(r->scoring), m->frames, m->height, m->width,
                    m->fps > 0 ? m->fps : 16, r->eval_prompts.text[item / per], &e);
    if (e.code) log_warn("%s", e.msg); /* the scores count; a picture less is no reason to stop */
    free(path);
    free(dir);
}

static void on_step(void *arg, int step)
{
    (void)step;
    fault_hit("evaluate");
    run_stop_if_asked(arg);
}

static void sample_all(struct rl_run *r, const struct step_plan *plan)
{
    const int64_t B = r->set->rl.sample_batch, D = r->policy.elements;
    const int64_t n = r->eval_prompts.n * r->set->rl.eval_samples, dp = r->ses->mesh.dp;
    const int64_t first = B * r->ses->mesh.axis[AXIS_DP]->rank;
    float *latent = calloc((size_t)(B * D), sizeof *latent);
    CHECK(latent, "out of memory");
    for (int64_t base = 0; base < n; base += dp * B) {
        struct group_entry entry[64];
        struct trajectory t;
        for (int64_t i = 0; i < B; i++) entry[i] = item_entry(r, base + first + i);
        rollout_run(&r->policy, plan, entry, false, (struct rollout_hooks){on_step, r}, &t, latent);
        trajectory_free(&t);
        for (int64_t i = 0; i < B; i++) {
            const int64_t item = base + first + i;
            if (!scoring_submit(r->scoring, entry[i], r->eval_prompts.text[entry[i].prompt],
                                latent + i * D))
                run_stop_if_asked(r);
            if (scoring_clip(r->scoring) && item < n) write_video(r, item);
        }
        log_progress("evaluation: %lld of %lld samples",
                     (long long)(base + dp * B < n ? base + dp * B : n), (long long)n);
    }
    free(latent);
}

static double reward_of(const struct rl_run *r, const struct score_row *row)
{
    const struct adv_config a = algo_advantage(&r->set->rl, &r->set->reward, r->scoring->dims);
    double sum = 0;
    for (int k = 0; k < a.dims; k++) sum += a.weight[k] * row->norm[k];
    return sum;
}

static void report(struct rl_run *r, const struct score_row *row, int64_t rows)
{
    const int64_t n = r->eval_prompts.n * r->set->rl.eval_samples;
    double sum = 0, square = 0, dim[REWARD_DIMS] = {0};
    int64_t valid = 0;
    for (int64_t i = 0; i < rows; i++) {
        if (!row[i].valid || -1 - row[i].entry.sample >= n) continue;
        const double x = reward_of(r, &row[i]);
        sum += x;
        square += x * x;
        for (int k = 0; k < r->scoring->dims; k++) dim[k] += row[i].norm[k];
        valid++;
    }
    if (!valid) {
        log_warn("evaluation of epoch %lld: no sample was scored", (long long)r->state.epoch);
        return;
    }
    const double mean = sum / (double)valid,
                 std = sqrt(fmax(0, square / (double)valid - mean * mean));
    metrics_put(r->metrics, "eval/reward_mean", mean);
    metrics_put(r->metrics, "eval/reward_std", std);
    metrics_put(r->metrics, "eval/samples", (double)valid);
    for (int k = 0; k < r->scoring->dims; k++) {
        char key[64];
        snprintf(key, sizeof key, "eval/%s", r->scoring->name[k]);
        metrics_put(r->metrics, key, dim[k] / (double)valid);
    }
    metrics_flush(r->metrics, r->state.epoch, r->state.seconds);
    log_info("evaluation at epoch %lld: reward %.4f (std between samples %.4f) over %lld samples",
             (long long)r->state.epoch, mean, std, (long long)valid);
}

/* ---- prompts.json -----------------------------------------------------------------------------*/
static json_t *number_or_null(bool valid, double x)
{
    return valid && isfinite(x) ? json_real(x) : json_null();
}

/* row NULL: never scored. */
static json_t *item_json(const struct rl_run *r, int64_t item, const struct score_row *row)
{
    const int64_t per = r->set->rl.eval_samples;
    const bool valid = row && row->valid;
    json_t *j = json_pack("{s:s, s:I, s:I, s:I}", "prompt", r->eval_prompts.text[item / per],
                          "sample", (json_int_t)(item % per), "height", (json_int_t)r->model.height,
                          "width", (json_int_t)r->model.width);
    CHECK(j, "evaluation prompt %lld cannot be encoded", (long long)(item / per)); /* it is UTF-8 */
    json_object_set_new(j, "reward", number_or_null(valid, valid ? reward_of(r, row) : 0));
    json_t *scores = json_object();
    for (int k = 0; k < r->scoring->dims; k++)
        json_object_set_new(scores, r->scoring->name[k],
                            number_or_null(valid, valid ? row->norm[k] : 0));
    json_object_set_new(j, "scores", scores);
    return j;
}

/* What the videos are of and what they got, beside them, for reports (train/captions.h). */
static void write_prompts(const struct rl_run *r, const struct score_row *row, int64_t rows)
{
    const int64_t per = r->set->rl.eval_samples, n = r->eval_prompts.n * per;
    json_t *items = json_array();
    for (int64_t item = 0; item < n; item++) {
        const struct score_row *of = NULL;
        for (int64_t i = 0; i < rows && !of; i++)
            if (-1 - row[i].entry.sample == item) of = &row[i];
        json_array_append_new(items, item_json(r, item, of));
    }
    json_t *all = json_pack("{s:s, s:I, s:I, s:o}", "format", "osp-evaluation", "epoch",
                            (json_int_t)r->state.epoch, "samples_per_prompt", (json_int_t)per,
                            "items", items);
    char *text = json_dumps(all, JSON_INDENT(1) | JSON_REAL_PRECISION(9)), *dir = folder(r);
    char *path = io_path("%s/prompts.json", dir);
    CHECK(text, "the evaluation cannot be encoded");
    struct err e = {0};
    io_mkdir(dir, &e);
    if (!e.code) io_write_file(path, text, strlen(text), &e);
    if (e.code) log_warn("%s", e.msg); /* as with a video */
    json_decref(all);
    free(text);
    free(path);
    free(dir);
}

/* -----------------------------------------------------------------------------------------------*/
static bool collect(struct rl_run *r)
{
    for (;;) {
        const enum scoring_state s = scoring_collect(r->scoring, 1, launch_signal() != 0);
        if (s == SCORING_DONE) return true;
        if (s == SCORING_STOP) run_stop_if_asked(r);
        if (s == SCORING_DEAD) return false;
    }
}

/* A mean over the clips that happened to be scored is no evaluation: this one stays to be made. */
static void lost(struct rl_run *r)
{
    if (r->set->reward.on_dead == 1) {
        log_warn("no scorer is left: no evaluation from epoch %lld on (reward.on_dead)",
                 (long long)r->state.epoch);
        r->unscored = true; /* on all ranks */
        return;
    }
    log_warn("no scorer is left: stopped in the evaluation of epoch %lld with a checkpoint; their "
             "logs are in %s",
             (long long)r->state.epoch, r->set->output_dir);
    run_leave(r, NULL, &r->state.adapter, RC_TEMP);
}

void run_evaluate(struct rl_run *r)
{
    const bool ema = r->set->ema_decay > 0;
    const struct step_plan plan = step_plan_ode((int)r->set->rl.eval_steps, r->set->rl.shift);
    err_push("evaluation at epoch %lld", (long long)r->state.epoch);
    comm_context(r->world, "evaluation");
    r->evaluating = true;
    if (ema) lora_use(r->ses->lora, STATE_LORA_EMA);
    sample_all(r, &plan);
    if (ema) lora_use(r->ses->lora, STATE_LORA);
    const bool alive = collect(r);
    if (!alive) scoring_give_up(r->scoring, "no scorer is left");
    r->evaluating = false;
    int64_t n;
    struct score_row *row = scoring_table(r->scoring, &n);
    if (r->world->rank == 0) write_prompts(r, row, n);
    run_spend(r);
    if (alive) {
        report(r, row, n);
        r->state.evaluated = r->state.epoch;
    } else {
        lost(r);
    }
    free(row);
    comm_context(r->world, NULL);
    err_pop();
}
