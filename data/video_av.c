/* Reading video files through libav: probe and frame-exact decoding. Frames are counted from the
 * start of the stream, in the order of presentation, without seeking: slower than a seek, and right
 * for every file. */
#include "data/video.h"

#include <errno.h>
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <libavutil/imgutils.h>
#include <libswscale/swscale.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/io.h"
#include "core/log.h"
#include "data/video_av.h"

enum { MAX_SIDE = 16384 };

/* ---- errors and time --------------------------------------------------------------------------*/
static _Thread_local char last_line[256];
static _Thread_local double time_limit = 600;

double video_time_limit(double seconds)
{
    const double old = time_limit;
    time_limit = seconds;
    return old;
}

static void keep_line(void *context, int level, const char *fmt, va_list ap)
{
    (void)context;
    if (level > AV_LOG_ERROR) return;
    char line[sizeof last_line];
    vsnprintf(line, sizeof line, fmt, ap);
    line[strcspn(line, "\r\n")] = 0;
    if (line[0]) memcpy(last_line, line, sizeof line);
}

static void install_log(void) { av_log_set_callback(keep_line); }

void av_quiet(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_log);
    last_line[0] = 0;
}

void av_err(struct err *e, int code, int averror, const char *path, const char *doing)
{
    char text[AV_ERROR_MAX_STRING_SIZE] = "";
    if (averror == AVERROR_EXIT)
        snprintf(text, sizeof text, "took longer than %g s", time_limit);
    else
        av_strerror(averror, text, sizeof text);
    if (averror == AVERROR(ENOSPC) || averror == AVERROR(EIO)) code = RC_IO;
    err_set(e, code, "%s: %s: %s%s%s%s", path, doing, text, last_line[0] ? " (" : "", last_line,
            last_line[0] ? ")" : "");
}

double av_deadline(void) { return log_seconds() + time_limit; }
int av_overdue(void *deadline) { return log_seconds() >= *(double *)deadline; }

/* ---- an open video ----------------------------------------------------------------------------*/
struct reader {
    const char *path;
    AVFormatContext *format;
    AVCodecContext *codec;
    AVPacket *packet;
    AVFrame *frame;
    AVStream *stream;
    double deadline;
    bool drained;
};

static void reader_close(struct reader *r)
{
    av_frame_free(&r->frame);
    av_packet_free(&r->packet);
    avcodec_free_context(&r->codec);
    avformat_close_input(&r->format);
}

static bool open_format(struct reader *r, struct err *e)
{
    struct stat st;
    if (stat(r->path, &st) != 0) {
        err_set(e, errno == ENOENT ? RC_NOINPUT : RC_IO, "%s: %s", r->path, strerror(errno));
        return false;
    }
    if (!S_ISREG(st.st_mode)) {
        err_set(e, RC_DATA, "%s: not a regular file", r->path);
        return false;
    }
    r->format = avformat_alloc_context();
    CHECK(r->format, "out of memory");
    r->format->interrupt_callback = (AVIOInterruptCB){av_overdue, &r->deadline};
    /* no playlists and no network: a clip is one local file of a known container */
    AVDictionary *o = NULL;
    av_dict_set(&o, "protocol_whitelist", "file", 0);
    av_dict_set(&o, "format_whitelist", "mov,matroska,avi,flv,asf,mpeg,mpegts,mpegvideo,ogg", 0);
    char *url = io_path("file:%s", r->path);
    int rc = avformat_open_input(&r->format, url, NULL, &o);
    free(url);
    av_dict_free(&o);
    if (rc >= 0) rc = avformat_find_stream_info(r->format, NULL);
    if (rc < 0) av_err(e, RC_DATA, rc, r->path, "not a video file that libav can read");
    return rc >= 0;
}

static bool check_stream(struct reader *r, struct err *e)
{
    const AVCodecParameters *p = r->stream->codecpar;
    if (p->width < 1 || p->height < 1 || p->width > MAX_SIDE || p->height > MAX_SIDE) {
        err_set(e, RC_DATA, "%s: frame size %d x %d", r->path, p->height, p->width);
        return false;
    }
    const uint8_t *matrix = av_stream_get_side_data(r->stream, AV_PKT_DATA_DISPLAYMATRIX, NULL);
    const double angle = matrix ? av_display_rotation_get((const int32_t *)matrix) : 0;
    if (isfinite(angle) && fabs(angle) > 0.5) {
        err_set(e, RC_DATA,
                "%s: the container asks for a rotation by %g degrees, which is not supported: "
                "re-encode the clip upright",
                r->path, angle);
        return false;
    }
    return true;
}

static bool reader_open(struct reader *r, const char *path, struct err *e)
{
    *r = (struct reader){.path = path, .deadline = av_deadline()};
    av_quiet();
    if (!open_format(r, e)) return false;
    const AVCodec *decoder = NULL;
    const int s = av_find_best_stream(r->format, AVMEDIA_TYPE_VIDEO, -1, -1, &decoder, 0);
    if (s < 0) {
        av_err(e, RC_DATA, s, path, "no video stream that libav can decode");
        return false;
    }
    r->stream = r->format->streams[s];
    if (!check_stream(r, e)) return false;
    r->codec = avcodec_alloc_context3(decoder);
    r->packet = av_packet_alloc();
    r->frame = av_frame_alloc();
    CHECK(r->codec && r->packet && r->frame, "out of memory");
    int rc = avcodec_parameters_to_context(r->codec, r->stream->codecpar);
    r->codec->thread_count = 1;
    if (rc >= 0) rc = avcodec_open2(r->codec, decoder, NULL);
    if (rc < 0) av_err(e, RC_DATA, rc, path, "cannot open the decoder");
    return rc >= 0;
}

/* Feeds one packet, or the end of the stream, to the decoder. */
static bool feed(struct reader *r, int64_t frame, struct err *e)
{
    char doing[96];
    snprintf(doing, sizeof doing, "reading frame %lld", (long long)frame);
    for (;;) {
        if (av_overdue(&r->deadline)) {
            av_err(e, RC_DATA, AVERROR_EXIT, r->path, doing);
            return false;
        }
        int rc = av_read_frame(r->format, r->packet);
        if (rc == AVERROR_EOF) {
            r->drained = true;
            rc = avcodec_send_packet(r->codec, NULL);
        } else if (rc >= 0) {
            const bool ours = r->packet->stream_index == r->stream->index;
            const bool cut = ours && (r->packet->flags & AV_PKT_FLAG_CORRUPT);
            if (cut) {
                err_set(e, RC_DATA, "%s: the file is damaged or cut off at frame %lld", r->path,
                        (long long)frame);
                av_packet_unref(r->packet);
                return false;
            }
            if (ours) rc = avcodec_send_packet(r->codec, r->packet);
            av_packet_unref(r->packet);
            if (!ours) continue;
        }
        if (rc < 0) av_err(e, RC_DATA, rc, r->path, doing);
        return rc >= 0;
    }
}

/* The next frame in r->frame. Returns 1, 0 at the end of the stream, -1 on error. `frame` is its
 * number, for messages. */
static int reader_next(struct reader *r, int64_t frame, struct err *e)
{
    for (;;) {
        const int rc = avcodec_receive_frame(r->codec, r->frame);
        if (rc == 0) {
            if (r->frame->decode_error_flags || (r->frame->flags & AV_FRAME_FLAG_CORRUPT)) {
                err_set(e, RC_DATA, "%s: frame %lld is damaged%s%s", r->path, (long long)frame,
                        last_line[0] ? ": " : "", last_line);
                return -1;
            }
            return 1;
        }
        if (rc == AVERROR_EOF) return 0;
        if (rc != AVERROR(EAGAIN)) {
            av_err(e, RC_DATA, rc, r->path, "decoding");
            return -1;
        }
        if (!feed(r, frame, e)) return -1;
    }
}

/* ---- probe ------------------------------------------------------------------------------------*/
/* The container's count, or 0 where it has none or contradicts its own duration and rate. Of the
 * containers only mp4 counts frames; AVI counts packets or fields. */
static int64_t declared_frames(const struct reader *r, double fps)
{
    const AVStream *s = r->stream;
    if (!strstr(r->format->iformat->name, "mp4")) return 0;
    if (s->nb_frames <= 0 || s->nb_frames > INT32_MAX) return 0;
    if (s->duration <= 0) return s->nb_frames;
    const double by_time = (double)s->duration * av_q2d(s->time_base) * fps;
    return fabs(by_time - (double)s->nb_frames) <= 1.5 ? s->nb_frames : 0;
}

bool video_probe(const char *path, struct video_info *info, struct err *e)
{
    struct reader r;
    bool ok = reader_open(&r, path, e);
    if (ok) {
        const double fps = av_q2d(r.stream->avg_frame_rate);
        *info = (struct video_info){.width = r.stream->codecpar->width,
                                    .height = r.stream->codecpar->height,
                                    .fps = isfinite(fps) && fps > 0 ? fps : 30};
        info->frames = declared_frames(&r, info->fps);
        int more = 1;
        if (info->frames == 0) {
            while ((more = reader_next(&r, info->frames, e)) > 0) info->frames++;
        }
        ok = more >= 0;
        if (ok && info->frames == 0) {
            err_set(e, RC_DATA, "%s: no frames", path);
            ok = false;
        }
    }
    reader_close(&r);
    return ok;
}

/* ---- frames -----------------------------------------------------------------------------------*/
/* RGB conversion, crop and resize of frame after frame. */
struct shaper {
    struct SwsContext *sws;
    int64_t h, w; /* of the source */
    struct video_crop crop;
    int64_t oh, ow, top, left;
    uint8_t *rgb, *plane, *cover;
};

static void shaper_free(struct shaper *s)
{
    sws_freeContext(s->sws);
    av_free(s->rgb);
    av_free(s->plane);
    av_free(s->cover);
}

static bool shaper_init(struct shaper *s, const struct reader *r, struct video_crop crop,
                        int64_t height, int64_t width, struct err *e)
{
    const AVFrame *f = r->frame;
    *s = (struct shaper){.h = f->height, .w = f->width, .crop = crop};
    if (crop.x1 == 0) s->crop = (struct video_crop){0, s->w, 0, s->h};
    const struct video_crop c = s->crop;
    if (c.x0 < 0 || c.x0 >= c.x1 || c.x1 > s->w || c.y0 < 0 || c.y0 >= c.y1 || c.y1 > s->h) {
        err_set(e, RC_DATA, "%s: crop [%lld, %lld, %lld, %lld] does not fit into %lld x %lld",
                r->path, (long long)c.x0, (long long)c.x1, (long long)c.y0, (long long)c.y1,
                (long long)s->h, (long long)s->w);
        return false;
    }
    resize_cover(c.y1 - c.y0, c.x1 - c.x0, height, width, &s->oh, &s->ow, &s->top, &s->left);
    const int flags = SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_BITEXACT;
    s->sws = sws_getContext(f->width, f->height, (enum AVPixelFormat)f->format, f->width, f->height,
                            AV_PIX_FMT_RGB24, flags, NULL, NULL, NULL);
    if (!s->sws) {
        err_set(e, RC_DATA, "%s: pixel format %d cannot be converted to RGB", r->path, f->format);
        return false;
    }
    const int *matrix = sws_getCoefficients(
        f->colorspace == AVCOL_SPC_UNSPECIFIED ? SWS_CS_DEFAULT : (int)f->colorspace);
    sws_setColorspaceDetails(s->sws, matrix, f->color_range == AVCOL_RANGE_JPEG, matrix, 1, 0,
                             1 << 16, 1 << 16);
    s->rgb = av_malloc((size_t)(3 * s->h * s->w + 64));
    s->plane = av_malloc((size_t)(s->h * s->w));
    s->cover = av_malloc((size_t)(s->oh * s->ow));
    CHECK(s->rgb && s->plane && s->cover, "out of memory");
    return true;
}

/* One frame to out: 3 planes, `stride` bytes apart. */
static void shape(struct shaper *s, const AVFrame *f, int64_t height, int64_t width, uint8_t *out,
                  int64_t stride)
{
    uint8_t *const dst[4] = {s->rgb};
    const int step[4] = {(int)(3 * s->w)};
    sws_scale(s->sws, (const uint8_t *const *)f->data, f->linesize, 0, f->height, dst, step);
    const int64_t ch = s->crop.y1 - s->crop.y0, cw = s->crop.x1 - s->crop.x0;
    for (int c = 0; c < 3; c++) {
        for (int64_t y = 0; y < ch; y++) {
            const uint8_t *in = s->rgb + 3 * ((s->crop.y0 + y) * s->w + s->crop.x0) + c;
            for (int64_t x = 0; x < cw; x++) s->plane[y * cw + x] = in[3 * x];
        }
        resize_plane(s->cover, s->oh, s->ow, s->plane, ch, cw);
        for (int64_t y = 0; y < height; y++) {
            memcpy(out + c * stride + y * width, s->cover + (s->top + y) * s->ow + s->left,
                   (size_t)width);
        }
    }
}

static bool same_picture(const struct shaper *s, const AVFrame *f, int format)
{
    return f->width == s->w && f->height == s->h && f->format == format;
}

static bool read_frames(struct reader *r, const int64_t *index, int64_t n, struct video_crop crop,
                        int64_t height, int64_t width, uint8_t *out, struct err *e)
{
    struct shaper s = {0};
    int format = AV_PIX_FMT_NONE;
    bool ok = true;
    int64_t done = 0;
    for (int64_t at = 0; ok && done < n; at++) {
        const int more = reader_next(r, at, e);
        if (more == 0)
            err_set(e, RC_DATA, "%s: frame %lld wanted, but the stream ends after %lld frames",
                    r->path, (long long)index[done], (long long)at);
        ok = more > 0;
        if (!ok || index[done] != at) continue;
        if (!s.sws) {
            ok = shaper_init(&s, r, crop, height, width, e);
            format = r->frame->format;
        } else if (!same_picture(&s, r->frame, format)) {
            err_set(e, RC_DATA, "%s: the frame size changes at frame %lld", r->path, (long long)at);
            ok = false;
        }
        /* a frame may be wanted more than once */
        for (; ok && done < n && index[done] == at; done++) {
            shape(&s, r->frame, height, width, out + done * height * width, n * height * width);
        }
    }
    shaper_free(&s);
    return ok;
}

bool video_read(const char *path, const int64_t *index, int64_t n, struct video_crop crop,
                int64_t height, int64_t width, uint8_t *out, struct err *e)
{
    for (int64_t i = 0; i < n; i++) {
        CHECK(index[i] >= (i ? index[i - 1] : 0), "frame list must be ascending");
    }
    struct reader r;
    const bool ok =
        reader_open(&r, path, e) && read_frames(&r, index, n, crop, height, width, out, e);
    reader_close(&r);
    return ok;
}
