/* The low-rank term of one linear (docs/spec/rl.md 2.2): y += scale * (x A') B', A [r,in],
 * B [out,r]. A linear of several parts (q,k,v) has a pair for each part that is a target; their A
 * lie next to each other, so that h = x A' of all parts is one product. Rows of samples that
 * ctx.gate switches off get no term. */
#ifndef MODEL_ADAPTER_H
#define MODEL_ADAPTER_H
#include "model/ctx.h"
enum { ADAPTER_PARTS = 3 };
/* Flat buffers that all adapters of a model share; owned by model/lora.h. */
struct adapter_store {
    struct tensor w; /* [n] T: what the products read */
    struct tensor g; /* [n] S: +=; data NULL: no gradients */
    double scale;    /* alpha / r */
    int64_t rank;
};
struct adapter {
    const struct adapter_store *store;
    int64_t in, out;          /* of one part */
    int pairs;                /* parts that have a pair */
    int part[ADAPTER_PARTS];  /* which part pair i belongs to, rising */
    int64_t a;                /* element of the flat buffer: A of all pairs [pairs*r, in] */
    int64_t b[ADAPTER_PARTS]; /* B of pair i [out, r] */
};
/* y [rows, parts*out] T or S +=. Returns h [rows, pairs*r] T in `arena`; rows that are off hold
 * nothing. */
struct tensor adapter_forward(struct ctx *c, const struct adapter *a, struct tensor y,
                              struct tensor x, struct arena *arena);
/* dx = scale * sum of (dy B) A, 0 where off (add: dx += instead; data NULL: not wanted);
 * dB += scale * dy' h, dA += (scale * dy B)' x. */
void adapter_backward(struct ctx *c, const struct adapter *a, struct tensor dx, bool add,
                      struct tensor dy, struct tensor x, struct tensor h);
#endif
