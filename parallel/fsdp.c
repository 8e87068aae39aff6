#include "parallel/fsdp.h"

#include <stdlib.h>
#include <string.h>

/* Buffer k of a unit: 0 holds what is gathered in T, 1 what is gathered in S; 2 and 3 the same of
 * frozen parameters, which have nothing but the wire copy. */
enum { FROZEN = 2, BUFFERS = 4, ALIGN_ELEMENTS = 8 };

struct slot { /* gathered weights of one unit */
    int unit; /* -1: free */
    struct tensor w[BUFFERS];
    struct work work[BUFFERS];
};
struct ubuf {                   /* one flat buffer of one unit */
    int64_t count, padded;      /* elements; multiple of F * ALIGN_ELEMENTS */
    int64_t decayed, trainable; /* ends of those runs: decayed, other trained */
    int shard;                  /* index into shards; -1: empty */
};
struct fsdp {
    struct dev *dev;
    struct mesh *mesh;
    struct comm *axis;
    struct fsdp_opts opts;
    struct unit *unit;
    int num_units, num_shards, num_slots;
    struct ubuf (*buf)[BUFFERS];
    struct shard *shard;
    struct slot *slot;
    struct grad_slot {
        struct tensor g[BUFFERS]; /* whole gradient of a unit: in hand, or on its way */
        struct work work[BUFFERS];
    } grad[2];
    int num_grads, turn; /* two with prefetch: one travels while the next is made */
    bool use_ema;
    struct unit_hooks hooks;
};

static enum dtype wire_type(const struct fsdp *f, int k)
{
    return k % FROZEN == 0 ? f->dev->compute : dtype_state(f->dev->compute);
}

static int buffer_of(const struct fsdp *f, const struct param *p)
{
    const bool mixed = f->dev->compute != dtype_state(f->dev->compute);
    const int frozen = p->flags & P_TRAINABLE ? 0 : FROZEN;
    return frozen + (mixed && (p->flags & P_FULL_PRECISION) ? 1 : 0);
}

static int class_of(const struct param *p) { return p->flags & P_DECAY ? 0 : 1; }

/* Places the parameters of a unit: each property is one run of a buffer, declared order inside. */
static void place_params(struct fsdp *f, int u)
{
    const int64_t unit = (int64_t)f->axis->size * ALIGN_ELEMENTS;
    for (int k = 0; k < BUFFERS; k++) {
        struct ubuf *b = &f->buf[u][k];
        for (int cls = 0; cls < 2; cls++) {
            for (int i = 0; i < f->unit[u].num_params; i++) {
                struct param *p = &f->unit[u].param[i];
                if (buffer_of(f, p) != k || class_of(p) != cls) continue;
                p->offset = b->count;
                b->count += param_count(p);
            }
            if (cls == 0) b->decayed = b->count;
        }
        b->trainable = b->count;
        if (k >= FROZEN) b->decayed = b->trainable = 0;
        b->padded = (b->count + unit - 1) / unit * unit;
        b->shard = b->count ? f->num_shards++ : -1;
    }
}

static int64_t clamp(int64_t x, int64_t hi) { return x < 0 ? 0 : x > hi ? hi : x; }

static struct tensor zeros(struct fsdp *f, enum dtype t, int64_t n)
{
    struct tensor x = dev_tensor(f->dev, t, 1, DIMS(n));
    f->dev->ops->fill(f->dev, x, 0);
    return x;
}

static bool separate_wire(const struct shard *s) { return s->wire.data != s->master.data; }

static void make_shard(struct fsdp *f, int u, int k)
{
    const struct ubuf *b = &f->buf[u][k];
    const enum dtype S = dtype_state(f->dev->compute);
    const int64_t n = b->padded / f->axis->size, first = n * f->axis->rank;
    struct shard *s = &f->shard[b->shard];
    *s = (struct shard){.unit = u,
                        .full_precision = k % FROZEN == 1,
                        .frozen = k >= FROZEN,
                        .first = first,
                        .decay_end = clamp(b->decayed - first, n),
                        .frozen_from = clamp(b->trainable - first, n)};
    s->wire = zeros(f, wire_type(f, k), n);
    s->master = s->frozen || wire_type(f, k) == S ? s->wire : zeros(f, S, n);
    if (s->frozen) return;
    if (f->opts.optimizer) s->grad = zeros(f, S, n);
    if (f->opts.optimizer && !f->opts.no_moments) {
        s->m = zeros(f, S, n);
        s->v = zeros(f, S, n);
    }
    if (f->opts.ema) s->ema = zeros(f, S, n);
}

static bool sharded(const struct fsdp *f) { return f->axis->size > 1; }

/* Gather slots and gradient buffers, large enough for the largest unit. One rank needs neither: its
 * shard is the whole buffer. */
static void make_slots(struct fsdp *f)
{
    int64_t most[BUFFERS] = {0};
    for (int u = 0; u < f->num_units; u++)
        for (int k = 0; k < BUFFERS; k++)
            if (f->buf[u][k].padded > most[k]) most[k] = f->buf[u][k].padded;
    f->num_slots = !sharded(f) ? 0
                   : f->opts.keep_after_forward || f->opts.prefetch + 1 > f->num_units
                       ? f->num_units
                       : f->opts.prefetch + 1;
    f->slot = calloc((size_t)f->num_slots + 1, sizeof *f->slot);
    CHECK(f->slot, "out of memory");
    for (int i = 0; i < f->num_slots; i++) {
        f->slot[i].unit = -1;
        for (int k = 0; k < BUFFERS; k++)
            if (most[k]) f->slot[i].w[k] = dev_tensor(f->dev, wire_type(f, k), 1, DIMS(most[k]));
    }
    const bool trains = most[0] + most[1] > 0;
    f->num_grads = !sharded(f) || !f->opts.optimizer || !trains ? 0 : f->opts.prefetch > 0 ? 2 : 1;
    for (int i = 0; i < f->num_grads; i++)
        for (int k = 0; k < FROZEN; k++)
            if (most[k])
                f->grad[i].g[k] =
                    dev_tensor(f->dev, dtype_state(f->dev->compute), 1, DIMS(most[k]));
}

static void hook_enter(void *ctx, int unit, enum pass pass);
static void hook_leave(void *ctx, int unit, enum pass pass);
static void hook_poll(void *ctx);

struct fsdp *fsdp_new(struct dev *dev, struct mesh *mesh, struct unit *units, int num_units,
                      struct fsdp_opts o)
{
    struct fsdp *f = calloc(1, sizeof *f);
    CHECK(f, "out of memory");
    f->dev = dev;
    f->mesh = mesh;
    f->axis = mesh->axis[AXIS_FSDP];
    f->opts = o;
    f->unit = units;
    f->num_units = num_units;
    f->hooks =
        (struct unit_hooks){.enter = hook_enter, .leave = hook_leave, .poll = hook_poll, .ctx = f};
    for (int a = 0; a < AXIS_COUNT; a++) mesh->axis[a]->dev = dev;
    f->buf = calloc((size_t)num_units, sizeof *f->buf);
    CHECK(f->buf, "out of memory");
    for (int u = 0; u < num_units; u++) place_params(f, u);
    f->shard = calloc((size_t)f->num_shards, sizeof *f->shard);
    CHECK(f->shard, "out of memory");
    for (int u = 0; u < num_units; u++)
        for (int k = 0; k < BUFFERS; k++)
            if (f->buf[u][k].count) make_shard(f, u, k);
    make_slots(f);
    return f;
}

static void drop(struct fsdp *f, struct tensor t)
{
    if (t.data) dev_free(f->dev, t.data);
}

void fsdp_free(struct fsdp *f)
{
    if (!f) return;
    for (int i = 0; i < f->num_shards; i++) {
        struct shard *s = &f->shard[i];
        if (separate_wire(s)) drop(f, s->wire);
        drop(f, s->master);
        drop(f, s->grad);
        drop(f, s->m);
        drop(f, s->v);
        drop(f, s->ema);
    }
    for (int k = 0; k < BUFFERS; k++) {
        for (int i = 0; i < f->num_slots; i++) drop(f, f->slot[i].w[k]);
        for (int i = 0; i < f->num_grads; i++) drop(f, f->grad[i].g[k]);
    }
    free(f->slot);
    free(f->shard);
    free(f->buf);
    free(f);
}

const struct unit_hooks *fsdp_hooks(struct fsdp *f) { return &f->hooks; }

struct shard *fsdp_shards(struct fsdp *f, int *n)
{
    *n = f->num_shards;
    return f->shard;
}

/* What is gathered of a shard: its wire copy, or directly the master or the EMA in S. */
static struct tensor source(const struct fsdp *f, const struct shard *s)
{
    if (separate_wire(s)) return s->wire;
    return f->use_ema && s->ema.data ? s->ema : s->master;
}

static struct tensor part(struct tensor t, int64_t first, int64_t count)
{
    return tensor_rows(tensor_rows(t, 0, t.dim[0]), first, count);
}

static struct slot *slot_of(struct fsdp *f, int unit)
{
    for (int i = 0; i < f->num_slots; i++)
        if (f->slot[i].unit == unit) return &f->slot[i];
    return NULL;
}

/* Starts the gather of a unit in a free slot; does nothing when there is none. */
static struct slot *start_gather(struct fsdp *f, int unit)
{
    struct slot *s = slot_of(f, unit);
    if (s) return s;
    s = slot_of(f, -1);
    if (!s) return NULL;
    s->unit = unit;
    for (int k = 0; k < BUFFERS; k++) {
        const struct ubuf *b = &f->buf[unit][k];
        if (b->count)
            comm_all_gather(f->axis, part(s->w[k], 0, b->padded), source(f, &f->shard[b->shard]),
                            f->unit[unit].name, &s->work[k]);
    }
    return s;
}

static struct tensor shaped(struct tensor flat, const struct param *p)
{
    return tensor_view(part(flat, p->offset, param_count(p)), p->ndim, p->dim);
}

static void show_weights(struct fsdp *f, int unit, const struct tensor w[BUFFERS])
{
    for (int i = 0; i < f->unit[unit].num_params; i++) {
        struct param *p = &f->unit[unit].param[i];
        p->w = shaped(w[buffer_of(f, p)], p);
    }
}

static void show_grads(struct fsdp *f, int unit, const struct tensor g[BUFFERS])
{
    for (int i = 0; i < f->unit[unit].num_params; i++) {
        struct param *p = &f->unit[unit].param[i];
        if (p->flags & P_TRAINABLE) p->g = shaped(g[buffer_of(f, p)], p);
    }
}

static void hide(struct unit *u)
{
    for (int i = 0; i < u->num_params; i++) u->param[i].w = u->param[i].g = (struct tensor){0};
}

static void enter_whole(struct fsdp *f, int unit, enum pass pass)
{
    struct tensor w[BUFFERS] = {{0}}, g[BUFFERS] = {{0}};
    for (int k = 0; k < BUFFERS; k++) {
        const int s = f->buf[unit][k].shard;
        if (s < 0) continue;
        w[k] = source(f, &f->shard[s]);
        g[k] = f->shard[s].grad;
    }
    show_weights(f, unit, w);
    if (pass == PASS_BACKWARD && f->opts.optimizer) show_grads(f, unit, g);
}

static void hook_enter(void *ctx, int unit, enum pass pass)
{
    struct fsdp *f = ctx;
    comm_context(f->mesh->axis[AXIS_WORLD], f->unit[unit].name);
    if (!sharded(f)) {
        enter_whole(f, unit, pass);
        return;
    }
    struct slot *s = start_gather(f, unit);
    CHECK(s, "no free gather slot for unit %s", f->unit[unit].name);
    for (int k = 0; k < BUFFERS; k++) comm_wait(f->axis, &s->work[k]);
    const int step = pass == PASS_FORWARD ? 1 : -1;
    for (int n = 1; n <= f->opts.prefetch; n++) {
        const int next = unit + n * step;
        if (next >= 0 && next < f->num_units) start_gather(f, next);
    }
    show_weights(f, unit, s->w);
    if (pass == PASS_BACKWARD && f->num_grads) {
        f->turn = (f->turn + 1) % f->num_grads;
        struct grad_slot *gs = &f->grad[f->turn];
        for (int k = 0; k < BUFFERS; k++) {
            comm_wait(f->axis, &gs->work[k]);
            if (gs->g[k].data)
                f->dev->ops->fill(f->dev, part(gs->g[k], 0, f->buf[unit][k].padded), 0);
        }
        show_grads(f, unit, gs->g);
    }
}

static void hook_poll(void *ctx)
{
    struct fsdp *f = ctx;
    for (int k = 0; k < BUFFERS; k++) {
        for (int i = 0; i < f->num_slots; i++) comm_poll(f->axis, &f->slot[i].work[k]);
        for (int i = 0; i < f->num_grads; i++) comm_poll(f->axis, &f->grad[i].work[k]);
    }
}

static void release_slot(struct fsdp *f, struct slot *s)
{
    for (int k = 0; k < BUFFERS; k++)
        if (s->w[k].data) dev_poison(f->dev, s->w[k].data, tensor_bytes(s->w[k]));
    s->unit = -1;
}

static void hook_leave(void *ctx, int unit, enum pass pass)
{
    struct fsdp *f = ctx;
    hide(&f->unit[unit]);
    if (!sharded(f)) return;
    if (pass == PASS_BACKWARD && f->num_grads)
        for (int k = 0; k < FROZEN; k++) {
            const struct ubuf *b = &f->buf[unit][k];
            if (b->count)
                comm_reduce_scatter(f->axis, f->shard[b->shard].grad,
                                    part(f->grad[f->turn].g[k], 0, b->padded), f->unit[unit].name,
                                    &f->grad[f->turn].work[k]);
        }
    if (pass == PASS_BACKWARD || !f->opts.keep_after_forward) release_slot(f, slot_of(f, unit));
}

/* Weights are about to change: no gathered copy may survive. */
static void drop_gathered(struct fsdp *f)
{
    for (int i = 0; i < f->num_slots; i++) {
        for (int k = 0; k < BUFFERS; k++) comm_wait(f->axis, &f->slot[i].work[k]);
        if (f->slot[i].unit >= 0) release_slot(f, &f->slot[i]);
    }
}

void fsdp_zero_grads(struct fsdp *f)
{
    for (int i = 0; i < f->num_shards; i++)
        if (f->shard[i].grad.data) f->dev->ops->fill(f->dev, f->shard[i].grad, 0);
}

void fsdp_finish_backward(struct fsdp *f, bool last_micro)
{
    comm_context(f->mesh->axis[AXIS_WORLD], NULL);
    for (int i = 1; i <= f->num_grads; i++) /* the older one first */
        for (int k = 0; k < BUFFERS; k++)
            comm_wait(f->axis, &f->grad[(f->turn + i) % f->num_grads].work[k]);
    drop_gathered(f);
    struct comm *replicas = f->mesh->axis[AXIS_REPLICA];
    if (!last_micro || replicas->size == 1) return;
    for (int i = 0; i < f->num_shards; i++)
        if (f->shard[i].grad.data) comm_all_reduce(replicas, f->shard[i].grad, "replicas", NULL);
}

void fsdp_refresh_wire(struct fsdp *f)
{
    drop_gathered(f);
    for (int i = 0; i < f->num_shards; i++) {
        struct shard *s = &f->shard[i];
        if (separate_wire(s)) f->dev->ops->cast(f->dev, s->wire, f->use_ema ? s->ema : s->master);
    }
}

void fsdp_use_ema(struct fsdp *f, bool on)
{
    CHECK(!on || f->opts.ema, "there is no EMA");
    f->use_ema = on;
    fsdp_refresh_wire(f);
}

static struct tensor state_of(const struct shard *s, enum state_kind kind)
{
    switch (kind) {
    case STATE_MASTER:
        return s->master;
    case STATE_GRAD:
        return s->grad;
    case STATE_M:
        return s->m;
    case STATE_V:
        return s->v;
    default:
        return s->ema;
    }
}

void fsdp_each_piece(struct fsdp *f, enum state_kind kind,
                     void (*each)(void *arg, const struct piece *p), void *arg)
{
    for (int i = 0; i < f->num_shards; i++) {
        const struct shard *s = &f->shard[i];
        const struct tensor all = state_of(s, kind);
        if (!all.data && s->frozen) continue;
        CHECK(all.data, "this run keeps no state of kind %d", (int)kind);
        const struct unit *u = &f->unit[s->unit];
        for (int k = 0; k < u->num_params; k++) {
            const struct param *p = &u->param[k];
            if (buffer_of(f, p) != (s->full_precision ? 1 : 0) + (s->frozen ? FROZEN : 0)) continue;
            int64_t from = p->offset, to = p->offset + param_count(p);
            if (from < s->first) from = s->first;
            if (to > s->first + all.dim[0]) to = s->first + all.dim[0];
            if (from >= to) continue;
            const struct piece piece = {p, from - p->offset, to - from,
                                        part(all, from - s->first, to - from)};
            each(arg, &piece);
        }
    }
}

struct init_arg {
    struct fsdp *f;
    uint64_t seed;
};

static void init_piece(void *arg, const struct piece *p)
{
    const struct init_arg *a = arg;
    struct dev *d = a->f->dev;
    const struct rng_stream s = rng_open(
        (struct rng_key){.seed = a->seed, .use = RNG_INIT, .item = rng_hash(p->param->name)});
    const double scale = p->param->init_scale;
    switch (p->param->init) {
    case INIT_ZERO:
        d->ops->fill(d, p->data, 0);
        break;
    case INIT_ONE:
        d->ops->fill(d, p->data, 1);
        break;
    case INIT_UNIFORM:
        d->ops->rng_uniform(d, p->data, s, (uint64_t)p->first, -scale, scale);
        break;
    case INIT_NORMAL:
        d->ops->rng_normal(d, p->data, s, (uint64_t)p->first, scale);
        break;
    }
}

void fsdp_init_params(struct fsdp *f, uint64_t seed)
{
    struct init_arg a = {f, seed};
    fsdp_each_piece(f, STATE_MASTER, init_piece, &a);
    for (int i = 0; i < f->num_shards; i++)
        if (f->shard[i].ema.data) f->dev->ops->cast(f->dev, f->shard[i].ema, f->shard[i].master);
    fsdp_refresh_wire(f);
}

const struct param *fsdp_find(struct fsdp *f, const char *name)
{
    for (int u = 0; u < f->num_units; u++)
        for (int i = 0; i < f->unit[u].num_params; i++)
            if (strcmp(f->unit[u].param[i].name, name) == 0) return &f->unit[u].param[i];
    return NULL;
}

struct whole_arg {
    struct fsdp *f;
    const char *name;
    double *out;
    const double *in;
};

static void get_piece(void *arg, const struct piece *p)
{
    const struct whole_arg *a = arg;
    if (strcmp(p->param->name, a->name) == 0) dev_get_f64(a->f->dev, a->out + p->first, p->data);
}

static void put_piece(void *arg, const struct piece *p)
{
    const struct whole_arg *a = arg;
    if (strcmp(p->param->name, a->name) == 0) dev_put_f64(a->f->dev, p->data, a->in + p->first);
}

void fsdp_get(struct fsdp *f, enum state_kind kind, const char *name, double *out)
{
    const struct param *p = fsdp_find(f, name);
    CHECK(p, "no parameter %s", name);
    memset(out, 0, (size_t)param_count(p) * sizeof *out);
    struct whole_arg a = {.f = f, .name = name, .out = out};
    fsdp_each_piece(f, kind, get_piece, &a);
    if (!sharded(f)) return;
    const int64_t n = param_count(p), step = 1 << 24; /* in steps: counts of a transport are int */
    for (int64_t i = 0; i < n; i += step)
        comm_sum_f64(f->axis, out + i, (int)(n - i < step ? n - i : step), name);
}

void fsdp_put(struct fsdp *f, enum state_kind kind, const char *name, const double *in)
{
    CHECK(fsdp_find(f, name), "no parameter %s", name);
    struct whole_arg a = {.f = f, .name = name, .in = in};
    fsdp_each_piece(f, kind, put_piece, &a);
    if (kind == STATE_MASTER) fsdp_refresh_wire(f);
}

size_t fsdp_slot_bytes(const struct fsdp *f)
{
    size_t n = 0;
    for (int k = 0; k < BUFFERS; k++) {
        for (int i = 0; i < f->num_slots; i++)
            if (f->slot[i].w[k].data) n += tensor_bytes(f->slot[i].w[k]);
        for (int i = 0; i < f->num_grads; i++)
            if (f->grad[i].g[k].data) n += tensor_bytes(f->grad[i].g[k]);
    }
    return n;
}

struct dev *fsdp_device(const struct fsdp *f) { return f->dev; }
