/* Verbs inspect and diff on checkpoints written by the real writer. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/fixture.h"
#include "train/inspect.h"

struct job {
    const char *dir;
    int step;
    double change; /* added to one element of one tensor */
    bool ema;
};

static json_t *meta_of(int step, int ranks)
{
    return json_pack("{s:i, s:{s:i, s:i, s:i, s:f, s:{s:f, s:f, s:f}}, s:{s:i, s:i}, s:s,"
                     " s:{s:i, s:i, s:i, s:i}, s:s}",
                     "step", step, "state", "cursor", 12 * step, "adam_steps", step, "skipped", 1,
                     "seconds", 2.5, "clip", "mean", 0.5, "limit", 0.75, "var", 0.01, "structure",
                     "model_config.skiparse_model_type", SKIPARSE_DUAL_END,
                     "model_config.sparse_ratio", 2, "config", "seed: 7\n", "layout", "ranks",
                     ranks, "fsdp_size", ranks, "skiparse_sp_size", 1, "sp_size", 1, "stage",
                     "sft");
}

static void change_one(struct fixture *f, double by)
{
    const char *name = "head.head.weight";
    const struct param *p = fsdp_find(f->fsdp, name);
    double *x = calloc((size_t)param_count(p), sizeof *x);
    fsdp_get(f->fsdp, STATE_MASTER, name, x);
    x[3] += by;
    fsdp_put(f->fsdp, STATE_MASTER, name, x);
    free(x);
}

static void write_job(struct comm *world, void *arg)
{
    const struct job *j = arg;
    struct fixture f;
    const struct fixture_opts o = {.device = "ref",
                                   .compute = DT_F32,
                                   .model = fixture_model(),
                                   .batch = 1,
                                   .t = 1,
                                   .h = 2,
                                   .w = 2,
                                   .fsdp = {.prefetch = 1, .optimizer = true, .ema = true}};
    fixture_open(&f, world, &o);
    fsdp_init_params(f.fsdp, 3);
    if (j->change != 0) change_one(&f, j->change);
    struct ckpt_snapshot *s = ckpt_snapshot(
        f.fsdp, &f.mesh, 1u << STATE_MASTER | 1u << STATE_M | (j->ema ? 1u << STATE_EMA : 0));
    const struct ckpt_place place = {j->dir, 0, 0};
    json_t *meta = meta_of(j->step, world->size);
    struct err e = {0};
    ckpt_write(world, &place, s, meta, &e);
    EXPECT(!e.code, "%s", e.msg);
    json_decref(meta);
    ckpt_snapshot_free(s);
    fixture_close(&f);
}

/* <test dir>/name/checkpoints/iter_...; returns the run folder. */
static char *make_run(const char *name, int ranks, int step, double change, bool ema)
{
    char *run = io_path("%s/%s", test_dir(), name), *dir = io_path("%s/checkpoints", run);
    struct job j = {dir, step, change, ema};
    comm_thread_run(ranks, write_job, &j);
    free(dir);
    return run;
}

static char *inspected(const char *path, struct inspect_opts o)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    EXPECT(inspect_checkpoint(path, o, f) == RC_OK, "exit code");
    fclose(f);
    return text;
}

static char *compared(const char *a, const char *b, bool json, int want)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    const int rc = diff_checkpoints(a, b, json, f);
    fclose(f);
    EXPECT(rc == want, "exit code %d, want %d:\n%s", rc, want, text);
    return text;
}

static void says_what_is_in_it(struct comm *world)
{
    (void)world;
    char *run = make_run("says", 2, 40, 0, true);
    char *t = inspected(run, (struct inspect_opts){.verify = true, .config = true});
    static const char *const want[] = {"/iter_000000040\n",
                                       "step       40\n",
                                       "ranks 2, fsdp_size 2",
                                       "dual_end",
                                       "sparse_ratio 2",
                                       "stage sft",
                                       "cursor 480",
                                       "limit 0.75",
                                       "every byte of every file matches",
                                       "base hash ",
                                       "optim/m hash ",
                                       "ema hash ",
                                       "seed: 7\n",
                                       "patch_embedding.weight",
                                       "24x3x1x2x2"};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        EXPECT(strstr(t, want[i]), "no \"%s\" in:\n%.1500s", want[i], t);
    free(t);
    t = inspected(run, (struct inspect_opts){0});
    EXPECT(!strstr(t, "seed: 7") && strstr(t, "not compared"), "without flags");
    free(t);
    free(run);
}

static void numbers_are_right(struct comm *world)
{
    (void)world;
    char *run = make_run("numbers", 1, 1, 1000, false);
    char *text = inspected(run, (struct inspect_opts){.json = true});
    json_t *o = json_loads(text, 0, NULL), *t;
    EXPECT(o, "not JSON:\n%.300s", text);
    EXPECT(json_integer_value(json_object_get(o, "step")) == 1, "step");
    EXPECT(!json_object_get(json_object_get(o, "meta"), "config"), "config only when asked for");
    size_t i;
    bool found = false;
    json_array_foreach(json_object_get(o, "tensors"), i, t)
    {
        const char *name = json_string_value(json_object_get(t, "name"));
        const char *kind = json_string_value(json_object_get(t, "kind"));
        const double l2 = json_real_value(json_object_get(t, "l2"));
        const double max = json_real_value(json_object_get(t, "max"));
        const double mean = json_real_value(json_object_get(t, "mean"));
        if (strcmp(kind, "optim/m") == 0) EXPECT(l2 == 0 && max == 0 && mean == 0, "%s", name);
        if (strcmp(kind, "model") || strcmp(name, "head.head.weight")) continue;
        found = true; /* 12 x 24; zero at the start, one element changed */
        EXPECT(fabs(max - 1000) < 1 && fabs(l2 - 1000) < 1 && fabs(mean - 1000.0 / 288) < 0.1,
               "%g %g %g", l2, max, mean);
    }
    EXPECT(found, "head.head.weight");
    json_decref(o);
    free(text);
    free(run);
}

/* The word after "base hash"; malloc'ed. */
static char *base_hash(const char *run)
{
    char *t = inspected(run, (struct inspect_opts){0}), *at = strstr(t, "base hash");
    char *out = calloc(1, 65);
    if (at) sscanf(at, "base hash %64s", out);
    EXPECT(strlen(out) == 64, "\"%s\"", out);
    free(t);
    return out;
}

static void hash_is_of_the_weights(struct comm *world)
{
    (void)world;
    char *one = make_run("one", 1, 1, 0, false), *three = make_run("three", 3, 9, 0, true);
    char *other = make_run("other", 1, 1, 1e-4, false);
    char *a = base_hash(one), *b = base_hash(three), *c = base_hash(other);
    EXPECT(strcmp(a, b) == 0, "one rank and three ranks: %s %s", a, b);
    EXPECT(strcmp(a, c) != 0, "a changed element");
    free(a);
    free(b);
    free(c);
    free(one);
    free(three);
    free(other);
}

static void inspect_verified(void *path)
{
    FILE *null = fopen("/dev/null", "w");
    inspect_checkpoint(path, (struct inspect_opts){.verify = true}, null);
    fclose(null);
}

static void damage_is_found(struct comm *world)
{
    (void)world;
    char *run = make_run("damage", 1, 5, 0, false);
    char *file = io_path("%s/checkpoints/iter_000000005/rank_00000.h5", run);
    FILE *f = fopen(file, "r+");
    EXPECT(f && fseek(f, -100, SEEK_END) == 0, "%s", file);
    const int was = fgetc(f);
    fseek(f, -100, SEEK_END);
    fputc(was ^ 1, f); /* one bit */
    fclose(f);
    expect_stop("do not match their checksum", RC_DATA, inspect_verified, run);
    char *none = io_path("%s/nothing", test_dir());
    expect_stop("no such folder", RC_NOINPUT, inspect_verified, none);
    free(none);
    free(file);
    free(run);
}

static void diff_finds_a_change(struct comm *world)
{
    (void)world;
    char *a = make_run("diff_a", 1, 1, 0, true), *b = make_run("diff_b", 2, 1, 0, true);
    char *c = make_run("diff_c", 1, 2, 0.5, true), *d = make_run("diff_d", 1, 2, 0, false);
    char *t = compared(a, b, false, 0);
    EXPECT(strstr(t, "0 different, 0 shape, 0 only in A, 0 only in B"), "%s", t);
    free(t);
    t = compared(a, c, false, 1);
    EXPECT(strstr(t, "different  model/head.head.weight 12x24 f32  max |a-b| 0.5"), "%s", t);
    EXPECT(strstr(t, "1 different"), "%s", t);
    free(t);
    t = compared(a, d, false, 1);
    EXPECT(strstr(t, "only in A  ema/head.head.weight") && strstr(t, " 0 only in B"), "%s", t);
    free(t);
    t = compared(d, a, true, 1);
    json_t *o = json_loads(t, 0, NULL), *counts = json_object_get(o, "counts");
    EXPECT(json_integer_value(json_object_get(counts, "only in B")) > 10 &&
               json_integer_value(json_object_get(counts, "different")) == 0,
           "%.600s", t);
    json_decref(o);
    free(t);
    free(a);
    free(b);
    free(c);
    free(d);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"inspect says step, layout, sparsity, stage, clip state, cursor and hashes",
         says_what_is_in_it,
         {0},
         0},
        {"inspect: norm, maximum and mean of every tensor, as JSON", numbers_are_right, {0}, 0},
        {"the base hash is of the weights, whatever the layout", hash_is_of_the_weights, {0}, 0},
        {"inspect --verify finds one damaged bit", damage_is_found, {0}, 0},
        {"diff finds the tensor that changed and what is in one only", diff_finds_a_change, {0}, 0},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
