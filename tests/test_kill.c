/* Real processes: `mpirun -n 2 osp train` is killed with SIGKILL at random moments, again and
 * again; every start resumes, and the run ends with the bits of an undisturbed one. Signals end it
 * with a checkpoint and the documented exit code. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/io.h"
#include "core/rng.h"
#include "tests/check.h"
#include "tests/train_case.h"

enum { ITERATIONS = 160 };

static char *program(void)
{
    const char *build = getenv("BUILD");
    return io_path("%s/osp", build ? build : "build/release");
}

static char *write_yaml(const char *run)
{
    char *path = io_path("%s/%s.yaml", test_dir(), run);
    char *text = io_path(
        "seed: 7\noutput_dir: %s/%s\nweight_dtype: fp32\ngrad_clip: adaptive\nema_decay: 0.99\n"
        "training_iteration: %d\nlog_interval: 1\nsave_interval: 4\ncheckpoint: {keep_last: 2}\n"
        "model_config: {dim: 48, ffn_dim: 96, freq_dim: 16, in_dim: 12, out_dim: 12, num_heads: "
        "4,\n"
        "  num_layers: 4, text_len: 8, text_dim: 8, skiparse_model_type: dual_end, sparse_ratio: "
        "2}\n"
        "data_config:\n  batch_size: 2\n  global_batch_size: 8\n"
        "  dataset_config: {metafile_or_dir_path: %s, text_max_length: 8, sample_height: 16,\n"
        "    sample_width: 16, sample_num_frames: 4, train_fps: 8, window_stride: 4,\n"
        "    codec: pixel, text_codec: hash}\n"
        "optimizer_config: {lr: 1e-3, betas: [0.9, 0.95], eps: 1e-8}\n"
        "validation: {interval: 0, window: 0.25}\n",
        test_dir(), run, ITERATIONS, train_case_data());
    struct err e = {0};
    io_write_file(path, text, strlen(text), &e);
    CHECK(!e.code, "%s", e.msg);
    free(text);
    return path;
}

static const char *const no_sets[] = {NULL};

static pid_t start_with(const char *yaml, const char *log, const char *const *sets)
{
    char *osp = program();
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        const int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0666),
                  in = open("/dev/null", O_RDONLY);
        dup2(in, 0);
        dup2(fd, 1);
        dup2(fd, 2);
        setpgid(0, 0);
        const char *argv[16] = {"mpirun", "-n", "2", osp, "train", yaml};
        for (int i = 0; sets[i] && i < 8; i++) argv[6 + i] = sets[i];
        execvp("mpirun", (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    free(osp);
    return pid;
}

static pid_t start(const char *yaml, const char *log) { return start_with(yaml, log, no_sets); }

/* Ranks of the run: processes with its YAML on their command line that are not mpirun. */
static int find_ranks(const char *yaml, pid_t *rank, int max)
{
    int n = 0;
    DIR *d = opendir("/proc");
    for (struct dirent *e; d && (e = readdir(d)) && n < max;) {
        char *path = io_path("/proc/%s/cmdline", e->d_name);
        FILE *f = atoi(e->d_name) > 0 ? fopen(path, "r") : NULL;
        free(path);
        if (!f) continue;
        char text[4096];
        const size_t len = fread(text, 1, sizeof text - 1, f);
        fclose(f);
        text[len] = 0;
        const bool mpirun = strstr(text, "mpirun") == text;
        for (size_t i = 0; i < len; i++)
            if (!text[i]) text[i] = ' ';
        if (!mpirun && strstr(text, yaml)) rank[n++] = (pid_t)atoi(e->d_name);
    }
    if (d) closedir(d);
    return n;
}

static void nap(double s)
{
    const struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&t, NULL);
}

static int finish(pid_t pid)
{
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void wait_gone(const char *yaml)
{
    pid_t rank[16];
    for (int i = 0; i < 200 && find_ranks(yaml, rank, 16); i++) nap(0.05);
}

static int diff(const char *a, const char *b)
{
    char *osp = program();
    char *cmd =
        io_path("%s diff %s/%s %s/%s > %s/diff.log 2>&1 || (head -n 12 %s/diff.log; exit 1)", osp,
                test_dir(), a, test_dir(), b, test_dir(), test_dir());
    const int rc = system(cmd);
    free(cmd);
    free(osp);
    return WEXITSTATUS(rc);
}

static bool have_mpirun(void)
{
    char *osp = program();
    const bool there = io_exists(osp) && system("command -v mpirun >/dev/null 2>&1") == 0;
    free(osp);
    if (!there) test_skip("mpirun or the program is missing");
    return there;
}

static void test_kill(struct comm *world)
{
    (void)world;
    if (!have_mpirun()) return;
    const char *count = getenv("KILLS");
    const int kills = count ? atoi(count) : test_fast() ? 3 : 20;
    char *calm = write_yaml("calm"), *storm = write_yaml("storm");
    char *log = io_path("%s/kill.log", test_dir());
    EXPECT(finish(start(calm, log)) == 0, "the undisturbed run failed, see %s", log);
    const struct rng_stream s =
        rng_open((struct rng_key){.seed = (uint64_t)time(NULL), .use = RNG_TEST});
    int done = 0, early = 0, rounds = 0;
    uint64_t draw = 0;
    while (done < kills && rounds < 2 * kills) { /* a run that ends first is followed by another */
        char *dir = io_path("%s/storm", test_dir());
        struct err e = {0};
        io_remove_tree(dir, &e);
        free(dir);
        rounds++;
        for (int rc = 1; rc != 0;) {
            const pid_t pid = start(storm, log);
            if (done < kills) {
                nap(0.25 + 1.2 * rng_uniform_at(s, draw++));
                pid_t rank[16];
                const int n = find_ranks(storm, rank, 16);
                const int which = (int)(rng_uniform_at(s, draw++) * (n + 1));
                if (n) kill(which < n ? rank[which] : pid, SIGKILL);
                early += !n;
                done += n > 0;
            }
            rc = finish(pid);
            wait_gone(storm);
            EXPECT(rc == 0 || rc == 137 || rc == 1 || rc == 143, "exit code %d, see %s", rc, log);
            if (rc != 0 && rc != 137 && rc != 1 && rc != 143) break;
        }
        EXPECT(diff("calm", "storm") == 0, "the killed run ends with other bits; see %s/diff.log",
               test_dir());
    }
    EXPECT(done >= kills, "only %d of %d kills", done, kills);
    printf("    %d kills in %d runs (%d starts too early to kill)\n", done, rounds, early);
    free(calm);
    free(storm);
    free(log);
}

static void test_signal(struct comm *world)
{
    (void)world;
    if (!have_mpirun()) return;
    char *yaml = write_yaml("polite"), *log = io_path("%s/signal.log", test_dir());
    const pid_t pid = start(yaml, log);
    pid_t rank[16];
    int n = 0;
    char *lines = io_path("%s/polite/metrics.jsonl", test_dir());
    for (int i = 0; i < 200 && !(io_exists(lines) && (n = find_ranks(yaml, rank, 16)) == 2); i++)
        nap(0.05);
    nap(0.3);
    if (n) kill(rank[n - 1], SIGUSR1);
    const int rc = finish(pid);
    EXPECT(rc == RC_PREEMPTED || rc == 0, "exit code %d", rc);
    EXPECT(finish(start(yaml, log)) == 0, "the run does not go on after a signal, see %s", log);
    EXPECT(!io_exists("calm") || diff("calm", "polite") == 0, "bits differ after a signal");
    free(yaml);
    free(log);
    free(lines);
}

/* A rank that stops answering: the others say so after the deadline and end with code 86. */
static void test_hang(struct comm *world)
{
    (void)world;
    if (!have_mpirun()) return;
    char *yaml = write_yaml("hang"), *log = io_path("%s/hang.log", test_dir());
    const char *const sets[] = {"comm_deadline_s=2", "training_iteration=100000",
                                "save_interval=100000", NULL};
    const pid_t pid = start_with(yaml, log, sets);
    pid_t rank[16];
    int n = 0;
    char *lines = io_path("%s/hang/metrics.jsonl", test_dir());
    for (int i = 0; i < 200 && !(io_exists(lines) && (n = find_ranks(yaml, rank, 16)) == 2); i++)
        nap(0.05);
    nap(0.5);
    if (n) kill(rank[0], SIGSTOP);
    const int rc = finish(pid);
    EXPECT(rc == RC_HANG, "exit code %d", rc);
    struct err e = {0};
    char *text = io_read_file(log, NULL, &e);
    EXPECT(text && strstr(text, "a rank is missing") && strstr(text, "on axis"), "%s",
           text ? text : e.msg);
    wait_gone(yaml);
    free(text);
    free(lines);
    free(log);
    free(yaml);
}

int main(int argc, char **argv)
{
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);
    setenv("OMP_NUM_THREADS", "1", 0);
    const struct test tests[] = {
        {.name = "kill -9 at random moments loses nothing", .run = test_kill, .flags = TEST_SLOW},
        {.name = "a signal to one rank ends all with a checkpoint",
         .run = test_signal,
         .flags = TEST_SLOW},
        {.name = "a stopped rank is noticed and named", .run = test_hang, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
