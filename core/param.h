/* Named parameters, gathered in units, and the two hooks around each unit: all that the model
 * tells the world about itself, and all it knows of sharding. */
#ifndef CORE_PARAM_H
#define CORE_PARAM_H
#include "core/tensor.h"

enum {
    P_TRAINABLE = 1,
    P_DECAY = 2,
    P_FULL_PRECISION = 4 /* gathered in the state dtype: norm weights, modulation */
};
enum init_kind { INIT_ZERO, INIT_ONE, INIT_UNIFORM /* +-scale */, INIT_NORMAL /* std = scale */ };
/* w and g are views that exist only between unit_enter and unit_leave (g: in PASS_BACKWARD). */
struct param {
    char name[64]; /* official state_dict name: the checkpoint key */
    int ndim;
    int64_t dim[TENSOR_MAXDIM];
    unsigned flags;
    enum init_kind init;
    double init_scale;
    int64_t offset; /* element of the unit's flat buffer of its precision (set by the store) */
    struct tensor w, g;
};
struct unit {
    char name[32];
    struct param *param;
    int num_params;
};
int64_t param_count(const struct param *p);
/* Shell-style pattern (fnmatch) against a name. */
bool param_matches(const struct param *p, const char *pattern);

/* What there is of a parameter; names of the kinds in files: parallel/checkpoint.h. */
enum state_kind {
    STATE_MASTER,
    STATE_GRAD,
    STATE_M,
    STATE_V,
    STATE_EMA,
    STATE_LORA, /* the same of adapters (model/lora.h) */
    STATE_LORA_M,
    STATE_LORA_V,
    STATE_LORA_EMA,
    STATE_LORA_OLD, /* of DiffusionNFT: what samples */
    STATE_KINDS
};
/* A rank's piece of a named tensor, for checkpoints and tests. */
struct piece {
    const struct param *param;
    int64_t first, count; /* elements of the parameter's flattened tensor */
    struct tensor data;   /* [count] on the device */
};

enum pass { PASS_FORWARD, PASS_BACKWARD }; /* recompute happens inside BACKWARD */
struct unit_hooks {
    void (*enter)(void *ctx, int unit, enum pass pass); /* after it: weights are whole */
    void (*leave)(void *ctx, int unit, enum pass pass); /* after it: hands off */
    void (*poll)(void *ctx); /* now and then between the two: what is on its way may move on */
    void *ctx;
    const struct unit_hooks *next;
};
static inline void unit_enter(const struct unit_hooks *h, int unit, enum pass pass)
{
    for (; h; h = h->next)
        if (h->enter) h->enter(h->ctx, unit, pass);
}
static inline void unit_leave(const struct unit_hooks *h, int unit, enum pass pass)
{
    for (; h; h = h->next)
        if (h->leave) h->leave(h->ctx, unit, pass);
}
static inline void unit_poll(const struct unit_hooks *h)
{
    for (; h; h = h->next)
        if (h->poll) h->poll(h->ctx);
}
#endif
