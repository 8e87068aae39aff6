/* y = x W' + b. A linear may be several parameters that lie next to each other in their unit
 * (q, k, v): then it is one matrix product with W [parts*out, in]. dW and db are added to param.g;
 * a frozen parameter (g.data NULL) gets none. */
#ifndef MODEL_LINEAR_H
#define MODEL_LINEAR_H
#include "model/ctx.h"
struct linear {
    struct param *w, *b; /* first of `parts` neighbours each */
    int parts;
};
void linear_forward(struct ctx *c, const struct linear *l, struct tensor y, struct tensor x);
/* aux = x W' + b, y = gelu(aux) */
void linear_gelu_forward(struct ctx *c, const struct linear *l, struct tensor y, struct tensor aux,
                         struct tensor x);
/* dx = dy W (data NULL: not wanted), times gelu'(aux) when aux is given; dW += dy' x, db += sum dy.
 * add: dx += instead of =. */
struct linear_grad {
    struct tensor dx, aux;
    bool add;
};
void linear_backward(struct ctx *c, const struct linear *l, struct linear_grad g, struct tensor dy,
                     struct tensor x);
#endif
