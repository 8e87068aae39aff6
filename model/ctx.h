/* All that a layer may reach. No globals. */
#ifndef MODEL_CTX_H
#define MODEL_CTX_H
#include "core/arena.h"
#include "core/dev.h"
#include "core/param.h"
struct mesh;
struct ctx {
    struct dev *dev;
    struct mesh *mesh;
    const struct unit_hooks *hooks;
    struct arena *keep; /* lives from forward to backward */
    struct arena *tmp;  /* lives to the end of the function that marked it */
    /* Which samples of the batch use the adapters, a byte each; NULL: all. The same from a forward
     * pass to its backward pass (docs/spec/rl.md 2.4). */
    const uint8_t *gate;
    /* Dropout in front of the adapters: a key for the mask of each sample of the batch; NULL: none.
     * The same from a forward pass to its backward pass, as the gate. */
    const struct rng_key *drop;
    int samples; /* of the pass in hand; set by dit_forward and dit_backward */
};
static inline enum dtype ctx_compute(const struct ctx *c) { return c->dev->compute; }
static inline enum dtype ctx_state(const struct ctx *c) { return dtype_state(c->dev->compute); }
static inline struct tensor ctx_zeros(struct ctx *c, struct arena *a, enum dtype d, int ndim,
                                      const int64_t *dim)
{
    struct tensor t = arena_new(a, d, ndim, dim);
    c->dev->ops->fill(c->dev, t, 0);
    return t;
}
#endif
