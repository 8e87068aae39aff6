/* Verb train: builds everything, resumes, runs the loop, saves. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/io.h"
#include "core/log.h"
#include "parallel/launch.h"
#include "train/args.h"
#include "train/print_config.h"
#include "train/build.h"
#include "train/metrics.h"
#include "train/resume.h"
#include "train/verbs.h"

static const char usage[] =
    "osp train CONFIG [key=value ...] [--print-config] [--help-config] [--check-comm]\n"
    "Supervised fine-tuning by flow matching. Run it again after an interruption: it resumes from\n"
    "the newest valid checkpoint of output_dir, on any number of ranks.";

struct progress { /* between two console lines */
    double since, comm, data, loss;
    int64_t steps;
};

static void console(const struct trainer *t, const struct step_result *r, struct progress *p,
                    struct metrics *m)
{
    const struct session *s = t->ses;
    const double seconds = log_seconds() - p->since, per = seconds / (double)p->steps;
    const double tokens =
        (double)(t->global_batch * s->shape.t * s->shape.h * s->shape.w / 4) / per;
    const double flops = (s->model_forward.gemm_flops + s->model_forward.attn_flops +
                          s->model_backward.gemm_flops + s->model_backward.attn_flops) *
                         t->num_micro * s->mesh.dp / per;
    const double comm = p->comm / seconds, data = p->data / seconds;
    double left = per * (double)(s->set->training_iteration - t->state.step);
    if (s->set->max_seconds > 0) left = fmin(left, s->set->max_seconds - t->state.seconds);
    const long eta = left > 0 ? (long)left : 0;
    log_progress("step %lld/%lld  loss %.5f  norm %.3f  lr %.2e  %.0f tok/s  %.2f GFLOP/s  "
                 "compute %.0f%% comm %.0f%% data %.0f%%  ETA %ld:%02ld:%02ld",
                 (long long)t->state.step, (long long)s->set->training_iteration,
                 p->loss / (double)p->steps, r->norm, r->lr, tokens, 1e-9 * flops,
                 100 * (1 - comm - data), 100 * comm, 100 * data, eta / 3600, eta / 60 % 60,
                 eta % 60);
    metrics_put(m, "train/loss", p->loss / (double)p->steps);
    metrics_put(m, "train/last_loss", r->loss);
    metrics_put(m, "train/grad_norm", r->norm);
    metrics_put(m, "train/grad_norm_clipped", r->norm_after);
    metrics_put(m, "train/clip_limit", r->limit);
    metrics_put(m, "train/lr", r->lr);
    metrics_put(m, "train/skipped_steps", (double)t->state.skipped);
    metrics_put(m, "speed/tokens_per_s", tokens);
    metrics_put(m, "speed/flops_per_s", flops);
    metrics_put(m, "speed/step_s", per);
    metrics_put(m, "speed/compute_share", 1 - comm - data);
    metrics_put(m, "speed/comm_share", comm);
    metrics_put(m, "speed/data_share", data);
    metrics_flush(m, t->state.step, t->state.seconds);
    *p = (struct progress){.since = log_seconds()};
}

/* False when a rank was asked to stop: then there is no result. */
static bool validate(struct trainer *t, struct metrics *m)
{
    const bool both = t->ses->set->ema_decay > 0;
    for (int ema = 0; ema <= both; ema++) {
        const struct valid_result v = trainer_validate(t, ema);
        if (v.stopped) return false;
        if (!v.samples) return true;
        const char *which = ema ? "ema" : "raw";
        char key[64], text[512] = "";
        for (int k = 0; k < v.buckets; k++) {
            snprintf(key, sizeof key, "validation/%s/sigma_%.3f", which, v.sigma[k]);
            metrics_put(m, key, v.loss[k]);
            const size_t n = strlen(text);
            snprintf(text + n, sizeof text - n, " %.3f:%.4f", v.sigma[k], v.loss[k]);
        }
        snprintf(key, sizeof key, "validation/%s/loss", which);
        metrics_put(m, key, v.mean);
        log_info("validation at step %lld (%s): %.5f over %lld windows; by sigma%s",
                 (long long)t->state.step, which, v.mean, (long long)v.samples, text);
    }
    metrics_flush(m, t->state.step, t->state.seconds);
    return true;
}

static void save_config(struct comm *world, const struct loaded_settings *l)
{
    if (world->rank) return;
    char *path = io_path("%s/config.yaml", l->s.output_dir), *text = settings_text(l, true);
    struct err e = {0};
    io_write_file(path, text, strlen(text), &e);
    err_raise(&e);
    free(text);
    free(path);
}

static bool budget_spent(const struct trainer *t)
{
    return t->ses->set->max_seconds > 0 && t->state.seconds >= t->ses->set->max_seconds;
}

/* The batch job ends soon. Clocks differ between hosts: only the sum over the ranks decides. */
static bool job_ends(const struct trainer *t)
{
    const char *end = getenv("SLURM_JOB_END_TIME");
    return t->ses->set->stop_before_end_s > 0 && end &&
           difftime(atol(end), time(NULL)) < t->ses->set->stop_before_end_s;
}

static void require_finite(const struct trainer *t, const struct step_result *r, int64_t saved)
{
    const struct settings *s = t->ses->set;
    if (r->skipped)
        log_warn("step %lld: loss %g, gradient norm %g; the step was skipped (%lld in a row)",
                 (long long)t->state.step, r->loss, r->norm, (long long)t->state.skipped_in_row);
    if (t->state.skipped_in_row > s->max_skipped_steps)
        err_stop(RC_NUMERIC,
                 "%lld steps in a row were not finite (max_skipped_steps: %lld); the "
                 "last checkpoint is from step %lld",
                 (long long)t->state.skipped_in_row, (long long)s->max_skipped_steps,
                 (long long)saved);
}

static bool due(int64_t interval, int64_t step) { return interval > 0 && step % interval == 0; }

static int train_loop(struct trainer *t, const struct loaded_settings *l, struct metrics *m)
{
    const struct settings *s = t->ses->set;
    const int64_t steps = s->training_iteration;
    struct progress p = {.since = log_seconds()};
    int64_t saved = t->state.step;
    bool clock = false;
    if (budget_spent(t)) {
        log_info("the time budget (max_seconds %g) was spent before this start", s->max_seconds);
        return RC_OK;
    }
    if (t->state.step >= steps)
        log_info("step %lld: training_iteration %lld is done; raise it to train on",
                 (long long)t->state.step, (long long)steps);
    bool preempted = launch_stop(t->ses->world); /* during the start */
    if (!preempted && t->state.step == 0 && s->validation.interval > 0) preempted = !validate(t, m);
    while (!preempted && !clock && t->state.step < steps) {
        p.since = p.steps ? p.since : log_seconds();
        const struct step_result r = trainer_step(t, budget_spent(t), job_ends(t));
        p.steps++;
        p.comm += r.comm_seconds;
        p.data += r.data_seconds;
        p.loss += r.loss;
        require_finite(t, &r, saved);
        preempted = r.signal;
        clock = r.clock;
        bool last = preempted || clock || t->state.step == steps;
        if (last || t->state.step % s->log_interval == 0) console(t, &r, &p, m);
        if (!preempted && s->validation.interval > 0 &&
            (last || due(s->validation.interval, t->state.step))) {
            const double before = log_seconds();
            preempted = !validate(t, m);
            last |= preempted;
            p.since += log_seconds() - before; /* not part of the steps' speed */
            t->state.seconds += log_seconds() - before;
        }
        if (last || t->state.step % s->save_interval == 0) {
            resume_save(t, l);
            saved = t->state.step;
            if (!last) preempted = launch_stop(t->ses->world); /* this checkpoint will do */
        }
    }
    if (!preempted || t->state.step >= steps) return RC_OK;
    log_info("stopped by a signal or the end of the job at step %lld; run again to go on",
             (long long)t->state.step);
    return RC_PREEMPTED;
}

static struct dataset *open_data(struct comm *world, const struct loaded_settings *l)
{
    const struct data_config *c = &l->s.data;
    const bool build = c->source && c->metafile_or_dir && !io_exists(c->metafile_or_dir);
    settings_push(l, build ? "data_config.dataset_config.source"
                           : "data_config.dataset_config.metafile_or_dir_path");
    struct dataset *d = build_or_open(world, &l->s);
    err_pop();
    return d;
}

static int run(struct comm *world, struct loaded_settings *l)
{
    struct lock lock = {.fd = -1};
    session_lock_output(world, &lock, false, l->s.output_dir, "lock", "osp train");
    struct dataset *d = open_data(world, l); /* without one, nothing is left behind */
    session_lock_output(world, &lock, true, l->s.output_dir, "lock", "osp train");
    struct session *ses = calloc(1, sizeof *ses);
    struct trainer t;
    CHECK(ses, "out of memory");
    session_open(ses, &l->s, world, trainer_shape(&l->s, d, world->size), true);
    trainer_init(&t, ses, d);
    const bool resumed = resume_load(&t, l);
    save_config(world, l);
    if (!resumed) fsdp_init_params(ses->fsdp, (uint64_t)l->s.seed);
    log_info(
        "%lld training windows, %lld held out; global batch %lld in %d micro-batch%s of %d per "
        "data rank; shift %.4f",
        (long long)d->num_train, (long long)d->num_valid, (long long)t.global_batch, t.num_micro,
        t.num_micro > 1 ? "es" : "", ses->shape.batch, t.shift);
    struct err e = {0};
    struct metrics *m = metrics_open(l->s.output_dir, world->rank, resumed ? t.state.step : -1, &e);
    err_raise(&e);
    char *text = settings_text(l, false);
    metrics_text(m, "config", text);
    free(text);
    trainer_start(&t);
    const int rc = train_loop(&t, l, m);
    metrics_event(m, rc == RC_OK ? "finished" : "preempted", t.state.step);
    metrics_close(m);
    trainer_free(&t);
    session_close(ses);
    free(ses);
    dataset_close(d);
    lock_release(&lock);
    return rc;
}

int verb_train(int argc, char **argv)
{
    struct args a;
    args_parse(&a, argc, argv, usage);
    args_no_rest(&a, usage);
    if (a.help_config || a.print_config) return print_config(SETTINGS_TRAIN, &a);
    if (!a.config) err_stop(RC_USAGE, "%s", usage);
    struct comm *world = launch_start(&argc, &argv);
    struct loaded_settings l;
    session_settings(world, &l, SETTINGS_TRAIN, a.config, a.sets, a.num_sets);
    if (a.check_comm) l.s.check_comm = true;
    const int rc = run(world, &l);
    settings_free(&l);
    args_free(&a);
    launch_end(world);
    return rc;
}
