/* Samples and the data set on the page of a run. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/io.h"
#include "core/log.h"
#include "data/rejected.h"
#include "train/report.h"
#include "train/report_svg.h"

enum { VIDEO_BYTES = 3 << 20, PAGE_BYTES = 64 << 20, DEPTH = 3, REJECTED_ROWS = 200 };

struct names {
    char **v;
    int n;
};

static bool ends_with(const char *s, const char *end)
{
    const size_t a = strlen(s), b = strlen(end);
    return a > b && strcmp(s + a - b, end) == 0;
}

/* Paths relative to run of all png and mp4 files under run/sub. */
static void collect(struct names *list, const char *run, const char *sub, int depth)
{
    char *folder = io_path("%s/%s", run, sub);
    DIR *d = opendir(folder);
    for (struct dirent *f; d && (f = readdir(d));) {
        if (f->d_name[0] == '.') continue;
        char *name = io_path("%s/%s", sub, f->d_name), *path = io_path("%s/%s", run, name);
        struct stat st;
        const bool known = stat(path, &st) == 0;
        if (known && S_ISDIR(st.st_mode) && depth > 1) collect(list, run, name, depth - 1);
        if (known && S_ISREG(st.st_mode) && (ends_with(name, ".png") || ends_with(name, ".mp4"))) {
            list->v = realloc(list->v, (size_t)(list->n + 1) * sizeof *list->v);
            CHECK(list->v, "out of memory");
            list->v[list->n++] = name;
            name = NULL;
        }
        free(name);
        free(path);
    }
    if (d) closedir(d);
    free(folder);
}

/* Pictures first, then by name. */
static int picture_first(const void *a, const void *b)
{
    const char *x = *(char *const *)a, *y = *(char *const *)b;
    const bool px = ends_with(x, ".png"), py = ends_with(y, ".png");
    return px != py ? (px ? -1 : 1) : strcmp(x, y);
}

static void base64(FILE *out, const uint8_t *p, size_t n)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        const uint32_t left = n - i < 3 ? (uint32_t)(n - i) : 3;
        const uint32_t v = (uint32_t)p[i] << 16 | (left > 1 ? (uint32_t)p[i + 1] << 8 : 0) |
                           (left > 2 ? p[i + 2] : 0);
        fputc(digit[v >> 18], out);
        fputc(digit[v >> 12 & 63], out);
        fputc(left > 1 ? digit[v >> 6 & 63] : '=', out);
        fputc(left > 2 ? digit[v & 63] : '=', out);
    }
}

/* The file itself, or a link when it is large. */
static void one_sample(FILE *out, const char *run, const char *name, size_t *used)
{
    char *path = io_path("%s/%s", run, name);
    const bool video = ends_with(name, ".mp4");
    struct err e = {0};
    size_t n = 0;
    struct stat st;
    const bool small = stat(path, &st) == 0 && *used + (size_t)st.st_size <= PAGE_BYTES &&
                       (!video || st.st_size < VIDEO_BYTES);
    uint8_t *p = small ? (uint8_t *)(void *)io_read_file(path, &n, &e) : NULL;
    if (e.code) log_warn("%s; the report only links to it", e.msg);
    fprintf(out, "<figure class=sample>");
    if (p) {
        fprintf(out, video ? "<video controls loop muted playsinline src=\"data:video/mp4;base64,"
                           : "<img alt=\"");
        if (!video) {
            html_text(out, name);
            fprintf(out, "\" src=\"data:image/png;base64,");
        }
        base64(out, p, n);
        fprintf(out, video ? "\"></video>" : "\">");
        *used += n;
    }
    fprintf(out, "<figcaption><a href=\"");
    html_text(out, name);
    fprintf(out, "\">");
    html_text(out, name);
    fprintf(out, "</a></figcaption></figure>\n");
    free(p);
    free(path);
}

int report_samples(FILE *out, const char *run)
{
    struct names list = {0};
    size_t used = 0;
    collect(&list, run, "samples", DEPTH);
    if (list.n) {
        qsort(list.v, (size_t)list.n, sizeof *list.v, picture_first);
        fprintf(out, "<h2>Samples</h2><div class=samples>\n");
        for (int i = 0; i < list.n; i++) {
            one_sample(out, run, list.v[i], &used);
            free(list.v[i]);
        }
        fprintf(out, "</div>\n");
    }
    free(list.v);
    return list.n;
}

/* ---- evaluations ------------------------------------------------------------------------------*/
static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* First and last folder of <run>/eval, by name: epoch_<number>. */
static bool evaluations(const char *run, char *first, char *last, size_t size)
{
    char *folder = io_path("%s/eval", run);
    DIR *d = opendir(folder);
    *first = *last = 0;
    for (struct dirent *f; d && (f = readdir(d));) {
        if (strncmp(f->d_name, "epoch_", 6)) continue;
        if (!*first || strcmp(f->d_name, first) < 0) snprintf(first, size, "%s", f->d_name);
        if (strcmp(f->d_name, last) > 0) snprintf(last, size, "%s", f->d_name);
    }
    if (d) closedir(d);
    free(folder);
    return *first && strcmp(first, last) != 0;
}

static void pair(FILE *out, const char *run, const char *before, const char *after, size_t *used)
{
    fprintf(out, "<div class=pair>");
    one_sample(out, run, before, used);
    fprintf(out, "<span class=arrow>→</span>");
    one_sample(out, run, after, used);
    fprintf(out, "</div>\n");
}

int report_before_after(FILE *out, const char *run)
{
    char first[256], last[256];
    if (!evaluations(run, first, last, sizeof first)) return 0;
    struct names list = {0};
    size_t used = 0;
    int pairs = 0;
    char *sub = io_path("eval/%s", last);
    collect(&list, run, sub, 1);
    if (list.n) qsort(list.v, (size_t)list.n, sizeof *list.v, by_name);
    for (int i = 0; i < list.n; i++) {
        char *before = io_path("eval/%s%s", first, strrchr(list.v[i], '/'));
        char *path = io_path("%s/%s", run, before);
        if (io_exists(path)) {
            if (!pairs++)
                fprintf(out,
                        "<h2>Before and after</h2><p class=sub>evaluation prompts from the same "
                        "noise: %s, then %s</p><div class=samples>\n",
                        first, last);
            pair(out, run, before, list.v[i], &used);
        }
        free(path);
        free(before);
        free(list.v[i]);
    }
    if (pairs) fprintf(out, "</div>\n");
    free(list.v);
    free(sub);
    return pairs;
}

/* The value of a key in YAML text of one key per line; malloc'ed, NULL: not there or null. */
static char *value_of(const char *text, const char *key)
{
    const size_t k = strlen(key);
    for (const char *s = text; s && *s; s = strchr(s, '\n') ? strchr(s, '\n') + 1 : NULL) {
        while (*s == ' ') s++;
        if (strncmp(s, key, k) || s[k] != ':') continue;
        s += k + 1;
        s += strspn(s, " \"'");
        const size_t n = strcspn(s, "\"'\n#");
        char *v = strndup(s, n);
        CHECK(v, "out of memory");
        for (size_t i = n; i > 0 && v[i - 1] == ' '; i--) v[i - 1] = 0;
        if (v[0] && strcmp(v, "null")) return v;
        free(v);
        return NULL;
    }
    return NULL;
}

static void cell(FILE *out, const char *s)
{
    fprintf(out, "<td>");
    html_text(out, s);
}

void report_rejected(FILE *out, const char *config)
{
    char *path = config ? value_of(config, "metafile_or_dir_path") : NULL;
    struct rejected r = {0};
    struct err e = {0};
    if (path && io_exists(path) && !rejected_read(path, &r, &e))
        log_warn("the report has no table of clips: %s", e.msg);
    if (r.n > 0) {
        fprintf(out,
                "<h2>Clips that were not used</h2><p class=sub>%lld of the description, data set ",
                (long long)r.n);
        html_text(out, path);
        fprintf(out, "</p><div class=scroll><table><tr><th>clip<th>rule<th>detail\n");
        for (int64_t i = 0; i < r.n && i < REJECTED_ROWS; i++) {
            fprintf(out, "<tr>");
            cell(out, r.path[i]);
            cell(out, r.rule[i]);
            cell(out, r.detail[i]);
            fprintf(out, "\n");
        }
        fprintf(out, "</table></div>\n");
    }
    rejected_free(&r);
    free(path);
}
