#include "data/build.h"

#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/io.h"
#include "core/lock.h"
#include "core/log.h"
#include "core/rng.h"
#include "data/codec.h"
#include "data/dataset_same.h"
#include "data/dataset_write.h"
#include "data/meta.h"

enum { SHA_TEXT = 65, SHOWN_REJECTS = 40 };
struct build {
    const struct data_build *cfg;
    struct clip_list list;
    char (*sha)[SHA_TEXT]; /* of each clip's file; empty: it cannot be read */
    struct dataset_writer *out;
    const struct video_codec *codec;
    const struct text_codec *text;
    int64_t captions; /* different ones that are in the data set */
    struct build_report report;
    double t0;
    int64_t *rejected;   /* list of clip numbers, for the report, with */
    char (*detail)[256]; /* the reason and */
    enum rule *rule;
    int64_t num_rejected;
};

/* ---- hashes -----------------------------------------------------------------------------------*/
static void file_sha256(const char *path, char out[SHA_TEXT])
{
    out[0] = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0) return;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        const size_t n = (size_t)st.st_size;
        void *p = n ? mmap(NULL, n, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
        if (p != MAP_FAILED) {
            uint8_t sum[32];
            io_sha256(sum, p, n);
            for (int i = 0; i < 32; i++) snprintf(out + 2 * i, 3, "%02x", sum[i]);
            if (p) munmap(p, n);
        }
    }
    close(fd);
}

static void print_clip(FILE *f, const struct clip_record *c, const char *sha)
{
    fprintf(f, "%s|%s|%d%d%d%d%d|%lld %lld %.17g %lld %lld %lld %.17g|%lld %lld %lld %lld|",
            c->path, sha, c->has_size, c->has_fps, c->has_frames, c->has_cut, c->has_crop,
            (long long)c->height, (long long)c->width, c->fps, (long long)c->num_frames,
            (long long)c->cut[0], (long long)c->cut[1], c->motion, (long long)c->crop.x0,
            (long long)c->crop.x1, (long long)c->crop.y0, (long long)c->crop.y1);
    for (int64_t k = 0; k < c->num_cap; k++) fprintf(f, "%s|", c->cap[k]);
    fputc('\n', f);
}

/* Of everything that decides what the file will hold: settings, records and the bytes of clips. */
static uint64_t input_hash(const struct build *b)
{
    const struct data_build *g = b->cfg;
    const struct filter_opts *o = &g->filter;
    char *all = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&all, &n);
    CHECK(f, "out of memory");
    fprintf(
        f,
        "%d %s %s %lld %lld %lld %.17g %lld %.17g %.17g %.17g %.17g %.17g %.17g %lld %lld %lld\n",
        DATASET_VERSION, b->codec->revision, b->text->revision, (long long)o->sample_height,
        (long long)o->sample_width, (long long)o->sample_num_frames, o->train_fps,
        (long long)o->sample_stride, o->min_hxw, o->too_long_factor, o->max_h_div_w_ratio,
        o->min_h_div_w_ratio, o->min_motion_value, o->max_motion_value, (long long)g->window_stride,
        (long long)g->text_dim, (long long)g->text_len);
    for (int64_t i = 0; i < b->list.n; i++) print_clip(f, &b->list.clip[i], b->sha[i]);
    CHECK(fclose(f) == 0, "out of memory");
    const uint64_t h = rng_hash(all);
    free(all);
    return h;
}

/* ---- progress and report ----------------------------------------------------------------------*/
static void progress(const struct build *b, const char *what, int64_t done)
{
    const int64_t n = b->list.n;
    const double s = log_seconds() - b->t0, left = done ? s / (double)done * (double)(n - done) : 0;
    log_progress("%s: clip %lld of %lld, %lld samples, %lld clips left out, %.0f s%s%.0f s%s", what,
                 (long long)done, (long long)n, (long long)b->report.samples,
                 (long long)b->num_rejected, s, done ? ", about " : ", ", left,
                 done ? " left" : " done");
}

static void log_report(const struct build *b)
{
    const struct build_report *r = &b->report;
    log_info("filter: %lld clips, %lld samples from %lld accepted clips", (long long)r->clips,
             (long long)r->samples, (long long)r->count[RULE_ACCEPTED]);
    for (int k = RULE_ACCEPTED + 1; k < RULE_COUNT; k++) {
        if (r->count[k])
            log_info("  %-16s %8lld%s", rule_name((enum rule)k), (long long)r->count[k],
                     rule_is_failure((enum rule)k) ? "  (broken)" : "");
    }
    for (int64_t i = 0; i < b->num_rejected && i < SHOWN_REJECTS; i++) {
        log_info("  %s: %s: %s", b->list.clip[b->rejected[i]].path, rule_name(b->rule[i]),
                 b->detail[i]);
    }
    if (b->num_rejected > SHOWN_REJECTS)
        log_info("  ... and %lld more, all in /rejected of the data set",
                 (long long)(b->num_rejected - SHOWN_REJECTS));
    if (b->list.empty_captions)
        log_info("  %lld empty captions were left out", (long long)b->list.empty_captions);
    if (r->cut)
        log_info("  %lld of %lld different captions are longer than text_max_length %lld and are "
                 "cut",
                 (long long)r->cut, (long long)b->captions, (long long)b->cfg->text_len);
}

static int64_t failures(const struct build *b)
{
    int64_t n = 0;
    for (int k = 0; k < RULE_COUNT; k++) {
        if (rule_is_failure((enum rule)k)) n += b->report.count[k];
    }
    return n;
}

static bool reject(struct build *b, int64_t i, enum rule r, const char *detail, struct err *e)
{
    const int64_t at = b->num_rejected++;
    b->rejected[at] = i;
    b->rule[at] = r;
    snprintf(b->detail[at], sizeof b->detail[at], "%s", detail);
    b->report.count[r]++;
    dataset_add_rejected(b->out, b->list.clip[i].path, rule_name(r), detail);
    const double most = b->cfg->max_failure_rate * (double)b->list.n;
    if (!rule_is_failure(r) || (double)failures(b) <= most) return true;
    err_set(e, RC_DATA,
            "%lld of %lld clips are broken, more than max_failure_rate %g; the last: %s: %s",
            (long long)failures(b), (long long)b->list.n, b->cfg->max_failure_rate,
            b->list.clip[i].path, detail);
    return false;
}

/* ---- one clip ---------------------------------------------------------------------------------*/
static int64_t *add_captions(struct build *b, const struct clip_record *c, struct err *e)
{
    int64_t *number = calloc((size_t)c->num_cap, sizeof *number);
    CHECK(number, "out of memory");
    for (int64_t k = 0; k < c->num_cap && !e->code; k++) {
        number[k] = dataset_add_caption(b->out, c->cap[k], e);
        if (number[k] < b->captions) continue;
        b->captions = number[k] + 1;
        b->report.cut += b->text->count(c->cap[k]) > b->cfg->text_len;
    }
    return number;
}

/* Encodes and appends every window of the decoded frames rgb [3, n, H, W]. */
static bool add_windows(struct build *b, int64_t i, const struct clip_plan *p, const uint8_t *rgb,
                        int64_t n, int64_t stride, struct err *e)
{
    const struct filter_opts *o = &b->cfg->filter;
    const int64_t f = o->sample_num_frames, h = o->sample_height, w = o->sample_width;
    const struct clip_record *c = &b->list.clip[i];
    int64_t *caption = add_captions(b, c, e), shape[4];
    CHECK(b->codec->shape(f, h, w, shape, e), "shape was checked at the start");
    uint8_t *window = malloc((size_t)(3 * f * h * w));
    float *z = malloc((size_t)(shape[0] * shape[1] * shape[2] * shape[3]) * sizeof *z);
    CHECK(window && z, "out of memory");
    const int64_t clip =
        dataset_add_clip(b->out, c->path, b->sha[i], p->count, p->start, p->start + p->frames);
    for (int64_t k = 0; k + f <= n && !e->code; k += stride) {
        for (int64_t colour = 0; colour < 3; colour++) {
            memcpy(window + colour * f * h * w, rgb + (colour * n + k) * h * w,
                   (size_t)(f * h * w));
        }
        b->codec->encode(z, window, f, h, w);
        if (dataset_add_sample(b->out, clip, k, filter_frame(p, k), filter_frame(p, k + f - 1),
                               caption, c->num_cap, z, e))
            b->report.samples++;
    }
    free(caption);
    free(window);
    free(z);
    return e->code == 0;
}

/* False: the whole job must stop (e). A broken clip is no reason. */
static bool do_clip(struct build *b, int64_t i, struct err *e)
{
    const struct clip_record *c = &b->list.clip[i];
    const struct filter_opts *o = &b->cfg->filter;
    struct video_info found;
    struct clip_plan p;
    struct err why = {0};
    char detail[256];
    enum rule r = filter_record(c, detail);
    if (r != RULE_ACCEPTED) return reject(b, i, r, detail, e);
    if (!video_probe(c->file, &found, &why)) return reject(b, i, RULE_UNREADABLE, why.msg, e);
    r = filter_clip(c, &found, o, &p, detail);
    if (r != RULE_ACCEPTED) return reject(b, i, r, detail, e);

    /* the frames up to the end of the last window */
    const int64_t f = o->sample_num_frames;
    const int64_t stride = b->cfg->window_stride > 0 ? b->cfg->window_stride : p.count;
    const int64_t n = f + (p.count - f) / stride * stride;
    int64_t *index = malloc((size_t)n * sizeof *index);
    uint8_t *rgb = malloc((size_t)(3 * n * o->sample_height * o->sample_width));
    CHECK(index && rgb, "out of memory");
    for (int64_t k = 0; k < n; k++) index[k] = filter_frame(&p, k);
    bool ok;
    if (video_read(c->file, index, n, p.crop, o->sample_height, o->sample_width, rgb, &why)) {
        ok = add_windows(b, i, &p, rgb, n, stride, e);
        b->report.count[RULE_ACCEPTED]++;
    } else {
        ok = reject(b, i, RULE_DECODE_FAILED, why.msg, e);
    }
    free(index);
    free(rgb);
    return ok;
}

/* ---- the job ----------------------------------------------------------------------------------*/
static bool check_config(const struct data_build *g, struct build *b, struct err *e)
{
    const struct filter_opts *o = &g->filter;
    int64_t shape[4];
    if (!g->save_path || !(g->ann_txt_path || g->meta_path)) {
        err_set(e, RC_CONFIG, "data: save_path and one of ann_txt_path and meta_path must be set");
        return false;
    }
    b->codec = video_codec_find(g->codec, e);
    if (!b->codec) return false;
    b->text = text_codec_find(g->text_codec, e);
    return b->text &&
           b->codec->shape(o->sample_num_frames, o->sample_height, o->sample_width, shape, e);
}

static bool read_list(struct build *b, struct err *e)
{
    const struct data_build *g = b->cfg;
    const char *name = g->ann_txt_path ? g->ann_txt_path : g->meta_path;
    const bool ok =
        g->ann_txt_path ? meta_read_index(&b->list, name, e) : meta_read(&b->list, name, NULL, e);
    if (ok && b->list.n == 0) err_set(e, RC_DATA, "%s: no records", name);
    if (!ok || b->list.n == 0) return false;
    const size_t n = (size_t)b->list.n;
    b->report.clips = b->list.n;
    b->sha = calloc(n, sizeof *b->sha);
    b->rejected = calloc(n, sizeof *b->rejected);
    b->detail = calloc(n, sizeof *b->detail);
    b->rule = calloc(n, sizeof *b->rule);
    CHECK(b->sha && b->rejected && b->detail && b->rule, "out of memory");
    return true;
}

static bool interrupted(const struct build *b, struct err *e)
{
    if (!b->cfg->interrupted || !b->cfg->interrupted()) return false;
    err_set(e, RC_PREEMPTED, "%s: interrupted before it was complete; nothing was kept, run again",
            b->cfg->save_path);
    return true;
}

static bool make_folder(const char *path, struct err *e)
{
    const char *slash = strrchr(path, '/');
    if (!slash || slash == path) return true;
    char *folder = strndup(path, (size_t)(slash - path));
    CHECK(folder, "out of memory");
    io_mkdir(folder, e);
    free(folder);
    if (e->code == RC_NOINPUT) e->code = RC_CANTCREAT; /* it is an output */
    return e->code == 0;
}

static bool run_clips(struct build *b, struct err *e)
{
    double shown = b->t0 = log_seconds();
    for (int64_t i = 0; i < b->list.n; i++) {
        if (interrupted(b, e) || !do_clip(b, i, e)) return false;
        if (log_seconds() - shown < 1 && i + 1 < b->list.n) continue;
        shown = log_seconds();
        progress(b, "data", i + 1);
    }
    if (b->report.samples) return true;
    err_set(e, RC_DATA, "no samples: all %lld clips were left out", (long long)b->list.n);
    return false;
}

static struct dataset_spec spec_of(const struct data_build *g)
{
    const struct filter_opts *o = &g->filter;
    return (struct dataset_spec){.codec = g->codec,
                                 .text_codec = g->text_codec,
                                 .frames = o->sample_num_frames,
                                 .height = o->sample_height,
                                 .width = o->sample_width,
                                 .text_dim = g->text_dim,
                                 .text_len = g->text_len,
                                 .fps = o->train_fps,
                                 .sample_stride = o->sample_stride,
                                 .window_stride = g->window_stride};
}

static bool write_dataset(struct build *b, uint64_t hash, struct err *e)
{
    struct dataset_spec spec = spec_of(b->cfg);
    spec.input_hash = hash;
    b->out = dataset_create(b->cfg->save_path, &spec, e);
    if (!b->out) return false;
    const bool ok = run_clips(b, e);
    log_report(b);
    if (ok) return dataset_finish(b->out, e);
    dataset_abandon(b->out);
    return false;
}

/* ---- what is there already --------------------------------------------------------------------*/
/* It took hours, perhaps, and other runs may be using it. */
static bool may_replace(const struct build *b, const char *why, struct err *e)
{
    const char *path = b->cfg->save_path;
    if (b->cfg->overwrite)
        log_info("%s: is replaced (overwrite: true); %s", path, why);
    else
        err_set(e, RC_CONFIG,
                "save_path: %s is there already; %s\nname another save_path, remove the file, or "
                "set overwrite: true",
                path, why);
    return b->cfg->overwrite;
}

/* Settings that the file tells, before the clips are read, which takes long. False: it stays;
 * *replace: it is known to be other. */
static bool check_existing(const struct build *b, bool *replace, struct err *e)
{
    const struct dataset_spec asked = spec_of(b->cfg);
    struct err why = {0};
    char *text = NULL, *said;
    size_t size;
    struct dataset *d = dataset_open(b->cfg->save_path, 0, &why);
    FILE *f = open_memstream(&text, &size);
    CHECK(f, "out of memory");
    *replace = !d || dataset_differs(f, d, &asked, "") > 0;
    CHECK(fclose(f) == 0, "out of memory");
    if (d)
        said = io_path("its %lld samples were made with other settings:%s", (long long)d->n, text);
    else
        said = io_path("it is no data set that can be read: %s", why.msg);
    const bool ok = !*replace || may_replace(b, said, e);
    dataset_close(d);
    free(said);
    free(text);
    return ok;
}

/* Those of processes that were killed: whoever holds the lock is the only one that writes. */
static void remove_leftovers(const char *path)
{
    char *pattern = io_path("%s.tmp.*", path);
    glob_t found;
    if (glob(pattern, 0, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc; i++) {
            struct err e = {0};
            io_unlink(found.gl_pathv[i], &e);
            log_warn("%s: left over from an interrupted job%s%s", found.gl_pathv[i],
                     e.code ? ", cannot remove: " : ", removed", e.code ? e.msg : "");
        }
        globfree(&found);
    }
    free(pattern);
}

/* Waits for another process that builds the same data set. */
static bool take_lock(const struct build *b, struct lock *lock, struct err *e)
{
    const char *path = b->cfg->save_path;
    if (!make_folder(path, e)) return false;
    char *name = io_path("%s.lock", path), holder[32];
    bool ok, said = false;
    while (!(ok = lock_take(lock, name, holder, e)) && !e->code && !interrupted(b, e)) {
        if (!said) log_info("%s: another process (%s) builds it; waiting", path, holder);
        said = true;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    free(name);
    if (ok) remove_leftovers(path);
    return ok;
}

static bool hash_clips(struct build *b, struct err *e)
{
    double shown = b->t0 = log_seconds();
    for (int64_t i = 0; i < b->list.n; i++) {
        if (interrupted(b, e)) return false;
        file_sha256(b->list.clip[i].file, b->sha[i]);
        if (log_seconds() - shown < 1) continue;
        shown = log_seconds();
        progress(b, "checksums", i + 1);
    }
    return true;
}

static bool build_locked(struct build *b, struct err *e)
{
    const char *path = b->cfg->save_path;
    if (b->cfg->keep_existing && io_exists(path)) {
        log_info("%s: it is there by now; used as it is", path);
        b->report.kept = true;
        return true;
    }
    const bool there = io_exists(path);
    bool replace = false;
    if ((there && !check_existing(b, &replace, e)) || !hash_clips(b, e)) return false;
    const uint64_t hash = input_hash(b);
    if (there && !replace && dataset_is_current(path, hash)) {
        log_info("%s: up to date, made from the same clips and settings; left alone", path);
        b->report.kept = true;
        return true;
    }
    if (there && !replace &&
        !may_replace(b, "it was made from other clips or with other filter limits", e))
        return false;
    return write_dataset(b, hash, e);
}

static bool build(struct build *b, struct err *e)
{
    struct lock lock;
    if (!check_config(b->cfg, b, e) || !read_list(b, e) || !take_lock(b, &lock, e)) return false;
    const bool ok = build_locked(b, e);
    lock_release(&lock);
    return ok;
}

bool build_dataset(const struct data_build *cfg, struct build_report *report, struct err *e)
{
    struct build b = {.cfg = cfg};
    const bool ok = build(&b, e);
    if (report) *report = b.report;
    meta_free(&b.list);
    free(b.sha);
    free(b.rejected);
    free(b.detail);
    free(b.rule);
    return ok;
}
