/* Two independent factorisations of one world of W ranks, the last factor fastest:
 *   sequence:  rank = (d*S + s)*U + u      R = S*U, dp = W/R     (S: skiparse_sp_size, U: sp_size)
 *   shards:    rank = r*F + f              F = fsdp_size, W/F replicas
 * Neither knows the other. Gradients are summed over the world and the loss is scaled by
 * 1/(global batch), so that norms do not depend on the layout. Every axis is a communicator, real
 * even at size 1. */
#ifndef PARALLEL_MESH_H
#define PARALLEL_MESH_H
#include "parallel/comm.h"
enum axis { AXIS_WORLD, AXIS_DP, AXIS_SSP, AXIS_SP, AXIS_SEQ, AXIS_FSDP, AXIS_REPLICA, AXIS_COUNT };
struct mesh_degrees {
    int ssp, sp, fsdp;
};
struct mesh {
    struct comm *axis[AXIS_COUNT];
    struct mesh_degrees degrees;
    int dp; /* number of data ranks */
};
/* Stops with RC_CONFIG and the legal numbers when a degree does not divide the world. */
void mesh_init(struct mesh *m, struct comm *world, struct mesh_degrees d);
void mesh_free(struct mesh *m); /* not the world */
/* Says which block the collectives of the sequence axes belong to from now on, for counters and
 * hang reports; NULL: none. The text must live as long as the mesh. */
void mesh_at(struct mesh *m, const char *block);
#endif
