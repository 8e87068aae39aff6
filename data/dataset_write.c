#include "data/dataset_write.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "core/rng.h"
#include "data/codec.h"
#include "data/dataset.h"
#include "data/dataset_impl.h"
#include "data/hdf.h"

struct ints {
    int64_t *v, n, room;
};
struct texts {
    char **v;
    int64_t n, room;
};
struct dataset_writer {
    char *path, *temporary;
    struct dataset_spec spec;
    char codec[32], text_codec[32];
    const struct video_codec *video;
    const struct text_codec *text;
    struct hdf h;
    hid_t latents, rows;
    int64_t values, num_rows; /* floats of a sample; rows written */
    struct ints clip, start, frame, last, crc, clip_frames, clip_first, clip_end;
    struct ints text_first, text_crc, cap_first, cap_index;
    struct texts id, clip_path, clip_sha, caption, bad_path, bad_rule, bad_detail;
    int64_t *bucket, buckets; /* open hash table of captions: number + 1, 0 = free */
    float *scratch;           /* [text_len, text_dim] */
};

/* ---- growing arrays ---------------------------------------------------------------------------*/
static void push(struct ints *a, int64_t v)
{
    if (a->n == a->room) {
        a->room = a->room ? 2 * a->room : 64;
        a->v = realloc(a->v, (size_t)a->room * sizeof *a->v);
        CHECK(a->v, "out of memory");
    }
    a->v[a->n++] = v;
}

static void push_text(struct texts *a, const char *v)
{
    if (a->n == a->room) {
        a->room = a->room ? 2 * a->room : 64;
        a->v = realloc(a->v, (size_t)a->room * sizeof *a->v);
        CHECK(a->v, "out of memory");
    }
    a->v[a->n++] = strdup(v);
    CHECK(a->v[a->n - 1], "out of memory");
}

static void free_texts(struct texts *a)
{
    for (int64_t i = 0; i < a->n; i++) free(a->v[i]);
    free(a->v);
}

/* ---- content hash -----------------------------------------------------------------------------*/
static void mix(uint64_t *h, const void *p, size_t n)
{
    const unsigned char *b = p;
    for (size_t i = 0; i < n; i++) *h = (*h ^ b[i]) * 0x100000001b3u;
}

static void mix_ints(uint64_t *h, const int64_t *v, int64_t n) { mix(h, v, (size_t)n * sizeof *v); }

static void mix_texts(uint64_t *h, char *const *v, int64_t n)
{
    for (int64_t i = 0; i < n; i++) mix(h, v[i], strlen(v[i]) + 1);
}

uint64_t tables_hash(const struct tables *t)
{
    uint64_t h = 0xcbf29ce484222325u;
    const int64_t meta[] = {t->frames,   t->height,        t->width,         t->text_dim,
                            t->text_len, t->sample_stride, t->window_stride, t->n,
                            t->clips,    t->captions,      t->links};
    mix(&h, t->codec, strlen(t->codec) + 1);
    mix(&h, t->text_codec, strlen(t->text_codec) + 1);
    mix(&h, &t->fps, sizeof t->fps);
    mix_ints(&h, meta, sizeof meta / sizeof *meta);
    mix_texts(&h, t->id, t->n);
    mix_ints(&h, t->clip, t->n);
    mix_ints(&h, t->start, t->n);
    mix_ints(&h, t->frame, t->n);
    mix_ints(&h, t->last, t->n);
    mix_ints(&h, t->crc, t->n);
    mix_texts(&h, t->clip_path, t->clips);
    mix_texts(&h, t->clip_sha, t->clips);
    mix_ints(&h, t->clip_frames, t->clips);
    mix_ints(&h, t->clip_first, t->clips);
    mix_ints(&h, t->clip_end, t->clips);
    mix_texts(&h, t->caption, t->captions);
    mix_ints(&h, t->text_first, t->captions + 1);
    mix_ints(&h, t->text_crc, t->captions + 1);
    mix_ints(&h, t->cap_first, t->n + 1);
    mix_ints(&h, t->cap_index, t->links);
    return h;
}

/* ---- creating ---------------------------------------------------------------------------------*/
static void release(struct dataset_writer *w)
{
    struct ints *const ints[] = {&w->clip,       &w->start,    &w->frame,     &w->last,
                                 &w->clip_first, &w->clip_end, &w->crc,       &w->clip_frames,
                                 &w->text_first, &w->text_crc, &w->cap_first, &w->cap_index};
    struct texts *const texts[] = {&w->id,       &w->clip_path, &w->clip_sha,  &w->caption,
                                   &w->bad_path, &w->bad_rule,  &w->bad_detail};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) free(ints[i]->v);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) free_texts(texts[i]);
    free(w->bucket);
    free(w->scratch);
    free(w->path);
    free(w->temporary);
    free(w);
}

static bool make_arrays(struct dataset_writer *w, struct err *e)
{
    const struct dataset_spec *s = &w->spec;
    int64_t shape[4];
    if (!w->video->shape(s->frames, s->height, s->width, shape, e)) return false;
    w->values = shape[0] * shape[1] * shape[2] * shape[3];
    if (w->values > ((int64_t)1 << 32) / 4 - 1 || s->text_dim < 1 || s->text_len < 1) {
        err_set(e, RC_CONFIG,
                "%s: a sample of %lld values, text of %lld x %lld: a sample must be smaller than "
                "4 GiB and the text must have a size",
                w->path, (long long)w->values, (long long)s->text_len, (long long)s->text_dim);
        return false;
    }
    const int64_t dim[5] = {0, shape[0], shape[1], shape[2], shape[3]};
    const int64_t chunk[5] = {1, shape[0], shape[1], shape[2], shape[3]};
    const int64_t some = s->text_dim < 65536 ? 65536 / s->text_dim : 1;
    const int64_t rows[2] = {0, s->text_dim}, row_chunk[2] = {some, s->text_dim};
    w->scratch = malloc((size_t)(s->text_len * s->text_dim) * sizeof *w->scratch);
    CHECK(w->scratch, "out of memory");
    pthread_mutex_lock(&hdf_lock);
    bool ok = hdf_create(&w->h, w->temporary, e);
    if (ok) {
        w->latents = hdf_rows(&w->h, "/latents", 5, dim, chunk, e);
        ok = w->latents >= 0;
    }
    ok = ok && hdf_group(&w->h, "/meta", e) && hdf_group(&w->h, "/text", e) &&
         hdf_group(&w->h, "/source", e) && hdf_group(&w->h, "/sample_caption", e) &&
         hdf_group(&w->h, "/rejected", e);
    if (ok) {
        w->rows = hdf_rows(&w->h, "/text/rows", 2, rows, row_chunk, e);
        ok = w->rows >= 0;
    }
    pthread_mutex_unlock(&hdf_lock);
    return ok;
}

struct dataset_writer *dataset_create(const char *path, const struct dataset_spec *s, struct err *e)
{
    const struct video_codec *video = video_codec_find(s->codec, e);
    const struct text_codec *text = video ? text_codec_find(s->text_codec, e) : NULL;
    if (!text) return NULL;
    struct dataset_writer *w = calloc(1, sizeof *w);
    CHECK(w, "out of memory");
    w->path = strdup(path);
    w->temporary = io_path("%s.tmp.%ld", path, (long)getpid());
    w->spec = *s;
    w->video = video;
    w->text = text;
    snprintf(w->codec, sizeof w->codec, "%s", video->name);
    snprintf(w->text_codec, sizeof w->text_codec, "%s", text->name);
    w->h.file = w->latents = w->rows = -1;
    push(&w->cap_first, 0);
    push(&w->text_first, 0);
    if (make_arrays(w, e)) return w;
    dataset_abandon(w);
    return NULL;
}

/* ---- adding -----------------------------------------------------------------------------------*/
int64_t dataset_add_clip(struct dataset_writer *w, const char *path, const char *sha256,
                         int64_t frames, int64_t first, int64_t end)
{
    CHECK(first >= 0 && first < end, "clip of frames [%lld, %lld)", (long long)first,
          (long long)end);
    push_text(&w->clip_path, path);
    push_text(&w->clip_sha, sha256);
    push(&w->clip_frames, frames);
    push(&w->clip_first, first);
    push(&w->clip_end, end);
    return w->clip_path.n - 1;
}

static bool add_rows(struct dataset_writer *w, const char *text, struct err *e)
{
    const struct dataset_spec *s = &w->spec;
    const int64_t n = w->text->encode(w->scratch, s->text_len, s->text_dim, text);
    pthread_mutex_lock(&hdf_lock);
    const bool ok = hdf_append(&w->h, w->rows, w->num_rows, n, w->scratch, e);
    pthread_mutex_unlock(&hdf_lock);
    w->num_rows += n;
    push(&w->text_crc, io_crc32c(0, w->scratch, (size_t)(n * s->text_dim) * sizeof(float)));
    return ok;
}

static void grow_buckets(struct dataset_writer *w)
{
    w->buckets = w->buckets ? 4 * w->buckets : 1024;
    free(w->bucket);
    w->bucket = calloc((size_t)w->buckets, sizeof *w->bucket);
    CHECK(w->bucket, "out of memory");
    for (int64_t i = 0; i < w->caption.n; i++) {
        uint64_t at = rng_hash(w->caption.v[i]) % (uint64_t)w->buckets;
        while (w->bucket[at]) at = (at + 1) % (uint64_t)w->buckets;
        w->bucket[at] = i + 1;
    }
}

int64_t dataset_add_caption(struct dataset_writer *w, const char *text, struct err *e)
{
    if (2 * (w->caption.n + 1) > w->buckets) grow_buckets(w);
    uint64_t at = rng_hash(text) % (uint64_t)w->buckets;
    for (; w->bucket[at]; at = (at + 1) % (uint64_t)w->buckets) {
        if (strcmp(w->caption.v[w->bucket[at] - 1], text) == 0) return w->bucket[at] - 1;
    }
    if (!add_rows(w, text, e)) return -1;
    push_text(&w->caption, text);
    push(&w->text_first, w->num_rows);
    w->bucket[at] = w->caption.n;
    return w->caption.n - 1;
}

bool dataset_add_sample(struct dataset_writer *w, int64_t clip, int64_t start, int64_t frame,
                        int64_t last, const int64_t *caption, int64_t captions, const float *latent,
                        struct err *e)
{
    CHECK(clip >= 0 && clip < w->clip_path.n && captions > 0, "sample of clip %lld",
          (long long)clip);
    pthread_mutex_lock(&hdf_lock);
    const bool ok = hdf_append(&w->h, w->latents, w->id.n, 1, latent, e);
    pthread_mutex_unlock(&hdf_lock);
    if (!ok) return false;
    /* the clip number keeps two clips of one file apart */
    char *id = io_path("%s#%lld@%lld", w->clip_path.v[clip], (long long)clip, (long long)frame);
    push_text(&w->id, id);
    free(id);
    push(&w->clip, clip);
    push(&w->start, start);
    push(&w->frame, frame);
    push(&w->last, last);
    push(&w->crc, io_crc32c(0, latent, (size_t)w->values * sizeof *latent));
    for (int64_t i = 0; i < captions; i++) push(&w->cap_index, caption[i]);
    push(&w->cap_first, w->cap_index.n);
    return true;
}

void dataset_add_rejected(struct dataset_writer *w, const char *path, const char *rule,
                          const char *detail)
{
    push_text(&w->bad_path, path);
    push_text(&w->bad_rule, rule);
    push_text(&w->bad_detail, detail);
}

int64_t dataset_samples(const struct dataset_writer *w) { return w->id.n; }

/* ---- finishing --------------------------------------------------------------------------------*/
static uint64_t hash_of(const struct dataset_writer *w)
{
    const struct dataset_spec *s = &w->spec;
    struct tables t = {.frames = s->frames,
                       .height = s->height,
                       .width = s->width,
                       .text_dim = s->text_dim,
                       .text_len = s->text_len,
                       .sample_stride = s->sample_stride,
                       .window_stride = s->window_stride,
                       .fps = s->fps,
                       .n = w->id.n,
                       .clips = w->clip_path.n,
                       .captions = w->caption.n,
                       .links = w->cap_index.n,
                       .id = w->id.v,
                       .clip = w->clip.v,
                       .start = w->start.v,
                       .frame = w->frame.v,
                       .last = w->last.v,
                       .crc = w->crc.v,
                       .clip_path = w->clip_path.v,
                       .clip_sha = w->clip_sha.v,
                       .clip_frames = w->clip_frames.v,
                       .clip_first = w->clip_first.v,
                       .clip_end = w->clip_end.v,
                       .caption = w->caption.v,
                       .text_first = w->text_first.v,
                       .text_crc = w->text_crc.v,
                       .cap_first = w->cap_first.v,
                       .cap_index = w->cap_index.v};
    snprintf(t.codec, sizeof t.codec, "%s", w->codec);
    snprintf(t.text_codec, sizeof t.text_codec, "%s", w->text_codec);
    return tables_hash(&t);
}

static bool put_hash(const struct hdf *h, const char *name, uint64_t v, struct err *e)
{
    char text[20];
    snprintf(text, sizeof text, "%016" PRIx64, v);
    return hdf_put_text(h, "/meta", name, text, e);
}

static bool put_meta(const struct dataset_writer *w, struct err *e)
{
    const struct dataset_spec *s = &w->spec;
    const struct hdf *h = &w->h;
    return hdf_put_text(h, "/meta", "format", "osp-data", e) &&
           hdf_put_int(h, "/meta", "version", DATASET_VERSION, e) &&
           hdf_put_text(h, "/meta", "codec", w->codec, e) &&
           hdf_put_text(h, "/meta", "codec_revision", w->video->revision, e) &&
           hdf_put_text(h, "/meta", "text_codec", w->text_codec, e) &&
           hdf_put_text(h, "/meta", "text_codec_revision", w->text->revision, e) &&
           hdf_put_real(h, "/meta", "fps", s->fps, e) &&
           hdf_put_int(h, "/meta", "frames", s->frames, e) &&
           hdf_put_int(h, "/meta", "height", s->height, e) &&
           hdf_put_int(h, "/meta", "width", s->width, e) &&
           hdf_put_int(h, "/meta", "text_dim", s->text_dim, e) &&
           hdf_put_int(h, "/meta", "text_len", s->text_len, e) &&
           hdf_put_int(h, "/meta", "sample_stride", s->sample_stride, e) &&
           hdf_put_int(h, "/meta", "window_stride", s->window_stride, e) &&
           put_hash(h, "hash", hash_of(w), e) && put_hash(h, "input_hash", s->input_hash, e);
}

static bool put_tables(const struct dataset_writer *w, struct err *e)
{
    const struct hdf *h = &w->h;
    const int64_t n = w->id.n, clips = w->clip_path.n, captions = w->caption.n;
    return hdf_put_texts(h, "/id", w->id.v, n, e) &&
           hdf_put_ints(h, "/latents_crc", w->crc.v, n, e) &&
           hdf_put_ints(h, "/source/clip", w->clip.v, n, e) &&
           hdf_put_ints(h, "/source/start", w->start.v, n, e) &&
           hdf_put_ints(h, "/source/frame", w->frame.v, n, e) &&
           hdf_put_ints(h, "/source/last", w->last.v, n, e) &&
           hdf_put_texts(h, "/source/path", w->clip_path.v, clips, e) &&
           hdf_put_texts(h, "/source/sha256", w->clip_sha.v, clips, e) &&
           hdf_put_ints(h, "/source/frames", w->clip_frames.v, clips, e) &&
           hdf_put_ints(h, "/source/first", w->clip_first.v, clips, e) &&
           hdf_put_ints(h, "/source/end", w->clip_end.v, clips, e) &&
           hdf_put_texts(h, "/caption", w->caption.v, captions, e) &&
           hdf_put_ints(h, "/text/first", w->text_first.v, captions + 1, e) &&
           hdf_put_ints(h, "/text/crc", w->text_crc.v, captions + 1, e) &&
           hdf_put_ints(h, "/sample_caption/first", w->cap_first.v, n + 1, e) &&
           hdf_put_ints(h, "/sample_caption/index", w->cap_index.v, w->cap_index.n, e) &&
           hdf_put_texts(h, "/rejected/path", w->bad_path.v, w->bad_path.n, e) &&
           hdf_put_texts(h, "/rejected/rule", w->bad_rule.v, w->bad_rule.n, e) &&
           hdf_put_texts(h, "/rejected/detail", w->bad_detail.v, w->bad_detail.n, e);
}

static bool close_file(struct dataset_writer *w, struct err *e)
{
    bool ok = true;
    if (w->latents >= 0) ok = H5Dclose(w->latents) >= 0;
    if (w->rows >= 0) ok = H5Dclose(w->rows) >= 0 && ok;
    w->latents = w->rows = -1;
    if (!ok && !e->code) hdf_err(e, RC_IO, w->temporary, "cannot write the last rows");
    return hdf_close(&w->h, e) && ok;
}

static void sync_folder(const char *path, struct err *e)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, slash > path ? (size_t)(slash - path) : 1) : strdup(".");
    CHECK(folder, "out of memory");
    io_fsync_path(folder, e);
    free(folder);
}

bool dataset_finish(struct dataset_writer *w, struct err *e)
{
    bool ok = add_rows(w, "", e); /* the empty caption comes last */
    pthread_mutex_lock(&hdf_lock);
    hdf_quiet();
    ok = ok && put_meta(w, e) && put_tables(w, e);
    ok = close_file(w, e) && ok;
    pthread_mutex_unlock(&hdf_lock);
    if (ok) io_fsync_path(w->temporary, e);
    if (ok && !e->code) io_rename(w->temporary, w->path, e);
    if (!ok || e->code) {
        dataset_abandon(w);
        return false;
    }
    sync_folder(w->path, e);
    release(w);
    return e->code == 0;
}

void dataset_abandon(struct dataset_writer *w)
{
    struct err ignored = {0}; /* the failure that led here is the one to report */
    pthread_mutex_lock(&hdf_lock);
    hdf_quiet();
    close_file(w, &ignored);
    pthread_mutex_unlock(&hdf_lock);
    io_unlink(w->temporary, &ignored);
    release(w);
}

bool dataset_is_current(const char *path, uint64_t input_hash)
{
    struct err ignored = {0}; /* whatever is wrong with it, it will be written anew */
    struct dataset *d = dataset_open(path, 0, &ignored);
    if (!d) return false;
    dataset_close(d);
    char text[32], want[32];
    snprintf(want, sizeof want, "%016" PRIx64, input_hash);
    pthread_mutex_lock(&hdf_lock);
    struct hdf h;
    const bool same = hdf_open(&h, path, &ignored) &&
                      hdf_get_text(&h, "/meta", "input_hash", text, sizeof text, &ignored) &&
                      strcmp(text, want) == 0;
    hdf_close(&h, &ignored);
    pthread_mutex_unlock(&hdf_lock);
    return same;
}
