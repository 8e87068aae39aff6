/* osp convert adapter: folders of peft become adapter checkpoints. Folders are made byte by byte
 * from the values of adapters that are made natively beside them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/lock.h"
#include "core/log.h"
#include "tests/lora_case.h"
#include "tests/check.h"
#include "tests/fixture.h"
#include "tests/import_case.h"
#include "train/adapter.h"
#include "train/import_adapter.h"
#include "train/merge.h"
#include "train/stored_model.h"

/* ---- equal to native ones --------------------------------------------------------------------*/
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
    make_native("native", base, STATE_EMA, lora_official_targets);
    for (int i = 0; i < 6; i++) {
        struct folder f = {0};
        char *out = io_path("%s-out", kinds[i].name);
        add_official(&f, 4, kinds[i].style, kinds[i].dtype);
        write_folder(&f, kinds[i].name, kinds[i].torch, import_json);
        import_one(kinds[i].name, base, out, false, false);
        expect_equal(world, out, "native", true);
        free_folder(&f);
        free(out);
    }
    expect_merged(world, base, "bin-default-out", "native");
    make_native("native-raw", base, STATE_MASTER, lora_official_targets);
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
    EXPECT(!e.code && info.config.rank == IMPORT_RANK && info.config.alpha == 2 * IMPORT_RANK,
           "alpha %g", info.config.alpha);
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
    const struct fixture_opts least = lora_least(&m.config, &info.config);
    fixture_open(&f, world, &least);
    EXPECT(f.lora->num_params == 2 * pairs, "%s: %d tensors", name, f.lora->num_params);
    adapter_load(c, f.lora, STATE_LORA, STATE_LORA);
    double x[32 * 48];
    lora_get(f.lora, STATE_LORA, f.lora->param[0].name, x);
    char *module = strndup(f.lora->param[0].name, (size_t)(strstr(f.lora->param[0].name, ".lora_") -
                                                           f.lora->param[0].name));
    for (int i = 0; i < 32 * IMPORT_RANK; i++)
        EXPECT(x[i] == value_of(module, 'A', i), "%s: %d", name, i);
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
    write_folder(&f, "more", true, import_json);
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
    write_folder(&f, "force", false, import_json);
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
    {AS_IS, "{\"target_modules\":[\"q\",7]}", RC_DATA, "target_modules: 7 is no text"},
    {AS_IS, "{\"layers_to_transform\":[\"3\"]}", RC_DATA,
     "layers_to_transform: \"3\" is no whole number"},
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
        write_folder(&f, name, i % 2, !json ? import_json : *json ? json : NULL);
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

/* As another process that writes to this folder. */
static struct lock hold(const char *dir)
{
    struct err e = {0};
    struct lock lock;
    char *path = io_path("%s/lock", dir), holder[32];
    io_mkdir(dir, &e);
    err_raise(&e);
    CHECK(lock_take(&lock, path, holder, &e), "%s: %s", path, e.msg);
    free(path);
    return lock;
}

/* A base of other sizes, one of other weights, one that is none, a result that is there. */
static void test_bases(struct comm *world)
{
    (void)world;
    struct err e = {0};
    char *base = the_base(), *wide = base_of("wide", "model_config.dim=48"),
         *other = base_of("other", "seed=8"), *in = io_path("%s/wrong-out", test_dir()),
         *no = io_path("%s/wrong-merged", test_dir());
    struct folder f = {0};
    add_official(&f, 4, "", FORMAT_F32);
    write_folder(&f, "wrong", false, import_json);
    struct pair_of p = {"wrong", wide, "wrong-out"};
    expect_stop("is for a weight [32,32]; that of", RC_DATA, import_pair, &p);
    p.base = "/nowhere";
    expect_stop("/nowhere", RC_NOINPUT, import_pair, &p);
    EXPECT(!io_exists(in), "something was written");
    p.base = base;
    char *rest = io_path("%s/checkpoints/iter_000000000.tmp/x", in);
    io_mkdir(rest, &e); /* of a job that was killed */
    err_raise(&e);
    struct lock lock = hold(in);
    expect_stop("is in use by another run", RC_CANTCREAT, import_pair, &p);
    lock_release(&lock);
    import_pair(&p);
    char *left = io_path("%s/lock", in);
    EXPECT(!io_exists(left) && !io_exists(rest), "%s or %s stays", left, rest);
    free(left);
    free(rest);
    p.out = "base/checkpoints";
    expect_stop("holds the checkpoints of a run", RC_CANTCREAT, import_pair, &p);
    p.out = "wrong-out/checkpoints/iter_000000000";
    expect_stop("holds the checkpoints of a run", RC_CANTCREAT, import_pair, &p);
    char *foreign = io_path("%s/web", test_dir());
    io_mkdir(foreign, &e);
    free(foreign);
    foreign = io_path("%s/web/manifest.json", test_dir());
    io_write_file(foreign, "{\"name\": \"web\"}", 15, &e);
    free(foreign);
    err_raise(&e);
    p.out = "web/out"; /* not ours */
    import_pair(&p);
    p.out = "base/checkpoints/a/b"; /* rotation would meet it */
    expect_stop("base/checkpoints holds the checkpoints of a run", RC_CANTCREAT, import_pair, &p);
    p.out = "wrong-out/checkpoints/iter_000000000/a/";
    expect_stop("iter_000000000 holds the checkpoints of a run", RC_CANTCREAT, import_pair, &p);
    p.out = "wrong-out";
    expect_stop("wrong-out/checkpoints exists", RC_CANTCREAT, import_pair, &p);
    struct pair_of m = {in, other, no};
    expect_stop("was made for the ema weights of", RC_CONFIG, merge_pair, &m);
    m.base = base;
    lock = hold(no);
    expect_stop("is in use by another run", RC_CANTCREAT, merge_pair, &m);
    lock_release(&lock);
    p.base = in, p.out = "again";
    expect_stop("holds no model; BASE is the checkpoint", RC_CONFIG, import_pair, &p);
    struct pair_of none = {"nothing-here", base, "again"};
    expect_stop("nothing-here/adapter_config.json is missing", RC_NOINPUT, import_pair, &none);
    char *file = io_path("%s/wrong/adapter_model.safetensors", test_dir());
    io_unlink(file, &e);
    none.peft = "wrong";
    expect_stop("has neither adapter_model.safetensors nor", RC_NOINPUT, import_pair, &none);
    char *texts[] = {base, wide, other, in, no, file};
    for (int i = 0; i < 6; i++) free(texts[i]);
    free_folder(&f);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "both key styles in both formats are the native adapters", .run = test_equal},
        {.name = "safetensors before bin; alpha is 2 r", .run = test_defaults},
        {.name = "lists, parts and more than the official targets", .run = test_targets},
        {.name = "what is not imported is named, and nothing is written", .run = test_refusals},
        {.name = "bases and results that do not fit", .run = test_bases},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
