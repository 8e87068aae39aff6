/* One transformer block: modulated self attention, cross attention, modulated feed-forward
 * (docs/spec/model.md 1.4-5). Forward steps are numbered; backward runs them in reverse.
 *
 * What backward needs is a set of named tensors. Each belongs to a class; the recompute policy
 * says which classes stay in the keep arena. Forward computes what is not there yet, so that the
 * recompute of backward is the same function called again with the kept tensors in place. */
#ifndef MODEL_BLOCK_H
#define MODEL_BLOCK_H
#include "model/attention.h"
#include "model/config.h"
#include "model/ctx.h"
#include "model/linear.h"
#include "model/tail.h"

struct block {
    int unit;
    int dim, ffn_dim, heads;
    double eps;
    struct linear qkv, o; /* self attention */
    struct linear cross_q, cross_kv, cross_o;
    struct linear ffn_in, ffn_out;
    struct param *modulation, *norm_q, *norm_k, *cross_norm_q, *cross_norm_k, *norm3_w, *norm3_b;
};
enum block_tensor {        /* R rows, C dim, F ffn_dim, B batch, L text rows of the batch */
                    T_MOD, /* [B,6C] S */
                    T_MEAN1,
                    T_RSTD1,
                    T_A,   /* [R], [R] S, [R,C] */
                    T_QKV, /* [R,3C] before the norms */
                    T_RSTD_Q,
                    T_RSTD_K,
                    T_Q,
                    T_K, /* [R] S, [R,C] normed and rotated */
                    T_QKV_ALL,
                    T_O_ALL, /* over ranks: gathered q, k, v and o (parallel/ulysses.h) */
                    T_O,
                    T_LSE, /* [R,C], [R,heads] S, over ranks [q_rows, heads of this rank] */
                    T_Y1,
                    T_X1, /* attention output projected; x + g1*y1 */
                    T_MEAN3,
                    T_RSTD3,
                    T_N3, /* affine norm */
                    T_QC,
                    T_RSTD_QC,
                    T_QN, /* cross attention query */
                    T_KV,
                    T_RSTD_KC,
                    T_KN, /* [L,2C], [L] S, [L,C] */
                    T_OC,
                    T_LSEC, /* [R,C], [R,heads] S */
                    T_Y2,
                    T_X2, /* cross output projected; x1 + y2 */
                    T_MEAN2,
                    T_RSTD2,
                    T_F,
                    T_H,
                    T_G,  /* [R,F] before and after gelu */
                    T_Y3, /* ffn output */
                    T_COUNT
};
enum block_linear {
    LINEAR_QKV,
    LINEAR_O,
    LINEAR_CROSS_Q,
    LINEAR_CROSS_KV,
    LINEAR_CROSS_O,
    LINEAR_FFN_IN,
    LINEAR_FFN_OUT,
    LINEAR_COUNT
};
struct block_saved {
    struct tensor t[T_COUNT];
    struct linear_saved linear[LINEAR_COUNT];
    struct tensor room[5]; /* what tensors share, by enum room */
};
/* Inputs that all blocks share, and what they collect (+=). */
struct cond {
    struct tensor text; /* [L, C] T, L = B * text_len */
    struct tensor e0;   /* [B, 6C] S */
};
struct cond_grad {
    struct tensor text; /* [L, C] S; data NULL: not wanted */
    struct tensor e0;   /* [B, 6C] S */
};
/* Places that outlive a block, for what the next one still has to read: [rows, C] T each, but mod
 * [B,6C] S, of blocks in turn. Without a backward pass wide [rows, the larger of 3C and F] T is
 * there, and no sum. */
struct block_rooms {
    struct tensor mod[2], sum, narrow, wide;
    size_t tail; /* mark in tmp: the tail of the last block is below */
};
struct block_run {
    const struct stage *stage;
    const struct rope *rope;
    bool full;
    enum recompute policy; /* which classes go to the keep arena */
    bool keep_any;         /* false: nothing is kept */
    /* No backward pass follows: all large tensors of a block lie in x, which is overwritten, and
     * in two rooms, each in turn, and norms of queries and keys are in place. */
    bool forward_only;
    const struct block_rooms *rooms; /* NULL: the tail lies in the arenas; not with forward_only */
};
/* Adds the parameters of block i to unit u and wires b to them. */
void block_init(struct block *b, struct unit *u, int unit, const struct model_config *m, int i);
struct linear *block_linear(struct block *b, enum block_linear id);
/* For blocks of at most `rows` rows, in tmp. */
struct block_rooms block_rooms_new(struct ctx *c, const struct block *b, int64_t rows,
                                   bool forward_only);
/* From x [R,C], which is made from `before` first (NULL: it is there), all but the last sum, which
 * block_tail leaves to the next one, or y [R,C] (data NULL: not wanted). Tensors of s that have
 * data are taken as they are, the others are made, in keep or tmp. */
void block_forward(struct ctx *c, const struct block *b, const struct block_run *run,
                   struct block_saved *s, struct tensor y, struct tensor x,
                   const struct tail *before, const struct cond *cond);
/* Of the forward pass just done; lies in keep and in the rooms. */
struct tail block_tail(const struct block *b, const struct block_saved *s);
/* Forgets what is not kept; call before the tmp arena is released. */
void block_forget(struct block_saved *s, const struct block_run *run);
/* dx [R,C] holds dy on entry, unless `after` has it, and dx on return. s must be complete. */
void block_backward(struct ctx *c, const struct block *b, const struct block_run *run,
                    const struct block_saved *s, struct tensor dx, struct tail_grad after,
                    struct tensor x, const struct cond *cond, struct cond_grad *dcond);
#endif
