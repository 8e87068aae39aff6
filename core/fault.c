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
static enum { ACT_FAIL, ACT_ENOSPC, ACT_KILL } action;
static atomic_long seen;

static void set(const char *spec)
{
    active = false;
    seen = 0;
    if (!spec || !spec[0]) return;
    char act[16] = "fail", rest[2];
    const int got = sscanf(spec, "%63[^:]:%ld:%15[a-z]%1s", wanted, &at, act, rest);
    const bool known = !strcmp(act, "fail") || !strcmp(act, "enospc") || !strcmp(act, "kill");
    if (got < 2 || got > 3 || at < 0 || !known)
        err_stop(RC_USAGE, "OSP_FAULT=\"%s\": expected name:n or name:n:fail|enospc|kill", spec);
    action = act[0] == 'k' ? ACT_KILL : act[0] == 'e' ? ACT_ENOSPC : ACT_FAIL;
    active = true;
}

static void from_environment(void) { set(getenv("OSP_FAULT")); }

void fault_set(const char *spec)
{
    pthread_once(&once, from_environment); /* so that it cannot overwrite this call later */
    set(spec);
}

bool fault_hit(const char *name)
{
    pthread_once(&once, from_environment);
    if (!active || strcmp(name, wanted) != 0) return false;
    if (atomic_fetch_add(&seen, 1) + 1 != at) return false;
    if (action == ACT_KILL) {
        kill(getpid(), SIGKILL);
        pause(); /* the signal may arrive a moment later */
    }
    errno = action == ACT_ENOSPC ? ENOSPC : EIO;
    return true;
}

long fault_count(const char *name) { return strcmp(name, wanted) == 0 ? (long)seen : 0; }
