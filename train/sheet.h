/* The two overviews of a folder of videos: a picture with the middle frame of each, and one video
 * with all of them side by side, both in the order of grid_sheet (data/grid.h). Videos are read one
 * after the other, and only the frames in hand: memory does not grow with their number or length.
 */
#ifndef TRAIN_SHEET_H
#define TRAIN_SHEET_H
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
struct sheet_job {
    char *const *path; /* [count] videos of the same size and length */
    int64_t count, frames, height, width;
    int64_t samples; /* of a prompt, one after the other; divides count */
    double fps;
    const char *picture, *video; /* files to write */
    size_t budget;               /* bytes of frames in memory; at least one frame of the grid */
};
struct sheet_shape {
    int64_t rows, columns; /* of videos, in both */
};
struct sheet_shape sheet_write(const struct sheet_job *j, struct err *e);
#endif
