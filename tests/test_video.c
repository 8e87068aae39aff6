/* Reading and writing video files; broken files. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/io.h"
#include "data/grid.h"
#include "data/video.h"
#include "tests/check.h"
#include "tests/process.h"

enum { F = 24, H = 64, W = 96, PLANE = F * H * W };
static const char *const clips = "tests/clips";
static struct video_crop whole;

/* Frame t has brightness 8*t + 20: the number of a decoded frame can be read off its pixels. */
static uint8_t *ramp(void)
{
    uint8_t *v = malloc(3 * PLANE);
    for (int64_t i = 0; i < 3 * PLANE; i++) v[i] = (uint8_t)(20 + 8 * (i % PLANE / (H * W)));
    return v;
}

static char *write_ramp(const char *name, struct err *e)
{
    char *path = io_path("%s/%s", test_dir(), name);
    uint8_t *v = ramp();
    video_write(path, v, F, H, W, 16, "prompt = \"a ramp\"", e);
    free(v);
    return path;
}

static void frames_are_exact(struct comm *world)
{
    (void)world;
    struct err e = {0};
    char *path = write_ramp("ramp.mp4", &e);
    EXPECT(!e.code, "%s", e.msg);
    struct video_info info;
    EXPECT(video_probe(path, &info, &e), "%s", e.msg);
    EXPECT(info.width == W && info.height == H && info.frames == F && info.fps == 16,
           "%lld x %lld, %lld frames, %g", (long long)info.height, (long long)info.width,
           (long long)info.frames, info.fps);
    const int64_t index[] = {0, 1, 5, 5, 11, 12, 22, 23};
    enum { N = 8 };
    static uint8_t out[3 * N * 32 * 48];
    EXPECT(video_read(path, index, N, whole, 32, 48, out, &e), "%s", e.msg);
    for (int c = 0; c < 3; c++) {
        for (int i = 0; i < N; i++) {
            const int got = out[(c * N + i) * 32 * 48 + 700];
            EXPECT(abs(got - (int)(20 + 8 * index[i])) <= 2, "frame %lld shows %d",
                   (long long)index[i], got);
        }
    }
    const int64_t beyond[] = {3, F};
    EXPECT(!video_read(path, beyond, 2, whole, 32, 48, out, &e) &&
               strstr(e.msg, "frame 24 wanted, but the stream ends after 24 frames"),
           "%s", e.msg);
    free(path);
}

static void colours_and_crop(struct comm *world)
{
    (void)world;
    struct err e = {0};
    char *path = io_path("%s/colour.mp4", test_dir());
    uint8_t *v = malloc(3 * PLANE), *out = malloc(3 * 2 * 16 * 16);
    static const uint8_t left[3] = {200, 40, 90}, right[3] = {30, 160, 220};
    for (int64_t i = 0; i < 3 * PLANE; i++) v[i] = (i % W < W / 2 ? left : right)[i / PLANE];
    EXPECT(video_write(path, v, F, H, W, 24, NULL, &e), "%s", e.msg);
    const int64_t index[] = {0, 20};
    const struct video_crop crop = {W / 2 + 4, W, 0, 44};
    EXPECT(video_read(path, index, 2, crop, 16, 16, out, &e), "%s", e.msg);
    for (int c = 0; c < 3; c++) {
        for (int i = 0; i < 2 * 256; i++) {
            const int got = out[c * 512 + i];
            EXPECT(abs(got - right[c]) <= 4, "colour %d is %d, not %d", c, got, right[c]);
        }
    }
    const struct video_crop wide = {0, W + 2, 0, H};
    EXPECT(!video_read(path, index, 2, wide, 16, 16, out, &e) &&
               strstr(e.msg, "crop [0, 98, 0, 64] does not fit into 64 x 96"),
           "%s", e.msg);
    free(v);
    free(out);
    free(path);
}

static void writing(struct comm *world)
{
    (void)world;
    struct err e = {0};
    char *a = write_ramp("a.mp4", &e), *b = write_ramp("b.mp4", &e);
    size_t na, nb;
    char *pa = io_read_file(a, &na, &e), *pb = io_read_file(b, &nb, &e);
    EXPECT(!e.code && na == nb && memcmp(pa, pb, na) == 0, "same frames, same bytes");
    EXPECT(memmem(pa, na, "prompt = \"a ramp\"", 17), "comment is in the file");
    const char *moov = memmem(pa, na, "moov", 4), *mdat = memmem(pa, na, "mdat", 4);
    EXPECT(moov && mdat && moov < mdat, "index before the data (faststart)");
    char *tmp = io_path("%s.tmp", a);
    EXPECT(!io_exists(tmp), "temporary file is gone");
    uint8_t *v = ramp();
    EXPECT(!video_write(a, v, F, H - 1, W, 16, NULL, &e) && strstr(e.msg, "even height"), "%s",
           e.msg);
    e = (struct err){0};
    EXPECT(!video_write("/no/such/folder/x.mp4", v, F, H, W, 16, NULL, &e) &&
               strstr(e.msg, "/no/such/folder/x.mp4: cannot write the video"),
           "%s", e.msg);
    free(v), free(a), free(b), free(pa), free(pb), free(tmp);
}

/* A full disk, played by a limit on the size of files. */
static void disk_full(struct comm *world)
{
    (void)world;
    for (rlim_t bytes = 100; bytes <= 1600; bytes *= 2) {
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            const struct rlimit limit = {bytes, bytes};
            setrlimit(RLIMIT_FSIZE, &limit);
            signal(SIGXFSZ, SIG_IGN);
            alarm(20);
            struct err e = {0};
            char *path = write_ramp("full.mp4", &e), *tmp = io_path("%s.tmp", path);
            _exit(!e.code || !strstr(e.msg, path) || io_exists(path) || io_exists(tmp));
        }
        int status;
        waitpid(child, &status, 0);
        EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "limit %lld: status %x",
               (long long)bytes, (unsigned)status);
    }
}

static void pictures(struct comm *world)
{
    (void)world;
    struct err e = {0};
    uint8_t *v = ramp();
    int64_t h, w;
    const struct grid g = grid_square(3, H, W);
    uint8_t *sheet = calloc((size_t)(3 * g.h * g.w), 1);
    for (int i = 0; i < 3; i++) grid_put_picture(sheet, &g, i, v, F, F / 2);
    h = g.h;
    w = g.w;
    EXPECT(h == 2 * H + 1 && w == 2 * W + 1, "2 x 2 with 1-pixel gaps: %lld x %lld", (long long)h,
           (long long)w);
    EXPECT(sheet[0] == 20 + 8 * (F / 2) && sheet[3 * W] == 0 && sheet[3 * (W + 1)] == sheet[0] &&
               sheet[3 * ((H + 1) * w + W + 1)] == 0,
           "middle frames, gap, empty place");
    char *path = io_path("%s/sheet.png", test_dir());
    EXPECT(png_write(path, sheet, h, w, &e), "%s", e.msg);
    size_t n;
    char *p = io_read_file(path, &n, &e);
    EXPECT(p && n > 50 && memcmp(p, "\x89PNG\r\n\x1a\n", 8) == 0, "png signature");
    free(p);
    free(sheet);
    sheet = grid_strip(v, F, H, W, 4, &h, &w);
    EXPECT(h == H && w == 4 * W + 3 && sheet[0] == 20 && sheet[3 * (w - 1)] == 20 + 8 * (F - 1),
           "strip from the first to the last frame");
    free(sheet), free(path), free(v);
}

static void grid_of_videos(struct comm *world)
{
    (void)world;
    struct err e = {0};
    uint8_t *v = ramp();
    const struct grid g = grid_even(grid_square(2, H, W));
    const int64_t h = g.h, w = g.w;
    uint8_t *all = calloc((size_t)(3 * F * h * w), 1);
    for (int i = 0; i < 2; i++) grid_put_video(all, &g, i, v, F);
    EXPECT(h % 2 == 0 && w % 2 == 0 && h >= 2 * H + 1 && w >= W, "%lld x %lld", (long long)h,
           (long long)w);
    for (int64_t t = 0; t < F; t++)
        EXPECT(all[t * h * w + (H + 1) * w] == 20 + 8 * t, "frame order");
    char *path = io_path("%s/grid.mp4", test_dir());
    EXPECT(video_write(path, all, F, h, w, 16, NULL, &e), "%s", e.msg);
    free(all), free(path), free(v);
}

static void real_clips(struct comm *world)
{
    (void)world;
    static const struct {
        const char *name;
        int64_t w, frames;
        double fps;
    } clip[] = {{"example_1_A.mp4", 348, 126, 24}, {"example_1_B.mp4", 342, 152, 30},
                {"example_2_A.mp4", 336, 144, 24}, {"example_2_B.mp4", 320, 128, 24},
                {"example_3_A.mp4", 320, 128, 24}, {"example_3_B.mp4", 344, 60, 16}};
    for (size_t i = 0; i < 6; i++) {
        struct err e = {0};
        struct video_info info = {0};
        char *path = io_path("%s/%s", clips, clip[i].name);
        EXPECT(video_probe(path, &info, &e), "%s", e.msg);
        EXPECT(info.width == clip[i].w && info.height == 192 && info.frames == clip[i].frames &&
                   fabs(info.fps - clip[i].fps) < 1e-9,
               "%s: %lld x %lld, %lld frames at %g", path, (long long)info.height,
               (long long)info.width, (long long)info.frames, info.fps);
        const int64_t last[] = {0, clip[i].frames - 1};
        static uint8_t out[3 * 2 * 64 * 112];
        EXPECT(video_read(path, last, 2, whole, 64, 112, out, &e), "%s", e.msg);
        free(path);
    }
}

static char *copy_of(const char *clip, const char *name, size_t keep, size_t damage)
{
    struct err e = {0};
    size_t n;
    char *from = io_path("%s/%s", clips, clip), *to = io_path("%s/%s", test_dir(), name);
    char *p = io_read_file(from, &n, &e);
    err_raise(&e);
    for (size_t i = 0; i < 400 && damage; i++) p[damage + i] = (char)(p[damage + i] * 7 + 91);
    io_write_file(to, p, keep && keep < n ? keep : n, &e);
    err_raise(&e);
    free(p);
    free(from);
    return to;
}

static void expect_bad(char *path, const char *text, int code)
{
    struct err e = {0};
    struct video_info info;
    static uint8_t out[3 * 60 * 16 * 16];
    int64_t index[60];
    for (int i = 0; i < 60; i++) index[i] = i;
    const bool ok =
        video_probe(path, &info, &e) && video_read(path, index, 60, whole, 16, 16, out, &e);
    EXPECT(!ok && strstr(e.msg, text) && strstr(e.msg, path) && e.code == code,
           "wanted \"%s\" (%d), got \"%s\" (%d)", text, code, e.msg, e.code);
    free(path);
}

static void broken_files(struct comm *world)
{
    (void)world;
    struct err e = {0};
    expect_bad(io_path("%s/absent.mp4", clips), "No such file", RC_NOINPUT);
    expect_bad(io_path("%s", clips), "not a regular file", RC_DATA);
    expect_bad(io_path("%s/clips.json", clips), "not a video file", RC_DATA);
    char *empty = io_path("%s/empty.mp4", test_dir());
    io_write_file(empty, "", 0, &e);
    expect_bad(empty, "not a video file", RC_DATA);
    expect_bad(copy_of("example_3_B.mp4", "cut.mp4", 100000, 0), "frame", RC_DATA);
    expect_bad(copy_of("example_3_B.mp4", "head.mp4", 300, 0), "video", RC_DATA);
    char *list = io_path("%s/playlist.mp4", test_dir());
    const char *text = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:1/a.ts\n";
    io_write_file(list, text, strlen(text), &e);
    expect_bad(list, "not a video file", RC_DATA);
    const double old = video_time_limit(0);
    expect_bad(io_path("%s/example_3_B.mp4", clips), "took longer than 0 s", RC_DATA);
    video_time_limit(old);
}

/* Damaged bytes must end in an error or in pictures, never in a crash or a hang. */
static void damaged_bytes(struct comm *world)
{
    (void)world;
    static uint8_t out[3 * 60 * 16 * 16];
    int64_t index[60];
    for (int i = 0; i < 60; i++) index[i] = i;
    int refused = 0;
    for (size_t at = 40; at < 200000; at += 9973) {
        struct err e = {0};
        struct video_info info;
        char *path = copy_of("example_3_B.mp4", "damaged.mp4", 0, at);
        if (!video_probe(path, &info, &e) || !video_read(path, index, 60, whole, 16, 16, out, &e)) {
            refused++;
            EXPECT(e.code && strstr(e.msg, path), "an error names the file: \"%s\"", e.msg);
        }
        free(path);
    }
    EXPECT(refused >= 10, "only %d of 21 damaged files were refused", refused);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"chosen frames are decoded exactly", frames_are_exact, {0}, 0},
        {"colours survive, crop is applied and checked", colours_and_crop, {0}, 0},
        {"mp4: same bytes twice, comment, faststart, bad sizes", writing, {0}, 0},
        {"a full disk leaves no video", disk_full, {0}, 0},
        {"contact sheet, strip and png", pictures, {0}, 0},
        {"grid of videos", grid_of_videos, {0}, 0},
        {"the demo clips are what clips.json says", real_clips, {0}, 0},
        {"broken files are refused with path and reason", broken_files, {0}, 0},
        {"damaged bytes never crash", damaged_bytes, {0}, 0},
    };
    if (!process_video_ready("video")) return 0;
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
