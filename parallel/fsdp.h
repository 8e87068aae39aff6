/* Fully sharded data parallelism behind the two unit hooks (core/param.h).
 *
 * Every unit is two flat buffers: parameters gathered in the wire dtype (T), and those marked
 * P_FULL_PRECISION (S); when T = S there is one. Each is cut into F equal shards (padded with
 * zeros). A rank owns masters, gradients, AdamW moments and EMA of its shard in S, and the wire
 * copy that is gathered. Frozen parameters (no P_TRAINABLE when the store is made) lie in buffers
 * of their own and have only the wire copy, which is their master; the parts of one fused linear
 * are frozen together. enter: waits for this unit's
 * gather and starts those of the next `prefetch` units in the order of the pass; leave: forward
 * releases the slot, backward starts the reduce-scatter (sum, S) of the gradient into the shard. */
#ifndef PARALLEL_FSDP_H
#define PARALLEL_FSDP_H
#include "core/param.h"
#include "parallel/mesh.h"
struct fsdp_opts {
    int prefetch;            /* units gathered ahead; 0: none */
    bool keep_after_forward; /* keep gathered weights until backward */
    bool optimizer, ema;     /* allocate gradients and moments; EMA */
    bool no_moments;         /* with optimizer: gradients alone */
};
/* One contiguous shard of one unit buffer. All [n] S except wire (T or S). Frozen: master = wire,
 * and nothing else. */
struct shard {
    int unit;
    bool full_precision, frozen;
    int64_t first; /* element of the unit buffer where this shard begins */
    struct tensor master, grad, m, v, ema, wire;
    int64_t decay_end;   /* elements [0, decay_end) of the shard are decayed */
    int64_t frozen_from; /* elements from here on are frozen or padding */
};
struct fsdp;
struct fsdp *fsdp_new(struct dev *dev, struct mesh *mesh, struct unit *units, int num_units,
                      struct fsdp_opts o);
void fsdp_free(struct fsdp *f);
const struct unit_hooks *fsdp_hooks(struct fsdp *f);
struct shard *fsdp_shards(struct fsdp *f, int *n);
void fsdp_init_params(struct fsdp *f, uint64_t seed); /* by each param's init, layout-independent */
void fsdp_zero_grads(struct fsdp *f);
/* Waits for the last reduce-scatters; last_micro: also sums over the replicas. */
void fsdp_finish_backward(struct fsdp *f, bool last_micro);
/* After masters changed: refresh the wire copies (the update op does it itself). */
void fsdp_refresh_wire(struct fsdp *f);
/* Gathers run from the EMA instead of the masters until set back. */
void fsdp_use_ema(struct fsdp *f, bool on);

/* Calls f for every piece on this rank, in a fixed order. Frozen parameters are masters only. */
void fsdp_each_piece(struct fsdp *f, enum state_kind kind,
                     void (*each)(void *arg, const struct piece *p), void *arg);
/* Whole tensor as doubles on the host of every rank (tests, inspect); collective. */
void fsdp_get(struct fsdp *f, enum state_kind kind, const char *name, double *out);
/* Each rank takes its pieces out of a whole tensor; no communication. */
void fsdp_put(struct fsdp *f, enum state_kind kind, const char *name, const double *in);
const struct param *fsdp_find(struct fsdp *f, const char *name); /* NULL: no such parameter */
size_t fsdp_slot_bytes(const struct fsdp *f);                    /* memory of the gather slots */
struct dev *fsdp_device(const struct fsdp *f);
#endif
