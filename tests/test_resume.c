/* Going on with a run: the data set and the folder must be the run's own, and the count of skipped
 * steps is not forgotten. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/log.h"
#include "tests/check.h"
#include "tests/train_case.h"
#include "train/build.h"

/* ---- data set and configuration ---------------------------------------------------------------*/
struct data_arg {
    struct comm *world;
    const char *set;
};

static void open_data(void *arg)
{
    const struct data_arg *a = arg;
    struct loaded_settings l;
    char *yaml = io_path("%s/train.yaml", test_dir()),
         *data = io_path("data_config.dataset_config.metafile_or_dir_path=%s", train_case_data());
    char *sets[] = {data, strdup(a->set)};
    settings_load(&l, SETTINGS_TRAIN, yaml, sets, 2);
    free(yaml);
    free(data);
    free(sets[1]);
    struct dataset *d = build_or_open(a->world, &l.s);
    dataset_close(d);
    settings_free(&l);
}

static void other_data(struct comm *world)
{
    static const char *const bad[][2] = {
        {"window_stride: 2", "window_stride: 2, but the data set was made with 4"},
        {"window_stride: null", "window_stride: null, but the data set was made with 4"},
        {"text_max_length: 7", "text_max_length: 7, but the data set was made with 8"},
        {"sample_height: 20", "sample_height: 20, but the data set was made with 16"},
        {"sample_num_frames: 5", "sample_num_frames: 5, but the data set was made with 4"},
        {"train_fps: 16", "train_fps: 16, but the data set was made with 8"},
        {"train_fps: null", "train_fps: null, but the data set was made with 8"},
    };
    train_case_data();
    struct data_arg a = {world, "seed=7"};
    open_data(&a); /* the same settings are fine */
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *set = io_path("data_config.dataset_config={%s}", bad[i][0]);
        a.set = set;
        expect_stop(bad[i][1], RC_CONFIG, open_data, &a);
        expect_stop("change the keys, or name a new data set in data_config.dataset_config.",
                    RC_CONFIG, open_data, &a);
        free(set);
    }
    a.set = "data_config.dataset_config={train_fps: null, sample_stride: 3, window_stride: 1}";
    expect_stop("window_stride: 1", RC_CONFIG, open_data, &a); /* all at once */
    expect_stop("sample_stride: 3, but the data set was made with null", RC_CONFIG, open_data, &a);
}

/* ---- steps skipped in a row -------------------------------------------------------------------*/
static void skip_and_save(struct comm *world, void *arg)
{
    struct train_case *c = calloc(1, sizeof *c);
    const char *extra[] = {"device=ref", arg, NULL};
    train_case_open(c, world, extra);
    const struct param *p = fsdp_find(c->ses.fsdp, "blocks.1.norm3.weight");
    double *bad = calloc((size_t)param_count(p), sizeof *bad);
    bad[0] = NAN;
    const int64_t before = c->t.state.skipped_in_row;
    EXPECT(before == c->t.state.step && before == c->t.state.skipped, "%lld in a row at step %lld",
           (long long)before, (long long)c->t.state.step);
    fsdp_put(c->ses.fsdp, STATE_MASTER, p->name, bad);
    for (int i = 0; i < 2; i++) trainer_step(&c->t, false, false);
    EXPECT(c->t.state.skipped_in_row == before + 2, "%lld", (long long)c->t.state.skipped_in_row);
    resume_save(&c->t, &c->l);
    free(bad);
    train_case_close(c);
    free(c);
}

static void skipped_in_a_row(struct comm *world)
{
    (void)world;
    char *out = io_path("output_dir=%s/skips", test_dir());
    for (int start = 0; start < 3; start++) comm_thread_run(start % 2 + 1, skip_and_save, out);
    free(out);
}

/* ---- folders with later steps -----------------------------------------------------------------*/
struct start_arg {
    struct comm *world;
    const char *out, *resume;
    int steps;
    bool save;
    int64_t from;
    const char *more; /* a further key, or NULL */
};

static void start(void *arg)
{
    struct start_arg *a = arg;
    struct train_case *c = calloc(1, sizeof *c);
    char *out = io_path("output_dir=%s/%s", test_dir(), a->out);
    char *resume = io_path("resume=%s", a->resume);
    const char *extra[] = {"device=ref", out, resume, a->more, NULL};
    train_case_open(c, a->world, extra);
    a->from = c->t.state.step;
    double loss[8];
    train_case_steps(c, a->steps, loss);
    if (a->save) resume_save(&c->t, &c->l);
    train_case_close(c);
    free(out);
    free(resume);
    free(c);
}

static void newer_steps(struct comm *world)
{
    struct start_arg a = {world, "used", "auto", 1, true, 0, NULL};
    for (int i = 0; i < 2; i++) start(&a); /* steps 1 and 2 */
    EXPECT(a.from == 1, "started at %lld", (long long)a.from);
    a.save = false;
    a.more = "validation.window=0.5";
    expect_stop("validation.window: 0.25 in the checkpoint, 0.5 now", RC_CONFIG, start, &a);
    a.more = NULL;
    a.resume = "never";
    expect_stop("resume: never would start at step 0", RC_CONFIG, start, &a);
    expect_stop("holds checkpoints up to step 2; set resume: auto to go on from there, choose "
                "another output_dir, or move them away",
                RC_CONFIG, start, &a);
    char *one = io_path("%s/used/checkpoints/iter_000000001", test_dir());
    a.resume = one;
    expect_stop("iter_000000001 would start at step 1, but", RC_CONFIG, start, &a);
    a.out = "fresh"; /* the same start is fine where nothing is newer */
    a.save = true;
    start(&a);
    EXPECT(a.from == 1, "started at %lld", (long long)a.from);
    a.save = false;
    expect_stop("holds checkpoints up to step 2", RC_CONFIG, start, &a); /* the second start */
    a.resume = "never";
    a.out = "empty";
    start(&a);
    EXPECT(a.from == 0, "started at %lld", (long long)a.from);
    /* nothing can be read there, but something was */
    char *bad = io_path("%s/broken/checkpoints/iter_000000009", test_dir());
    struct err e = {0};
    io_mkdir(bad, &e);
    a.out = "broken";
    expect_stop("holds checkpoints, which are damaged", RC_CONFIG, start, &a);
    a.out = "zero"; /* stopped before its first step */
    a.resume = "auto";
    a.steps = 0;
    a.save = true;
    start(&a);
    a.resume = "never";
    a.save = false;
    expect_stop("holds checkpoints up to step 0", RC_CONFIG, start, &a);
    free(bad);
    free(one);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "a data set made with other settings is refused", .run = other_data},
        {.name = "steps skipped in a row are counted across starts", .run = skipped_in_a_row},
        {.name = "no start before the newest step of the folder", .run = newer_steps},
    };
    log_set_level(LOG_WARN);
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
