#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "parallel/checkpoint.h"
#include "parallel/checkpoint_dir.h"

struct ckpt {
    char *path;
    json_t *manifest;
};

static void verify_file(const char *folder, const json_t *f, struct err *e)
{
    char *path = io_path("%s/%s", folder, json_string_value(json_object_get(f, "name")));
    const int64_t size = json_integer_value(json_object_get(f, "size"));
    const json_t *crc = json_object_get(f, "crc");
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    char *block = malloc(CKPT_BLOCK);
    CHECK(block, "out of memory");
    if (fd < 0 || fstat(fd, &st) != 0)
        err_set(e, RC_DATA, "%s: missing", path);
    else if (st.st_size != size)
        err_set(e, RC_DATA, "%s: %lld bytes, the manifest says %lld", path, (long long)st.st_size,
                (long long)size);
    for (int64_t at = 0; !e->code && at < size; at += CKPT_BLOCK) {
        const size_t n = size - at < CKPT_BLOCK ? (size_t)(size - at) : CKPT_BLOCK;
        const bool read_ok = pread(fd, block, n, at) == (ssize_t)n;
        const json_int_t want = json_integer_value(json_array_get(crc, (size_t)(at / CKPT_BLOCK)));
        if (!read_ok || io_crc32c(0, block, n) != (uint32_t)want)
            err_set(e, RC_DATA, "%s: bytes %lld to %lld %s", path, (long long)at,
                    (long long)at + (long long)n,
                    read_ok ? "do not match their checksum" : "cannot be read");
    }
    if (fd >= 0) close(fd);
    free(block);
    free(path);
}

/* Files are dealt out to the ranks; all get the first error. */
static void verify(struct comm *world, const char *folder, const json_t *manifest, struct err *e)
{
    size_t i;
    json_t *f;
    json_array_foreach(json_object_get(manifest, "files"), i, f)
    {
        if ((int)(i % (size_t)world->size) == world->rank && !e->code) verify_file(folder, f, e);
    }
    struct err *all = calloc((size_t)world->size, sizeof *all);
    CHECK(all, "out of memory");
    comm_gather_bytes(world, all, e, sizeof *e, "checkpoint verification");
    for (int r = 0; r < world->size && !e->code; r++) *e = all[r];
    free(all);
}

static char *broadcast_text(struct comm *world, const char *text)
{
    uint64_t n = text ? strlen(text) + 1 : 0;
    comm_broadcast_bytes(world, &n, sizeof n, 0, "path size");
    if (!n) return NULL;
    char *out = calloc(1, n);
    CHECK(out, "out of memory");
    if (world->rank == 0) memcpy(out, text, n);
    comm_broadcast_bytes(world, out, n, 0, "path");
    return out;
}

/* The manifest is read by rank 0 and sent as text, so that all ranks see the same. */
static json_t *share_manifest(struct comm *world, json_t *manifest)
{
    char *own = manifest ? json_dumps(manifest, JSON_COMPACT) : NULL;
    char *text = broadcast_text(world, own);
    free(own);
    if (!text) return NULL;
    json_t *m = json_loads(text, 0, NULL);
    free(text);
    CHECK(m, "the manifest was damaged on its way");
    return m;
}

static struct ckpt *ckpt_new(char *path, json_t *manifest)
{
    struct ckpt *c = calloc(1, sizeof *c);
    CHECK(c, "out of memory");
    c->path = path;
    c->manifest = manifest;
    return c;
}

struct ckpt *ckpt_latest(struct comm *world, const char *dir)
{
    int n = 0;
    struct ckpt_skipped skipped = {NULL, -1};
    struct ckpt_entry *list = NULL;
    if (world->rank == 0) {
        ckpt_remove_leftovers(dir);
        list = ckpt_list(dir, &n, &skipped);
        if (skipped.text) log_warn("not a checkpoint: %s", skipped.text);
    }
    int64_t count = n, seen = n + (skipped.text ? 1 : 0);
    free(skipped.text);
    comm_broadcast_bytes(world, &count, sizeof count, 0, "number of checkpoints");
    comm_broadcast_bytes(world, &seen, sizeof seen, 0, "folders");
    struct ckpt *found = NULL;
    for (int i = 0; i < count && !found; i++) {
        char *path = broadcast_text(world, list ? list[i].path : NULL);
        json_t *m = share_manifest(world, list ? list[i].manifest : NULL);
        struct err e = {0};
        verify(world, path, m, &e);
        if (!e.code) {
            found = ckpt_new(path, m);
            break;
        }
        if (world->rank == 0) log_warn("invalid checkpoint is passed over: %s", e.msg);
        free(path);
        json_decref(m);
    }
    ckpt_list_free(list, n);
    if (!found && seen)
        err_stop(
            RC_DATA,
            "%s: there are checkpoints, but none is valid; restore one, or set resume: never and "
            "another output_dir to start anew",
            dir);
    return found;
}

/* Why a folder does not count. */
static void nothing_here(const char *path, const char *skipped, struct err *e)
{
    char *state = io_path("%s/state.h5", path);
    if (skipped)
        err_set(e, RC_DATA, "%s: no valid checkpoint here:\n%s", path, skipped);
    else if (io_exists(state))
        err_set(e, RC_DATA, "%s: manifest.json is missing (damaged, or copied in part)", path);
    else if (io_exists(path))
        err_set(
            e, RC_NOINPUT,
            "%s: no checkpoint here (expected a folder with manifest.json, or a run folder with "
            "checkpoints/); has it been trained yet?",
            path);
    else
        err_set(e, RC_NOINPUT, "%s: no such folder; train first, or name the folder of a run",
                path);
    free(state);
}

/* The folder that a user's path means: its newest checkpoint; malloc'ed. */
static char *resolve(const char *path, struct err *e)
{
    char *manifest = io_path("%s/manifest.json", path), *sub = io_path("%s/checkpoints", path);
    char *out = NULL;
    if (io_exists(manifest)) {
        out = strdup(path);
    } else {
        int n;
        struct ckpt_skipped other;
        struct ckpt_entry *list = ckpt_list(io_exists(sub) ? sub : path, &n, &other);
        if (!n)
            nothing_here(path, other.text, e);
        else if (other.newest > list[0].step)
            err_set(e, RC_DATA,
                    "%s: its newest checkpoint is damaged; the newest with a sound manifest is %s, "
                    "name it if that is meant:\n%s",
                    path, list[0].path, other.text);
        else
            out = strdup(list[0].path);
        if (out && other.text) log_warn("not a checkpoint: %s", other.text);
        ckpt_list_free(list, n);
        free(other.text);
    }
    free(manifest);
    free(sub);
    return out;
}

struct ckpt *ckpt_open(struct comm *world, const char *path, bool check)
{
    struct err e = {0};
    char *own = world->rank == 0 ? resolve(path, &e) : NULL;
    comm_broadcast_bytes(world, &e, sizeof e, 0, "folder status");
    err_raise(&e);
    char *folder = broadcast_text(world, own);
    free(own);
    json_t *m = world->rank == 0 ? ckpt_manifest(folder, &e) : NULL;
    comm_broadcast_bytes(world, &e, sizeof e, 0, "manifest status");
    err_raise(&e);
    json_t *shared = share_manifest(world, m);
    if (m) json_decref(m);
    if (check) verify(world, folder, shared, &e);
    err_raise(&e);
    return ckpt_new(folder, shared);
}

int64_t ckpt_newest_step(struct comm *world, const char *dir)
{
    int64_t step = -1;
    if (world->rank == 0) {
        int n;
        struct ckpt_skipped skipped;
        struct ckpt_entry *list = ckpt_list(dir, &n, &skipped);
        step = n ? list[0].step : skipped.text ? -2 : -1;
        ckpt_list_free(list, n);
        free(skipped.text);
    }
    comm_broadcast_bytes(world, &step, sizeof step, 0, "newest step");
    return step;
}

void ckpt_close(struct ckpt *c)
{
    if (!c) return;
    json_decref(c->manifest);
    free(c->path);
    free(c);
}

json_t *ckpt_meta(const struct ckpt *c) { return json_object_get(c->manifest, "meta"); }
const char *ckpt_path(const struct ckpt *c) { return c->path; }
uint32_t ckpt_identity(const struct ckpt *c)
{
    return (uint32_t)json_integer_value(json_object_get(c->manifest, "crc"));
}
int64_t ckpt_step(const struct ckpt *c)
{
    return json_integer_value(json_object_get(c->manifest, "step"));
}

const json_t *ckpt_tensors(const struct ckpt *c) { return json_object_get(c->manifest, "tensors"); }

int ckpt_num_tensors(const struct ckpt *c) { return (int)json_array_size(ckpt_tensors(c)); }

static enum state_kind kind_of(const json_t *t)
{
    const char *k = json_string_value(json_object_get(t, "kind"));
    for (int i = 0; i < STATE_KINDS; i++)
        if (strcmp(k, ckpt_kind_name((enum state_kind)i)) == 0) return (enum state_kind)i;
    return STATE_KINDS;
}

static struct ckpt_tensor describe(const json_t *t)
{
    const json_t *shape = json_object_get(t, "shape");
    struct ckpt_tensor x = {.name = json_string_value(json_object_get(t, "name")),
                            .kind = kind_of(t),
                            .ndim = (int)json_array_size(shape),
                            .count = 1};
    x.dtype = strcmp(json_string_value(json_object_get(t, "dtype")), "f64") == 0 ? DT_F64 : DT_F32;
    for (int k = 0; k < x.ndim; k++) {
        x.dim[k] = json_integer_value(json_array_get(shape, (size_t)k));
        x.count *= x.dim[k];
    }
    return x;
}

struct ckpt_tensor ckpt_tensor_at(const struct ckpt *c, int i)
{
    return describe(json_array_get(ckpt_tensors(c), (size_t)i));
}

static const json_t *find_tensor(const struct ckpt *c, enum state_kind kind, const char *name)
{
    size_t i;
    json_t *t;
    json_array_foreach((json_t *)(uintptr_t)ckpt_tensors(c), i, t)
    {
        if (kind_of(t) == kind && strcmp(json_string_value(json_object_get(t, "name")), name) == 0)
            return t;
    }
    return NULL;
}

bool ckpt_find(const struct ckpt *c, enum state_kind kind, const char *name,
               struct ckpt_tensor *out)
{
    const json_t *t = find_tensor(c, kind, name);
    if (t) *out = describe(t);
    return t != NULL;
}

bool ckpt_has(const struct ckpt *c, enum state_kind kind)
{
    size_t i;
    json_t *t;
    json_array_foreach((json_t *)(uintptr_t)ckpt_tensors(c), i, t)
    {
        if (kind_of(t) == kind) return true;
    }
    return false;
}

/* One piece of the file, the part of it inside [first, first+count), as doubles. */
static void read_piece(const struct ckpt *c, const char *name, const json_t *p, enum dtype dtype,
                       int64_t first, int64_t count, double *out)
{
    const int64_t pf = json_integer_value(json_object_get(p, "first"));
    const int64_t pc = json_integer_value(json_object_get(p, "count"));
    const int64_t from = pf > first ? pf : first;
    const int64_t to = pf + pc < first + count ? pf + pc : first + count;
    if (from >= to) return;
    char *path = io_path("%s/%s", c->path, json_string_value(json_object_get(p, "file")));
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const size_t size = dtype_size(dtype), bytes = (size_t)(to - from) * size;
    char *raw = malloc(bytes);
    CHECK(raw, "out of memory");
    size_t done = 0;
    const off_t at = json_integer_value(json_object_get(p, "offset")) + (from - pf) * (off_t)size;
    while (fd >= 0 && done < bytes) {
        const ssize_t n = pread(fd, raw + done, bytes - done, at + (off_t)done);
        if (n <= 0) break;
        done += (size_t)n;
    }
    if (done < bytes) err_stop(RC_DATA, "%s: %s cannot be read", path, name);
    const bool whole = from == pf && to == pf + pc;
    if (whole &&
        io_crc32c(0, raw, bytes) != (uint32_t)json_integer_value(json_object_get(p, "crc")))
        err_stop(RC_DATA, "%s: %s does not match its checksum", path, name);
    for (int64_t i = 0; i < to - from; i++)
        out[from - first + i] =
            dtype == DT_F64 ? ((double *)(void *)raw)[i] : (double)((float *)(void *)raw)[i];
    close(fd);
    free(raw);
    free(path);
}

static void read_range(const struct ckpt *c, const json_t *t, int64_t first, int64_t count,
                       double *out)
{
    const enum dtype dtype =
        strcmp(json_string_value(json_object_get(t, "dtype")), "f64") == 0 ? DT_F64 : DT_F32;
    size_t i;
    json_t *p;
    json_array_foreach(json_object_get(t, "pieces"), i, p)
    {
        read_piece(c, json_string_value(json_object_get(t, "name")), p, dtype, first, count, out);
    }
}

void ckpt_read_f64(struct ckpt *c, const struct ckpt_tensor *t, int64_t first, int64_t count,
                   double *out)
{
    read_range(c, find_tensor(c, t->kind, t->name), first, count, out);
}

struct load {
    struct ckpt *c;
    enum state_kind from;
    int loaded;
    struct dev *dev;
};

static void shape_text(char *out, size_t size, int ndim, const int64_t *dim)
{
    int n = snprintf(out, size, "[");
    for (int i = 0; i < ndim; i++)
        n += snprintf(out + n, size - (size_t)n, "%s%lld", i ? "," : "", (long long)dim[i]);
    snprintf(out + n, size - (size_t)n, "]");
}

static void require_same_shape(const struct ckpt *c, const struct param *p, const json_t *t)
{
    const json_t *shape = json_object_get(t, "shape");
    int64_t dim[TENSOR_MAXDIM] = {0};
    const int ndim = (int)json_array_size(shape);
    bool same = ndim == p->ndim;
    for (int i = 0; i < ndim; i++) {
        dim[i] = json_integer_value(json_array_get(shape, (size_t)i));
        if (i >= p->ndim || dim[i] != p->dim[i]) same = false;
    }
    if (same) return;
    char have[96], want[96];
    shape_text(have, sizeof have, ndim, dim);
    shape_text(want, sizeof want, p->ndim, p->dim);
    err_stop(RC_CONFIG, "%s: %s is %s in the checkpoint, the model wants %s", c->path, p->name,
             have, want);
}

static void load_piece(void *arg, const struct piece *p)
{
    struct load *l = arg;
    const json_t *t = find_tensor(l->c, l->from, p->param->name);
    if (!t)
        err_stop(RC_DATA, "%s: the checkpoint has no %s/%s", l->c->path, ckpt_kind_name(l->from),
                 p->param->name);
    require_same_shape(l->c, p->param, t);
    double *x = malloc((size_t)p->count * sizeof *x);
    CHECK(x, "out of memory");
    read_range(l->c, t, p->first, p->count, x);
    dev_put_f64(l->dev, p->data, x);
    free(x);
}

void ckpt_load_store(struct ckpt *c, const struct ckpt_store *s, enum state_kind kind,
                     enum state_kind from)
{
    err_push("loading %s of %s", ckpt_kind_name(from), c->path);
    size_t i;
    json_t *t;
    json_array_foreach((json_t *)(uintptr_t)ckpt_tensors(c), i, t)
    {
        const char *name = json_string_value(json_object_get(t, "name"));
        if (kind_of(t) == from && !s->find(s->data, name))
            err_stop(RC_CONFIG, "%s: %s is in the checkpoint, but not in the model", c->path, name);
    }
    struct load l = {.c = c, .from = from, .dev = s->dev};
    s->each_piece(s->data, kind, load_piece, &l);
    if (s->changed) s->changed(s->data);
    err_pop();
}

static void fsdp_pieces(void *f, enum state_kind kind,
                        void (*each)(void *arg, const struct piece *p), void *arg)
{
    fsdp_each_piece(f, kind, each, arg);
}

static const struct param *fsdp_named(void *f, const char *name) { return fsdp_find(f, name); }
static void fsdp_changed(void *f) { fsdp_refresh_wire(f); }

struct ckpt_store ckpt_store_fsdp(struct fsdp *f)
{
    return (struct ckpt_store){fsdp_device(f), f, fsdp_pieces, fsdp_named, fsdp_changed};
}

void ckpt_load(struct ckpt *c, struct fsdp *f, enum state_kind kind, enum state_kind from)
{
    struct ckpt_store s = ckpt_store_fsdp(f);
    if (kind != STATE_MASTER) s.changed = NULL;
    ckpt_load_store(c, &s, kind, from);
}
