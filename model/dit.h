/* The diffusion transformer: units and parameters with their official names, and the two loops
 * over the blocks. FSDP, recompute and the layouts all meet here and nowhere else. */
#ifndef MODEL_DIT_H
#define MODEL_DIT_H
#include "model/block.h"
#include "model/embed.h"
#include "model/head.h"
#include "model/plan.h"

struct dit {
    struct model_config config;
    struct unit *unit; /* [num_units]: embed, blocks, head; the order of the forward pass */
    int num_units, num_blocks;
    struct embed embed;
    struct block *block;
    struct head head;
    struct rope rope;
    enum recompute policy[MAX_BLOCKS];
    struct param *param_store;
};
/* recompute: enum recompute for all blocks, or the list of blocks that recompute everything while
 * the others keep everything. max_pos: largest extent of any token grid. */
struct dit *dit_new(struct dev *dev, const struct model_config *m, enum recompute recompute,
                    const struct cfg_ints *blocks, int max_pos);
/* policy [num_layers]: of each block, from the next pass on. */
void dit_set_policies(struct dit *d, const enum recompute *policy);
/* Before fsdp_new: no parameter is trained, and none has a master beside what is gathered. */
void dit_freeze(struct dit *d);
void dit_free(struct dit *d, struct dev *dev);
int64_t dit_num_params(const struct dit *d);

struct dit_input {
    struct tensor xt;   /* [R, 4*in_dim] T in PATCH_IN order, rows of plan->stage[at[0]] ... */
    struct tensor text; /* [B*text_len, text_dim] T */
    const double *t;    /* [B] host: 1000 * sigma */
};
struct dit_run { /* one forward pass; tensors live in the keep arena */
    const struct shape_plan *plan;
    struct dit_input in;
    struct embed_saved embed;
    struct tensor x[MAX_BLOCKS + 1]; /* block inputs; [num_blocks]: head input */
    struct block_saved saved[MAX_BLOCKS];
    struct head_saved head;
    const uint8_t *gate; /* of the ctx, as is drop */
    const struct rng_key *drop;
    struct tensor out; /* [R', 4*out_dim] T in PATCH_OUT order, rows of the last stage */
    bool train;
};
/* The stage whose rows the model takes, and the one whose rows it gives. */
const struct stage *dit_first_stage(const struct shape_plan *p);
const struct stage *dit_last_stage(const struct shape_plan *p);
/* train: keep what backward needs. The caller marks and releases the keep arena. */
void dit_forward(struct ctx *c, const struct dit *d, const struct shape_plan *p,
                 struct dit_input in, bool train, struct dit_run *run);
/* dout [R', 4*out_dim] T. dxt, dtext (T): gradients of the inputs; data NULL: not wanted. */
void dit_backward(struct ctx *c, const struct dit *d, struct dit_run *run, struct tensor dout,
                  struct tensor dxt, struct tensor dtext);
/* The backward pass that follows is over the leading p->batch samples alone, p the plan of the same
 * shape with that batch: for rows whose gradient is zero. */
void dit_narrow(struct dit_run *run, const struct shape_plan *p);
#endif
