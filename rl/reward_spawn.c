#include "rl/reward_spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ORDER_TEXT = 16384, MAX_WORDS = 256, LOG_BYTES = 16 << 20, SCORER_FD = 3 };
enum order_kind { ORDER_RUN = 1, ORDER_KILL, ORDER_ENDED };
struct order { /* one packet of the control socket, either way */
    uint32_t kind;
    int32_t status;
    uint64_t serial;
    uint32_t size; /* of text: log path, command, then NAME=VALUE ..., each with its 0 */
    char text[ORDER_TEXT];
};
enum { ORDER_HEAD = offsetof(struct order, text) };
struct spawner {
    int fd;
    pid_t pid;
    uint64_t serial; /* of the newest start */
};

/* ---- the process: static memory only ---- */
static struct child {
    pid_t pid; /* 0: free */
    uint64_t serial;
    int out, log; /* what it prints, and where that goes; -1: closed */
    long logged;
    bool ended; /* the process itself; others of its group may live */
    int status;
} children[SPAWN_MAX];
static struct order order;

/* What a scorer sees of our environment: these names, and every name with these beginnings. */
static const char *const allowed[] = {
    "PATH=",       "HOME=",         "TMPDIR=",       "LD_LIBRARY_PATH=", "VIRTUAL_ENV=",
    "PYTHONPATH=", "PYTHONHOME=",   "CUDA_",         "NVIDIA_",          "OMP_NUM_THREADS=",
    "OSP_REWARD_", "ASAN_OPTIONS=", "LSAN_OPTIONS=", "UBSAN_OPTIONS=",   "TSAN_OPTIONS="};
static const char *const added[] = {"LANG=C.UTF-8",
                                    "LC_ALL=C.UTF-8",
                                    "PYTHONUNBUFFERED=1",
                                    "PYTHONDONTWRITEBYTECODE=1",
                                    "HF_HUB_OFFLINE=1",
                                    "TRANSFORMERS_OFFLINE=1",
                                    "HF_DATASETS_OFFLINE=1",
                                    "HF_HUB_DISABLE_TELEMETRY=1",
                                    "TOKENIZERS_PARALLELISM=false",
                                    "CUBLAS_WORKSPACE_CONFIG=:4096:8"};

int spawner_words(char *text, char **word, int max)
{
    int n = 0;
    char *p = text, *to = text, quote = 0;
    while (*p) {
        while (*p == ' ' || *p == '\t' || *p == '\n') p++;
        if (!*p) break;
        if (n == max - 1) return -1;
        word[n++] = to;
        for (; *p && (quote || (*p != ' ' && *p != '\t' && *p != '\n')); p++) {
            if (quote ? *p == quote : *p == '\'' || *p == '"')
                quote = quote ? 0 : *p;
            else
                *to++ = *p;
        }
        if (quote) return -1;
        if (*p) p++;
        *to++ = 0;
    }
    word[n] = NULL;
    return n;
}

static void close_from(unsigned first)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, first, ~0u, 0) == 0) return;
#endif
    for (int fd = (int)first; fd < 65536; fd++) close(fd);
}

/* By the system call: the C library refuses the signals it keeps for its threads (32, 33), and
 * some launchers hand those down ignored. */
static void default_signals(void)
{
    static const struct {
        unsigned long handler, flags, restorer, mask;
    } by_default = {0};
    for (int sig = 1; sig < NSIG; sig++)
        syscall(SYS_rt_sigaction, sig, &by_default, NULL, sizeof by_default.mask);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void narrow_environment(const char *text, const char *end)
{
    extern char **environ;
    static char *env[512];
    int n = 0;
    for (char **e = environ; *e && n < 400; e++)
        for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
            if (strncmp(*e, allowed[i], strlen(allowed[i])) == 0) {
                env[n++] = *e;
                break;
            }
    env[n] = NULL;
    environ = env;
    for (size_t i = 0; i < sizeof added / sizeof *added; i++) putenv((char *)(uintptr_t)added[i]);
    for (; text < end; text += strlen(text) + 1) putenv((char *)(uintptr_t)text);
}

static _Noreturn void become_scorer(int socket, int out, pid_t parent)
{
    static char *word[MAX_WORDS];
    char *command = order.text + strlen(order.text) + 1;
    char *env = command + strlen(command) + 1;
    setpgid(0, 0);
    default_signals();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127); /* it died before the line above */
    dup2(open("/dev/null", O_RDONLY), 0);
    dup2(out, 1);
    dup2(out, 2);
    dup2(socket, SCORER_FD); /* never descriptor 3 itself: that is the control socket */
    close_from(SCORER_FD + 1);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0});
    umask(077);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (nice(5) == -1) errno = 0;
    narrow_environment(env, order.text + order.size);
    if (spawner_words(command, word, MAX_WORDS) > 0) execvp(word[0], word);
    char line[512];
    const int n = snprintf(line, sizeof line, "cannot run \"%.400s\": %s\n",
                           word[0] ? word[0] : command, strerror(errno));
    const ssize_t done = write(2, line, (size_t)n);
    (void)done;
    _exit(127);
}

static void tell_end(int control, uint64_t serial, int status)
{
    order.kind = ORDER_ENDED;
    order.serial = serial;
    order.status = status;
    order.size = 0;
    const ssize_t done = send(control, &order, ORDER_HEAD, MSG_NOSIGNAL);
    (void)done; /* a trainer that is gone shows in poll */
}

static void run_scorer(int control, int socket)
{
    int out[2], i = 0;
    while (i < SPAWN_MAX && children[i].pid) i++;
    if (i == SPAWN_MAX || pipe2(out, O_CLOEXEC | O_NONBLOCK) != 0) {
        tell_end(control, order.serial, 126 << 8);
        return;
    }
    fcntl(out[1], F_SETFL, 0);
    const pid_t self = getpid(), pid = fork();
    if (pid == 0) become_scorer(socket, out[1], self);
    close(out[1]);
    if (pid < 0) {
        close(out[0]);
        tell_end(control, order.serial, 126 << 8);
        return;
    }
    setpgid(pid, pid); /* both sides, so that a kill right now finds the group */
    const int log = open(order.text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    struct stat st;
    children[i] = (struct child){.pid = pid, .serial = order.serial, .out = out[0], .log = log};
    if (log >= 0 && fstat(log, &st) == 0) children[i].logged = st.st_size;
}

/* At most a few hundred KiB a call, so that a flood does not keep the others waiting. */
static void copy_output(struct child *c)
{
    static char text[65536];
    static const char full[] = "\n[this log is full; the rest is not kept]\n";
    for (int i = 0; i < 4 && c->out >= 0; i++) {
        const ssize_t n = read(c->out, text, sizeof text);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n <= 0) {
            close(c->out);
            c->out = -1;
            return;
        }
        if (c->log < 0 || c->logged > LOG_BYTES) continue;
        ssize_t done = write(c->log, text, (size_t)n);
        c->logged += n;
        if (c->logged > LOG_BYTES) done = write(c->log, full, sizeof full - 1);
        (void)done; /* a full disk must not end the training */
    }
}

static void kill_group(pid_t pid)
{
    kill(-pid, SIGKILL);
    kill(pid, SIGKILL);
}

/* True: nothing of its group is left. Its orphans have become children of this process. */
static bool group_gone(const struct child *c)
{
    pid_t pid;
    while ((pid = waitpid(-c->pid, NULL, WNOHANG)) > 0) continue;
    if (pid == 0) kill(-c->pid, SIGKILL); /* a group keeps its number while it lives */
    return pid < 0 && errno == ECHILD;
}

static void reap(int control)
{
    for (int i = 0; i < SPAWN_MAX; i++) {
        struct child *c = &children[i];
        siginfo_t info = {0};
        if (!c->pid) continue;
        if (!c->ended && waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
            info.si_pid == c->pid) {
            kill(-c->pid, SIGKILL); /* before the number is given back */
            c->ended = waitpid(c->pid, &c->status, 0) == c->pid;
        }
        if (!c->ended || !group_gone(c)) continue;
        copy_output(c);
        if (c->out >= 0) close(c->out);
        if (c->log >= 0) close(c->log);
        c->pid = 0;
        tell_end(control, c->serial, c->status);
    }
    for (;;) { /* orphans that had left their group */
        siginfo_t info = {0};
        bool leader = false;
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || !info.si_pid) return;
        for (int i = 0; i < SPAWN_MAX; i++)
            leader |= children[i].pid == info.si_pid && !children[i].ended;
        if (leader) return; /* its turn is in the next round */
        waitpid(info.si_pid, NULL, 0);
    }
}

static _Noreturn void leave(void)
{
    for (int i = 0; i < SPAWN_MAX; i++)
        if (children[i].pid) kill_group(children[i].pid);
    for (int round = 0, left = 1; left && round < 500; round++) { /* 5 s, if the kernel holds one */
        left = 0;
        for (int i = 0; i < SPAWN_MAX; i++) left += children[i].pid && !group_gone(&children[i]);
        if (left) nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    _exit(0);
}

/* One order of the trainer; false: it has closed its end. */
static bool obey(int control)
{
    union { /* aligned for the descriptor */
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } extra;
    struct iovec v = {&order, sizeof order};
    struct msghdr m = {.msg_iov = &v,
                       .msg_iovlen = 1,
                       .msg_control = extra.bytes,
                       .msg_controllen = sizeof extra.bytes};
    const ssize_t n = recvmsg(control, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n < (ssize_t)ORDER_HEAD) return false;
    int socket = -1;
    const struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c && c->cmsg_type == SCM_RIGHTS) memcpy(&socket, CMSG_DATA(c), sizeof socket);
    if (order.kind == ORDER_RUN && socket >= 0) run_scorer(control, socket);
    if (socket >= 0) close(socket);
    for (int i = 0; order.kind == ORDER_KILL && i < SPAWN_MAX; i++)
        if (children[i].pid && children[i].serial == order.serial) kill_group(children[i].pid);
    return true;
}

/* Readers of command lines (ps, pkill -f) must not take this process for a rank. */
static void rename_process(void)
{
    prctl(PR_SET_NAME, "osp-scorers");
    FILE *f = fopen("/proc/self/stat", "r");
    char text[2048];
    const size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    char *p = strrchr(text, ')');
    for (int field = 2; p && field < 48; field++) p = strchr(p + 1, ' ');
    unsigned long start = 0, end = 0;
    if (!p || sscanf(p, "%lu %lu", &start, &end) != 2 || !start || end <= start) return;
    memset((void *)start, 0, end - start);
    strncpy((char *)start, "osp-scorers", end - start - 1);
}

static _Noreturn void spawner_main(int socket, pid_t trainer)
{
    const int null = open("/dev/null", O_RDWR);
    setsid();
    default_signals();
    for (int fd = 0; fd < 3; fd++) dup2(null, fd); /* the launcher waits for its pipes to close */
    int control = fcntl(socket, F_DUPFD_CLOEXEC, 100);
    dup2(control, SCORER_FD);
    close_from(SCORER_FD + 1);
    control = SCORER_FD;
    fcntl(control, F_SETFD, FD_CLOEXEC);
    rename_process();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigset_t block;
    sigemptyset(&block);
    for (int i = 0; i < 5; i++)
        sigaddset(&block, (const int[]){SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGPIPE}[i]);
    sigprocmask(SIG_SETMASK, &block, NULL);
    const int ends = signalfd(-1, &block, SFD_CLOEXEC | SFD_NONBLOCK);
    while (getppid() == trainer) {
        struct pollfd p[2 + SPAWN_MAX] = {{control, POLLIN, 0}, {ends, POLLIN, 0}};
        for (int i = 0; i < SPAWN_MAX; i++) /* a negative descriptor is skipped */
            p[2 + i] = (struct pollfd){children[i].pid ? children[i].out : -1, POLLIN, 0};
        poll(p, 2 + SPAWN_MAX, 500); /* ... and look whether the trainer lives */
        struct signalfd_siginfo info;
        while (read(ends, &info, sizeof info) > 0) continue;
        for (int i = 0; i < SPAWN_MAX; i++)
            if (children[i].pid && p[2 + i].revents) copy_output(&children[i]);
        reap(control);
        if (p[0].revents && !obey(control)) break;
    }
    leave();
}

/* ---- the trainer's side ---- */
struct spawner *spawner_start(struct err *e)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
        err_set(e, RC_TEMP, "no socket for the scorers: %s", strerror(errno));
        return NULL;
    }
    const pid_t self = getpid(), pid = fork();
    if (pid == 0) spawner_main(pair[1], self);
    close(pair[1]);
    if (pid < 0) {
        err_set(e, RC_TEMP, "cannot start the process for the scorers: %s", strerror(errno));
        close(pair[0]);
        return NULL;
    }
    struct spawner *s = malloc(sizeof *s);
    CHECK(s, "out of memory");
    *s = (struct spawner){pair[0], pid, 0};
    return s;
}

void spawner_stop(struct spawner *s)
{
    if (!s) return;
    close(s->fd);
    for (int i = 0; waitpid(s->pid, NULL, i < 500 ? WNOHANG : 0) == 0; i++) {
        if (i == 499) kill(s->pid, SIGKILL); /* it was stopped; its scorers die with it */
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    free(s);
}

static bool add_text(struct order *o, const char *text)
{
    const size_t n = strlen(text) + 1;
    if (n > ORDER_TEXT - o->size) return false;
    memcpy(o->text + o->size, text, n);
    o->size += (uint32_t)n;
    return true;
}

uint64_t spawner_run(struct spawner *s, const char *command, const char *log,
                     const char *const *env, int socket)
{
    struct order o = {.kind = ORDER_RUN, .serial = ++s->serial};
    if (!add_text(&o, log) || !add_text(&o, command)) return 0;
    for (; env && *env; env++)
        if (!add_text(&o, *env)) return 0;
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } extra = {0};
    struct iovec v = {&o, ORDER_HEAD + o.size};
    struct msghdr m = {.msg_iov = &v,
                       .msg_iovlen = 1,
                       .msg_control = extra.bytes,
                       .msg_controllen = sizeof extra.bytes};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){
        .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(c), &socket, sizeof socket);
    return sendmsg(s->fd, &m, MSG_NOSIGNAL) > 0 ? o.serial : 0;
}

void spawner_kill(struct spawner *s, uint64_t serial)
{
    const struct order o = {.kind = ORDER_KILL, .serial = serial};
    const ssize_t done = send(s->fd, &o, ORDER_HEAD, MSG_NOSIGNAL);
    (void)done; /* gone: spawner_next says so */
}

int spawner_next(struct spawner *s, uint64_t *serial, int *status)
{
    struct order o;
    const ssize_t n = recv(s->fd, &o, sizeof o, MSG_DONTWAIT);
    if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (n < (ssize_t)ORDER_HEAD || o.kind != ORDER_ENDED) return -1;
    *serial = o.serial;
    *status = o.status;
    return 1;
}

int spawner_fd(const struct spawner *s) { return s->fd; }
