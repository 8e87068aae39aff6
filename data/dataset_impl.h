/* The tables of a data set file, as the writer and the reader share them (data only). */
#ifndef DATA_DATASET_IMPL_H
#define DATA_DATASET_IMPL_H
#include <stdint.h>

struct tables {
    char codec[32], text_codec[32];
    int64_t frames, height, width, text_dim, text_len, sample_stride, window_stride;
    double fps;
    int64_t n, clips, captions, links; /* links: entries of cap_index */
    char **id;
    int64_t *clip, *start;          /* [n] */
    int64_t *frame, *last;          /* [n]: first and last source frame of the window */
    int64_t *crc;                   /* [n] */
    char **clip_path, **clip_sha;   /* [clips] */
    int64_t *clip_frames;           /* [clips] */
    int64_t *clip_first, *clip_end; /* [clips]: source frames [first, end) of its cut */
    char **caption;                 /* [captions] */
    int64_t *text_first;            /* [captions + 1] */
    int64_t *text_crc;              /* [captions + 1]: the last is the empty caption */
    int64_t *cap_first, *cap_index; /* [n + 1], [links] */
};
uint64_t tables_hash(const struct tables *t);
#endif
