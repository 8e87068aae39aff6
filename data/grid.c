#include "data/grid.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"

enum { GAP = 1 };

static struct grid grid_of(int64_t rows, int64_t columns, int64_t height, int64_t width)
{
    return (struct grid){.height = height,
                         .width = width,
                         .rows = rows,
                         .columns = columns,
                         .h = rows * (height + GAP) - GAP,
                         .w = columns * (width + GAP) - GAP};
}

struct grid grid_square(int64_t count, int64_t height, int64_t width)
{
    CHECK(count > 0, "grid of %lld videos", (long long)count);
    const int64_t rows = (int64_t)ceil(sqrt((double)count));
    return grid_of(rows, (count + rows - 1) / rows, height, width);
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
    return place / g->columns * (g->height + GAP);
}

static int64_t left_of(const struct grid *g, int64_t place)
{
    return place % g->columns * (g->width + GAP);
}

void grid_put_picture(uint8_t *picture, const struct grid *g, int64_t place, const uint8_t *video,
                      int64_t n, int64_t t)
{
    const int64_t top = top_of(g, place), left = left_of(g, place);
    for (int64_t c = 0; c < 3; c++) {
        const uint8_t *in = video + (c * n + t) * g->height * g->width;
        for (int64_t y = 0; y < g->height; y++) {
            uint8_t *row = picture + 3 * ((top + y) * g->w + left) + c;
            for (int64_t x = 0; x < g->width; x++) row[3 * x] = in[y * g->width + x];
        }
    }
}

void grid_put_video(uint8_t *all, const struct grid *g, int64_t place, const uint8_t *video,
                    int64_t n)
{
    const int64_t top = top_of(g, place), left = left_of(g, place);
    for (int64_t frame = 0; frame < 3 * n; frame++) { /* of all three planes */
        const uint8_t *in = video + frame * g->height * g->width;
        uint8_t *to = all + frame * g->h * g->w + top * g->w + left;
        for (int64_t y = 0; y < g->height; y++)
            memcpy(to + y * g->w, in + y * g->width, (size_t)g->width);
    }
}

uint8_t *grid_strip(const uint8_t *video, int64_t n, int64_t height, int64_t width, int64_t tiles,
                    int64_t *h, int64_t *w)
{
    CHECK(tiles > 0 && n > 0, "strip of %lld frames", (long long)tiles);
    if (tiles > n) tiles = n;
    const struct grid g = grid_of(1, tiles, height, width);
    uint8_t *out = calloc((size_t)(3 * g.h * g.w), 1);
    CHECK(out, "out of memory");
    for (int64_t i = 0; i < tiles; i++)
        grid_put_picture(out, &g, i, video, n, tiles > 1 ? i * (n - 1) / (tiles - 1) : n / 2);
    *h = g.h;
    *w = g.w;
    return out;
}
