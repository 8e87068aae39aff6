#include "data/meta.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/io.h"
#include "core/log.h"
#include "data/text.h"

/* ---- the list ---------------------------------------------------------------------------------*/
struct clip_record *meta_new_clip(struct clip_list *l, const char *path, const char *root)
{
    if (l->n == l->room) {
        l->room = l->room ? 2 * l->room : 64;
        l->clip = realloc(l->clip, (size_t)l->room * sizeof *l->clip);
        CHECK(l->clip, "out of memory");
    }
    struct clip_record *c = &l->clip[l->n++];
    *c = (struct clip_record){.path = strdup(path)};
    c->file = path[0] == '/' || !root[0] ? strdup(path) : io_path("%s/%s", root, path);
    CHECK(c->path && c->file, "out of memory");
    return c;
}

bool meta_add_caption(struct clip_list *l, struct clip_record *c, const char *text)
{
    if (strlen(text) > META_MAX_TEXT || !text_is_utf8(text)) return false;
    char *clean = text_clean(text);
    if (!clean[0]) {
        l->empty_captions++;
        free(clean);
        return true;
    }
    c->cap = realloc(c->cap, (size_t)(c->num_cap + 1) * sizeof *c->cap);
    CHECK(c->cap, "out of memory");
    c->cap[c->num_cap++] = clean;
    return true;
}

void meta_free(struct clip_list *l)
{
    for (int64_t i = 0; i < l->n; i++) {
        struct clip_record *c = &l->clip[i];
        for (int64_t k = 0; k < c->num_cap; k++) free(c->cap[k]);
        free(c->cap);
        free(c->path);
        free(c->file);
    }
    free(l->clip);
    *l = (struct clip_list){0};
}

/* ---- JSON records -----------------------------------------------------------------------------*/
struct where { /* for messages */
    const char *file;
    size_t record;
    struct err *e;
};

static const char *type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_NULL:
        return "null";
    default:
        return "a truth value";
    }
}

static bool wrong(const struct where *at, const char *key, const char *want, const json_t *got)
{
    err_set(at->e, RC_DATA, "%s: record %zu: key \"%s\" must be %s, but is %s", at->file,
            at->record, key, want, got ? type_name(got) : "missing");
    return false;
}

/* A key that is absent or null was not given. */
static json_t *given(const json_t *record, const char *key)
{
    json_t *v = json_object_get(record, key);
    return v && !json_is_null(v) ? v : NULL;
}

static bool get_captions(struct clip_list *l, struct clip_record *c, const json_t *v,
                         const struct where *at)
{
    static const char *want = "a string or a list of strings (UTF-8, at most 16384 bytes each)";
    if (json_is_string(v)) {
        return meta_add_caption(l, c, json_string_value(v)) || wrong(at, "cap", want, v);
    }
    if (!json_is_array(v) || json_array_size(v) > META_MAX_CAPTIONS) {
        return wrong(at, "cap", want, v);
    }
    size_t i;
    json_t *one;
    json_array_foreach(v, i, one)
    {
        if (!json_is_string(one) || !meta_add_caption(l, c, json_string_value(one)))
            return wrong(at, "cap", want, one);
    }
    return true;
}

static bool get_number(const json_t *record, const char *key, double *out, bool *has,
                       const struct where *at)
{
    const json_t *v = given(record, key);
    if (!v) return true;
    if (!json_is_number(v)) return wrong(at, key, "a number", v);
    *out = json_number_value(v);
    if (has) *has = true;
    return true;
}

static bool get_int(const json_t *record, const char *key, int64_t *out, bool *has,
                    const struct where *at)
{
    const json_t *v = given(record, key);
    if (!v) return true;
    const double real = json_is_real(v) ? json_real_value(v) : 0; /* 81.0 is an integer too */
    if (!json_is_integer(v) && !(json_is_real(v) && real == floor(real) && fabs(real) < 1e15))
        return wrong(at, key, "an integer", v);
    *out = json_is_integer(v) ? json_integer_value(v) : (int64_t)real;
    if (has) *has = true;
    return true;
}

static bool get_ints(const json_t *record, const char *key, int64_t *out, size_t n, bool *has,
                     const char *want, const struct where *at)
{
    const json_t *v = given(record, key);
    if (!v) return true;
    if (!json_is_array(v) || json_array_size(v) != n) return wrong(at, key, want, v);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_array_get(v, i);
        if (!json_is_integer(one)) return wrong(at, key, want, one);
        out[i] = json_integer_value(one);
    }
    *has = true;
    return true;
}

static bool get_size(const json_t *record, struct clip_record *c, const struct where *at)
{
    const json_t *v = given(record, "resolution");
    if (!v) return true;
    if (!json_is_object(v)) return wrong(at, "resolution", "{\"height\": H, \"width\": W}", v);
    bool h = false, w = false;
    if (!get_int(v, "height", &c->height, &h, at) || !get_int(v, "width", &c->width, &w, at))
        return false;
    c->has_size = true; /* a missing half stays 0, which the filter refuses */
    return true;
}

static bool get_record(struct clip_list *l, const json_t *r, const char *root,
                       const struct where *at)
{
    if (!json_is_object(r)) {
        err_set(at->e, RC_DATA, "%s: record %zu must be an object, but is %s", at->file, at->record,
                type_name(r));
        return false;
    }
    const json_t *path = given(r, "path"), *cap = given(r, "cap");
    if (!json_is_string(path) || !json_string_length(path) ||
        json_string_length(path) > META_MAX_PATH)
        return wrong(at, "path", "a string of 1 to 4096 bytes", path);
    struct clip_record *c = meta_new_clip(l, json_string_value(path), root);
    c->record = (int64_t)at->record;
    int64_t crop[4];
    if ((cap && !get_captions(l, c, cap, at)) || !get_size(r, c, at) ||
        !get_number(r, "fps", &c->fps, &c->has_fps, at) ||
        !get_int(r, "num_frames", &c->num_frames, &c->has_frames, at) ||
        !get_number(r, "motion", &c->motion, NULL, at) ||
        !get_ints(r, "cut", c->cut, 2, &c->has_cut, "two integers [first, end)", at) ||
        !get_ints(r, "crop", crop, 4, &c->has_crop, "four integers [x0, x1, y0, y1]", at))
        return false;
    if (c->has_crop) c->crop = (struct video_crop){crop[0], crop[1], crop[2], crop[3]};
    return true;
}

/* Says once per file which key nobody reads, so that a misspelt one is seen. */
static void note_unknown(const char *file, const json_t *list)
{
    static const char *const known[] = {"path", "cap",  "resolution", "num_frames", "fps",
                                        "cut",  "crop", "motion",     NULL};
    size_t i;
    json_t *r, *value;
    const char *key;
    json_array_foreach(list, i, r)
    {
        json_object_foreach(r, key, value)
        {
            int k = 0;
            while (known[k] && strcmp(known[k], key) != 0) k++;
            if (known[k]) continue;
            log_info("%s: key \"%.64s\" (record %zu) is not used", file, key, i);
            return;
        }
    }
}

static bool parse_json(struct clip_list *out, const char *path, const char *root, const char *text,
                       size_t n, struct err *e)
{
    json_error_t bad;
    json_t *list = json_loadb(text, n, JSON_REJECT_DUPLICATES, &bad);
    if (!list) {
        err_set(e, RC_DATA, "%s:%d:%d: not valid JSON: %s", path, bad.line, bad.column, bad.text);
        return false;
    }
    bool ok = json_is_array(list);
    if (!ok) err_set(e, RC_DATA, "%s: must be a list of records, but is %s", path, type_name(list));
    struct where at = {path, 0, e};
    for (; ok && at.record < json_array_size(list); at.record++) {
        ok = get_record(out, json_array_get(list, at.record), root, &at);
    }
    if (ok) note_unknown(path, list);
    json_decref(list);
    return ok;
}

/* ---- files ------------------------------------------------------------------------------------*/
static char *read_limited(const char *path, size_t *n, struct err *e)
{
    const int64_t most = (int64_t)2 << 30;
    struct stat st;
    if (stat(path, &st) != 0) {
        err_set(e, errno == ENOENT ? RC_NOINPUT : RC_IO, "%s: %s", path, strerror(errno));
        return NULL;
    }
    if (!S_ISREG(st.st_mode) || st.st_size > most) {
        err_set(e, RC_DATA, "%s: not a regular file of at most %lld bytes", path, (long long)most);
        return NULL;
    }
    return io_read_file(path, n, e);
}

static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? strndup(path, slash > path ? (size_t)(slash - path) : 1) : strdup(".");
}

static bool has_ending(const char *path, const char *ending)
{
    const size_t n = strlen(path), m = strlen(ending);
    return n > m && strcasecmp(path + n - m, ending) == 0;
}

bool meta_read(struct clip_list *out, const char *path, const char *root, struct err *e)
{
    char *folder = root ? strdup(root) : folder_of(path);
    CHECK(folder, "out of memory");
    bool ok = false;
    if (has_ending(path, ".csv")) {
        ok = meta_read_csv(out, path, folder, e);
    } else if (has_ending(path, ".json")) {
        size_t n;
        char *text = read_limited(path, &n, e);
        ok = text && parse_json(out, path, folder, text, n, e);
        free(text);
    } else {
        err_set(e, RC_CONFIG, "%s: a description of clips must be a .json or .csv file", path);
    }
    free(folder);
    return ok;
}

static bool index_line(struct clip_list *out, char *line, const char *folder, const char *path,
                       int number, struct err *e)
{
    char *comma = strchr(line, ',');
    if (!comma || strchr(comma + 1, ',')) {
        err_set(e, RC_DATA, "%s:%d: expected \"videos_root,meta_file\"", path, number);
        return false;
    }
    *comma = 0;
    char *root = text_clean(line), *meta = text_clean(comma + 1);
    char *r = root[0] == '/' ? strdup(root) : io_path("%s/%s", folder, root);
    char *m = meta[0] == '/' ? strdup(meta) : io_path("%s/%s", folder, meta);
    const bool ok = meta_read(out, m, r, e);
    free(root), free(meta), free(r), free(m);
    return ok;
}

bool meta_read_index(struct clip_list *out, const char *path, struct err *e)
{
    size_t n;
    char *text = read_limited(path, &n, e), *folder = folder_of(path);
    bool ok = text != NULL;
    int number = 0;
    for (char *next = text, *line; ok && (line = strsep(&next, "\n"));) {
        number++;
        if (line[strspn(line, " \t\r")]) ok = index_line(out, line, folder, path, number, e);
    }
    free(text);
    free(folder);
    return ok;
}
