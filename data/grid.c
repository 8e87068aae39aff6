#include "data/grid.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "core/err.h"

enum { GAP = 1 };

static struct grid grid_of(int64_t rows, int64_t columns, int64_t height, int64_t width,
                           int64_t scale)
{
    return (struct grid){.height = height,
                         .width = width,
                         .scale = scale,
                         .rows = rows,
                         .columns = columns,
                         .h = rows * (height * scale + GAP) - GAP,
                         .w = columns * (width * scale + GAP) - GAP};
}

static struct grid square_of(int64_t count, int64_t height, int64_t width, int64_t scale)
{
    CHECK(count > 0, "grid of %lld videos", (long long)count);
    const int64_t rows = (int64_t)ceil(sqrt((double)count));
    return grid_of(rows, (count + rows - 1) / rows, height, width, scale);
}

struct grid grid_square(int64_t count, int64_t height, int64_t width)
{
    return square_of(count, height, width, 1);
}

/* The samples of a prompt side by side, as few prompts to a row as the height allows. False: the
 * rows are too long then. */
static bool table_of(struct grid *g, int64_t prompts, int64_t samples, int64_t height,
                     int64_t width, int64_t scale)
{
    const int64_t most = (GRID_SIDE + GAP) / (height * scale + GAP); /* rows */
    if (samples == 1 || most == 0) return false;
    const int64_t side = (prompts + most - 1) / most;
    *g = grid_of((prompts + side - 1) / side, side * samples, height, width, scale);
    return g->w <= GRID_SIDE;
}

struct grid grid_sheet(int64_t prompts, int64_t samples, int64_t height, int64_t width)
{
    CHECK(prompts > 0 && samples > 0, "grid of %lld x %lld videos", (long long)prompts,
          (long long)samples);
    const int64_t shorter = height < width ? height : width;
    int64_t scale = shorter < GRID_CELL ? (GRID_CELL + shorter - 1) / shorter : 1, part = 1;
    for (;;) {
        const int64_t h = height > part ? height / part : 1, w = width > part ? width / part : 1;
        struct grid g;
        if (table_of(&g, prompts, samples, h, w, scale)) return g;
        g = square_of(prompts * samples, h, w, scale);
        if ((g.h <= GRID_SIDE && g.w <= GRID_SIDE) || (h == 1 && w == 1)) return g;
        if (scale > 1)
            scale--;
        else
            part++;
    }
}

struct grid grid_even(struct grid g)
{
    g.h += g.h % 2;
    g.w += g.w % 2;
    return g;
}

static int64_t top_of(const struct grid *g, int64_t place)
{
    CHECK(place >= 0 && place < g->rows * g->columns, "tile %lld", (long long)place);
    return place / g->columns * (g->height * g->scale + GAP);
}

static int64_t left_of(const struct grid *g, int64_t place)
{
    return place % g->columns * (g->width * g->scale + GAP);
}

/* A row of n pixels, each `scale` times; step: bytes from one to the next. */
static void put_row(uint8_t *to, int64_t step, const uint8_t *in, int64_t n, int64_t scale)
{
    for (int64_t x = 0; x < n; x++)
        for (int64_t k = 0; k < scale; k++, to += step) *to = in[x];
}

void grid_put_picture(uint8_t *picture, const struct grid *g, int64_t place, const uint8_t *video,
                      int64_t n, int64_t t)
{
    const int64_t top = top_of(g, place), left = left_of(g, place);
    for (int64_t c = 0; c < 3; c++) {
        const uint8_t *in = video + (c * n + t) * g->height * g->width;
        for (int64_t y = 0; y < g->height * g->scale; y++)
            put_row(picture + 3 * ((top + y) * g->w + left) + c, 3, in + y / g->scale * g->width,
                    g->width, g->scale);
    }
}

void grid_put_video(uint8_t *all, const struct grid *g, int64_t place, const uint8_t *video,
                    int64_t n)
{
    const int64_t top = top_of(g, place), left = left_of(g, place);
    for (int64_t frame = 0; frame < 3 * n; frame++) { /* of all three planes */
        const uint8_t *in = video + frame * g->height * g->width;
        uint8_t *to = all + frame * g->h * g->w + top * g->w + left;
        for (int64_t y = 0; y < g->height * g->scale; y++)
            put_row(to + y * g->w, 1, in + y / g->scale * g->width, g->width, g->scale);
    }
}

uint8_t *grid_strip(const uint8_t *video, int64_t n, int64_t height, int64_t width, int64_t tiles,
                    int64_t *h, int64_t *w)
{
    CHECK(tiles > 0 && n > 0, "strip of %lld frames", (long long)tiles);
    if (tiles > n) tiles = n;
    const struct grid g = grid_of(1, tiles, height, width, 1);
    uint8_t *out = calloc((size_t)(3 * g.h * g.w), 1);
    CHECK(out, "out of memory");
    for (int64_t i = 0; i < tiles; i++)
        grid_put_picture(out, &g, i, video, n, tiles > 1 ? i * (n - 1) / (tiles - 1) : n / 2);
    *h = g.h;
    *w = g.w;
    return out;
}
