/* What a block leaves to be added: its output is x + gate * y, and who reads it next, a block or
 * the head, adds it in the pass that takes its norm. Where the next one has its rows in another
 * order, they change places in that pass, too. */
#ifndef MODEL_TAIL_H
#define MODEL_TAIL_H
#include "model/ctx.h"
struct tail {
    struct tensor x, y, gate; /* [R,C] T, [R,C] T, [B,C] S; y.data NULL: x is the output */
    struct tensor map;        /* i32 [R']: see struct gate_add_args; data NULL: the order stays */
};
/* The gradient of a block's output where the next block has it: row r of the block's own is row
 * map[r] of dout. */
struct tail_grad {
    struct tensor dout, map; /* data NULL: the block has it in its own order */
};
/* ln.x = the output, and its norm. Without y ln.x is the output already. ln.x may be x and ln.out
 * may be y. */
void tail_norm(struct ctx *c, const struct tail *t, const struct ln_args *ln);
/* The output alone, in its own order; out [R,C] may be x. The tail of what comes after. */
struct tail tail_sum(struct ctx *c, const struct tail *t, struct tensor out);
#endif
