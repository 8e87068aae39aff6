/* The updates of an epoch: which samples each optimizer step takes, and the steps. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/fault.h"
#include "core/log.h"
#include "parallel/launch.h"
#include "rl/run.h"

static const struct sample_gain *gain_of(const struct rl_run *r, const struct sample_gain *gain,
                                         int64_t batch, int64_t entry)
{
    return &gain[batch * r->set->rl.sample_batch * r->ses->mesh.dp + entry];
}

static bool is_nft(const struct rl_run *r) { return r->set->rl.algo == ALGO_NFT; }

/* Trained steps of a sample, and how many there are to choose from. */
static int steps_trained(const struct rl_run *r, const struct step_plan *plan)
{
    return algo_steps_trained(&r->set->rl, plan);
}
static int steps_known(const struct rl_run *r, const struct step_plan *plan)
{
    return is_nft(r) ? plan->n : plan->num_recorded;
}

/* ---- one optimizer step -----------------------------------------------------------------------*/
/* An epoch that is interrupted is done again from its beginning. */
static void stop_if_asked(struct rl_run *r)
{
    fault_hit("update");
    if (!launch_stop(r->world)) return;
    log_info("stopped by a signal in the updates of epoch %lld; run again to go on",
             run_epoch_number(r));
    run_leave(r, r->before, &r->before_state, RC_PREEMPTED);
}

/* Place k of the trained steps for this sample: rising, or in an order of its own. */
static int trained_step(const struct rl_run *r, const struct step_plan *plan, int64_t inner,
                        const struct group_entry *g, int k)
{
    if (!algo_shuffles_steps(&r->set->rl)) return k;
    const struct rng_key key = {.seed = (uint64_t)r->set->seed,
                                .use = RNG_UPDATE,
                                .step = (uint32_t)(inner + 1) << 16,
                                .item = (uint64_t)g->sample};
    return (int)rng_permute(key, (uint64_t)k, (uint64_t)steps_known(r, plan));
}

static void micro_batches(struct rl_run *r, const struct step_plan *plan, int64_t inner,
                          const struct step_set *s, const struct sample_gain *gain,
                          struct update_stats *stats)
{
    const int64_t B = r->set->rl.train_batch;
    const int64_t first = r->set->rl.sample_batch * r->ses->mesh.axis[AXIS_DP]->rank;
    const int T = steps_trained(r, plan);
    const struct update_scale scale = {.policy =
                                           s->policy_terms > 0 ? 1 / (s->policy_terms * T) : 0,
                                       .kl = s->kl_terms > 0 ? 1 / (s->kl_terms * T) : 0};
    struct update_item item[64];
    CHECK(B <= 64 && s->n % B == 0, "%lld samples in micro-batches of %lld", (long long)s->n,
          (long long)B);
    for (int64_t m = 0; m < s->n; m += B)
        for (int k = 0; k < T; k++) {
            for (int64_t b = 0; b < B; b++) {
                const struct taken *t = &s->taken[m + b];
                const struct trajectory *from = &r->batch[t->batch];
                const struct sample_gain *g = gain_of(r, gain, t->batch, first + t->local);
                item[b] = (struct update_item){
                    .from = from,
                    .sample = (int)t->local,
                    .advantage = g->advantage,
                    .weight = g->weight,
                    .valid = g->valid,
                    .order = trained_step(r, plan, inner, &from->entry[t->local], k)};
                item[b].draw = (uint32_t)((inner + 1) << 16) + 1 + (uint32_t)item[b].order;
            }
            if (is_nft(r))
                nft_update(&r->policy, plan, item, scale, stats);
            else
                grpo_update(&r->policy, plan, item, scale, stats);
            stop_if_asked(r);
        }
}

static struct adapter_hyper hyper_of(const struct settings *s)
{
    return (struct adapter_hyper){.lr = s->optimizer.lr,
                                  .beta1 = s->optimizer.betas.v[0],
                                  .beta2 = s->optimizer.betas.v[1],
                                  .eps = s->optimizer.eps,
                                  .weight_decay = s->optimizer.weight_decay,
                                  .clip = s->grad_clip == CLIP_FIXED ? CLIP_RULE_FIXED
                                          : s->grad_clip == CLIP_ADAPTIVE_CAPPED
                                              ? CLIP_RULE_ADAPTIVE_CAPPED
                                              : CLIP_RULE_ADAPTIVE,
                                  .ema_decay = s->ema_decay,
                                  .ema_warmup = s->ema_warmup,
                                  .ema_interval = s->ema_update_interval};
}

static void require_finite(const struct rl_run *r, const struct adapter_result *a, double loss)
{
    const struct adapter_state *s = &r->state.adapter;
    if (!a->skipped) return;
    log_warn("epoch %lld: loss %g, gradient norm %g; the step was skipped (%lld in a row)",
             run_epoch_number(r), loss, a->norm, (long long)s->skipped_in_row);
    if (s->skipped_in_row > r->set->max_skipped_steps)
        err_stop(RC_NUMERIC, "%lld steps in a row were not finite (max_skipped_steps: %lld)",
                 (long long)s->skipped_in_row, (long long)r->set->max_skipped_steps);
}

/* Sums and largest values over the data ranks; the ranks of a sample hold the same. */
static void share_stats(struct rl_run *r, struct update_stats *s, int steps)
{
    struct comm *dp = r->ses->mesh.axis[AXIS_DP];
    double sum[2 + MAX_PLAN_STEPS * 6], most[MAX_PLAN_STEPS];
    int n = 0;
    sum[n++] = s->policy_loss;
    sum[n++] = s->kl_loss;
    for (int k = 0; k < steps; k++) {
        const struct step_stats *t = &s->step[k];
        const double x[6] = {t->terms,    t->clipped,          t->kl,
                             t->kl_terms, t->square_log_ratio, t->velocity_gap};
        memcpy(sum + n, x, sizeof x);
        n += 6;
        most[k] = t->max_log_ratio;
    }
    comm_sum_f64(dp, sum, n, "objective");
    comm_max_f64(dp, most, steps, "ratios");
    s->policy_loss = sum[0];
    s->kl_loss = sum[1];
    for (int k = 0; k < steps; k++) {
        const double *x = sum + 2 + 6 * k;
        s->step[k] = (struct step_stats){x[0], x[1], x[2], x[3], x[4], most[k], x[5]};
    }
}

/* NaN wins. */
static double larger(double a, double b) { return isnan(a) || a > b ? a : b; }

static double largest_log_ratio(const struct update_stats *s, int steps)
{
    double m = 0;
    for (int k = 0; k < steps; k++) m = larger(m, s->step[k].max_log_ratio);
    return m;
}

/* Nothing has changed since the rollout: the ratio must be 1. */
static void require_on_policy(const struct rl_run *r, double log_ratio)
{
    const double limit = ctx_compute(&r->ses->ctx) == DT_BF16 ? 1e-5 : 1e-6;
    if (log_ratio > limit) /* NaN: the loss is NaN too, and the step is skipped */
        err_stop(RC_NUMERIC,
                 "the first update of epoch %lld finds |log ratio| %.2e where the rollout's own "
                 "policy must give 0 (limit %.0e): rollout and update do not compute the same",
                 run_epoch_number(r), log_ratio, limit);
}

static void add_stats(struct epoch_updates *u, const struct update_stats *s, int steps)
{
    u->stats.policy_loss += s->policy_loss;
    u->stats.kl_loss += s->kl_loss;
    for (int k = 0; k < steps; k++) {
        struct step_stats *to = &u->stats.step[k];
        const struct step_stats *x = &s->step[k];
        to->terms += x->terms;
        to->clipped += x->clipped;
        to->kl += x->kl;
        to->kl_terms += x->kl_terms;
        to->square_log_ratio += x->square_log_ratio;
        to->velocity_gap += x->velocity_gap;
        to->max_log_ratio = larger(to->max_log_ratio, x->max_log_ratio);
    }
}

static void optimizer_step(struct rl_run *r, const struct step_plan *plan, int64_t inner,
                           const struct step_set *set, const struct sample_gain *gain,
                           struct epoch_updates *u)
{
    struct session *s = r->ses;
    struct update_stats stats = {0};
    const bool kl = r->set->rl.kl_beta > 0 && set->kl_terms > 0;
    const bool empty = steps_trained(r, plan) == 0 || (set->policy_terms == 0 && !kl);
    if (empty) { /* on all ranks: nothing changes, not even counters */
        u->skipped_empty++;
        return;
    }
    lora_zero_grads(s->lora);
    micro_batches(r, plan, inner, set, gain, &stats);
    const int known = steps_known(r, plan);
    share_stats(r, &stats, known);
    if (u->steps == 0 && !is_nft(r)) {
        u->first_log_ratio = largest_log_ratio(&stats, known);
        require_on_policy(r, u->first_log_ratio);
    }
    const struct adapter_hyper h = hyper_of(r->set);
    const double loss = stats.policy_loss + stats.kl_loss;
    const struct adapter_result a =
        adapter_step(s->lora, r->world, &s->tmp, &h, &r->state.adapter, loss);
    require_finite(r, &a, loss);
    u->skipped_bad += a.skipped;
    if (a.skipped) return;
    u->steps++;
    u->grad_norm += a.norm;
    u->loss += loss;
    add_stats(u, &stats, known);
}

struct epoch_updates run_updates(struct rl_run *r, const struct step_plan *plan,
                                 const struct sample_gain *gain)
{
    struct epoch_updates u = {0};
    const struct rl_config *c = &r->set->rl;
    const struct units units = units_of(c, r->set->gradient_accumulation_steps);
    const struct units_place place = {c, (uint64_t)r->set->seed, r->state.epoch, r->ses->mesh.dp,
                                      r->ses->mesh.axis[AXIS_DP]->rank};
    comm_context(r->world, "updates");
    const int64_t each = units.count / units.per, all = c->inner_epochs * each;
    const double began = log_seconds();
    for (int64_t step = 0; step < all; step++) {
        const int64_t inner = step / each;
        struct step_set set = step_set(&place, &units, inner, step % each, gain);
        optimizer_step(r, plan, inner, &set, gain, &u);
        free(set.taken);
        if (r->world->rank == 0)
            log_progress("epoch %lld/%lld  update %lld/%lld  ETA %.0f s of the updates",
                         run_epoch_number(r), (long long)r->set->rl.num_epochs, (long long)step + 1,
                         (long long)all,
                         (log_seconds() - began) / (double)(step + 1) * (double)(all - step - 1));
    }
    comm_context(r->world, NULL);
    if (is_nft(r) && u.steps)
        lora_follow(r->ses->lora, nft_old_keep(&r->set->rl, r->state.adapter.step));
    if (u.steps) {
        u.grad_norm /= (double)u.steps;
        u.loss /= (double)u.steps;
        u.stats.policy_loss /= (double)u.steps;
        u.stats.kl_loss /= (double)u.steps;
    }
    return u;
}
