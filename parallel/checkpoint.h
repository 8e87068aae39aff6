/* Checkpoints: state addressed by (kind, parameter name, global range), never by rank. N ranks
 * write, M read.
 *
 *   <dir>/iter_%09d/            written as iter_%09d.tmp, renamed last
 *     rank_%05d.h5              contiguous datasets /<kind>/<name>: this rank's flat ranges
 *     state.h5                  rank 0: scalars, configuration, virtual datasets of full shape
 *     manifest.json             written last: step, files with size and CRC-32C per 4 MiB, tensors
 *                               with shape, dtype and pieces (file, offset, CRC), layout, scalars
 *
 * A folder counts only when its manifest parses and every byte of every file matches; `latest` is
 * the valid one with the largest step in its manifest, whatever the folder is called. HDF5 never
 * sees a file whose bytes were not verified (docs/checkpoints.md). */
#ifndef PARALLEL_CHECKPOINT_H
#define PARALLEL_CHECKPOINT_H
#include <jansson.h>

#include "parallel/fsdp.h"

enum { CKPT_BLOCK = 4 << 20, CKPT_VERSION = 1 };

/* A copy of this rank's state in host memory, so that training may go on while it is written. */
struct ckpt_piece {
    char name[64];
    enum state_kind kind;
    int ndim;
    int64_t dim[TENSOR_MAXDIM], first, count;
    enum dtype dtype;
    void *data;
    int64_t offset; /* in the file; set by the writer */
    uint32_t crc;
};
struct ckpt_snapshot {
    int num_pieces;
    struct ckpt_piece *piece;
    int64_t bytes;
    /* Makes the bytes of pieces whose data is NULL when their turn comes, so that they need not all
     * be in memory; may be NULL. */
    void (*fill)(void *arg, const struct ckpt_piece *p, void *data);
    void *arg;
};
/* Whatever holds named tensors: the sharded parameters, or adapters. */
struct ckpt_store {
    struct dev *dev;
    void *data;
    void (*each_piece)(void *data, enum state_kind kind,
                       void (*each)(void *arg, const struct piece *p), void *arg);
    const struct param *(*find)(void *data, const char *name); /* NULL: no such tensor */
    void (*changed)(void *data);                               /* after a load; may be NULL */
};
/* kinds: bit per state_kind. Pieces of replicas are taken by replica 0 only. */
struct ckpt_snapshot *ckpt_snapshot(struct fsdp *f, struct mesh *mesh, unsigned kinds);
/* The pieces that the store shows on this rank; together the ranks must show all, once. */
struct ckpt_snapshot *ckpt_snapshot_store(const struct ckpt_store *s, unsigned kinds);
void ckpt_snapshot_free(struct ckpt_snapshot *s);

/* Collective. meta: rank 0's JSON object with "step" and whatever the caller wants back (scalars,
 * config, layout, sparsity); copied into the manifest. e is the same on all ranks: on error the
 * temporary folder is removed and nothing else was touched. */
struct ckpt_place {
    const char *dir;               /* <output_dir>/checkpoints */
    int64_t keep_last, keep_every; /* rotation after a successful save; keep_last 0: keep all */
};
void ckpt_write(struct comm *world, const struct ckpt_place *place, const struct ckpt_snapshot *s,
                json_t *meta, struct err *e);

/* Reading. */
struct ckpt;
/* The newest valid checkpoint of dir, verified completely by all ranks together; NULL when there
 * is none. Invalid ones are named in a warning, left-over temporary folders are removed.
 * Stops with RC_DATA when there are checkpoints but none is valid. */
struct ckpt *ckpt_latest(struct comm *world, const char *dir);
/* One given folder (an iter_ folder, a checkpoints folder, or a run folder: the newest in it).
 * Stops with the reason when it is not valid, or with those of all folders when none has a manifest
 * that can be read. verify false: sizes only (inspect of large files). */
struct ckpt *ckpt_open(struct comm *world, const char *path, bool verify);
/* Collective: step of the newest checkpoint of dir with a manifest that can be read; -1: there is
 * none, -2: there are folders, but none with such a manifest. */
int64_t ckpt_newest_step(struct comm *world, const char *dir);
void ckpt_close(struct ckpt *c);
json_t *ckpt_meta(const struct ckpt *c); /* borrowed: the caller's object of ckpt_write */
const char *ckpt_path(const struct ckpt *c);
/* Adds the reason (a line) to the file `keep` of a checkpoint that something depends on, if it does
 * not say so already: rotation leaves it alone from now on. One rank calls it. */
void ckpt_keep(const char *path, const char *why, struct err *e);
int64_t ckpt_step(const struct ckpt *c);
uint32_t ckpt_identity(const struct ckpt *c); /* checksum of its manifest, so of all its content */
bool ckpt_has(const struct ckpt *c, enum state_kind kind);
/* Stops with RC_CONFIG and every difference between the members of `now` and those of the meta's
 * object `key`: what a checkpoint and a run must share to be the same run. word: writes the word
 * that a number stands for in the member of this name, or nothing. */
void ckpt_require_same(const struct ckpt *c, const char *key, json_t *now,
                       void (*word)(const char *name, int64_t value, char *out, size_t size));
/* Collective: a start from c (resume: PATH) or from nothing (NULL, resume: never) must not go on in
 * a folder of later checkpoints, or of any: two runs would be mixed. Stops with RC_CONFIG. how: the
 * value of `resume`; unit: what steps are called. */
void ckpt_require_no_newer(struct comm *world, const char *dir, const char *how,
                           const struct ckpt *c, const char *unit);
/* Stops with RC_CONFIG when c lacks the kind that a run goes on from: STATE_MASTER for osp train,
 * STATE_LORA for osp rl. how: the value of `resume`. */
void ckpt_require_resumable(const struct ckpt *c, enum state_kind need, const char *how,
                            const char *output_dir);
/* Stops with RC_CONFIG when ema_decay is above 0 now and c holds no averages of this kind, as its
 * run had 0. or_else: the other remedy. */
void ckpt_require_ema(const struct ckpt *c, enum state_kind kind, double decay,
                      const char *or_else);
/* Fills the kinds from c; every tensor must be there with the same shape, and none may be left
 * over. kind_from: for EMA-only or raw-only uses, loads kind_from into kind. */
void ckpt_load(struct ckpt *c, struct fsdp *f, enum state_kind kind, enum state_kind kind_from);
void ckpt_load_store(struct ckpt *c, const struct ckpt_store *s, enum state_kind kind,
                     enum state_kind kind_from);
/* SHA-256 over one line "name shape dtype crc" per tensor of this kind, sorted by name, from the
 * manifest alone: the same weights have the same hash, whatever ranks wrote them. */
void ckpt_hash(const struct ckpt *c, enum state_kind kind, char hex[65]);
/* Iteration for inspect and diff. */
struct ckpt_tensor {
    const char *name;
    enum state_kind kind;
    int ndim;
    int64_t dim[TENSOR_MAXDIM], count;
    enum dtype dtype;
};
int ckpt_num_tensors(const struct ckpt *c);
struct ckpt_tensor ckpt_tensor_at(const struct ckpt *c, int i);
/* False: no such tensor. */
bool ckpt_find(const struct ckpt *c, enum state_kind kind, const char *name,
               struct ckpt_tensor *out);
const json_t *ckpt_tensors(const struct ckpt *c); /* the manifest's "tensors", borrowed */
/* Elements [first, first+count) as doubles. */
void ckpt_read_f64(struct ckpt *c, const struct ckpt_tensor *t, int64_t first, int64_t count,
                   double *out);
const char *ckpt_kind_name(enum state_kind kind); /* model, optim/m, ema, lora, ... */

/* HDF5 side (checkpoint_h5.c). */
void ckpt_h5_create(const char *path, struct ckpt_piece *piece, int n, struct err *e);
/* state.h5: tensors = manifest "tensors" array. */
void ckpt_h5_state(const char *path, const json_t *tensors, const json_t *meta, struct err *e);
#endif
