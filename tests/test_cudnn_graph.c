/* The graphs of core/cuda/cudnn.c by their numbers: a stand-in for cuDNN (tests/fake_libcudnn.c)
 * runs them operation by operation; dq, dk and dv are compared with finite sums over the formulas,
 * in memory of the strides that the model has. And how the library is opened: what it needs beside
 * itself is found as pip lays it out, or named with the remedy. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/bf16.h"
#include "core/cuda/cudnn.h"
#include "core/rng.h"
#include "tests/check.h"

enum { ROWS = 64, WIDTH = 256 };
struct memory { /* each tensor in an array of its own; what is not its own holds a mark */
    uint16_t t[SDPA_TENSORS][ROWS * WIDTH];
    float lse[ROWS * 8], row_sum[ROWS * 8], dq_sum[ROWS * WIDTH];
};

static bool of_keys(int t) { return t == SDPA_K || t == SDPA_V || t == SDPA_DK || t == SDPA_DV; }

static int64_t at(const struct sdpa_shape *s, int t, int64_t b, int64_t h, int64_t i, int64_t x)
{
    return b * s->stride[t][0] + h * s->stride[t][1] + i * s->stride[t][2] + x;
}

static double get(const struct memory *m, const struct sdpa_shape *s, int t, int64_t b, int64_t h,
                  int64_t i, int64_t x)
{
    return (double)bf16_to(m->t[t][at(s, t, b, h, i, x)]);
}

static double dot(const struct memory *m, const struct sdpa_shape *s, int64_t b, int64_t h, int t,
                  int64_t i, int u, int64_t j)
{
    double sum = 0;
    for (int64_t x = 0; x < s->dim; x++) sum += get(m, s, t, b, h, i, x) * get(m, s, u, b, h, j, x);
    return sum;
}

/* What the passes must give for one batch entry and head: [rows][dim] of o, dq, dk, dv, and lse. */
struct want {
    double o[ROWS * WIDTH], dq[ROWS * WIDTH], dk[ROWS * WIDTH], dv[ROWS * WIDTH], lse[ROWS];
};

static void expected(const struct memory *m, const struct sdpa_shape *s, int64_t b, int64_t h,
                     double scale, struct want *w)
{
    const int64_t d = s->dim;
    memset(w, 0, sizeof *w);
    for (int64_t i = 0; i < s->q_len; i++) {
        double p[ROWS], sum = 0, delta = 0;
        for (int64_t j = 0; j < s->k_len; j++)
            sum += p[j] = exp(scale * dot(m, s, b, h, SDPA_Q, i, SDPA_K, j));
        w->lse[i] = log(sum);
        for (int64_t j = 0; j < s->k_len; j++) {
            p[j] /= sum;
            for (int64_t x = 0; x < d; x++) w->o[i * d + x] += p[j] * get(m, s, SDPA_V, b, h, j, x);
            if (s->backward) delta += p[j] * dot(m, s, b, h, SDPA_DO, i, SDPA_V, j);
        }
        for (int64_t j = 0; s->backward && j < s->k_len; j++) {
            const double ds = scale * p[j] * (dot(m, s, b, h, SDPA_DO, i, SDPA_V, j) - delta);
            for (int64_t x = 0; x < d; x++) {
                w->dq[i * d + x] += ds * get(m, s, SDPA_K, b, h, j, x);
                w->dk[j * d + x] += ds * get(m, s, SDPA_Q, b, h, i, x);
                w->dv[j * d + x] += p[j] * get(m, s, SDPA_DO, b, h, i, x);
            }
        }
    }
}

static void compare(const struct memory *m, const struct sdpa_shape *s, int t, const double *want,
                    int64_t b, int64_t h)
{
    static const char *const name[] = {"q", "k", "v", "o", "d_o", "dq", "dk", "dv"};
    const int64_t rows = of_keys(t) ? s->k_len : s->q_len;
    double got[ROWS * WIDTH];
    char text[64];
    for (int64_t i = 0; i < rows * s->dim; i++) got[i] = get(m, s, t, b, h, i / s->dim, i % s->dim);
    snprintf(text, sizeof text, "%s of entry %d, head %d", name[t], (int)b, (int)h);
    expect_close(text, got, want, rows * s->dim, 1.5e-2);
}

static void compare_all(const struct memory *m, const struct sdpa_shape *s, double scale)
{
    struct want *w = malloc(sizeof *w);
    CHECK(w, "out of memory");
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t h = 0; h < s->heads; h++) {
            double lse[ROWS];
            expected(m, s, b, h, scale, w);
            compare(m, s, SDPA_O, w->o, b, h);
            for (int64_t i = 0; i < s->q_len; i++)
                lse[i] = (double)m->lse[(b * s->heads + h) * s->q_len + i];
            expect_close("lse", lse, w->lse, s->q_len, 1e-5);
            if (!s->backward) continue;
            compare(m, s, SDPA_DQ, w->dq, b, h);
            compare(m, s, SDPA_DK, w->dk, b, h);
            compare(m, s, SDPA_DV, w->dv, b, h);
        }
    free(w);
}

/* Elements between the rows of a slice keep their mark. */
static void expect_marks(const struct memory *m, const struct sdpa_shape *s, int t)
{
    static bool own[ROWS * WIDTH];
    memset(own, 0, sizeof own);
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t h = 0; h < s->heads; h++)
            for (int64_t i = 0; i < (of_keys(t) ? s->k_len : s->q_len); i++)
                for (int64_t x = 0; x < s->dim; x++) own[at(s, t, b, h, i, x)] = true;
    int64_t lost = 0;
    for (int64_t i = 0; i < ROWS * WIDTH; i++) lost += !own[i] && m->t[t][i] != 0x4242;
    EXPECT(lost == 0, "tensor %d: %lld elements beside its own were written", t, (long long)lost);
}

static struct sdpa_shape shape(int64_t b, int64_t h, int64_t q, int64_t k, int64_t d, int64_t gap)
{
    struct sdpa_shape s;
    memset(&s, 0, sizeof s);
    s.batch = b;
    s.heads = h;
    s.q_len = q;
    s.k_len = k;
    s.dim = d;
    for (int t = 0; t < SDPA_FORWARD; t++) {
        s.stride[t][2] = h * d + 8 * (t + 1); /* all different: an exchanged one is seen */
        s.stride[t][1] = d;
        s.stride[t][0] = ((of_keys(t) ? k : q) + gap) * s.stride[t][2];
    }
    return s;
}

static void add_backward(struct sdpa_shape *s, int64_t gap)
{
    s->backward = 1;
    for (int t = SDPA_DO; t < SDPA_TENSORS; t++) {
        s->stride[t][2] = s->heads * s->dim + 8 * (t + 1);
        s->stride[t][1] = s->dim;
        s->stride[t][0] = ((of_keys(t) ? s->k_len : s->q_len) + gap) * s->stride[t][2];
    }
}

static void both_passes(struct cudnn *c, struct sdpa_shape s, int64_t gap, float scale)
{
    struct memory *m = calloc(1, sizeof *m);
    struct err why = {0};
    CHECK(m, "out of memory");
    const struct rng_stream r = rng_open((struct rng_key){.seed = 8, .use = RNG_TEST});
    struct sdpa_call call = {
        .lse = m->lse, .row_sum = m->row_sum, .dq_sum = m->dq_sum, .scale = scale};
    for (int t = 0; t < SDPA_TENSORS; t++) {
        call.data[t] = m->t[t];
        for (int64_t i = 0; i < ROWS * WIDTH; i++)
            m->t[t][i] = t == SDPA_O || t > SDPA_DO
                             ? 0x4242
                             : bf16_from((float)rng_normal_at(r, (uint64_t)(t * ROWS * WIDTH + i)));
    }
    EXPECT(cudnn_run(c, &s, &call, NULL, &why), "forward: %s", why.msg);
    compare_all(m, &s, (double)scale);
    expect_marks(m, &s, SDPA_O);
    add_backward(&s, gap);
    EXPECT(cudnn_run(c, &s, &call, NULL, &why), "backward: %s", why.msg);
    compare_all(m, &s, (double)scale);
    for (int t = SDPA_DQ; t < SDPA_TENSORS; t++) expect_marks(m, &s, t);
    free(m);
}

/* ---- opening --------------------------------------------------------------------------------- */

/* A new folder test_dir()/NAME/SUB with a link to a file of this build's tests. */
static void lay(const char *name, const char *sub, const char *file, const char *link)
{
    char path[4096] = "", at[4096], *end;
    CHECK(readlink("/proc/self/exe", path, sizeof path - 64) > 0, "where is this program?");
    strcpy(strrchr(path, '/') + 1, file);
    snprintf(at, sizeof at, "%s/%s/%s/", test_dir(), name, sub);
    for (end = at + strlen(test_dir()) + 1; (end = strchr(end, '/')); end++) {
        *end = 0;
        mkdir(at, 0755);
        *end = '/';
    }
    strncat(at, link, sizeof at - strlen(at) - 1);
    CHECK(access(path, R_OK) == 0 && symlink(path, at) == 0, "%s -> %s", at, path);
}

static bool stand_ins(void)
{
    char path[4096] = "";
    CHECK(readlink("/proc/self/exe", path, sizeof path - 64) > 0, "where is this program?");
    strcpy(strrchr(path, '/'), "/fake_driver/libcublasLt.so.13");
    if (access(path, R_OK) == 0) return true;
    test_skip("%s is not built", path);
    return false;
}

/* Opens the stand-in of that folder and plans a shape, in a process of its own: what is loaded
 * stays. said: the reason, or "planned"; "ended" when the library ended the process. sets: pairs of
 * name and value for the environment, NULL-terminated. */
static void opened(const char *name, const char *const *sets, char *said, size_t size)
{
    int fd[2];
    CHECK(pipe(fd) == 0, "pipe");
    const pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid == 0) {
        char path[4096];
        struct err why;
        struct sdpa_shape s = shape(1, 1, 9, 9, 16, 0);
        snprintf(path, sizeof path, "%s/%s/nvidia/cudnn/lib/libcudnn.so.9", test_dir(), name);
        setenv("OSP_CUDNN", path, 1);
        for (; *sets; sets += 2) setenv(sets[0], sets[1], 1);
        struct cudnn *c = cudnn_open(NULL, &why);
        if (c && cudnn_workspace(c, &s, &why) >= 0) strcpy(why.msg, "planned");
        _exit(write(fd[1], why.msg, strlen(why.msg)) < 0);
    }
    close(fd[1]);
    ssize_t n, at = 0;
    while ((n = read(fd[0], said + at, size - 1 - (size_t)at)) > 0) at += n;
    said[at] = 0;
    close(fd[0]);
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
    if (status) snprintf(said, size, "ended");
}

static void expect_said(const char *name, const char *const *sets, const char *want)
{
    char said[2048];
    opened(name, sets, said, sizeof said);
    EXPECT(strstr(said, want), "%s: \"%s\" instead of \"%s\"", name, said, want);
}
#define SETS(...) ((const char *const[]){__VA_ARGS__, NULL, NULL})

static void test_versions(struct comm *w)
{
    (void)w;
    if (!stand_ins()) return;
    const char *cudnn = "nvidia/cudnn/lib";
    lay("new", cudnn, "fake_libcudnn.so", "libcudnn.so.9");
    lay("new", "nvidia/cu99/lib", "fake_driver/libcublasLt.so.13", "libcublasLt.so.99");
    expect_said("new", SETS("FAKE_CUDNN_VERSION", "91500"),
                "cuDNN 9.15.0 is too old, 9.15.1 is needed");
    expect_said("new", SETS("FAKE_CUDNN_VERSION", "91501"), "planned");
}

static void test_needed(struct comm *w)
{
    (void)w;
    if (!stand_ins()) return;
    const char *cudnn = "nvidia/cudnn/lib";
    static const char *const found[][2] = {{"beside", "nvidia/cudnn/lib"},
                                           {"pip", "nvidia/cu99/lib"},
                                           {"older pip", "nvidia/cublas/lib"}};
    for (int i = 0; i < 3; i++) {
        lay(found[i][0], cudnn, "fake_libcudnn.so", "libcudnn.so.9");
        lay(found[i][0], found[i][1], "fake_driver/libcublasLt.so.13", "libcublasLt.so.99");
        expect_said(found[i][0], SETS(NULL), "planned");
    }
    lay("none", cudnn, "fake_libcudnn.so", "libcudnn.so.9");
    expect_said("none", SETS(NULL),
                "cuDNN needs cuBLASLt of CUDA 99, which cannot be opened: "
                "libcublasLt.so.99: cannot open shared object file");
    expect_said("none", SETS(NULL), "install it (pip: nvidia-cublas)");
    expect_said("pip", SETS("FAKE_CUDNN_CUDART", "98010"), "cuBLASLt of CUDA 98");
    lay("broken", cudnn, "fake_libcudnn.so", "libcudnn.so.9");
    lay("broken", "nvidia/cu99/lib", "test_cudnn_graph", "libcublasLt.so.99");
    expect_said("broken", SETS(NULL), "cu99/lib/libcublasLt.so.99: cannot");
    /* no NVRTC: said where there is no engine, and where a folder was named */
    expect_said("pip", SETS("FAKE_CUDNN_ENGINES", "0"),
                "the runtime compiler (NVRTC) of CUDA 99 cannot be opened, and cuDNN needs it: "
                "libnvrtc.so.99: cannot open");
    expect_said("pip", SETS("FAKE_CUDNN_ENGINES", "0"), "; cuDNN: no engine for this attention");
    expect_said("pip", SETS("OSP_NVRTC", "/nowhere"),
                "OSP_NVRTC: the runtime compiler (NVRTC) of CUDA 99 cannot be opened, and cuDNN "
                "needs it: /nowhere/libnvrtc.so.99: ");
}

static void test_numbers(struct comm *w)
{
    (void)w;
    if (!stand_ins()) return;
    char path[4096];
    struct err why = {0};
    lay("numbers", "nvidia/cudnn/lib", "fake_libcudnn.so", "libcudnn.so.9");
    lay("numbers", "nvidia/cu99/lib", "fake_driver/libcublasLt.so.13", "libcublasLt.so.99");
    snprintf(path, sizeof path, "%s/numbers/nvidia/cudnn/lib/libcudnn.so.9", test_dir());
    setenv("OSP_CUDNN", path, 1);
    struct cudnn *c = cudnn_open(NULL, &why);
    EXPECT(c, "%s", why.msg);
    if (!c) return;
    both_passes(c, shape(1, 1, 9, 9, 16, 0), 0, 0.25f);
    both_passes(c, shape(1, 3, 11, 5, 24, 0), 0, 0.2f);
    both_passes(c, shape(3, 2, 7, 13, 8, 2), 2, 0.4f);
    cudnn_close(c);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        /* first: what the last one loads stays */
        {.name = "a cuDNN that is too old is refused", .run = test_versions},
        {.name = "what cuDNN needs is found beside it, or named", .run = test_needed},
        {.name = "both passes of attention give what their formulas say", .run = test_numbers},
    };
    unsetenv("OSP_NVRTC");
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
