/* Sums of rank contributions on the host, shared by the CPU transports: in rank order, in double,
 * rounded once, so that a sum does not depend on the transport. */
#ifndef PARALLEL_REDUCE_H
#define PARALLEL_REDUCE_H
#include "core/tensor.h"
/* dst[i] = (add ? dst[i] : 0) + sum over r of parts[r][i] */
void reduce_parts(struct tensor dst, const void *const *parts, int num_parts, bool add);
#endif
