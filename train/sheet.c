#include "train/sheet.h"

#include <stdlib.h>
#include <string.h>

#include "data/grid.h"
#include "data/video.h"

static uint8_t *blank(int64_t bytes)
{
    uint8_t *p = calloc((size_t)bytes, 1);
    CHECK(p, "out of memory");
    return p;
}

/* Frames [first, first+n) of video i, as large as the grid holds them, into buffer
 * [3, n, g->height, g->width]. */
static void read_some(const struct sheet_job *j, const struct grid *g, int64_t i, int64_t first,
                      int64_t n, uint8_t *buffer, struct err *e)
{
    int64_t *index = calloc((size_t)n, sizeof *index);
    CHECK(index, "out of memory");
    for (int64_t k = 0; k < n; k++) index[k] = first + k;
    video_read(j->path[i], index, n, (struct video_crop){0}, g->height, g->width, buffer, e);
    free(index);
}

static void write_picture(const struct sheet_job *j, struct grid g, struct err *e)
{
    uint8_t *picture = blank(3 * g.h * g.w), *frame = blank(3 * g.height * g.width);
    for (int64_t i = 0; i < j->count && !e->code; i++) {
        read_some(j, &g, i, j->frames / 2, 1, frame, e);
        if (!e->code) grid_put_picture(picture, &g, i, frame, 1, 0);
    }
    if (!e->code) png_write(j->picture, picture, g.h, g.w, e);
    free(picture);
    free(frame);
}

/* A run of frames at a time, as many as the budget holds. */
static void write_video(const struct sheet_job *j, struct grid g, struct err *e)
{
    const int64_t size = 3 * (g.h * g.w + g.height * g.width);
    int64_t run = (int64_t)(j->budget / (size_t)size);
    run = run < 1 ? 1 : run > j->frames ? j->frames : run;
    uint8_t *all = blank(3 * run * g.h * g.w), *one = blank(3 * run * g.height * g.width);
    struct video_writer *w = video_create(j->video, g.h, g.w, j->fps, "osp sample", e);
    for (int64_t first = 0; w && !e->code && first < j->frames; first += run) {
        const int64_t n = j->frames - first < run ? j->frames - first : run;
        memset(all, 0, (size_t)(3 * run * g.h * g.w));
        for (int64_t i = 0; i < j->count && !e->code; i++) {
            read_some(j, &g, i, first, n, one, e);
            if (!e->code) grid_put_video(all, &g, i, one, n);
        }
        if (!e->code) video_append(w, all, n, e);
    }
    if (w) video_finish(w, e);
    free(all);
    free(one);
}

struct sheet_shape sheet_write(const struct sheet_job *j, struct err *e)
{
    CHECK(j->samples > 0 && j->count % j->samples == 0, "%lld videos, %lld samples of a prompt",
          (long long)j->count, (long long)j->samples);
    const struct grid g = grid_sheet(j->count / j->samples, j->samples, j->height, j->width);
    write_picture(j, g, e);
    if (!e->code) write_video(j, grid_even(g), e);
    return (struct sheet_shape){g.rows, g.columns};
}
