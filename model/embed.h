/* The way in: latent patches, text states and noise level to rows, text context and the two time
 * vectors (docs/spec/model.md 1.4, 1-4). */
#ifndef MODEL_EMBED_H
#define MODEL_EMBED_H
#include "model/config.h"
#include "model/ctx.h"
#include "model/linear.h"
struct embed {
    int unit;
    int dim, freq_dim;
    bool round_t; /* timestep_bf16_round */
    struct linear patch, text_in, text_out, time_in, time_out, time_proj;
};
struct embed_in {
    struct tensor xt;   /* [R, 4*in_dim] T, PATCH_IN order */
    struct tensor text; /* [L, text_dim] T */
    const double *t;    /* [B] host: 1000 * sigma */
};
struct embed_saved {
    struct tensor x, ctx;                  /* out: [R,C] T, [L,C] T */
    struct tensor e, e0;                   /* out: [B,C] S, [B,6C] S */
    struct tensor text_h, text_g;          /* [L,C] before and after gelu */
    struct tensor wave, h, silu_h, silu_e; /* [B,freq] T, [B,C] S, T, T */
};
struct embed_grad {
    struct tensor dx;         /* [R,C] T */
    struct tensor dtext_ctx;  /* [L,C] S */
    struct tensor de, de0;    /* [B,C] S, [B,6C] S */
    struct tensor dxt, dtext; /* out, T; data NULL: not wanted */
};
void embed_init(struct embed *m, struct unit *u, int unit, const struct model_config *cfg);
/* All of s is made in the keep arena. */
void embed_forward(struct ctx *c, const struct embed *m, struct embed_saved *s, struct embed_in in);
void embed_backward(struct ctx *c, const struct embed *m, const struct embed_saved *s,
                    struct embed_in in, struct embed_grad g);
#endif
