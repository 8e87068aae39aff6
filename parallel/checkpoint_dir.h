/* Folders of checkpoints: listing, rotation (rank 0 only). */
#ifndef PARALLEL_CHECKPOINT_DIR_H
#define PARALLEL_CHECKPOINT_DIR_H
#include "parallel/checkpoint.h"
struct ckpt_entry {
    char *path;
    int64_t step; /* of its manifest */
    json_t *manifest;
};
struct ckpt_skipped { /* folders of checkpoints without a manifest that can be used */
    char *text;       /* malloc'ed lines; NULL: none */
    int64_t newest;   /* the largest step in their names; -1: none */
};
/* Folders of dir with a manifest that parses, newest step first; skipped: the others, if they are
 * called like checkpoints or hold a manifest. */
struct ckpt_entry *ckpt_list(const char *dir, int *n, struct ckpt_skipped *skipped);
void ckpt_list_free(struct ckpt_entry *list, int n);
/* CRC-32C of the manifest's content without its own "crc" member. */
uint32_t ckpt_manifest_crc(json_t *manifest);
/* Parses and checks the structure of a manifest; NULL with the reason in e. */
json_t *ckpt_manifest(const char *folder, struct err *e);
struct ckpt_store ckpt_store_fsdp(struct fsdp *f);
/* Removes old checkpoints; the newest `keep_last`, every step that keep_every divides, and those
 * with a file `keep` (ckpt_keep) stay. */
void ckpt_rotate(const struct ckpt_place *place, int64_t newest);
void ckpt_remove_leftovers(const char *dir);
#endif
