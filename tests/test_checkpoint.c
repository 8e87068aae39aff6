/* Checkpoints: written by N ranks and read by M, killed at every file operation, damaged in every
 * way; what is loaded is always one of the states that were saved, bit for bit. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/fault.h"
#include "core/io.h"
#include "core/log.h"
#include "parallel/checkpoint.h"
#include "parallel/checkpoint_dir.h"
#include "tests/check.h"
#include "tests/fixture.h"
#include "tests/process.h"

enum { KINDS = 1 << STATE_MASTER | 1 << STATE_M | 1 << STATE_V | 1 << STATE_EMA };

static void open_model(struct fixture *f, struct comm *world, enum dtype t, struct model_config m)
{
    fixture_open(f, world,
                 &(struct fixture_opts){.device = "ref",
                                        .compute = t,
                                        .model = m,
                                        .batch = 1,
                                        .t = 1,
                                        .h = 2,
                                        .w = 2,
                                        .fsdp = {.optimizer = true, .ema = true}});
}

static void open_small(struct fixture *f, struct comm *world, enum dtype t)
{
    struct model_config m = fixture_model();
    m.num_layers = 2;
    open_model(f, world, t, m);
}

struct value_arg {
    struct dev *dev;
    int kind, step;
    bool check;
    int wrong;
};

/* A value that names its place: parameter, element, kind and step. */
static double value_at(const char *name, int64_t i, int kind, int step)
{
    return (double)(float)(1e-3 * (double)(rng_hash(name) % 1000) + (double)i + 0.25 * kind +
                           1000.0 * step);
}

static void each_value(void *arg, const struct piece *p)
{
    struct value_arg *a = arg;
    double *x = malloc((size_t)p->count * sizeof *x);
    if (a->check) dev_get_f64(a->dev, x, p->data);
    for (int64_t i = 0; i < p->count; i++) {
        const double want = value_at(p->param->name, p->first + i, a->kind, a->step);
        if (a->check)
            a->wrong += x[i] != want;
        else
            x[i] = want;
    }
    if (!a->check) dev_put_f64(a->dev, p->data, x);
    free(x);
}

static void fill(struct fixture *f, int step)
{
    for (int k = 0; k < STATE_KINDS; k++)
        if (KINDS & 1 << k) {
            struct value_arg a = {f->dev, k, step, false, 0};
            fsdp_each_piece(f->fsdp, (enum state_kind)k, each_value, &a);
        }
}

static int wrong_values(struct fixture *f, int step)
{
    struct value_arg a = {f->dev, 0, step, true, 0};
    for (int k = 0; k < STATE_KINDS; k++)
        if (KINDS & 1 << k) {
            a.kind = k;
            fsdp_each_piece(f->fsdp, (enum state_kind)k, each_value, &a);
        }
    return a.wrong;
}

static void save(struct fixture *f, const char *dir, int step, int64_t keep_last, struct err *e)
{
    struct ckpt_snapshot *s = ckpt_snapshot(f->fsdp, &f->mesh, KINDS);
    json_t *meta = json_pack("{s:i, s:s}", "step", step, "config", "a: 1\n");
    const struct ckpt_place place = {dir, keep_last, 0};
    ckpt_write(f->mesh.axis[AXIS_WORLD], &place, s, meta, e);
    json_decref(meta);
    ckpt_snapshot_free(s);
}

/* Loads the newest; returns its step, -1 when there is none. */
static int load(struct fixture *f, const char *dir)
{
    struct ckpt *c = ckpt_latest(f->mesh.axis[AXIS_WORLD], dir);
    if (!c) return -1;
    for (int k = 0; k < STATE_KINDS; k++)
        if (KINDS & 1 << k) ckpt_load(c, f->fsdp, (enum state_kind)k, (enum state_kind)k);
    const int step = (int)ckpt_step(c);
    ckpt_close(c);
    return step;
}

static char *fresh_dir(const char *name) { return io_path("%s/%s", test_dir(), name); }

struct reshard {
    const char *dir;
    int step;
    bool write;
};

static void reshard_rank(struct comm *world, void *arg)
{
    const struct reshard *r = arg;
    struct fixture f;
    open_small(&f, world, DT_F32);
    struct err e = {0};
    if (r->write) {
        fill(&f, r->step);
        save(&f, r->dir, r->step, 0, &e);
        EXPECT(!e.code, "%s", e.msg);
    } else {
        EXPECT(load(&f, r->dir) == r->step, "another step");
        EXPECT(wrong_values(&f, r->step) == 0, "values differ after resharding");
    }
    fixture_close(&f);
}

static void test_reshard(struct comm *world)
{
    (void)world;
    char *dir = fresh_dir("reshard");
    const int sizes[] = {1, 2, 3, 4, 6, 8};
    int step = 0;
    for (int w = 0; w < 6; w++) {
        struct reshard r = {dir, ++step, true};
        comm_thread_run(sizes[w], reshard_rank, &r);
        r.write = false;
        for (int m = 0; m < 6; m++) comm_thread_run(sizes[m], reshard_rank, &r);
    }
    free(dir);
}

/* Every file operation of one save, killed or failing: what loads afterwards is the old state or
 * the new one, and the next save works. */
struct second {
    struct fixture *f;
    const char *dir;
};

static void save_second(void *arg)
{
    const struct second *s = arg;
    struct err e = {0};
    fill(s->f, 2);
    save(s->f, s->dir, 2, 2, &e);
}

static void every_operation(const char *action, const char *name)
{
    char *dir = fresh_dir(name);
    struct comm *world = comm_self(NULL);
    struct fixture f;
    open_small(&f, world, DT_F32);
    struct err e = {0};
    fill(&f, 1);
    save(&f, dir, 1, 2, &e);
    EXPECT(!e.code, "%s", e.msg);
    int k = 1, old_states = 0, new_states = 0;
    bool complete = false;
    log_set_level(LOG_WARN + 1);
    for (; !complete && k < 2000; k++) {
        complete = process_fault(k, action, save_second, &(struct second){&f, dir});
        const int step = load(&f, dir);
        EXPECT(step == 1 || step == 2, "operation %d: step %d is left", k, step);
        EXPECT(wrong_values(&f, step) == 0, "operation %d: step %d has wrong values", k, step);
        if (step == 2) { /* back to the start for the next round */
            new_states++;
            char *two = io_path("%s/iter_%09d", dir, 2);
            struct err re = {0};
            io_remove_tree(two, &re);
            free(two);
        } else {
            old_states++;
        }
    }
    log_set_level(LOG_WARN);
    EXPECT(complete && old_states > 10 && new_states >= 1, "%d operations, %d old, %d new", k,
           old_states, new_states);
    printf("    %s at each of %d operations: old state %d times, new state %d times\n", action,
           k - 1, old_states, new_states);
    fixture_close(&f);
    comm_free(world);
    free(dir);
}

static void test_kill(struct comm *world)
{
    (void)world;
    every_operation("kill", "kill");
}

static void test_fail(struct comm *world)
{
    (void)world;
    every_operation("fail", "fail");
}

static void flip(const char *path, long at, unsigned char with)
{
    FILE *f = fopen(path, "r+b");
    fseek(f, at, SEEK_SET);
    const int c = fgetc(f);
    fseek(f, at, SEEK_SET);
    fputc(c ^ with, f);
    fclose(f);
}

static long size_of(const char *path)
{
    FILE *f = fopen(path, "rb");
    fseek(f, 0, SEEK_END);
    const long n = ftell(f);
    fclose(f);
    return n;
}

/* A damaged newest checkpoint is passed over, whatever byte is hit; the one before is loaded. */
static void test_damage(struct comm *world)
{
    char *dir = fresh_dir("damage");
    struct fixture f;
    open_small(&f, world, DT_F32);
    struct err e = {0};
    for (int step = 1; step <= 2; step++) {
        fill(&f, step);
        save(&f, dir, step, 0, &e);
    }
    const char *names[] = {"rank_00000.h5", "state.h5", "manifest.json"};
    const struct rng_stream s = rng_open((struct rng_key){.seed = 3, .use = RNG_TEST});
    uint64_t draw = 0;
    log_set_level(LOG_WARN + 1);
    int detected = 0;
    const int flips = test_fast() ? 15 : 60;
    for (int n = 0; n < 3; n++) {
        char *path = io_path("%s/iter_%09d/%s", dir, 2, names[n]);
        for (int k = 0; k < flips; k++) {
            const long at = (long)(rng_uniform_at(s, draw++) * (double)size_of(path));
            const unsigned char bit = (unsigned char)(1 << (int)(rng_uniform_at(s, draw++) * 8));
            flip(path, at, bit);
            const int step = load(&f, dir);
            /* a flip in the manifest's white space or in a comment-like value may be harmless */
            EXPECT(step == 1 || n == 2, "%s byte %ld bit %d was not noticed", names[n], at, bit);
            EXPECT(step == 1 || step == 2 || n == 2, "step %d", step);
            if (step > 0 && step <= 2)
                EXPECT(wrong_values(&f, step) == 0, "%s byte %ld: wrong values", names[n], at);
            detected += step == 1;
            flip(path, at, bit);
        }
        free(path);
    }
    EXPECT(load(&f, dir) == 2, "the restored checkpoint is not valid");
    char *path = io_path("%s/iter_%09d/rank_00000.h5", dir, 2);
    EXPECT(truncate(path, size_of(path) - 1) == 0, "truncate");
    EXPECT(load(&f, dir) == 1, "a truncated file was not noticed");
    free(path);
    log_set_level(LOG_WARN);
    printf("    %d of %d bit flips noticed\n", detected, 3 * flips);
    fixture_close(&f);
    free(dir);
}

static void test_rotation(struct comm *world)
{
    char *dir = fresh_dir("rotation");
    struct fixture f;
    open_small(&f, world, DT_F64);
    struct err e = {0};
    for (int step = 1; step <= 7; step++) {
        struct ckpt_snapshot *s = ckpt_snapshot(f.fsdp, &f.mesh, 1 << STATE_MASTER);
        json_t *meta = json_pack("{s:i}", "step", step);
        const struct ckpt_place place = {dir, 2, 3};
        ckpt_write(world, &place, s, meta, &e);
        json_decref(meta);
        ckpt_snapshot_free(s);
        char *path = io_path("%s/iter_%09d", dir, step);
        if (step == 2) ckpt_keep(path, "a base\n", &e);
        free(path);
        EXPECT(!e.code, "%s", e.msg);
    }
    for (int step = 1; step <= 7; step++) {
        char *path = io_path("%s/iter_%09d", dir, step);
        const bool want = step >= 6 || step == 3 || step == 2;
        EXPECT(io_exists(path) == want, "step %d %s", step, want ? "is gone" : "is still there");
        free(path);
    }
    fixture_close(&f);
    free(dir);
}

static void load_arg(void *arg)
{
    void **a = arg;
    load(a[0], a[1]);
}

/* Saving an earlier step than the newest (another attempt in the same folder) keeps what was just
 * saved; and when nothing is valid the run must not start anew in silence. */
static void test_attempts(struct comm *world)
{
    (void)world;
    char *dir = fresh_dir("attempts");
    struct fixture f;
    open_small(&f, world, DT_F32);
    struct err e = {0};
    const int steps[] = {4, 6, 1};
    for (int i = 0; i < 3; i++) {
        fill(&f, steps[i]);
        save(&f, dir, steps[i], 1, &e);
        EXPECT(!e.code, "%s", e.msg);
    }
    char *one = io_path("%s/iter_%09d", dir, 1), *six = io_path("%s/iter_%09d", dir, 6);
    EXPECT(io_exists(one) && io_exists(six), "the checkpoint just written was rotated out");
    log_set_level(LOG_WARN + 1);
    char *files[] = {io_path("%s/rank_00000.h5", one), io_path("%s/rank_00000.h5", six)};
    for (int i = 0; i < 2; i++) flip(files[i], 5000, 1);
    void *arg[2] = {&f, dir};
    expect_stop("none is valid", RC_DATA, load_arg, arg);
    log_set_level(LOG_WARN);
    fixture_close(&f);
    for (int i = 0; i < 2; i++) free(files[i]);
    free(one);
    free(six);
    free(dir);
}

struct wrong_model {
    const char *dir;
    int64_t dim;
};

static void load_wrong(void *arg)
{
    const struct wrong_model *w = arg;
    struct model_config m = fixture_model();
    m.num_layers = w->dim == 24 ? 3 : 2;
    m.dim = w->dim;
    m.full_block_indices = (struct cfg_ints){1, {0}};
    struct fixture f;
    open_model(&f, comm_self(NULL), DT_F32, m);
    load(&f, w->dir);
}

static void open_missing(void *arg) { ckpt_open(arg, "/nonexistent/run", true); }

static void test_errors(struct comm *world)
{
    char *dir = fresh_dir("errors");
    struct fixture f;
    open_small(&f, world, DT_F32);
    struct err e = {0};
    fill(&f, 1);
    save(&f, dir, 1, 0, &e);
    struct wrong_model narrow = {dir, 32}, deep = {dir, 24};
    expect_stop("the model wants [32", RC_CONFIG, load_wrong, &narrow);
    expect_stop("has no model/blocks.2.", RC_DATA, load_wrong, &deep);
    expect_stop("/nonexistent/run: no such folder; train first", RC_NOINPUT, open_missing, world);
    fault_set("io_space:1");
    save(&f, dir, 2, 0, &e);
    EXPECT(e.code == RC_IO && strstr(e.msg, "GB are free"), "no room: %s", e.msg);
    fault_set(NULL);
    EXPECT(load(&f, dir) == 1, "the old checkpoint was lost");
    fixture_close(&f);
    free(dir);
}

struct open_arg {
    struct comm *world;
    const char *path;
};
static void open_one(void *arg)
{
    const struct open_arg *a = arg;
    ckpt_close(ckpt_open(a->world, a->path, true));
}

/* A folder in which no manifest can be read: the reason of each. */
static void test_rejected(struct comm *world)
{
    char *dir = fresh_dir("rejected"), *none = io_path("%s/iter_%09d", dir, 3);
    struct fixture f;
    open_small(&f, world, DT_F32);
    struct err e = {0};
    for (int step = 1; step <= 2; step++) save(&f, dir, step, 0, &e);
    if (world->rank == 0) io_mkdir(none, &e);
    comm_barrier(world, "folder");
    struct open_arg a = {world, dir};
    /* the newest is meant; a run goes on from the one before it */
    expect_stop("rejected: its newest checkpoint is damaged; ", RC_DATA, open_one, &a);
    expect_stop("the newest with a sound manifest is ", RC_DATA, open_one, &a);
    EXPECT(load(&f, dir) == 2, "the run did not go on");
    /* what is older, or set aside by its user, does not matter; what a save has set aside does */
    static const char *const fine[] = {"iter_000000000", "iter_000000003.damaged", "iter_3_copy"};
    char *prev = io_path("%s/iter_%09d.prev", dir, 3);
    struct open_arg mine = {comm_self(NULL), dir};
    for (int i = 0; i < 3 && world->rank == 0; i++) {
        char *other = io_path("%s/%s", dir, fine[i]);
        io_rename(none, other, &e);
        open_one(&mine);
        io_rename(other, none, &e);
        free(other);
    }
    if (world->rank == 0) {
        io_rename(none, prev, &e);
        expect_stop("left by an interrupted save; start its run again", RC_DATA, open_one, &mine);
        io_rename(prev, none, &e);
    }
    free(prev);
    comm_free(mine.world);
    comm_barrier(world, "back");
    for (int step = 1; step <= 2 && world->rank == 0; step++) {
        char *path = io_path("%s/iter_%09d/manifest.json", dir, step);
        io_write_file(path, step == 1 ? "{ 1" : "{}", step == 1 ? 3 : 2, &e);
        free(path);
    }
    comm_barrier(world, "manifests");
    EXPECT(!e.code, "%s", e.msg);
    expect_stop("no valid checkpoint here:\n", RC_DATA, open_one, &a);
    expect_stop("iter_000000001/manifest.json:1:", RC_DATA, open_one, &a);
    expect_stop("iter_000000002/manifest.json: not an osp checkpoint", RC_DATA, open_one, &a);
    expect_stop("iter_000000003: no manifest.json (an unfinished or", RC_DATA, open_one, &a);
    char *half = io_path("%s/iter_%09d", dir, 1), *manifest = io_path("%s/manifest.json", half);
    if (world->rank == 0) EXPECT(remove(manifest) == 0, "%s", manifest);
    comm_barrier(world, "no manifest");
    a.path = half;
    expect_stop("manifest.json is missing (damaged, or copied in part)", RC_DATA, open_one, &a);
    free(manifest);
    free(half);
    fixture_close(&f);
    free(none);
    free(dir);
}

/* Damaged manifests whose checksum is right: only the form is left to judge them. */
static void test_manifests(struct comm *world)
{
    char *dir = fresh_dir("manifests"), *at = io_path("%s/iter_%09d", dir, 1),
         *path = io_path("%s/manifest.json", at);
    struct fixture f;
    open_small(&f, world, DT_F32);
    struct err e = {0};
    save(&f, dir, 1, 0, &e);
    size_t n;
    char *text = io_read_file(path, &n, &e), *hurt = malloc(n + 1);
    EXPECT(text && hurt, "%s", e.msg);
    const struct rng_stream s = rng_open((struct rng_key){.seed = 8, .use = RNG_TEST});
    const int64_t times = test_inputs(test_fast() ? 60 : 300);
    uint64_t draw = 0;
    int64_t refused = 0, taken = 0;
    for (int64_t i = 0; i < times; i++) {
        static const char marks[] = "[]{}:,\"-0123456789eE.ntr ";
        memcpy(hurt, text, n + 1);
        for (int k = 0; k <= i % 3; k++) {
            const size_t where = (size_t)(rng_uniform_at(s, draw++) * (double)n);
            hurt[where] = marks[(size_t)(rng_uniform_at(s, draw++) * (double)(sizeof marks - 1))];
        }
        json_t *m = json_loads(hurt, 0, NULL);
        if (json_is_object(m)) json_object_set_new(m, "crc", json_integer(ckpt_manifest_crc(m)));
        char *right = m ? json_dumps(m, JSON_COMPACT | JSON_REAL_PRECISION(17)) : strdup(hurt);
        FILE *out = fopen(path, "wb"); /* not io_write_file: it would wait for the disk */
        CHECK(out && right && fputs(right, out) >= 0 && fclose(out) == 0, "cannot write %s", path);
        struct err why = {0};
        json_t *got = ckpt_manifest(at, &why);
        EXPECT(got || (why.code == RC_DATA && strstr(why.msg, "manifest.json")), "%s", why.msg);
        got ? taken++ : refused++;
        json_decref(got);
        json_decref(m);
        free(right);
    }
    EXPECT(refused > times / 3, "%lld of %lld refused", (long long)refused, (long long)times);
    printf("    %lld damaged manifests: %lld refused, %lld of right form\n", (long long)times,
           (long long)refused, (long long)taken);
    fixture_close(&f);
    free(text), free(hurt), free(path), free(at), free(dir);
}

/* h5dump and h5py see every tensor whole, although it lies in pieces. */
static void test_readable(struct comm *world)
{
    (void)world;
    char *dir = fresh_dir("readable");
    struct reshard r = {dir, 1, true};
    comm_thread_run(3, reshard_rank, &r);
    char *cmd = io_path("cd %s/iter_000000001 && h5dump -d /model/blocks.0.modulation -s 0,0,0 -c "
                        "1,1,3 state.h5 2>&1",
                        dir);
    char text[4096];
    const int rc = test_command(cmd, text, sizeof text);
    if (rc == 127) {
        test_skip("h5dump is not installed");
    } else {
        char want[64];
        snprintf(want, sizeof want, "%g", value_at("blocks.0.modulation", 1, STATE_MASTER, 1));
        EXPECT(rc == 0 && strstr(text, "( 1, 6, 24 )") && strstr(text, want), "h5dump says: %s",
               text);
    }
    free(cmd);
    free(dir);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "N ranks write, M read: 36 pairs of 1,2,3,4,6,8", .run = test_reshard},
        {.name = "killed at every file operation of a save", .run = test_kill, .flags = TEST_SLOW},
        {.name = "every file operation of a save fails once", .run = test_fail, .flags = TEST_SLOW},
        {.name = "bit flips and truncation are noticed", .run = test_damage},
        {.name = "rotation keeps the last two, every third and what is a base",
         .run = test_rotation},
        {.name = "an earlier step in a used folder; nothing valid", .run = test_attempts},
        {.name = "wrong model, missing folder, full disk", .run = test_errors},
        {.name = "a folder without a valid manifest: why each was rejected",
         .run = test_rejected,
         .ranks = {1, 2}},
        {.name = "damaged manifests are refused, never worse", .run = test_manifests},
        {.name = "h5dump reads every tensor in full shape", .run = test_readable},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
