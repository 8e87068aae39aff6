/* Contact sheets. A video is [3, n, height, width] as in data/video.h; tiles stand in
 * ceil(sqrt(count)) rows, 1 black pixel apart. All results are malloc'ed. */
#ifndef DATA_GRID_H
#define DATA_GRID_H
#include <stdint.h>
/* Middle frames of count videos: picture [h, w, 3] for png_write. */
uint8_t *grid_sheet(const uint8_t *const *videos, int64_t count, int64_t n, int64_t height,
                    int64_t width, int64_t *h, int64_t *w);
/* All frames of all videos, side by side: [3, n, h, w] with even h and w for video_write. */
uint8_t *grid_video(const uint8_t *const *videos, int64_t count, int64_t n, int64_t height,
                    int64_t width, int64_t *h, int64_t *w);
/* `tiles` frames of one video from the first to the last, in one row: [h, w, 3]. */
uint8_t *grid_strip(const uint8_t *video, int64_t n, int64_t height, int64_t width, int64_t tiles,
                    int64_t *h, int64_t *w);
#endif
