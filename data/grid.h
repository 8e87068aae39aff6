/* Contact sheets. A video is [3, n, height, width] as in data/video.h; tiles stand in
 * ceil(sqrt(count)) rows, 1 black pixel apart. Sheets and grids are filled tile by tile, so that
 * one video is in memory at a time. */
#ifndef DATA_GRID_H
#define DATA_GRID_H
#include <stdint.h>
struct grid {
    int64_t height, width; /* of a tile */
    int64_t rows, columns;
    int64_t h, w; /* of the whole */
};
struct grid grid_square(int64_t count, int64_t height, int64_t width);
/* The same with even h and w, for video_write. */
struct grid grid_even(struct grid g);
/* Frame t of a video of n frames into tile `place` of a picture [h, w, 3] for png_write. */
void grid_put_picture(uint8_t *picture, const struct grid *g, int64_t place, const uint8_t *video,
                      int64_t n, int64_t t);
/* All n frames of a video into tile `place` of a video [3, n, h, w]. */
void grid_put_video(uint8_t *all, const struct grid *g, int64_t place, const uint8_t *video,
                    int64_t n);
/* `tiles` frames of one video from the first to the last, in one row: [h, w, 3], malloc'ed. */
uint8_t *grid_strip(const uint8_t *video, int64_t n, int64_t height, int64_t width, int64_t tiles,
                    int64_t *h, int64_t *w);
#endif
