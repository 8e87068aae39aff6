/* Samples and the data set on the page of a run. */
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/io.h"
#include "core/log.h"
#include "data/rejected.h"
#include "train/captions.h"
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

/* The last part of a path. */
static const char *file_of(const char *name)
{
    const char *slash = strrchr(name, '/');
    return slash ? slash + 1 : name;
}

/* A folder at a time, the outer one first. */
static int by_folder(const void *a, const void *b)
{
    const char *x = *(char *const *)a, *y = *(char *const *)b;
    const size_t m = (size_t)(file_of(x) - x), n = (size_t)(file_of(y) - y);
    const int c = strncmp(x, y, m < n ? m : n);
    return c ? c : m != n ? (m < n ? -1 : 1) : strcmp(x, y);
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

static void element(FILE *out, const char *tag, const char *text)
{
    fprintf(out, "<%s>", tag);
    html_text(out, text);
    fprintf(out, "</%.*s>", (int)strcspn(tag, " "), tag);
}

static void prompt(FILE *out, const char *text)
{
    element(out, "p class=prompt", *text ? text : "(the empty prompt)");
    fputc('\n', out);
}

/* The file itself, or a link when it is large. text NULL: nothing is known but the name. */
static void figure(FILE *out, const char *run, const char *name, const char *text, bool small,
                   size_t *used)
{
    char *path = io_path("%s/%s", run, name);
    const bool video = ends_with(name, ".mp4");
    struct err e = {0};
    size_t n = 0;
    struct stat st;
    const bool inside = stat(path, &st) == 0 && *used + (size_t)st.st_size <= PAGE_BYTES &&
                        (!video || st.st_size < VIDEO_BYTES);
    uint8_t *p = inside ? (uint8_t *)(void *)io_read_file(path, &n, &e) : NULL;
    if (e.code) log_warn("%s; the report only links to it", e.msg);
    fprintf(out, small ? "<figure class=\"sample small\">" : "<figure class=sample>");
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
    fprintf(out, "<figcaption>");
    if (text) element(out, "span", text);
    fprintf(out, "<a href=\"");
    html_link(out, name);
    fprintf(out, "\">");
    html_text(out, name);
    fprintf(out, "</a></figcaption></figure>\n");
    free(p);
    free(path);
}

/* ---- samples ----------------------------------------------------------------------------------*/
/* In which order prompts and their samples stand on the sheet (data/grid.h). */
static void sheet_line(FILE *out, const struct captions *c)
{
    const long long k = c->samples, last = k - 1;
    fprintf(out, "<p class=sub>Contact sheet");
    if (c->shown < c->items) fprintf(out, " of the first %lld videos", (long long)c->shown);
    fprintf(out, ": ");
    if (c->columns == k && k > 1)
        fprintf(out, "rows are prompts in this order, columns are samples 0 to %lld", last);
    else if (c->columns == k)
        fprintf(out, "rows are prompts in this order");
    else if (c->columns % k == 0 && k > 1)
        fprintf(out,
                "rows are %lld prompts each, in this order, with samples 0 to %lld side by side",
                (long long)(c->columns / k), last);
    else
        fprintf(out, "%s in this order, row by row from the left",
                k > 1 ? "prompts, and the samples of each," : "prompts");
    fprintf(out, "; the middle frame of each video.</p>\n");
}

/* Removes <folder>/<file> from the list and returns it, malloc'ed; NULL: it is not there. */
static char *taken(struct names *list, const char *folder, const char *file)
{
    char *name = io_path("%s/%s", folder, file), *found = NULL;
    for (int i = 0; i < list->n && !found; i++) {
        if (!list->v[i] || strcmp(list->v[i], name)) continue;
        found = list->v[i];
        list->v[i] = NULL;
    }
    free(name);
    return found;
}

/* The sheet as a picture and as a video, whichever is there. */
static void sheet(FILE *out, const char *run, const char *folder, const struct captions *c,
                  struct names *list, size_t *used)
{
    static const char *const file[] = {"sheet.png", "video_grid.mp4"};
    int shown = 0;
    for (int k = 0; k < 2; k++) {
        char *name = taken(list, folder, file[k]);
        if (!name) continue;
        if (!shown && c->rows > 0 && c->columns > 0 && c->shown > 0) sheet_line(out, c);
        if (!shown++) fprintf(out, "<div class=samples>\n");
        figure(out, run, name, NULL, false, used);
        free(name);
    }
    if (shown) fprintf(out, "</div>\n");
}

/* The videos that samples.json knows, under their prompts. */
static void by_prompt(FILE *out, const char *run, const char *folder, const struct captions *c,
                      struct names *list, size_t *used)
{
    int64_t number = -1;
    for (int64_t i = 0; i < c->n; i++) {
        const struct caption *v = &c->v[i];
        char *name = taken(list, folder, v->file);
        if (!name) continue;
        if (v->number != number) {
            if (number >= 0) fprintf(out, "</div>\n");
            prompt(out, v->prompt);
            fprintf(out, "<div class=samples>\n");
            number = v->number;
        }
        figure(out, run, name, v->text, v->small, used);
        free(name);
    }
    if (number >= 0) fprintf(out, "</div>\n");
}

/* What samples.json of the folder describes; false: nothing. */
static bool described(FILE *out, const char *run, const char *folder, struct names *list,
                      size_t *used)
{
    char *path = io_path("%s/%s", run, folder);
    struct captions c;
    captions_of_samples(&c, path);
    const bool any = c.n > 0;
    if (any) {
        if (strcmp(folder, "samples")) element(out, "h3", folder);
        sheet(out, run, folder, &c, list, used);
        by_prompt(out, run, folder, &c, list, used);
    }
    captions_free(&c);
    free(path);
    return any;
}

/* Every folder of the list, once; what is described leaves the list. */
static bool all_described(FILE *out, const char *run, struct names *list, size_t *used)
{
    bool any = false;
    char *before = NULL;
    if (list->n) qsort(list->v, (size_t)list->n, sizeof *list->v, by_folder);
    for (int i = 0; i < list->n; i++) {
        if (!list->v[i]) continue;
        char *folder = strndup(list->v[i], (size_t)(file_of(list->v[i]) - list->v[i] - 1));
        CHECK(folder, "out of memory");
        const bool again = before && strcmp(folder, before) == 0;
        if (!again && described(out, run, folder, list, used)) any = true;
        free(before);
        before = folder;
    }
    free(before);
    return any;
}

int report_samples(FILE *out, const char *run)
{
    struct names list = {0};
    size_t used = 0;
    collect(&list, run, "samples", DEPTH);
    if (list.n) fprintf(out, "<h2>Samples</h2>\n");
    const bool any = all_described(out, run, &list, &used);
    int left = 0;
    for (int i = 0; i < list.n; i++)
        if (list.v[i]) list.v[left++] = list.v[i];
    if (left) {
        qsort(list.v, (size_t)left, sizeof *list.v, picture_first);
        fprintf(out, "%s<div class=samples>\n", any ? "<h3>Other files</h3>\n" : "");
    }
    for (int i = 0; i < left; i++) {
        figure(out, run, list.v[i], NULL, false, &used);
        free(list.v[i]);
    }
    if (left) fprintf(out, "</div>\n");
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

/* Two videos of a prompt from one noise, and what changed. */
struct pair {
    char *before, *after;        /* paths in the run */
    const struct caption *b, *a; /* NULL: nothing is recorded */
    bool comparable;             /* their rewards */
};

static bool same_prompt(const struct pair *p)
{
    return p->b && p->a && strcmp(p->b->prompt, p->a->prompt) == 0;
}

/* Its own prompt is said by a video whose partner has another one. malloc'ed; NULL: nothing. */
static char *pair_text(const struct pair *p, const struct caption *c)
{
    if (!c) return NULL;
    if (!same_prompt(p)) return io_path("%s · %s", c->prompt, c->text);
    const double gain = p->a->reward - p->b->reward;
    if (c == p->a && p->comparable && isfinite(gain)) return io_path("%s (%+.4f)", c->text, gain);
    return io_path("%s", c->text);
}

static void put_pair(FILE *out, const char *run, const struct pair *p, size_t *used)
{
    char *before = pair_text(p, p->b), *after = pair_text(p, p->a);
    fprintf(out, "<div class=pair>");
    figure(out, run, p->before, before, p->b && p->b->small, used);
    fprintf(out, "<span class=arrow>→</span>");
    figure(out, run, p->after, after, p->a && p->a->small, used);
    fprintf(out, "</div>\n");
    free(before);
    free(after);
}

/* Those of a prompt stand under it, together. */
static void put_pairs(FILE *out, const char *run, const struct pair *p, int n)
{
    int64_t number = -1; /* of the prompt; -1: no common one is known */
    size_t used = 0;
    for (int i = 0; i < n; i++) {
        const int64_t mine = same_prompt(&p[i]) ? p[i].a->number : -1;
        if (i == 0 || mine != number) {
            if (i > 0) fprintf(out, "</div>\n");
            if (mine >= 0) prompt(out, p[i].a->prompt);
            fprintf(out, "<div class=samples>\n");
        }
        number = mine;
        put_pair(out, run, &p[i], &used);
    }
    fprintf(out, "</div>\n");
}

/* The videos of the last evaluation that the first one has too. */
static int pairs_of(struct pair **out, const char *run, const char *first, const char *last)
{
    struct names list = {0};
    int n = 0;
    char *sub = io_path("eval/%s", last);
    collect(&list, run, sub, 1);
    if (list.n) qsort(list.v, (size_t)list.n, sizeof *list.v, by_name);
    *out = calloc((size_t)list.n + 1, sizeof **out);
    CHECK(*out, "out of memory");
    for (int i = 0; i < list.n; i++) {
        char *before = io_path("eval/%s/%s", first, file_of(list.v[i]));
        char *path = io_path("%s/%s", run, before);
        if (io_exists(path)) {
            (*out)[n++] = (struct pair){.before = before, .after = list.v[i]};
        } else {
            free(before);
            free(list.v[i]);
        }
        free(path);
    }
    free(list.v);
    free(sub);
    return n;
}

static void captions_of(struct captions *c, const char *run, const char *evaluation)
{
    char *folder = io_path("%s/eval/%s", run, evaluation);
    captions_of_evaluation(c, folder);
    free(folder);
}

int report_before_after(FILE *out, const char *run, const struct report_change *change)
{
    char first[256], last[256];
    if (!evaluations(run, first, last, sizeof first)) return 0;
    struct pair *p;
    struct captions was, is;
    const int n = pairs_of(&p, run, first, last);
    captions_of(&was, run, first);
    captions_of(&is, run, last);
    for (int i = 0; i < n; i++) {
        p[i].b = captions_find(&was, file_of(p[i].before));
        p[i].a = captions_find(&is, file_of(p[i].after));
        p[i].comparable = !change->key;
    }
    if (n) {
        fprintf(out,
                "<h2>Before and after</h2><p class=sub>evaluation prompts from the same noise: %s, "
                "then %s%s%s</p>\n",
                first, last, change->key ? "; the rewards are not comparable: other " : "",
                change->key ? change->key : "");
        put_pairs(out, run, p, n);
    }
    for (int i = 0; i < n; i++) {
        free(p[i].before);
        free(p[i].after);
    }
    free(p);
    captions_free(&was);
    captions_free(&is);
    return n;
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
