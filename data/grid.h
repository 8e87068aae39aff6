/* Contact sheets. A video is [3, n, height, width] as in data/video.h; tiles of one size stand 1
 * black pixel apart, in reading order. Sheets and grids are filled tile by tile, so that one video
 * is in memory at a time. */
#ifndef DATA_GRID_H
#define DATA_GRID_H
#include <stdint.h>
enum {
    GRID_CELL = 160, /* pixels that the shorter side of a tile of grid_sheet has at least */
    GRID_SIDE = 8190 /* pixels that a side of grid_sheet has at most: what every mp4 encoder takes,
                        and 200 MB for a frame */
};
struct grid {
    int64_t height, width; /* of a video, in its pixels */
    int64_t scale;         /* a pixel is scale x scale pixels of the tile */
    int64_t rows, columns;
    int64_t h, w; /* of the whole */
};
/* ceil(sqrt(count)) rows of videos as they are. */
struct grid grid_square(int64_t count, int64_t height, int64_t width);
/* The samples of prompts, prompt by prompt. Rows are prompts and columns samples; of one sample
 * each, a square. Small videos are enlarged by an integer to GRID_CELL. Where that is more than
 * GRID_SIDE: several prompts to a row, then a square, then smaller tiles, so small that the grid
 * holds a part of the videos' height and width. */
struct grid grid_sheet(int64_t prompts, int64_t samples, int64_t height, int64_t width);
/* The same with even h and w, for video_write. */
struct grid grid_even(struct grid g);
/* Frame t of a video of n frames, each g->height x g->width, into tile `place` of a picture [h, w,
 * 3] for png_write. */
void grid_put_picture(uint8_t *picture, const struct grid *g, int64_t place, const uint8_t *video,
                      int64_t n, int64_t t);
/* All n frames of a video into tile `place` of a video [3, n, h, w]. */
void grid_put_video(uint8_t *all, const struct grid *g, int64_t place, const uint8_t *video,
                    int64_t n);
/* `tiles` frames of one video from the first to the last, in one row: [h, w, 3], malloc'ed. */
uint8_t *grid_strip(const uint8_t *video, int64_t n, int64_t height, int64_t width, int64_t tiles,
                    int64_t *h, int64_t *w);
#endif
