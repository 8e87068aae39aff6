#include "parallel/watchdog.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/log.h"
#include "parallel/peers.h"

/* Seconds: between looks; of waiting before the others are asked; without an answer to be silent;
 * that a reporter who is not the first choice leaves to the better ones; until a rank
 * ends after another one's report. (Asks
 * are answered within milliseconds, and a report comes after a second of them.) */
static const double TICK = 0.25, SOON = 2, SILENT = 1, NOT_LOWEST = 1.5, NOT_ROOT = 3, REPORTED = 3;

struct wait { /* what this rank waits in on one axis, as the watchdog sees it */
    uint64_t seq;
    double asked, overdue; /* since when; 0: not */
};
struct watchdog {
    int rank, size;
    pthread_t thread;
    pthread_mutex_t lock; /* over what follows */
    double deadline;
    struct comm *axis[AXIS_COUNT]; /* NULL: not looked at */
    bool files;
    int wake; /* eventfd: stop */
    struct peers *peers;
    int *member[AXIS_COUNT]; /* world rank of each rank of the axis */
    struct wait wait[AXIS_COUNT];
    double last, resumed; /* time of the last look; the process was stopped until then */
    double asked_any;
    int next; /* rank to ask in turn */
    bool greeted;
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

/* Its collective of the number that c waits for is another one: an earlier one was left out. */
static bool differs(const struct comm *c, const struct peer_axis *x)
{
    const char *doing = c->doing, *tag = c->tag;
    const size_t len = sizeof x->tag - 1;
    if (doing && x->waits_for == c->doing_seq)
        return x->kind != c->kind || strncmp(x->waiting, doing, len) != 0;
    return tag && x->seq == c->seq && strncmp(x->tag, tag, len) != 0;
}

static bool is_missing(const struct watchdog *w, int axis, int m)
{
    const struct comm *c = w->axis[axis];
    const int rank = w->member[axis][m];
    if (rank == w->rank) return false;
    const struct peer *p = peers_of(w->peers, rank);
    const struct peer_axis *x = &p->state.axis[axis];
    return gone(p) || silent(p) || x->seq < c->doing_seq || differs(c, x);
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
    else if (x->seq >= w->axis[axis]->doing_seq) {
        const bool waits = x->waits_for == w->axis[axis]->doing_seq;
        say(l,
            "has another one there, %s #%llu \"%s\": one was left out before (--check-comm names "
            "it)",
            waits ? comm_kind_name(x->kind) : "number",
            (unsigned long long)(waits ? x->waits_for : x->seq), waits ? x->waiting : x->tag);
        return;
    } else
        say(l, "has not reached it");
    if (x->seq)
        say(l, "; %s at #%llu \"%s\" of this axis", gone(p) || silent(p) ? "last seen" : "it is",
            (unsigned long long)x->seq, x->tag);
    const int a = waits_on(p);
    if (a >= 0 && a != axis)
        say(l, ", and waits %.0f s in %s #%llu \"%s\" on axis %s", (double)p->state.axis[a].waited,
            comm_kind_name(p->state.axis[a].kind), (unsigned long long)p->state.axis[a].waits_for,
            p->state.axis[a].waiting, w->axis[a]->name);
    if (p->state.context[0]) say(l, ", in %s", p->state.context);
}

static _Noreturn void report(struct watchdog *w, int axis, const char *doing, double waited,
                             const char *why)
{
    const struct comm *c = w->axis[axis];
    struct line l = {.n = 0};
    const char *context = w->axis[AXIS_WORLD]->context;
    say(&l, "[rank %d/%d %s] waits %.0f s in %s #%llu \"%s\" on axis %s (%d ranks)", w->rank,
        w->size, peers_host(w->peers, w->rank), waited, comm_kind_name(c->kind),
        (unsigned long long)c->doing_seq, doing, c->name, c->size);
    if (context) say(&l, ", in %s", context);
    int shown = 0, missing = 0;
    for (int m = 0; m < c->size; m++) {
        if (!is_missing(w, axis, m) || missing++ >= 4) continue;
        say(&l, shown++ ? "; " : ": a rank is missing: ");
        say_missing(&l, w, axis, m);
    }
    if (missing > shown) say(&l, "; and %d more", missing - shown);
    if (!missing)
        say(&l, ": every rank has begun it; the transport is stuck, or one was left out before "
                "(--check-comm names it)");
    say(&l, ". %s: this job ends (exit code %d)", why, RC_HANG);
    l.text[l.n < sizeof l.text - 1 ? l.n++ : l.n] = '\n';
    const ssize_t done = write(STDERR_FILENO, l.text, l.n);
    (void)done;
    err_leave_code(RC_HANG);
    peers_tell_reported(w->peers); /* so that this stays the only line */
    _exit(RC_HANG);
}

/* How long this rank leaves the report to a better one. */
static double patience(const struct watchdog *w, int axis)
{
    const struct comm *c = w->axis[axis];
    double s = TICK * (w->rank % 8); /* several may see it at once, on several axes */
    bool root = false, any = false, lower = false;
    for (int m = 0; m < c->size; m++) {
        const struct peer *p = peers_of(w->peers, w->member[axis][m]);
        const bool missing = is_missing(w, axis, m);
        any |= missing;
        root |= missing && waits_on(p) < 0;
        lower |= missing && w->member[axis][m] < w->rank;
        if (m < c->rank && !missing && p->state.axis[axis].waits_for == c->doing_seq)
            s = NOT_LOWEST + TICK * (w->rank % 8);
    }
    if (any && !root) s += NOT_ROOT + (lower ? NOT_LOWEST : 0); /* they may wait for each other */
    return s;
}

static bool someone_gone(const struct watchdog *w, int axis)
{
    for (int m = 0; m < w->axis[axis]->size; m++)
        if (gone(peers_of(w->peers, w->member[axis][m]))) return true;
    return false;
}

/* The fields of a comm are read while its owner writes them: a stale value only delays the check.
 */
static void check(struct watchdog *w, int axis, double now)
{
    const struct comm *c = w->axis[axis];
    struct wait *x = &w->wait[axis];
    const double deadline = w->files ? 10 * w->deadline : w->deadline;
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
    for (int r = 0; r < w->size && r < 64 && !w->greeted; r++) peers_ask(w->peers, r);
    w->greeted = true; /* a small job knows after a moment who answers at all */
    if (now - w->asked_any >= 1) {
        w->asked_any = now;
        peers_ask(w->peers, w->next);
        w->next = (w->next + 1) % w->size;
        if (w->next == w->rank) w->next = (w->next + 1) % w->size;
    }
    const double reported = peers_reported(w->peers);
    if (reported > 0) { /* the launcher ends this rank now; where it cannot, it ends itself */
        if (now - reported > REPORTED) {
            err_leave_code(RC_HANG);
            _exit(RC_HANG);
        }
        return;
    }
    for (int a = 0; a < AXIS_COUNT && w->deadline > 0; a++)
        if (w->axis[a] && w->axis[a]->size > 1) check(w, a, now);
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
        pthread_mutex_lock(&w->lock);
        peers_answer(w->peers);
        if (log_seconds() >= w->last + TICK) look(w);
        pthread_mutex_unlock(&w->lock);
    }
}

/* World rank of member m of an axis; the numbering is that of parallel/mesh.h. (Asking the axis
 * itself would be a collective that nobody watches yet.) */
static int member_of(const struct watchdog *w, const struct mesh_degrees *d, int axis, int m)
{
    const int S = d->ssp, U = d->sp, F = d->fsdp, R = S * U, rank = w->rank;
    switch (axis) {
    case AXIS_DP:
        return m * R + rank % R;
    case AXIS_SSP:
        return rank / R * R + m * U + rank % U;
    case AXIS_SP:
        return rank / U * U + m;
    case AXIS_SEQ:
        return rank / R * R + m;
    case AXIS_FSDP:
        return rank / F * F + m;
    case AXIS_REPLICA:
        return m * F + rank % F;
    default:
        return m;
    }
}

static void learn_members(struct watchdog *w, const struct mesh_degrees *d, int a,
                          const struct comm *c)
{
    free(w->member[a]);
    w->member[a] = calloc((size_t)c->size, sizeof *w->member[a]);
    CHECK(w->member[a], "out of memory");
    for (int m = 0; m < c->size; m++) w->member[a][m] = member_of(w, d, a, m);
    CHECK(w->member[a][c->rank] == w->rank, "axis %s: rank %d of the world is not its rank %d",
          c->name, w->rank, c->rank);
}

struct watchdog *watchdog_start(struct comm *world)
{
    if (world->size == 1) return NULL;
    struct watchdog *w = calloc(1, sizeof *w);
    CHECK(w, "out of memory");
    *w = (struct watchdog){.rank = world->rank, .size = world->size, .deadline = WATCHDOG_START_S};
    pthread_mutex_init(&w->lock, NULL);
    w->peers = peers_open(world, w->axis);
    learn_members(w, &(struct mesh_degrees){1, 1, 1}, AXIS_WORLD, world);
    w->axis[AXIS_WORLD] = world;
    w->next = (w->rank + 1) % w->size;
    w->wake = eventfd(0, EFD_CLOEXEC);
    CHECK(w->wake >= 0, "no event descriptor for the watchdog");
    CHECK(pthread_create(&w->thread, NULL, watch, w) == 0, "cannot start the watchdog");
    return w;
}

void watchdog_deadline(struct watchdog *w, double s)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->deadline = s;
    pthread_mutex_unlock(&w->lock);
}

void watchdog_mesh(struct watchdog *w, const struct mesh *mesh)
{
    if (!w) return;
    for (int a = AXIS_WORLD + 1; a < AXIS_COUNT; a++) {
        if (mesh) learn_members(w, &mesh->degrees, a, mesh->axis[a]);
        pthread_mutex_lock(&w->lock);
        w->axis[a] = mesh ? mesh->axis[a] : NULL;
        memset(&w->wait[a], 0, sizeof w->wait[a]);
        pthread_mutex_unlock(&w->lock);
    }
}

void watchdog_files(struct watchdog *w, bool on)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->files = on;
    pthread_mutex_unlock(&w->lock);
}

void watchdog_rest(struct watchdog *w)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    memset(w->axis, 0, sizeof w->axis);
    pthread_mutex_unlock(&w->lock);
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
    pthread_mutex_destroy(&w->lock);
    free(w);
}
