#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/io.h"
#include "data/meta.h"

enum { MAX_COLUMNS = 6 };
enum column { COL_PATH, COL_TEXT, COL_FRAMES, COL_HEIGHT, COL_WIDTH, COL_FPS };
static const char *const names[MAX_COLUMNS] = {"path",   "text",  "num_frames",
                                               "height", "width", "fps"};
struct csv {
    const char *path;
    char *at, *end; /* fields are unquoted in place */
    int line;
    struct err *e;
};

/* The next field, 0-terminated in place. *last: it ended a row. NULL: bad quoting. */
static char *field(struct csv *c, bool *last)
{
    char *start = c->at, *out = c->at;
    const int line = c->line;
    if (c->at < c->end && *c->at == '"') {
        for (c->at++;; c->at++) {
            if (c->at >= c->end) {
                err_set(c->e, RC_DATA, "%s:%d: quoted field without a closing quote", c->path,
                        line);
                return NULL;
            }
            if (*c->at == '"' && c->at + 1 < c->end && c->at[1] == '"')
                c->at++; /* doubled: one quote of the text */
            else if (*c->at == '"')
                break;
            if (*c->at == '\n') c->line++;
            *out++ = *c->at;
        }
        c->at++;
    } else {
        while (c->at < c->end && !strchr(",\r\n", *c->at)) *out++ = *c->at++;
    }
    char stop = c->at < c->end ? *c->at : '\n';
    if (stop == '\r' && c->at + 1 < c->end && c->at[1] == '\n') stop = *++c->at;
    if (stop != ',' && stop != '\n') {
        err_set(c->e, RC_DATA, "%s:%d: text after a closing quote, or a lone carriage return",
                c->path, c->line);
        return NULL;
    }
    if (c->at < c->end) c->at++;
    *last = stop == '\n';
    if (*last) c->line++;
    *out = 0;
    return start;
}

static bool header(struct csv *c, int *columns, int order[MAX_COLUMNS])
{
    bool last = false, seen[MAX_COLUMNS] = {0};
    for (*columns = 0; !last; ++*columns) {
        const char *f = field(c, &last);
        if (!f) return false;
        int k = 0;
        while (k < MAX_COLUMNS && strcmp(names[k], f) != 0) k++;
        if (k == MAX_COLUMNS || seen[k]) {
            err_set(c->e, RC_DATA,
                    "%s:1: column \"%.64s\" is %s; the first line must name the columns: "
                    "path,text[,num_frames,height,width,fps]",
                    c->path, f, k == MAX_COLUMNS ? "unknown" : "there twice");
            return false;
        }
        seen[k] = true;
        order[*columns] = k;
    }
    if (!seen[COL_PATH] || !seen[COL_TEXT]) {
        err_set(c->e, RC_DATA, "%s:1: there must be the columns path and text", c->path);
        return false;
    }
    return true;
}

static bool number(const struct csv *c, int line, int col, const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    if (*end == 0 && *out > -1e15 && *out < 1e15) return true;
    err_set(c->e, RC_DATA, "%s:%d: column %s: \"%.64s\" is not a number", c->path, line, names[col],
            text);
    return false;
}

static bool record(struct csv *c, int line, char *const value[MAX_COLUMNS], struct clip_list *out,
                   const char *root)
{
    if (!value[COL_PATH][0] || strlen(value[COL_PATH]) > META_MAX_PATH) {
        err_set(c->e, RC_DATA, "%s:%d: column path is empty or longer than %d bytes", c->path, line,
                META_MAX_PATH);
        return false;
    }
    struct clip_record *clip = meta_new_clip(out, value[COL_PATH], root);
    double x[MAX_COLUMNS] = {0};
    for (int k = COL_FRAMES; k < MAX_COLUMNS; k++) {
        if (value[k] && value[k][0] && !number(c, line, k, value[k], &x[k])) return false;
    }
    clip->has_frames = value[COL_FRAMES] && value[COL_FRAMES][0];
    clip->has_fps = value[COL_FPS] && value[COL_FPS][0];
    clip->has_size =
        (value[COL_HEIGHT] && value[COL_HEIGHT][0]) || (value[COL_WIDTH] && value[COL_WIDTH][0]);
    clip->num_frames = (int64_t)x[COL_FRAMES];
    clip->height = (int64_t)x[COL_HEIGHT];
    clip->width = (int64_t)x[COL_WIDTH];
    clip->fps = x[COL_FPS];
    if (meta_add_caption(out, clip, value[COL_TEXT])) return true;
    err_set(c->e, RC_DATA, "%s:%d: column text must be UTF-8 of at most %d bytes", c->path, line,
            META_MAX_TEXT);
    return false;
}

static bool rows(struct csv *c, struct clip_list *out, const char *root)
{
    int columns, order[MAX_COLUMNS];
    if (!header(c, &columns, order)) return false;
    for (int64_t row = 0; c->at < c->end; row++) {
        char *value[MAX_COLUMNS] = {0};
        const int line = c->line;
        bool last = false;
        int n = 0;
        for (; !last; n++) {
            char *f = field(c, &last);
            if (!f) return false;
            if (n < columns) value[order[n]] = f;
        }
        if (n == 1 && columns > 1 && !value[order[0]][0]) continue; /* blank line */
        if (n != columns) {
            err_set(c->e, RC_DATA, "%s:%d: %d fields, but %d columns", c->path, line, n, columns);
            return false;
        }
        if (!record(c, line, value, out, root)) return false;
        out->clip[out->n - 1].record = row;
    }
    return true;
}

bool meta_read_csv(struct clip_list *out, const char *path, const char *root, struct err *e)
{
    struct stat st;
    if (stat(path, &st) != 0) {
        err_set(e, errno == ENOENT ? RC_NOINPUT : RC_IO, "%s: %s", path, strerror(errno));
        return false;
    }
    if (!S_ISREG(st.st_mode) || st.st_size > (off_t)2 << 30) {
        err_set(e, RC_DATA, "%s: not a regular file of at most 2 GiB", path);
        return false;
    }
    size_t n;
    char *text = io_read_file(path, &n, e);
    if (!text) return false;
    bool ok = memchr(text, 0, n) == NULL;
    if (!ok) err_set(e, RC_DATA, "%s: a zero byte in the text: not a CSV file", path);
    struct csv c = {path, text, text + n, 1, e};
    if (n >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) c.at += 3;
    ok = ok && rows(&c, out, root);
    free(text);
    return ok;
}
