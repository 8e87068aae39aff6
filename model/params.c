#include "model/params.h"

#include <math.h>
#include <stdio.h>

#include "core/err.h"

struct param *param_add(struct unit *u, const char *prefix, const char *name, unsigned flags,
                        enum init_kind init, double scale, int ndim, const int64_t *dim)
{
    CHECK(u->num_params < UNIT_MAX_PARAMS, "unit %s has too many parameters", u->name);
    struct param *p = &u->param[u->num_params++];
    *p = (struct param){.ndim = ndim, .init = init, .init_scale = scale};
    snprintf(p->name, sizeof p->name, "%s%s", prefix, name);
    p->flags = P_TRAINABLE | P_DECAY | flags;
    for (int i = 0; i < ndim; i++) p->dim[i] = dim[i];
    return p;
}

struct param *param_add_weight(struct unit *u, const char *prefix, const char *layer, int64_t out,
                               int64_t in, double std)
{
    char name[64];
    snprintf(name, sizeof name, "%s.weight", layer);
    const double bound = sqrt(6.0 / (double)(out + in));
    return param_add(u, prefix, name, 0, std > 0 ? INIT_NORMAL : INIT_UNIFORM,
                     std > 0 ? std : bound, 2, DIMS(out, in));
}

struct param *param_add_bias(struct unit *u, const char *prefix, const char *layer, int64_t out)
{
    char name[64];
    snprintf(name, sizeof name, "%s.bias", layer);
    return param_add(u, prefix, name, 0, INIT_ZERO, 0, 1, DIMS(out));
}
