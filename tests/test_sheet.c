/* The overviews of many videos: right tiles, every pixel as it is, the same bytes whatever the
 * memory, and little of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/io.h"
#include "data/grid.h"
#include "data/video.h"
#include "tests/check.h"
#include "train/sheet.h"

enum { F = 12, H = 32, W = 48, PLANE = F * H * W };

/* Video i shows brightness 20 + 30*i + 2*t at frame t. */
static char *write_one(int i, struct err *e)
{
    char *path = io_path("%s/one_%d.mp4", test_dir(), i);
    uint8_t *v = malloc(3 * PLANE);
    CHECK(v, "out of memory");
    for (int k = 0; k < 3 * PLANE; k++) v[k] = (uint8_t)(20 + 30 * i + 2 * (k % PLANE / (H * W)));
    video_write(path, v, F, H, W, 8, NULL, e);
    free(v);
    return path;
}

static bool have_video(void)
{
    struct err e = {0};
    char *path = write_one(0, &e);
    free(path);
    if (e.code) test_skip("%s", e.msg);
    return e.code == 0;
}

static bool same_files(const char *a, const char *b)
{
    struct err e = {0};
    size_t n, m;
    char *x = io_read_file(a, &n, &e), *y = io_read_file(b, &m, &e);
    const bool same = x && y && n == m && memcmp(x, y, n) == 0;
    free(x);
    free(y);
    return same;
}

/* The enlarged grid of 3 prompts with 2 samples each: 32 x 48 pixels, five times. */
enum { COUNT = 6, SAMPLES = 2, X = 5, GH = 3 * (X * H + 1) - 1, GW = 2 * (X * W + 1) - 1 };

static void write_sheets(char *path[COUNT], char *name[2][2])
{
    struct err e = {0};
    for (int k = 0; k < 2; k++) { /* one frame at a time, all at once */
        name[k][0] = io_path("%s/sheet_%d.png", test_dir(), k);
        name[k][1] = io_path("%s/grid_%d.mp4", test_dir(), k);
        const struct sheet_job j = {.path = path,
                                    .count = COUNT,
                                    .samples = SAMPLES,
                                    .frames = F,
                                    .height = H,
                                    .width = W,
                                    .fps = 8,
                                    .picture = name[k][0],
                                    .video = name[k][1],
                                    .budget = k ? (size_t)1 << 30 : 1};
        const struct sheet_shape g = sheet_write(&j, &e);
        EXPECT(!e.code && g.rows == 3 && g.columns == 2, "%lld x %lld %s", (long long)g.rows,
               (long long)g.columns, e.msg);
    }
    EXPECT(same_files(name[0][0], name[1][0]), "the sheet depends on the memory");
    EXPECT(same_files(name[0][1], name[1][1]), "the grid depends on the memory");
}

/* The picture, put together pixel by pixel, is the same file. */
static void same_picture(char *path[COUNT], const char *sheet)
{
    struct err e = {0};
    uint8_t *want = calloc(3 * GH * GW, 1);
    for (int i = 0; i < COUNT; i++) {
        static uint8_t v[3 * H * W];
        const int64_t middle = F / 2;
        EXPECT(video_read(path[i], &middle, 1, (struct video_crop){0}, H, W, v, &e), "%s", e.msg);
        for (int p = 0; p < 3 * X * X * H * W; p++) {
            const int c = p % 3, x = p / 3 % (X * W), y = p / 3 / (X * W);
            const int row = i / SAMPLES * (X * H + 1) + y, column = i % SAMPLES * (X * W + 1) + x;
            want[3 * (row * GW + column) + c] = v[(c * H + y / X) * W + x / X];
        }
    }
    char *other = io_path("%s/want.png", test_dir());
    EXPECT(png_write(other, want, GH, GW, &e), "%s", e.msg);
    EXPECT(same_files(sheet, other), "the sheet has other pixels");
    free(other);
    free(want);
}

static void tiles(struct comm *world)
{
    (void)world;
    if (!have_video()) return;
    enum { EH = GH + GH % 2, EW = GW + GW % 2 };
    struct err e = {0};
    char *path[COUNT], *name[2][2];
    for (int i = 0; i < COUNT; i++) path[i] = write_one(i, &e);
    write_sheets(path, name);
    same_picture(path, name[0][0]);
    struct video_info info = {0};
    uint8_t *out = malloc((size_t)3 * F * EH * EW);
    int64_t index[F];
    for (int t = 0; t < F; t++) index[t] = t;
    EXPECT(video_probe(name[0][1], &info, &e) && info.frames == F && info.height == EH &&
               info.width == EW,
           "%lld frames of %lld x %lld %s", (long long)info.frames, (long long)info.height,
           (long long)info.width, e.msg);
    EXPECT(video_read(name[0][1], index, F, (struct video_crop){0}, EH, EW, out, &e), "%s", e.msg);
    for (int i = 0; i < COUNT && !e.code; i++)
        for (int t = 0; t < F; t++) {
            const int y = i / SAMPLES * (X * H + 1) + X * H / 2;
            const int x = i % SAMPLES * (X * W + 1) + X * W / 2;
            const int got = out[((int64_t)t * EH + y) * EW + x], want = 20 + 30 * i + 2 * t;
            EXPECT(abs(got - want) <= 4, "video %d frame %d shows %d, not %d", i, t, got, want);
        }
    free(out);
    for (int i = 0; i < COUNT; i++) free(path[i]);
    for (int k = 0; k < 4; k++) free(name[k / 2][k % 2]);
}

/* Both fills of a grid against the definition, every byte; the gaps stay black. */
static void every_pixel(struct comm *world)
{
    (void)world;
    enum { A = 54, B = 60, N = 2, S = 3, AH = 2 * (S * A + 1) - 1, AW = 3 * (S * B + 1) - 1 };
    const struct grid g = grid_sheet(2, 3, A, B);
    EXPECT(g.scale == S && g.rows == 2 && g.columns == 3 && g.h == AH && g.w == AW, "%lld x %lld",
           (long long)g.h, (long long)g.w);
    if (g.scale != S || g.h != AH || g.w != AW) return;
    static uint8_t v[6][3 * N * A * B], picture[3 * AH * AW], video[3 * N * AH * AW];
    for (int i = 0; i < 6; i++) {
        for (int k = 0; k < 3 * N * A * B; k++) v[i][k] = (uint8_t)(1 + (k * 7 + i * 40) % 255);
        grid_put_picture(picture, &g, i, v[i], N, 1);
        grid_put_video(video, &g, i, v[i], N);
    }
    int wrong[2] = {0};
    for (int y = 0; y < AH; y++)
        for (int x = 0; x < AW; x++)
            for (int c = 0; c < 3; c++) {
                const int r = y / (S * A + 1), k = x / (S * B + 1), i = 3 * r + k;
                const int dy = y % (S * A + 1), dx = x % (S * B + 1);
                const bool gap = dy == S * A || dx == S * B;
                for (int t = 0; t < N; t++) {
                    const int want = gap ? 0 : v[i][((c * N + t) * A + dy / S) * B + dx / S];
                    wrong[0] += video[((c * N + t) * AH + y) * AW + x] != want;
                    if (t == 1) wrong[1] += picture[3 * (y * AW + x) + c] != want;
                }
            }
    EXPECT(!wrong[0] && !wrong[1], "%d bytes of the video, %d of the picture", wrong[0], wrong[1]);
}

static void layouts(struct comm *world)
{
    (void)world;
    static const struct {
        int64_t prompts, samples, height, width;
        struct grid want; /* height, width, scale, rows, columns */
    } list[] = {
        {3, 3, 32, 32, {32, 32, 5, 3, 3, 0, 0}},     /* a row is a prompt */
        {2, 5, 32, 48, {32, 48, 5, 2, 5, 0, 0}},     /* the shorter side counts */
        {2, 5, 96, 64, {96, 64, 3, 2, 5, 0, 0}},     /* whichever it is */
        {7, 1, 159, 200, {159, 200, 2, 3, 3, 0, 0}}, /* one sample each: a square */
        {7, 1, 160, 200, {160, 200, 1, 3, 3, 0, 0}}, /* large enough */
        {1, 4, 720, 1280, {720, 1280, 1, 1, 4, 0, 0}},
        {5, 1, 1, 1, {1, 1, 160, 3, 2, 0, 0}},
        {50, 2, 32, 32, {32, 32, 5, 50, 2, 0, 0}},      /* 8049 pixels high */
        {51, 2, 32, 32, {32, 32, 5, 26, 4, 0, 0}},      /* two prompts to a row */
        {1000, 4, 32, 32, {32, 32, 3, 84, 48, 0, 0}},   /* and smaller tiles */
        {1, 200, 32, 32, {32, 32, 5, 15, 14, 0, 0}},    /* more samples than a row holds */
        {16, 4, 720, 1280, {360, 640, 1, 16, 4, 0, 0}}, /* less than the videos */
        {946, 5, 720, 1280, {80, 142, 1, 95, 50, 0, 0}},
        {3, 1, 20000, 10000, {4000, 2000, 1, 2, 2, 0, 0}},
        {100000, 10, 720, 1280, {5, 10, 1, 1352, 740, 0, 0}},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        const struct grid w = list[i].want;
        const struct grid g =
            grid_sheet(list[i].prompts, list[i].samples, list[i].height, list[i].width);
        EXPECT(g.height == w.height && g.width == w.width && g.scale == w.scale &&
                   g.rows == w.rows && g.columns == w.columns,
               "case %zu: %lld x %lld, scale %lld, %lld rows of %lld", i, (long long)g.height,
               (long long)g.width, (long long)g.scale, (long long)g.rows, (long long)g.columns);
        EXPECT(g.h <= GRID_SIDE && g.w <= GRID_SIDE &&
                   g.rows * g.columns >= list[i].prompts * list[i].samples,
               "case %zu: %lld x %lld", i, (long long)g.h, (long long)g.w);
        const struct grid even = grid_even(g);
        EXPECT(even.h % 2 == 0 && even.w % 2 == 0 && even.h <= GRID_SIDE && even.w <= GRID_SIDE,
               "case %zu is odd", i);
    }
}

/* Three videos of 4096 columns are too wide for one row and for a square: half of that they are. */
static void reduced(struct comm *world)
{
    (void)world;
    if (!have_video()) return;
    enum { LONG = 4096, TALL = 16, N = 3, RH = 8, RW = N * (LONG / 2 + 1) - 1 };
    struct err e = {0};
    char *path[N], *png = io_path("%s/less.png", test_dir()),
                   *mp4 = io_path("%s/less.mp4", test_dir());
    static uint8_t v[3 * TALL * LONG], out[3 * RH * RW];
    for (int i = 0; i < N; i++) {
        memset(v, 60 + 60 * i, sizeof v);
        path[i] = io_path("%s/long_%d.mp4", test_dir(), i);
        video_write(path[i], v, 1, TALL, LONG, 8, NULL, &e);
    }
    const struct sheet_job j = {.path = path,
                                .count = N,
                                .samples = N,
                                .frames = 1,
                                .height = TALL,
                                .width = LONG,
                                .fps = 8,
                                .picture = png,
                                .video = mp4,
                                .budget = 1};
    const struct sheet_shape g = sheet_write(&j, &e);
    struct video_info info = {0};
    EXPECT(!e.code && g.rows == 1 && g.columns == N, "%s", e.msg);
    EXPECT(video_probe(mp4, &info, &e) && info.height == RH && info.width == RW, "%lld x %lld %s",
           (long long)info.height, (long long)info.width, e.msg);
    const int64_t first = 0;
    EXPECT(video_read(mp4, &first, 1, (struct video_crop){0}, RH, RW, out, &e), "%s", e.msg);
    for (int i = 0; i < N; i++) {
        const int got = out[RH / 2 * RW + i * (LONG / 2 + 1) + LONG / 4];
        EXPECT(abs(got - 60 - 60 * i) <= 4, "video %d shows %d", i, got);
    }
    for (int i = 0; i < N; i++) free(path[i]);
    free(png);
    free(mp4);
}

static long peak_mb(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_maxrss / 1024;
}

/* In a child: the sheet takes less than so many MB more; missing: the file that it stops at, or
 * NULL. */
static void expect_memory(const struct sheet_job *j, long limit, const char *missing)
{
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        struct err e = {0};
        const long before = peak_mb();
        sheet_write(j, &e);
        const long more = peak_mb() - before;
        printf("    %ld MB more for %lld videos\n", more, (long long)j->count);
        fflush(stdout);
        const bool right = missing ? e.code == RC_NOINPUT && strstr(e.msg, missing) : !e.code;
        _exit(!right ? 2 : more >= limit);
    }
    int status;
    waitpid(child, &status, 0);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
}

/* 400 videos of 5.3 MB are 2.1 GB, and their grid as much again; the child may take 200 MB more. */
static void little_memory(struct comm *world)
{
    (void)world;
    if (!have_video()) return;
    enum { MANY = 400, N = 48, SIDE = 192 };
    struct err e = {0};
    char *one = io_path("%s/many.mp4", test_dir()), *path[MANY],
         *png = io_path("%s/many.png", test_dir()), *gone = io_path("%s/absent.mp4", test_dir());
    uint8_t *v = calloc((size_t)N * SIDE * SIDE, 3);
    video_write(one, v, N, SIDE, SIDE, 8, NULL, &e);
    free(v);
    EXPECT(!e.code, "%s", e.msg);
    for (int i = 0; i < MANY; i++) path[i] = one;
    path[MANY - 1] = gone; /* found missing last of all: the grid need not be encoded */
    const struct sheet_job j = {.path = path,
                                .count = MANY,
                                .samples = 1,
                                .frames = N,
                                .height = SIDE,
                                .width = SIDE,
                                .fps = 8,
                                .picture = png,
                                .video = one,
                                .budget = 64 << 20};
    expect_memory(&j, 200, "absent.mp4");
    EXPECT(!io_exists(png), "a sheet in spite of a missing video");
    free(one);
    free(png);
    free(gone);
}

/* The grid of 36 videos of 192 frames is 536 MB, at five times their size; the encoder needs 130.
 */
static void little_memory_enlarged(struct comm *world)
{
    (void)world;
    if (!have_video()) return;
    enum { SOME = 36, N = 192, SIDE = 32 };
    struct err e = {0};
    char *one = io_path("%s/some.mp4", test_dir()), *path[SOME],
         *png = io_path("%s/some.png", test_dir()), *mp4 = io_path("%s/all.mp4", test_dir());
    uint8_t *v = calloc((size_t)N * SIDE * SIDE, 3);
    video_write(one, v, N, SIDE, SIDE, 8, NULL, &e);
    free(v);
    EXPECT(!e.code, "%s", e.msg);
    for (int i = 0; i < SOME; i++) path[i] = one;
    const struct sheet_job j = {.path = path,
                                .count = SOME,
                                .samples = 1,
                                .frames = N,
                                .height = SIDE,
                                .width = SIDE,
                                .fps = 8,
                                .picture = png,
                                .video = mp4,
                                .budget = 32 << 20};
    expect_memory(&j, 450, NULL);
    free(one);
    free(png);
    free(mp4);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "every video in its tile, whatever the memory", .run = tiles},
        {.name = "every pixel of a tile is that of its video", .run = every_pixel},
        {.name = "rows are prompts, small videos are enlarged, nothing is too large",
         .run = layouts},
        {.name = "videos that do not fit side by side are shown smaller", .run = reduced},
        {.name = "memory does not grow with the number of videos", .run = little_memory},
        {.name = "nor with their length, enlarged",
         .run = little_memory_enlarged,
         .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
