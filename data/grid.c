#include "data/grid.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"

enum { GAP = 1 };
struct grid {
    int64_t rows, columns, h, w;
};

static struct grid grid_of(int64_t rows, int64_t columns, int64_t height, int64_t width)
{
    return (struct grid){rows, columns, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP};
}

static struct grid square(int64_t count, int64_t height, int64_t width)
{
    const int64_t rows = (int64_t)ceil(sqrt((double)count));
    return grid_of(rows, (count + rows - 1) / rows, height, width);
}

static uint8_t *blank(int64_t bytes)
{
    uint8_t *p = calloc((size_t)bytes, 1);
    CHECK(p, "out of memory");
    return p;
}

/* Frame t of a video into tile `place` of an interleaved picture. */
static void put_tile(uint8_t *out, struct grid g, int64_t place, const uint8_t *video, int64_t n,
                     int64_t t, int64_t height, int64_t width)
{
    const int64_t top = place / g.columns * (height + GAP);
    const int64_t left = place % g.columns * (width + GAP);
    for (int64_t c = 0; c < 3; c++) {
        const uint8_t *in = video + (c * n + t) * height * width;
        for (int64_t y = 0; y < height; y++) {
            uint8_t *row = out + 3 * ((top + y) * g.w + left) + c;
            for (int64_t x = 0; x < width; x++) row[3 * x] = in[y * width + x];
        }
    }
}

uint8_t *grid_sheet(const uint8_t *const *videos, int64_t count, int64_t n, int64_t height,
                    int64_t width, int64_t *h, int64_t *w)
{
    CHECK(count > 0 && n > 0, "contact sheet of %lld videos", (long long)count);
    const struct grid g = square(count, height, width);
    uint8_t *out = blank(3 * g.h * g.w);
    for (int64_t i = 0; i < count; i++) put_tile(out, g, i, videos[i], n, n / 2, height, width);
    *h = g.h;
    *w = g.w;
    return out;
}

uint8_t *grid_strip(const uint8_t *video, int64_t n, int64_t height, int64_t width, int64_t tiles,
                    int64_t *h, int64_t *w)
{
    CHECK(tiles > 0 && n > 0, "strip of %lld frames", (long long)tiles);
    if (tiles > n) tiles = n;
    const struct grid g = grid_of(1, tiles, height, width);
    uint8_t *out = blank(3 * g.h * g.w);
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t t = tiles > 1 ? i * (n - 1) / (tiles - 1) : n / 2;
        put_tile(out, g, i, video, n, t, height, width);
    }
    *h = g.h;
    *w = g.w;
    return out;
}

uint8_t *grid_video(const uint8_t *const *videos, int64_t count, int64_t n, int64_t height,
                    int64_t width, int64_t *h, int64_t *w)
{
    CHECK(count > 0 && n > 0, "grid of %lld videos", (long long)count);
    const struct grid g = square(count, height, width);
    *h = g.h + g.h % 2;
    *w = g.w + g.w % 2;
    uint8_t *out = blank(3 * n * *h * *w);
    for (int64_t i = 0; i < count; i++) {
        const int64_t top = i / g.columns * (height + GAP), left = i % g.columns * (width + GAP);
        for (int64_t frame = 0; frame < 3 * n; frame++) { /* of all three planes */
            const uint8_t *in = videos[i] + frame * height * width;
            uint8_t *to = out + frame * *h * *w + top * *w + left;
            for (int64_t y = 0; y < height; y++) memcpy(to + y * *w, in + y * width, (size_t)width);
        }
    }
    return out;
}
