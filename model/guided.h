/* The rows of classifier-free guidance in one pass of the model (docs/spec/rl.md 1.14, 7.3 I-1):
 * conditional and unconditional, and both again with the adapters off (the reference). Inputs and
 * velocities are rows of the first stage of the plan, whatever the stages of the blocks are. */
#ifndef MODEL_GUIDED_H
#define MODEL_GUIDED_H
#include "model/dit.h"
enum guided_kind { GUIDED_COND, GUIDED_UNCOND, GUIDED_REF_COND, GUIDED_REF_UNCOND, GUIDED_KINDS };
struct guided_opts {
    int samples;       /* rows of x: so many samples */
    bool uncond;       /* with the unconditional rows */
    bool reference;    /* with the rows without adapters */
    bool no_policy;    /* only those: all adapters off */
    int trained_kinds; /* backward runs over the first so many kinds; 0: no backward */
    int t, h, w;       /* token grid */
};
struct guided {
    struct ctx *ctx;
    const struct dit *dit;
    int samples, num_kinds;
    enum guided_kind kind[GUIDED_KINDS];
    struct shape_plan *plan, *trained;  /* batch: samples * kinds; samples * trained kinds */
    struct redist *back, *trained_back; /* last stage to first; NULL: the same rows */
    uint8_t *gate;                      /* NULL: the adapters act everywhere */
    struct rng_key *drop;               /* of the pass in hand, [samples * kinds] */
    bool dropped;                       /* whether it has any */
    double *time;
    struct dit_run *run;
    int64_t rows; /* of all samples of one kind */
};
struct guided *guided_new(struct ctx *c, const struct dit *d, struct guided_opts o);
void guided_free(struct guided *g);
/* Layout of the rows of one kind: its first `rows` rows, sample by sample. */
const struct layout *guided_layout(const struct guided *g);
struct tensor guided_pos(const struct guided *g); /* i16 [rows,3] */
/* v [kinds*rows, 4*out_dim] T = velocities at x [rows, 4*in_dim] (S or T, PATCH_IN) with noise
 * levels sigma [samples]; text, null [samples*text_len, text_dim] T (null.data NULL: not used).
 * drop [samples]: masks of the adapters' dropout, one for all kinds of a sample; NULL: no dropout.
 * train: what backward needs stays in the keep arena; the caller marks and releases it. */
void guided_forward(struct guided *g, struct tensor v, struct tensor x, struct tensor text,
                    struct tensor null, const double *sigma, const struct rng_key *drop,
                    bool train);
/* Rows of kind k of v; data NULL when the pass has none. */
struct tensor guided_rows(const struct guided *g, struct tensor v, enum guided_kind k);
/* dv [trained kinds * rows, 4*out_dim] T: gradients of the first velocities. Once a forward. */
void guided_backward(struct guided *g, struct tensor dv);
#endif
