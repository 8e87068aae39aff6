/* Writing a data set (layout: data/dataset.h). Samples are appended one by one; the file is called
 * PATH.tmp.PID until dataset_finish, which closes, fsyncs and renames it: under its final name a
 * data set is always complete, and no process touches the temporary file of another. Every function
 * returns false with e filled on failure; then, and after an interruption, call dataset_abandon. */
#ifndef DATA_DATASET_WRITE_H
#define DATA_DATASET_WRITE_H
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
enum { DATASET_VERSION = 2 };
struct dataset_spec {
    const char *codec, *text_codec;
    int64_t frames, height, width; /* of a sample, in pixels */
    int64_t text_dim, text_len;    /* embeddings have at most text_len rows */
    double fps;                    /* 0: by stride */
    int64_t sample_stride, window_stride;
    uint64_t input_hash; /* of what it was made from, so that a restart can tell */
};
struct dataset_writer;
struct dataset_writer *dataset_create(const char *path, const struct dataset_spec *s,
                                      struct err *e);
/* Number of the clip: source frames [first, end) of a file. frames: length after resampling. */
int64_t dataset_add_clip(struct dataset_writer *w, const char *path, const char *sha256,
                         int64_t frames, int64_t first, int64_t end);
/* Number of the caption, which is embedded once however often it is added; -1 on failure. */
int64_t dataset_add_caption(struct dataset_writer *w, const char *text, struct err *e);
/* start: first frame of the window in the resampled clip; frame, last: its first and last frame in
 * the source. */
bool dataset_add_sample(struct dataset_writer *w, int64_t clip, int64_t start, int64_t frame,
                        int64_t last, const int64_t *caption, int64_t captions, const float *latent,
                        struct err *e);
void dataset_add_rejected(struct dataset_writer *w, const char *path, const char *rule,
                          const char *detail);
int64_t dataset_samples(const struct dataset_writer *w);
/* Both free w. */
bool dataset_finish(struct dataset_writer *w, struct err *e);
void dataset_abandon(struct dataset_writer *w);
/* True when path is a complete data set made from the same input. */
bool dataset_is_current(const char *path, uint64_t input_hash);
#endif
