/* The model as a policy: passes for rollouts and for updates, prompts as rows, whole-sample sums.
 * Works on any layout: states are rows of the first stage of the plan, a share of every sample on
 * each rank of the sequence axis. Has no session, so that the dry run can walk the same code. */
#ifndef RL_POLICY_H
#define RL_POLICY_H
#include "model/guided.h"
#include "model/lora.h"
#include "rl/algo.h"
struct prompt_rows { /* text rows of a prompt; -1: the negative prompt */
    void (*fill)(void *arg, int64_t prompt, float *rows /* [text_len, text_dim] */);
    void *arg;
};
struct policy {
    struct ctx *ctx;
    const struct dit *dit;
    struct comm *seq;
    const struct rl_config *cfg; /* resolved */
    struct groups_config groups;
    struct prompt_rows prompts;
    struct guided *roll, *train; /* of sample_batch and train_batch samples */
    struct guided *few[64];      /* as roll, of so many samples; made when they are asked for */
    struct guided *old;          /* NFT: of train_batch samples */
    struct lora *lora;           /* NFT: to switch between its weights; NULL in a dry run */
    int64_t elements;            /* D of a latent */
    double quantum;              /* of sums over a sample */
    int latent[4];               /* C, T, H, W */
};
/* latent: C, T, H, W. The policy keeps pointers to ctx, dit, cfg. */
void policy_open(struct policy *p, struct ctx *c, const struct dit *d, const struct rl_config *cfg,
                 struct groups_config groups, struct prompt_rows prompts, const int latent[4]);
void policy_close(struct policy *p);
/* Passes of a rollout over n samples, at most sample_batch; the policy owns them. Collective over
 * the sequence axis. */
struct guided *policy_roll(struct policy *p, int n);
bool policy_guided(const struct policy *p);
bool policy_has_reference(const struct policy *p);
/* [n*text_len, text_dim] T in the keep arena. */
struct tensor policy_text(struct policy *p, const int64_t *prompt, int n);
/* The negative prompt n times; data NULL without guidance. */
struct tensor policy_null_text(struct policy *p, int n);
/* The mask of the adapters' dropout for a sample: equal in the rollout's step and in the updates on
 * it, so that their ratio compares the same thinned model (docs/rl.md). draw: what is trained of
 * the sample. */
struct rng_key policy_mask(const struct policy *p, const struct group_entry *e, uint32_t draw);
/* One guided pass at x; v in the keep arena. drop [samples of g]: masks; NULL: without dropout. */
struct tensor policy_velocity(struct policy *p, struct guided *g, struct tensor x,
                              struct tensor text, struct tensor null, const double *sigma,
                              const struct rng_key *drop, bool train);
/* x rows of S on this rank to whole latents on the host of all ranks of the sequence axis:
 * out [samples * D]. */
void policy_latents(struct policy *p, struct guided *g, struct tensor x, float *out);
#endif
