#include "parallel/mesh.h"

#include <stdio.h>
#include <string.h>

static void legal_degrees(char *out, size_t size, int world)
{
    int n = 0;
    out[0] = 0;
    for (int d = 1; d <= world && n < (int)size - 16; d++)
        if (world % d == 0) n += snprintf(out + n, size - (size_t)n, "%s%d", n ? ", " : "", d);
}

static void require_divides(int degree, int world, const char *key)
{
    if (degree >= 1 && world % degree == 0) return;
    char list[256];
    legal_degrees(list, sizeof list, world);
    err_stop(RC_CONFIG, "%s: %d does not divide the %d ranks of this job; legal values: %s", key,
             degree, world, list);
}

static struct comm *axis(struct comm *world, int color, int key, int size, const char *name)
{
    struct comm *c = comm_split(world, color, key, name);
    if (strcmp(world->ops->name, "null") == 0) { /* a dry run knows its shape only from here */
        c->size = size;
        c->rank = key % size;
    }
    CHECK(c->size == size && c->rank == key % size, "axis %s: rank %d of %d, expected %d of %d",
          name, c->rank, c->size, key % size, size);
    return c;
}

void mesh_init(struct mesh *m, struct comm *world, struct mesh_degrees d)
{
    const int W = world->size, rank = world->rank, S = d.ssp, U = d.sp, F = d.fsdp;
    require_divides(F, W, "fsdp_size");
    require_divides(S, W, "skiparse_sp_size");
    require_divides(U, W, "sp_size");
    const int R = S * U;
    require_divides(R, W, "skiparse_sp_size * sp_size");
    *m = (struct mesh){.degrees = d, .dp = W / R};
    const int u = rank % U, s = rank / U % S, dd = rank / R, f = rank % F, r = rank / F;
    m->axis[AXIS_WORLD] = world;
    m->axis[AXIS_DP] = axis(world, s * U + u, dd, W / R, "dp");
    m->axis[AXIS_SSP] = axis(world, dd * U + u, s, S, "ssp");
    m->axis[AXIS_SP] = axis(world, dd * S + s, u, U, "sp");
    m->axis[AXIS_SEQ] = axis(world, dd, s * U + u, R, "seq");
    m->axis[AXIS_FSDP] = axis(world, r, f, F, "fsdp");
    m->axis[AXIS_REPLICA] = axis(world, f, r, W / F, "replica");
}

void mesh_at(struct mesh *m, const char *block)
{
    m->axis[AXIS_SSP]->block = m->axis[AXIS_SP]->block = m->axis[AXIS_SEQ]->block = block;
    comm_context(m->axis[AXIS_WORLD], block);
}

void mesh_free(struct mesh *m)
{
    for (int a = AXIS_WORLD + 1; a < AXIS_COUNT; a++) comm_free(m->axis[a]);
    memset(m, 0, sizeof *m);
}
