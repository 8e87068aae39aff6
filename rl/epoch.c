/* One epoch: rollouts, scores, advantages, updates (docs/spec/rl.md 1.19). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/fault.h"
#include "core/log.h"
#include "parallel/launch.h"
#include "rl/run.h"

void run_spend(struct rl_run *r)
{
    const double now = log_seconds();
    r->state.seconds += now - r->since;
    r->since = now;
}

/* A checkpoint of this epoch may lie there already: what was spent since is in the metrics. */
void run_leave(struct rl_run *r, const struct ckpt_snapshot *snap,
               const struct adapter_state *state, int rc)
{
    run_spend(r);
    run_save(r, snap, state);
    metrics_event_at(r->metrics, rc == RC_PREEMPTED ? "preempted" : "stopped", r->state.epoch,
                     r->state.seconds);
    launch_leave(r->world, rc);
}

void run_stop_if_asked(struct rl_run *r)
{
    if (!launch_stop(r->world)) return;
    log_info("stopped by a signal %s epoch %lld; run again to go on",
             r->evaluating ? "in the evaluation of" : "before the updates of",
             r->evaluating ? (long long)r->state.epoch : run_epoch_number(r));
    run_leave(r, NULL, &r->state.adapter, RC_PREEMPTED);
}

/* ---- rollouts ---------------------------------------------------------------------------------*/
struct rolling { /* for the console and the signals */
    struct rl_run *r;
    int64_t batch;
    int steps;
    double since;
};

static void on_step(void *arg, int step)
{
    const struct rolling *x = arg;
    struct rl_run *r = x->r;
    fault_hit("rollout");
    run_stop_if_asked(r);
    const double all = (double)(r->set->rl.batches * x->steps),
                 done = (double)(x->batch * x->steps + step);
    const double spent = log_seconds() - x->since;
    if (step == x->steps || step % 5 == 0)
        log_progress("epoch %lld/%lld  rollout %lld/%lld step %d/%d  ETA %.0f s",
                     run_epoch_number(r), (long long)r->set->rl.num_epochs, (long long)x->batch + 1,
                     (long long)r->set->rl.batches, step, x->steps, spent * (all - done) / done);
}

static void entries_of(const struct rl_run *r, int64_t batch, struct group_entry *out)
{
    const int64_t B = r->set->rl.sample_batch, first = B * r->ses->mesh.axis[AXIS_DP]->rank;
    for (int64_t i = 0; i < B; i++)
        out[i] = groups_entry(&r->policy.groups, r->state.epoch, batch, first + i);
}

static void rollouts(struct rl_run *r, const struct step_plan *plan)
{
    const int64_t B = r->set->rl.sample_batch, D = r->policy.elements;
    const bool nft = r->set->rl.algo == ALGO_NFT;
    float *latent = calloc((size_t)(B * D), sizeof *latent);
    CHECK(latent, "out of memory");
    struct rolling x = {.r = r, .steps = plan->n, .since = log_seconds()};
    if (nft) lora_use(r->ses->lora, STATE_LORA_OLD);
    for (x.batch = 0; x.batch < r->set->rl.batches; x.batch++) {
        struct group_entry entry[64];
        entries_of(r, x.batch, entry);
        comm_context(r->world, "rollout");
        rollout_run(&r->policy, plan, entry, nft, (struct rollout_hooks){on_step, &x},
                    &r->batch[x.batch], latent);
        for (int64_t i = 0; i < B; i++)
            if (!scoring_submit(r->scoring, entry[i], r->prompts.text[entry[i].prompt],
                                latent + i * D))
                run_stop_if_asked(r);
    }
    if (nft) lora_use(r->ses->lora, STATE_LORA);
    comm_context(r->world, NULL);
    free(latent);
}

/* ---- scores -----------------------------------------------------------------------------------*/
/* False: no scorer is left, and the run goes on without this epoch's updates. */
static bool wait_for_scores(struct rl_run *r)
{
    for (;;) {
        fault_hit("scores");
        const enum scoring_state s = scoring_collect(r->scoring, 1, launch_signal() != 0);
        if (s == SCORING_DONE) return true;
        if (s == SCORING_STOP) run_stop_if_asked(r);
        if (s != SCORING_DEAD) continue;
        if (r->set->reward.on_dead == 1) {
            log_warn("no scorer is left: epoch %lld goes without updates (reward.on_dead)",
                     run_epoch_number(r));
            scoring_give_up(r->scoring, "no scorer is left");
            return false;
        }
        log_warn("no scorer is left: stopped at epoch %lld with a checkpoint; their logs are in %s",
                 (long long)r->state.epoch, r->set->output_dir);
        run_leave(r, NULL, &r->state.adapter, RC_TEMP);
    }
}

/* The table is the same on all ranks, so all stop, with a checkpoint of the beginning of the epoch.
 */
static void require_valid(struct rl_run *r, const struct score_row *row, int64_t n)
{
    int64_t bad = 0;
    const struct score_row *first = NULL;
    for (int64_t i = 0; i < n; i++)
        if (!row[i].valid) {
            if (!first) first = &row[i];
            bad++;
        }
    if (!bad) return;
    log_warn("epoch %lld: %lld of %lld clips have no score; the first: sample %lld: %s",
             run_epoch_number(r), (long long)bad, (long long)n, (long long)first->entry.sample,
             first->reason);
    if ((double)bad <= r->set->reward.max_invalid * (double)n) return;
    log_warn("%lld of %lld clips of epoch %lld have no score (reward.max_invalid %g); the "
             "scorers' logs are in %s",
             (long long)bad, (long long)n, run_epoch_number(r), r->set->reward.max_invalid,
             r->set->output_dir);
    run_leave(r, NULL, &r->state.adapter, RC_TEMP);
}

static int by_sample(const void *a, const void *b)
{
    const int64_t x = ((const struct score_row *)a)->entry.sample,
                  y = ((const struct score_row *)b)->entry.sample;
    return (x > y) - (x < y);
}

/* Advantages by sample, then by place in the rollout batches. */
static struct sample_gain *gains(struct rl_run *r, const struct score_row *row, int64_t n,
                                 struct adv_stats *stats)
{
    const struct rl_config *c = &r->set->rl;
    const struct adv_config a = algo_advantage(c, &r->set->reward, r->scoring->dims);
    const int64_t E = c->sample_batch * r->ses->mesh.dp;
    struct adv_member *m = calloc((size_t)n, sizeof *m);
    struct adv_out *out = calloc((size_t)n, sizeof *out);
    struct sample_gain *g = calloc((size_t)n, sizeof *g);
    CHECK(m && out && g && n == E * c->batches, "%lld scores of %lld samples", (long long)n,
          (long long)(E * c->batches));
    for (int64_t i = 0; i < n; i++) {
        m[i] = (struct adv_member){row[i].entry.group, row[i].entry.prompt, row[i].valid, {0}};
        for (int k = 0; k < a.dims; k++) m[i].score[k] = row[i].norm[k];
    }
    advantages(&a, m, n, out, stats);
    for (int64_t b = 0; b < c->batches; b++)
        for (int64_t i = 0; i < E; i++) {
            struct score_row key;
            key.entry = groups_entry(&r->policy.groups, r->state.epoch, b, i);
            const struct score_row *at = bsearch(&key, row, (size_t)n, sizeof *row, by_sample);
            CHECK(at, "sample %lld has no row", (long long)key.entry.sample);
            const struct adv_out *o = &out[at - row];
            g[b * E + i] =
                (struct sample_gain){o->advantage, o->weight, !isnan(o->reward) && !o->dropped};
        }
    free(m);
    free(out);
    return g;
}

/* ---- the epoch --------------------------------------------------------------------------------*/
static void update_all(struct rl_run *r, const struct step_plan *plan,
                       const struct sample_gain *gain, struct epoch_updates *u)
{
    r->before = adapter_snapshot(r->ses->lora, &r->ses->mesh, run_kinds(r));
    r->before_state = r->state.adapter;
    *u = run_updates(r, plan, gain);
    ckpt_snapshot_free(r->before);
    r->before = NULL;
}

void run_epoch(struct rl_run *r)
{
    const double t0 = log_seconds(), waited = r->scoring->wait_s, decoded = r->scoring->decode_s;
    const struct step_plan plan =
        algo_step_plan(&r->set->rl, (uint64_t)r->set->seed, r->state.epoch);
    struct adv_stats stats = {0};
    struct epoch_updates u = {0};
    err_push("epoch %lld", run_epoch_number(r));
    rollouts(r, &plan);
    struct epoch_times t = {.decode = r->scoring->decode_s - decoded};
    t.rollout = log_seconds() - t0 - t.decode - (r->scoring->wait_s - waited);
    const bool alive = wait_for_scores(r);
    t.reward_wait = r->scoring->wait_s - waited;
    int64_t n;
    struct score_row *row = scoring_table(r->scoring, &n);
    for (int64_t i = 0; i < n && !alive; i++) row[i].valid = false;
    if (alive) require_valid(r, row, n);
    struct sample_gain *gain = gains(r, row, n, &stats);
    if (stats.valid && !stats.effective)
        log_warn_all("epoch %lld: no sample has an advantage, so nothing is trained: all scores of "
                     "a group are the same, or its members are too few",
                     run_epoch_number(r));
    const double t1 = log_seconds();
    update_all(r, &plan, gain, &u);
    t.update = log_seconds() - t1;
    for (int64_t b = 0; b < r->set->rl.batches; b++) trajectory_free(&r->batch[b]);
    free(row);
    free(gain);
    r->state.epoch++;
    run_spend(r);
    monitor_scores(r, &stats);
    monitor_updates(r, &plan, &u);
    monitor_console(r, &stats, &u, &t);
    err_pop();
}
