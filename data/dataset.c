#include "data/dataset.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "data/codec.h"
#include "data/dataset_impl.h"
#include "data/dataset_write.h"
#include "data/hdf.h"
#include "data/split.h"

struct impl {
    struct hdf h;
    struct tables t;
    hid_t latents, rows;
    int64_t num_rows, max_rows; /* of /text/rows; of the longest caption, the empty one too */
};

static const struct tables *tables(const struct dataset *d)
{
    return &((const struct impl *)d->impl)->t;
}

/* ---- reading the tables -----------------------------------------------------------------------*/
static bool damaged(const struct dataset *d, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static bool damaged(const struct dataset *d, struct err *e, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    err_set(e, RC_DATA, "%s: damaged data set: %s", d->path, text);
    return false;
}

static bool check_format(const struct dataset *d, const struct hdf *h, struct err *e)
{
    char format[64];
    int64_t version;
    if (!hdf_get_text(h, "/meta", "format", format, sizeof format, e) ||
        !hdf_get_int(h, "/meta", "version", &version, e))
        return false;
    if (strcmp(format, "osp-data") != 0) {
        err_set(e, RC_DATA, "%s: format \"%s\" is not \"osp-data\"", d->path, format);
        return false;
    }
    if (version == DATASET_VERSION) return true;
    err_set(e, RC_DATA,
            "%s: data set version %lld, but this program reads version %d: build it anew", d->path,
            (long long)version, DATASET_VERSION);
    return false;
}

static bool check_revision(const struct dataset *d, const struct hdf *h, const char *key,
                           const char *name, const char *want, struct err *e)
{
    char text[64];
    if (!hdf_get_text(h, "/meta", key, text, sizeof text, e)) return false;
    if (strcmp(text, want) == 0) return true;
    err_set(e, RC_DATA, "%s: made with revision %s of codec %s, but this program has %s", d->path,
            text, name, want);
    return false;
}

static bool read_meta(struct dataset *d, struct impl *p, struct err *e)
{
    const struct hdf *h = &p->h;
    struct tables *t = &p->t;
    if (!hdf_get_text(h, "/meta", "codec", t->codec, sizeof t->codec, e) ||
        !hdf_get_text(h, "/meta", "text_codec", t->text_codec, sizeof t->text_codec, e) ||
        !hdf_get_real(h, "/meta", "fps", &t->fps, e) ||
        !hdf_get_int(h, "/meta", "frames", &t->frames, e) ||
        !hdf_get_int(h, "/meta", "height", &t->height, e) ||
        !hdf_get_int(h, "/meta", "width", &t->width, e) ||
        !hdf_get_int(h, "/meta", "text_dim", &t->text_dim, e) ||
        !hdf_get_int(h, "/meta", "text_len", &t->text_len, e) ||
        !hdf_get_int(h, "/meta", "sample_stride", &t->sample_stride, e) ||
        !hdf_get_int(h, "/meta", "window_stride", &t->window_stride, e))
        return false;
    struct err why = {0};
    const struct video_codec *video = video_codec_find(t->codec, &why);
    const struct text_codec *text = video ? text_codec_find(t->text_codec, &why) : NULL;
    if (!text) {
        err_set(e, RC_DATA, "%s: %s", d->path, why.msg);
        return false;
    }
    int64_t want[4];
    const int64_t most = 1 << 20;
    if (t->frames > most || t->height > most || t->width > most ||
        !video->shape(t->frames, t->height, t->width, want, &why))
        return damaged(d, e, "samples of %lld frames of %lld x %lld", (long long)t->frames,
                       (long long)t->height, (long long)t->width);
    if (want[0] != d->c || want[1] != d->t || want[2] != d->h || want[3] != d->w)
        return damaged(d, e,
                       "latents [%lld, %lld, %lld, %lld] do not belong to codec %s and its "
                       "frame size",
                       (long long)d->c, (long long)d->t, (long long)d->h, (long long)d->w,
                       t->codec);
    return check_revision(d, h, "codec_revision", t->codec, video->revision, e) &&
           check_revision(d, h, "text_codec_revision", t->text_codec, text->revision, e);
}

static bool read_tables(struct impl *p, struct err *e)
{
    const struct hdf *h = &p->h;
    struct tables *t = &p->t;
    return (t->id = hdf_get_texts(h, "/id", t->n, NULL, e)) &&
           (t->crc = hdf_get_ints(h, "/latents_crc", t->n, NULL, e)) &&
           (t->clip = hdf_get_ints(h, "/source/clip", t->n, NULL, e)) &&
           (t->start = hdf_get_ints(h, "/source/start", t->n, NULL, e)) &&
           (t->frame = hdf_get_ints(h, "/source/frame", t->n, NULL, e)) &&
           (t->last = hdf_get_ints(h, "/source/last", t->n, NULL, e)) &&
           (t->clip_path = hdf_get_texts(h, "/source/path", -1, &t->clips, e)) &&
           (t->clip_sha = hdf_get_texts(h, "/source/sha256", t->clips, NULL, e)) &&
           (t->clip_frames = hdf_get_ints(h, "/source/frames", t->clips, NULL, e)) &&
           (t->clip_first = hdf_get_ints(h, "/source/first", t->clips, NULL, e)) &&
           (t->clip_end = hdf_get_ints(h, "/source/end", t->clips, NULL, e)) &&
           (t->caption = hdf_get_texts(h, "/caption", -1, &t->captions, e)) &&
           (t->text_first = hdf_get_ints(h, "/text/first", t->captions + 1, NULL, e)) &&
           (t->text_crc = hdf_get_ints(h, "/text/crc", t->captions + 1, NULL, e)) &&
           (t->cap_first = hdf_get_ints(h, "/sample_caption/first", t->n + 1, NULL, e)) &&
           (t->cap_index = hdf_get_ints(h, "/sample_caption/index", -1, &t->links, e));
}

/* ---- checking them ----------------------------------------------------------------------------*/
/* first[0..n] must rise from 0 to total, by at least `least`. */
static bool check_first(const struct dataset *d, const char *name, const int64_t *first, int64_t n,
                        int64_t total, int64_t least, struct err *e)
{
    if (first[0] != 0 || first[n] != total || total > (int64_t)1 << 48)
        return damaged(d, e, "%s runs from %lld to %lld, not from 0 to %lld", name,
                       (long long)first[0], (long long)first[n], (long long)total);
    for (int64_t i = 0; i < n; i++) {
        if (first[i + 1] < first[i] + least || first[i + 1] > total)
            return damaged(d, e, "%s[%lld] = %lld after %lld", name, (long long)(i + 1),
                           (long long)first[i + 1], (long long)first[i]);
    }
    return true;
}

static bool check_text(struct dataset *d, struct impl *p, struct err *e)
{
    const struct tables *t = &p->t;
    const int64_t *first = t->text_first, empty = p->num_rows - first[t->captions];
    if (!check_first(d, "/text/first", first, t->captions, first[t->captions], 1, e)) return false;
    if (empty < 1) return damaged(d, e, "no rows for the empty caption");
    p->max_rows = empty;
    for (int64_t i = 0; i < t->captions; i++) {
        const int64_t n = first[i + 1] - first[i];
        if (n > d->max_text) d->max_text = n;
    }
    if (d->max_text > p->max_rows) p->max_rows = d->max_text;
    if (p->max_rows > t->text_len)
        return damaged(d, e, "a caption of %lld rows, but text_len is %lld", (long long)p->max_rows,
                       (long long)t->text_len);
    return true;
}

static bool check_samples(const struct dataset *d, const struct tables *t, struct err *e)
{
    if (!check_first(d, "/sample_caption/first", t->cap_first, t->n, t->links, 1, e)) return false;
    for (int64_t i = 0; i < t->links; i++) {
        if (t->cap_index[i] < 0 || t->cap_index[i] >= t->captions)
            return damaged(d, e, "caption %lld of %lld", (long long)t->cap_index[i],
                           (long long)t->captions);
    }
    for (int64_t i = 0; i < t->clips; i++) {
        if (t->clip_frames[i] < 0 || t->clip_frames[i] > (int64_t)1 << 48)
            return damaged(d, e, "clip %lld of %lld frames", (long long)i,
                           (long long)t->clip_frames[i]);
        if (t->clip_first[i] < 0 || t->clip_first[i] >= t->clip_end[i] ||
            t->clip_end[i] > (int64_t)1 << 48)
            return damaged(d, e, "clip %lld is source frames [%lld, %lld)", (long long)i,
                           (long long)t->clip_first[i], (long long)t->clip_end[i]);
    }
    for (int64_t i = 0; i < t->n; i++) {
        const int64_t c = t->clip[i];
        if (c < 0 || c >= t->clips)
            return damaged(d, e, "sample %lld is of clip %lld of %lld", (long long)i, (long long)c,
                           (long long)t->clips);
        if (t->start[i] < 0 || t->start[i] > t->clip_frames[c] - t->frames)
            return damaged(d, e, "sample %lld: window at %lld of a clip of %lld frames",
                           (long long)i, (long long)t->start[i], (long long)t->clip_frames[c]);
        if (t->frame[i] < t->clip_first[c] || t->last[i] < t->frame[i] ||
            t->last[i] >= t->clip_end[c])
            return damaged(d, e, "sample %lld: source frames %lld to %lld of clip [%lld, %lld)",
                           (long long)i, (long long)t->frame[i], (long long)t->last[i],
                           (long long)t->clip_first[c], (long long)t->clip_end[c]);
    }
    return true;
}

static bool check_hash(struct dataset *d, struct impl *p, struct err *e)
{
    char text[32], want[32];
    d->hash = tables_hash(&p->t);
    snprintf(want, sizeof want, "%016" PRIx64, d->hash);
    if (!hdf_get_text(&p->h, "/meta", "hash", text, sizeof text, e)) return false;
    return strcmp(text, want) == 0 || damaged(d, e, "hash %s, but the content has %s", text, want);
}

/* ---- open and close ---------------------------------------------------------------------------*/
static bool open_all(struct dataset *d, struct impl *p, struct err *e)
{
    int64_t dim[5], rows[2];
    if (!hdf_open(&p->h, d->path, e) || !check_format(d, &p->h, e)) return false;
    p->latents = hdf_open_rows(&p->h, "/latents", 5, dim, e);
    if (p->latents < 0) return false;
    p->rows = hdf_open_rows(&p->h, "/text/rows", 2, rows, e);
    if (p->rows < 0) return false;
    d->n = p->t.n = dim[0];
    d->c = dim[1], d->t = dim[2], d->h = dim[3], d->w = dim[4];
    p->num_rows = rows[0];
    if (d->n == 0) return damaged(d, e, "no samples");
    if (!read_meta(d, p, e) || !read_tables(p, e)) return false;
    if (rows[1] != p->t.text_dim)
        return damaged(d, e, "text rows of %lld values, text_dim is %lld", (long long)rows[1],
                       (long long)p->t.text_dim);
    return check_text(d, p, e) && check_samples(d, &p->t, e) && check_hash(d, p, e);
}

struct dataset *dataset_open(const char *path, double window, struct err *e)
{
    if (!(window >= 0 && window <= 1)) {
        err_set(e, RC_CONFIG, "validation window %g is not between 0 and 1", window);
        return NULL;
    }
    struct dataset *d = calloc(1, sizeof *d);
    struct impl *p = calloc(1, sizeof *p);
    CHECK(d && p, "out of memory");
    d->path = strdup(path);
    d->impl = p;
    p->h.file = p->latents = p->rows = -1;
    pthread_mutex_lock(&hdf_lock);
    const bool ok = open_all(d, p, e);
    pthread_mutex_unlock(&hdf_lock);
    if (!ok) {
        dataset_close(d);
        return NULL;
    }
    const struct tables *t = &p->t;
    d->text_dim = t->text_dim;
    d->fps = t->fps;
    d->text_len = t->text_len;
    d->sample_stride = t->sample_stride, d->window_stride = t->window_stride;
    d->frames = t->frames, d->height = t->height, d->width = t->width;
    memcpy(d->codec, t->codec, sizeof d->codec);
    memcpy(d->text_codec, t->text_codec, sizeof d->text_codec);
    d->num_captions = t->captions;
    d->train = calloc((size_t)t->n + 1, sizeof *d->train);
    d->valid = calloc((size_t)t->n + 1, sizeof *d->valid);
    CHECK(d->train && d->valid, "out of memory");
    split_windows(t, window, d->train, &d->num_train, d->valid, &d->num_valid);
    return d;
}

void dataset_close(struct dataset *d)
{
    if (!d) return;
    struct impl *p = d->impl;
    struct tables *t = &p->t;
    struct err ignored = {0}; /* nothing was written */
    pthread_mutex_lock(&hdf_lock);
    if (p->latents >= 0) H5Dclose(p->latents);
    if (p->rows >= 0) H5Dclose(p->rows);
    hdf_close(&p->h, &ignored);
    pthread_mutex_unlock(&hdf_lock);
    void *const all[] = {t->id,
                         t->crc,
                         t->clip,
                         t->start,
                         t->frame,
                         t->clip_path,
                         t->clip_sha,
                         t->clip_frames,
                         t->clip_first,
                         t->clip_end,
                         t->last,
                         t->caption,
                         t->text_first,
                         t->text_crc,
                         t->cap_first,
                         t->cap_index,
                         d->train,
                         d->valid,
                         d->path,
                         p,
                         d};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* ---- payload ----------------------------------------------------------------------------------*/
void dataset_latent(struct dataset *d, int64_t sample, float *out, struct err *e)
{
    struct impl *p = d->impl;
    CHECK(sample >= 0 && sample < d->n, "sample %lld of %lld", (long long)sample, (long long)d->n);
    pthread_mutex_lock(&hdf_lock);
    hdf_quiet();
    const bool ok = hdf_read_rows(&p->h, p->latents, "/latents", sample, 1, out, e);
    pthread_mutex_unlock(&hdf_lock);
    if (!ok) return;
    const uint32_t crc = io_crc32c(0, out, (size_t)(d->c * d->t * d->h * d->w) * sizeof *out);
    if ((int64_t)crc != p->t.crc[sample])
        damaged(d, e, "wrong checksum of sample %lld (%s)", (long long)sample, p->t.id[sample]);
}

int64_t dataset_captions_of(const struct dataset *d, int64_t sample)
{
    CHECK(sample >= 0 && sample < d->n, "sample %lld of %lld", (long long)sample, (long long)d->n);
    return tables(d)->cap_first[sample + 1] - tables(d)->cap_first[sample];
}

int64_t dataset_caption_of(const struct dataset *d, int64_t sample, int64_t which)
{
    CHECK(which >= 0 && which < dataset_captions_of(d, sample), "caption %lld of sample %lld",
          (long long)which, (long long)sample);
    return tables(d)->cap_index[tables(d)->cap_first[sample] + which];
}

const char *dataset_caption(const struct dataset *d, int64_t caption)
{
    CHECK(caption >= 0 && caption < d->num_captions, "caption %lld", (long long)caption);
    return tables(d)->caption[caption];
}

const char *dataset_id(const struct dataset *d, int64_t sample)
{
    CHECK(sample >= 0 && sample < d->n, "sample %lld of %lld", (long long)sample, (long long)d->n);
    return tables(d)->id[sample];
}

int64_t dataset_clip(const struct dataset *d, int64_t sample, int64_t *start)
{
    CHECK(sample >= 0 && sample < d->n, "sample %lld of %lld", (long long)sample, (long long)d->n);
    if (start) *start = tables(d)->start[sample];
    return tables(d)->clip[sample];
}

void dataset_text(struct dataset *d, int64_t caption, int64_t len, float *out, struct err *e)
{
    struct impl *p = d->impl;
    const struct tables *t = &p->t;
    CHECK(caption >= -1 && caption < d->num_captions, "caption %lld", (long long)caption);
    const int64_t at = caption < 0 ? t->captions : caption, first = t->text_first[at];
    const int64_t end = caption < 0 ? p->num_rows : t->text_first[at + 1], rows = end - first;
    float *all = malloc((size_t)(rows * d->text_dim) * sizeof *all);
    CHECK(all, "out of memory");
    pthread_mutex_lock(&hdf_lock);
    hdf_quiet();
    const bool ok = hdf_read_rows(&p->h, p->rows, "/text/rows", first, rows, all, e);
    pthread_mutex_unlock(&hdf_lock);
    if (ok) {
        const size_t bytes = (size_t)(rows * d->text_dim) * sizeof *all;
        if ((int64_t)io_crc32c(0, all, bytes) != t->text_crc[at])
            damaged(d, e, "wrong checksum of caption %lld", (long long)caption);
        const int64_t used = rows < len ? rows : len;
        memcpy(out, all, (size_t)(used * d->text_dim) * sizeof *out);
        memset(out + used * d->text_dim, 0, (size_t)((len - used) * d->text_dim) * sizeof *out);
    }
    free(all);
}
