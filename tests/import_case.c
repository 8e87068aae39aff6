#include "tests/lora_case.h"
#include "tests/import_case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/fixture.h"
#include "tests/train_case.h"
#include "train/adapter.h"
#include "train/import_adapter.h"
#include "train/stored_model.h"

/* ---- bases -----------------------------------------------------------------------------------*/
static void save_base(struct comm *world, void *arg)
{
    struct train_case *c = calloc(1, sizeof *c);
    double loss;
    train_case_open(c, world, arg);
    train_case_steps(c, 1, &loss);
    resume_save(&c->t, &c->l);
    train_case_close(c);
    free(c);
}

/* A run of one step, made once: test_dir()/name. */
char *base_of(const char *name, const char *more)
{
    char *dir = io_path("%s/%s", test_dir(), name), *out = io_path("output_dir=%s", dir);
    const char *extra[] = {out, "device=ref", more, NULL};
    if (!io_exists(dir)) comm_thread_run(2, save_base, extra);
    free(out);
    return dir;
}

char *the_base(void) { return base_of("base", NULL); }

/* ---- adapters and folders --------------------------------------------------------------------*/
/* Values that every type of a file holds exactly, different for every tensor. */
double value_of(const char *module, char half, int64_t i)
{
    const uint64_t h = (rng_hash(module) + (uint64_t)half) * 0x9e3779b97f4a7c15u +
                       (uint64_t)i * 0xd1342543de82ef95u;
    return ((double)(h >> 57) - 64) / 16;
}

static void fill(struct lora *l)
{
    for (int i = 0; i < l->num_params; i++) {
        const struct param *p = &l->param[i];
        const int64_t n = param_count(p);
        char *module = strndup(p->name, (size_t)(strstr(p->name, ".lora_") - p->name));
        double *x = malloc((size_t)n * sizeof *x);
        for (int64_t k = 0; k < n; k++) x[k] = value_of(module, strstr(p->name, ".lora_")[6], k);
        lora_put(l, STATE_LORA, p->name, x);
        free(x);
        free(module);
    }
}

struct native {
    const char *base, *out;
    enum state_kind kind;
    double alpha;
    const char *const *targets;
};

/* Adapters as a LoRA run saves them. */
static void save_native(struct comm *world, void *arg)
{
    const struct native *n = arg;
    struct ckpt *c = ckpt_open(world, n->base, true);
    struct stored_model m;
    struct err e = {0};
    stored_model_read(&m, c, &e);
    err_raise(&e);
    const struct lora_config cfg = lora_make_config(IMPORT_RANK, n->alpha, n->targets);
    struct fixture f;
    const struct fixture_opts least = lora_least(&m.config, &cfg);
    fixture_open(&f, world, &least);
    fill(f.lora);
    char *dir = io_path("%s/checkpoints", n->out);
    struct adapter_base b = adapter_base_of(c, n->kind);
    struct adapter_state s = {0};
    clip_init(&s.clip, 1);
    json_t *meta = json_pack("{s:i, s:s}", "step", 0, "stage", "rl");
    const struct ckpt_place place = {.dir = dir};
    adapter_save(f.lora, &cfg, &f.mesh, &place, &b, &s, 1u << STATE_LORA, meta, &e);
    err_raise(&e);
    json_decref(meta);
    adapter_base_free(&b);
    stored_model_free(&m);
    ckpt_close(c);
    fixture_close(&f);
    free(dir);
}

struct foreign *add_tensor(struct folder *f, const char *name, enum format_dtype d, int64_t rows,
                           int64_t cols)
{
    CHECK(f->n < IMPORT_MOST, "too many tensors");
    struct foreign *t = &f->t[f->n];
    snprintf(f->name[f->n], sizeof f->name[0], "%s", name);
    f->x[f->n] = calloc((size_t)(rows * cols) + 1, sizeof(double));
    f->made = f->n + 1;
    *t = (struct foreign){f->name[f->n], d, 2, {rows, cols}, f->x[f->n]};
    f->n++;
    return t;
}

void add_pair(struct folder *f, const char *module, int64_t out, int64_t in, const char *style,
              enum format_dtype d)
{
    for (int i = 0; i < 2; i++) {
        char *name = io_path("base_model.model.%s.lora_%c%s.weight", module, 'A' + i, style);
        struct foreign *t = add_tensor(f, name, d, i ? out : IMPORT_RANK, i ? IMPORT_RANK : in);
        for (int64_t k = 0; k < foreign_count(t); k++)
            f->x[f->n - 1][k] = value_of(module, (char)('A' + i), k);
        free(name);
    }
}

/* The official eight of blocks of width 32. */
void add_official(struct folder *f, int blocks, const char *style, enum format_dtype d)
{
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < 8; i++) {
            char *module = io_path("blocks.%d.%s", b, lora_official_targets[i]);
            add_pair(f, module, 32, 32, style, d);
            free(module);
        }
}

/* Reversed, so that nothing relies on the order. */
void write_folder(struct folder *f, const char *name, bool torch, const char *json)
{
    char *dir = io_path("%s/%s", test_dir(), name),
         *config = io_path("%s/adapter_config.json", dir),
         *file = io_path("%s/adapter_model.%s", name, torch ? "bin" : "safetensors");
    struct foreign t[IMPORT_MOST];
    struct bytes b = {0};
    struct err e = {0};
    for (int i = 0; i < f->n; i++) t[i] = f->t[f->n - 1 - i];
    io_mkdir(dir, &e);
    (torch ? torch_file : safetensors_file)(&b, t, f->n);
    free(bytes_write(&b, file));
    if (json) io_write_file(config, json, strlen(json), &e);
    EXPECT(!e.code, "%s", e.msg);
    bytes_free(&b);
    free(dir);
    free(config);
    free(file);
}

void free_folder(struct folder *f)
{
    for (int i = 0; i < f->made; i++) free(f->x[i]);
    f->n = f->made = 0;
}

const char import_json[] =
    "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":6,\"bias\":\"none\",\"use_rslora\":false,"
    "\"rank_pattern\":{},\"modules_to_save\":null,\"init_lora_weights\":\"gaussian\","
    "\"target_modules\":\"{'self_attn.q', 'cross_attn.o'}\"}";

/* ---- equal to native ones --------------------------------------------------------------------*/
struct ckpt *open_one(struct comm *world, const char *name)
{
    char *path = io_path("%s/%s", test_dir(), name);
    struct ckpt *c = ckpt_open(world, path, true);
    free(path);
    return c;
}

bool same_hash(struct ckpt *a, struct ckpt *b, enum state_kind kind)
{
    char x[65], y[65];
    ckpt_hash(a, kind, x);
    ckpt_hash(b, kind, y);
    return strcmp(x, y) == 0;
}

void expect_equal(struct comm *world, const char *name, const char *native, bool targets)
{
    struct ckpt *a = open_one(world, name), *b = open_one(world, native);
    const json_t *x = ckpt_meta(a), *y = ckpt_meta(b), *from = json_object_get(x, "provenance");
    EXPECT(same_hash(a, b, STATE_LORA) && ckpt_num_tensors(a) == ckpt_num_tensors(b),
           "%s: other tensors than %s", name, native);
    EXPECT(!ckpt_has(a, STATE_LORA_EMA) && ckpt_step(a) == 0, "%s: EMA, step", name);
    EXPECT(!targets || json_equal(json_object_get(x, "lora"), json_object_get(y, "lora")),
           "%s: other description", name);
    EXPECT(json_equal(json_object_get(x, "base"), json_object_get(y, "base")), "%s: base", name);
    EXPECT(json_equal(json_object_get(x, "state"), json_object_get(y, "state")), "%s: state", name);
    char hash[65], *file = io_path("%s/%s", json_string_value(json_object_get(from, "path")),
                                   json_string_value(json_object_get(from, "file")));
    struct err e = {0};
    io_sha256_file(hash, file, &e);
    EXPECT(!e.code && strcmp(hash, json_string_value(json_object_get(from, "sha256"))) == 0 &&
               strstr(json_string_value(json_object_get(from, "adapter_config")), "lora_alpha"),
           "%s: provenance %s", name, e.msg);
    free(file);
    ckpt_close(a);
    ckpt_close(b);
}

void import_one(const char *peft, const char *base, const char *out, bool raw, bool force)
{
    char *from = io_path("%s/%s", test_dir(), peft), *to = io_path("%s/%s", test_dir(), out);
    import_adapter(&(struct import_job){from, base, to, raw, force});
    free(from);
    free(to);
}

/* Both folded into the base: equal, and not the base. */
void make_native(const char *name, const char *base, enum state_kind kind,
                 const char *const *targets)
{
    char *out = io_path("%s/%s", test_dir(), name);
    struct native n = {base, out, kind, 6, targets};
    if (!io_exists(out)) comm_thread_run(1, save_native, &n);
    free(out);
}
