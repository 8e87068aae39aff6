/* Walks the real forward, backward and optimizer code on the null device: how large the arenas
 * must be, and for `osp plan` what a step costs in memory, FLOPs and communication. */
#ifndef TRAIN_DRYRUN_H
#define TRAIN_DRYRUN_H
#include "model/lora.h"
#include "model/plan.h"
#include "parallel/fsdp.h"
struct dryrun_in {
    struct model_config model;
    enum dtype compute;
    enum recompute recompute;
    const struct cfg_ints *recompute_blocks;
    bool by_block; /* policy, instead of the two above */
    enum recompute policy[MAX_BLOCKS];
    int ranks, rank;
    /* The device whose own memory is counted, with the threads of a rank (0: see dev_open); NULL:
     * none is. */
    const char *device;
    int threads;
    struct dev *stands_for; /* the same, open already: it is asked in place of `device` */
    struct mesh_degrees degrees;
    struct fsdp_opts fsdp;
    const struct lora_config *lora; /* NULL or rank 0: none */
    int batch, t, h, w;             /* micro-batch of this rank; token grid */
    bool train;                     /* false: sampling with guidance */
    bool batched; /* sampling: the batch is both branches of half as many videos */
    /* called once an axis with the counts of the pass by place (valid during the call); or NULL */
    void (*on_comm)(void *arg, enum axis a, const struct comm_entry *entry, int n);
    void *on_comm_arg;
    /* walks another program than a training step, on the same null device; NULL: a step */
    void (*body)(void *arg, struct ctx *c, struct dit *d);
    void *body_arg;
    bool lora_old;
};
struct dryrun_phase {
    double gemm_flops, attn_flops, row_bytes; /* this rank */
};
struct dryrun_out {
    int64_t params, params_here; /* of the model; masters on this rank */
    size_t keep_bytes, tmp_bytes;
    size_t master_bytes, moment_bytes, ema_bytes, grad_bytes, wire_bytes, slot_bytes;
    size_t other_bytes;                    /* positions, row maps, rotary tables, spare room */
    size_t lora_bytes;                     /* all states of the adapters */
    size_t device_bytes;                   /* what the device takes for itself */
    struct dryrun_phase forward, backward; /* one micro-batch; backward includes recompute */
    struct comm_count comm[AXIS_COUNT][COMM_KINDS];
    int64_t rows;                  /* token rows on this rank per micro-batch, first stage */
    int64_t rows_least, rows_most; /* over its stages */
};
/* What an arena of a run has beyond its peak in the dry run; counted in other_bytes. */
enum { DRYRUN_SPARE = 1 << 16 };
void dryrun(const struct dryrun_in *in, struct dryrun_out *out);
size_t dryrun_bytes(const struct dryrun_out *o); /* everything a rank holds on its device */
/* Forward and backward FLOPs without any recompute, of the whole micro-batch over all ranks of a
 * sequence group: what MFU counts. */
void dryrun_model_flops(const struct dryrun_in *in, struct dryrun_phase *forward,
                        struct dryrun_phase *backward);
#endif
