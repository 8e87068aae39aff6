#include "data/codec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"

/* ---- pixel ------------------------------------------------------------------------------------*/
enum { PIXEL_MULTIPLE = 4, PIXEL_CHANNELS = 12 };

static bool pixel_shape(int64_t f, int64_t h, int64_t w, int64_t out[4], struct err *e)
{
    if (f < 1 || h < 1 || w < 1 || h % PIXEL_MULTIPLE || w % PIXEL_MULTIPLE) {
        err_set(e, RC_CONFIG,
                "codec pixel: %lld frames of %lld x %lld: height and width must be positive "
                "multiples of %d, and there must be a frame",
                (long long)f, (long long)h, (long long)w, PIXEL_MULTIPLE);
        return false;
    }
    out[0] = PIXEL_CHANNELS;
    out[1] = f;
    out[2] = h / 2;
    out[3] = w / 2;
    return true;
}

static void pixel_encode(float *z, const uint8_t *rgb, int64_t f, int64_t h, int64_t w)
{
    float value[256];
    for (int v = 0; v < 256; v++) value[v] = (float)(v / 127.5 - 1);
    const int64_t zh = h / 2, zw = w / 2;
    for (int64_t ch = 0; ch < PIXEL_CHANNELS; ch++) {
        const int64_t c = ch / 4, dy = ch / 2 % 2, dx = ch % 2;
        for (int64_t t = 0; t < f; t++) {
            for (int64_t y = 0; y < zh; y++) {
                const uint8_t *row = rgb + ((c * f + t) * h + 2 * y + dy) * w + dx;
                float *out = z + ((ch * f + t) * zh + y) * zw;
                for (int64_t x = 0; x < zw; x++) out[x] = value[row[2 * x]];
            }
        }
    }
}

static uint8_t to_byte(float z)
{
    const double v = nearbyint(((double)z + 1) * 127.5); /* half to even */
    if (!(v > 0)) return 0;                              /* a NaN too */
    return v < 255 ? (uint8_t)v : 255;
}

static void pixel_decode(uint8_t *rgb, const float *z, int64_t f, int64_t h, int64_t w)
{
    const int64_t zh = h / 2, zw = w / 2;
    for (int64_t ch = 0; ch < PIXEL_CHANNELS; ch++) {
        const int64_t c = ch / 4, dy = ch / 2 % 2, dx = ch % 2;
        for (int64_t t = 0; t < f; t++) {
            for (int64_t y = 0; y < zh; y++) {
                uint8_t *row = rgb + ((c * f + t) * h + 2 * y + dy) * w + dx;
                const float *in = z + ((ch * f + t) * zh + y) * zw;
                for (int64_t x = 0; x < zw; x++) row[2 * x] = to_byte(in[x]);
            }
        }
    }
}

/* ---- hash -------------------------------------------------------------------------------------*/
static bool is_word(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c >= 0x80;
}

static void word_row(float *row, int64_t dim, const char *word)
{
    const struct rng_stream s = rng_open((struct rng_key){.use = RNG_WORD, .item = rng_hash(word)});
    for (int64_t i = 0; i < dim; i++) row[i] = (float)rng_normal_at(s, (uint64_t)i);
}

/* Passes over what stands between words and over the next word, which goes to word lower-cased
 * (NULL: nowhere). NULL: there are no more. */
static const char *next_word(const char *p, char *word)
{
    size_t n = 0;
    while (*p && !is_word((unsigned char)*p)) p++;
    if (!*p) return NULL;
    for (; is_word((unsigned char)*p); p++)
        if (word) word[n++] = *p >= 'A' && *p <= 'Z' ? (char)(*p - 'A' + 'a') : *p;
    if (word) word[n] = 0;
    return p;
}

static int64_t hash_count(const char *text)
{
    int64_t rows = 1;
    while ((text = next_word(text, NULL))) rows++;
    return rows;
}

static int64_t hash_encode(float *out, int64_t len, int64_t dim, const char *text)
{
    char *word = malloc(strlen(text) + 1);
    CHECK(word, "out of memory");
    int64_t rows = 0;
    while (rows < len && (text = next_word(text, word))) word_row(out + dim * rows++, dim, word);
    free(word);
    if (rows < len) word_row(out + dim * rows++, dim, "</s>");
    memset(out + dim * rows, 0, (size_t)(dim * (len - rows)) * sizeof *out);
    return rows;
}

/* ---- by name ----------------------------------------------------------------------------------*/
static const struct video_codec video_codecs[] = {
    {"pixel", "pixel/1", pixel_shape, pixel_encode, pixel_decode, PIXEL_CHANNELS},
};
static const struct text_codec text_codecs[] = {
    {"hash", "hash/1", hash_encode, hash_count},
};

const struct video_codec *video_codec_find(const char *name, struct err *e)
{
    for (size_t i = 0; i < sizeof video_codecs / sizeof *video_codecs; i++) {
        if (strcmp(video_codecs[i].name, name) == 0) return &video_codecs[i];
    }
    err_set(e, RC_CONFIG, "unknown video codec \"%.64s\" (there is: pixel)", name);
    return NULL;
}

const struct text_codec *text_codec_find(const char *name, struct err *e)
{
    for (size_t i = 0; i < sizeof text_codecs / sizeof *text_codecs; i++) {
        if (strcmp(text_codecs[i].name, name) == 0) return &text_codecs[i];
    }
    err_set(e, RC_CONFIG, "unknown text codec \"%.64s\" (there is: hash)", name);
    return NULL;
}
