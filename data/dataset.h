/* The HDF5 data set: latents and text embeddings of clip windows.
 *   /meta      attributes: format "osp-data", version, codec, text_codec (with hashes), fps,
 *              frames, height, width, text_dim
 *   /latents   f32 [n, C, T, H, W], one chunk per sample
 *   /text/rows f32 [sum of lengths, text_dim], /text/first i64 [captions + 1]
 *   /caption   strings [captions]; /sample_caption: first [n+1] and index [sum]
 *   /id        strings [n]; /source: path, sha256, start frame, clip number per sample
 *   /rejected  path, rule, detail
 * A sample is one window of one clip. Windows that begin in the last `window` share of a clip are
 * for validation; windows that end before it are for training; the few that straddle are neither. */
#ifndef DATA_DATASET_H
#define DATA_DATASET_H
#include <stdint.h>

#include "core/err.h"
struct dataset {
    char *path;
    int64_t n;                 /* samples */
    int64_t c, t, h, w;        /* latent shape of every sample */
    int64_t text_dim, max_text; /* longest caption, in rows */
    double fps;
    int64_t frames, height, width;
    char codec[32], text_codec[32];
    int64_t num_captions;
    uint64_t hash;             /* of meta, ids and sources: stored in checkpoints */
    int64_t num_train, num_valid;
    int64_t *train, *valid;    /* sample numbers */
    void *impl;
};
/* Opens and checks everything but the payload. window: share kept for validation. */
struct dataset *dataset_open(const char *path, double window, struct err *e);
void dataset_close(struct dataset *d);
/* out [C*T*H*W] floats. Safe from one thread at a time. */
void dataset_latent(struct dataset *d, int64_t sample, float *out, struct err *e);
int64_t dataset_captions_of(const struct dataset *d, int64_t sample); /* at least 1 */
/* Number of the which-th caption of a sample. */
int64_t dataset_caption_of(const struct dataset *d, int64_t sample, int64_t which);
const char *dataset_caption(const struct dataset *d, int64_t caption);
const char *dataset_id(const struct dataset *d, int64_t sample);
/* Embedding of a caption, cut to len rows, zero rows after: out [len, text_dim]. caption -1: the
 * empty caption. */
void dataset_text(struct dataset *d, int64_t caption, int64_t len, float *out, struct err *e);
#endif
