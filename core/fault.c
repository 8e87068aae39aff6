#include "core/fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/err.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool active; /* set before the threads that call fault_hit start */
static char wanted[64];
static long at;
static int my_rank;
enum action { FAIL, NO_SPACE, KILL, SEGV, STOP, TERM, INT, USR1, USR2, EXIT, HANG, SLOW, ACTIONS };
static const struct {
    const char *name;
    int sig; /* raised */
} actions[ACTIONS] = {{"fail", 0},       {"enospc", 0},     {"kill", SIGKILL}, {"segv", SIGSEGV},
                      {"stop", SIGSTOP}, {"term", SIGTERM}, {"int", SIGINT},   {"usr1", SIGUSR1},
                      {"usr2", SIGUSR2}, {"exit", 0},       {"hang", 0},       {"slow", 0}};
static enum action action;
static atomic_long seen;

void fault_rank(int rank) { my_rank = rank; }

static void set(const char *spec)
{
    active = false;
    seen = 0;
    if (!spec || !spec[0]) return;
    char act[16] = "fail", rest[2];
    const int got = sscanf(spec, "%63[^:]:%ld:%15[a-z0-9]%1s", wanted, &at, act, rest);
    int which = 0, rank = my_rank, end = 0;
    while (which < ACTIONS && strcmp(act, actions[which].name)) which++;
    char *of = strchr(wanted, '@');
    const bool whose = !of || (sscanf(of, "@%d%n", &rank, &end) == 1 && !of[end]);
    if (got < 2 || got > 3 || at < 0 || which == ACTIONS || !whose)
        err_stop(RC_USAGE,
                 "OSP_FAULT=\"%s\": expected name[@rank]:n or "
                 "name[@rank]:n:fail|enospc|kill|segv|stop|term|int|usr1|usr2|exit|hang|slow",
                 spec);
    if (of) *of = 0;
    action = (enum action)which;
    active = rank == my_rank;
}

static void from_environment(void) { set(getenv("OSP_FAULT")); }

void fault_set(const char *spec)
{
    pthread_once(&once, from_environment); /* so that it cannot overwrite this call later */
    set(spec);
}

/* The process is lost, late, or asked to stop. */
static void act_out(void)
{
    if (actions[action].sig) raise(actions[action].sig);
    if (action == EXIT) exit(0);
    while (action == HANG) pause();
    if (action == SLOW) sleep(3);
}

bool fault_hit(const char *name)
{
    pthread_once(&once, from_environment);
    if (!active || strcmp(name, wanted) != 0) return false;
    if (atomic_fetch_add(&seen, 1) + 1 != at) return false;
    if (action != FAIL && action != NO_SPACE) {
        act_out();
        return false;
    }
    errno = action == NO_SPACE ? ENOSPC : EIO;
    return true;
}

long fault_count(const char *name) { return strcmp(name, wanted) == 0 ? (long)seen : 0; }
