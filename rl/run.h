/* A post-training run: what `osp rl` builds, and the loop over its parts (docs/spec/rl.md 1.19). */
#ifndef RL_RUN_H
#define RL_RUN_H
#include "rl/scoring.h"
#include "rl/units.h"
#include "rl/update.h"
#include "train/adapter.h"
#include "train/metrics.h"
#include "train/prompts.h"
#include "train/session.h"
#include "train/stored_model.h"

struct rl_state {      /* with the adapters and the configuration all that a run goes on from */
    int64_t epoch;     /* the next one */
    int64_t evaluated; /* epoch of the last evaluation; -1: none */
    double seconds;    /* of all work, also of what was done again */
    struct adapter_state adapter;
};
struct rl_run {
    struct loaded_settings *l;
    const struct settings *set;
    struct comm *world;
    struct session *ses;
    struct stored_model model; /* of the base */
    struct adapter_base base;
    struct ckpt *from;        /* what the adapters start from, between run_find and run_resume */
    bool goes_on;             /* it is a state of this run, not only weights to begin with */
    struct adapter_info with; /* what it says */
    struct prompts prompts, eval_prompts;
    const struct video_codec *codec;
    const struct text_codec *text_codec;
    struct policy policy;
    char *scorer; /* its command line, with whole paths */
    struct scoring *scoring;
    struct metrics *metrics;
    struct rl_state state;
    struct trajectory *batch; /* [num_batches_per_epoch]; those of the epoch in hand */
    /* before the updates of the epoch in hand: what is written when they are interrupted */
    struct ckpt_snapshot *before;
    struct adapter_state before_state;
    int64_t saved_epoch; /* -1: none */
    bool evaluating;     /* prompts are those of the evaluation */
    bool unscored; /* no scorer is left for the rest of this start (reward.on_dead: degrade) */
    double since;  /* log_seconds from which state.seconds lacks the time */
};
/* What the epoch in hand is called: as its metrics and its checkpoint, by the number of epochs that
 * are done when it is. */
static inline long long run_epoch_number(const struct rl_run *r) { return r->state.epoch + 1; }
/* ---- state.c ----------------------------------------------------------------------------------*/
/* Writes <output_dir>/checkpoints/iter_<epoch>; snap NULL: the adapters as they are. */
void run_save(struct rl_run *r, const struct ckpt_snapshot *snap,
              const struct adapter_state *state);
/* By settings.resume and lora_config.lora_path: what the run starts from, and that its kind, rank,
 * alpha and averages are those of the configuration. Before anything is built. */
void run_find(struct rl_run *r);
/* That it is of this run (algorithm, prompts, samples of an epoch ...), for this base and for the
 * modules of the adapters; before the weights are read and the scorers are waited for. */
void run_require_same(const struct rl_run *r);
/* Takes what run_find found; false: the run starts fresh. */
bool run_resume(struct rl_run *r);
/* Which states a checkpoint of this run holds. */
unsigned run_kinds(const struct rl_run *r);
/* ---- epoch.c ----------------------------------------------------------------------------------*/
/* Rollouts, scores, advantages, updates. On a signal it writes a checkpoint of the beginning of the
 * epoch and does not return. */
void run_epoch(struct rl_run *r);
/* Adds the time since the last call to state.seconds. */
void run_spend(struct rl_run *r);
/* Collective: leaves with RC_PREEMPTED and a checkpoint when any rank was asked to stop. */
void run_stop_if_asked(struct rl_run *r);
/* Leaves with a checkpoint (as run_save) and the time that was spent. */
_Noreturn void run_leave(struct rl_run *r, const struct ckpt_snapshot *snap,
                         const struct adapter_state *state, int rc);
/* ---- updates.c --------------------------------------------------------------------------------*/
struct epoch_updates {
    struct update_stats stats; /* over all data ranks */
    int64_t steps, skipped_empty, skipped_bad;
    double grad_norm, loss, first_log_ratio; /* means over the steps; largest of the first step */
};
/* gain [batch][entry of the batch over all data ranks]. */
struct epoch_updates run_updates(struct rl_run *r, const struct step_plan *plan,
                                 const struct sample_gain *gain);
/* ---- monitor.c --------------------------------------------------------------------------------*/
struct epoch_times {
    double rollout, decode, reward_wait, update;
};
void monitor_scores(struct rl_run *r, const struct adv_stats *s);
void monitor_updates(struct rl_run *r, const struct step_plan *plan, const struct epoch_updates *u);
void monitor_console(struct rl_run *r, const struct adv_stats *s, const struct epoch_updates *u,
                     const struct epoch_times *t);
/* ---- evaluate.c -------------------------------------------------------------------------------*/
/* Samples the evaluation prompts with fixed noise and no stochastic step, scores them, writes their
 * videos to <output_dir>/eval/epoch_<n>/. */
void run_evaluate(struct rl_run *r);
#endif
