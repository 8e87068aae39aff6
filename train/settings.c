#include "train/settings.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "train/settings_rules.h"

/* ---- loading ----------------------------------------------------------------------------------*/
/* What a verb has no keys for must still mean "no limit", not zero. */
static void neutral(struct settings *s)
{
    *s = (struct settings){.recompute = -2};
    s->job.filter = (struct filter_config){.too_long_factor = INFINITY,
                                           .max_h_div_w_ratio = INFINITY,
                                           .min_motion_value = -INFINITY,
                                           .max_motion_value = INFINITY,
                                           .max_failure_rate = 1};
}

/* A message holds 4 KB; a longer list is printed before it. */
static _Noreturn void stop(int problems, char *report)
{
    const size_t len = strlen(report);
    if (len && report[len - 1] == '\n') report[len - 1] = 0;
    char text[3600];
    snprintf(text, sizeof text, "%s", report);
    if (len >= sizeof text) {
        fprintf(stderr, "%s\n", report);
        snprintf(text, sizeof text, "they are listed above");
    }
    free(report);
    err_stop(RC_CONFIG, "%d problem%s in the configuration:\n%s", problems,
             problems == 1 ? "" : "s", text);
}

/* A file of another verb has problems with most of its keys; what they have in common is said
 * instead of them (true: text), or in front of them where the file has mistakes of its own. */
static bool belongs_elsewhere(enum settings_verb verb, const char *path, char *text, size_t size)
{
    const enum settings_whose whose = settings_whose(verb, path, text, size);
    if (whose == SETTINGS_PARTLY_OTHER) log_warn("%s", text);
    return whose == SETTINGS_WHOLLY_OTHER;
}

/* Sizes of parallelism that is not switched on. */
static void tell_idle(const struct loaded_settings *l)
{
    const struct settings *s = &l->s;
    if (s->sp_size > 1 && !s->use_sequence_parallel)
        log_warn_all("sp_size: %lld has no effect: use_sequence_parallel is false",
                     (long long)s->sp_size);
    if (s->skiparse_sp_size > 1 && !s->use_skiparse_sequence_parallel)
        log_warn_all(
            "skiparse_sp_size: %lld has no effect: use_skiparse_sequence_parallel is false",
            (long long)s->skiparse_sp_size);
}

void settings_load(struct loaded_settings *out, enum settings_verb verb, const char *path,
                   char *const *sets, int num_sets)
{
    int n;
    const struct cfg_field *schema = settings_schema(verb, &n);
    if (path && access(path, R_OK) != 0)
        err_stop(RC_NOINPUT, "configuration %s: %s", path, strerror(errno));
    *out = (struct loaded_settings){.verb = verb,
                                    .path = path ? strdup(path) : NULL,
                                    .origin = calloc((size_t)n, sizeof *out->origin)};
    CHECK(out->origin && (out->path || !path), "out of memory");
    neutral(&out->s);
    char *report = NULL, *notices = NULL;
    int problems =
        cfg_load(schema, n, &out->s, out->origin, out->path, sets, num_sets, &report, &notices);
    char other[1024];
    if (problems && path && belongs_elsewhere(verb, path, other, sizeof other)) {
        free(report);
        free(notices);
        settings_free(out);
        err_stop(RC_CONFIG, "%s", other);
    }
    if (*notices) log_info("%.*s", (int)strcspn(notices, "\n"), notices);
    free(notices);
    char *all = NULL;
    size_t size;
    FILE *f = open_memstream(&all, &size);
    CHECK(f, "out of memory");
    fputs(report, f);
    free(report);
    problems += settings_judge(out, f);
    fclose(f);
    if (!problems) {
        free(all);
        tell_idle(out);
        return;
    }
    settings_free(out);
    stop(problems, all);
}

void settings_check_ranks(const struct loaded_settings *l, int ranks)
{
    char *report = NULL;
    size_t size;
    FILE *f = open_memstream(&report, &size);
    CHECK(f, "out of memory");
    const int problems = settings_judge_ranks(l, ranks, f);
    fclose(f);
    if (problems) stop(problems, report);
    free(report);
}

/* ---- problems that are found later ------------------------------------------------------------*/
/* "file:line:column: key: " of a key's value. */
static void place_of(const struct loaded_settings *l, const char *key, char *out, size_t size)
{
    int n;
    const struct cfg_field *schema = settings_schema(l->verb, &n);
    cfg_where(schema, n, l->origin, key, out, size);
}

void settings_stop(const struct loaded_settings *l, int code, const char *key, const char *fmt, ...)
{
    char where[512], text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    place_of(l, key, where, sizeof where);
    err_stop(code, "%s%s", where, text);
}

void settings_raise(const struct loaded_settings *l, const struct err *e)
{
    if (!e->code) return;
    int n;
    const struct cfg_field *schema = settings_schema(l->verb, &n);
    for (int i = 0; i < n; i++) {
        const size_t k = strlen(schema[i].key);
        if (strncmp(e->msg, schema[i].key, k) == 0 && strncmp(e->msg + k, ": ", 2) == 0)
            settings_stop(l, e->code, schema[i].key, "%s", e->msg + k + 2);
    }
    err_raise(e);
}

void settings_push(const struct loaded_settings *l, const char *key)
{
    char where[512];
    place_of(l, key, where, sizeof where);
    where[strlen(where) - 2] = 0; /* ": " */
    err_push("using %s", where);
}

void settings_word(const char *key, int64_t value, char *out, size_t size)
{
    for (int v = SETTINGS_TRAIN; v <= SETTINGS_RL; v++) {
        int n;
        const struct cfg_field *f = settings_schema((enum settings_verb)v, &n);
        for (; n > 0; n--, f++) {
            if (f->type != CFG_ENUM || strcmp(f->key, key) != 0) continue;
            for (int64_t i = 0; f->choices[i]; i++)
                if (i == value)
                    snprintf(out, size, "%.*s", (int)strcspn(f->choices[i], "|"), f->choices[i]);
            return;
        }
    }
}

/* ---- the values -------------------------------------------------------------------------------*/
char *settings_text(const struct loaded_settings *l, bool with_origins)
{
    int n;
    const struct cfg_field *schema = settings_schema(l->verb, &n);
    return cfg_text(schema, n, &l->s, with_origins ? l->origin : NULL);
}

void settings_changed(struct loaded_settings *l, const struct settings *before, const char *from)
{
    static const size_t size[] = {[CFG_BOOL] = sizeof(bool),
                                  [CFG_INT] = sizeof(int64_t),
                                  [CFG_REAL] = sizeof(double),
                                  [CFG_TEXT] = sizeof(char *),
                                  [CFG_ENUM] = sizeof(int),
                                  [CFG_REALS] = sizeof(struct cfg_reals),
                                  [CFG_INTS] = sizeof(struct cfg_ints),
                                  [CFG_TEXTS] = sizeof(struct cfg_texts),
                                  [CFG_WORD_OR_INTS] = sizeof(int)};
    int n;
    const struct cfg_field *schema = settings_schema(l->verb, &n);
    for (int i = 0; i < n; i++) {
        const struct cfg_field *f = &schema[i];
        if (f->type >= CFG_ONLY) continue;
        const char *now = (const char *)&l->s + f->offset;
        if (memcmp(now, (const char *)before + f->offset, size[f->type]) != 0)
            l->origin[i] = (struct cfg_origin){.file = from};
    }
}

void settings_free(struct loaded_settings *l)
{
    int n;
    const struct cfg_field *schema = settings_schema(l->verb, &n);
    cfg_free(schema, n, &l->s);
    free(l->origin);
    free(l->path);
    l->origin = NULL;
    l->path = NULL;
}

enum dtype settings_dtype(const struct settings *s)
{
    static const enum dtype types[] = {DT_BF16, DT_F32, DT_F64};
    return types[s->weight_dtype];
}
