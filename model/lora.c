#include "model/lora.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/lora_attach.h"
#include "parallel/comm.h"

static struct tensor zeros(struct lora *l, enum dtype t)
{
    struct tensor x = dev_tensor(l->dev, t, 1, DIMS(l->count));
    l->dev->ops->fill(l->dev, x, 0);
    return x;
}

static bool separate_wire(const struct lora *l) { return l->wire.data != l->w.data; }

struct lora *lora_new(struct dev *dev, struct dit *d, const struct lora_config *cfg,
                      struct lora_opts o)
{
    struct lora *l = calloc(1, sizeof *l);
    CHECK(l, "out of memory");
    if (cfg->rank < 1)
        err_stop(RC_CONFIG, "lora_config.rank: %lld; it must be at least 1", (long long)cfg->rank);
    if (!(cfg->alpha > 0) || !isfinite(cfg->alpha))
        err_stop(RC_CONFIG, "lora_config.alpha: %g; it must be above 0", cfg->alpha);
    if (!(cfg->dropout >= 0 && cfg->dropout < 1))
        err_stop(RC_CONFIG, "lora_config.dropout: %g; it must be at least 0 and below 1",
                 cfg->dropout);
    l->dev = dev;
    l->rank = cfg->rank;
    l->alpha = cfg->alpha;
    l->store = (struct adapter_store){
        .scale = cfg->alpha / (double)cfg->rank, .dropout = cfg->dropout, .rank = cfg->rank};
    lora_attach(l, d, cfg);
    dit_freeze(d);
    const enum dtype T = dev->compute, S = dtype_state(T);
    l->w = zeros(l, S);
    l->wire = T == S ? l->w : zeros(l, T);
    if (o.optimizer) {
        l->grad = zeros(l, S);
        l->m = zeros(l, S);
        l->v = zeros(l, S);
    }
    if (o.ema) l->ema = zeros(l, S);
    if (o.old) l->old = zeros(l, S);
    l->in_use = STATE_LORA;
    l->store.w = l->wire;
    l->store.g = l->grad;
    return l;
}

void lora_free(struct lora *l)
{
    if (!l) return;
    const struct tensor all[] = {l->w, l->grad, l->m, l->v, l->ema, l->old};
    if (separate_wire(l)) dev_free(l->dev, l->wire.data);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].data) dev_free(l->dev, all[i].data);
    free(l->adapter);
    free(l->param);
    free(l);
}

static struct tensor state_of(const struct lora *l, enum state_kind kind)
{
    switch (kind) {
    case STATE_LORA:
        return l->w;
    case STATE_GRAD:
        return l->grad;
    case STATE_LORA_M:
        return l->m;
    case STATE_LORA_V:
        return l->v;
    case STATE_LORA_EMA:
        return l->ema;
    case STATE_LORA_OLD:
        return l->old;
    default:
        CHECK(false, "adapters have no state of kind %d", (int)kind);
        return l->w;
    }
}

void lora_each_piece(struct lora *l, enum state_kind kind, int part, int parts,
                     void (*each)(void *arg, const struct piece *p), void *arg)
{
    const struct tensor all = state_of(l, kind);
    CHECK(all.data, "this run keeps no adapter state of kind %d", (int)kind);
    const int64_t lo = l->count / parts * part,
                  hi = part + 1 == parts ? l->count : l->count / parts * (part + 1);
    for (int i = 0; i < l->num_params; i++) {
        const struct param *p = &l->param[i];
        int64_t from = p->offset, to = p->offset + param_count(p);
        if (from < lo) from = lo;
        if (to > hi) to = hi;
        if (from >= to) continue;
        const struct piece piece = {p, from - p->offset, to - from,
                                    tensor_rows(all, from, to - from)};
        each(arg, &piece);
    }
}

struct init_arg {
    struct lora *l;
    uint64_t seed;
};

static void init_piece(void *arg, const struct piece *p)
{
    const struct init_arg *a = arg;
    if (p->param->init == INIT_ZERO) return; /* the buffer was cleared */
    const struct rng_stream s = rng_open(
        (struct rng_key){.seed = a->seed, .use = RNG_LORA, .item = rng_hash(p->param->name)});
    a->l->dev->ops->rng_normal(a->l->dev, p->data, s, (uint64_t)p->first, p->param->init_scale);
}

void lora_init_params(struct lora *l, uint64_t seed)
{
    struct init_arg a = {l, seed};
    const struct tensor rest[] = {l->m, l->v, l->grad};
    l->dev->ops->fill(l->dev, l->w, 0);
    for (int i = 0; i < 3; i++)
        if (rest[i].data) l->dev->ops->fill(l->dev, rest[i], 0);
    lora_each_piece(l, STATE_LORA, 0, 1, init_piece, &a);
    if (l->ema.data) l->dev->ops->cast(l->dev, l->ema, l->w);
    if (l->old.data) l->dev->ops->cast(l->dev, l->old, l->w);
    lora_refresh(l);
}

void lora_refresh(struct lora *l)
{
    const struct tensor from = state_of(l, l->in_use);
    if (separate_wire(l)) l->dev->ops->cast(l->dev, l->wire, from);
    l->store.w = separate_wire(l) ? l->wire : from;
}

void lora_use(struct lora *l, enum state_kind kind)
{
    CHECK(state_of(l, kind).data, "the adapters have no state of kind %d", (int)kind);
    l->in_use = kind;
    lora_refresh(l);
}

void lora_follow(struct lora *l, double keep)
{
    l->dev->ops->scale(l->dev, l->old, keep);
    l->dev->ops->axpy(l->dev, l->old, 1 - keep, l->w);
}

void lora_zero_grads(struct lora *l) { l->dev->ops->fill(l->dev, l->grad, 0); }

void lora_reduce_grads(struct lora *l, struct comm *world)
{
    comm_all_reduce(world, l->grad, "adapters", NULL);
}

double lora_grad_norm(struct lora *l, struct arena *tmp)
{
    const size_t mark = arena_mark(tmp);
    struct tensor sum = arena_new(tmp, DT_F64, 1, DIMS(1));
    double v;
    l->dev->ops->fill(l->dev, sum, 0);
    l->dev->ops->sumsq(l->dev, sum, &l->grad, 1);
    dev_get(l->dev, &v, sum);
    arena_release(tmp, mark);
    return sqrt(v);
}

void lora_update(struct lora *l, const struct lora_step *s)
{
    CHECK(l->in_use == STATE_LORA, "a step while other adapters are in use");
    struct update_shard all = {.p = l->w,
                               .m = l->m,
                               .v = l->v,
                               .g = l->grad,
                               .ema = l->ema,
                               .weight_decay = s->weight_decay};
    if (separate_wire(l)) all.wire = l->wire;
    const struct update_args a = {.shard = &all,
                                  .num_shards = 1,
                                  .lr = s->lr,
                                  .beta1 = s->beta1,
                                  .beta2 = s->beta2,
                                  .eps = s->eps,
                                  .bias1 = 1 - pow(s->beta1, (double)s->step),
                                  .bias2 = 1 - pow(s->beta2, (double)s->step),
                                  .grad_scale = s->grad_scale,
                                  .ema_keep = s->ema_keep};
    l->dev->ops->update(l->dev, &a);
}

const struct param *lora_find(const struct lora *l, const char *name)
{
    for (int i = 0; i < l->num_params; i++)
        if (strcmp(l->param[i].name, name) == 0) return &l->param[i];
    return NULL;
}

static struct tensor whole(struct lora *l, enum state_kind kind, const char *name)
{
    const struct param *p = lora_find(l, name);
    CHECK(p, "no adapter tensor %s", name);
    return tensor_rows(state_of(l, kind), p->offset, param_count(p));
}

void lora_get(struct lora *l, enum state_kind kind, const char *name, double *out)
{
    dev_get_f64(l->dev, out, whole(l, kind, name));
}

void lora_put(struct lora *l, enum state_kind kind, const char *name, const double *in)
{
    dev_put_f64(l->dev, whole(l, kind, name), in);
    if (kind == STATE_LORA) lora_refresh(l);
}

int64_t lora_num_elements(const struct lora *l)
{
    int64_t n = 0;
    for (int i = 0; i < l->num_params; i++) n += param_count(&l->param[i]);
    return n;
}

size_t lora_bytes(const struct lora *l)
{
    const struct tensor all[] = {l->w, l->grad, l->m, l->v, l->ema, l->old};
    size_t n = separate_wire(l) ? tensor_bytes(l->wire) : 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].data) n += tensor_bytes(all[i]);
    return n;
}
