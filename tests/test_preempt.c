/* A signal to any rank, in every part of a run that takes longer than about a second: all ranks
 * stop at the same place with a checkpoint and exit code 85, and the next start goes on to the same
 * bits. Then the exit codes themselves. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/process.h"

enum { ITERATIONS = 12 };
static const struct process_opts plain;
static const struct process_opts with_validation = {
    .sets = {"validation.interval=4", "validation.sigmas=4"}};

struct stop {
    const char *name, *fault, *says; /* in the log of the stopped run */
    const char *sets[3];
    const char *again; /* in the log of the next start; NULL: resumed from */
};

static void one_stop(const struct stop *s, const char *calm)
{
    char *yaml = process_yaml(s->name, ITERATIONS),
         *log = io_path("%s/%s.log", test_dir(), s->name);
    struct process_opts o = calm[4] ? with_validation : plain;
    o.fault = s->fault;
    for (int i = 0, n = calm[4] ? 2 : 0; i < 3 && s->sets[i]; i++) o.sets[n++] = s->sets[i];
    double seconds = 0;
    const int rc = process_run(yaml, log, &o, &seconds);
    char *text = process_log(log);
    EXPECT(rc == RC_PREEMPTED, "%s: exit code %d: %s", s->name, rc, text);
    EXPECT(strstr(text, s->says), "%s: \"%s\" is not in: %s", s->name, s->says, text);
    EXPECT(seconds < 15, "%s: %.1f s", s->name, seconds);
    char *again = io_path("%s/%s.again.log", test_dir(), s->name);
    o.fault = NULL;
    const int second = process_run(yaml, again, &o, NULL);
    char *said = process_log(again);
    EXPECT(second == 0 && strstr(said, s->again ? s->again : "resumed from"),
           "%s: the next start: %d, %s", s->name, second, said);
    EXPECT(process_diff(calm, s->name) == 0, "%s: other bits than the undisturbed run", s->name);
    free(said);
    free(again);
    free(text);
    free(log);
    free(yaml);
}

static bool make(const char *name, const struct process_opts *o)
{
    char *yaml = process_yaml(name, ITERATIONS), *log = io_path("%s/%s.log", test_dir(), name);
    const int rc = process_run(yaml, log, o, NULL);
    EXPECT(rc == 0, "the undisturbed run ends with %d, see %s", rc, log);
    free(log);
    free(yaml);
    return rc == 0;
}

static void test_signals(struct comm *world)
{
    (void)world;
    if (!process_ready() || !make("calm", &plain)) return;
    static const struct stop list[] = {
        {"term", "step@1:6:term", "stopped by a signal or the end of the job at step 6", {0}, NULL},
        {"usr1", "step@0:6:usr1", "at step 6;", {0}, NULL},
        {"usr2", "step@1:6:usr2", "at step 6;", {0}, NULL},
        {"int", "step@1:6:int", "at step 6;", {0}, NULL},
        /* no step more than needed: the checkpoint that is being written will do */
        {"saving", "save@1:1:term", "at step 4;", {0}, NULL},
        {"starting", "start@1:1:term", "at step 0;", {0}, "step 1/12"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) one_stop(&list[i], "calm");
}

static void test_validation(struct comm *world)
{
    (void)world;
    if (!process_ready() || !make("calm_v", &with_validation)) return;
    static const struct stop list[] = {
        {"first_valid", "validate@1:2:usr1", "at step 0;", {0}, "step 1/12"},
        {"validating", "validate@1:22:usr1", "at step 4;", {0}, NULL},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) one_stop(&list[i], "calm_v");
}

/* Rank 0 builds the data set, another rank gets the signal. */
static void test_building(struct comm *world)
{
    (void)world;
    if (!process_ready() || !make("calm", &plain)) return;
    char *path = io_path("data_config.dataset_config.metafile_or_dir_path=%s/new.h5", test_dir());
    const char *const extra[] = {"data_config.dataset_config.source=tests/clips/clips.json",
                                 "data_config.dataset_config.window_stride=4", path, NULL};
    struct stop s = {
        "building", "poll@1:1:term", "interrupted before it was complete", {0}, "step 1/12"};
    for (int i = 0; i < 3; i++) s.sets[i] = extra[i];
    one_stop(&s, "calm");
    free(path);
}

static void test_clock(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    char *yaml = process_yaml("clock", 100000), *log = io_path("%s/clock.log", test_dir()), env[64];
    snprintf(env, sizeof env, "SLURM_JOB_END_TIME=%lld", (long long)time(NULL) + 23);
    const struct process_opts o = {.sets = {"stop_before_end_s=20", "save_interval=100000"},
                                   .env = {env}};
    double seconds = 0;
    const int rc = process_run(yaml, log, &o, &seconds);
    char *text = process_log(log);
    EXPECT(rc == RC_PREEMPTED && strstr(text, "stopped by a signal or the end of the job"),
           "exit code %d: %s", rc, text);
    EXPECT(seconds > 1 && seconds < 12, "%.1f s, expected about 3", seconds);
    EXPECT(process_run(yaml, log, &(struct process_opts){.sets = {"max_seconds=1e-3"}}, NULL) == 0,
           "the next start, see %s", log);
    free(text);
    free(log);
    free(yaml);
}

/* The second SIGINT ends a run that cannot stop in order. */
static void test_second_interrupt(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    char *yaml = process_yaml("twice", ITERATIONS), *log = io_path("%s/twice.log", test_dir()),
         *lines = io_path("%s/twice/metrics.jsonl", test_dir());
    const pid_t pid = process_start(yaml, log, &(struct process_opts){.fault = "step:4:hang"});
    pid_t rank[4];
    int n = 0;
    for (int i = 0; i < 200 && !(io_exists(lines) && (n = process_ranks(yaml, rank, 4)) == 2); i++)
        process_nap(0.05);
    process_nap(1);
    if (n) kill(rank[0], SIGINT);
    process_nap(0.5);
    EXPECT(n && process_ranks(yaml, rank, 4) == 2, "the first SIGINT must not end a rank");
    if (n) kill(rank[0], SIGINT);
    EXPECT(process_end(pid) == 130, "see %s", log);
    process_wait_gone(yaml);
    free(lines);
    free(log);
    free(yaml);
}

static void expect_code(int want, const char *says, struct process_opts o)
{
    char *yaml = process_yaml("codes", ITERATIONS),
         *log = io_path("%s/code%d.log", test_dir(), want);
    const int rc = process_run(yaml, log, &o, NULL);
    char *text = process_log(log);
    EXPECT(rc == want && strstr(text, says), "exit code %d, expected %d with \"%s\": %s", rc, want,
           says, text);
    struct err e = {0};
    char *dir = io_path("%s/codes", test_dir());
    io_remove_tree(dir, &e);
    free(dir);
    free(text);
    free(log);
    free(yaml);
}

/* 0, 70, 85, 86 are asserted by the tests above and in test_death; 88 has no user yet. */
static void test_codes(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    char *bad = io_path("%s/bad.h5", test_dir()),
         *damaged = io_path("data_config.dataset_config.metafile_or_dir_path=%s", bad);
    struct err e = {0};
    io_write_file(bad, "not a data set", 14, &e);
    expect_code(RC_USAGE, "unknown", (struct process_opts){.verb = "trian"});
    expect_code(RC_DATA, "bad.h5", (struct process_opts){.sets = {damaged}});
    expect_code(RC_NOINPUT, "no such data set",
                (struct process_opts){
                    .sets = {"data_config.dataset_config.metafile_or_dir_path=/nowhere/x.h5"}});
    expect_code(RC_CANTCREAT, "/proc/", (struct process_opts){.sets = {"output_dir=/proc/none"}});
    expect_code(RC_IO, "the checkpoint before it is untouched",
                (struct process_opts){.fault = "io_space:1"});
    expect_code(RC_CONFIG, "did you mean", (struct process_opts){.sets = {"save_intervall=3"}});
    expect_code(RC_NUMERIC, "steps in a row were not finite",
                (struct process_opts){.sets = {"optimizer_config.lr=1000",
                                               "optimizer_config.weight_decay=1000",
                                               "max_skipped_steps=1"}});
    free(damaged);
    free(bad);
}

/* The data do not come, and the job is asked to stop: no step will end. */
static void test_temporary(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    char *yaml = process_yaml("temporary", ITERATIONS), *log = io_path("%s/temp.log", test_dir()),
         *dir = io_path("%s/temporary/checkpoints/iter_000000004", test_dir());
    const pid_t pid = process_start(yaml, log, &(struct process_opts){.fault = "data@1:14:hang"});
    pid_t rank[4];
    int n = 0;
    for (int i = 0; i < 200 && !(io_exists(dir) && (n = process_ranks(yaml, rank, 4)) == 2); i++)
        process_nap(0.05);
    process_nap(1);
    for (int i = 0; i < n; i++) kill(rank[i], SIGTERM);
    const int rc = process_end(pid);
    char *text = process_log(log);
    EXPECT(rc == RC_TEMP && strstr(text, "the data did not come for"), "exit code %d: %s", rc,
           text);
    process_wait_gone(yaml);
    EXPECT(process_run(yaml, log, &plain, NULL) == 0, "the next start, see %s", log);
    free(text);
    free(dir);
    free(log);
    free(yaml);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "a signal to one rank ends all with a checkpoint",
         .run = test_signals,
         .flags = TEST_SLOW},
        {.name = "a signal is seen during validation", .run = test_validation, .flags = TEST_SLOW},
        {.name = "a signal to any rank ends the building of a data set",
         .run = test_building,
         .flags = TEST_SLOW},
        {.name = "the end of a Slurm job is a reason to stop",
         .run = test_clock,
         .flags = TEST_SLOW},
        {.name = "the second SIGINT ends at once",
         .run = test_second_interrupt,
         .flags = TEST_SLOW},
        {.name = "exit codes", .run = test_codes, .flags = TEST_SLOW},
        {.name = "data that do not come do not keep a job that must stop",
         .run = test_temporary,
         .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
