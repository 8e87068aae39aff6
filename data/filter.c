#include "data/filter.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

enum { DETAIL = 256 };

const char *rule_name(enum rule r)
{
    static const char *const name[RULE_COUNT] = {
        "accepted",        "no_caption", "no_resolution", "unreadable",  "contradiction",
        "aspect_ratio",    "too_small",  "too_long",      "fps_too_low", "motion_too_low",
        "motion_too_high", "too_short",  "decode_failed"};
    return name[r];
}

bool rule_is_failure(enum rule r)
{
    return r == RULE_UNREADABLE || r == RULE_CONTRADICTION || r == RULE_DECODE_FAILED;
}

static enum rule reject(enum rule r, char *detail, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static enum rule reject(enum rule r, char *detail, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(detail, DETAIL, fmt, ap);
    va_end(ap);
    return r;
}

enum rule filter_record(const struct clip_record *c, char detail[256])
{
    detail[0] = 0;
    if (c->num_cap == 0) return reject(RULE_NO_CAPTION, detail, "no caption, or an empty one");
    if (c->has_size && (c->height <= 0 || c->width <= 0))
        return reject(RULE_NO_RESOLUTION, detail, "resolution %lld x %lld", (long long)c->height,
                      (long long)c->width);
    return RULE_ACCEPTED;
}

/* The container is right; a record that says otherwise describes another file. */
static enum rule check_container(const struct clip_record *c, const struct video_info *v,
                                 char *detail)
{
    const long long has = (long long)v->frames, said = (long long)c->num_frames;
    if (c->has_size && (c->height != v->height || c->width != v->width))
        return reject(RULE_CONTRADICTION, detail,
                      "resolution %lld x %lld in the record, %lld x %lld in the file",
                      (long long)c->height, (long long)c->width, (long long)v->height,
                      (long long)v->width);
    if (c->has_fps && !(fabs(c->fps - v->fps) < 0.1))
        return reject(RULE_CONTRADICTION, detail, "fps %g in the record, %g in the file", c->fps,
                      v->fps);
    if (c->has_cut && (c->cut[0] < 0 || c->cut[0] >= c->cut[1] || c->cut[1] > v->frames))
        return reject(RULE_CONTRADICTION, detail, "cut [%lld, %lld) of a file of %lld frames",
                      (long long)c->cut[0], (long long)c->cut[1], has);
    const long long cut = c->has_cut ? (long long)(c->cut[1] - c->cut[0]) : has;
    if (c->has_frames && said != has && said != cut) {
        if (c->has_cut)
            return reject(RULE_CONTRADICTION, detail,
                          "num_frames %lld in the record, %lld in the file, %lld in the cut", said,
                          has, cut);
        return reject(RULE_CONTRADICTION, detail, "num_frames %lld in the record, %lld in the file",
                      said, has);
    }
    const struct video_crop r = c->crop;
    if (c->has_crop && (r.x0 < 0 || r.x0 >= r.x1 || r.x1 > v->width || r.y0 < 0 || r.y0 >= r.y1 ||
                        r.y1 > v->height))
        return reject(RULE_CONTRADICTION, detail,
                      "crop x [%lld, %lld), y [%lld, %lld) of a picture %lld x %lld",
                      (long long)r.x0, (long long)r.x1, (long long)r.y0, (long long)r.y1,
                      (long long)v->height, (long long)v->width);
    return RULE_ACCEPTED;
}

static enum rule check_picture(const struct video_info *v, const struct filter_opts *o,
                               char *detail)
{
    const double q = (double)v->height / (double)v->width;
    const double want = (double)o->sample_height / (double)o->sample_width;
    if (!(o->min_h_div_w_ratio <= q && q <= o->max_h_div_w_ratio))
        return reject(RULE_ASPECT_RATIO, detail, "height / width = %.4g, not in [%g, %g]", q,
                      o->min_h_div_w_ratio, o->max_h_div_w_ratio);
    const double least = ceil(o->min_hxw * fmax(q / want, want / q));
    if ((double)(v->height * v->width) < least)
        return reject(RULE_TOO_SMALL, detail, "%lld x %lld = %lld pixels, at least %.0f wanted",
                      (long long)v->height, (long long)v->width, (long long)(v->height * v->width),
                      least);
    return RULE_ACCEPTED;
}

static void make_plan(struct clip_plan *p, const struct clip_record *c, const struct video_info *v,
                      const struct filter_opts *o)
{
    *p = (struct clip_plan){.fps = v->fps, .frames = v->frames};
    if (c->has_cut) {
        p->start = c->cut[0];
        p->frames = c->cut[1] - c->cut[0];
    }
    if (c->has_crop) p->crop = c->crop;
    if (o->train_fps <= 0)
        p->step = o->sample_stride > 0 ? (double)o->sample_stride : 1;
    else
        p->step = fabs(v->fps - o->train_fps) < 0.1 ? 1 : v->fps / o->train_fps;
    p->count = (int64_t)ceil((double)p->frames / p->step);
}

static enum rule check_time(const struct clip_record *c, const struct clip_plan *p,
                            const struct filter_opts *o, char *detail)
{
    const double ratio = o->train_fps > 0 ? p->fps / o->train_fps : p->step;
    const double most = o->too_long_factor * (double)o->sample_num_frames * ratio;
    if ((double)p->frames > most)
        return reject(RULE_TOO_LONG, detail, "%lld frames, at most %g wanted", (long long)p->frames,
                      most);
    if (p->step < 1)
        return reject(RULE_FPS_TOO_LOW, detail, "%g frames per second, %g wanted", p->fps,
                      o->train_fps);
    if (!(c->motion >= o->min_motion_value))
        return reject(RULE_MOTION_TOO_LOW, detail, "motion %g, at least %g wanted", c->motion,
                      o->min_motion_value);
    if (!(c->motion <= o->max_motion_value))
        return reject(RULE_MOTION_TOO_HIGH, detail, "motion %g, at most %g wanted", c->motion,
                      o->max_motion_value);
    if (p->count < o->sample_num_frames)
        return reject(RULE_TOO_SHORT, detail, "%lld frames (%lld at %g per second), %lld wanted",
                      (long long)p->count, (long long)p->frames, p->fps,
                      (long long)o->sample_num_frames);
    return RULE_ACCEPTED;
}

enum rule filter_clip(const struct clip_record *c, const struct video_info *found,
                      const struct filter_opts *o, struct clip_plan *plan, char detail[256])
{
    enum rule r = filter_record(c, detail);
    if (r == RULE_ACCEPTED) r = check_container(c, found, detail);
    if (r == RULE_ACCEPTED) r = check_picture(found, o, detail);
    if (r != RULE_ACCEPTED) return r;
    make_plan(plan, c, found, o);
    return check_time(c, plan, o, detail);
}

int64_t filter_frame(const struct clip_plan *p, int64_t k)
{
    return (int64_t)((double)p->start + (double)k * p->step);
}
