#include "train/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/fault.h"
#include "core/io.h"
#include "core/log.h"
#include "train/tensorboard.h"

enum { KEY_BYTES = 96 };

struct metrics {
    int fd;
    char *path;
    bool torn; /* the last line was cut by an error: the next one begins with a newline */
    int64_t lost;
    struct tensorboard *tb;
    int n, cap;
    char (*key)[KEY_BYTES];
    double *value;
};

static double wall_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A line under construction. */
struct text {
    char *p;
    size_t n, cap;
};

static void add(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct text *t, const char *fmt, ...)
{
    for (;;) {
        va_list ap;
        va_start(ap, fmt);
        const int w = vsnprintf(t->p ? t->p + t->n : NULL, t->cap - t->n, fmt, ap);
        va_end(ap);
        CHECK(w >= 0, "cannot format");
        if (t->n + (size_t)w < t->cap) {
            t->n += (size_t)w;
            return;
        }
        t->cap = 2 * (t->cap + (size_t)w) + 128;
        t->p = realloc(t->p, t->cap);
        CHECK(t->p, "out of memory");
    }
}

static void add_string(struct text *t, const char *s)
{
    add(t, "\"");
    for (; *s; s++) {
        const unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            add(t, "\\%c", c);
        else if (c == '\n')
            add(t, "\\n");
        else if (c < 0x20)
            add(t, "\\u%04x", c);
        else
            add(t, "%c", c);
    }
    add(t, "\"");
}

/* JSON has no word for what is not finite. 9 digits give back every float, 17 every double. */
static void add_number(struct text *t, double v)
{
    if (isnan(v))
        add(t, "\"nan\"");
    else if (isinf(v))
        add(t, v > 0 ? "\"inf\"" : "\"-inf\"");
    else
        add(t, (double)(float)v == v ? "%.9g" : "%.17g", v);
}

static void begin(struct text *t)
{
    const time_t now = time(NULL);
    struct tm utc;
    char stamp[32];
    gmtime_r(&now, &utc);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &utc);
    add(t, "{\"t\":\"%s\"", stamp);
}

/* A line that is lost costs a point of a curve, not the run: the error is told, training goes on.
 */
static void lost_line(struct metrics *m, const char *why)
{
    if (m->lost++ == 0)
        log_warn("%s; training goes on, further lost lines are counted at the end", why);
}

/* The whole line in one append: a reader never sees half of it, and neither does a second writer.
 */
static void put_line(struct metrics *m, struct text *t)
{
    add(t, "}\n");
    const bool fault = fault_hit("metrics");
    const char *from = t->p;
    size_t n = t->n;
    if (m->torn) { /* one byte more in front; t always has room for it */
        add(t, " ");
        memmove(t->p + 1, t->p, n);
        t->p[0] = '\n';
        from = t->p;
        n++;
    }
    errno = ENOSPC;
    ssize_t w = -1;
    while (!fault && (w = write(m->fd, from, n)) < 0 && errno == EINTR) {
    }
    if (w > 0) m->torn = (size_t)w < n;
    if (w != (ssize_t)n) {
        char why[512];
        snprintf(why, sizeof why, "%s: cannot write: %s", m->path,
                 strerror(w < 0 ? errno : ENOSPC));
        lost_line(m, why);
    }
    free(t->p);
}

static void told(struct metrics *m, struct err *e)
{
    if (e->code) lost_line(m, e->msg);
}

/* The file may end in half a line when the run before was killed. Returns whether it holds any. */
static bool open_lines(struct metrics *m, struct err *e)
{
    m->fd = open(m->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    struct stat st;
    if (m->fd < 0 || fstat(m->fd, &st) != 0) {
        err_set(e, RC_CANTCREAT, "%s: cannot open: %s", m->path, strerror(errno));
        return false;
    }
    char last = '\n';
    if (st.st_size > 0 && pread(m->fd, &last, 1, st.st_size - 1) != 1)
        err_set(e, RC_IO, "%s: cannot read: %s", m->path, strerror(errno));
    m->torn = last != '\n';
    return st.st_size > 0;
}

struct metrics *metrics_open(const char *dir, int rank, int64_t last_step, struct err *e)
{
    if (rank != 0) return NULL;
    io_mkdir(dir, e);
    if (e->code) return NULL;
    struct metrics *m = calloc(1, sizeof *m);
    CHECK(m, "out of memory");
    m->path = io_path("%s/metrics.jsonl", dir);
    const bool before = open_lines(m, e);
    /* lines of the checkpoint's own step stay; a fresh run in a folder with old lines hides all */
    const int64_t from_step = last_step >= 0 ? last_step + 1 : before ? 0 : -1;
    char *tb = io_path("%s/tb", dir);
    if (!e->code) m->tb = tensorboard_open(tb, wall_clock(), from_step, e);
    free(tb);
    if (e->code) {
        metrics_close(m);
        return NULL;
    }
    if (from_step >= 0) {
        struct text t = {0};
        begin(&t);
        add(&t, ",\"event\":\"resume\",\"from_step\":%lld", (long long)from_step);
        put_line(m, &t);
    }
    return m;
}

void metrics_put(struct metrics *m, const char *key, double value)
{
    if (!m) return;
    CHECK(strlen(key) < KEY_BYTES, "metric name \"%s\" is too long", key);
    int i = 0;
    while (i < m->n && strcmp(m->key[i], key)) i++;
    if (i == m->cap) {
        m->cap = 2 * m->cap + 32;
        m->key = realloc(m->key, (size_t)m->cap * sizeof *m->key);
        m->value = realloc(m->value, (size_t)m->cap * sizeof *m->value);
        CHECK(m->key && m->value, "out of memory");
    }
    if (i == m->n) strcpy(m->key[m->n++], key);
    m->value[i] = value;
}

/* TensorBoard renders markdown; four spaces keep a configuration as it is. */
static char *as_code(const char *text)
{
    struct text t = {0};
    add(&t, "    ");
    for (; *text; text++) {
        add(&t, "%c", *text);
        if (*text == '\n' && text[1]) add(&t, "    ");
    }
    return t.p;
}

void metrics_text(struct metrics *m, const char *key, const char *text)
{
    if (!m) return;
    struct text t = {0};
    begin(&t);
    add(&t, ",\"event\":\"text\",\"key\":");
    add_string(&t, key);
    add(&t, ",\"text\":");
    add_string(&t, text);
    put_line(m, &t);
    struct err e = {0};
    char *code = as_code(text), *tag = io_path("%s/text_summary", key);
    tensorboard_text(m->tb, wall_clock(), 0, tag, code, &e);
    told(m, &e);
    free(tag);
    free(code);
}

void metrics_flush(struct metrics *m, int64_t step, double wall_s)
{
    if (!m || m->n == 0) return;
    struct text t = {0};
    begin(&t);
    add(&t, ",\"step\":%lld,\"wall_s\":%.3f", (long long)step, wall_s);
    const char **tag = calloc((size_t)m->n, sizeof *tag);
    CHECK(tag, "out of memory");
    for (int i = 0; i < m->n; i++) {
        tag[i] = m->key[i];
        add(&t, ",");
        add_string(&t, m->key[i]);
        add(&t, ":");
        add_number(&t, m->value[i]);
    }
    put_line(m, &t);
    struct err e = {0};
    tensorboard_scalars(m->tb, wall_clock(), step, tag, m->value, m->n, &e);
    told(m, &e);
    free(tag);
    m->n = 0;
}

static void begin_event(struct text *t, const char *event, int64_t step)
{
    begin(t);
    add(t, ",\"event\":");
    add_string(t, event);
    add(t, ",\"step\":%lld", (long long)step);
}

void metrics_event(struct metrics *m, const char *event, int64_t step)
{
    if (!m) return;
    struct text t = {0};
    begin_event(&t, event, step);
    put_line(m, &t);
}

void metrics_event_at(struct metrics *m, const char *event, int64_t step, double wall_s)
{
    if (!m) return;
    struct text t = {0};
    begin_event(&t, event, step);
    add(&t, ",\"wall_s\":%.3f", wall_s);
    put_line(m, &t);
}

void metrics_close(struct metrics *m)
{
    if (!m) return;
    if (m->lost) log_warn("%s: %lld records could not be written", m->path, (long long)m->lost);
    if (m->fd >= 0) close(m->fd); /* every write has been checked */
    tensorboard_close(m->tb);
    free(m->key);
    free(m->value);
    free(m->path);
    free(m);
}

/* ---- reading ----------------------------------------------------------------------------------*/
static void read_line(const char *line, int64_t step, const char *key, struct metrics_past *out)
{
    json_t *j = json_loads(line, 0, NULL); /* NULL: cut by the end of a run */
    const json_t *from = json_object_get(j, "from_step"), *at = json_object_get(j, "step");
    if (from && json_integer_value(from) == 0) *out = (struct metrics_past){0}; /* another run */
    if (from && json_integer_value(from) <= step) out->has_key = false;
    if (at && json_integer_value(at) == step && json_object_get(j, key)) out->has_key = true;
    const double wall = json_number_value(json_object_get(j, "wall_s"));
    if (wall > out->wall_s) out->wall_s = wall;
    json_decref(j);
}

struct metrics_past metrics_past(const char *dir, int64_t step, const char *key)
{
    struct metrics_past out = {0};
    char *path = io_path("%s/metrics.jsonl", dir), *line = NULL;
    size_t room = 0;
    FILE *f = fopen(path, "re");
    while (f && getline(&line, &room, f) >= 0) read_line(line, step, key, &out);
    if (f) fclose(f);
    free(line);
    free(path);
    return out;
}
