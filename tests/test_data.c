/* Codecs and the resize rule. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "data/codec.h"
#include "data/video.h"
#include "tests/check.h"

static void pixel_is_exact(struct comm *world)
{
    (void)world;
    struct err e = {0};
    const struct video_codec *c = video_codec_find("pixel", &e);
    enum { F = 2, H = 8, W = 16, N = 3 * F * H * W };
    int64_t s[4];
    EXPECT(c && c->shape(F, H, W, s, &e), "%s", e.msg);
    EXPECT(s[0] == 12 && s[1] == F && s[2] == H / 2 && s[3] == W / 2, "latent shape");
    static uint8_t in[N], back[N];
    static float z[N];
    for (int i = 0; i < N; i++) in[i] = (uint8_t)i; /* every value of a byte */
    c->encode(z, in, F, H, W);
    c->decode(back, z, F, H, W);
    EXPECT(memcmp(in, back, N) == 0, "256 values come back");
    /* channel 4c+2dy+dx: colour 1, row 2*3+1, column 2*5+0 of frame 1 */
    const float got = z[(((4 * 1 + 2 * 1 + 0) * F + 1) * (H / 2) + 3) * (W / 2) + 5];
    const uint8_t v = in[((1 * F + 1) * H + 7) * W + 10];
    EXPECT(got == (float)(v / 127.5 - 1), "channel order: %g for %d", (double)got, v);
}

static void pixel_rounds_and_clamps(struct comm *world)
{
    (void)world;
    struct err e = {0};
    const struct video_codec *c = video_codec_find("pixel", &e);
    float z[48] = {0};
    uint8_t rgb[48];
    z[0] = 5;
    z[1] = -5;
    z[2] = NAN;
    z[3] = 0; /* 127.5 goes to the even 128 */
    c->decode(rgb, z, 1, 4, 4);
    EXPECT(rgb[0] == 255 && rgb[2] == 0 && rgb[8] == 0 && rgb[10] == 128, "%d %d %d %d", rgb[0],
           rgb[2], rgb[8], rgb[10]);
    int64_t s[4];
    EXPECT(!c->shape(3, 6, 8, s, &e) && strstr(e.msg, "multiples of 4"), "%s", e.msg);
    e = (struct err){0};
    EXPECT(!video_codec_find("wan", &e) && strstr(e.msg, "unknown video codec \"wan\""), "%s",
           e.msg);
    e = (struct err){0};
    EXPECT(!text_codec_find("t5", &e) && strstr(e.msg, "unknown text codec \"t5\""), "%s", e.msg);
}

static void hash_rows(struct comm *world)
{
    (void)world;
    struct err e = {0};
    const struct text_codec *c = text_codec_find("hash", &e);
    enum { LEN = 6, DIM = 5 };
    float a[LEN * DIM], b[LEN * DIM];
    EXPECT(c->encode(a, LEN, DIM, "A red Fox-2!") == 5, "a, red, fox, 2, </s>");
    EXPECT(c->encode(b, LEN, DIM, "  fox,A  ") == 3, "fox, a, </s>");
    EXPECT(memcmp(a + 2 * DIM, b, DIM * sizeof *a) == 0, "fox is fox in any case");
    EXPECT(memcmp(a, b + DIM, DIM * sizeof *a) == 0, "a");
    EXPECT(memcmp(a + 4 * DIM, b + 2 * DIM, DIM * sizeof *a) == 0, "</s>");
    const struct rng_stream s =
        rng_open((struct rng_key){.use = RNG_WORD, .item = rng_hash("fox")});
    for (int i = 0; i < DIM; i++) EXPECT(b[i] == (float)rng_normal_at(s, (uint64_t)i), "%d", i);
    for (int i = 3 * DIM; i < LEN * DIM; i++) EXPECT(b[i] == 0, "zero after the text");
    EXPECT(c->encode(b, LEN, DIM, "") == 1 && !memcmp(a + 4 * DIM, b, DIM * sizeof *a), "empty");
    EXPECT(c->count("A red Fox-2!") == 5 && c->count("") == 1, "rows of the whole text");
    EXPECT(c->encode(b, 2, DIM, "a red fox") == 2 && !memcmp(a, b, 2 * DIM * sizeof *a), "cut");
}

static void cover_examples(struct comm *world)
{
    (void)world;
    static const int64_t row[][8] = {
        /* h, w, H, W -> oh, ow, top, left */
        {1080, 1920, 720, 1280, 720, 1280, 0, 0},    {1080, 2048, 720, 1280, 720, 1366, 0, 43},
        {1080, 1440, 720, 1280, 960, 1280, 120, 0},  {1088, 1920, 720, 1280, 726, 1280, 3, 0},
        {1920, 1080, 720, 1280, 2276, 1280, 778, 0}, {100, 203, 100, 200, 100, 203, 0, 2},
        {100, 201, 100, 200, 100, 201, 0, 0},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        const int64_t *r = row[i];
        int64_t oh, ow, top, left;
        resize_cover(r[0], r[1], r[2], r[3], &oh, &ow, &top, &left);
        EXPECT(oh == r[4] && ow == r[5] && top == r[6] && left == r[7],
               "row %zu: %lld x %lld at %lld, %lld", i, (long long)oh, (long long)ow,
               (long long)top, (long long)left);
    }
}

/* The same rule in floating point, rounded after each pass. */
static void slow_resize(double *out, int64_t oh, int64_t ow, const uint8_t *in, int64_t h,
                        int64_t w)
{
    for (int64_t y = 0; y < oh; y++) {
        for (int64_t x = 0; x < ow; x++) {
            const double sy = (double)h / (double)oh, sx = (double)w / (double)ow;
            const double wy = fmax(sy, 1), wx = fmax(sx, 1);
            double sum = 0, norm = 0;
            for (int64_t j = 0; j < h; j++) {
                for (int64_t i = 0; i < w; i++) {
                    double u = fabs(((double)j + 0.5 - sy * ((double)y + 0.5)) / wy);
                    double v = fabs(((double)i + 0.5 - sx * ((double)x + 0.5)) / wx);
                    u = u < 1   ? (1.5 * u - 2.5) * u * u + 1
                        : u < 2 ? ((-0.5 * u + 2.5) * u - 4) * u + 2
                                : 0;
                    v = v < 1   ? (1.5 * v - 2.5) * v * v + 1
                        : v < 2 ? ((-0.5 * v + 2.5) * v - 4) * v + 2
                                : 0;
                    sum += u * v * in[j * w + i];
                    norm += u * v;
                }
            }
            out[y * ow + x] = fmin(255, fmax(0, sum / norm));
        }
    }
}

static void resize_properties(struct comm *world)
{
    (void)world;
    enum { H = 21, W = 34 };
    static uint8_t in[H * W], out[64 * 64];
    static double want[64 * 64];
    for (int i = 0; i < H * W; i++)
        in[i] = (uint8_t)(128 + 60 * sin(i % W * 0.5) * cos(i / W * 0.4));
    static const int64_t to[][2] = {{21, 34}, {13, 34}, {21, 11}, {10, 16}, {40, 60}, {12, 50}};
    for (size_t k = 0; k < sizeof to / sizeof *to; k++) {
        resize_plane(out, to[k][0], to[k][1], in, H, W);
        slow_resize(want, to[k][0], to[k][1], in, H, W);
        double worst = 0;
        for (int64_t i = 0; i < to[k][0] * to[k][1]; i++)
            worst = fmax(worst, fabs(out[i] - want[i]));
        EXPECT(worst < 1.3, "%lld x %lld: off by %g", (long long)to[k][0], (long long)to[k][1],
               worst);
        if (k == 0) EXPECT(memcmp(out, in, sizeof in) == 0, "same size is the identity");
    }
    memset(in, 77, sizeof in);
    resize_plane(out, 9, 50, in, H, W);
    for (int i = 0; i < 9 * 50; i++) EXPECT(out[i] == 77, "a flat picture stays flat");
    for (int i = 0; i < H * W; i++) in[i] = i % W < W / 2 ? 0 : 255; /* overshoot is clamped */
    resize_plane(out, 40, 64, in, H, W);
    EXPECT(out[0] == 0 && out[63] == 255, "edges %d %d", out[0], out[63]);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"pixel codec gives back every byte and puts channels in order", pixel_is_exact, {0}, 0},
        {"pixel codec rounds half to even and clamps; bad sizes and names",
         pixel_rounds_and_clamps,
         {0},
         0},
        {"hash codec: words, end mark, cut, zero rows", hash_rows, {0}, 0},
        {"resize to cover: the table of examples", cover_examples, {0}, 0},
        {"resize against the formula in floating point", resize_properties, {0}, 0},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
