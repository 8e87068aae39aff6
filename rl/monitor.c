/* What an epoch tells: metrics.jsonl, TensorBoard, console (docs/spec/rl.md 7.4). Keys: docs/rl.md.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/log.h"
#include "rl/run.h"

static void put(struct rl_run *r, double value, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void put(struct rl_run *r, double value, const char *fmt, ...)
{
    char key[96];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(key, sizeof key, fmt, ap);
    va_end(ap);
    metrics_put(r->metrics, key, value);
}

void monitor_scores(struct rl_run *r, const struct adv_stats *s)
{
    const double n = s->members ? (double)s->members : 1, g = s->groups ? (double)s->groups : 1;
    put(r, 1 - (double)s->valid / n, "reward/invalid_share");
    if (!s->valid) return; /* nothing was scored: there is no mean of it */
    put(r, s->mean, "reward/mean");
    put(r, s->std, "reward/std");
    put(r, s->min, "reward/min");
    put(r, s->max, "reward/max");
    put(r, s->std_within, "reward/std_within_groups");
    put(r, s->std_between, "reward/std_between_groups");
    for (int k = 0; k < r->scoring->dims; k++) {
        put(r, s->dim_mean[k], "reward/%s/mean", r->scoring->name[k]);
        put(r, s->dim_std[k], "reward/%s/std", r->scoring->name[k]);
    }
    put(r, (double)s->zero_std_groups / g, "advantage/zero_std_share");
    put(r, (double)s->dropped_groups, "advantage/dropped_groups");
    put(r, (double)s->effective, "advantage/effective_samples");
    put(r, s->adv_abs_mean, "advantage/abs_mean");
    put(r, s->adv_max, "advantage/max");
}

struct norms { /* sums of squares */
    struct rl_run *r;
    double a, b;
};

static double square_sum(struct rl_run *r, struct tensor x)
{
    struct session *s = r->ses;
    const size_t mark = arena_mark(&s->tmp);
    struct tensor sum = arena_new(&s->tmp, DT_F64, 1, DIMS(1));
    double v;
    s->dev->ops->fill(s->dev, sum, 0);
    s->dev->ops->sumsq(s->dev, sum, &x, 1);
    dev_get(s->dev, &v, sum);
    arena_release(&s->tmp, mark);
    return v;
}

static void add_norm(void *arg, const struct piece *p)
{
    struct norms *n = arg;
    const double v = square_sum(n->r, p->data);
    if (strstr(p->param->name, "lora_B"))
        n->b += v;
    else
        n->a += v;
}

static void put_adapters(struct rl_run *r)
{
    struct norms n = {.r = r};
    lora_each_piece(r->ses->lora, STATE_LORA, 0, 1, add_norm, &n);
    put(r, sqrt(n.a), "adapter/norm_A");
    put(r, sqrt(n.b), "adapter/norm_B");
}

void monitor_updates(struct rl_run *r, const struct step_plan *plan, const struct epoch_updates *u)
{
    double terms = 0, clipped = 0, square = 0, kl = 0, kl_terms = 0;
    put(r, (double)r->state.adapter.step, "update/optimizer_steps");
    put(r, (double)u->skipped_empty, "update/steps_without_advantage");
    put(r, (double)r->state.adapter.skipped, "update/skipped_steps");
    put(r, (double)plan->window.first, "update/window_first");
    put_adapters(r);
    if (!u->steps) return;
    put(r, u->loss, "update/loss");
    put(r, u->stats.policy_loss, "update/policy_loss");
    put(r, u->stats.kl_loss, "update/kl_loss");
    put(r, u->grad_norm, "update/grad_norm");
    put(r, r->state.adapter.clip.limit, "update/clip_limit");
    put(r, r->set->optimizer.lr, "update/lr");
    const bool nft = r->set->rl.algo == ALGO_NFT;
    if (!nft) put(r, u->first_log_ratio, "update/first_log_ratio");
    for (int k = 0; k < (nft ? plan->n : plan->num_recorded); k++) {
        const struct step_stats *s = &u->stats.step[k];
        const int step = nft ? k : plan->recorded[k];
        terms += s->terms;
        clipped += s->clipped;
        square += s->square_log_ratio;
        kl += s->kl;
        kl_terms += s->kl_terms;
        if (!nft) put(r, s->max_log_ratio, "update/max_log_ratio/step_%02d", step);
        if (!nft && s->terms > 0)
            put(r, s->clipped / s->terms, "update/clip_fraction/step_%02d", step);
        if (s->kl_terms > 0)
            put(r, s->velocity_gap / s->kl_terms, "update/velocity_gap/step_%02d", step);
    }
    if (terms > 0 && !nft) {
        put(r, clipped / terms, "update/clip_fraction");
        put(r, square / (2 * terms), "update/approx_kl");
    }
    if (kl_terms > 0) put(r, kl / kl_terms, nft ? "update/velocity_gap" : "update/kl");
}

static double share(double part, double all) { return all > 0 ? 100 * part / all : 0; }

void monitor_console(struct rl_run *r, const struct adv_stats *s, const struct epoch_updates *u,
                     const struct epoch_times *t)
{
    const double all = t->rollout + t->decode + t->reward_wait + t->update;
    const int64_t left = r->set->rl.num_epochs - r->state.epoch;
    double seconds = all * (double)left;
    if (r->set->max_seconds > 0) seconds = fmin(seconds, r->set->max_seconds - r->state.seconds);
    const long eta = seconds > 0 ? (long)seconds : 0;
    char reward[80] = "no scores";
    if (s->valid)
        snprintf(reward, sizeof reward, "reward %.4f (std %.4f, within %.4f)", s->mean, s->std,
                 s->std_within);
    log_progress("epoch %lld/%lld  %s  loss %.2e  kl loss %.2e  norm "
                 "%.2e  %.1f s: rollout %.0f%% decode %.0f%% reward wait %.0f%% update %.0f%%  ETA "
                 "%ld:%02ld:%02ld",
                 (long long)r->state.epoch, (long long)r->set->rl.num_epochs, reward, u->loss,
                 u->stats.kl_loss, u->grad_norm, all, share(t->rollout, all), share(t->decode, all),
                 share(t->reward_wait, all), share(t->update, all), eta / 3600, eta / 60 % 60,
                 eta % 60);
    put(r, t->rollout, "time/rollout_s");
    put(r, t->decode, "time/decode_s");
    put(r, t->reward_wait, "time/reward_wait_s");
    put(r, t->update, "time/update_s");
    metrics_flush(r->metrics, r->state.epoch, r->state.seconds);
}
