#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "parallel/checkpoint.h"
#include "parallel/checkpoint_dir.h"

const char *ckpt_kind_name(enum state_kind kind)
{
    static const char *const names[STATE_KINDS] = {
        "model", "grad",         "optim/m",      "optim/v",  "ema",
        "lora",  "optim/lora_m", "optim/lora_v", "lora_ema", "lora_old"};
    return names[kind];
}

struct collect {
    struct ckpt_snapshot *s;
    struct dev *dev;
    enum state_kind kind;
};

static void collect_piece(void *arg, const struct piece *p)
{
    struct collect *c = arg;
    c->s->piece = realloc(c->s->piece, (size_t)(c->s->num_pieces + 1) * sizeof *c->s->piece);
    CHECK(c->s->piece, "out of memory");
    struct ckpt_piece *q = &c->s->piece[c->s->num_pieces++];
    *q = (struct ckpt_piece){.kind = c->kind,
                             .ndim = p->param->ndim,
                             .first = p->first,
                             .count = p->count,
                             .dtype = p->data.dtype};
    snprintf(q->name, sizeof q->name, "%s", p->param->name);
    memcpy(q->dim, p->param->dim, sizeof q->dim);
    q->data = malloc(tensor_bytes(p->data));
    if (!q->data) err_stop(RC_TEMP, "out of host memory for a snapshot of %s", q->name);
    dev_get(c->dev, q->data, p->data);
    c->s->bytes += (int64_t)tensor_bytes(p->data);
}

struct ckpt_snapshot *ckpt_snapshot(struct fsdp *f, struct mesh *mesh, unsigned kinds)
{
    const struct ckpt_store store = ckpt_store_fsdp(f);
    return ckpt_snapshot_store(&store, mesh->axis[AXIS_REPLICA]->rank == 0 ? kinds : 0);
}

struct ckpt_snapshot *ckpt_snapshot_store(const struct ckpt_store *store, unsigned kinds)
{
    struct ckpt_snapshot *s = calloc(1, sizeof *s);
    CHECK(s, "out of memory");
    for (int k = 0; k < STATE_KINDS; k++) {
        if (!(kinds & 1u << k)) continue;
        struct collect c = {s, store->dev, (enum state_kind)k};
        store->each_piece(store->data, (enum state_kind)k, collect_piece, &c);
    }
    return s;
}

void ckpt_snapshot_free(struct ckpt_snapshot *s)
{
    if (!s) return;
    for (int i = 0; i < s->num_pieces; i++) free(s->piece[i].data);
    free(s->piece);
    free(s);
}

/* All ranks get the first error of any rank. True: somebody failed. */
static bool agree(struct comm *world, struct err *e)
{
    struct err *all = calloc((size_t)world->size, sizeof *all);
    CHECK(all, "out of memory");
    comm_gather_bytes(world, all, e, sizeof *e, "checkpoint status");
    for (int r = 0; r < world->size && !e->code; r++) *e = all[r];
    free(all);
    return e->code != 0;
}

static void write_pieces(const char *path, const struct ckpt_snapshot *s, struct err *e)
{
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        err_set(e, RC_IO, "%s: cannot reopen", path);
        return;
    }
    for (int i = 0; i < s->num_pieces && !e->code; i++) {
        struct ckpt_piece *p = &s->piece[i];
        const size_t bytes = (size_t)p->count * dtype_size(p->dtype);
        char *made = p->data ? NULL : malloc(bytes), *data = p->data ? p->data : made;
        CHECK(data, "out of memory");
        if (made) s->fill(s->arg, p, made);
        p->crc = io_crc32c(0, data, bytes);
        for (size_t at = 0; at < bytes && !e->code; at += CKPT_BLOCK)
            io_pwrite(fd, data + at, bytes - at < CKPT_BLOCK ? bytes - at : CKPT_BLOCK,
                      p->offset + (off_t)at, path, e);
        free(made);
    }
    if (!e->code) io_fsync(fd, path, e);
    close(fd);
}

/* {"name", "size", "crc": [one per CKPT_BLOCK]} of a file as it is on disk. */
static json_t *describe_file(const char *dir, const char *name, struct err *e)
{
    char *path = io_path("%s/%s", dir, name);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    json_t *crcs = json_array();
    char *block = malloc(CKPT_BLOCK);
    CHECK(block && crcs, "out of memory");
    if (fd < 0 || fstat(fd, &st) != 0) err_set(e, RC_IO, "%s: cannot read back", path);
    for (off_t at = 0; !e->code && at < st.st_size; at += CKPT_BLOCK) {
        const size_t n = st.st_size - at < CKPT_BLOCK ? (size_t)(st.st_size - at) : CKPT_BLOCK;
        if (pread(fd, block, n, at) != (ssize_t)n) err_set(e, RC_IO, "%s: short read back", path);
        json_array_append_new(crcs, json_integer(io_crc32c(0, block, n)));
    }
    if (fd >= 0) close(fd);
    json_t *j = json_pack("{s:s, s:I, s:o}", "name", name, "size",
                          (json_int_t)(e->code ? 0 : st.st_size), "crc", crcs);
    free(block);
    free(path);
    return j;
}

static json_t *describe_piece(const struct ckpt_piece *p, const char *file)
{
    json_t *shape = json_array();
    for (int i = 0; i < p->ndim; i++) json_array_append_new(shape, json_integer(p->dim[i]));
    return json_pack("{s:s, s:s, s:s, s:o, s:s, s:I, s:I, s:I, s:I}", "name", p->name, "kind",
                     ckpt_kind_name(p->kind), "dtype", dtype_name(p->dtype), "shape", shape, "file",
                     file, "first", (json_int_t)p->first, "count", (json_int_t)p->count, "offset",
                     (json_int_t)p->offset, "crc", (json_int_t)p->crc);
}

/* This rank's file and its description: {"file": ..., "pieces": [...]}. */
static json_t *write_rank_file(const char *dir, int rank, const struct ckpt_snapshot *s,
                               struct err *e)
{
    char name[64];
    snprintf(name, sizeof name, "rank_%05d.h5", rank);
    char *path = io_path("%s/%s", dir, name);
    json_t *pieces = json_array();
    ckpt_h5_create(path, s->piece, s->num_pieces, e);
    if (!e->code) write_pieces(path, s, e);
    for (int i = 0; i < s->num_pieces && !e->code; i++)
        json_array_append_new(pieces, describe_piece(&s->piece[i], name));
    json_t *file = e->code ? json_null() : describe_file(dir, name, e);
    free(path);
    return json_pack("{s:o, s:o}", "file", file, "pieces", pieces);
}

/* Rank 0: joins the pieces of one (kind, name) into one entry of "tensors". */
static void join_pieces(json_t *tensors, json_t *index, json_t *pieces)
{
    size_t i;
    json_t *p;
    json_array_foreach(pieces, i, p)
    {
        char key[160];
        snprintf(key, sizeof key, "%s/%s", json_string_value(json_object_get(p, "kind")),
                 json_string_value(json_object_get(p, "name")));
        json_t *t = json_object_get(index, key);
        if (!t) {
            t = json_pack("{s:O, s:O, s:O, s:O, s:[]}", "name", json_object_get(p, "name"), "kind",
                          json_object_get(p, "kind"), "dtype", json_object_get(p, "dtype"), "shape",
                          json_object_get(p, "shape"), "pieces");
            json_array_append_new(tensors, t);
            json_object_set(index, key, t);
        }
        json_array_append_new(
            json_object_get(t, "pieces"),
            json_pack("{s:O, s:O, s:O, s:O, s:O}", "file", json_object_get(p, "file"), "first",
                      json_object_get(p, "first"), "count", json_object_get(p, "count"), "offset",
                      json_object_get(p, "offset"), "crc", json_object_get(p, "crc")));
    }
}

static void finish_folder(const char *tmp, json_t *manifest, json_t *meta, struct err *e)
{
    char *state = io_path("%s/state.h5", tmp), *path = io_path("%s/manifest.json", tmp);
    ckpt_h5_state(state, json_object_get(manifest, "tensors"), meta, e);
    if (!e->code) io_fsync_path(state, e);
    if (!e->code)
        json_array_append_new(json_object_get(manifest, "files"),
                              describe_file(tmp, "state.h5", e));
    if (!e->code) io_fsync_path(tmp, e);
    json_object_set_new(manifest, "crc", json_integer(ckpt_manifest_crc(manifest)));
    char *text = json_dumps(manifest, JSON_INDENT(1) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    CHECK(text, "the manifest cannot be encoded");
    if (!e->code) io_write_file(path, text, strlen(text), e);
    free(text);
    free(path);
    free(state);
}

/* Every rank's JSON text on rank 0. */
static void gather_descriptions(struct comm *world, json_t *own, json_t *manifest)
{
    json_t *tensors = json_object_get(manifest, "tensors"),
           *files = json_object_get(manifest, "files");
    json_t *index = json_object();
    for (int r = 0; r < world->size; r++) {
        char *text = r == world->rank ? json_dumps(own, JSON_COMPACT) : NULL;
        uint64_t n = text ? strlen(text) + 1 : 0;
        comm_broadcast_bytes(world, &n, sizeof n, r, "description size");
        char *got = text ? text : malloc(n);
        CHECK(got, "out of memory");
        comm_broadcast_bytes(world, got, n, r, "description");
        if (world->rank == 0) {
            json_t *d = json_loads(got, 0, NULL);
            CHECK(d, "rank %d sent a damaged description", r);
            json_array_append(files, json_object_get(d, "file"));
            join_pieces(tensors, index, json_object_get(d, "pieces"));
            json_decref(d);
        }
        free(got);
    }
    json_decref(index);
}

static void prepare_folder(const struct ckpt_place *place, const char *tmp, int64_t bytes,
                           struct err *e)
{
    io_mkdir(place->dir, e);
    if (e->code) return;
    if (io_exists(tmp)) io_remove_tree(tmp, e);
    if (e->code) return;
    const uint64_t room = io_free_bytes(place->dir, e),
                   need = (uint64_t)bytes + (uint64_t)bytes / 50 + (1 << 20);
    if (!e->code && room < need)
        err_set(e, RC_IO,
                "%s: a checkpoint needs %.3f GB, %.3f GB are free; free space or lower "
                "checkpoint.keep_last",
                place->dir, 1e-9 * (double)need, 1e-9 * (double)room);
    if (!e->code) io_mkdir(tmp, e);
}

/* The moment at which the new checkpoint counts. */
static void publish(const struct ckpt_place *place, const char *tmp, const char *final,
                    struct err *e)
{
    char *before =
        io_path("%s.prev", final); /* the same step again: one of the two always stands */
    const bool again = io_exists(final);
    if (again) io_rename(final, before, e);
    if (!e->code) io_rename(tmp, final, e);
    if (again && e->code && !io_exists(final) && rename(before, final) != 0)
        log_warn("%s could not get its name back; the next start does it", before);
    if (!e->code) io_fsync_path(place->dir, e);
    if (again && !e->code) io_remove_tree(before, e);
    free(before);
}

void ckpt_write(struct comm *world, const struct ckpt_place *place, const struct ckpt_snapshot *s,
                json_t *meta, struct err *e)
{
    int64_t step = world->rank == 0 ? json_integer_value(json_object_get(meta, "step")) : 0;
    comm_broadcast_bytes(world, &step, sizeof step, 0, "checkpoint step");
    char *final = io_path("%s/iter_%09lld", place->dir, (long long)step);
    char *tmp = io_path("%s.tmp", final);
    double bytes = (double)s->bytes;
    comm_sum_f64(world, &bytes, 1, "checkpoint bytes");
    *e = (struct err){0};
    if (world->rank == 0) prepare_folder(place, tmp, (int64_t)bytes, e);
    bool failed = agree(world, e);
    json_t *manifest =
        json_pack("{s:s, s:i, s:[], s:[], s:I, s:i}", "format", "osp-checkpoint", "version",
                  CKPT_VERSION, "files", "tensors", "step", (json_int_t)step, "ranks", world->size);
    if (!failed) {
        json_t *own = write_rank_file(tmp, world->rank, s, e);
        failed = agree(world, e);
        if (!failed) gather_descriptions(world, own, manifest);
        json_decref(own);
    }
    if (!failed && world->rank == 0) {
        json_object_set(manifest, "meta", meta);
        finish_folder(tmp, manifest, meta, e);
        if (!e->code) publish(place, tmp, final, e);
    }
    if (!failed) failed = agree(world, e);
    if (world->rank == 0) {
        struct err ignored = {0};
        if (failed && io_exists(tmp)) io_remove_tree(tmp, &ignored);
        if (!failed) ckpt_rotate(place, step);
    }
    json_decref(manifest);
    free(final);
    free(tmp);
}
