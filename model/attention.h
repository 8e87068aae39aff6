/* Self attention over the ranges of a stage: whole samples or sub-sequences. In a padded layout
 * the real tokens are compacted first, and padded queries give exactly 0 (model.md 2.3). */
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
/* q, k, v, o: [rows, C] T (strided); lse: [self_attn_rows, heads] S. */
int64_t self_attn_rows(const struct self_attn *a);
void self_attn_forward(struct ctx *c, const struct self_attn *a, struct tensor o, struct tensor lse,
                       struct tensor q, struct tensor k, struct tensor v);
struct self_attn_grad {
    struct tensor dq, dk, dv, d_o, o, lse, q, k, v;
};
void self_attn_backward(struct ctx *c, const struct self_attn *a, struct self_attn_grad g);
#endif
