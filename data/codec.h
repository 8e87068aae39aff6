/* Video to latent and back, text to embedding: one interface, chosen by name, so that frozen
 * encoders (Wan VAE, UMT5) can stand behind it. `pixel` and `hash` need no weights.
 *   pixel: uint8 [3,F,H,W] -> [12,F,H/2,W/2], channel 4c+2dy+dx, value v/127.5-1; back: round half
 *          to even of (z+1)*127.5, clamped. H and W multiples of 4.
 *   hash:  words = runs of letters and digits (ASCII lower-cased; bytes of other UTF-8 characters
 *          count as letters); row of a word = text_dim normals of the
 *          stream RNG_WORD keyed by FNV-1a 64 of the word; last row the word "</s>"; cut to len. */
#ifndef DATA_CODEC_H
#define DATA_CODEC_H
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
struct video_codec {
    const char *name;
    const char *revision; /* changes when the formula does; a data set records its hash */
    /* latent shape for F frames of H x W; false with a reason when impossible */
    bool (*shape)(int64_t f, int64_t h, int64_t w, int64_t out[4], struct err *e);
    void (*encode)(float *z, const uint8_t *rgb /* [3,F,H,W] */, int64_t f, int64_t h, int64_t w);
    void (*decode)(uint8_t *rgb /* [3,F,H,W] */, const float *z, int64_t f, int64_t h, int64_t w);
    int64_t channels;
};
struct text_codec {
    const char *name;
    const char *revision;
    /* Returns the number of rows written to out [len, dim], at most len; the rest is zeroed. */
    int64_t (*encode)(float *out, int64_t len, int64_t dim, const char *text);
    int64_t (*count)(const char *text); /* rows of the whole text, with its end mark */
};
/* NULL with RC_CONFIG when there is no codec of that name. */
const struct video_codec *video_codec_find(const char *name, struct err *e); /* lists the names */
const struct text_codec *text_codec_find(const char *name, struct err *e);
#endif
