#include "rl/frames.h"

#include <math.h>

#include "core/err.h"

static double clamp(double v, double lo, double hi) { return fmin(fmax(v, lo), hi); }

static int count(int total, double source_fps, double target_fps)
{
    const int most = (total < FRAMES_MAX ? total : FRAMES_MAX) / 2 * 2;
    const double n = clamp((double)total / source_fps * target_fps, FRAMES_MIN, most);
    return 2 * (int)rint(n / 2);
}

/* linspace in single precision, from both ends. The products are exact in double, so that each
 * value is rounded once, on every machine. */
int frames_pick(int total, double source_fps, double target_fps, int *index, int max)
{
    CHECK(total >= 0 && source_fps > 0 && target_fps > 0, "%d frames at %g fps, %g wanted", total,
          source_fps, target_fps);
    const int n = count(total, source_fps, target_fps);
    CHECK(n <= max, "%d frames, room for %d", n, max);
    const double end = total - 1;
    const float step = n ? (float)(end / (n - 1)) : 0;
    for (int i = 0; i < n; i++) {
        const int back = n - 1 - i;
        const float way = (float)((double)step * (2 * i < n ? i : back));
        index[i] = (int)rintf(2 * i < n ? way : (float)(end - (double)way));
    }
    return n;
}

void frames_copy(uint8_t *dst, const uint8_t *src, int64_t t, int64_t h, int64_t w,
                 const int *index, int n)
{
    const int64_t plane = h * w;
    for (int f = 0; f < n; f++) {
        const int64_t from = index ? index[f] : f;
        CHECK(from >= 0 && from < t, "frame %lld of %lld", (long long)from, (long long)t);
        const uint8_t *r = src + from * plane, *g = r + t * plane, *b = g + t * plane;
        uint8_t *out = dst + f * plane * 3;
        for (int64_t i = 0; i < plane; i++) {
            out[3 * i] = r[i];
            out[3 * i + 1] = g[i];
            out[3 * i + 2] = b[i];
        }
    }
}
