/* osp convert adapter: folders of peft become adapter checkpoints. Folders are made byte by byte
 * from the values of adapters that are made natively beside them; tests/peft_files.py has them made
 * by torch, safetensors and peft themselves. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "core/io.h"
#include "core/log.h"
#include "data/video.h"
#include "tests/check.h"
#include "tests/fixture.h"
#include "tests/foreign.h"
#include "tests/train_case.h"
#include "train/adapter.h"
#include "train/import_adapter.h"
#include "train/merge.h"
#include "train/stored_model.h"

enum { RANK = 2, MOST = 128 };

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
static char *base_of(const char *name, const char *more)
{
    char *dir = io_path("%s/%s", test_dir(), name), *out = io_path("output_dir=%s", dir);
    const char *extra[] = {out, "device=ref", more, NULL};
    if (!io_exists(dir)) comm_thread_run(2, save_base, extra);
    free(out);
    return dir;
}

static char *the_base(void) { return base_of("base", NULL); }

/* ---- adapters and folders --------------------------------------------------------------------*/
/* Values that every type of a file holds exactly, different for every tensor. */
static double value_of(const char *module, char half, int64_t i)
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
static void make_native(struct comm *world, void *arg)
{
    const struct native *n = arg;
    struct ckpt *c = ckpt_open(world, n->base, true);
    struct stored_model m;
    struct err e = {0};
    stored_model_read(&m, c, &e);
    err_raise(&e);
    const struct lora_config cfg = lora_make_config(RANK, n->alpha, n->targets);
    struct fixture f;
    fixture_open(&f, world,
                 &(struct fixture_opts){.device = "ref",
                                        .compute = DT_F32,
                                        .model = m.config,
                                        .batch = 1,
                                        .t = 1,
                                        .h = 2,
                                        .w = 2,
                                        .lora = &cfg});
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

struct folder {
    int n, made; /* tensors in use; values to free */
    struct foreign t[MOST];
    char name[MOST][96];
    double *x[MOST];
};

static struct foreign *add_tensor(struct folder *f, const char *name, enum format_dtype d,
                                  int64_t rows, int64_t cols)
{
    CHECK(f->n < MOST, "too many tensors");
    struct foreign *t = &f->t[f->n];
    snprintf(f->name[f->n], sizeof f->name[0], "%s", name);
    f->x[f->n] = calloc((size_t)(rows * cols) + 1, sizeof(double));
    f->made = f->n + 1;
    *t = (struct foreign){f->name[f->n], d, 2, {rows, cols}, f->x[f->n]};
    f->n++;
    return t;
}

static void add_pair(struct folder *f, const char *module, int64_t out, int64_t in,
                     const char *style, enum format_dtype d)
{
    for (int i = 0; i < 2; i++) {
        char *name = io_path("base_model.model.%s.lora_%c%s.weight", module, 'A' + i, style);
        struct foreign *t = add_tensor(f, name, d, i ? out : RANK, i ? RANK : in);
        for (int64_t k = 0; k < foreign_count(t); k++)
            f->x[f->n - 1][k] = value_of(module, (char)('A' + i), k);
        free(name);
    }
}

/* The official eight of blocks of width 32. */
static void add_official(struct folder *f, int blocks, const char *style, enum format_dtype d)
{
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < 8; i++) {
            char *module = io_path("blocks.%d.%s", b, lora_official_targets[i]);
            add_pair(f, module, 32, 32, style, d);
            free(module);
        }
}

/* Reversed, so that nothing relies on the order. */
static void write_folder(struct folder *f, const char *name, bool torch, const char *json)
{
    char *dir = io_path("%s/%s", test_dir(), name),
         *config = io_path("%s/adapter_config.json", dir),
         *file = io_path("%s/adapter_model.%s", name, torch ? "bin" : "safetensors");
    struct foreign t[MOST];
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

static void free_folder(struct folder *f)
{
    for (int i = 0; i < f->made; i++) free(f->x[i]);
    f->n = f->made = 0;
}

static const char plain_json[] =
    "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":6,\"bias\":\"none\",\"use_rslora\":false,"
    "\"rank_pattern\":{},\"modules_to_save\":null,\"init_lora_weights\":\"gaussian\","
    "\"target_modules\":\"{'self_attn.q', 'cross_attn.o'}\"}";

/* ---- equal to native ones --------------------------------------------------------------------*/
static struct ckpt *open_one(struct comm *world, const char *name)
{
    char *path = io_path("%s/%s", test_dir(), name);
    struct ckpt *c = ckpt_open(world, path, true);
    free(path);
    return c;
}

static bool same_hash(struct ckpt *a, struct ckpt *b, enum state_kind kind)
{
    char x[65], y[65];
    ckpt_hash(a, kind, x);
    ckpt_hash(b, kind, y);
    return strcmp(x, y) == 0;
}

static void expect_equal(struct comm *world, const char *name, const char *native, bool targets)
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

static void import_one(const char *peft, const char *base, const char *out, bool raw, bool force)
{
    char *from = io_path("%s/%s", test_dir(), peft), *to = io_path("%s/%s", test_dir(), out);
    import_adapter(&(struct import_job){from, base, to, raw, force});
    free(from);
    free(to);
}

/* Both folded into the base: equal, and not the base. */
static void expect_merged(struct comm *world, const char *base, const char *a, const char *b)
{
    const char *const name[] = {a, b};
    struct ckpt *c[2], *k = ckpt_open(world, base, true);
    for (int i = 0; i < 2; i++) {
        char *adapter = io_path("%s/%s", test_dir(), name[i]), *out = io_path("%s-merged", adapter);
        merge_adapter(&(struct merge_job){.base = base, .adapter = adapter, .out = out});
        c[i] = ckpt_open(world, out, true);
        free(adapter);
        free(out);
    }
    for (int kind = STATE_MASTER; kind <= STATE_EMA; kind += STATE_EMA) {
        EXPECT(same_hash(c[0], c[1], (enum state_kind)kind), "merged weights differ");
        EXPECT(!same_hash(c[0], k, (enum state_kind)kind), "nothing was merged");
    }
    ckpt_close(c[0]);
    ckpt_close(c[1]);
    ckpt_close(k);
}

static void make(const char *name, const char *base, enum state_kind kind,
                 const char *const *targets)
{
    char *out = io_path("%s/%s", test_dir(), name);
    struct native n = {base, out, kind, 6, targets};
    if (!io_exists(out)) comm_thread_run(1, make_native, &n);
    free(out);
}

static const struct {
    const char *name, *style;
    bool torch;
    enum format_dtype dtype;
} kinds[] = {{"st-plain", "", false, FORMAT_F32},
             {"st-default", ".default", false, FORMAT_F16},
             {"st-other", ".my_adapter", false, FORMAT_F64},
             {"bin-plain", "", true, FORMAT_BF16},
             {"bin-default", ".default", true, FORMAT_F32},
             {"bin-other", ".x", true, FORMAT_F64}};

static void test_equal(struct comm *world)
{
    char *base = the_base();
    make("native", base, STATE_EMA, lora_official_targets);
    for (int i = 0; i < 6; i++) {
        struct folder f = {0};
        char *out = io_path("%s-out", kinds[i].name);
        add_official(&f, 4, kinds[i].style, kinds[i].dtype);
        write_folder(&f, kinds[i].name, kinds[i].torch, plain_json);
        import_one(kinds[i].name, base, out, false, false);
        expect_equal(world, out, "native", true);
        free_folder(&f);
        free(out);
    }
    expect_merged(world, base, "bin-default-out", "native");
    make("native-raw", base, STATE_MASTER, lora_official_targets);
    import_one("st-plain", base, "raw-out", true, false);
    expect_equal(world, "raw-out", "native-raw", true);
    free(base);
}

/* Both files: safetensors counts. No lora_alpha: 2 r. */
static void test_defaults(struct comm *world)
{
    char *base = the_base();
    struct folder f = {0};
    add_official(&f, 4, "", FORMAT_F32);
    write_folder(&f, "both", false, "{\"target_modules\":null}");
    for (int i = 0; i < f.n; i++) f.x[i][0] = 99;
    write_folder(&f, "both", true, NULL);
    import_one("both", base, "both-out", false, false);
    struct ckpt *c = open_one(world, "both-out");
    struct adapter_info info;
    struct err e = {0};
    adapter_info_read(&info, c, &e);
    EXPECT(!e.code && info.config.rank == RANK && info.config.alpha == 2 * RANK, "alpha %g",
           info.config.alpha);
    struct ckpt_tensor t;
    double x = 99;
    EXPECT(ckpt_find(c, STATE_LORA, "blocks.3.cross_attn.v.lora_B.weight", &t), "a tensor");
    ckpt_read_f64(c, &t, 0, 1, &x);
    EXPECT(x == value_of("blocks.3.cross_attn.v", 'B', 0), "%g", x);
    adapter_info_free(&info);
    ckpt_close(c);
    free_folder(&f);
    free(base);
}

/* ---- other targets ---------------------------------------------------------------------------*/
/* The patterns of the checkpoint name exactly its tensors: adapters made by them load it. */
static void expect_loads(struct comm *world, const char *name, const char *base, int pairs,
                         const char *targets)
{
    struct ckpt *c = open_one(world, name), *k = ckpt_open(world, base, true);
    struct adapter_info info;
    struct stored_model m;
    struct err e = {0};
    adapter_info_read(&info, c, &e);
    stored_model_read(&m, k, &e);
    err_raise(&e);
    char text[512] = "";
    for (int i = 0; i < info.config.targets.n; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", i ? " " : "",
                 info.config.targets.v[i]);
    EXPECT(strcmp(text, targets) == 0, "%s: targets %s", name, text);
    struct fixture f;
    fixture_open(&f, world,
                 &(struct fixture_opts){.device = "ref",
                                        .compute = DT_F32,
                                        .model = m.config,
                                        .batch = 1,
                                        .t = 1,
                                        .h = 2,
                                        .w = 2,
                                        .lora = &info.config});
    EXPECT(f.lora->num_params == 2 * pairs, "%s: %d tensors", name, f.lora->num_params);
    adapter_load(c, f.lora, STATE_LORA, STATE_LORA);
    double x[32 * 48];
    lora_get(f.lora, STATE_LORA, f.lora->param[0].name, x);
    char *module = strndup(f.lora->param[0].name, (size_t)(strstr(f.lora->param[0].name, ".lora_") -
                                                           f.lora->param[0].name));
    for (int i = 0; i < 32 * RANK; i++) EXPECT(x[i] == value_of(module, 'A', i), "%s: %d", name, i);
    free(module);
    fixture_close(&f);
    adapter_info_free(&info);
    stored_model_free(&m);
    ckpt_close(c);
    ckpt_close(k);
}

#define LIST(list) "{\"r\":2,\"lora_alpha\":6,\"target_modules\":[" list "]}"
static void test_targets(struct comm *world)
{
    char *base = the_base(), *deep = base_of("deep", "model_config.num_layers=12");
    struct folder f = {0};
    add_pair(&f, "blocks.1.ffn.0", 48, 32, "", FORMAT_F32);
    add_pair(&f, "blocks.3.self_attn.q", 32, 32, "", FORMAT_F32);
    write_folder(&f, "few", false, LIST("\"blocks.3.self_attn.q\",\"blocks.1.ffn.0\""));
    import_one("few", base, "few-out", false, false);
    expect_loads(world, "few-out", base, 2, "blocks.[3].self_attn.q blocks.[1].ffn.0");
    free_folder(&f);
    add_official(&f, 4, "", FORMAT_F32);
    for (int b = 0; b < 4; b++) {
        char *module = io_path("blocks.%d.ffn.2", b);
        add_pair(&f, module, 32, 48, "", FORMAT_F32);
        free(module);
    }
    write_folder(&f, "more", true, plain_json);
    import_one("more", base, "more-out", false, false);
    expect_loads(world, "more-out", base, 36,
                 "self_attn.q self_attn.k self_attn.v self_attn.o cross_attn.q cross_attn.k "
                 "cross_attn.v cross_attn.o ffn.2");
    free_folder(&f);
    const int blocks[] = {0, 3, 9, 10, 11};
    for (int i = 0; i < 5; i++) {
        char *module = io_path("blocks.%d.cross_attn.k", blocks[i]);
        add_pair(&f, module, 32, 32, "", FORMAT_F32);
        free(module);
    }
    write_folder(&f, "tens", false,
                 "{\"r\":2,\"lora_alpha\":6,\"target_modules\":[\"k\"],\"exclude_modules\":"
                 "[\"self_attn.k\"],\"layers_to_transform\":[0,3,9,10,11]}");
    import_one("tens", deep, "tens-out", false, false);
    expect_loads(world, "tens-out", deep, 5, "blocks.[039].cross_attn.k blocks.1[01].cross_attn.k");
    write_folder(&f, "force", false, plain_json);
    log_set_level(LOG_WARN + 1);
    import_one("force", deep, "force-out", false, true);
    log_set_level(LOG_WARN);
    expect_loads(world, "force-out", deep, 5,
                 "blocks.[039].cross_attn.k blocks.1[01].cross_attn.k");
    free_folder(&f);
    free(base);
    free(deep);
}

/* ---- refusals --------------------------------------------------------------------------------*/
enum change {
    AS_IS,
    NO_A,
    NO_B,
    TWO_STYLES,
    TWO_STYLES_PAIR,
    TWO_ADAPTERS,
    OTHER_RANK,
    OTHER_RANK_B,
    WHOLE_NUMBERS,
    VECTOR,
    IS_NAN,
    IS_INF,
    TOO_LARGE,
    OTHER_PREFIX,
    MAGNITUDE,
    BASE_LAYER,
    NO_WEIGHT,
    EMBEDDING,
    NORM,
    WRONG_OUT,
    WRONG_IN,
    MISSING_ONE,
    MISSING_MANY,
    NOTHING
};

static void rename_tensor(struct folder *f, int i, const char *name)
{
    snprintf(f->name[i], sizeof f->name[i], "%s", name);
}

static void change_names(struct folder *f, enum change what)
{
#define M "base_model.model."
    const char *const to[] = {[TWO_STYLES_PAIR] = M "blocks.0.self_attn.q.lora_A.default.weight",
                              [OTHER_PREFIX] = "blocks.0.self_attn.q.lora_A.weight",
                              [MAGNITUDE] = M "blocks.0.self_attn.q.lora_magnitude_vector.weight",
                              [BASE_LAYER] = M "blocks.0.self_attn.q.base_layer.weight",
                              [NO_WEIGHT] = M "blocks.9.self_attn.q.lora_A.weight"};
    if (what == TWO_STYLES || what == TWO_ADAPTERS) {
        rename_tensor(f, 0, M "blocks.0.self_attn.q.lora_A.default.weight");
        rename_tensor(f, 1, M "blocks.0.self_attn.q.lora_B.default.weight");
        for (int i = 2; what == TWO_ADAPTERS && i < f->n; i++) {
            char *name = strdup(f->name[i]);
            *strrchr(name, '.') = 0;
            snprintf(f->name[i], sizeof f->name[i], "%s.other.weight", name);
            free(name);
        }
    } else if (what == NO_WEIGHT) {
        rename_tensor(f, 1, M "blocks.9.self_attn.q.lora_B.weight");
        rename_tensor(f, 0, to[what]);
    } else {
        rename_tensor(f, 0, to[what]);
    }
}

static void change_one(struct folder *f, enum change what)
{
    switch (what) {
    case NO_A:
    case NO_B:
        f->t[what == NO_B] = f->t[--f->n];
        return;
    case OTHER_RANK:
        f->t[2].dim[0] = 1;
        return;
    case OTHER_RANK_B:
        f->t[3].dim[1] = 1;
        return;
    case WHOLE_NUMBERS:
        f->t[2].dtype = FORMAT_I32;
        return;
    case VECTOR:
        f->t[2].ndim = 1;
        return;
    case IS_NAN:
        f->x[4][7] = NAN;
        return;
    case IS_INF:
        f->x[5][3] = INFINITY;
        return;
    case TOO_LARGE:
        f->t[4].dtype = FORMAT_F64;
        f->x[4][1] = 1e39;
        return;
    case EMBEDDING:
        add_pair(f, "head.head", 48, 32, "", FORMAT_F32);
        return;
    case NORM:
        add_pair(f, "blocks.0.norm3", 32, 32, "", FORMAT_F32);
        return;
    case WRONG_OUT:
        f->t[1].dim[0] = 31;
        return;
    case WRONG_IN:
        f->t[0].dim[1] = 31;
        return;
    default:
        change_names(f, what);
    }
}

static void change(struct folder *f, enum change what)
{
    if (what == AS_IS) return;
    if (what == NOTHING) free_folder(f);
    if (what == MISSING_ONE || what == MISSING_MANY) f->n -= what == MISSING_ONE ? 2 : 20;
    if (what < MISSING_ONE) change_one(f, what);
}

static const struct {
    enum change what;
    const char *json; /* NULL: as it should be; "": no file */
    int code;
    const char *text;
} refusals[] = {
    {AS_IS, "", RC_NOINPUT, "adapter_config.json is missing: give the folder that save_pretrained"},
    {AS_IS, "{\"r\":2,", RC_DATA, "adapter_config.json: line 1, column"},
    {AS_IS, "[]", RC_DATA, "adapter_config.json: line 1, column 1: is no object"},
    {AS_IS, "{\"r\":2,\"r\":2}", RC_DATA, "duplicate object key"},
    {AS_IS, "{\"r\":4}", RC_DATA, "r: 4, but the tensors of"},
    {AS_IS, "{\"r\":\"2\"}", RC_DATA, "r: \"2\", but the tensors of"},
    {AS_IS, "{\"lora_alpha\":0}", RC_DATA, "lora_alpha: 0 is no number above 0"},
    {AS_IS, "{\"lora_alpha\":\"64\"}", RC_DATA, "lora_alpha: \"64\" is no number above 0"},
    {AS_IS, "{\"peft_type\":\"LOHA\"}", RC_CONFIG, "peft_type: \"LOHA\" cannot be imported"},
    {AS_IS, "{\"bias\":\"all\"}", RC_CONFIG, "bias: \"all\" cannot be imported"},
    {AS_IS, "{\"use_rslora\":true}", RC_CONFIG, "use_rslora: true cannot be imported: the scale"},
    {AS_IS, "{\"use_dora\":true}", RC_CONFIG, "use_dora: true cannot be imported"},
    {AS_IS, "{\"lora_bias\":true}", RC_CONFIG, "lora_bias: true cannot be imported"},
    {AS_IS, "{\"fan_in_fan_out\":true}", RC_CONFIG, "fan_in_fan_out: true cannot be imported"},
    {AS_IS, "{\"rank_pattern\":{\"q\":4}}", RC_CONFIG, "rank_pattern: {\"q\":4} cannot be"},
    {AS_IS, "{\"alpha_pattern\":{\"q\":4}}", RC_CONFIG, "alpha_pattern: {\"q\":4} cannot be"},
    {AS_IS, "{\"modules_to_save\":[\"head\"]}", RC_CONFIG, "modules_to_save: [\"head\"] cannot"},
    {AS_IS, "{\"layer_replication\":[[0,4]]}", RC_CONFIG, "layer_replication: [[0,4]] cannot"},
    {AS_IS, "{\"init_lora_weights\":\"pissa\"}", RC_CONFIG, "init_lora_weights: \"pissa\" cannot"},
    {AS_IS, "{\"target_modules\":7}", RC_DATA, "target_modules: 7 is neither a list nor a text"},
    {NO_A, NULL, RC_DATA, "blocks.0.self_attn.q.lora_B.weight\" has no lora_A"},
    {NO_B, NULL, RC_DATA, "blocks.0.self_attn.q.lora_A.weight\" has no lora_B"},
    {TWO_STYLES, NULL, RC_DATA, "are names of two kinds or of two adapters"},
    {TWO_STYLES_PAIR, NULL, RC_DATA, "are names of two kinds or of two adapters"},
    {TWO_ADAPTERS, NULL, RC_DATA, "are names of two kinds or of two adapters"},
    {OTHER_RANK, NULL, RC_DATA, "A [1,32] and B [32,2] of \"blocks.0.self_attn.k\" do not have"},
    {OTHER_RANK_B, NULL, RC_DATA, "A [2,32] and B [32,1] of \"blocks.0.self_attn.k\" do not have"},
    {WHOLE_NUMBERS, NULL, RC_DATA, "blocks.0.self_attn.k.lora_A.weight\" is I32; adapters are F32"},
    {VECTOR, NULL, RC_DATA, "blocks.0.self_attn.k.lora_A.weight\" has 1 dimensions"},
    {IS_NAN, NULL, RC_DATA,
     "element 7 of \"base_model.model.blocks.0.self_attn.v.lora_A.weight\" is nan"},
    {IS_INF, NULL, RC_DATA,
     "element 3 of \"base_model.model.blocks.0.self_attn.v.lora_B.weight\" is inf"},
    {TOO_LARGE, NULL, RC_DATA, "is 1e+39: not a finite f32 number"},
    {OTHER_PREFIX, NULL, RC_DATA,
     "\"blocks.0.self_attn.q.lora_A.weight\" is no A or B of a linear"},
    {MAGNITUDE, NULL, RC_DATA, "lora_magnitude_vector.weight\" is no A or B of a linear"},
    {BASE_LAYER, NULL, RC_DATA, "base_layer.weight\" is no A or B of a linear"},
    {NO_WEIGHT, NULL, RC_DATA, "the adapter of \"blocks.9.self_attn.q\" has no weight in"},
    {EMBEDDING, NULL, RC_CONFIG, "\"head.head\" cannot have an adapter here"},
    {NORM, NULL, RC_DATA, "that of"},
    {WRONG_OUT, NULL, RC_DATA, "\"blocks.0.self_attn.q\" is for a weight [31,32]; that of"},
    {WRONG_IN, NULL, RC_DATA, "\"blocks.0.self_attn.q\" is for a weight [32,31]; that of"},
    {MISSING_ONE, NULL, RC_DATA,
     "31 pairs; 8 in each of 4 blocks, 32, were expected; missing: blocks.3.cross_attn.o; --force"},
    {MISSING_MANY, NULL, RC_DATA,
     "blocks.3.self_attn.q, blocks.3.self_attn.k, blocks.3.self_attn.v"},
    {AS_IS, LIST("\"self_attn.q\",\"ffn.0\""), RC_DATA,
     "those of target_modules were expected; missing: blocks.0.ffn.0, blocks.1.ffn.0, "
     "blocks.2.ffn.0, blocks.3.ffn.0; not in target_modules: blocks.0.self_attn.k"},
    {NOTHING, NULL, RC_DATA, "holds no adapters"},
};

static void try_import(void *arg)
{
    char *base = the_base();
    import_one(arg, base, "refused-out", false, false);
    free(base);
}

static void test_refusals(struct comm *world)
{
    (void)world;
    char *out = io_path("%s/refused-out", test_dir()), *base = the_base();
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        struct folder f = {0};
        char name[32];
        snprintf(name, sizeof name, "refused%zu", i);
        add_official(&f, 4, "", FORMAT_F32);
        change(&f, refusals[i].what);
        const char *json = refusals[i].json;
        write_folder(&f, name, i % 2, !json ? plain_json : *json ? json : NULL);
        expect_stop(refusals[i].text, refusals[i].code, try_import, name);
        EXPECT(!io_exists(out), "%s: something was written", refusals[i].text);
        free_folder(&f);
    }
    free(out);
    free(base);
}

struct pair_of {
    const char *peft, *base, *out;
};

static void import_pair(void *arg)
{
    const struct pair_of *p = arg;
    import_one(p->peft, p->base, p->out, false, false);
}

static void merge_pair(void *arg)
{
    const struct pair_of *p = arg;
    merge_adapter(&(struct merge_job){.base = p->base, .adapter = p->peft, .out = p->out});
}

/* A base of other sizes, one of other weights, one that is none, a result that is there. */
static void test_bases(struct comm *world)
{
    (void)world;
    char *base = the_base(), *wide = base_of("wide", "model_config.dim=48"),
         *other = base_of("other", "seed=8"), *in = io_path("%s/wrong-out", test_dir()),
         *no = io_path("%s/wrong-merged", test_dir());
    struct folder f = {0};
    add_official(&f, 4, "", FORMAT_F32);
    write_folder(&f, "wrong", false, plain_json);
    struct pair_of p = {"wrong", wide, "wrong-out"};
    expect_stop("is for a weight [32,32]; that of", RC_DATA, import_pair, &p);
    p.base = "/nowhere";
    expect_stop("/nowhere", RC_NOINPUT, import_pair, &p);
    EXPECT(!io_exists(in), "something was written");
    p.base = base;
    import_pair(&p);
    expect_stop("wrong-out/checkpoints exists", RC_CANTCREAT, import_pair, &p);
    struct pair_of m = {in, other, no};
    expect_stop("was made for the ema weights of", RC_CONFIG, merge_pair, &m);
    p.base = in, p.out = "again";
    expect_stop("holds no model; BASE is the checkpoint", RC_CONFIG, import_pair, &p);
    struct pair_of none = {"nothing-here", base, "again"};
    expect_stop("nothing-here/adapter_config.json is missing", RC_NOINPUT, import_pair, &none);
    char *file = io_path("%s/wrong/adapter_model.safetensors", test_dir());
    struct err e = {0};
    io_unlink(file, &e);
    none.peft = "wrong";
    expect_stop("has neither adapter_model.safetensors nor", RC_NOINPUT, import_pair, &none);
    char *texts[] = {base, wide, other, in, no, file};
    for (int i = 0; i < 6; i++) free(texts[i]);
    free_folder(&f);
}

/* ---- the program -----------------------------------------------------------------------------*/
static const char *build(void) { return getenv("BUILD") ? getenv("BUILD") : "build/release"; }

static int run(const char *cmd, char said[1 << 14])
{
    FILE *p = popen(cmd, "r");
    said[fread(said, 1, (1 << 14) - 1, p)] = 0;
    const int status = pclose(p);
    return status < 0 ? -1 : WEXITSTATUS(status);
}

static void sample(const char *base, const char *lora, const char *out)
{
    char said[1 << 14];
    char *cmd = io_path("mpirun -n 1 %s/osp sample configs/sample/tiny.yaml checkpoint=%s %s%s "
                        "output_dir=%s/%s num_frames=null height=null width=null "
                        "scheduler_config.num_inference_steps=2 2>&1 </dev/null",
                        build(), base, lora ? "lora=" : "", lora ? lora : "", test_dir(), out);
    EXPECT(run(cmd, said) == 0, "%s: %s", cmd, said);
    EXPECT(!lora || strstr(said, "raw weights of"), "%s", said);
    free(cmd);
}

/* By its pixels: the files name the adapters that made them. */
static bool same_video(const char *a, const char *b)
{
    enum { BYTES = 3 * 4 * 16 * 16 };
    const int64_t index[] = {0, 1, 2, 3};
    const char *const name[] = {a, b};
    uint8_t x[2][BYTES];
    for (int i = 0; i < 2; i++) {
        struct err e = {0};
        char *path = io_path("%s/%s/video_000000_00.mp4", test_dir(), name[i]);
        EXPECT(video_read(path, index, 4, (struct video_crop){0}, 16, 16, x[i], &e), "%s", e.msg);
        free(path);
    }
    return memcmp(x[0], x[1], BYTES) == 0;
}

/* As a user types it. */
static void test_program(struct comm *world)
{
    if (system("command -v mpirun >/dev/null 2>&1")) {
        test_skip("mpirun is missing");
        return;
    }
    char *base = the_base(), said[1 << 14];
    struct folder f = {0};
    add_official(&f, 4, ".default", FORMAT_F32);
    write_folder(&f, "typed", true, plain_json);
    make("native", base, STATE_EMA, lora_official_targets);
    const char *d = test_dir();
    char *cmd[] = {
        io_path("%s/osp convert adapter %s/typed %s %s/typed-out 2>&1", build(), d, base, d),
        io_path("%s/osp convert merge %s %s/typed-out %s/typed-merged 2>&1", build(), base, d, d),
        io_path("%s/osp inspect %s/typed-out --verify 2>&1", build(), d),
        io_path("%s/osp convert adapter %s/typed %s 2>&1", build(), d, base),
        io_path("%s/osp convert adapter %s/typed %s %s/x --ema 2>&1", build(), d, base, d),
        io_path("%s/typed-out", d),
        io_path("%s/native", d),
        io_path("%s/typed-merged", d)};
    EXPECT(run(cmd[0], said) == 0 && strstr(said, "32 adapters of rank 2, alpha 6"), "%s", said);
    EXPECT(strstr(said, "target_modules is one text and not a list"), "%s", said);
    EXPECT(run(cmd[1], said) == 0 && strstr(said, "32 adapters"), "%s", said);
    EXPECT(run(cmd[2], said) == 0 && strstr(said, "adapters   rank 2, alpha 6, scale 3"), "%s",
           said);
    for (int i = 3; i < 5; i++)
        EXPECT(run(cmd[i], said) == RC_USAGE && strstr(said, "PEFT_DIR BASE OUT"), "%s", said);
    expect_equal(world, "typed-out", "native", true);
    sample(base, NULL, "video-base");
    sample(base, cmd[5], "video-import");
    sample(base, cmd[6], "video-native");
    sample(cmd[7], NULL, "video-merged");
    EXPECT(same_video("video-import", "video-native"), "other videos than the native adapters'");
    EXPECT(!same_video("video-import", "video-base"), "the adapters change nothing");
    EXPECT(!same_video("video-merged", "video-base"), "merging changes nothing");
    for (int i = 0; i < 8; i++) free(cmd[i]);
    free_folder(&f);
    free(base);
}

/* ---- files of the real libraries -------------------------------------------------------------*/
/* Runs tests/peft_files.py; false and a skip where the modules are missing. */
static bool python(const char *modules, const char *what, const char *folder)
{
    static const char *const list[] = {"build/venv/bin/python", "build/venv-test/bin/python",
                                       "python3"};
    for (int i = 0; i < 3; i++) {
        char *probe = io_path("%s -c 'import %s' >/dev/null 2>&1", list[i], modules),
             *cmd = io_path("%s tests/peft_files.py %s %s 2>&1", list[i], what, folder);
        const bool fits = system(probe) == 0;
        char said[1 << 14] = "";
        if (fits) EXPECT(run(cmd, said) == 0, "%s: %s", cmd, said);
        free(probe);
        free(cmd);
        if (fits) return true;
    }
    test_skip("no python with %s (python3 -m venv build/venv && build/venv/bin/pip install "
              "torch==2.13.0 numpy safetensors peft)",
              modules);
    return false;
}

static void expect_json(const char *file, const char *values, int least)
{
    char *path = io_path("%s/%s", test_dir(), file), *json = io_path("%s/%s", test_dir(), values);
    struct err e = {0};
    json_t *want = json_load_file(json, 0, NULL);
    struct format *f = format_open(path, &e);
    EXPECT(f && want && format_num_tensors(f) >= least, "%s: %s", file, e.msg);
    for (int i = 0; f && i < format_num_tensors(f); i++) {
        const struct format_tensor *t = format_tensor_at(f, i);
        const json_t *v = json_object_get(want, t->name);
        double *x = malloc((size_t)t->count * sizeof *x + 1);
        format_read_f64(f, t, 0, t->count, x, &e);
        bool same = !e.code && v && (int64_t)json_array_size(v) == t->count;
        for (int64_t k = 0; same && k < t->count; k++)
            same = x[k] == json_number_value(json_array_get(v, (size_t)k));
        EXPECT(same, "%s: \"%s\" %s", file, t->name, e.msg);
        free(x);
    }
    format_close(f);
    json_decref(want);
    free(json);
    free(path);
}

static void test_libraries(struct comm *world)
{
    (void)world;
    if (!python("torch, safetensors.torch", "tensors", test_dir())) return;
    expect_json("tensors.safetensors", "tensors.json", 8);
    expect_json("tensors.bin", "tensors.json", 13);
    expect_json("state.bin", "state.json", 7);
    const char *const bad[][2] = {{"old.bin", "is in torch's form before the zip files"},
                                  {"module.bin", "its pickle asks for torch.nn.modules.linear"}};
    for (int i = 0; i < 2; i++) {
        struct err e = {0};
        char *path = io_path("%s/%s", test_dir(), bad[i][0]);
        EXPECT(!format_open(path, &e) && strstr(e.msg, bad[i][1]), "%s", e.msg);
        free(path);
    }
}

/* The matrices of the averaged weights, by module. */
static void write_base(struct ckpt *c)
{
    struct folder *f = calloc(1, sizeof *f);
    struct bytes b = {0};
    for (int i = 0; i < ckpt_num_tensors(c); i++) {
        const struct ckpt_tensor t = ckpt_tensor_at(c, i);
        const size_t n = strlen(t.name);
        if (t.kind != STATE_EMA || t.ndim != 2 || strncmp(t.name, "blocks.", 7) || n < 8 ||
            strcmp(t.name + n - 7, ".weight"))
            continue;
        char *module = strndup(t.name, n - 7);
        add_tensor(f, module, FORMAT_F32, t.dim[0], t.dim[1]);
        ckpt_read_f64(c, &t, 0, t.count, f->x[f->n - 1]);
        free(module);
    }
    safetensors_file(&b, f->t, f->n);
    free(bytes_write(&b, "base.safetensors"));
    bytes_free(&b);
    free_folder(f);
    free(f);
}

/* W + alpha/r B A of ours, in f32, against peft's, in f64. */
static void compare_merged(struct comm *world)
{
    struct ckpt *c = open_one(world, "peft-merged");
    char *path = io_path("%s/merged.safetensors", test_dir());
    struct err e = {0};
    struct format *f = format_open(path, &e);
    EXPECT(f && format_num_tensors(f) == 40, "%s", e.msg);
    double worst = 0;
    for (int i = 0; f && i < format_num_tensors(f); i++) {
        const struct format_tensor *t = format_tensor_at(f, i);
        struct ckpt_tensor w;
        char *name = io_path("%s.weight", t->name);
        double *x = malloc((size_t)t->count * sizeof *x), *y = malloc((size_t)t->count * sizeof *y);
        const bool found = ckpt_find(c, STATE_EMA, name, &w) && w.count == t->count;
        EXPECT(found, "%s", name);
        if (found) {
            format_read_f64(f, t, 0, t->count, x, &e);
            ckpt_read_f64(c, &w, 0, w.count, y);
            expect_close(name, y, x, t->count, 1e-6);
            const double off = max_error(y, x, t->count, NULL);
            if (off > worst) worst = off;
        }
        free(x);
        free(y);
        free(name);
    }
    printf("    merged against peft: %.1e\n", worst);
    format_close(f);
    free(path);
    ckpt_close(c);
}

static void test_peft(struct comm *world)
{
    char *base = the_base(), *out = io_path("%s/plain-out", test_dir()),
         *merged = io_path("%s/peft-merged", test_dir());
    struct ckpt *c = ckpt_open(world, base, true);
    write_base(c);
    if (python("torch, safetensors.torch, peft", "peft", test_dir())) {
        static const char *const name[] = {"plain", "bin", "official", "bf16"};
        struct ckpt *k[4];
        for (int i = 0; i < 4; i++) {
            char *to = io_path("%s-out", name[i]);
            import_one(name[i], base, to, false, false);
            k[i] = open_one(world, to);
            EXPECT(ckpt_num_tensors(k[i]) == 64 && same_hash(k[i], k[0], STATE_LORA) == (i < 3),
                   "%s: other values", name[i]);
            free(to);
        }
        for (int i = 0; i < 4; i++) ckpt_close(k[i]);
        merge_adapter(&(struct merge_job){.base = base, .adapter = out, .out = merged});
        compare_merged(world);
    }
    ckpt_close(c);
    free(base);
    free(out);
    free(merged);
}

int main(int argc, char **argv)
{
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);
    setenv("OMP_NUM_THREADS", "1", 0);
    const struct test tests[] = {
        {.name = "both key styles in both formats are the native adapters", .run = test_equal},
        {.name = "safetensors before bin; alpha is 2 r", .run = test_defaults},
        {.name = "lists, parts and more than the official targets", .run = test_targets},
        {.name = "what is not imported is named, and nothing is written", .run = test_refusals},
        {.name = "bases and results that do not fit", .run = test_bases},
        {.name = "imported, merged, sampled, as typed", .run = test_program, .flags = TEST_SLOW},
        {.name = "files of torch and safetensors", .run = test_libraries, .flags = TEST_SLOW},
        {.name = "adapters of peft, merged as peft merges", .run = test_peft, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
