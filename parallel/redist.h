/* Moves rows from one layout to another, and back: the token/group switch, SSP, padding and
 * cropping are all this one object. On one rank it is a gather by a row map; over the SSP axis it
 * is one exchange of contiguous chunks, without packing. Backward is the same object run the other
 * way; rows that have no counterpart (padding) get 0. */
#ifndef PARALLEL_REDIST_H
#define PARALLEL_REDIST_H
#include "parallel/comm.h"
#include "parallel/layout.h"
struct redist {
    const struct layout *src, *dst;
    bool moves; /* false: the two orders are equal, nothing to do */
    /* One-rank path, i32 on the device: row r of dst is row forward_map[r] of src, and back; data
     * NULL where rows do not move or are exchanged. For ops that move rows on the way. */
    struct tensor forward_map, backward_map;
    struct run *send, *recv; /* SSP path: rows of src to send, rows of dst to receive */
    int num_send, num_recv;
    struct comm *comm; /* SSP axis */
    struct dev *dev;
};
struct redist *redist_new(struct dev *dev, struct comm *ssp, const struct layout *src,
                          const struct layout *dst);
void redist_free(struct redist *r);
/* dst [dst rows, C] = rows of src [src rows, C]. Both contiguous, not the same memory. */
void redist_forward(const struct redist *r, struct tensor dst, struct tensor src);
void redist_backward(const struct redist *r, struct tensor dsrc, struct tensor ddst);
#endif
