/* Frames for a scorer: the tables of docs/spec/rl.md 3.2 and what the Python side picks. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/codec.h"
#include "rl/frames.h"
#include "tests/check.h"

static void expect(int total, double fps, const int *want, int n)
{
    int got[FRAMES_MAX];
    const int m = frames_pick(total, fps, FRAMES_FPS, got, FRAMES_MAX);
    EXPECT(m == n, "%d frames at %g fps: %d, not %d", total, fps, m, n);
    for (int i = 0; i < n && m == n; i++)
        EXPECT(got[i] == want[i], "%d frames at %g fps: place %d has %d, not %d", total, fps, i,
               got[i], want[i]);
}

static void tables(struct comm *world)
{
    (void)world;
    static const int at8[] = {0,  4,  8,  13, 17, 21, 25, 29, 34, 38,
                              42, 46, 51, 55, 59, 63, 67, 72, 76, 80},
                     at16[] = {0, 9, 18, 27, 36, 44, 53, 62, 71, 80},
                     at24[] = {0, 16, 32, 48, 64, 80};
    expect(81, 8, at8, 20);
    expect(81, 16, at16, 10);
    expect(81, 24, at24, 6);
}

static void short_clips(struct comm *world)
{
    (void)world;
    static const int pair[] = {0, 1}, ends[] = {0, 2}, four[] = {0, 1, 2, 3}, of5[] = {0, 1, 3, 4};
    for (double fps = .5; fps < 100; fps *= 3) {
        expect(0, fps, NULL, 0);
        expect(1, fps, NULL, 0);
        expect(2, fps, pair, 2);
        expect(3, fps, ends, 2);
        expect(4, fps, four, 4);
        expect(5, fps, of5, 4);
    }
}

static void long_clips(struct comm *world)
{
    (void)world;
    int got[FRAMES_MAX];
    for (int total = 2; total < 40000; total += 1 + total / 7)
        for (double fps = .3; fps < 70; fps *= 1.7) {
            const int n = frames_pick(total, fps, FRAMES_FPS, got, FRAMES_MAX);
            EXPECT(n >= 2 && n % 2 == 0 && n <= total && (total < 4 || n >= 4), "%d of %d", n,
                   total);
            EXPECT(got[0] == 0 && got[n - 1] == total - 1, "ends of %d", total);
            for (int i = 1; i < n; i++) EXPECT(got[i] > got[i - 1], "%d frames: rising", total);
        }
    EXPECT(frames_pick(100000, 8, FRAMES_FPS, got, FRAMES_MAX) == FRAMES_MAX, "the most");
}

/* What the scorer's own rules say, one clip a line: total fps n indices. */
static const char SCRIPT[] =
    "import sys; sys.path.insert(0, 'scripts'); import videoalign_rules as r\n"
    "fps = [.3, 1, 2.9, 6, 7.5, 8, 12, 15, 16, 23.976, 24, 25, 29.97, 30, 50, 60, 120, 1000]\n"
    "for t in list(range(1, 260)) + [300, 481, 511, 768, 769, 770, 1000, 1537, 4097, 9001, "
    "30001]:\n"
    "    for f in fps:\n"
    "        n = r.frame_count(t, f)\n"
    "        print(t, f, n, *r.frame_indices(t, n))\n";

static int compare(FILE *p)
{
    int cases = 0, total, n, want, got[FRAMES_MAX];
    double fps;
    while (fscanf(p, "%d %lf %d", &total, &fps, &n) == 3) {
        const int m = frames_pick(total, fps, FRAMES_FPS, got, FRAMES_MAX);
        EXPECT(m == n, "%d frames at %g fps: %d, python %d", total, fps, m, n);
        for (int i = 0; i < n && fscanf(p, "%d", &want) == 1; i++)
            EXPECT(m != n || got[i] == want, "%d at %g fps: place %d has %d, python %d", total, fps,
                   i, got[i], want);
        cases++;
    }
    return cases;
}

static void like_python(struct comm *world)
{
    (void)world;
    if (system("python3 -c '' >/dev/null 2>&1") != 0) {
        test_skip("no python3");
        return;
    }
    char command[2048];
    snprintf(command, sizeof command, "python3 -B -c \"%s\"", SCRIPT);
    FILE *p = popen(command, "r");
    CHECK(p, "cannot run python3");
    const int cases = compare(p);
    EXPECT(pclose(p) == 0 && cases == 18 * 270, "%d cases", cases);
}

/* A decoded clip, its frames picked, is what the pixels of those frames are. */
static void copies(struct comm *world)
{
    (void)world;
    enum { T = 5, H = 4, W = 8, N = 3 };
    struct err e = {0};
    const struct video_codec *codec = video_codec_find("pixel", &e);
    CHECK(codec, "%s", e.msg);
    static uint8_t src[3 * T * H * W], rgb[3 * T * H * W], dst[(N + 1) * H * W * 3];
    static float z[12 * T * H * W / 4];
    for (int i = 0; i < 3 * T * H * W; i++) src[i] = (uint8_t)(i * 37 + i / 256);
    codec->encode(z, src, T, H, W);
    codec->decode(rgb, z, T, H, W);
    static const int index[N] = {4, 0, 3};
    for (int given = 0; given < 2; given++) {
        memset(dst, 7, sizeof dst);
        frames_copy(dst, rgb, T, H, W, given ? index : NULL, N);
        for (int f = 0; f < N; f++)
            for (int i = 0; i < H * W; i++)
                for (int c = 0; c < 3; c++)
                    EXPECT(dst[(f * H * W + i) * 3 + c] ==
                               src[(c * T + (given ? index[f] : f)) * H * W + i],
                           "frame %d pixel %d colour %d", f, i, c);
        for (int i = N * H * W * 3; i < (N + 1) * H * W * 3; i++)
            EXPECT(dst[i] == 7, "writes behind the last frame");
    }
}

static void no_frame(void *arg)
{
    const int index[] = {5};
    static uint8_t src[3 * 5], dst[3];
    frames_copy(dst, src, 5, 1, 1, index, 1);
    (void)arg;
}
static void no_room(void *arg)
{
    int index[19];
    (void)frames_pick(81, 8, FRAMES_FPS, index, 19);
    (void)arg;
}
static void no_rate(void *arg)
{
    int index[19];
    (void)frames_pick(81, NAN, FRAMES_FPS, index, 19);
    (void)arg;
}
static void refused(struct comm *world)
{
    (void)world;
    expect_stop("frame 5 of 5", RC_SOFTWARE, no_frame, NULL);
    expect_stop("20 frames, room for 19", RC_SOFTWARE, no_room, NULL);
    expect_stop("81 frames at nan fps", RC_SOFTWARE, no_rate, NULL);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {"the tables of 81 frames", tables, {0}, 0},
        {"short clips", short_clips, {0}, 0},
        {"long clips", long_clips, {0}, 0},
        {"the scorer's own rules pick the same", like_python, {0}, 0},
        {"pixels of the frames that were picked", copies, {0}, 0},
        {"what is outside is refused", refused, {0}, 0},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
