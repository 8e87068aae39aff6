#include "parallel/watchdog.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/log.h"
#include "parallel/peers.h"

/* Seconds: between looks; of waiting before the others are asked; without an answer to be silent;
 * that a reporter who is not the first choice leaves to the better ones. */
static const double TICK = 0.25, SOON = 2, SILENT = 3, NOT_LOWEST = 1.5, NOT_ROOT = 3;

struct wait { /* what this rank waits in on one axis, as the watchdog sees it */
    uint64_t seq;
    double asked, overdue; /* since when; 0: not */
};
struct watchdog {
    struct mesh *mesh;
    double deadline;
    pthread_t thread;
    int wake; /* eventfd: stop */
    atomic_bool files;
    struct peers *peers;
    int *member[AXIS_COUNT]; /* world rank of each rank of the axis */
    struct wait wait[AXIS_COUNT];
    double last, resumed; /* time of the last look; the process was stopped until then */
    double asked_any;
    int next; /* rank to ask in turn */
};
struct line { /* composed in one piece: lines of ranks never mix */
    char text[2048];
    size_t n;
};

static void say(struct line *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(struct line *l, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const int n = vsnprintf(l->text + l->n, sizeof l->text - l->n, fmt, ap);
    va_end(ap);
    if (n > 0) l->n += (size_t)n;
    if (l->n > sizeof l->text - 1) l->n = sizeof l->text - 1;
}

static bool gone(const struct peer *p) /* twice, and not only just now */
{
    return p->refused >= 2 && log_seconds() - p->first_refused > 1;
}

static bool silent(const struct peer *p) { return log_seconds() - p->last_heard > SILENT; }

static bool is_missing(const struct watchdog *w, int axis, int m, uint64_t seq)
{
    const int rank = w->member[axis][m];
    if (rank == w->mesh->axis[AXIS_WORLD]->rank) return false;
    const struct peer *p = peers_of(w->peers, rank);
    return gone(p) || silent(p) || p->state.axis[axis].seq < seq;
}

/* The axis a rank that answers waits on itself; -1: none. Members of this axis that have begun
 * another collective of it wait here too. */
static int waits_on(const struct peer *p)
{
    for (int a = 0; a < AXIS_COUNT && !gone(p) && !silent(p); a++)
        if (p->state.axis[a].waits_for && p->state.axis[a].waited > (float)SOON) return a;
    return -1;
}

static void say_missing(struct line *l, const struct watchdog *w, int axis, int m)
{
    const int rank = w->member[axis][m];
    const struct peer *p = peers_of(w->peers, rank);
    const struct peer_axis *x = &p->state.axis[axis];
    say(l, "rank %d (%s) ", rank, peers_host(w->peers, rank));
    if (p->last_heard <= 0) {
        say(l, "never answered (stopped, cut off, or UDP between the hosts is blocked)");
        return;
    }
    if (gone(p))
        say(l, "is gone (its process has ended)");
    else if (silent(p))
        say(l, "has not answered for %.0f s (stopped, or cut off)", log_seconds() - p->last_heard);
    else
        say(l, "has not reached it");
    if (x->seq)
        say(l, "; %s at #%llu \"%s\" of this axis", gone(p) || silent(p) ? "last seen" : "it is",
            (unsigned long long)x->seq, x->tag);
    const int a = waits_on(p);
    if (a >= 0 && a != axis)
        say(l, ", and waits %.0f s in %s #%llu \"%s\" on axis %s", (double)p->state.axis[a].waited,
            comm_kind_name(p->state.axis[a].kind), (unsigned long long)p->state.axis[a].waits_for,
            p->state.axis[a].waiting, w->mesh->axis[a]->name);
    if (p->state.context[0]) say(l, ", in %s", p->state.context);
}

static _Noreturn void report(const struct watchdog *w, int axis, const char *doing, double waited,
                             const char *why)
{
    const struct comm *c = w->mesh->axis[axis], *world = w->mesh->axis[AXIS_WORLD];
    struct line l = {.n = 0};
    const char *context = world->context;
    say(&l, "[rank %d/%d %s] waits %.0f s in %s #%llu \"%s\" on axis %s (%d ranks)", world->rank,
        world->size, peers_host(w->peers, world->rank), waited, comm_kind_name(c->kind),
        (unsigned long long)c->doing_seq, doing, c->name, c->size);
    if (context) say(&l, ", in %s", context);
    int shown = 0, missing = 0;
    for (int m = 0; m < c->size; m++) {
        if (!is_missing(w, axis, m, c->doing_seq) || missing++ >= 4) continue;
        say(&l, shown++ ? "; " : ": a rank is missing: ");
        say_missing(&l, w, axis, m);
    }
    if (missing > shown) say(&l, "; and %d more", missing - shown);
    if (!missing) say(&l, ": every rank has begun it, so the transport between them is stuck");
    say(&l, ". %s: this job ends (exit code %d)", why, RC_HANG);
    l.text[l.n < sizeof l.text - 1 ? l.n++ : l.n] = '\n';
    const ssize_t done = write(STDERR_FILENO, l.text, l.n);
    (void)done;
    err_leave_code(RC_HANG);
    _exit(RC_HANG);
}

/* How long this rank leaves the report to a better one. */
static double patience(const struct watchdog *w, int axis)
{
    const struct comm *c = w->mesh->axis[axis];
    double s = 0;
    bool root = false, any = false, lower = false;
    for (int m = 0; m < c->size; m++) {
        const struct peer *p = peers_of(w->peers, w->member[axis][m]);
        const bool missing = is_missing(w, axis, m, c->doing_seq);
        any |= missing;
        root |= missing && waits_on(p) < 0;
        lower |= missing && w->member[axis][m] < w->mesh->axis[AXIS_WORLD]->rank;
        if (m < c->rank && !missing && p->state.axis[axis].waits_for == c->doing_seq)
            s = NOT_LOWEST;
    }
    if (any && !root) s += NOT_ROOT + (lower ? NOT_LOWEST : 0); /* they may wait for each other */
    return s;
}

static bool someone_gone(const struct watchdog *w, int axis)
{
    for (int m = 0; m < w->mesh->axis[axis]->size; m++)
        if (gone(peers_of(w->peers, w->member[axis][m]))) return true;
    return false;
}

/* The fields of a comm are read while its owner writes them: a stale value only delays the check.
 */
static void check(struct watchdog *w, int axis, double now)
{
    const struct comm *c = w->mesh->axis[axis];
    struct wait *x = &w->wait[axis];
    const double deadline = atomic_load(&w->files) ? 10 * w->deadline : w->deadline;
    const char *doing = c->doing;
    const double since = c->since > w->resumed ? c->since : w->resumed, waited = now - since;
    const double soon = deadline < 2 * SOON ? deadline / 2 : SOON;
    if (!doing || c->doing != doing || waited < soon || c->doing_seq != x->seq) {
        *x = (struct wait){.seq = c->doing_seq};
        return;
    }
    if (!x->asked) x->asked = now;
    for (int m = 0; m < c->size; m++) peers_ask(w->peers, w->member[axis][m]);
    if (waited >= SOON && someone_gone(w, axis))
        report(w, axis, doing, waited, "It cannot come any more");
    if (waited < deadline || now - x->asked < 1) return;
    if (!x->overdue) x->overdue = now;
    if (now - x->overdue < patience(w, axis)) return;
    char why[96];
    snprintf(why, sizeof why, "The deadline (comm_deadline_s) is %.0f s", deadline);
    report(w, axis, doing, waited, why);
}

static void look(struct watchdog *w)
{
    const double now = log_seconds();
    if (now - w->last > 8 * TICK) w->resumed = now; /* this process was stopped itself */
    w->last = now;
    if (now - w->asked_any >= 1) {
        w->asked_any = now;
        peers_ask(w->peers, w->next);
        w->next = (w->next + 1) % w->mesh->axis[AXIS_WORLD]->size;
        if (w->next == w->mesh->axis[AXIS_WORLD]->rank)
            w->next = (w->next + 1) % w->mesh->axis[AXIS_WORLD]->size;
    }
    for (int a = 0; a < AXIS_COUNT; a++)
        if (w->mesh->axis[a]->size > 1) check(w, a, now);
}

static void *watch(void *arg)
{
    struct watchdog *w = arg;
    struct pollfd f[2] = {{.fd = w->wake, .events = POLLIN},
                          {.fd = peers_fd(w->peers), .events = POLLIN}};
    for (w->last = log_seconds();;) {
        const double left = w->last + TICK - log_seconds();
        poll(f, 2, left > 0 ? (int)(1000 * left) + 1 : 0);
        if (f[0].revents) return NULL;
        peers_answer(w->peers);
        if (log_seconds() >= w->last + TICK) look(w);
    }
}

struct watchdog *watchdog_start(struct mesh *mesh, double deadline_s)
{
    const struct comm *world = mesh->axis[AXIS_WORLD];
    if (!(deadline_s > 0) || world->size == 1) return NULL;
    struct watchdog *w = calloc(1, sizeof *w);
    CHECK(w, "out of memory");
    w->mesh = mesh;
    w->deadline = deadline_s;
    w->peers = peers_open(mesh);
    for (int a = 0; a < AXIS_COUNT; a++) {
        w->member[a] = calloc((size_t)mesh->axis[a]->size, sizeof *w->member[a]);
        CHECK(w->member[a], "out of memory");
        comm_gather_bytes(mesh->axis[a], w->member[a], &world->rank, sizeof world->rank, "members");
    }
    w->next = (world->rank + 1) % world->size;
    w->wake = eventfd(0, EFD_CLOEXEC);
    CHECK(w->wake >= 0, "no event descriptor for the watchdog");
    CHECK(pthread_create(&w->thread, NULL, watch, w) == 0, "cannot start the watchdog");
    return w;
}

void watchdog_files(struct watchdog *w, bool on)
{
    if (w) atomic_store(&w->files, on);
}

void watchdog_stop(struct watchdog *w)
{
    if (!w) return;
    const uint64_t one = 1;
    const ssize_t done = write(w->wake, &one, sizeof one);
    CHECK(done == (ssize_t)sizeof one, "cannot wake the watchdog");
    pthread_join(w->thread, NULL);
    close(w->wake);
    peers_close(w->peers);
    for (int a = 0; a < AXIS_COUNT; a++) free(w->member[a]);
    free(w);
}
