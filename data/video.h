/* Video files through libav: probe, decode chosen frames, resize and crop (docs/spec/sft.md 3.5),
 * encode mp4 and png. Without libav every function fails with a message that says so. */
#ifndef DATA_VIDEO_H
#define DATA_VIDEO_H
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
struct video_info {
    int64_t width, height, frames; /* frames: counted by decoding when the container does not say */
    double fps;
};
/* RC_NOINPUT: no such file; RC_DATA: not a video, damaged, or it took too long. */
bool video_probe(const char *path, struct video_info *info, struct err *e);
struct video_crop { /* pixels; x1 = 0: no crop */
    int64_t x0, x1, y0, y1;
};
/* Decodes frames index[0..n) (ascending), crops, resizes to cover height x width with the
 * antialiased bicubic rule, centre-crops: out [3, n, height, width]. */
bool video_read(const char *path, const int64_t *index, int64_t n, struct video_crop crop,
                int64_t height, int64_t width, uint8_t *out, struct err *e);
/* How long one probe or read on this thread may take (600 s at the start), so that a broken clip
 * cannot hang the program. Returns the old limit. */
double video_time_limit(double seconds);
/* frames [3, n, height, width], height and width even; H.264 (MPEG-4 part 2 with a notice in the
 * log where libav comes without x264), yuv420p, faststart; comment: metadata tag. The file appears
 * under its name only when it is complete. */
bool video_write(const char *path, const uint8_t *frames, int64_t n, int64_t height, int64_t width,
                 double fps, const char *comment, struct err *e);
/* The same, some frames at a time. NULL: e is filled. */
struct video_writer;
struct video_writer *video_create(const char *path, int64_t height, int64_t width, double fps,
                                  const char *comment, struct err *e);
/* frames [3, n, height, width]: the next n. */
bool video_append(struct video_writer *w, const uint8_t *frames, int64_t n, struct err *e);
/* Frees w. The file appears when nothing has failed so far; an e that holds an error already (of
 * the caller, too) means that it must not. */
bool video_finish(struct video_writer *w, struct err *e);
bool png_write(const char *path, const uint8_t *rgb /* [h,w,3] */, int64_t height, int64_t width,
               struct err *e);
/* uint8 plane [h,w] -> [oh,ow], antialiased bicubic, 8-bit rounding after each pass. */
void resize_plane(uint8_t *out, int64_t oh, int64_t ow, const uint8_t *in, int64_t h, int64_t w);
/* Size after "resize to cover", and the crop offsets. */
void resize_cover(int64_t h, int64_t w, int64_t height, int64_t width, int64_t *oh, int64_t *ow,
                  int64_t *top, int64_t *left);
#endif
