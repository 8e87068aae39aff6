/* The HDF5 data set: latents and text embeddings of clip windows.
 *   /meta       attributes: format "osp-data", version, codec, codec_revision, text_codec,
 *               text_codec_revision, fps (0: by stride), frames, height, width, text_dim,
 *               text_len, sample_stride, window_stride, hash, input_hash
 *   /latents    f32 [n, C, T, H, W], one chunk per sample; /latents_crc: CRC-32C of each
 *   /text/rows  f32 [sum of lengths, text_dim]; /text/first i64 [captions + 1], /text/crc; the rows
 *               after first[captions] are the empty caption
 *   /caption    strings [captions]; /sample_caption/first i64 [n + 1] and /index i64 [sum]
 *   /id         strings [n]: path#clip@frame
 *   /source     per sample: clip (number), start (first frame of the window in the resampled clip),
 *               frame and last (first and last source frame of the window); per clip: path (as in
 *               the description), sha256, frames (length of the resampled clip), first and end
 *               (source frames [first, end) that the clip is cut from)
 *   /rejected   path, rule, detail
 * A sample is one window of one clip. Windows that begin in the last `window` share of a clip are
 * for validation; windows that end before it are for training; the few that straddle are neither.
 * Clips that share frames of one file are split together (data/split.h).
 * Metadata and arrays carry checksums; a damaged file is an error with its path, never a crash. */
#ifndef DATA_DATASET_H
#define DATA_DATASET_H
#include <stdint.h>

#include "core/err.h"
struct dataset {
    char *path;
    int64_t n;                  /* samples */
    int64_t c, t, h, w;         /* latent shape of every sample */
    int64_t text_dim, max_text; /* longest caption, in rows */
    double fps;
    int64_t frames, height, width;
    int64_t text_len, sample_stride, window_stride; /* strides 0: null */
    char codec[32], text_codec[32];
    int64_t num_captions;
    uint64_t hash; /* of meta, ids and sources: stored in checkpoints */
    int64_t num_train, num_valid;
    int64_t *train, *valid; /* sample numbers */
    void *impl;
};
/* Opens and checks everything but the payload (whose checksums are checked as it is read).
 * window: share kept for validation, 0 to 1. RC_NOINPUT: no such file; RC_DATA: anything else. */
struct dataset *dataset_open(const char *path, double window, struct err *e);
void dataset_close(struct dataset *d);
/* out [C*T*H*W] floats. This and dataset_text may be called from any thread. */
void dataset_latent(struct dataset *d, int64_t sample, float *out, struct err *e);
int64_t dataset_captions_of(const struct dataset *d, int64_t sample); /* at least 1 */
/* Number of the which-th caption of a sample. */
int64_t dataset_caption_of(const struct dataset *d, int64_t sample, int64_t which);
const char *dataset_caption(const struct dataset *d, int64_t caption);
const char *dataset_id(const struct dataset *d, int64_t sample);
/* Clip of a sample, and where its window begins, in resampled frames. */
int64_t dataset_clip(const struct dataset *d, int64_t sample, int64_t *start);
/* Embedding of a caption, cut to len rows, zero rows after: out [len, text_dim]. caption -1: the
 * empty caption. */
void dataset_text(struct dataset *d, int64_t caption, int64_t len, float *out, struct err *e);
#endif
