/* The overviews of many videos: right tiles, the same bytes whatever the memory, and little of it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/io.h"
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

static void tiles(struct comm *world)
{
    (void)world;
    if (!have_video()) return;
    struct err e = {0};
    char *path[5], *name[2][2];
    for (int i = 0; i < 5; i++) path[i] = write_one(i, &e);
    for (int k = 0; k < 2; k++) { /* one frame at a time, all at once */
        name[k][0] = io_path("%s/sheet_%d.png", test_dir(), k);
        name[k][1] = io_path("%s/grid_%d.mp4", test_dir(), k);
        const struct sheet_job j = {.path = path,
                                    .count = 5,
                                    .frames = F,
                                    .height = H,
                                    .width = W,
                                    .fps = 8,
                                    .picture = name[k][0],
                                    .video = name[k][1],
                                    .budget = k ? (size_t)1 << 30 : 1};
        sheet_write(&j, &e);
        EXPECT(!e.code, "%s", e.msg);
    }
    EXPECT(same_files(name[0][0], name[1][0]), "the sheet depends on the memory");
    EXPECT(same_files(name[0][1], name[1][1]), "the grid depends on the memory");
    /* 3 rows of 2; even sizes */
    enum { GH = 3 * (H + 1) - 1, GW = 2 * (W + 1) };
    struct video_info info = {0};
    static uint8_t out[3 * F * GH * GW];
    int64_t index[F];
    for (int t = 0; t < F; t++) index[t] = t;
    EXPECT(video_probe(name[0][1], &info, &e) && info.frames == F && info.height == GH &&
               info.width == GW,
           "%lld frames of %lld x %lld %s", (long long)info.frames, (long long)info.height,
           (long long)info.width, e.msg);
    EXPECT(video_read(name[0][1], index, F, (struct video_crop){0}, GH, GW, out, &e), "%s", e.msg);
    for (int i = 0; i < 5 && !e.code; i++)
        for (int t = 0; t < F; t++) {
            const int y = i / 2 * (H + 1) + H / 2, x = i % 2 * (W + 1) + W / 2;
            const int got = out[(t * GH + y) * GW + x], want = 20 + 30 * i + 2 * t;
            EXPECT(abs(got - want) <= 4, "video %d frame %d shows %d, not %d", i, t, got, want);
        }
    for (int i = 0; i < 5; i++) free(path[i]);
    for (int k = 0; k < 4; k++) free(name[k / 2][k % 2]);
}

static long peak_mb(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_maxrss / 1024;
}

/* 400 videos of 5.3 MB are 2.1 GB, and their grid as much again; the child may take 200 MB more. */
static void little_memory(struct comm *world)
{
    (void)world;
    if (!have_video()) return;
    enum { COUNT = 400, N = 48, SIDE = 192 };
    struct err e = {0};
    char *one = io_path("%s/many.mp4", test_dir()), *path[COUNT],
         *png = io_path("%s/many.png", test_dir()), *gone = io_path("%s/absent.mp4", test_dir());
    uint8_t *v = calloc((size_t)N * SIDE * SIDE, 3);
    video_write(one, v, N, SIDE, SIDE, 8, NULL, &e);
    free(v);
    EXPECT(!e.code, "%s", e.msg);
    for (int i = 0; i < COUNT; i++) path[i] = one;
    path[COUNT - 1] = gone; /* found missing last of all: the grid need not be encoded */
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        const long before = peak_mb();
        const struct sheet_job j = {.path = path,
                                    .count = COUNT,
                                    .frames = N,
                                    .height = SIDE,
                                    .width = SIDE,
                                    .fps = 8,
                                    .picture = png,
                                    .video = one,
                                    .budget = 64 << 20};
        sheet_write(&j, &e);
        const long more = peak_mb() - before;
        printf("    %ld MB more for %d videos\n", more, COUNT);
        fflush(stdout);
        _exit(e.code == RC_NOINPUT && strstr(e.msg, "absent.mp4") ? more < 200 ? 0 : 1 : 2);
    }
    int status;
    waitpid(child, &status, 0);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
    EXPECT(!io_exists(png), "a sheet in spite of a missing video");
    free(one);
    free(png);
    free(gone);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "every video in its tile, whatever the memory", .run = tiles},
        {.name = "memory does not grow with the number of videos", .run = little_memory},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
