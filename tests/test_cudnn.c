/* cuDNN's plans for attention on an H200, made on a machine without one: from a description of the
 * GPU, with a driver that does nothing (tests/fake_libcuda.c, fake_cublaslt.c). The graphs must be
 * accepted, and an engine of the library must compile for each shape; nothing is run. The libraries
 * come from PyPI: .ci/run puts them into build/cudnn, OSP_CUDNN and OSP_NVRTC name others. NVRTC
 * and its own second file are found from there by nobody but core/cuda/cudnn.c. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/cuda/cudnn.h"
#include "core/log.h"
#include "tests/check.h"

static char gpu[4096];
static struct cudnn *lib;

/* Loaded under the name that others look for. */
static bool preload(const char *path)
{
    if (dlopen(path, RTLD_NOW | RTLD_GLOBAL)) return true;
    test_skip("%s", dlerror());
    return false;
}

/* The stand-ins beside this program. */
static bool preload_fake(const char *name)
{
    char exe[2048] = "", path[2200];
    if (readlink("/proc/self/exe", exe, sizeof exe - 1) <= 0) return false;
    *strrchr(exe, '/') = 0;
    snprintf(path, sizeof path, "%s/fake_driver/%s", exe, name);
    return preload(path);
}

static bool have_cudnn(void)
{
    setenv("OSP_CUDNN", "build/cudnn/nvidia/cudnn/lib/libcudnn.so.9", 0);
    if (access(getenv("OSP_CUDNN"), R_OK) != 0) {
        test_skip("no cuDNN at %s (pip install --no-deps --target build/cudnn nvidia-cudnn-cu13 "
                  "nvidia-cuda-nvrtc)",
                  getenv("OSP_CUDNN"));
        return false;
    }
    FILE *f = fopen("tests/data/h200.json", "r");
    CHECK(f && fread(gpu, 1, sizeof gpu - 1, f) > 0, "tests/data/h200.json");
    fclose(f);
    return true;
}

static bool here(void)
{
    struct err why;
    if (lib) return true;
    if (!have_cudnn() || !preload_fake("libcuda.so.1") || !preload_fake("libcublasLt.so.13"))
        return false;
    lib = cudnn_open(gpu, &why);
    if (!lib) test_skip("%s", why.msg);
    return lib;
}

/* fused: q, k and v are slices of one array, as the model has them; gap: rows between batch
 * entries. */
static struct sdpa_shape shape(int64_t b, int64_t h, int64_t q, int64_t k, int64_t d, bool backward,
                               bool fused, int64_t gap)
{
    struct sdpa_shape s;
    memset(&s, 0, sizeof s);
    s.batch = b;
    s.heads = h;
    s.q_len = q;
    s.k_len = k;
    s.dim = d;
    s.backward = backward;
    for (int t = 0; t < (backward ? SDPA_TENSORS : SDPA_FORWARD); t++) {
        const bool keys = t == SDPA_K || t == SDPA_V || t == SDPA_DK || t == SDPA_DV;
        const bool slice = fused && t != SDPA_O && t != SDPA_DO;
        s.stride[t][2] = (slice ? 3 : 1) * h * d;
        s.stride[t][1] = d;
        s.stride[t][0] = ((keys ? k : q) + gap) * s.stride[t][2];
    }
    return s;
}

static const struct {
    int64_t b, h, q, k, d;
    bool fused;
    int64_t gap;
} list[] = {
    {1, 40, 75600, 75600, 128, true, 0}, /* 720p, full */
    {4, 40, 20160, 20160, 128, true, 0}, /* 768 x 1280, sparse */
    {2, 40, 19320, 19320, 128, true, 0}, /* 720p, sparse: two lengths */
    {2, 40, 18480, 18480, 128, true, 0},
    {1, 10, 75600, 75600, 128, true, 0}, /* full, Ulysses over 4 */
    {1, 12, 32760, 32760, 128, true, 0}, /* 1.3B at 480p */
    {1, 40, 75600, 512, 128, false, 0},  /* cross attention */
    {3, 4, 24, 24, 24, true, 0},         /* small ones: the tests' model */
    {2, 3, 17, 33, 64, false, 5},
    {1, 2, 100, 100, 96, true, 0},
    {1, 2, 100, 77, 256, false, 0},
};

static void test_planned(struct comm *w)
{
    (void)w;
    if (!here()) return;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        for (int backward = 0; backward < 2; backward++) {
            if (test_fast() && i != 2 && i < 7) continue;
            struct sdpa_shape s = shape(list[i].b, list[i].h, list[i].q, list[i].k, list[i].d,
                                        backward, list[i].fused, list[i].gap);
            struct err why;
            const double begin = log_seconds();
            const int engines = cudnn_engines(lib, &s, &why);
            const int64_t room = cudnn_workspace(lib, &s, &why);
            if (test_verbose())
                printf("    %s (%lld,%lld,%lld,%lld,%lld): %d engines, workspace %lld, %.2f s\n",
                       backward ? "backward" : "forward", (long long)s.batch, (long long)s.heads,
                       (long long)s.q_len, (long long)s.k_len, (long long)s.dim, engines,
                       (long long)room, log_seconds() - begin);
            EXPECT(engines >= 1 && room >= 0 && room <= SDPA_WORKSPACE && !why.code,
                   "%s, batch %lld, %lld heads, %lld x %lld, dim %lld: %d engines, workspace %lld, "
                   "%s",
                   backward ? "backward" : "forward", (long long)s.batch, (long long)s.heads,
                   (long long)s.q_len, (long long)s.k_len, (long long)s.dim, engines,
                   (long long)room, why.msg);
        }
}

static void test_kept(struct comm *w)
{
    (void)w;
    if (!here()) return;
    struct err why;
    struct sdpa_shape s = shape(1, 2, 48, 48, 64, true, true, 0);
    const double begin = log_seconds();
    cudnn_workspace(lib, &s, &why);
    const double first = log_seconds() - begin;
    for (int i = 0; i < 100; i++) cudnn_workspace(lib, &s, &why);
    const double again = (log_seconds() - begin - first) / 100;
    EXPECT(again < 0.05 * first, "the first plan took %g s, the same again %g s", first, again);
}

/* Refused with a reason, every time. */
static void test_refused(struct comm *w)
{
    (void)w;
    if (!here()) return;
    for (int i = 0; i < 4; i++) {
        struct sdpa_shape s = shape(1, 2, 100, 100, i % 2 ? 34 : 12, i / 2, true, 0);
        for (int again = 0; again < 2; again++) {
            struct err why = {0};
            EXPECT(cudnn_workspace(lib, &s, &why) == -1 && why.code && strstr(why.msg, "cuDNN: "),
                   "head_dim %lld: %s", (long long)s.dim, why.msg);
        }
    }
    struct err why;
    EXPECT(!cudnn_open("{\"deviceName\": \"none\"}", &why) && why.code, "no GPU was accepted");
    char was[4096];
    snprintf(was, sizeof was, "%s", getenv("OSP_CUDNN"));
    setenv("OSP_CUDNN", "/nowhere/libcudnn.so.9", 1);
    EXPECT(!cudnn_open(gpu, &why) && strstr(why.msg, "/nowhere/libcudnn.so.9"), "%s", why.msg);
    setenv("OSP_CUDNN", "libm.so.6", 1);
    EXPECT(!cudnn_open(gpu, &why) && strstr(why.msg, "libm.so.6 has no cudnnGetVersion"), "%s",
           why.msg);
    setenv("OSP_CUDNN", was, 1);
}

/* ---- without what it needs ------------------------------------------------------------------- */

/* The files of cuDNN alone, linked into test_dir()/nvidia/cudnn/lib, as those of OSP_CUDNN; path
 * becomes that of the first. */
static void alone(char *path, size_t size)
{
    char folder[4096], from[4200], to[4200];
    const char *const files[] = {"",
                                 "_adv",
                                 "_cnn",
                                 "_ops",
                                 "_graph",
                                 "_heuristic",
                                 "_engines_precompiled",
                                 "_engines_runtime_compiled"};
    CHECK(realpath(getenv("OSP_CUDNN"), folder), "OSP_CUDNN");
    *strrchr(folder, '/') = 0;
    snprintf(to, sizeof to, "mkdir -p %s/nvidia/cudnn/lib", test_dir());
    CHECK(system(to) == 0, "%s", to);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(from, sizeof from, "%s/libcudnn%s.so.9", folder, files[i]);
        snprintf(to, sizeof to, "%s/nvidia/cudnn/lib/libcudnn%s.so.9", test_dir(), files[i]);
        CHECK(symlink(from, to) == 0, "%s", to);
    }
    snprintf(path, size, "%s/nvidia/cudnn/lib/libcudnn.so.9", test_dir());
}

/* A plan by a process of its own, since what is loaded stays: the reason, or "planned". */
static void try_alone(const char *cudnn, bool cublaslt, char *said, size_t size)
{
    int fd[2], status = 0;
    CHECK(pipe(fd) == 0, "pipe");
    const pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid == 0) {
        struct err why = {0};
        struct sdpa_shape s = shape(1, 2, 48, 48, 64, false, true, 0);
        setenv("OSP_CUDNN", cudnn, 1);
        unsetenv("OSP_NVRTC");
        preload_fake("libcuda.so.1");
        if (cublaslt) preload_fake("libcublasLt.so.13");
        struct cudnn *c = cudnn_open(gpu, &why);
        if (c && cudnn_workspace(c, &s, &why) >= 0) strcpy(why.msg, "planned");
        _exit(write(fd[1], why.msg, strlen(why.msg) + 1) < 0);
    }
    close(fd[1]);
    const ssize_t n = read(fd[0], said, size - 1);
    said[n > 0 ? n : 0] = 0;
    close(fd[0]);
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
    if (status) snprintf(said, size, "the process ended with status %d", status);
}

static bool findable(const char *name)
{
    void *so = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (so) dlclose(so);
    return so;
}

static void test_alone(struct comm *w)
{
    (void)w;
    char said[2048], path[4200];
    if (!have_cudnn()) return;
    if (findable("libcublasLt.so.13") || findable("libnvrtc.so.13") ||
        access("/usr/local/cuda/lib64/libnvrtc.so.13", F_OK) == 0) {
        test_skip("CUDA's libraries are found everywhere on this machine");
        return;
    }
    alone(path, sizeof path);
    try_alone(path, false, said, sizeof said);
    EXPECT(strstr(said, "cuDNN needs cuBLASLt of CUDA 13, which cannot be opened: libcublasLt"),
           "%s", said);
    try_alone(path, true, said, sizeof said);
    EXPECT(strstr(said, "the runtime compiler (NVRTC) of CUDA 13 cannot be opened, and cuDNN needs "
                        "it: libnvrtc.so.13: "),
           "%s", said);
    if (test_verbose()) printf("    %s\n", said);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        /* first: what the others load stays */
        {.name = "without cuBLASLt or NVRTC it says so", .run = test_alone},
        {.name = "attention of every shape has a plan for an H200", .run = test_planned},
        {.name = "a plan is made once", .run = test_kept},
        {.name = "what has no plan is refused with the reason", .run = test_refused},
    };
    const int rc = test_main(argc, argv, t, sizeof t / sizeof *t);
    cudnn_close(lib);
    return rc;
}
