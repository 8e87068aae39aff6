#include "train/adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "optim/schedule.h"

struct adapter_result adapter_step(struct lora *l, struct comm *world, struct arena *tmp,
                                   const struct adapter_hyper *h, struct adapter_state *s,
                                   double loss)
{
    lora_reduce_grads(l, world);
    struct adapter_result r = {.norm = lora_grad_norm(l, tmp)};
    r.skipped = !isfinite(loss) || !isfinite(r.norm);
    if (r.skipped) {
        s->skipped++;
        s->skipped_in_row++;
        s->step++;
        return r;
    }
    const struct clip_result c = clip_step(&s->clip, h->clip, r.norm);
    struct lora_step a = {.lr = h->lr,
                          .beta1 = h->beta1,
                          .beta2 = h->beta2,
                          .eps = h->eps,
                          .weight_decay = h->weight_decay,
                          .step = ++s->adam_steps,
                          .grad_scale = c.coef,
                          .ema_keep = -1};
    if (h->ema_decay > 0 && (s->step + 1) % h->ema_interval == 0)
        a.ema_keep = ema_decay_at(h->ema_decay, h->ema_warmup, s->ema_updates++);
    lora_update(l, &a);
    s->skipped_in_row = 0;
    s->step++;
    r.norm_after = c.after;
    r.limit = c.limit;
    return r;
}

/* ---- base ------------------------------------------------------------------------------------*/
struct adapter_base adapter_base_of(const struct ckpt *c, enum state_kind kind)
{
    struct adapter_base b = {.path = strdup(ckpt_path(c)), .step = ckpt_step(c), .kind = kind};
    CHECK(b.path, "out of memory");
    ckpt_hash(c, kind, b.sha256);
    return b;
}

void adapter_base_free(struct adapter_base *b)
{
    free(b->path);
    b->path = NULL;
}

void adapter_require_base(const struct ckpt *c, const struct adapter_info *i,
                          const struct adapter_base *have, bool force)
{
    const struct adapter_base *want = &i->base;
    if (strcmp(want->sha256, have->sha256) == 0) return;
    char text[900];
    snprintf(text, sizeof text,
             "%s was made for the %s weights of %s (step %lld, SHA-256 %s), not for the %s weights "
             "of %s (step %lld, SHA-256 %s)",
             ckpt_path(c), ckpt_kind_name(want->kind), want->path, (long long)want->step,
             want->sha256, ckpt_kind_name(have->kind), have->path, (long long)have->step,
             have->sha256);
    if (!force)
        err_stop(RC_CONFIG,
                 "%s; name that base, or force it where that is possible (osp sample: "
                 "lora_force_base: true; osp convert merge: --force-base)",
                 text);
    log_warn("%s; it is used all the same, as was asked for", text);
}

/* ---- saving ----------------------------------------------------------------------------------*/
struct share { /* of the adapters that this rank writes */
    struct lora *l;
    int rank, size;
};

static void part_pieces(void *data, enum state_kind kind,
                        void (*each)(void *arg, const struct piece *p), void *arg)
{
    const struct share *p = data;
    lora_each_piece(p->l, kind, p->rank, p->size, each, arg);
}

static const struct param *part_find(void *data, const char *name)
{
    return lora_find(((const struct share *)data)->l, name);
}

static void part_changed(void *data) { lora_refresh(((const struct share *)data)->l); }

static struct ckpt_store store_of(struct share *p)
{
    return (struct ckpt_store){p->l->dev, p, part_pieces, part_find, part_changed};
}

static json_t *state_json(const struct adapter_state *s)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:{s:f, s:f, s:f, s:f, s:f, s:i}}", "step",
                     (json_int_t)s->step, "adam_steps", (json_int_t)s->adam_steps, "ema_updates",
                     (json_int_t)s->ema_updates, "skipped", (json_int_t)s->skipped,
                     "skipped_in_row", (json_int_t)s->skipped_in_row, "clip", "mean", s->clip.mean,
                     "var", s->clip.var, "limit", s->clip.limit, "decay", s->clip.decay, "init_max",
                     s->clip.init_max, "started", s->clip.started);
}

static json_t *lora_json(const struct lora *l, const struct lora_config *cfg)
{
    json_t *targets = json_array();
    for (int i = 0; i < cfg->targets.n; i++)
        json_array_append_new(targets, json_string(cfg->targets.v[i]));
    return json_pack("{s:I, s:f, s:f, s:f, s:o}", "rank", (json_int_t)l->rank, "alpha", l->alpha,
                     "scale", l->store.scale, "dropout", l->store.dropout, "targets", targets);
}

json_t *adapter_base_json(const struct adapter_base *b)
{
    return json_pack("{s:s, s:I, s:s, s:s}", "path", b->path, "step", (json_int_t)b->step, "kind",
                     ckpt_kind_name(b->kind), "sha256", b->sha256);
}

struct ckpt_snapshot *adapter_snapshot(struct lora *l, struct mesh *mesh, unsigned kinds)
{
    const struct comm *world = mesh->axis[AXIS_WORLD];
    struct share p = {l, world->rank, world->size};
    const struct ckpt_store store = store_of(&p);
    return ckpt_snapshot_store(&store, kinds);
}

void adapter_write(struct lora *l, const struct lora_config *cfg, struct mesh *mesh,
                   const struct ckpt_place *place, const struct ckpt_snapshot *snap,
                   const struct adapter_base *base, const struct adapter_state *s, json_t *meta,
                   struct err *e)
{
    json_t *parts[] = {lora_json(l, cfg), adapter_base_json(base), state_json(s)};
    CHECK(parts[0] && parts[1] && parts[2], "the description of the adapters cannot be built");
    json_object_set_new(meta, "lora", parts[0]);
    json_object_set_new(meta, "base", parts[1]);
    json_object_set_new(meta, "state", parts[2]);
    ckpt_write(mesh->axis[AXIS_WORLD], place, snap, meta, e);
}

void adapter_save(struct lora *l, const struct lora_config *cfg, struct mesh *mesh,
                  const struct ckpt_place *place, const struct adapter_base *base,
                  const struct adapter_state *s, unsigned kinds, json_t *meta, struct err *e)
{
    struct ckpt_snapshot *snap = adapter_snapshot(l, mesh, kinds);
    adapter_write(l, cfg, mesh, place, snap, base, s, meta, e);
    ckpt_snapshot_free(snap);
}

/* ---- loading ---------------------------------------------------------------------------------*/
struct reader { /* of one checkpoint's meta; keeps the first mistake */
    const struct ckpt *c;
    struct err *e;
};

static double number(const struct reader *r, const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_number(v) && !r->e->code)
        err_set(r->e, RC_DATA, "%s: no adapter checkpoint, or a damaged one: no number \"%s\"",
                ckpt_path(r->c), key);
    return json_number_value(v);
}

static int64_t integer(const struct reader *r, const json_t *o, const char *key)
{
    return (int64_t)number(r, o, key);
}

static const char *text_of(const struct reader *r, const json_t *o, const char *key)
{
    const char *v = json_string_value(json_object_get(o, key));
    if (!v && !r->e->code)
        err_set(r->e, RC_DATA, "%s: no adapter checkpoint, or a damaged one: no text \"%s\"",
                ckpt_path(r->c), key);
    return v ? v : "";
}

static void read_state(const struct reader *r, struct adapter_state *s)
{
    const json_t *o = json_object_get(ckpt_meta(r->c), "state"), *c = json_object_get(o, "clip");
    *s = (struct adapter_state){.step = integer(r, o, "step"),
                                .adam_steps = integer(r, o, "adam_steps"),
                                .ema_updates = integer(r, o, "ema_updates"),
                                .skipped = integer(r, o, "skipped"),
                                .skipped_in_row = integer(r, o, "skipped_in_row")};
    s->clip = (struct clip){.mean = number(r, c, "mean"),
                            .var = number(r, c, "var"),
                            .limit = number(r, c, "limit"),
                            .decay = number(r, c, "decay"),
                            .init_max = number(r, c, "init_max"),
                            .started = (int)number(r, c, "started")};
}

void adapter_info_read(struct adapter_info *i, const struct ckpt *c, struct err *e)
{
    const struct reader r = {c, e};
    const json_t *meta = ckpt_meta(c), *l = json_object_get(meta, "lora"),
                 *b = json_object_get(meta, "base"), *targets = json_object_get(l, "targets");
    if (!l && ckpt_has(c, STATE_MASTER))
        err_set(e, RC_DATA,
                "%s: no adapter checkpoint, or a damaged one: it holds a model (the base comes "
                "first, then the folder of osp rl)",
                ckpt_path(c));
    *i = (struct adapter_info){
        .config = {.rank = integer(&r, l, "rank"), .alpha = number(&r, l, "alpha")}};
    for (size_t k = 0; k < json_array_size(targets) && k < CFG_MAX_ITEMS; k++) {
        const char *t = json_string_value(json_array_get(targets, k));
        i->config.targets.v[i->config.targets.n++] = strdup(t ? t : "");
    }
    i->base = (struct adapter_base){
        .path = strdup(text_of(&r, b, "path")),
        .step = integer(&r, b, "step"),
        .kind = strcmp(text_of(&r, b, "kind"), "ema") == 0 ? STATE_EMA : STATE_MASTER};
    snprintf(i->base.sha256, sizeof i->base.sha256, "%s", text_of(&r, b, "sha256"));
    read_state(&r, &i->state);
}

static void list_targets(const struct cfg_texts *t, char *out, size_t size)
{
    size_t n = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < t->n && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%s", i ? ", " : "", t->v[i]);
    if (n < size) snprintf(out + n, size - n, "]");
}

void adapter_require_rank(const struct ckpt *c, const struct adapter_info *i,
                          const struct lora_config *now, const char *remedy)
{
    if (i->config.rank != now->rank)
        err_stop(RC_CONFIG, "lora_config.rank: %lld in %s, %lld now; set %lld, or %s",
                 (long long)i->config.rank, ckpt_path(c), (long long)now->rank,
                 (long long)i->config.rank, remedy);
    if (i->config.alpha != now->alpha)
        err_stop(RC_CONFIG, "lora_config.alpha: %g in %s, %g now; set %g, or %s", i->config.alpha,
                 ckpt_path(c), now->alpha, i->config.alpha, remedy);
}

/* A tensor of adapters that only one of both has; NULL: they are for the same modules. */
static const char *odd_tensor(const struct ckpt *c, const struct lora *l)
{
    struct ckpt_tensor t;
    for (int k = 0; k < ckpt_num_tensors(c); k++) {
        t = ckpt_tensor_at(c, k);
        if (t.kind == STATE_LORA && !lora_find(l, t.name)) return t.name;
    }
    for (int k = 0; k < l->num_params; k++)
        if (!ckpt_find(c, STATE_LORA, l->param[k].name, &t)) return l->param[k].name;
    return NULL;
}

void adapter_require_targets(const struct ckpt *c, const struct adapter_info *i,
                             const struct lora *l, const struct lora_config *now,
                             const char *remedy)
{
    const char *odd = odd_tensor(c, l);
    if (!odd) return;
    char then[1024], have[1024];
    list_targets(&i->config.targets, then, sizeof then);
    list_targets(&now->targets, have, sizeof have);
    if (strcmp(then, have) == 0)
        err_stop(RC_CONFIG,
                 "%s: its adapters for %s do not fit the modules of this model (%s is on one side "
                 "only); use it on its own base, %s",
                 ckpt_path(c), then, odd, i->base.path);
    err_stop(RC_CONFIG,
             "lora_config.target_modules: %s in %s, %s now (%s is on one side only); set those of "
             "the checkpoint, or %s",
             then, ckpt_path(c), have, odd, remedy);
}

void adapter_info_free(struct adapter_info *i)
{
    for (int k = 0; k < i->config.targets.n; k++) free(i->config.targets.v[k]);
    adapter_base_free(&i->base);
    i->config.targets.n = 0;
}

void adapter_load(struct ckpt *c, struct lora *l, enum state_kind kind, enum state_kind from)
{
    struct share p = {l, 0, 1};
    const struct ckpt_store store = store_of(&p);
    ckpt_load_store(c, &store, kind, from);
}
