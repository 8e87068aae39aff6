/* Adapter checkpoints: written by N ranks and read by M, killed at every file operation, tied to
 * their base by a hash; training goes on with the same bits; folding into the base. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/log.h"
#include "tests/check.h"
#include "tests/problem.h"
#include "tests/process.h"
#include "train/adapter.h"
#include "train/inspect.h"
#include "train/merge.h"

enum { ALL_KINDS = 1 << STATE_LORA | 1 << STATE_LORA_M | 1 << STATE_LORA_V | 1 << STATE_LORA_EMA };
static const char *const some[] = {"self_attn.[qkv]", "blocks.1.cross_attn.v", "o", "ffn.2", NULL};

static void open_case(struct fixture *f, struct comm *world, const struct lora_config *lora,
                      enum dtype t, int batch)
{
    struct model_config m = fixture_model();
    m.num_layers = 2;
    fixture_open(f, world,
                 &(struct fixture_opts){.device = "ref",
                                        .compute = t,
                                        .model = m,
                                        .batch = batch,
                                        .t = 1,
                                        .h = 3,
                                        .w = 4,
                                        .fsdp = {.optimizer = true, .ema = true},
                                        .lora = lora});
}

static char *fresh_dir(const char *name) { return io_path("%s/%s", test_dir(), name); }

/* Weights of size 1, different for each item. */
static void put_weights(struct fixture *f, enum state_kind kind, uint64_t item)
{
    for (int u = 0; u < f->dit->num_units; u++)
        for (int i = 0; i < f->dit->unit[u].num_params; i++) {
            const struct param *p = &f->dit->unit[u].param[i];
            const int64_t n = param_count(p);
            double *x = problem_draw(n, rng_hash(p->name) + item);
            const double scale = p->ndim >= 2 ? 1 / sqrt((double)n / (double)p->dim[0]) : 0.2;
            for (int64_t k = 0; k < n; k++)
                x[k] = (double)(float)(x[k] * scale + (p->init == INIT_ONE ? 1 : 0));
            fsdp_put(f->fsdp, kind, p->name, x);
            free(x);
        }
}

static double adapter_value(const struct param *p, const double *x, int64_t k)
{
    return (double)(float)(x[k] / sqrt((double)p->dim[1]));
}

/* Puts values into a state of the adapters, or counts what differs from them. */
static int64_t adapters(struct lora *l, enum state_kind kind, uint64_t item, bool check)
{
    int64_t wrong = 0;
    for (int i = 0; i < l->num_params; i++) {
        const struct param *p = &l->param[i];
        const int64_t n = param_count(p);
        double *x = problem_draw(n, rng_hash(p->name) + item + 100 * kind),
               *got = calloc((size_t)n, sizeof *got);
        for (int64_t k = 0; k < n; k++) x[k] = adapter_value(p, x, k);
        if (check)
            lora_get(l, kind, p->name, got);
        else
            lora_put(l, kind, p->name, x);
        for (int64_t k = 0; check && k < n; k++) wrong += got[k] != x[k];
        free(x);
        free(got);
    }
    return wrong;
}

static void fill(struct lora *l, uint64_t item)
{
    for (int k = 0; k < STATE_KINDS; k++)
        if (ALL_KINDS & 1 << k) adapters(l, (enum state_kind)k, item, false);
}

static int64_t wrong_values(struct lora *l, uint64_t item)
{
    int64_t n = 0;
    for (int k = 0; k < STATE_KINDS; k++)
        if (ALL_KINDS & 1 << k) n += adapters(l, (enum state_kind)k, item, true);
    return n;
}

static void save_base(struct fixture *f, const char *dir, int step)
{
    put_weights(f, STATE_MASTER, (uint64_t)step);
    put_weights(f, STATE_EMA, (uint64_t)step + 50);
    struct ckpt_snapshot *s =
        ckpt_snapshot(f->fsdp, &f->mesh, 1u << STATE_MASTER | 1u << STATE_EMA);
    json_t *meta = json_pack("{s:i, s:s, s:{s:i}}", "step", step, "config", "a: 1\n", "structure",
                             "model_config.dim", 24);
    const struct ckpt_place place = {dir, 0, 0};
    struct err e = {0};
    ckpt_write(f->mesh.axis[AXIS_WORLD], &place, s, meta, &e);
    EXPECT(!e.code, "%s", e.msg);
    json_decref(meta);
    ckpt_snapshot_free(s);
}

static void save(struct fixture *f, const struct lora_config *cfg, const char *dir,
                 const struct adapter_base *base, const struct adapter_state *s, unsigned kinds,
                 struct err *e)
{
    json_t *meta = json_pack("{s:I, s:s}", "step", (json_int_t)s->step, "stage", "rl");
    const struct ckpt_place place = {dir, 2, 0};
    adapter_save(f->lora, cfg, &f->mesh, &place, base, s, kinds, meta, e);
    json_decref(meta);
}

static const struct adapter_base no_base = {
    .path = (char *)(uintptr_t) "nowhere", .kind = STATE_MASTER, .sha256 = "0"};

static void load(struct ckpt *c, struct lora *l)
{
    for (int k = 0; k < STATE_KINDS; k++)
        if (ALL_KINDS & 1 << k) adapter_load(c, l, (enum state_kind)k, (enum state_kind)k);
}

/* Loads the newest; its step, -1 when there is none. */
static int load_newest(struct fixture *f, const char *dir)
{
    struct ckpt *c = ckpt_latest(f->mesh.axis[AXIS_WORLD], dir);
    if (!c) return -1;
    load(c, f->lora);
    const int step = (int)ckpt_step(c);
    ckpt_close(c);
    return step;
}

/* ---- N write, M read -------------------------------------------------------------------------*/
struct turn {
    const char *dir;
    int step;
    bool write;
    char hash[65];
};

static void reshard_rank(struct comm *world, void *arg)
{
    const struct turn *t = arg;
    const struct lora_config cfg = lora_make_config(3, 6, some);
    struct fixture f;
    open_case(&f, world, &cfg, DT_F32, 1);
    struct err e = {0};
    if (t->write) {
        const struct adapter_state s = {.step = t->step};
        fill(f.lora, (uint64_t)t->step);
        save(&f, &cfg, t->dir, &no_base, &s, ALL_KINDS, &e);
        EXPECT(!e.code, "%s", e.msg);
    } else {
        EXPECT(load_newest(&f, t->dir) == t->step, "another step");
        EXPECT(wrong_values(f.lora, (uint64_t)t->step) == 0, "values differ");
    }
    fixture_close(&f);
}

static void test_reshard(struct comm *world)
{
    (void)world;
    char *dir = fresh_dir("reshard");
    const int sizes[] = {1, 2, 3, 5, 8};
    for (int w = 0; w < 5; w++) {
        struct turn t = {.dir = dir, .step = w + 1, .write = true};
        comm_thread_run(sizes[w], reshard_rank, &t);
        t.write = false;
        for (int m = 0; m < 5; m++) comm_thread_run(sizes[m], reshard_rank, &t);
    }
    free(dir);
}

/* ---- base ------------------------------------------------------------------------------------*/
static void base_rank(struct comm *world, void *arg)
{
    struct turn *t = arg;
    struct fixture f;
    open_case(&f, world, NULL, DT_F32, 1);
    save_base(&f, t->dir, t->step);
    struct ckpt *c = ckpt_open(world, t->dir, true);
    if (world->rank == 0) ckpt_hash(c, STATE_MASTER, t->hash);
    ckpt_close(c);
    fixture_close(&f);
}

/* From the manifest alone as from every value, and the same for any number of ranks. */
static void test_hash(struct comm *world)
{
    char first[65] = "";
    for (int ranks = 1; ranks <= 8; ranks = ranks == 4 ? 8 : ranks + 1) {
        char name[32], hex[65];
        snprintf(name, sizeof name, "hash%d", ranks);
        char *dir = fresh_dir(name);
        struct turn t = {.dir = dir, .step = 1};
        comm_thread_run(ranks, base_rank, &t);
        struct ckpt *c = ckpt_open(world, dir, true);
        int n;
        struct tensor_scan *s = scan_checkpoint(c, &n);
        for (int k = STATE_MASTER; k <= STATE_EMA; k += STATE_EMA) {
            char own[65];
            scan_hash(s, n, (enum state_kind)k, hex);
            ckpt_hash(c, (enum state_kind)k, own);
            EXPECT(strcmp(hex, own) == 0, "%d ranks: %s from the values, %s", ranks, hex, own);
        }
        if (!first[0]) snprintf(first, sizeof first, "%s", t.hash);
        EXPECT(strcmp(first, t.hash) == 0, "%d ranks: %s, one rank: %s", ranks, t.hash, first);
        free(s);
        ckpt_close(c);
        free(dir);
    }
}

static void test_join(struct comm *world)
{
    (void)world;
    uint8_t x[3000];
    const struct rng_stream s = rng_open((struct rng_key){.seed = 4, .use = RNG_TEST});
    for (int i = 0; i < 3000; i++) x[i] = (uint8_t)rng_word(s, (uint64_t)i);
    for (size_t cut = 0; cut <= 3000; cut += 97)
        EXPECT(io_crc32c_join(io_crc32c(0, x, cut), io_crc32c(0, x + cut, 3000 - cut),
                              3000 - cut) == io_crc32c(0, x, 3000),
               "cut at %zu", cut);
}

struct bond {
    struct ckpt *adapter;
    struct adapter_info info;
    struct adapter_base have;
    bool force;
};

static void require(void *arg)
{
    const struct bond *b = arg;
    adapter_require_base(b->adapter, &b->info, &b->have, b->force);
}

static void read_info(void *arg)
{
    struct bond *b = arg;
    struct err e = {0};
    struct adapter_info i;
    adapter_info_read(&i, b->adapter, &e);
    adapter_info_free(&i);
    err_raise(&e);
}

static void load_wrong_rank(void *arg)
{
    struct bond *b = arg;
    const struct lora_config cfg = lora_make_config(2, 6, some);
    struct comm *alone = comm_self(NULL);
    struct fixture f;
    open_case(&f, alone, &cfg, DT_F32, 1);
    adapter_load(b->adapter, f.lora, STATE_LORA, STATE_LORA);
}

static void load_more_targets(void *arg)
{
    struct bond *b = arg;
    const struct lora_config cfg = lora_make_config(3, 6, lora_official_targets);
    struct comm *alone = comm_self(NULL);
    struct fixture f;
    open_case(&f, alone, &cfg, DT_F32, 1);
    adapter_load(b->adapter, f.lora, STATE_LORA, STATE_LORA);
}

static void test_bond(struct comm *world)
{
    char *base = fresh_dir("bond_base"), *other = fresh_dir("bond_other"), *dir = fresh_dir("bond");
    struct turn t = {.dir = base, .step = 1}, o = {.dir = other, .step = 2};
    comm_thread_run(2, base_rank, &t);
    comm_thread_run(1, base_rank, &o);
    const struct lora_config cfg = lora_make_config(3, 6, some);
    struct fixture f;
    open_case(&f, world, &cfg, DT_F32, 1);
    struct ckpt *cb = ckpt_open(world, base, true), *co = ckpt_open(world, other, true);
    struct bond b = {.have = adapter_base_of(cb, STATE_MASTER)};
    struct adapter_base wrong = adapter_base_of(co, STATE_MASTER),
                        ema = adapter_base_of(cb, STATE_EMA);
    const struct adapter_state s = {.step = 7,
                                    .adam_steps = 6,
                                    .ema_updates = 5,
                                    .skipped = 1,
                                    .clip = {0.1, 0.2, 1.0 / 3, 0.99, 1, 1}};
    struct err e = {0};
    fill(f.lora, 1);
    save(&f, &cfg, dir, &b.have, &s, ALL_KINDS, &e);
    EXPECT(!e.code, "%s", e.msg);
    b.adapter = ckpt_open(world, dir, true);
    adapter_info_read(&b.info, b.adapter, &e);
    EXPECT(!e.code && b.info.config.rank == 3 && b.info.config.alpha == 6 &&
               b.info.config.targets.n == 4 && strcmp(b.info.config.targets.v[3], "ffn.2") == 0,
           "%s", e.msg);
    EXPECT(memcmp(&b.info.state, &s, sizeof s) == 0, "the state differs");
    require(&b);
    struct adapter_base right = b.have;
    b.have = wrong;
    expect_stop(right.sha256, RC_CONFIG, require, &b);
    expect_stop(wrong.sha256, RC_CONFIG, require, &b);
    expect_stop("lora_force_base: true; osp convert merge: --force-base", RC_CONFIG, require, &b);
    b.have = ema;
    expect_stop("not for the ema weights", RC_CONFIG, require, &b);
    b.force = true;
    log_set_level(LOG_WARN + 1);
    require(&b);
    log_set_level(LOG_WARN);
    expect_stop("is [3,24] in the checkpoint, the model wants [2,24]", RC_CONFIG, load_wrong_rank,
                &b);
    expect_stop("in the checkpoint, but not in the model", RC_CONFIG, load_more_targets, &b);
    struct bond plain = {.adapter = cb};
    expect_stop("no adapter checkpoint, or a damaged one", RC_DATA, read_info, &plain);
    adapter_info_free(&b.info);
    struct ckpt *all[] = {b.adapter, cb, co};
    for (int i = 0; i < 3; i++) ckpt_close(all[i]);
    adapter_base_free(&right);
    adapter_base_free(&wrong);
    adapter_base_free(&ema);
    fixture_close(&f);
    free(base);
    free(other);
    free(dir);
}

struct second {
    struct fixture *f;
    const struct lora_config *cfg;
    const char *dir;
};

static void save_second(void *arg)
{
    const struct second *s = arg;
    struct err e = {0};
    fill(s->f->lora, 2);
    save(s->f, s->cfg, s->dir, &no_base, &(struct adapter_state){.step = 2}, ALL_KINDS, &e);
}

/* ---- kill ------------------------------------------------------------------------------------*/
static void test_kill(struct comm *world)
{
    char *dir = fresh_dir("kill");
    const struct lora_config cfg = lora_make_config(1, 1, some);
    struct fixture f;
    open_case(&f, world, &cfg, DT_F32, 1);
    struct err e = {0};
    fill(f.lora, 1);
    save(&f, &cfg, dir, &no_base, &(struct adapter_state){.step = 1}, ALL_KINDS, &e);
    EXPECT(!e.code, "%s", e.msg);
    int k = 1, seen[3] = {0};
    bool complete = false;
    log_set_level(LOG_WARN + 1);
    for (; !complete && k < 2000; k += test_fast() ? 7 : 1) {
        complete = process_fault(k, "kill", save_second, &(struct second){&f, &cfg, dir});
        const int step = load_newest(&f, dir);
        EXPECT(step == 1 || step == 2, "operation %d: step %d is left", k, step);
        if (step != 1 && step != 2) break;
        EXPECT(wrong_values(f.lora, (uint64_t)step) == 0, "operation %d: step %d", k, step);
        seen[step]++;
        char *two = io_path("%s/iter_%09d", dir, 2);
        struct err re = {0};
        if (step == 2) io_remove_tree(two, &re);
        free(two);
    }
    log_set_level(LOG_WARN);
    EXPECT(complete && seen[1] && seen[2], "%d, old %d, new %d", complete, seen[1], seen[2]);
    printf("    killed at each of %d operations: old state %d times, new state %d times\n", k - 1,
           seen[1], seen[2]);
    fixture_close(&f);
    free(dir);
}

/* ---- resume ----------------------------------------------------------------------------------*/
static const struct adapter_hyper hyper = {.lr = 1e-2,
                                           .beta1 = 0.9,
                                           .beta2 = 0.999,
                                           .eps = 1e-15,
                                           .weight_decay = 1e-2,
                                           .ema_decay = 0.9999,
                                           .ema_warmup = true,
                                           .ema_interval = 2};

static void steps(struct fixture *f, struct adapter_state *s, int n)
{
    struct comm *world = f->mesh.axis[AXIS_WORLD];
    for (float before, ema, w; n > 0; n--) {
        struct problem p =
            problem_new(&f->dit->config, world->rank + world->size * (int)s->step, 1, 1, 3, 4);
        struct step_io io = problem_io(&p, 100.0 * world->size);
        io.backward = true;
        lora_zero_grads(f->lora);
        double loss = fixture_step(f, &io), k = (double)s->ema_updates;
        comm_sum_f64(world, &loss, 1, "loss");
        dev_get(f->dev, &before, tensor_rows(f->lora->ema, 0, 1));
        const struct adapter_result r =
            adapter_step(f->lora, world, &f->tmp, &hyper, s, s->step == 2 ? (double)NAN : loss);
        EXPECT(r.skipped == (s->step == 3), "step %lld", (long long)s->step);
        dev_get(f->dev, &ema, tensor_rows(f->lora->ema, 0, 1));
        dev_get(f->dev, &w, tensor_rows(f->lora->w, 0, 1));
        EXPECT((double)s->ema_updates <= k ||
                   fabs(ema - before - 9 / (10 + k) * (w - before)) < 1e-7,
               "EMA update %g", k); /* warm-up: keep (1 + k) / (10 + k) */
        problem_free(&p);
    }
}

static float *whole_state(struct fixture *f, int64_t *n)
{
    const struct tensor all[] = {f->lora->w, f->lora->m, f->lora->v, f->lora->ema};
    *n = 4 * f->lora->count;
    float *x = calloc((size_t)*n, sizeof *x);
    for (int i = 0; i < 4; i++) dev_get(f->dev, x + i * f->lora->count, all[i]);
    return x;
}

static void start(struct fixture *f, struct comm *world, const struct lora_config *cfg)
{
    open_case(f, world, cfg, DT_F32, 1);
    put_weights(f, STATE_MASTER, 3);
    lora_init_params(f->lora, 11);
}

/* 4 + 4 steps with a checkpoint between against 8; one of the steps is skipped. */
static void test_resume(struct comm *world)
{
    char dir[512]; /* that of rank 0: over MPI each process has its own */
    snprintf(dir, sizeof dir, "%s/resume%d", test_dir(), world->size);
    comm_broadcast_bytes(world, dir, sizeof dir, 0, "folder");
    const struct lora_config cfg = lora_make_config(3, 6, some);
    struct fixture one, two;
    struct adapter_state a = {0}, b = {0};
    clip_init(&a.clip, 1);
    clip_init(&b.clip, 1);
    start(&one, world, &cfg);
    steps(&one, &a, 8);
    start(&two, world, &cfg);
    steps(&two, &b, 4);
    struct err e = {0};
    save(&two, &cfg, dir, &no_base, &b, ALL_KINDS, &e);
    EXPECT(!e.code, "%s", e.msg);
    fixture_close(&two);
    start(&two, world, &cfg);
    struct ckpt *c = ckpt_latest(world, dir);
    struct adapter_info info;
    adapter_info_read(&info, c, &e);
    EXPECT(!e.code, "%s", e.msg);
    load(c, two.lora);
    steps(&two, &info.state, 4);
    int64_t n;
    float *x = whole_state(&one, &n), *y = whole_state(&two, &n);
    EXPECT(memcmp(x, y, (size_t)n * sizeof *x) == 0, "the bits differ");
    EXPECT(memcmp(&a, &info.state, sizeof a) == 0 && a.skipped == 1 && a.ema_updates == 4 &&
               a.adam_steps == 7,
           "skipped %lld, EMA %lld, Adam %lld", (long long)a.skipped, (long long)a.ema_updates,
           (long long)a.adam_steps);
    free(x);
    free(y);
    adapter_info_free(&info);
    ckpt_close(c);
    fixture_close(&one);
    fixture_close(&two);
}

/* ---- merge -----------------------------------------------------------------------------------*/
static double *output_of(struct fixture *f, int64_t *n)
{
    struct problem p = problem_new(&f->dit->config, 0, 1, 1, 3, 4);
    double *v = calloc((size_t)p.out_n, sizeof *v);
    fixture_step(f,
                 &(struct step_io){
                     .xt = p.xt, .target = p.target, .text = p.text, .t = p.t, .v = v, .share = 1});
    *n = p.out_n;
    problem_free(&p);
    return v;
}

static double *merged_output(struct comm *world, const char *dir, enum state_kind from)
{
    struct fixture f;
    int64_t n;
    open_case(&f, world, NULL, DT_F32, 1);
    struct ckpt *c = ckpt_open(world, dir, true);
    ckpt_load(c, f.fsdp, STATE_MASTER, from);
    double *v = output_of(&f, &n);
    ckpt_close(c);
    fixture_close(&f);
    return v;
}

static void try_merge(void *arg) { merge_adapter(arg); }

static void merge_mistakes(const char *base, const char *other, const char *dir, const char *out)
{
    struct merge_job job = {.base = base, .adapter = dir, .out = out};
    expect_stop("exists; choose a folder", RC_CANTCREAT, try_merge, &job);
    char *fresh = fresh_dir("merged_wrong");
    job.out = fresh;
    job.base = other;
    expect_stop("SHA-256", RC_CONFIG, try_merge, &job);
    EXPECT(!io_exists(fresh), "%s was made", fresh);
    job.adapter = base;
    expect_stop("no adapter checkpoint", RC_DATA, try_merge, &job);
    free(fresh);
}

static void check_inspect(const char *path, const char *const *want)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    inspect_checkpoint(path, (struct inspect_opts){0}, out);
    fclose(out);
    for (; *want; want++) EXPECT(strstr(text, *want), "no \"%s\" in:\n%.1500s", *want, text);
    free(text);
}

static void test_merge(struct comm *world)
{
    char *base = fresh_dir("merge_base"), *other = fresh_dir("merge_other"),
         *dir = fresh_dir("merge_adapter"),
         *out[2] = {fresh_dir("merged"), fresh_dir("merged_ema")};
    struct turn t = {.dir = base, .step = 3}, o = {.dir = other, .step = 4};
    comm_thread_run(3, base_rank, &t);
    comm_thread_run(1, base_rank, &o);
    const struct lora_config cfg = lora_make_config(3, 6, some);
    struct fixture f;
    open_case(&f, world, &cfg, DT_F32, 1);
    struct ckpt *c = ckpt_open(world, base, true);
    struct adapter_base b = adapter_base_of(c, STATE_EMA);
    ckpt_load(c, f.fsdp, STATE_MASTER, STATE_EMA);
    fill(f.lora, 9);
    struct err e = {0};
    save(&f, &cfg, dir, &b, &(struct adapter_state){.step = 28}, ALL_KINDS, &e);
    EXPECT(!e.code, "%s", e.msg);
    int64_t n;
    for (int ema = 0; ema < 2; ema++) {
        const struct merge_job job = {
            .base = base, .adapter = dir, .out = out[ema], .ema = ema == 1};
        merge_adapter(&job);
        lora_use(f.lora, ema == 1 ? STATE_LORA_EMA : STATE_LORA);
        double *v = output_of(&f, &n), *w = merged_output(world, out[ema], STATE_MASTER),
               *x = merged_output(world, out[ema], STATE_EMA),
               *plain = merged_output(world, base, STATE_EMA);
        const double error = max_error(w, v, n, NULL);
        EXPECT(error < 1e-5, "merged against unmerged: %g", error);
        EXPECT(memcmp(w, x, (size_t)n * sizeof *w) == 0, "the kinds differ");
        EXPECT(max_error(w, plain, n, NULL) > 1e-2, "the adapters change nothing");
        printf("    merged against unmerged%s: %.1e\n", ema ? ", EMA" : "", error);
        double *all[] = {v, w, x, plain};
        for (int i = 0; i < 4; i++) free(all[i]);
    }
    char *lines[2] = {io_path("SHA-256 %s", b.sha256),
                      io_path("base       %s, step 3, ema", b.path)};
    check_inspect(dir,
                  (const char *const[]){"adapters   rank 3, alpha 6, scale 2",
                                        "targets    self_attn.[qkv] blocks.1.cross_attn.v",
                                        lines[0], lines[1], "lora_ema hash", "run        stage rl",
                                        "blocks.1.cross_attn.v.lora_B.weight", NULL});
    struct ckpt *m = ckpt_open(world, out[1], true);
    const json_t *from = json_object_get(ckpt_meta(m), "provenance"),
                 *a = json_object_get(from, "adapter");
    EXPECT(json_integer_value(json_object_get(a, "step")) == 28 &&
               strcmp(json_string_value(json_object_get(a, "kind")), "lora_ema") == 0 &&
               strcmp(json_string_value(json_object_get(json_object_get(from, "base"), "sha256")),
                      b.sha256) == 0,
           "provenance");
    ckpt_close(m);
    merge_mistakes(base, other, dir, out[0]);
    adapter_base_free(&b);
    ckpt_close(c);
    fixture_close(&f);
    char *texts[] = {base, other, dir, out[0], out[1], lines[0], lines[1]};
    for (int i = 0; i < 7; i++) free(texts[i]);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "checksums join", .run = test_join},
        {.name = "N ranks write adapters, M read them", .run = test_reshard},
        {.name = "the hash of the base needs no values and no ranks", .run = test_hash},
        {.name = "another base, rank or target is refused with its name", .run = test_bond},
        {.name = "a kill leaves the old adapters or the new ones", .run = test_kill},
        {.name = "a resumed run has the bits of an uninterrupted one",
         .run = test_resume,
         .ranks = {1, 2, 3},
         .flags = TEST_MPI},
        {.name = "folded into the base they give the same output", .run = test_merge},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
