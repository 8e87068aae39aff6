/* LoRA (docs/spec/rl.md 2): which linears have an adapter, and the state of all adapters. The
 * weights of the model itself are frozen. Adapters are replicated: every rank holds all of them, in
 * flat buffers of one order (S: weights, gradients, moments, EMA; T: what products read), so that
 * an optimizer step is one all-reduce and one AdamW.
 *
 * Targets are patterns for module paths ("blocks.3.self_attn.q", the name of a weight without
 * ".weight"): a path matches when it, or the end of it after a dot, equals the pattern or fits it
 * as a shell pattern. Only linears of blocks can be targets. */
#ifndef MODEL_LORA_H
#define MODEL_LORA_H
#include "model/adapter.h"
#include "model/dit.h"
struct comm;
struct lora_config { /* lora_config.* (docs/spec/rl.md 4) */
    int64_t rank;    /* 0: no adapters */
    double alpha;
    double dropout;           /* p: share of the elements in front of A that is 0 in training */
    struct cfg_texts targets; /* target_modules */
    char *path;               /* lora_path: checkpoint to go on from */
};
/* The official target_modules, NULL-terminated. */
extern const char *const lora_official_targets[];
/* rank, alpha and the targets; the texts are those of `targets`. */
struct lora_config lora_make_config(int64_t rank, double alpha, const char *const *targets);

struct lora_opts {
    bool optimizer, ema; /* allocate gradients and moments; EMA */
    bool old;            /* a second set of weights that follows the first (DiffusionNFT) */
};
struct lora {
    struct dev *dev;
    int64_t rank;
    double alpha;
    int num_adapters, num_params;
    struct adapter *adapter;
    /* A and B of every target: "<module>.lora_A.weight" [r,in], "<module>.lora_B.weight" [out,r];
     * offset: element of the flat buffers. */
    struct param *param;
    int64_t count; /* elements of a flat buffer, with gaps that stay 0 */
    struct tensor w, grad, m, v, ema, old, wire;
    enum state_kind in_use;     /* what products read: STATE_LORA, its EMA, or the old ones */
    struct adapter_store store; /* what the adapters see */
};
/* Attaches adapters to d and freezes d's own parameters; before fsdp_new. Stops with RC_CONFIG and
 * the key when a pattern matches nothing (with what there is), or the rank does not fit. d must
 * outlive the result. */
struct lora *lora_new(struct dev *dev, struct dit *d, const struct lora_config *cfg,
                      struct lora_opts o);
void lora_free(struct lora *l); /* after it, d must not run */
/* A = normal(0, 1/r) by parameter name, B = 0, EMA the same, moments 0. */
void lora_init_params(struct lora *l, uint64_t seed);
void lora_refresh(struct lora *l); /* after weights or EMA were written from outside */
/* Products read STATE_LORA_EMA or STATE_LORA_OLD instead of STATE_LORA until set back. */
void lora_use(struct lora *l, enum state_kind kind);
/* old = keep * old + (1 - keep) * weights */
void lora_follow(struct lora *l, double keep);
void lora_zero_grads(struct lora *l);
/* The sum over all ranks: once per optimizer step, after its last backward pass. */
void lora_reduce_grads(struct lora *l, struct comm *world);
double lora_grad_norm(struct lora *l, struct arena *tmp); /* equal on all ranks after the sum */
struct lora_step {
    double lr, beta1, beta2, eps, weight_decay; /* decay on A and B */
    int64_t step;                               /* of AdamW, from 1 */
    double grad_scale;                          /* clip coefficient */
    double ema_keep;                            /* negative: the EMA is left alone */
};
void lora_update(struct lora *l, const struct lora_step *s);

/* Part `part` of `parts` equal ranges of the flat buffer as pieces of named tensors, in a fixed
 * order. kind: STATE_LORA...; stops when the state was not allocated. */
void lora_each_piece(struct lora *l, enum state_kind kind, int part, int parts,
                     void (*each)(void *arg, const struct piece *p), void *arg);
const struct param *lora_find(const struct lora *l, const char *name); /* NULL: none */
/* Whole tensors as doubles on the host; put of STATE_LORA refreshes. */
void lora_get(struct lora *l, enum state_kind kind, const char *name, double *out);
void lora_put(struct lora *l, enum state_kind kind, const char *name, const double *in);
int64_t lora_num_elements(const struct lora *l); /* trainable parameters */
size_t lora_bytes(const struct lora *l);         /* of all buffers */
#endif
