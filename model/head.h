/* The way out: modulated norm and projection to patch values in PATCH_OUT order
 * (docs/spec/model.md 1.4-6). */
#ifndef MODEL_HEAD_H
#define MODEL_HEAD_H
#include "model/config.h"
#include "model/ctx.h"
#include "model/linear.h"
#include "model/tail.h"
struct head {
    int unit, dim;
    double eps;
    struct param *modulation; /* [1,2,C]: shift, scale */
    struct linear out;
};
struct head_saved {
    struct tensor mod, mean, rstd, a; /* [B,2C] S, [R] S, [R] S, [R,C] T */
};
void head_init(struct head *h, struct unit *u, int unit, const struct model_config *cfg);
/* out [R, 4*out_dim] T from x [R,C] T, which is made from `before` first, and e [B,C] S; s is made
 * in `keep`. */
void head_forward(struct ctx *c, const struct head *h, struct arena *keep, struct head_saved *s,
                  struct tensor out, struct tensor x, const struct tail *before, struct tensor e);
/* dx =; de += */
void head_backward(struct ctx *c, const struct head *h, const struct head_saved *s,
                   struct tensor dx, struct tensor de, struct tensor dout, struct tensor x);
#endif
