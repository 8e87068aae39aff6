#include "rl/reward_worker.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/log.h"
#include "core/rng.h"

enum {
    END_S = 60,     /* for the end of a killed process */
    EX_NOPERM = 77, /* of sysexits: this trainer itself never leaves with it */
    LOG_LINES = 5
};

void worker_init(struct worker *w, const struct worker_rules *rules, struct spawner *spawner,
                 int number, const char *log)
{
    *w = (struct worker){.rules = rules, .spawner = spawner, .number = number, .fd = -1};
    w->log = strdup(log);
    CHECK(w->log, "out of memory");
}

static void disconnect(struct worker *w)
{
    if (w->fd >= 0) close(w->fd);
    w->fd = -1;
    w->in.at = w->in.size = w->out.at = w->out.size = 0;
    w->num_flight = 0;
}

void worker_free(struct worker *w)
{
    disconnect(w);
    wire_free(&w->in);
    wire_free(&w->out);
    free(w->log);
}

static void enter(struct worker *w, enum worker_state state, double now)
{
    w->state = state;
    w->since = now;
}

void worker_fail(struct worker *w, double now, bool for_good, const char *fmt, ...)
{
    if (w->state == WORKER_GONE || w->state == WORKER_ENDING) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(w->why, sizeof w->why, fmt, ap);
    va_end(ap);
    w->fatal |= for_good;
    disconnect(w);
    if (w->state == WORKER_OFF) {
        enter(w, WORKER_GONE, now);
        return;
    }
    spawner_kill(w->spawner, w->serial);
    enter(w, WORKER_ENDING, now);
}

/* ---- start ---- */
static bool send_config(struct worker *w)
{
    const struct worker_rules *u = w->rules;
    char *text = NULL;
    const int n =
        asprintf(&text,
                 "protocol=%d\nworker=%d\nnonce=%016llx\nmemory=%llu\nslot_bytes=%llu\n"
                 "slots=%u\nmax_batch=1\n%s",
                 WIRE_VERSION, w->number, (unsigned long long)w->nonce,
                 (unsigned long long)u->slot_bytes * u->slots, (unsigned long long)u->slot_bytes,
                 u->slots, u->options ? u->options : "");
    CHECK(n > 0, "out of memory");
    struct wire_buf b = {0};
    wire_put(&b, WIRE_CONFIG, 0, text, (size_t)n);
    free(text);
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } extra = {0};
    struct iovec v = {b.data, b.size};
    struct msghdr m = {.msg_iov = &v,
                       .msg_iovlen = 1,
                       .msg_control = extra.bytes,
                       .msg_controllen = sizeof extra.bytes};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){
        .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(c), &u->memory, sizeof u->memory);
    const ssize_t sent = sendmsg(w->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) wire_add(&w->out, b.data + sent, b.size - (size_t)sent);
    wire_free(&b);
    return sent > 0;
}

static void begin(struct worker *w, double now)
{
    int pair[2];
    enter(w, WORKER_STARTING, now);
    w->hello = w->fatal = false;
    w->ping = 0;
    w->serial = 0;
    struct stat st;
    w->log_from = stat(w->log, &st) == 0 ? (long)st.st_size : 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
        worker_fail(w, now, false, "no socket for it: %s", strerror(errno));
    } else {
        w->fd = pair[0];
        w->nonce = rng_hash(w->log) ^ (uint64_t)(log_seconds() * 1e9);
        w->serial = spawner_run(w->spawner, w->rules->command, w->log, w->rules->env, pair[1]);
        close(pair[1]);
        if (!w->serial)
            worker_fail(w, now, true, "the process that starts it is gone");
        else if (!send_config(w))
            worker_fail(w, now, false, "it could not be told its configuration");
    }
    if (!w->serial && w->state == WORKER_ENDING) worker_ended(w, now, 0, 0);
}

/* ---- end ---- */
static void how_it_ended(int status, char *text, size_t size)
{
    if (WIFEXITED(status))
        snprintf(text, size, "exit code %d", WEXITSTATUS(status));
    else
        snprintf(text, size, "signal %d, %s", WTERMSIG(status), strsignal(WTERMSIG(status)));
}

/* Mistakes that the next start would meet too: command line, missing input, permission,
 * configuration (sysexits). */
static bool same_again(int code)
{
    return code == RC_USAGE || code == RC_NOINPUT || code == EX_NOPERM || code == RC_CONFIG;
}

/* What the training leaves with. */
static int as_ours(int code) { return code == EX_NOPERM ? RC_CONFIG : code; }

/* The last lines of text, at most so many bytes. */
static const char *last_lines(char *text, size_t size)
{
    char *end = text + strlen(text);
    while (end > text && end[-1] == '\n') *--end = 0;
    const char *p = end;
    for (int lines = 0; p > text && (size_t)(end - p) < size; p--)
        if (p[-1] == '\n' && ++lines == LOG_LINES) break;
    return p;
}

void worker_said(const struct worker *w, char *text, size_t size)
{
    char bytes[4096];
    FILE *f = fopen(w->log, "r");
    long from = w->log_from, all = 0;
    if (f && fseek(f, 0, SEEK_END) == 0) all = ftell(f);
    if (all - from >= (long)sizeof bytes) from = all - (long)sizeof bytes + 1;
    const bool found = f && all > from && fseek(f, from, SEEK_SET) == 0;
    bytes[found ? fread(bytes, 1, sizeof bytes - 1, f) : 0] = 0;
    if (f) fclose(f);
    for (char *p = bytes; *p; p++)
        if ((*p < ' ' && *p != '\n') || *p == 0x7f) *p = ' ';
    size_t n = 0;
    for (const char *p = last_lines(bytes, size * 3 / 4); *p && n + 4 < size; p++) {
        if (*p != '\n') text[n++] = *p;
        if (*p == '\n') memcpy(text + n, " | ", 3), n += 3;
    }
    text[n] = 0;
    if (!n) snprintf(text, size, "nothing");
}

static int deaths_in_window(const struct worker *w, double now)
{
    int n = 0;
    for (int64_t i = 0; i < w->num_deaths && i < WORKER_DEATHS; i++)
        n += now - w->deaths[(w->num_deaths - 1 - i) % WORKER_DEATHS] < w->rules->restart_window_s;
    return n;
}

bool worker_ended(struct worker *w, double now, uint64_t serial, int status)
{
    if (serial != w->serial || w->state == WORKER_OFF || w->state == WORKER_GONE) return false;
    char how[80];
    how_it_ended(status, how, sizeof how);
    worker_fail(w, now, false, "it ended"); /* nothing when that is known already */
    const size_t n = strlen(w->why);
    snprintf(w->why + n, sizeof w->why - n, " (%s)", how);
    w->deaths[w->num_deaths++ % WORKER_DEATHS] = now;
    const int recent = deaths_in_window(w, now);
    if (w->leaving) {
        enter(w, WORKER_GONE, now);
        return true;
    }
    if (WIFEXITED(status) && same_again(WEXITSTATUS(status))) {
        w->fatal = true;
        if (!w->fatal_code) w->fatal_code = as_ours(WEXITSTATUS(status));
    }
    if (w->fatal || recent > w->rules->max_restarts) {
        char said[512];
        worker_said(w, said, sizeof said);
        enter(w, WORKER_GONE, now);
        log_warn("reward worker %d: %s; it is not started again%s; its log %s ends with: %s",
                 w->number, w->why, w->fatal ? "" : " after that many ends", w->log, said);
        return true;
    }
    double wait = w->rules->backoff_s;
    for (int i = 1; i < recent && wait < w->rules->backoff_max_s; i++) wait *= 2;
    if (wait > w->rules->backoff_max_s) wait = w->rules->backoff_max_s;
    enter(w, WORKER_OFF, now);
    w->retry_at = now + wait;
    log_warn("reward worker %d: %s; it is started again in %g s; its log: %s", w->number, w->why,
             wait, w->log);
    return true;
}

/* ---- messages ---- */
static bool flush_out(struct worker *w)
{
    while (w->out.at < w->out.size) {
        const ssize_t n = send(w->fd, w->out.data + w->out.at, w->out.size - w->out.at,
                               MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN;
        w->out.at += (size_t)n;
    }
    return true;
}

/* True: there are new bytes. *closed: there will be no more. */
static bool read_more(struct worker *w, bool *closed)
{
    static _Thread_local uint8_t bytes[65536];
    const ssize_t n = recv(w->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    *closed = n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
    if (n > 0) wire_add(&w->in, bytes, (size_t)n);
    return n > 0;
}

static enum worker_news violation(struct worker *w, double now, const char *what)
{
    w->violations++;
    worker_fail(w, now, false, "it sent %s", what);
    return WORKER_LOST;
}

static const char *on_hello(struct worker *w, const struct wire_msg *m)
{
    char nonce[32] = "", want[32];
    snprintf(want, sizeof want, "%016llx", (unsigned long long)w->nonce);
    if (w->hello || w->state != WORKER_STARTING) return "a second HELLO";
    wire_value(m, "nonce", nonce, sizeof nonce);
    if (strcmp(nonce, want)) return "a HELLO that does not answer this CONFIG";
    w->hello = true;
    return NULL;
}

static const char *on_ready(struct worker *w, const struct wire_msg *m, double now)
{
    if (!w->hello || w->state != WORKER_STARTING) return "a READY out of turn";
    if (m->size >= sizeof w->info) return "a READY that is too long";
    memcpy(w->info, m->data, m->size);
    w->info[m->size] = 0;
    enter(w, WORKER_READY, now);
    w->was_ready = true;
    w->pinged_at = now;
    return NULL;
}

static void on_fatal(struct worker *w, const struct wire_msg *m, double now)
{
    char code[16] = "", text[WORKER_WHY - 8] = "";
    wire_value(m, "code", code, sizeof code);
    if (!wire_value(m, "text", text, sizeof text) || !text[0])
        strcpy(text, "it gave up without a reason");
    const int said = (int)strtol(code, NULL, 10);
    w->fatal_code = as_ours(said);
    /* at its first start: a wrong configuration */
    worker_fail(w, now, !w->was_ready || same_again(said), "%s", text);
}

static const char *on_result(struct worker *w, const struct wire_msg *m, double now,
                             struct wire_result *r)
{
    if (w->state != WORKER_READY || !w->num_flight) return "a result nobody asked for";
    if (m->id != w->flight[0]) return "a result out of turn";
    if (!wire_get_result(r, m)) return "a result that cannot be read";
    memmove(w->flight, w->flight + 1, (size_t)--w->num_flight * sizeof *w->flight);
    w->busy_s += now - w->head_since;
    w->head_since = now;
    w->scored++;
    return NULL;
}

static enum worker_news on_message(struct worker *w, double now, const struct wire_msg *m,
                                   uint64_t *id, struct wire_result *result)
{
    const char *wrong = NULL;
    enum worker_news news = WORKER_NOTHING;
    if (m->type != WIRE_RESULT && !wire_lines(m)) {
        wrong = "a text that is not lines of key=value";
    } else if (m->type == WIRE_HELLO) {
        wrong = on_hello(w, m);
    } else if (m->type == WIRE_READY) {
        wrong = on_ready(w, m, now);
        news = WORKER_NOW_READY;
    } else if (m->type == WIRE_RESULT) {
        wrong = on_result(w, m, now, result);
        *id = m->id;
        news = WORKER_SCORED;
    } else if (m->type == WIRE_PONG) {
        if (!w->ping || m->id != w->ping) wrong = "a PONG without a PING";
        w->ping = 0;
    } else if (m->type == WIRE_FATAL) {
        on_fatal(w, m, now);
        return WORKER_LOST;
    } else {
        wrong = "a message that only the trainer sends";
    }
    if (!wrong) return news;
    return violation(w, now, wrong);
}

void worker_score(struct worker *w, uint64_t id, const struct wire_score *s, double now)
{
    CHECK(w->state == WORKER_READY && w->num_flight < WORKER_FLIGHT, "worker %d is busy",
          w->number);
    if (!w->num_flight) w->head_since = now;
    w->flight[w->num_flight++] = id;
    wire_put_score(&w->out, id, s);
}

void worker_bye(struct worker *w)
{
    w->leaving = true;
    if (w->state != WORKER_READY && w->state != WORKER_STARTING) return;
    wire_put(&w->out, WIRE_BYE, 0, "", 0);
    flush_out(w);
    shutdown(w->fd, SHUT_WR);
}

/* ---- clock ---- */
/* Why it is overdue, or false. */
static bool overdue(const struct worker *w, double now, char *why, size_t size)
{
    const struct worker_rules *u = w->rules;
    if (w->state == WORKER_STARTING && now - w->since > u->start_s)
        snprintf(why, size, "it was not ready %g s after its start", u->start_s);
    else if (w->state == WORKER_READY && w->ping &&
             now - w->pinged_at > u->ping_s * u->missed_pings)
        snprintf(why, size, "it did not answer for %g s", u->ping_s * u->missed_pings);
    else if (w->state == WORKER_READY && w->num_flight && now - w->head_since > u->request_s)
        snprintf(why, size, "it took more than %g s for one clip", u->request_s);
    else
        return false;
    return true;
}

static void ping(struct worker *w, double now)
{
    if (w->state != WORKER_READY || w->ping || now - w->pinged_at < w->rules->ping_s) return;
    w->ping = rng_hash(w->log) ^ (uint64_t)(now * 1e9);
    w->ping += !w->ping;
    w->pinged_at = now;
    wire_put(&w->out, WIRE_PING, w->ping, "", 0);
}

/* worker_fail drops the requests in flight; the caller needs them once more. */
static enum worker_news lost(struct worker *w, const uint64_t *flight, int n)
{
    memcpy(w->flight, flight, sizeof w->flight);
    w->num_flight = n;
    return WORKER_LOST;
}

static enum worker_news step(struct worker *w, double now, uint64_t *id, struct wire_result *result)
{
    struct wire_msg m;
    const char *wrong;
    bool closed = false;
    for (;;) {
        const int got = wire_take(&w->in, &m, &wrong);
        if (got < 0) return violation(w, now, wrong);
        if (got > 0) {
            const enum worker_news news = on_message(w, now, &m, id, result);
            if (news != WORKER_NOTHING) return news;
        } else if (!read_more(w, &closed)) {
            break;
        }
    }
    char why[WORKER_WHY];
    ping(w, now);
    if (closed || !flush_out(w))
        worker_fail(w, now, false, "it closed its connection");
    else if (overdue(w, now, why, sizeof why))
        worker_fail(w, now, false, "%s", why);
    else
        return WORKER_NOTHING;
    return WORKER_LOST;
}

enum worker_news worker_next(struct worker *w, double now, uint64_t *id, struct wire_result *result)
{
    if (w->state == WORKER_OFF && now >= w->retry_at) begin(w, now);
    if (w->state == WORKER_ENDING && now - w->since > END_S) {
        log_warn("reward worker %d does not end (its process hangs in the kernel); it is given up",
                 w->number);
        enter(w, WORKER_GONE, now);
    }
    if (w->fd < 0) return WORKER_NOTHING;
    uint64_t flight[WORKER_FLIGHT];
    const int n = w->num_flight;
    memcpy(flight, w->flight, sizeof flight);
    const enum worker_news news = step(w, now, id, result);
    return news == WORKER_LOST ? lost(w, flight, n) : news;
}
