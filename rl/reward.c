#include "rl/reward.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "parallel/launch.h"
#include "rl/reward_impl.h"

enum { PAGE = 4096, MAX_SLOTS = 4096, MAX_FRAMES = 1 << 16, MAX_SIDE = 1 << 14 };

static void wake(struct reward *r)
{
    const uint64_t one = 1;
    const ssize_t done = write(r->wake, &one, sizeof one);
    (void)done;
}

struct spawner *reward_prepare(struct err *e) { return spawner_start(e); }
void reward_release(struct spawner *p) { spawner_stop(p); }

/* ---- open and close ---- */
static double or_default(double v, double usual) { return v > 0 ? v : usual; }

static bool config_fine(const struct reward_config *c, struct err *e)
{
    char *text = strdup(c->command ? c->command : ""), *word[256];
    CHECK(text, "out of memory");
    const int words = spawner_words(text, word, 256);
    free(text);
    const struct wire_msg m = {WIRE_CONFIG, 0, (const uint8_t *)c->options,
                               c->options ? (uint32_t)strlen(c->options) : 0};
    if (words == 0)
        err_set(e, RC_CONFIG,
                "reward.command is empty; give the command line of a scorer, for "
                "example \"python3 scripts/simple_scorer.py\"");
    else if (words < 0)
        err_set(e, RC_CONFIG, "reward.command has too many words or a quote without its end: %s",
                c->command);
    else if (strlen(c->command) > SPAWN_COMMAND)
        err_set(e, RC_CONFIG,
                "reward.command has %zu bytes; at most %d are possible: put it into a "
                "script",
                strlen(c->command), SPAWN_COMMAND);
    else if (c->workers < 0 || c->workers > SPAWN_MAX)
        err_set(e, RC_CONFIG, "reward.workers is %d; 1 to %d are possible", c->workers, SPAWN_MAX);
    else if (c->slots < 0 || c->slots > MAX_SLOTS)
        err_set(e, RC_CONFIG, "reward.slots is %d; 1 to %d are possible", c->slots, MAX_SLOTS);
    else if (c->slot_bytes == 0 || c->slot_bytes > (size_t)1 << 34)
        err_set(e, RC_CONFIG, "a slot for clips of %zu bytes; 1 to 16 GiB are possible",
                c->slot_bytes);
    else if (m.size > WIRE_MAX / 2 || (m.size && !wire_lines(&m)))
        err_set(e, RC_CONFIG, "the options for the scorer are not lines of key=value");
    return e->code == 0;
}

static void take_config(struct reward *r, const struct reward_config *c)
{
    r->num_workers = c->workers ? c->workers : 1;
    r->num_slots = c->slots ? c->slots : 2 * r->num_workers + 2;
    r->command = strdup(c->command);
    r->options = strdup(c->options ? c->options : "");
    r->worker = calloc((size_t)r->num_workers, sizeof *r->worker);
    r->slot = calloc((size_t)r->num_slots, sizeof *r->slot);
    CHECK(r->command && r->options && r->worker && r->slot, "out of memory");
    r->rank = c->rank;
    r->ranks = c->ranks > 0 ? c->ranks : 1;
    r->max_attempts = c->max_attempts > 0 ? c->max_attempts : 3;
    r->max_deaths = c->max_deaths > 0 ? c->max_deaths : 2;
    r->score_limit = or_default(c->score_limit, 100);
    snprintf(r->beyond, sizeof r->beyond, "a score is beyond reward.score_limit %g",
             r->score_limit);
    r->rules =
        (struct worker_rules){.command = r->command,
                              .env = c->env,
                              .options = r->options,
                              .memory = -1,
                              .slot_bytes = (c->slot_bytes + PAGE - 1) / PAGE * PAGE,
                              .slots = (uint32_t)r->num_slots,
                              .start_s = or_default(c->start_s, 600),
                              .ping_s = or_default(c->ping_s, 5),
                              .request_s = or_default(c->request_s, 80),
                              .restart_window_s = or_default(c->restart_window_s, 600),
                              .backoff_s = c->backoff_s < 0 ? 0 : or_default(c->backoff_s, 1),
                              .backoff_max_s = or_default(c->backoff_max_s, 60),
                              .missed_pings = c->missed_pings > 0 ? c->missed_pings : 3,
                              .max_restarts = c->max_restarts < 0 ? INT_MAX
                                              : c->max_restarts   ? c->max_restarts
                                                                  : 5};
}

/* Memory that only this process can write and nobody can resize. */
static bool map_memory(struct reward *r, struct err *e)
{
    r->memory_bytes = (size_t)r->rules.slot_bytes * (size_t)r->num_slots;
    const int fd = memfd_create("osp-reward", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    void *p = MAP_FAILED;
    bool ok = fd >= 0 && ftruncate(fd, (off_t)r->memory_bytes) == 0 &&
              fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0;
    if (ok) p = mmap(NULL, r->memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ok &= p != MAP_FAILED && fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) == 0;
    if (!ok)
        err_set(e, RC_TEMP,
                "no shared memory for %d clips of %zu bytes: %s; a smaller "
                "rl_config.sample_batch_size and fewer reward.workers need less",
                r->num_slots, (size_t)r->rules.slot_bytes, strerror(errno));
    r->rules.memory = fd;
    r->memory = p == MAP_FAILED ? NULL : p;
    for (int i = 0; r->memory && i < r->num_slots; i++) {
        r->slot[i].pub.data = r->memory + (size_t)i * r->rules.slot_bytes;
        r->slot[i].pub.bytes = (size_t)r->rules.slot_bytes;
    }
    return ok;
}

static void free_all(struct reward *r)
{
    for (int i = 0; i < r->num_workers; i++) worker_free(&r->worker[i]);
    for (int i = 0; i < r->num_slots; i++) free(r->slot[i].prompt);
    if (r->memory) munmap(r->memory, r->memory_bytes);
    if (r->rules.memory >= 0) close(r->rules.memory);
    if (r->wake >= 0) close(r->wake);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    free(r->worker);
    free(r->slot);
    free(r->command);
    free(r->options);
    free(r->done);
    free(r);
}

/* Signals are for the trainer's own thread. */
static bool start_thread(struct reward *r)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const bool ok = pthread_create(&r->thread, NULL, reward_supervise, r) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return ok;
}

struct reward *reward_open(struct spawner *p, const struct reward_config *c, struct err *e)
{
    if (!config_fine(c, e)) return NULL;
    const char *dir = c->log_dir ? c->log_dir : ".";
    io_mkdir(dir, e);
    if (e->code) return NULL;
    struct reward *r = calloc(1, sizeof *r);
    CHECK(r, "out of memory");
    take_config(r, c);
    r->spawner = p;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&r->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&r->lock, NULL);
    for (int i = 0; i < r->num_workers; i++) {
        char *log = io_path("%s/reward_%d.log", dir, c->first_log + i);
        worker_init(&r->worker[i], &r->rules, p, c->first_log + i, log);
        free(log);
    }
    r->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bool ok = map_memory(r, e);
    if (ok && (r->wake < 0 || !start_thread(r))) {
        err_set(e, RC_TEMP, "no thread for the reward workers: %s", strerror(errno));
        ok = false;
    }
    if (ok) return r;
    free_all(r);
    return NULL;
}

void reward_close(struct reward *r)
{
    if (!r) return;
    pthread_mutex_lock(&r->lock);
    r->closing = true;
    pthread_mutex_unlock(&r->lock);
    wake(r);
    pthread_join(r->thread, NULL);
    free_all(r);
}

/* ---- waiting ---- */
/* With the lock held, until something has changed or the time has come. False: it has. */
static bool wait_until(struct reward *r, double when)
{
    const double left = when - log_seconds();
    if (left <= 0) return false;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    const double whole = floor(fmin(left, 1e6));
    t.tv_sec += (time_t)whole;
    t.tv_nsec += (long)((fmin(left, 1e6) - whole) * 1e9);
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&r->changed, &r->lock, &t);
    return true;
}

/* A worker that has ended before it was ready once. */
static const struct worker *failed_start(const struct reward *r)
{
    for (int i = 0; i < r->num_workers; i++) {
        const struct worker *w = &r->worker[i];
        const bool down = w->state == WORKER_GONE || w->state == WORKER_OFF;
        if (down && ((!w->was_ready && w->num_deaths) || w->fatal)) return w;
    }
    return NULL;
}

static bool all_ready(const struct reward *r)
{
    for (int i = 0; i < r->num_workers; i++)
        if (r->worker[i].state != WORKER_READY) return false;
    return true;
}

/* The end of the message is what may be cut: command lines and logs are long. */
static void tell_failed(const struct reward *r, const struct worker *w, struct err *e)
{
    const int code = w->fatal_code;
    char said[300];
    worker_said(w, said, sizeof said);
    err_set(e, code >= RC_USAGE && code <= RC_CONFIG ? code : RC_CONFIG,
            "reward worker %d did not start: %s; its log %s ends with: %s; reward.command is "
            "\"%s\"",
            w->number, w->why, w->log, said, r->command);
}

bool reward_ready(struct reward *r, struct err *e)
{
    pthread_mutex_lock(&r->lock);
    const struct worker *failed = NULL;
    const double end = log_seconds() + 2 * r->rules.start_s + 10; /* a second start is possible */
    bool ready;
    int signal = 0;
    const double began = log_seconds();
    double said = began;
    while (!(ready = all_ready(r)) && !(failed = failed_start(r)) && !r->dead) {
        const double now = log_seconds();
        if (now >= end || (signal = launch_signal())) break;
        wait_until(r, fmin(end, now + 0.25));
        if (r->rank > 0 || now - said < 10) continue;
        said = now;
        log_progress("waiting for the scorers: %.0f s of at most %.0f s", now - began, end - began);
    }
    if (signal)
        err_set(e, RC_PREEMPTED, "stopped by signal %d while the scorers start; nothing was lost",
                signal);
    else if (failed)
        tell_failed(r, failed, e);
    else if (!ready)
        err_set(e, RC_TEMP, "the reward workers were not ready %g s after their start",
                r->rules.start_s);
    pthread_mutex_unlock(&r->lock);
    return ready;
}

int reward_dims(const struct reward *r, char name[REWARD_DIMS][REWARD_NAME])
{
    memcpy(name, r->name, sizeof r->name);
    return r->dims;
}

char *reward_identity(struct reward *r)
{
    static const char *const own[] = {"pid=", "nonce=", "protocol=", "worker="};
    pthread_mutex_lock(&r->lock);
    char *text = strdup(r->worker[0].info), *to = text;
    CHECK(text, "out of memory");
    for (const char *p = text, *line; *p; p = line) {
        line = strchr(p, '\n') + 1;
        bool keep = true;
        for (int i = 0; i < 4; i++) keep &= strncmp(p, own[i], strlen(own[i])) != 0;
        if (!keep) continue;
        memmove(to, p, (size_t)(line - p));
        to += line - p;
    }
    *to = 0;
    pthread_mutex_unlock(&r->lock);
    return text;
}

/* ---- clips in ---- */
static struct slot *free_one(struct reward *r)
{
    for (int i = 0; i < r->num_slots; i++)
        if (r->slot[i].state == SLOT_FREE) return &r->slot[i];
    return NULL;
}

struct reward_slot *reward_acquire(struct reward *r, double seconds)
{
    const double start = log_seconds();
    struct slot *s;
    pthread_mutex_lock(&r->lock);
    while (!(s = free_one(r)) && !r->dead)
        if (!wait_until(r, start + seconds)) break;
    if (r->dead) s = NULL;
    if (s) s->state = SLOT_OF_CALLER;
    r->stats.wait_s += log_seconds() - start;
    pthread_mutex_unlock(&r->lock);
    return s ? &s->pub : NULL;
}

static struct slot *of_caller(struct reward *r, struct reward_slot *p)
{
    struct slot *s = (struct slot *)(void *)p;
    CHECK(s >= r->slot && s < r->slot + r->num_slots && s->state == SLOT_OF_CALLER,
          "not a slot of the caller's");
    return s;
}

void reward_drop(struct reward *r, struct reward_slot *p)
{
    pthread_mutex_lock(&r->lock);
    reward_free_slot(r, of_caller(r, p));
    pthread_mutex_unlock(&r->lock);
}

static bool clip_fine(const struct reward_slot *p, const struct reward_clip *c, struct err *e)
{
    const int total = c->total ? c->total : c->frames;
    if (c->frames < 1 || c->frames > MAX_FRAMES || c->height < 1 || c->height > MAX_SIDE ||
        c->width < 1 || c->width > MAX_SIDE)
        err_set(e, RC_DATA, "a clip of %d frames of %dx%d pixels", c->frames, c->height, c->width);
    else if ((uint64_t)c->frames * (uint64_t)c->height * (uint64_t)c->width * 3 > p->bytes)
        err_set(e, RC_DATA,
                "a clip of %d frames of %dx%d pixels does not fit into a slot of %zu bytes",
                c->frames, c->height, c->width, p->bytes);
    else if (!(c->fps > 0 && c->fps <= 1000))
        err_set(e, RC_DATA, "a clip of %g frames per second", c->fps);
    else if (total < c->frames || (c->index && c->frames > WIRE_INDICES))
        err_set(e, RC_DATA, "%d frames out of %d", c->frames, total);
    for (int i = 0; !e->code && c->index && i < c->frames; i++)
        if (c->index[i] < (i ? c->index[i - 1] : 0) || c->index[i] >= total)
            err_set(e, RC_DATA, "frame %d of the clip is number %d of %d", i, c->index[i], total);
    return e->code == 0;
}

static bool prompt_fine(const char *prompt, struct err *e)
{
    const size_t n = strlen(prompt);
    size_t at = 0;
    if (n > REWARD_PROMPT)
        err_set(e, RC_DATA, "a prompt of %zu bytes; at most %d are possible", n, REWARD_PROMPT);
    else if (!wire_printable(prompt, n, &at))
        err_set(e, RC_DATA,
                "byte %zu of the prompt is a control character or no UTF-8: \"%.*s\"; remove it "
                "from the file of prompts",
                at + 1, (int)(at < 200 ? at : 200), prompt);
    return e->code == 0;
}

/* Of a clip without a result, or with one that was not polled. */
static bool id_in_use(const struct reward *r, uint64_t id)
{
    bool used = false;
    for (int i = 0; i < r->num_slots; i++) {
        const struct slot *s = &r->slot[i];
        used |= (s->state == SLOT_QUEUED || s->state == SLOT_SENT) && s->id == id;
    }
    for (int i = 0; i < r->num_done; i++) used |= r->done[i].id == id;
    return used;
}

bool reward_submit(struct reward *r, struct reward_slot *p, uint64_t id, const char *prompt,
                   const struct reward_clip *c, struct err *e)
{
    if (!clip_fine(p, c, e) || !prompt_fine(prompt, e)) return false;
    const size_t bytes = (size_t)c->frames * (size_t)c->height * (size_t)c->width * 3;
    const uint32_t crc = wire_crc32(0, p->data, bytes); /* before the lock: it takes a while */
    pthread_mutex_lock(&r->lock);
    struct slot *s = of_caller(r, p);
    const bool used = id_in_use(r, id);
    if (used) {
        err_set(e, RC_SOFTWARE, "clip %llu was submitted before and its result not polled",
                (unsigned long long)id);
    } else {
        s->prompt = strdup(prompt);
        CHECK(s->prompt, "out of memory");
        s->clip = (struct wire_score){.slot = (uint32_t)(s - r->slot),
                                      .offset = (uint64_t)(p->data - r->memory),
                                      .frames = (uint32_t)c->frames,
                                      .height = (uint32_t)c->height,
                                      .width = (uint32_t)c->width,
                                      .resized = c->resized,
                                      .fps = c->fps,
                                      .total = (uint32_t)(c->total ? c->total : c->frames),
                                      .num_index = c->index ? (uint32_t)c->frames : 0,
                                      .crc = crc,
                                      .prompt_size = (uint32_t)strlen(prompt),
                                      .prompt = s->prompt};
        for (int i = 0; c->index && i < c->frames; i++) s->clip.index[i] = (uint32_t)c->index[i];
        s->id = id;
        s->order = r->next_order++;
        s->attempts = s->deaths = 0;
        s->worker = -1;
        s->state = SLOT_QUEUED;
        r->stats.submitted++;
    }
    pthread_mutex_unlock(&r->lock);
    wake(r);
    return !used;
}

/* ---- results out ---- */
int reward_poll(struct reward *r, struct reward_result *out, int max)
{
    pthread_mutex_lock(&r->lock);
    const int n = r->num_done < max ? r->num_done : max;
    if (n > 0) memcpy(out, r->done, (size_t)n * sizeof *out);
    r->num_done -= n;
    if (n > 0) memmove(r->done, r->done + n, (size_t)r->num_done * sizeof *out);
    pthread_mutex_unlock(&r->lock);
    return n;
}

static void count(const struct reward *r, int *queued, int *sent)
{
    *queued = *sent = 0;
    for (int i = 0; i < r->num_slots; i++) {
        *queued += r->slot[i].state == SLOT_QUEUED;
        *sent += r->slot[i].state == SLOT_SENT;
    }
}

enum reward_state reward_flush(struct reward *r, double seconds)
{
    const double start = log_seconds();
    int queued, sent;
    pthread_mutex_lock(&r->lock);
    for (;;) {
        count(r, &queued, &sent);
        if (queued + sent == 0 || r->dead || !wait_until(r, start + seconds)) break;
    }
    const enum reward_state state = queued + sent == 0 ? REWARD_OK
                                    : r->dead          ? REWARD_DEAD
                                                       : REWARD_LATE;
    r->stats.wait_s += log_seconds() - start;
    pthread_mutex_unlock(&r->lock);
    return state;
}

int reward_give_up(struct reward *r, const char *reason)
{
    int n = 0;
    pthread_mutex_lock(&r->lock);
    for (int i = 0; i < r->num_slots; i++) {
        struct slot *s = &r->slot[i];
        if (s->state != SLOT_QUEUED && s->state != SLOT_SENT) continue;
        reward_invalid(r, s, reason);
        if (s->state == SLOT_SENT)
            s->state = SLOT_LEFT;
        else
            reward_free_slot(r, s);
        n++;
    }
    pthread_mutex_unlock(&r->lock);
    return n;
}

enum reward_state reward_state(struct reward *r)
{
    pthread_mutex_lock(&r->lock);
    const bool dead = r->dead;
    pthread_mutex_unlock(&r->lock);
    return dead ? REWARD_DEAD : REWARD_OK;
}

struct reward_stats reward_stats(struct reward *r)
{
    pthread_mutex_lock(&r->lock);
    struct reward_stats s = r->stats;
    count(r, &s.queued, &s.in_flight);
    for (int i = 0; i < r->num_workers; i++) {
        const struct worker *w = &r->worker[i];
        s.ready_workers += w->state == WORKER_READY;
        s.lost_workers += w->state == WORKER_GONE;
        s.busy_s += w->busy_s;
        s.violations += w->violations;
    }
    pthread_mutex_unlock(&r->lock);
    return s;
}
