#include "train/runlog.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"

static char *copy(const char *s)
{
    char *c = strdup(s ? s : "");
    CHECK(c, "out of memory");
    return c;
}

static void *grown(void *p, int n, size_t size)
{
    p = realloc(p, (size_t)n * size);
    CHECK(p, "out of memory");
    return p;
}

static struct series *series_of(struct runlog *l, const char *key)
{
    for (int i = 0; i < l->num_series; i++)
        if (strcmp(l->series[i].key, key) == 0) return &l->series[i];
    l->series = grown(l->series, l->num_series + 1, sizeof *l->series);
    l->series[l->num_series] = (struct series){.key = copy(key)};
    return &l->series[l->num_series++];
}

static void add_point(struct series *s, double step, double value, int start)
{
    if (s->n == s->cap) {
        s->cap = 2 * s->cap + 64;
        s->step = grown(s->step, s->cap, sizeof *s->step);
        s->value = grown(s->value, s->cap, sizeof *s->value);
        s->start = grown(s->start, s->cap, sizeof *s->start);
    }
    while (s->n > 0 && s->step[s->n - 1] >= step)
        s->n--; /* the same step again: the later counts */
    s->step[s->n] = step;
    s->start[s->n] = start;
    s->value[s->n++] = value;
}

/* A resume: what was written at this step or later was undone. */
static void drop_from(struct runlog *l, int64_t step)
{
    for (int i = 0; i < l->num_series; i++) {
        struct series *s = &l->series[i];
        while (s->n > 0 && s->step[s->n - 1] >= (double)step) s->n--;
    }
    if (l->step >= step) l->step = step > 0 ? step - 1 : 0;
}

static void add_event(struct runlog *l, const json_t *line, const char *what, int64_t step)
{
    l->event = grown(l->event, l->num_events + 1, sizeof *l->event);
    l->event[l->num_events++] =
        (struct run_event){copy(json_string_value(json_object_get(line, "t"))), copy(what), step};
}

static void take_event(struct runlog *l, const json_t *line, const char *what)
{
    const json_t *from = json_object_get(line, "from_step"), *at = json_object_get(line, "step");
    if (strcmp(what, "text") == 0) {
        const char *key = json_string_value(json_object_get(line, "key"));
        const char *text = json_string_value(json_object_get(line, "text"));
        if (!key || !text || strcmp(key, "config")) return;
        l->start = grown(l->start, l->num_starts + 1, sizeof *l->start);
        l->config = l->start[l->num_starts++] = copy(text);
        add_event(l, line, "start", l->step);
        return;
    }
    if (strcmp(what, "resume") == 0 && json_is_integer(from))
        drop_from(l, json_integer_value(from));
    add_event(l, line, what, json_integer_value(from ? from : at));
}

/* Numbers, and the three words that JSON has no number for. */
static bool value_of(const json_t *v, double *out)
{
    const char *s = json_string_value(v);
    if (json_is_number(v))
        *out = json_number_value(v);
    else if (s && strcmp(s, "nan") == 0)
        *out = NAN;
    else if (s && strcmp(s, "inf") == 0)
        *out = INFINITY;
    else if (s && strcmp(s, "-inf") == 0)
        *out = -INFINITY;
    else
        return false;
    return true;
}

static void take_line(struct runlog *l, json_t *line)
{
    const char *what = json_string_value(json_object_get(line, "event"));
    const char *time = json_string_value(json_object_get(line, "t")), *key;
    if (time) {
        if (!l->first_time) l->first_time = copy(time);
        free(l->last_time);
        l->last_time = copy(time);
    }
    if (what) {
        take_event(l, line, what);
        return;
    }
    const json_t *at = json_object_get(line, "step");
    json_t *v;
    if (!json_is_integer(at)) {
        l->broken++;
        return;
    }
    if (json_integer_value(at) > l->step) l->step = json_integer_value(at);
    json_object_foreach(line, key, v)
    {
        double x;
        if (strcmp(key, "step") == 0 || !value_of(v, &x)) continue;
        if (strcmp(key, "wall_s") == 0)
            l->wall_s = x;
        else
            add_point(series_of(l, key), (double)json_integer_value(at), x, l->num_starts - 1);
    }
}

bool runlog_load(const char *path, struct runlog *l, struct err *e)
{
    memset(l, 0, sizeof *l);
    size_t size;
    char *text = io_read_file(path, &size, e), *save = NULL;
    if (!text) return false;
    for (char *s = strtok_r(text, "\n", &save); s; s = strtok_r(NULL, "\n", &save)) {
        json_t *line = json_loads(s, 0, NULL);
        if (json_is_object(line)) {
            l->lines++;
            take_line(l, line);
        } else {
            l->broken++;
        }
        json_decref(line);
    }
    free(text);
    if (l->lines == 0)
        err_set(e, RC_DATA, "%s: %s", path, l->broken ? "no line of it is JSON" : "is empty");
    return l->lines > 0;
}

void runlog_free(struct runlog *l)
{
    for (int i = 0; i < l->num_series; i++) {
        free(l->series[i].key);
        free(l->series[i].step);
        free(l->series[i].value);
        free(l->series[i].start);
    }
    for (int i = 0; i < l->num_events; i++) {
        free(l->event[i].time);
        free(l->event[i].what);
    }
    free(l->series);
    free(l->event);
    for (int i = 0; i < l->num_starts; i++) free(l->start[i]);
    free(l->start);
    free(l->first_time);
    free(l->last_time);
    memset(l, 0, sizeof *l);
}

const struct series *runlog_find(const struct runlog *l, const char *key)
{
    for (int i = 0; i < l->num_series; i++)
        if (strcmp(l->series[i].key, key) == 0 && l->series[i].n > 0) return &l->series[i];
    return NULL;
}

double series_last(const struct series *s)
{
    for (int i = s ? s->n - 1 : -1; i >= 0; i--)
        if (isfinite(s->value[i])) return s->value[i];
    return NAN;
}

double series_first(const struct series *s)
{
    for (int i = 0; s && i < s->n; i++)
        if (isfinite(s->value[i])) return s->value[i];
    return NAN;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double series_median(const struct series *s)
{
    if (!s || s->n == 0) return NAN;
    double *v = malloc((size_t)s->n * sizeof *v);
    CHECK(v, "out of memory");
    int n = 0;
    for (int i = 0; i < s->n; i++)
        if (isfinite(s->value[i])) v[n++] = s->value[i];
    qsort(v, (size_t)n, sizeof *v, ascending);
    const double m = n ? (v[(n - 1) / 2] + v[n / 2]) / 2 : NAN;
    free(v);
    return m;
}
