/* Self attention over the ranges of a stage: whole samples or sub-sequences. In a padded layout
 * the real tokens are compacted first, and padded queries give exactly 0 (model.md 2.3). Where
 * several ranks hold parts of the sequences, q, k, v are gathered first, some heads per rank
 * (parallel/ulysses.h); attn_ranks tells. */
#ifndef MODEL_ATTENTION_H
#define MODEL_ATTENTION_H
#include "model/ctx.h"
#include "model/plan.h"
struct self_attn {
    const struct stage *stage;
    bool full; /* per sample instead of per sub-sequence */
    int heads;
    double scale;
};
/* The exchange of this attention; NULL: the sequences are whole on this rank. */
const struct ulysses *attn_ranks(const struct self_attn *a);
/* Shape of the log-sum-exp: rows and heads that this rank works on. */
int64_t self_attn_rows(const struct self_attn *a);
int self_attn_heads(const struct self_attn *a);
/* q, k, v, o: [rows, C] T (strided), or gathered: q, o [q_rows, w], k, v [k_rows, w];
 * lse: [self_attn_rows, self_attn_heads] S. */
void self_attn_forward(struct ctx *c, const struct self_attn *a, struct tensor o, struct tensor lse,
                       struct tensor q, struct tensor k, struct tensor v);
struct self_attn_grad {
    struct tensor dq, dk, dv, d_o, o, lse, q, k, v;
};
void self_attn_backward(struct ctx *c, const struct self_attn *a, struct self_attn_grad g);
#endif
