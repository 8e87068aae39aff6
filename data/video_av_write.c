/* Writing mp4 and png through libav. One encoder thread and libav's bit-exact mode: the same frames
 * give the same bytes. */
#include <errno.h>
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/log.h"
#include "data/video.h"
#include "data/video_av.h"

struct video_writer {
    char *path, *temporary;
    int64_t frames; /* written */
    AVFormatContext *format;
    AVCodecContext *codec;
    AVStream *stream;
    AVFrame *frame;
    AVPacket *packet;
    struct SwsContext *sws;
    uint8_t *rgb;
};

static pthread_once_t said = PTHREAD_ONCE_INIT;
static void say_x264(void) { log_info("video files are written with libx264"); }
static void say_mpeg4(void)
{
    log_info("video files are written as MPEG-4 part 2: libav comes without libx264");
}

static void writer_free(struct video_writer *w)
{
    if (w->format) avio_closep(&w->format->pb);
    avformat_free_context(w->format);
    avcodec_free_context(&w->codec);
    av_frame_free(&w->frame);
    av_packet_free(&w->packet);
    sws_freeContext(w->sws);
    free(w->rgb);
    free(w->temporary);
    free(w->path);
    free(w);
}

static int open_encoder(struct video_writer *w, int64_t height, int64_t width, AVRational rate)
{
    const AVCodec *encoder = avcodec_find_encoder_by_name("libx264");
    const bool x264 = encoder != NULL;
    if (!encoder) encoder = avcodec_find_encoder(AV_CODEC_ID_MPEG4);
    if (!encoder) return AVERROR_ENCODER_NOT_FOUND;
    pthread_once(&said, x264 ? say_x264 : say_mpeg4);
    AVCodecContext *c = w->codec = avcodec_alloc_context3(encoder);
    CHECK(c, "out of memory");
    c->width = (int)width;
    c->height = (int)height;
    c->framerate = rate;
    c->time_base = av_inv_q(rate);
    c->pix_fmt = AV_PIX_FMT_YUV420P;
    c->colorspace = AVCOL_SPC_BT709;
    c->color_primaries = AVCOL_PRI_BT709;
    c->color_trc = AVCOL_TRC_BT709;
    c->color_range = AVCOL_RANGE_MPEG;
    c->thread_count = 1;
    c->flags |= AV_CODEC_FLAG_BITEXACT;
    if (w->format->oformat->flags & AVFMT_GLOBALHEADER) c->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    if (x264) {
        av_opt_set(c->priv_data, "crf", "10", 0);
    } else { /* constant quantiser */
        c->flags |= AV_CODEC_FLAG_QSCALE;
        c->global_quality = FF_QP2LAMBDA * 2;
    }
    return avcodec_open2(c, encoder, NULL);
}

static int writer_open(struct video_writer *w, int64_t height, int64_t width, double fps,
                       const char *comment)
{
    int rc = avformat_alloc_output_context2(&w->format, NULL, "mp4", w->temporary);
    if (rc < 0) return rc;
    w->format->flags |= AVFMT_FLAG_BITEXACT;
    if (comment) av_dict_set(&w->format->metadata, "comment", comment, 0);
    const AVRational rate = av_d2q(fps, 100000);
    if ((rc = open_encoder(w, height, width, rate)) < 0) return rc;
    w->stream = avformat_new_stream(w->format, NULL);
    w->frame = av_frame_alloc();
    w->packet = av_packet_alloc();
    w->rgb = malloc((size_t)(3 * height * width + 64));
    CHECK(w->stream && w->frame && w->packet && w->rgb, "out of memory");
    w->stream->time_base = w->codec->time_base;
    w->stream->avg_frame_rate = rate;
    if ((rc = avcodec_parameters_from_context(w->stream->codecpar, w->codec)) < 0) return rc;
    w->frame->format = w->codec->pix_fmt;
    w->frame->width = w->codec->width;
    w->frame->height = w->codec->height;
    if ((rc = av_frame_get_buffer(w->frame, 0)) < 0) return rc;
    w->sws = sws_getContext((int)width, (int)height, AV_PIX_FMT_RGB24, (int)width, (int)height,
                            AV_PIX_FMT_YUV420P, SWS_BICUBIC | SWS_ACCURATE_RND | SWS_BITEXACT, NULL,
                            NULL, NULL);
    CHECK(w->sws, "no conversion from RGB");
    const int *matrix = sws_getCoefficients(SWS_CS_ITU709);
    sws_setColorspaceDetails(w->sws, matrix, 1, matrix, 0, 0, 1 << 16, 1 << 16);
    if ((rc = avio_open(&w->format->pb, w->temporary, AVIO_FLAG_WRITE)) < 0) return rc;
    AVDictionary *o = NULL;
    av_dict_set(&o, "movflags", "+faststart", 0);
    rc = avformat_write_header(w->format, &o);
    av_dict_free(&o);
    return rc;
}

/* Encodes a frame (NULL: the end) and writes the packets that come out. */
static int encode(struct video_writer *w, AVFrame *frame)
{
    int rc = avcodec_send_frame(w->codec, frame);
    while (rc >= 0) {
        rc = avcodec_receive_packet(w->codec, w->packet);
        if (rc == AVERROR(EAGAIN) || rc == AVERROR_EOF) return 0;
        if (rc < 0) break;
        av_packet_rescale_ts(w->packet, w->codec->time_base, w->stream->time_base);
        w->packet->stream_index = w->stream->index;
        w->packet->duration = av_rescale_q(1, w->codec->time_base, w->stream->time_base);
        rc = av_interleaved_write_frame(w->format, w->packet);
    }
    return rc;
}

static int write_frame(struct video_writer *w, const uint8_t *plane, int64_t stride, int64_t t)
{
    const int64_t pixels = (int64_t)w->codec->width * w->codec->height;
    for (int c = 0; c < 3; c++) {
        for (int64_t i = 0; i < pixels; i++) w->rgb[3 * i + c] = plane[c * stride + i];
    }
    const int rc = av_frame_make_writable(w->frame);
    if (rc < 0) return rc;
    const uint8_t *const src[4] = {w->rgb};
    const int step[4] = {3 * w->codec->width};
    sws_scale(w->sws, src, step, 0, w->codec->height, w->frame->data, w->frame->linesize);
    w->frame->pts = t;
    return encode(w, w->frame);
}

static int write_end(struct video_writer *w)
{
    int rc = encode(w, NULL);
    if (rc >= 0) rc = av_write_trailer(w->format);
    if (rc >= 0) {
        avio_flush(w->format->pb);
        rc = w->format->pb->error;
    }
    const int closed = avio_closep(&w->format->pb);
    return rc < 0 ? rc : closed;
}

static void abandon(struct video_writer *w)
{
    struct err ignored = {0}; /* the first error is the one to report */
    io_unlink(w->temporary, &ignored);
    writer_free(w);
}

struct video_writer *video_create(const char *path, int64_t height, int64_t width, double fps,
                                  const char *comment, struct err *e)
{
    if (height < 2 || width < 2 || height % 2 || width % 2 || !(fps > 0 && fps < 1000)) {
        err_set(e, RC_CONFIG,
                "%s: frames of %lld x %lld at %g per second: mp4 (yuv420p) needs even height and "
                "width and a positive rate",
                path, (long long)height, (long long)width, fps);
        return NULL;
    }
    av_quiet();
    struct video_writer *w = calloc(1, sizeof *w);
    CHECK(w, "out of memory");
    w->path = io_path("%s", path);
    w->temporary = io_path("%s.tmp", path);
    const int rc = writer_open(w, height, width, fps, comment);
    if (rc >= 0) return w;
    av_err(e, RC_CANTCREAT, rc, path, "cannot write the video");
    abandon(w);
    return NULL;
}

bool video_append(struct video_writer *w, const uint8_t *frames, int64_t n, struct err *e)
{
    const int64_t pixels = (int64_t)w->codec->width * w->codec->height;
    int rc = 0;
    for (int64_t t = 0; t < n && rc >= 0; t++)
        rc = write_frame(w, frames + t * pixels, n * pixels, w->frames++);
    if (rc < 0) av_err(e, RC_CANTCREAT, rc, w->path, "cannot write the video");
    return rc >= 0;
}

bool video_finish(struct video_writer *w, struct err *e)
{
    if (!e->code && w->frames == 0) err_set(e, RC_CONFIG, "%s: a video without frames", w->path);
    const int rc = e->code ? 0 : write_end(w);
    if (rc < 0) av_err(e, RC_CANTCREAT, rc, w->path, "cannot write the video");
    if (!e->code) io_fsync_path(w->temporary, e);
    if (!e->code) io_rename(w->temporary, w->path, e);
    if (e->code)
        abandon(w);
    else
        writer_free(w);
    return e->code == 0;
}

bool video_write(const char *path, const uint8_t *frames, int64_t n, int64_t height, int64_t width,
                 double fps, const char *comment, struct err *e)
{
    struct video_writer *w = video_create(path, height, width, fps, comment, e);
    if (w && n > 0) video_append(w, frames, n, e);
    return w && video_finish(w, e);
}

bool png_write(const char *path, const uint8_t *rgb, int64_t height, int64_t width, struct err *e)
{
    av_quiet();
    const AVCodec *encoder = avcodec_find_encoder(AV_CODEC_ID_PNG);
    if (!encoder) {
        err_set(e, RC_CONFIG, "%s: libav comes without a png encoder", path);
        return false;
    }
    AVCodecContext *c = avcodec_alloc_context3(encoder);
    AVFrame *f = av_frame_alloc();
    AVPacket *p = av_packet_alloc();
    CHECK(c && f && p, "out of memory");
    f->width = c->width = (int)width;
    f->height = c->height = (int)height;
    f->format = c->pix_fmt = AV_PIX_FMT_RGB24;
    c->time_base = (AVRational){1, 1};
    c->thread_count = 1;
    c->flags |= AV_CODEC_FLAG_BITEXACT;
    int rc = avcodec_open2(c, encoder, NULL);
    if (rc >= 0) rc = av_frame_get_buffer(f, 0);
    for (int64_t y = 0; rc >= 0 && y < height; y++) {
        memcpy(f->data[0] + y * f->linesize[0], rgb + 3 * y * width, (size_t)(3 * width));
    }
    if (rc >= 0) rc = avcodec_send_frame(c, f);
    if (rc >= 0) rc = avcodec_send_frame(c, NULL);
    if (rc >= 0) rc = avcodec_receive_packet(c, p);
    if (rc < 0)
        av_err(e, RC_CANTCREAT, rc, path, "cannot make a png file");
    else
        io_write_file(path, p->data, (size_t)p->size, e);
    avcodec_free_context(&c);
    av_frame_free(&f);
    av_packet_free(&p);
    return e->code == 0;
}
