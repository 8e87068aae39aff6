/* The other side of `osp bench gpu`: scripts/bench_torch.py as a child that stays alive, so that
 * it loads and compiles once. One JSON object a line each way over a socket pair; what it says
 * besides goes to its stderr. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "core/program.h"
#include "train/bench_gpu.h"

enum { ANSWER = 1 << 16 };
struct gpu_torch {
    pid_t pid;
    int fd;
    size_t have;
    char text[ANSWER];
};

/* Beside the sources that this program was built from, or in the current folder. */
static char *find_script(const struct gpu_options *o)
{
    if (o->script) return io_path("%s", o->script);
    char *tree = program_tree();
    char *path = tree ? io_path("%s/scripts/bench_torch.py", tree) : NULL;
    free(tree);
    if (path && io_exists(path)) return path;
    free(path);
    return io_path("scripts/bench_torch.py");
}

static void child(const struct gpu_options *o, const char *script, int fd)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* never outlives this program */
    char threads[32];
    snprintf(threads, sizeof threads, "%lld", (long long)o->threads);
    dup2(fd, 0);
    dup2(fd, 1);
    const char *const device = strcmp(o->device, "cuda") == 0 ? "cuda" : "cpu";
    execlp(o->torch, o->torch, script, "--serve", "--device", device, "--threads", threads,
           strcmp(o->scale, "tiny") == 0 ? "--no-compile" : NULL, (char *)NULL);
    fprintf(stderr, "torch=%s: %s\n", o->torch, strerror(errno));
    _exit(127);
}

struct gpu_torch *gpu_torch_open(const struct gpu_options *o, struct err *e)
{
    char *script = find_script(o);
    int pair[2];
    struct gpu_torch *t = NULL;
    if (!io_exists(script)) {
        err_set(e, RC_NOINPUT, "%s is not there; give script=PATH", script);
    } else if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        err_set(e, RC_IO, "socketpair: %s", strerror(errno));
    } else {
        fflush(NULL);
        const pid_t pid = fork();
        if (pid == 0) child(o, script, pair[1]);
        close(pair[1]);
        if (pid < 0) {
            err_set(e, RC_IO, "fork: %s", strerror(errno));
            close(pair[0]);
        } else {
            t = calloc(1, sizeof *t);
            CHECK(t, "out of memory");
            t->pid = pid;
            t->fd = pair[0];
        }
    }
    free(script);
    return t;
}

void gpu_torch_close(struct gpu_torch *t)
{
    if (!t) return;
    close(t->fd); /* the end of its input */
    for (int i = 0; i < 50; i++) {
        if (waitpid(t->pid, NULL, WNOHANG)) break;
        if (i == 40) kill(t->pid, SIGKILL);
        usleep(100000);
    }
    free(t);
}

static bool send_line(struct gpu_torch *t, json_t *request, struct err *e)
{
    char *line = json_dumps(request, JSON_COMPACT | JSON_REAL_PRECISION(17));
    CHECK(line, "a request that is no JSON");
    const size_t n = strlen(line);
    line[n] = '\n'; /* in place of the end: sent by length */
    bool sent = true;
    for (size_t at = 0; at <= n && sent;) {
        const ssize_t k = send(t->fd, line + at, n + 1 - at, MSG_NOSIGNAL);
        if (k < 0 && errno == EINTR) continue;
        sent = k > 0;
        if (sent) at += (size_t)k;
    }
    free(line);
    if (!sent) err_set(e, RC_IO, "the torch side has ended; its last words are above");
    return sent;
}

/* One line into t->text, without its end. */
static bool read_line(struct gpu_torch *t, double until, struct err *e)
{
    for (t->have = 0; t->have + 1 < ANSWER;) {
        const double left = until - log_seconds();
        struct pollfd p = {.fd = t->fd, .events = POLLIN};
        const int ready = poll(&p, 1, left > 0 ? (int)(1000 * left) + 1 : 0);
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) {
            err_set(e, RC_TEMP, "the torch side did not answer in time");
            return false;
        }
        const ssize_t k = recv(t->fd, t->text + t->have, ANSWER - 1 - t->have, 0);
        if (k <= 0) {
            err_set(e, RC_IO, "the torch side has ended; its last words are above");
            return false;
        }
        t->have += (size_t)k;
        if (t->text[t->have - 1] == '\n') {
            t->text[t->have - 1] = 0;
            return true;
        }
    }
    err_set(e, RC_DATA, "the torch side sent a line of more than %d bytes", ANSWER);
    return false;
}

json_t *gpu_torch_ask(struct gpu_torch *t, json_t *request, double seconds, struct err *e)
{
    json_error_t why;
    json_t *answer = NULL;
    CHECK(request, "out of memory");
    if (send_line(t, request, e) && read_line(t, log_seconds() + seconds, e)) {
        answer = json_loads(t->text, 0, &why);
        const char *error = json_string_value(json_object_get(answer, "error"));
        if (!answer) err_set(e, RC_DATA, "the torch side sent \"%.200s\"", t->text);
        if (error) {
            err_set(e, RC_SOFTWARE, "torch: %.900s", error);
            json_decref(answer);
            answer = NULL;
        }
    }
    json_decref(request);
    return answer;
}
