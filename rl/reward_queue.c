#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "rl/reward_impl.h"

_Static_assert((int)WIRE_DIMS == REWARD_DIMS && (int)WIRE_NAME == REWARD_NAME, "one size of names");
enum { IN_FLIGHT = 2 /* per worker: the next clip is there already */ };

/* ---- results ---- */
static void say(char *to, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void say(char *to, size_t size, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(to, size, fmt, ap);
    va_end(ap);
}

static struct reward_result *new_result(struct reward *r, const struct slot *s)
{
    if (r->num_done == r->room_done) {
        r->room_done = 2 * r->room_done + 16;
        r->done = realloc(r->done, (size_t)r->room_done * sizeof *r->done);
        CHECK(r->done, "out of memory");
    }
    struct reward_result *d = &r->done[r->num_done++];
    *d = (struct reward_result){.id = s->id, .worker = s->worker, .attempts = s->attempts};
    return d;
}

void reward_free_slot(struct reward *r, struct slot *s)
{
    free(s->prompt);
    s->prompt = NULL;
    s->state = SLOT_FREE;
    pthread_cond_broadcast(&r->changed);
}

void reward_invalid(struct reward *r, struct slot *s, const char *reason)
{
    say(new_result(r, s)->reason, REWARD_REASON, "%s", reason);
    r->stats.invalid++;
    const long long id = (long long)s->id; /* evaluations count down from -1 */
    log_warn("no score for %s %lld: %s", id < 0 ? "clip of the evaluation" : "clip",
             id < 0 ? -1 - id : id, reason);
}

static void give_scores(struct reward *r, struct slot *s, const struct wire_result *w)
{
    struct reward_result *d = new_result(r, s);
    d->valid = true;
    for (int i = 0; i < r->dims; i++) {
        d->raw[i] = w->raw[i];
        d->norm[i] = w->norm[i];
    }
    d->frames_used = (int)w->frames_used;
    d->tokens = (int)w->tokens;
    d->ms = w->ms;
    r->stats.scored++;
    reward_free_slot(r, s);
}

/* An attempt brought no score: once more, or never. */
static void attempt_failed(struct reward *r, struct slot *s, bool died, bool hopeless,
                           const char *why)
{
    if (s->state == SLOT_LEFT) {
        reward_free_slot(r, s);
        return;
    }
    s->deaths += died;
    say(s->last, sizeof s->last, "%s", why);
    char reason[REWARD_REASON];
    if (hopeless)
        say(reason, sizeof reason, "%s", why);
    else if (s->deaths >= r->max_deaths)
        say(reason, sizeof reason, "%d scorers died of it; the last: %s", s->deaths, why);
    else if (s->attempts >= r->max_attempts)
        say(reason, sizeof reason, "%d attempts failed; the last: %s", s->attempts, why);
    else {
        s->state = SLOT_QUEUED;
        r->stats.retries++;
        return;
    }
    reward_invalid(r, s, reason);
    reward_free_slot(r, s);
}

static struct slot *slot_of(struct reward *r, uint64_t request)
{
    for (int i = 0; i < r->num_slots; i++) {
        struct slot *s = &r->slot[i];
        if ((s->state == SLOT_SENT || s->state == SLOT_LEFT) && s->request == request) return s;
    }
    return NULL;
}

/* NULL: scores to believe. */
static const char *wrong_result(const struct reward *r, const struct slot *s,
                                const struct wire_result *w)
{
    static const char *const status[WIRE_STATUSES] = {NULL, "it cannot score this clip",
                                                      "its scores are not finite",
                                                      "it is out of memory", "it failed"};
    if (w->status != WIRE_OK) return w->text[0] ? w->text : status[w->status];
    if ((int)w->dims != r->dims) return "its answer has another number of scores";
    if (w->crc != s->clip.crc) return "it has seen other frames than were sent";
    for (int i = 0; i < r->dims; i++) {
        if (!isfinite(w->raw[i]) || !isfinite(w->norm[i])) return "its scores are not finite";
        if (fabs(w->raw[i]) > r->score_limit) return r->beyond;
    }
    return NULL;
}

static void on_scored(struct reward *r, struct worker *w, uint64_t request,
                      const struct wire_result *res)
{
    struct slot *s = slot_of(r, request);
    CHECK(s, "worker %d answered a request that no slot has", w->number);
    const char *wrong = wrong_result(r, s, res);
    if (wrong || s->state == SLOT_LEFT)
        attempt_failed(r, s, false, res->status == WIRE_BAD_INPUT, wrong ? wrong : "");
    else
        give_scores(r, s, res);
}

/* The oldest request was being scored: it may be what killed the worker. */
static void on_lost(struct reward *r, struct worker *w)
{
    uint64_t flight[WORKER_FLIGHT];
    const int n = w->num_flight;
    memcpy(flight, w->flight, sizeof flight);
    w->num_flight = 0;
    for (int i = 0; i < n; i++) {
        struct slot *s = slot_of(r, flight[i]);
        CHECK(s, "worker %d had a request that no slot has", w->number);
        if (i && s->state == SLOT_SENT) s->attempts--; /* it was not this one's turn */
        attempt_failed(r, s, i == 0, false, w->why);
    }
}

/* ---- what a scorer says of itself ---- */
/* NULL: it fits what the others said. */
static const char *wrong_ready(struct reward *r, const struct worker *w)
{
    const struct wire_msg m = {WIRE_READY, 0, (const uint8_t *)w->info, (uint32_t)strlen(w->info)};
    struct wire_ready said;
    const char *wrong = wire_get_ready(&said, &m);
    if (wrong) return wrong;
    if (r->dims) {
        if (said.dims != r->dims || said.tests != r->num_selftest)
            return "it scores other dimensions";
        for (int i = 0; i < said.dims; i++)
            if (strcmp(said.name[i], r->name[i])) return "it scores other dimensions";
        for (int i = 0; i < said.tests; i++)
            if (fabs(said.selftest[i] - r->selftest[i]) > 1e-3)
                return "its self-test gives other scores than the other workers' did";
        return NULL;
    }
    r->dims = said.dims;
    r->num_selftest = said.tests;
    memcpy(r->name, said.name, sizeof r->name);
    memcpy(r->selftest, said.selftest, sizeof r->selftest);
    return NULL;
}

static void on_ready(struct reward *r, struct worker *w, double now)
{
    const char *wrong = wrong_ready(r, w);
    if (wrong) {
        worker_fail(w, now, true, "%s", wrong);
        return;
    }
    if (r->rank == 0) {
        char text[WORKER_INFO];
        say(text, sizeof text, "%s", w->info);
        for (char *p = text; *p; p++)
            if (*p == '\n') *p = p[1] ? ';' : 0;
        log_info("reward worker %d is ready: %s", w->number, text);
    }
}

/* ---- the supervisor ---- */
/* Not counting times in which this process did not run: a stopped trainer has not waited. */
static double clock_now(struct reward *r)
{
    const double t = log_seconds(), gap = t - r->looked;
    if (r->looked > 0 && gap > 1) r->paused += gap;
    r->looked = t;
    return t - r->paused;
}

static void look_after(struct reward *r, struct worker *w, double now)
{
    struct wire_result result;
    uint64_t id = 0;
    if (r->closing && w->state == WORKER_OFF) return; /* no restart any more */
    for (enum worker_news news; (news = worker_next(w, now, &id, &result)) != WORKER_NOTHING;) {
        if (news == WORKER_NOW_READY) on_ready(r, w, now);
        if (news == WORKER_SCORED) on_scored(r, w, id, &result);
        if (news == WORKER_LOST) on_lost(r, w);
        pthread_cond_broadcast(&r->changed);
    }
}

static void ended(struct reward *r, uint64_t serial, int status, double now)
{
    for (int i = 0; i < r->num_workers; i++) {
        struct worker *w = &r->worker[i];
        if (w->serial != serial || w->state == WORKER_OFF || w->state == WORKER_GONE) continue;
        look_after(r, w, now);
        if (w->num_flight) { /* its socket lives on in somebody's hands */
            say(w->why, sizeof w->why, "it ended");
            on_lost(r, w);
        }
        worker_ended(w, now, serial, status);
        r->stats.restarts += w->state == WORKER_OFF && !r->closing;
        pthread_cond_broadcast(&r->changed);
    }
}

static void all_gone(struct reward *r, double now)
{
    for (int i = 0; i < r->num_workers; i++) {
        struct worker *w = &r->worker[i];
        say(w->why, sizeof w->why, "the process that starts scorers is gone");
        on_lost(r, w);
        worker_fail(w, now, true, "the process that starts scorers is gone");
        if (w->state == WORKER_ENDING) worker_ended(w, now, w->serial, 0);
    }
}

/* The one with the least to do; another than the last if there is one. */
static struct worker *choose(struct reward *r, const struct slot *s)
{
    struct worker *best = NULL;
    for (int i = 0; i < r->num_workers; i++) {
        struct worker *w = &r->worker[i];
        if (w->state != WORKER_READY || w->num_flight >= IN_FLIGHT) continue;
        const bool again = i == s->worker, best_again = best && best - r->worker == s->worker;
        if (!best || (again != best_again ? best_again : w->num_flight < best->num_flight))
            best = w;
    }
    return best;
}

static struct slot *first_in_queue(struct reward *r)
{
    struct slot *first = NULL;
    for (int i = 0; i < r->num_slots; i++)
        if (r->slot[i].state == SLOT_QUEUED && (!first || r->slot[i].order < first->order))
            first = &r->slot[i];
    return first;
}

/* False: there was nothing to send. */
static bool dispatch(struct reward *r, double now)
{
    struct slot *s;
    struct worker *w;
    bool any = false;
    while ((s = first_in_queue(r)) && (w = choose(r, s))) {
        s->state = SLOT_SENT;
        s->attempts++;
        s->worker = (int)(w - r->worker);
        s->request = ++r->next_request;
        worker_score(w, s->request, &s->clip, now);
        any = true;
    }
    return any;
}

static bool anyone_left(const struct reward *r)
{
    for (int i = 0; i < r->num_workers; i++)
        if (r->worker[i].state != WORKER_GONE) return true;
    return false;
}

static void round_of_work(struct reward *r)
{
    const double now = clock_now(r);
    uint64_t serial;
    int status, news;
    while ((news = spawner_next(r->spawner, &serial, &status)) > 0) ended(r, serial, status, now);
    if (news < 0) all_gone(r, now);
    do
        for (int i = 0; i < r->num_workers; i++) look_after(r, &r->worker[i], now);
    while (!r->closing && dispatch(r, now));
    if (!r->dead && !anyone_left(r)) {
        r->dead = true;
        pthread_cond_broadcast(&r->changed);
        if (!r->closing) log_warn("no reward worker is left");
    }
}

/* Descriptors to wait for; returns how long at most, in ms. */
static int collect(struct reward *r, struct pollfd *p)
{
    int wait = 100;
    p[0] = (struct pollfd){r->wake, POLLIN, 0};
    p[1] = (struct pollfd){r->dead ? -1 : spawner_fd(r->spawner), POLLIN, 0};
    for (int i = 0; i < r->num_workers; i++) {
        const struct worker *w = &r->worker[i];
        const short out = w->out.at < w->out.size ? POLLOUT : 0;
        p[2 + i] = (struct pollfd){w->fd, (short)(POLLIN | out), 0};
        if (w->state == WORKER_OFF) wait = 10;
    }
    return wait;
}

static bool all_ended(const struct reward *r)
{
    for (int i = 0; i < r->num_workers; i++)
        if (r->worker[i].state != WORKER_OFF && r->worker[i].state != WORKER_GONE) return false;
    return true;
}

void *reward_supervise(void *arg)
{
    struct reward *r = arg;
    struct pollfd p[2 + SPAWN_MAX];
    double asked = 0; /* when the scorers were told to leave */
    log_identify(r->rank, r->ranks);
    err_identify(r->rank, r->ranks, NULL);
    pthread_mutex_lock(&r->lock);
    for (;;) {
        round_of_work(r);
        if (r->closing && asked == 0) {
            asked = log_seconds();
            for (int i = 0; i < r->num_workers; i++) worker_bye(&r->worker[i]);
        }
        const double asked_ago = r->closing ? log_seconds() - asked : 0;
        if (r->closing && (all_ended(r) || asked_ago > 20)) break;
        for (int i = 0; i < r->num_workers && asked_ago > 2; i++)
            worker_fail(&r->worker[i], clock_now(r), true, "it did not leave");
        const int wait = collect(r, p);
        pthread_mutex_unlock(&r->lock);
        poll(p, (nfds_t)(2 + r->num_workers), wait);
        uint64_t n;
        const ssize_t got = p[0].revents ? read(r->wake, &n, sizeof n) : 0;
        (void)got;
        pthread_mutex_lock(&r->lock);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}
