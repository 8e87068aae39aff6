#include "core/fault.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char name[32];
    long at, seen; /* at 0: only count */
    bool kill, on, read_environment;
} fault;

static void parse(const char *spec)
{
    fault.on = false;
    if (!spec || !*spec) return;
    char name[32] = "", action[16] = "fail";
    long at = 0;
    if (sscanf(spec, "%31[^:]:%ld:%15s", name, &at, action) < 2) return;
    snprintf(fault.name, sizeof fault.name, "%s", name);
    fault.at = at;
    fault.seen = 0;
    fault.kill = strcmp(action, "kill") == 0;
    fault.on = true;
}

void fault_set(const char *spec)
{
    pthread_mutex_lock(&lock);
    fault.read_environment = true;
    parse(spec);
    pthread_mutex_unlock(&lock);
}

bool fault_hit(const char *name)
{
    pthread_mutex_lock(&lock);
    if (!fault.read_environment) {
        fault.read_environment = true;
        parse(getenv("OSP_FAULT"));
    }
    bool hit = false;
    if (fault.on && strcmp(name, fault.name) == 0) hit = ++fault.seen == fault.at;
    const bool die = hit && fault.kill;
    pthread_mutex_unlock(&lock);
    if (die) raise(SIGKILL);
    return hit;
}

long fault_count(const char *name)
{
    pthread_mutex_lock(&lock);
    const long n = fault.on && strcmp(name, fault.name) == 0 ? fault.seen : 0;
    pthread_mutex_unlock(&lock);
    return n;
}
