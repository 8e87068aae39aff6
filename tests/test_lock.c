/* Two jobs and one output: a data set is built once, results are written by one. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/io.h"
#include "core/lock.h"
#include "data/build.h"
#include "data/dataset.h"
#include "data/dataset_write.h"
#include "tests/check.h"
#include "tests/train_case.h"

static void one_owner(struct comm *world)
{
    (void)world;
    char *path = io_path("%s/own.lock", test_dir()), who[32], want[32];
    struct lock a, b;
    struct err e = {0};
    snprintf(want, sizeof want, "pid %ld", (long)getpid());
    EXPECT(lock_take(&a, path, who, &e), "%s", e.msg);
    EXPECT(!lock_take(&b, path, who, &e) && !e.code && strcmp(who, want) == 0, "%s %s", who, e.msg);
    lock_release(&b); /* not held: nothing */
    EXPECT(!lock_take(&b, path, who, &e), "a second owner");
    lock_release(&a);
    EXPECT(!io_exists(path), "the lock file stays");
    EXPECT(lock_take(&b, path, who, &e), "%s", e.msg);
    lock_release(&b);
    EXPECT(!lock_take(&a, "/proc/no.lock", who, &e) && e.code == RC_CANTCREAT &&
               strstr(e.msg, "cannot create the lock file \"/proc/no.lock\""),
           "%s", e.msg);
    free(path);
}

/* A job that was killed leaves the file, but not the lock. */
static void owner_killed(struct comm *world)
{
    (void)world;
    char *path = io_path("%s/killed.lock", test_dir()), who[32];
    struct lock l;
    struct err e = {0};
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        lock_take(&l, path, who, &e);
        raise(SIGKILL);
    }
    int status;
    waitpid(child, &status, 0);
    EXPECT(io_exists(path), "the child took no lock");
    EXPECT(lock_take(&l, path, who, &e), "%s", e.msg);
    lock_release(&l);
    free(path);
}

/* Four processes at once; exit code 1: built, 2: found it finished. */
static void built_once(struct comm *world)
{
    (void)world;
    char *path = io_path("%s/shared.h5", test_dir());
    pid_t child[4];
    int count[3] = {0};
    fflush(stdout);
    for (int i = 0; i < 4; i++) {
        child[i] = fork();
        if (child[i]) continue;
        struct err e = {0};
        struct build_report r;
        struct data_build g = train_case_build(path);
        g.keep_existing = i % 2; /* as osp data does, and as osp train does */
        const bool ok = build_dataset(&g, &r, &e);
        if (!ok) fprintf(stderr, "%s\n", e.msg);
        _exit(!ok ? 0 : r.kept ? 2 : 1);
    }
    for (int i = 0; i < 4; i++) {
        int status;
        waitpid(child[i], &status, 0);
        if (WIFEXITED(status) && WEXITSTATUS(status) < 3) count[WEXITSTATUS(status)]++;
    }
    EXPECT(count[1] == 1 && count[2] == 3, "%d built it, %d found it, %d failed", count[1],
           count[2], count[0]);
    struct err e = {0};
    struct dataset *d = dataset_open(path, 0, &e);
    EXPECT(d, "%s", e.msg);
    dataset_close(d);
    free(path);
}

static int asked;
static bool soon(void) { return ++asked > 2; }

static void waits_and_can_be_stopped(struct comm *world)
{
    (void)world;
    char *path = io_path("%s/busy.h5", test_dir()), *name = io_path("%s.lock", path), who[32];
    struct lock l;
    struct err e = {0};
    struct data_build g = train_case_build(path);
    g.interrupted = soon;
    EXPECT(lock_take(&l, name, who, &e), "%s", e.msg);
    EXPECT(!build_dataset(&g, NULL, &e) && e.code == RC_PREEMPTED && asked == 3, "%s", e.msg);
    EXPECT(io_exists(name) && !io_exists(path), "it touched what another process holds");
    lock_release(&l);
    free(name);
    free(path);
}

/* What one process abandons is not the temporary file of another. */
static void abandoned(struct comm *world)
{
    (void)world;
    char *path = io_path("%s/two.h5", test_dir());
    const struct dataset_spec s = {.codec = "pixel",
                                   .text_codec = "hash",
                                   .frames = 1,
                                   .height = 4,
                                   .width = 4,
                                   .text_dim = 4,
                                   .text_len = 2};
    struct err e = {0};
    struct dataset_writer *w = dataset_create(path, &s, &e);
    EXPECT(w, "%s", e.msg);
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        struct dataset_writer *other = dataset_create(path, &s, &e);
        if (other) dataset_abandon(other);
        _exit(other ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the second writer");
    const float latent[12 * 4] = {1};
    const int64_t clip = dataset_add_clip(w, "a.mp4", "00", 1, 0, 1);
    const int64_t caption = dataset_add_caption(w, "a", &e);
    EXPECT(dataset_add_sample(w, clip, 0, 0, 0, &caption, 1, latent, &e), "%s", e.msg);
    EXPECT(dataset_finish(w, &e), "%s", e.msg);
    free(path);
}

static char *program(void)
{
    const char *build = getenv("BUILD");
    return io_path("%s/osp", build ? build : "build/release");
}

/* Exit code of a verb; the output goes to said[]. */
static int run(const char *verb, const char *dir, char said[8192])
{
    char *osp = program(), *cmd = io_path("%s %s output_dir=%s 2>&1 </dev/null", osp, verb, dir);
    free(osp);
    const int rc = test_command(cmd, said, 8192);
    free(cmd);
    return rc;
}

static void outputs(struct comm *world)
{
    (void)world;
    char *osp = program();
    const bool there = io_exists(osp);
    free(osp);
    if (!there) {
        test_skip("the program is not built");
        return;
    }
    char *dir = io_path("%s/out", test_dir()), *sample = io_path("%s/sample.lock", dir),
         *train = io_path("%s/lock", dir), who[32], said[8192], want[256];
    struct err e = {0};
    struct lock a, b;
    io_mkdir(dir, &e);
    EXPECT(lock_take(&a, sample, who, &e) && lock_take(&b, train, who, &e), "%s", e.msg);
    snprintf(want, sizeof want, "%s is in use by another run (pid %ld), so osp sample", dir,
             (long)getpid());
    EXPECT(run("sample configs/sample/tiny.yaml", dir, said) == RC_CANTCREAT && strstr(said, want),
           "%s", said);
    snprintf(want, sizeof want, "%s is in use by another run (pid %ld), so osp train", dir,
             (long)getpid());
    EXPECT(run("train configs/train/tiny.yaml", dir, said) == RC_CANTCREAT && strstr(said, want),
           "%s", said);
    lock_release(&a);
    lock_release(&b);
    free(train);
    free(sample);
    free(dir);
}

int main(int argc, char **argv)
{
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    setenv("OMP_NUM_THREADS", "1", 0);
    const struct test tests[] = {
        {.name = "a lock has one owner, who is named", .run = one_owner},
        {.name = "a killed owner has given it up", .run = owner_killed},
        {.name = "four jobs build one data set once", .run = built_once},
        {.name = "a job that waits for a data set can be stopped", .run = waits_and_can_be_stopped},
        {.name = "an abandoned data set is one's own", .run = abandoned},
        {.name = "one job per output folder", .run = outputs},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
