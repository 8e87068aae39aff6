/* LoRA as a stage of training: one optimizer step on the adapters, their checkpoints, and the bond
 * to the base they were made for (docs/spec/rl.md 1.15, 2.8).
 *
 * An adapter checkpoint has the format of parallel/checkpoint.h with the kinds lora, lora_ema and
 * optim/lora_{m,v}, and in its meta
 *   "lora": {"rank", "alpha", "scale", "targets"}
 *   "base": {"path", "step", "kind": "model" | "ema", "sha256"} */
#ifndef TRAIN_ADAPTER_H
#define TRAIN_ADAPTER_H
#include "model/lora.h"
#include "optim/clip.h"
#include "parallel/checkpoint.h"
#include "parallel/mesh.h"

/* ---- optimizer -------------------------------------------------------------------------------*/
struct adapter_state { /* all of it is checkpointed */
    int64_t step;      /* optimizer steps, with those that were skipped */
    int64_t adam_steps, ema_updates, skipped, skipped_in_row;
    struct clip clip;
};
struct adapter_hyper {
    double lr, beta1, beta2, eps, weight_decay;
    enum clip_kind clip;
    double ema_decay; /* 0: none */
    bool ema_warmup;  /* d_n = min(d, (1+n)/(10+n)) */
    int64_t ema_interval;
};
struct adapter_result {
    double norm, norm_after, limit;
    bool skipped; /* loss or norm not finite: the weights are as before */
};
/* Sums the gradients over the world, clips, AdamW, EMA. loss: the same on all ranks. Gradients are
 * not zeroed. */
struct adapter_result adapter_step(struct lora *l, struct comm *world, struct arena *tmp,
                                   const struct adapter_hyper *h, struct adapter_state *s,
                                   double loss);

/* ---- checkpoints -----------------------------------------------------------------------------*/
struct adapter_base {
    char *path; /* of the checkpoint; owned */
    int64_t step;
    enum state_kind kind; /* STATE_MASTER or STATE_EMA: which of its weights */
    char sha256[65];
};
/* Which weights of c a run uses. */
struct adapter_base adapter_base_of(const struct ckpt *c, enum state_kind kind);
void adapter_base_free(struct adapter_base *b);
/* As it stands in the meta; the caller's reference. */
json_t *adapter_base_json(const struct adapter_base *b);

/* This rank's part of the adapters, copied to the host. kinds: bits of STATE_LORA.... */
struct ckpt_snapshot *adapter_snapshot(struct lora *l, struct mesh *mesh, unsigned kinds);
/* Collective. Writes a snapshot of all ranks with the state s it was taken in. meta: rank 0's JSON
 * object with "step" and what the caller wants back; "lora", "base" and "state" are added to it.
 * e as in ckpt_write. */
void adapter_write(struct lora *l, const struct lora_config *cfg, struct mesh *mesh,
                   const struct ckpt_place *place, const struct ckpt_snapshot *snap,
                   const struct adapter_base *base, const struct adapter_state *s, json_t *meta,
                   struct err *e);
/* Both at once. */
void adapter_save(struct lora *l, const struct lora_config *cfg, struct mesh *mesh,
                  const struct ckpt_place *place, const struct adapter_base *base,
                  const struct adapter_state *s, unsigned kinds, json_t *meta, struct err *e);

struct adapter_info { /* what a checkpoint says; owned texts */
    struct lora_config config;
    struct adapter_base base;
    struct adapter_state state;
};
void adapter_info_read(struct adapter_info *i, const struct ckpt *c, struct err *e);
void adapter_info_free(struct adapter_info *i);
/* Stops with RC_CONFIG and both hashes when the adapter was made for other weights; force: warns.
 */
void adapter_require_base(const struct ckpt *c, const struct adapter_info *i,
                          const struct adapter_base *have, bool force);
/* Stop with RC_CONFIG, the key, both values and the remedy ("use another output_dir") when the
 * adapters of c have another rank or alpha, or are for other modules than those of l, however the
 * targets are written. */
void adapter_require_rank(const struct ckpt *c, const struct adapter_info *i,
                          const struct lora_config *now, const char *remedy);
void adapter_require_targets(const struct ckpt *c, const struct adapter_info *i,
                             const struct lora *l, const struct lora_config *now,
                             const char *remedy);
/* Fills the states of l from c; from: as in ckpt_load. Every tensor must be there. */
void adapter_load(struct ckpt *c, struct lora *l, enum state_kind kind, enum state_kind from);
#endif
