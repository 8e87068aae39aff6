/* Built instead of the libav files where libav is missing. */
#include "data/video.h"

static bool missing(const char *path, struct err *e)
{
    err_set(e, RC_CONFIG,
            "%s: this build has no video support, because libav was not found; run "
            "scripts/install_deps.sh (libavformat-dev, libavcodec-dev, libswscale-dev) and make",
            path);
    return false;
}

double video_time_limit(double seconds) { return seconds; }

bool video_probe(const char *path, struct video_info *info, struct err *e)
{
    *info = (struct video_info){0};
    return missing(path, e);
}

bool video_read(const char *path, const int64_t *index, int64_t n, struct video_crop crop,
                int64_t height, int64_t width, uint8_t *out, struct err *e)
{
    (void)index, (void)n, (void)crop, (void)height, (void)width, (void)out;
    return missing(path, e);
}

bool video_write(const char *path, const uint8_t *frames, int64_t n, int64_t height, int64_t width,
                 double fps, const char *comment, struct err *e)
{
    (void)frames, (void)n, (void)height, (void)width, (void)fps, (void)comment;
    return missing(path, e);
}

struct video_writer *video_create(const char *path, int64_t height, int64_t width, double fps,
                                  const char *comment, struct err *e)
{
    (void)height, (void)width, (void)fps, (void)comment;
    missing(path, e);
    return NULL;
}

bool video_append(struct video_writer *w, const uint8_t *frames, int64_t n, struct err *e)
{
    (void)w, (void)frames, (void)n, (void)e;
    return false; /* there is no writer */
}

bool video_finish(struct video_writer *w, struct err *e)
{
    (void)w, (void)e;
    return false;
}

bool png_write(const char *path, const uint8_t *rgb, int64_t height, int64_t width, struct err *e)
{
    (void)rgb, (void)height, (void)width;
    return missing(path, e);
}
