#include "train/merge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/log.h"
#include "train/adapter.h"
#include "train/convert.h"

enum { READ_ELEMENTS = 1 << 20 }; /* at once, as doubles */

struct merge {
    const struct merge_job *job;
    struct ckpt *base, *adapter;
    struct adapter_info info;
    enum state_kind from, pair; /* weights that are taken of base and adapter */
    enum dtype dtype;
    struct dev *dev;
    int folded;
};

static void read_tensor(struct ckpt *c, const struct ckpt_tensor *t, enum dtype type, void *out)
{
    double *x = malloc(READ_ELEMENTS * sizeof *x);
    CHECK(x, "out of memory");
    for (int64_t at = 0; at < t->count; at += READ_ELEMENTS) {
        const int64_t n = t->count - at < READ_ELEMENTS ? t->count - at : READ_ELEMENTS;
        ckpt_read_f64(c, t, at, n, x);
        for (int64_t i = 0; i < n; i++) {
            if (type == DT_F64)
                ((double *)out)[at + i] = x[i];
            else
                ((float *)out)[at + i] = (float)x[i];
        }
    }
    free(x);
}

/* One of the pair of a weight; false: the weight has none. */
static bool find_half(const struct merge *m, const char *weight, const char *half,
                      struct ckpt_tensor *out)
{
    char name[128];
    const size_t n = strlen(weight), tail = strlen(".weight");
    if (n <= tail || strcmp(weight + n - tail, ".weight")) return false;
    snprintf(name, sizeof name, "%.*s.%s.weight", (int)(n - tail), weight, half);
    return ckpt_find(m->adapter, m->pair, name, out);
}

static struct tensor load_half(struct merge *m, const struct ckpt_tensor *t)
{
    struct tensor x = dev_tensor(m->dev, m->dtype, 2, t->dim);
    void *host = malloc(tensor_bytes(x));
    CHECK(host, "out of memory");
    read_tensor(m->adapter, t, m->dtype, host);
    dev_put(m->dev, x, host);
    free(host);
    return x;
}

/* w [out,in] += scale * B A */
static void fold(struct merge *m, const struct ckpt_piece *p, void *w)
{
    struct ckpt_tensor ta, tb;
    if (!find_half(m, p->name, "lora_A", &ta) || !find_half(m, p->name, "lora_B", &tb)) return;
    const int64_t r = m->info.config.rank;
    if (p->ndim != 2 || tb.dim[0] != p->dim[0] || ta.dim[1] != p->dim[1] || ta.dim[0] != r ||
        tb.dim[1] != r)
        err_stop(RC_DATA, "%s: the adapter of %s [%lld,%lld] has another shape",
                 ckpt_path(m->adapter), p->name, (long long)p->dim[0], (long long)p->dim[1]);
    struct tensor a = load_half(m, &ta), b = load_half(m, &tb);
    struct tensor sum = dev_tensor(m->dev, m->dtype, 2, p->dim);
    dev_put(m->dev, sum, w);
    const struct gemm_args g = {
        .c = sum, .a = b, .b = a, .alpha = m->info.config.alpha / (double)r, .beta = 1};
    m->dev->ops->gemm(m->dev, &g);
    dev_get(m->dev, w, sum);
    const struct tensor all[] = {a, b, sum};
    for (int i = 0; i < 3; i++) dev_free(m->dev, all[i].data);
    m->folded++;
}

static void fill(void *arg, const struct ckpt_piece *p, void *data)
{
    struct merge *m = arg;
    struct ckpt_tensor t;
    CHECK(ckpt_find(m->base, m->from, p->name, &t), "%s is gone", p->name);
    read_tensor(m->base, &t, p->dtype, data);
    fold(m, p, data);
}

/* Every weight of the base, once for each kind that the base has. */
static struct ckpt_snapshot *pieces_of(struct merge *m)
{
    struct ckpt_snapshot *s = calloc(1, sizeof *s);
    const int n = ckpt_num_tensors(m->base);
    CHECK(s, "out of memory");
    s->piece = calloc(2 * (size_t)n, sizeof *s->piece);
    CHECK(s->piece, "out of memory");
    s->fill = fill;
    s->arg = m;
    const enum state_kind kinds[] = {STATE_MASTER, STATE_EMA};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < n && ckpt_has(m->base, kinds[k]); i++) {
            const struct ckpt_tensor t = ckpt_tensor_at(m->base, i);
            if (t.kind != m->from) continue;
            struct ckpt_piece *p = &s->piece[s->num_pieces++];
            *p = (struct ckpt_piece){
                .kind = kinds[k], .ndim = t.ndim, .count = t.count, .dtype = t.dtype};
            snprintf(p->name, sizeof p->name, "%s", t.name);
            memcpy(p->dim, t.dim, sizeof p->dim);
            s->bytes += t.count * (int64_t)dtype_size(t.dtype);
            m->dtype = t.dtype;
        }
    return s;
}

static json_t *provenance(const struct merge *m, const struct adapter_base *base)
{
    char hash[65];
    ckpt_hash(m->adapter, m->pair, hash);
    return json_pack("{s:s, s:o, s:{s:s, s:I, s:s, s:s, s:I, s:f}}", "made_by", "osp convert merge",
                     "base", adapter_base_json(base), "adapter", "path", ckpt_path(m->adapter),
                     "step", (json_int_t)ckpt_step(m->adapter), "kind", ckpt_kind_name(m->pair),
                     "sha256", hash, "rank", (json_int_t)m->info.config.rank, "alpha",
                     m->info.config.alpha);
}

/* The base's description; a new run begins at step 0. */
static json_t *meta_of(const struct merge *m, const struct adapter_base *base)
{
    json_t *meta = json_deep_copy(ckpt_meta(m->base));
    json_t *state =
        json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:{s:f, s:f, s:f, s:f, s:f, s:i}}", "step",
                  0, "skipped_in_row", 0, "cursor", 0, "adam_steps", 0, "ema_updates", 0, "skipped",
                  0, "seconds", 0.0, "clip", "mean", 0.0, "var", 0.0, "limit", 1.0, "decay", 0.99,
                  "init_max", 1.0, "started", 0);
    json_t *from = provenance(m, base);
    CHECK(meta && state && from, "the description of the result cannot be built");
    json_object_set_new(meta, "step", json_integer(0));
    json_object_set_new(meta, "state", state);
    json_object_set_new(meta, "stage", json_string("merged"));
    json_object_set_new(meta, "provenance", from);
    return meta;
}

static int count_pairs(const struct merge *m)
{
    int n = 0;
    for (int i = 0; i < ckpt_num_tensors(m->adapter); i++)
        n += ckpt_tensor_at(m->adapter, i).kind == m->pair;
    return n / 2;
}

/* Every adapter needs its weight; before anything is written. */
static void require_weights(const struct merge *m)
{
    struct ckpt_tensor half;
    int found = 0;
    for (int i = 0; i < ckpt_num_tensors(m->base); i++) {
        const struct ckpt_tensor t = ckpt_tensor_at(m->base, i);
        found += t.kind == m->from && find_half(m, t.name, "lora_A", &half) &&
                 find_half(m, t.name, "lora_B", &half);
    }
    if (found == 0 || found != count_pairs(m))
        err_stop(RC_DATA, "%s: %d adapters, of which %d have a weight in %s", ckpt_path(m->adapter),
                 count_pairs(m), found, ckpt_path(m->base));
}

static void open_all(struct merge *m, struct comm *world)
{
    struct err e = {0};
    m->base = ckpt_open(world, m->job->base, true);
    m->adapter = ckpt_open(world, m->job->adapter, true);
    adapter_info_read(&m->info, m->adapter, &e);
    err_raise(&e);
    m->from = m->info.base.kind;
    m->pair = m->job->ema ? STATE_LORA_EMA : STATE_LORA;
    if (!ckpt_has(m->adapter, m->pair))
        err_stop(RC_CONFIG, "%s holds no %s weights%s", ckpt_path(m->adapter),
                 ckpt_kind_name(m->pair), m->job->ema ? "; leave --ema out" : "");
    if (!ckpt_has(m->base, m->from))
        err_stop(RC_CONFIG, "%s holds no %s weights, which the adapter was made for",
                 ckpt_path(m->base), ckpt_kind_name(m->from));
}

void merge_adapter(const struct merge_job *job)
{
    struct merge m = {.job = job};
    struct comm *world = comm_self(NULL);
    open_all(&m, world);
    struct adapter_base base = adapter_base_of(m.base, m.from);
    adapter_require_base(m.adapter, &m.info, &base, job->force_base);
    require_weights(&m);
    char *dir = convert_folder(job->out);
    struct ckpt_snapshot *s = pieces_of(&m);
    m.dev = dev_open(dev_supports("cpu", m.dtype) ? "cpu" : "ref", m.dtype, 1);
    json_t *meta = meta_of(&m, &base);
    struct err e = {0};
    const struct ckpt_place place = {.dir = dir};
    struct lock lock = convert_lock(world, job->out, dir);
    ckpt_write(world, &place, s, meta, &e);
    lock_release(&lock);
    err_raise(&e);
    CHECK(m.folded % count_pairs(&m) == 0, "%d weights were folded", m.folded);
    log_info("%d adapters of %s (step %lld) are folded into %s: %s/iter_%09d", count_pairs(&m),
             ckpt_path(m.adapter), (long long)ckpt_step(m.adapter), base.path, dir, 0);
    json_decref(meta);
    ckpt_snapshot_free(s);
    dev_close(m.dev);
    adapter_base_free(&base);
    adapter_info_free(&m.info);
    ckpt_close(m.adapter);
    ckpt_close(m.base);
    comm_free(world);
    free(dir);
}
