#include "parallel/watchdog.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/log.h"

struct watchdog {
    struct mesh *mesh;
    double deadline;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t stop;
    bool stopping, files;
};

/* The fields of a comm are read while its owner goes on: what is out of date only delays the
 * check. */
static void check(const struct watchdog *w)
{
    const double deadline = w->files ? 10 * w->deadline : w->deadline;
    for (int a = 0; a < AXIS_COUNT; a++) {
        const struct comm *c = w->mesh->axis[a];
        const char *doing = c->doing;
        const double waited = log_seconds() - c->since;
        if (!doing || waited < deadline || c->doing != doing) continue;
        char line[512];
        const int n =
            snprintf(line, sizeof line,
                     "[rank %d/%d] waits %.0f s in collective #%llu \"%s\" on axis %s (%d ranks); "
                     "the deadline (comm_deadline_s) is %.0f: a rank is missing, this job ends\n",
                     w->mesh->axis[AXIS_WORLD]->rank, w->mesh->axis[AXIS_WORLD]->size, waited,
                     (unsigned long long)c->seq, doing, c->name, c->size, deadline);
        const ssize_t done = write(STDERR_FILENO, line, (size_t)n);
        (void)done;
        _exit(RC_HANG);
    }
}

static void *watch(void *arg)
{
    struct watchdog *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->stopping) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_sec += 1;
        pthread_cond_timedwait(&w->stop, &w->lock, &t);
        if (!w->stopping) check(w);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

struct watchdog *watchdog_start(struct mesh *mesh, double deadline_s)
{
    if (!(deadline_s > 0) || mesh->axis[AXIS_WORLD]->size == 1) return NULL;
    struct watchdog *w = calloc(1, sizeof *w);
    CHECK(w, "out of memory");
    w->mesh = mesh;
    w->deadline = deadline_s;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->stop, NULL);
    CHECK(pthread_create(&w->thread, NULL, watch, w) == 0, "cannot start the watchdog");
    return w;
}

void watchdog_files(struct watchdog *w, bool on)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->files = on;
    pthread_mutex_unlock(&w->lock);
}

void watchdog_stop(struct watchdog *w)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->stopping = true;
    pthread_cond_signal(&w->stop);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->stop);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
