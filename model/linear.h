/* y = x W' + b, and the low-rank term of an adapter when the linear has one. A linear may be
 * several parameters that lie next to each other in their unit (q, k, v): then it is one matrix
 * product with W [parts*out, in]. dW and db are added to param.g; a frozen parameter (g.data NULL)
 * gets none. Nobody outside linear.c asks whether there is an adapter. */
#ifndef MODEL_LINEAR_H
#define MODEL_LINEAR_H
#include "model/adapter.h"
struct linear {
    struct param *w, *b; /* first of `parts` neighbours each */
    int parts;
    const struct adapter *lora; /* NULL: none (model/lora.h sets it) */
};
/* What backward needs of a forward pass besides x: h = x A' of the adapter, and where its rows
 * stand. */
struct linear_saved {
    struct arena *arena; /* where forward puts it */
    struct tensor h;     /* data NULL: not there */
    struct token_rows at;
};
/* s may be NULL for a linear that never has an adapter. */
void linear_forward(struct ctx *c, const struct linear *l, struct tensor y, struct tensor x,
                    struct linear_saved *s);
/* aux = the above, y = gelu(aux). aux data NULL: nobody wants it (no backward pass follows) */
void linear_gelu_forward(struct ctx *c, const struct linear *l, struct tensor y, struct tensor aux,
                         struct tensor x, struct linear_saved *s);
/* dx = dy W (data NULL: not wanted), times gelu'(aux) when aux is given; dW += dy' x, db += sum dy.
 * add: dx += instead of =. */
struct linear_grad {
    struct tensor dx, aux;
    bool add;
    const struct linear_saved *saved;
};
void linear_backward(struct ctx *c, const struct linear *l, struct linear_grad g, struct tensor dy,
                     struct tensor x);
#endif
