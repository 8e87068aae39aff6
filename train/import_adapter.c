#include "train/import_adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/log.h"
#include "train/adapter.h"
#include "train/convert.h"
#include "train/peft.h"
#include "train/stored_model.h"

struct import {
    const struct import_job *job;
    struct peft peft;
    struct ckpt *base;
    enum state_kind kind; /* of the base's weights */
    struct stored_model model;
    struct dev *dev;
    struct dit *dit; /* no weights: says which linears there are */
    struct lora_config config;
};

/* ---- names in messages -----------------------------------------------------------------------*/
struct names {
    int n;
    char text[400];
};

static void note(struct names *l, const char *name)
{
    const size_t at = strlen(l->text);
    if (l->n++ < 6) snprintf(l->text + at, sizeof l->text - at, "%s%s", at ? ", " : "", name);
    if (l->n == 7) snprintf(l->text + at, sizeof l->text - at, ", ...");
}

/* ---- the base --------------------------------------------------------------------------------*/
static void open_base(struct import *m, struct comm *world)
{
    struct err e = {0};
    /* names, shapes and hash come from the manifest: whoever uses the weights compares their bytes
     */
    m->base = ckpt_open(world, m->job->base, false);
    if (!ckpt_has(m->base, STATE_MASTER))
        err_stop(RC_CONFIG, "%s holds no model; BASE is the checkpoint the adapter was made for",
                 ckpt_path(m->base));
    const bool averaged = ckpt_has(m->base, STATE_EMA);
    m->kind = averaged && !m->job->raw ? STATE_EMA : STATE_MASTER;
    if (averaged)
        log_info("the adapter is declared to be for the %s weights of %s%s",
                 m->job->raw ? "raw" : "averaged", ckpt_path(m->base),
                 m->job->raw ? "" : " (--raw: for the others)");
    stored_model_read(&m->model, m->base, &e);
    err_raise(&e);
    const enum dtype t = DT_F32; /* of adapters */
    m->dev = dev_open(dev_supports("cpu", t) ? "cpu" : "ref", t, 1);
    m->dit = dit_new(m->dev, &m->model.config, RECOMPUTE_ALL, NULL, 1);
}

static bool can_attach(const struct import *m, const char *weight)
{
    for (int b = 0; b < m->dit->num_blocks; b++)
        for (int id = 0; id < LINEAR_COUNT; id++) {
            const struct linear *l = block_linear(&m->dit->block[b], (enum block_linear)id);
            for (int k = 0; k < l->parts; k++)
                if (strcmp(l->w[k].name, weight) == 0) return true;
        }
    return false;
}

/* Every pair has its weight, of a shape that fits. */
static void require_weight(const struct import *m, const struct peft_pair *p)
{
    struct ckpt_tensor w;
    char *name = io_path("%s.weight", p->module);
    if (!ckpt_find(m->base, m->kind, name, &w))
        err_stop(RC_DATA, "%s: the adapter of \"%s\" has no weight in %s: there is no %s",
                 m->peft.file, p->module, ckpt_path(m->base), name);
    if (w.ndim != 2 || w.dim[0] != p->b->dim[0] || w.dim[1] != p->a->dim[1])
        err_stop(
            RC_DATA,
            "%s: the adapter of \"%s\" is for a weight [%lld,%lld]; that of %s is [%lld,%lld]%s",
            m->peft.file, p->module, (long long)p->b->dim[0], (long long)p->a->dim[1],
            ckpt_path(m->base), (long long)w.dim[0], w.ndim > 1 ? (long long)w.dim[1] : 1,
            w.ndim == 2 ? "" : " and no matrix");
    if (!can_attach(m, name))
        err_stop(RC_CONFIG,
                 "%s: \"%s\" cannot have an adapter here: only the linears of the blocks can "
                 "(self_attn, cross_attn, ffn)",
                 m->peft.file, p->module);
    if (m->peft.rank > w.dim[0] || m->peft.rank > w.dim[1])
        err_stop(RC_CONFIG, "%s: rank %lld is above what \"%s\" [%lld,%lld] can have", m->peft.file,
                 (long long)m->peft.rank, p->module, (long long)w.dim[0], (long long)w.dim[1]);
    free(name);
}

/* ---- which pairs there must be ---------------------------------------------------------------*/
/* Without a list: the official eight of every block. */
static void compare_official(const struct import *m, struct names *missing)
{
    for (int64_t b = 0; b < m->model.config.num_layers; b++)
        for (int i = 0; lora_official_targets[i]; i++) {
            char module[64];
            snprintf(module, sizeof module, "blocks.%lld.%s", (long long)b,
                     lora_official_targets[i]);
            if (!peft_find(&m->peft, module)) note(missing, module);
        }
}

/* With one: what it names among the matrices of the base, and nothing else. */
static void compare_list(const struct import *m, struct names *missing, struct names *extra)
{
    static const char tail[] = ".weight";
    for (int i = 0; i < ckpt_num_tensors(m->base); i++) {
        const struct ckpt_tensor t = ckpt_tensor_at(m->base, i);
        const size_t n = strlen(t.name);
        if (t.kind != m->kind || t.ndim != 2 || n < sizeof tail ||
            strcmp(t.name + n - (sizeof tail - 1), tail))
            continue;
        char *module = io_path("%.*s", (int)(n - (sizeof tail - 1)), t.name);
        const bool want = peft_is_target(&m->peft, module),
                   have = peft_find(&m->peft, module) != NULL;
        if (want && !have) note(missing, module);
        if (have && !want) note(extra, module);
        free(module);
    }
}

static void require_pairs(const struct import *m)
{
    struct names missing = {0}, extra = {0};
    const bool list = peft_has_targets(&m->peft);
    if (list)
        compare_list(m, &missing, &extra);
    else
        compare_official(m, &missing);
    if (!missing.n && !extra.n) return;
    char *want =
        list ? io_path("those of target_modules")
             : io_path("8 in each of %lld blocks, %lld,", (long long)m->model.config.num_layers,
                       8 * (long long)m->model.config.num_layers);
    char *text = io_path("%s: %d pairs; %s were expected%s%s%s%s", m->peft.file, m->peft.num_pairs,
                         want, missing.n ? "; missing: " : "", missing.text,
                         extra.n ? "; not in target_modules: " : "", extra.text);
    if (!m->job->force) err_stop(RC_DATA, "%s; --force takes those that are there", text);
    log_warn("%s; those that are there are taken, as was asked for", text);
    free(want);
    free(text);
}

/* ---- targets ---------------------------------------------------------------------------------*/
static void add_target(struct lora_config *c, char *text)
{
    CHECK(c->targets.n < CFG_MAX_ITEMS, "more than %d targets", (int)CFG_MAX_ITEMS);
    c->targets.v[c->targets.n++] = text;
}

/* One linear of all blocks is its name; of some, "blocks.1[024].ffn.0" for each ten of blocks. */
static void add_targets(const struct import *m, struct lora_config *c, const char *linear)
{
    const int n = m->dit->num_blocks;
    bool on[MAX_BLOCKS] = {false};
    int count = 0;
    for (int b = 0; b < n; b++) {
        char module[64];
        snprintf(module, sizeof module, "blocks.%d.%s", b, linear);
        on[b] = peft_find(&m->peft, module) != NULL;
        count += on[b];
    }
    if (count == n) add_target(c, io_path("%s", linear));
    for (int ten = 0; ten < n && count < n; ten += 10) {
        char digits[11] = "", before[16] = "";
        for (int k = 0, at = 0; k < 10 && ten + k < n; k++)
            if (on[ten + k]) digits[at++] = (char)('0' + k);
        if (ten) snprintf(before, sizeof before, "%d", ten / 10);
        if (*digits) add_target(c, io_path("blocks.%s[%s].%s", before, digits, linear));
    }
}

/* Rank, alpha and patterns that name exactly the linears with a pair. */
static void make_config(struct import *m)
{
    m->config = (struct lora_config){.rank = m->peft.rank, .alpha = m->peft.alpha};
    for (int id = 0; id < LINEAR_COUNT; id++) {
        const struct linear *l = block_linear(&m->dit->block[0], (enum block_linear)id);
        for (int k = 0; k < l->parts; k++) {
            const char *name = l->w[k].name + strlen("blocks.0.");
            char *linear = io_path("%.*s", (int)(strlen(name) - strlen(".weight")), name);
            add_targets(m, &m->config, linear);
            free(linear);
        }
    }
}

/* ---- values ----------------------------------------------------------------------------------*/
static void put(const struct import *m, struct lora *l, const char *module, char half,
                const struct format_tensor *t)
{
    struct err e = {0};
    char *name = io_path("%s.lora_%c.weight", module, half);
    double *x = malloc((size_t)t->count * sizeof *x);
    CHECK(x, "out of memory");
    const struct param *p = lora_find(l, name);
    CHECK(p && p->dim[0] == t->dim[0] && p->dim[1] == t->dim[1], "%s has no place", name);
    format_read_f64(m->peft.tensors, t, 0, t->count, x, &e);
    err_raise(&e);
    for (int64_t i = 0; i < t->count; i++)
        if (!isfinite((float)x[i]))
            err_stop(RC_DATA, "%s: element %lld of \"%s\" is %g: not a finite f32 number",
                     m->peft.file, (long long)i, t->name, x[i]);
    lora_put(l, STATE_LORA, name, x);
    free(x);
    free(name);
}

static struct lora *make_adapters(const struct import *m)
{
    struct lora *l = lora_new(m->dev, m->dit, &m->config, (struct lora_opts){0});
    CHECK(l->num_params == 2 * m->peft.num_pairs, "%d tensors for %d pairs", l->num_params,
          m->peft.num_pairs);
    for (int i = 0; i < m->peft.num_pairs; i++) {
        put(m, l, m->peft.pair[i].module, 'A', m->peft.pair[i].a);
        put(m, l, m->peft.pair[i].module, 'B', m->peft.pair[i].b);
    }
    return l;
}

/* ---- writing ---------------------------------------------------------------------------------*/
static json_t *make_meta(const struct import *m)
{
    struct err e = {0};
    char hash[65];
    io_sha256_file(hash, m->peft.file, &e);
    err_raise(&e);
    json_t *meta =
        json_pack("{s:i, s:s, s:{s:s, s:s, s:s, s:s, s:s}}", "step", 0, "stage", "imported",
                  "provenance", "made_by", "osp convert adapter", "path", m->job->peft, "file",
                  strrchr(m->peft.file, '/') + 1, "sha256", hash, "adapter_config", m->peft.text);
    CHECK(meta, "the description of the result cannot be built");
    return meta;
}

static void write_adapters(const struct import *m, struct lora *l, const char *dir,
                           struct comm *world)
{
    struct mesh mesh;
    struct adapter_state state = {0};
    struct adapter_base base = adapter_base_of(m->base, m->kind);
    struct err e = {0};
    json_t *meta = make_meta(m);
    clip_init(&state.clip, 1);
    mesh_init(&mesh, world, (struct mesh_degrees){1, 1, 1});
    const struct ckpt_place place = {.dir = dir};
    struct lock lock = convert_lock(world, m->job->out, dir);
    adapter_save(l, &m->config, &mesh, &place, &base, &state, 1u << STATE_LORA, meta, &e);
    lock_release(&lock);
    err_raise(&e);
    log_info("%d adapters of rank %lld, alpha %g, for the %s weights of %s (step %lld): "
             "%s/iter_%09d",
             m->peft.num_pairs, (long long)m->peft.rank, m->peft.alpha,
             m->kind == STATE_EMA ? "averaged" : "raw", base.path, (long long)base.step, dir, 0);
    json_decref(meta);
    mesh_free(&mesh);
    adapter_base_free(&base);
}

void import_adapter(const struct import_job *job)
{
    struct import m = {.job = job};
    struct comm *world = comm_self(NULL);
    char *dir = convert_folder(job->out);
    peft_open(&m.peft, job->peft);
    open_base(&m, world);
    for (int i = 0; i < m.peft.num_pairs; i++) require_weight(&m, &m.peft.pair[i]);
    require_pairs(&m);
    make_config(&m);
    struct lora *l = make_adapters(&m);
    write_adapters(&m, l, dir, world);
    lora_free(l);
    for (int i = 0; i < m.config.targets.n; i++) free(m.config.targets.v[i]);
    dit_free(m.dit, m.dev);
    dev_close(m.dev);
    stored_model_free(&m.model);
    peft_close(&m.peft);
    ckpt_close(m.base);
    comm_free(world);
    free(dir);
}
