#include "tests/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/fault.h"
#include "core/io.h"
#include "core/log.h"
#include "data/video.h"
#include "tests/check.h"
#include "tests/train_case.h"

char *process_program(void)
{
    const char *build = getenv("BUILD");
    return io_path("%s/osp", build ? build : "build/release");
}

bool process_ready(void)
{
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);
    setenv("OMP_NUM_THREADS", "1", 0);
    setenv("OMPI_MCA_btl_vader_backing_directory", test_dir(), 1); /* killed ranks leave segments */
    char *osp = process_program();
    const bool there = io_exists(osp) && system("command -v mpirun >/dev/null 2>&1") == 0;
    free(osp);
    if (!there) test_skip("mpirun or the program is missing");
    return there;
}

const char *process_python(const char *modules)
{
    static const char *const list[] = {"build/venv/bin/python", "build/venv-test/bin/python",
                                       "python3"};
    for (int i = 0; i < 3; i++) {
        char *cmd = io_path("%s -c 'import %s' >/dev/null 2>&1", list[i], modules);
        const int rc = system(cmd);
        free(cmd);
        if (rc == 0) return list[i];
    }
    return NULL;
}

const char *process_python_torch(void)
{
    const char *py = process_python("torch, transformers, safetensors, tokenizers");
    if (!py)
        test_skip("no python with torch, transformers, safetensors (python3 -m venv build/venv && "
                  "build/venv/bin/pip install torch==2.13.0 transformers safetensors)");
    return py;
}

bool process_video_ready(const char *what)
{
    struct err e = {0};
    struct video_info info;
    if (video_probe("tests/clips/example_3_B.mp4", &info, &e) || !strstr(e.msg, "no video support"))
        return true;
    printf("  skip %s: built without libav\n0 passed, 0 failed, 1 skipped\n", what);
    return false;
}

char *process_yaml(const char *run, int iterations)
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
        "    sample_width: 16, sample_num_frames: 4, train_fps: 8, window_stride: 4, codec: pixel, "
        "text_codec: "
        "hash}\n"
        "optimizer_config: {lr: 1e-3, betas: [0.9, 0.95], eps: 1e-8}\n"
        "validation: {interval: 0, window: 0.25}\n",
        test_dir(), run, iterations, train_case_data());
    struct err e = {0};
    io_write_file(path, text, strlen(text), &e);
    CHECK(!e.code, "%s", e.msg);
    free(text);
    return path;
}

static void add_all(const char **argv, int *n, const char *const *more, size_t max)
{
    for (size_t i = 0; i < max && more[i]; i++) argv[(*n)++] = more[i];
}

pid_t process_start(const char *yaml, const char *log, const struct process_opts *o)
{
    char *osp = process_program(), ranks[16];
    snprintf(ranks, sizeof ranks, "%d", o->ranks ? o->ranks : 2);
    const char *argv[32] = {"mpirun", "-n", ranks};
    int n = 3;
    add_all(argv, &n, o->mpirun, sizeof o->mpirun / sizeof *o->mpirun);
    argv[n++] = osp;
    argv[n++] = o->verb ? o->verb : "train";
    argv[n++] = yaml;
    add_all(argv, &n, o->sets, sizeof o->sets / sizeof *o->sets);
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        const int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0666),
                  in = open("/dev/null", O_RDONLY);
        dup2(in, 0);
        dup2(fd, 1);
        dup2(fd, 2);
        setpgid(0, 0);
        if (o->fault) setenv("OSP_FAULT", o->fault, 1);
        for (int i = 0; i < 4 && o->env[i]; i++) putenv((char *)(uintptr_t)o->env[i]);
        execvp("mpirun", (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    free(osp);
    return pid;
}

int process_run(const char *yaml, const char *log, const struct process_opts *o, double *seconds)
{
    const double t = log_seconds();
    const int rc = process_end(process_start(yaml, log, o));
    if (seconds) *seconds = log_seconds() - t;
    process_wait_gone(yaml);
    return rc;
}

char *process_log(const char *log)
{
    struct err e = {0};
    char *text = io_read_file(log, NULL, &e);
    return text ? text : calloc(1, 1);
}

int process_ranks(const char *yaml, pid_t *rank, int max)
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

int process_marked(const char *mark, pid_t *pid, int max)
{
    int n = 0;
    DIR *d = opendir("/proc");
    for (struct dirent *e; d && (e = readdir(d)) && n < max;) {
        static char text[1 << 16];
        char *path = io_path("/proc/%s/environ", e->d_name);
        FILE *f = atoi(e->d_name) > 0 ? fopen(path, "r") : NULL;
        free(path);
        if (!f) continue;
        const size_t len = fread(text, 1, sizeof text, f);
        fclose(f);
        if (memmem(text, len, mark, strlen(mark))) pid[n++] = (pid_t)atoi(e->d_name);
    }
    if (d) closedir(d);
    return n;
}

void process_nap(double s)
{
    const struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&t, NULL);
}

/* mpirun 4.1 can lock itself up after its last rank was killed during its start (in PMIx, which it
 * leaves with "UNREACHABLE"): it lives, and has no child that does. */
static bool has_living_child(pid_t pid)
{
    char *cmd = io_path("pgrep -P %d -r D,R,S,T >/dev/null", (int)pid);
    const bool any = system(cmd) == 0;
    free(cmd);
    return any;
}

int process_end(pid_t pid)
{
    int status = 0, alone = 0;
    for (int i = 1; waitpid(pid, &status, WNOHANG) == 0; i++) {
        process_nap(0.02);
        if (i % 50) continue;
        alone = has_living_child(pid) ? 0 : alone + 1;
        if (alone < 15) continue;
        fprintf(stderr, "mpirun locked itself up after its ranks had ended; killed\n");
        kill(pid, SIGKILL);
        alone = 0;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void process_wait_gone(const char *yaml)
{
    pid_t rank[16];
    for (int i = 0; i < 200 && process_ranks(yaml, rank, 16); i++) process_nap(0.05);
}

int process_diff(const char *a, const char *b)
{
    char *osp = process_program();
    char *cmd =
        io_path("%s diff %s/%s %s/%s > %s/diff.log 2>&1 || (head -n 12 %s/diff.log; exit 1)", osp,
                test_dir(), a, test_dir(), b, test_dir(), test_dir());
    const int rc = system(cmd);
    free(cmd);
    free(osp);
    return WEXITSTATUS(rc);
}

bool process_fault(int k, const char *action, void (*save)(void *arg), void *arg)
{
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        char spec[64];
        snprintf(spec, sizeof spec, "io:%d:%s", k, action);
        fault_set(spec);
        save(arg);
        _exit(fault_count("io") < k ? 3 : 0);
    }
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 3;
}
