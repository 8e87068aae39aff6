#include "parallel/checkpoint_dir.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/io.h"
#include "core/log.h"

static bool is_count(const json_t *v) { return json_is_integer(v) && json_integer_value(v) >= 0; }

static const char *bad_file(const json_t *f)
{
    const char *name = json_string_value(json_object_get(f, "name"));
    if (!name || strchr(name, '/') || name[0] == '.') return "a file without a plain name";
    const json_t *size = json_object_get(f, "size"), *crc = json_object_get(f, "crc");
    if (!is_count(size) || !json_is_array(crc)) return "a file without size and checksums";
    const json_int_t blocks = (json_integer_value(size) + CKPT_BLOCK - 1) / CKPT_BLOCK;
    if ((json_int_t)json_array_size(crc) != blocks) return "a wrong number of checksums";
    return NULL;
}

static const char *bad_tensor(const json_t *t)
{
    const json_t *shape = json_object_get(t, "shape"), *pieces = json_object_get(t, "pieces");
    const char *dtype = json_string_value(json_object_get(t, "dtype"));
    if (!json_is_string(json_object_get(t, "name")) || !json_is_string(json_object_get(t, "kind")))
        return "a tensor without name and kind";
    if (!dtype || (strcmp(dtype, "f32") && strcmp(dtype, "f64")))
        return "a tensor of unknown dtype";
    if (!json_is_array(shape) || json_array_size(shape) < 1 ||
        json_array_size(shape) > TENSOR_MAXDIM)
        return "a tensor without shape";
    json_int_t count = 1, seen = 0;
    size_t i;
    json_t *v;
    json_array_foreach(shape, i, v)
    {
        if (!is_count(v) || json_integer_value(v) == 0 ||
            json_integer_value(v) > ((json_int_t)1 << 40) / count)
            return "a tensor of impossible shape";
        count *= json_integer_value(v);
    }
    json_array_foreach(pieces, i, v)
    {
        if (!is_count(json_object_get(v, "first")) || !is_count(json_object_get(v, "count")) ||
            !is_count(json_object_get(v, "offset")) || !json_is_string(json_object_get(v, "file")))
            return "a damaged piece";
        seen += json_integer_value(json_object_get(v, "count"));
    }
    return seen == count ? NULL : "a tensor whose pieces do not cover it";
}

uint32_t ckpt_manifest_crc(json_t *manifest)
{
    json_t *rest = json_copy(manifest);
    json_object_del(rest, "crc");
    char *text = json_dumps(rest, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    CHECK(text, "the manifest cannot be encoded");
    const uint32_t crc = io_crc32c(0, text, strlen(text));
    free(text);
    json_decref(rest);
    return crc;
}

json_t *ckpt_manifest(const char *folder, struct err *e)
{
    char *path = io_path("%s/manifest.json", folder);
    size_t size;
    char *text = io_exists(path) ? io_read_file(path, &size, e) : NULL;
    json_t *m = NULL;
    const char *why = NULL;
    if (!text) {
        err_set(e, RC_DATA, "%s: no manifest.json (an unfinished or foreign folder)", folder);
    } else {
        json_error_t je;
        m = json_loadb(text, size, JSON_REJECT_DUPLICATES, &je);
        if (!m) err_set(e, RC_DATA, "%s:%d:%d: %s", path, je.line, je.column, je.text);
    }
    if (m) {
        const char *format = json_string_value(json_object_get(m, "format"));
        size_t i;
        json_t *v;
        if (!format || strcmp(format, "osp-checkpoint"))
            why = "not an osp checkpoint";
        else if (json_integer_value(json_object_get(m, "version")) != CKPT_VERSION)
            why = "a format version that this program does not know";
        else if (!is_count(json_object_get(m, "step")) ||
                 !json_is_object(json_object_get(m, "meta")) ||
                 !json_is_array(json_object_get(m, "files")) ||
                 !json_is_array(json_object_get(m, "tensors")))
            why = "keys are missing";
        else if ((uint32_t)json_integer_value(json_object_get(m, "crc")) != ckpt_manifest_crc(m))
            why = "its content does not match its checksum";
        if (!why) json_array_foreach(json_object_get(m, "files"), i, v) if (!why) why = bad_file(v);
        if (!why)
            json_array_foreach(json_object_get(m, "tensors"), i, v) if (!why) why = bad_tensor(v);
        if (why) {
            err_set(e, RC_DATA, "%s: %s", path, why);
            json_decref(m);
            m = NULL;
        }
    }
    free(text);
    free(path);
    return m;
}

static bool ends_with(const char *s, const char *end)
{
    const size_t a = strlen(s), b = strlen(end);
    return a >= b && strcmp(s + a - b, end) == 0;
}

static int newest_first(const void *a, const void *b)
{
    const struct ckpt_entry *x = a, *y = b;
    if (x->step != y->step) return x->step < y->step ? 1 : -1;
    return strcmp(x->path, y->path);
}

static void add_line(char **text, const char *line)
{
    const size_t old = *text ? strlen(*text) : 0;
    *text = realloc(*text, old + strlen(line) + 2);
    CHECK(*text, "out of memory");
    sprintf(*text + old, "%s%s", old ? "\n" : "", line);
}

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* The step in a name iter_N; -1: it is none, like those that users make of it to set it aside. */
static int64_t step_of(const char *name)
{
    long long step;
    int end = 0;
    return sscanf(name, "iter_%lld%n", &step, &end) == 1 && !name[end] ? step : -1;
}

/* Folders beside a run's checkpoints (samples, tb) are not meant to be any. */
static void skip(struct ckpt_skipped *s, const char *path, const char *name, const char *why)
{
    char *manifest = io_path("%s/manifest.json", path);
    const int64_t step = is_folder(path) ? step_of(name) : -1;
    if (step >= 0 || io_exists(manifest)) add_line(&s->text, why);
    if (step > s->newest) s->newest = step;
    free(manifest);
}

/* Between two renames of a save a kill leaves the checkpoint under another name; the next start of
 * its run gives it back (ckpt_remove_leftovers). */
static void skip_previous(struct ckpt_skipped *s, const char *dir, const char *name)
{
    char *plain = io_path("%s", name), *path = io_path("%s/%s", dir, name), *now, *why;
    plain[strlen(plain) - strlen(".prev")] = 0;
    now = io_path("%s/%s", dir, plain);
    why = io_path("%s: left by an interrupted save; start its run again, or rename it to %s", path,
                  plain);
    if (!io_exists(now) && step_of(plain) >= 0) skip(s, path, plain, why);
    free(why);
    free(now);
    free(path);
    free(plain);
}

struct ckpt_entry *ckpt_list(const char *dir, int *n, struct ckpt_skipped *skipped)
{
    struct ckpt_entry *list = NULL;
    *n = 0;
    *skipped = (struct ckpt_skipped){NULL, -1};
    DIR *d = opendir(dir);
    if (!d) return NULL;
    for (struct dirent *f; (f = readdir(d));) {
        if (f->d_name[0] == '.' || ends_with(f->d_name, ".tmp") || ends_with(f->d_name, ".old"))
            continue;
        if (ends_with(f->d_name, ".prev")) {
            skip_previous(skipped, dir, f->d_name);
            continue;
        }
        char *path = io_path("%s/%s", dir, f->d_name);
        struct err e = {0};
        json_t *m = ckpt_manifest(path, &e);
        if (!m) {
            skip(skipped, path, f->d_name, e.msg);
            free(path);
            continue;
        }
        list = realloc(list, (size_t)(*n + 1) * sizeof *list);
        CHECK(list, "out of memory");
        list[(*n)++] = (struct ckpt_entry){path, json_integer_value(json_object_get(m, "step")), m};
    }
    closedir(d);
    if (*n) qsort(list, (size_t)*n, sizeof *list, newest_first);
    return list;
}

void ckpt_list_free(struct ckpt_entry *list, int n)
{
    for (int i = 0; i < n; i++) {
        free(list[i].path);
        json_decref(list[i].manifest);
    }
    free(list);
}

/* Out of sight by one rename first, so that a kill in between leaves no half checkpoint. */
static void remove_checkpoint(const char *path)
{
    struct err e = {0};
    char *old = io_path("%s.old", path);
    io_rename(path, old, &e);
    if (!e.code) io_remove_tree(old, &e);
    if (e.code) log_warn("old checkpoint stays: %s", e.msg);
    free(old);
}

static bool is_kept(const char *path)
{
    char *file = io_path("%s/keep", path);
    const bool yes = io_exists(file);
    free(file);
    return yes;
}

void ckpt_keep(const char *path, const char *why, struct err *e)
{
    char *file = io_path("%s/keep", path);
    char *old = is_kept(path) ? io_read_file(file, NULL, e) : NULL;
    char *text = io_path("%s%s", old ? old : "", why);
    if (!e->code && (!old || !strstr(old, why))) io_write_file(file, text, strlen(text), e);
    free(text);
    free(old);
    free(file);
}

void ckpt_rotate(const struct ckpt_place *place, int64_t newest)
{
    if (place->keep_last < 1) return;
    int n, kept = 0;
    struct ckpt_skipped skipped;
    struct ckpt_entry *list = ckpt_list(place->dir, &n, &skipped);
    for (int i = 0; i < n; i++) {
        const bool marked = (place->keep_every > 0 && list[i].step % place->keep_every == 0) ||
                            is_kept(list[i].path);
        if (list[i].step > newest) continue; /* of another attempt: neither counted nor removed */
        if (kept < place->keep_last || marked)
            kept++;
        else
            remove_checkpoint(list[i].path);
    }
    ckpt_list_free(list, n);
    free(skipped.text);
}

/* iter_N.prev whose successor never appeared becomes iter_N again. */
static bool restore_previous(const char *path)
{
    if (!ends_with(path, ".prev")) return false;
    char *name = strdup(path);
    CHECK(name, "out of memory");
    name[strlen(name) - 5] = 0;
    struct err e = {0};
    const bool back = !io_exists(name);
    if (back) io_rename(path, name, &e);
    free(name);
    return back && !e.code;
}

void ckpt_remove_leftovers(const char *dir)
{
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *f; (f = readdir(d));) {
        if (strncmp(f->d_name, "iter_", 5) ||
            (!ends_with(f->d_name, ".tmp") && !ends_with(f->d_name, ".old") &&
             !ends_with(f->d_name, ".prev")))
            continue;
        char *path = io_path("%s/%s", dir, f->d_name);
        struct err e = {0};
        if (restore_previous(path)) {
            free(path);
            continue;
        }
        io_remove_tree(path, &e);
        log_warn("%s: left over from an interrupted save%s%s", path,
                 e.code ? ", cannot remove: " : ", removed", e.code ? e.msg : "");
        free(path);
    }
    closedir(d);
}
