/* The low-rank term of one linear (docs/spec/rl.md 2.2): y += scale * (x A') B', A [r,in],
 * B [out,r]. A linear of several parts (q,k,v) has a pair for each part that is a target; their A
 * lie next to each other, so that h = x A' of all parts is one product. Rows of samples that
 * ctx.gate switches off get no term.
 * With ctx.drop the term is scale * (drop(x) A') B': elements of x are 0 or divided by 1 - p. The
 * mask depends on sample, linear, token and column alone; nobody stores it, backward draws it
 * again. */
#ifndef MODEL_ADAPTER_H
#define MODEL_ADAPTER_H
#include "model/ctx.h"
enum { ADAPTER_PARTS = 3 };
/* Flat buffers that all adapters of a model share; owned by model/lora.h. */
struct adapter_store {
    struct tensor w; /* [n] T: what the products read */
    struct tensor g; /* [n] S: +=; data NULL: no gradients */
    double scale;    /* alpha / r */
    double dropout;  /* p */
    int64_t rank;
};
struct token_rows {    /* where the rows of x stand: pos [rows,3] i16 in a token grid */
    struct tensor pos; /* data NULL: text, a row per token */
    int height, width;
};
struct adapter {
    const struct adapter_store *store;
    uint32_t number;          /* of the linear in the model, whatever the targets are */
    int64_t in, out;          /* of one part */
    int pairs;                /* parts that have a pair */
    int part[ADAPTER_PARTS];  /* which part pair i belongs to, rising */
    int64_t a;                /* element of the flat buffer: A of all pairs [pairs*r, in] */
    int64_t b[ADAPTER_PARTS]; /* B of pair i [out, r] */
};
/* y [rows, parts*out] T or S +=. Returns h [rows, pairs*r] T in `arena`; rows that are off hold
 * nothing. */
struct tensor adapter_forward(struct ctx *c, const struct adapter *a, struct tensor y,
                              struct tensor x, const struct token_rows *at, struct arena *arena);
/* dx = scale * sum of (dy B) A, 0 where off (add: dx += instead; data NULL: not wanted);
 * dB += scale * dy' h, dA += (scale * dy B)' x. */
void adapter_backward(struct ctx *c, const struct adapter *a, struct tensor dx, bool add,
                      struct tensor dy, struct tensor x, const struct token_rows *at,
                      struct tensor h);
#endif
