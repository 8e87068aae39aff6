/* Antialiased bicubic resize of 8-bit planes (docs/spec/sft.md 3.5, item 5). The arithmetic is that
 * of the 8-bit path the training clips of the official code go through: weights quantised to 16-bit
 * fixed point, width first, then height, rounded and clamped to 8 bits after each pass. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/video.h"

struct taps { /* of one axis: output i = sum over j < count[i] of weight[i*most+j] * in[first[i]+j]
               */
    int64_t n, most;
    int64_t *first, *count;
    int16_t *weight;
    int precision; /* weights are in units of 2^-precision */
};

static double cubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    return 0;
}

static int choose_precision(double largest)
{
    int p = 0;
    while (p < 22 && (int64_t)(0.5 + largest * (double)(1 << (p + 1))) < (1 << 15)) p++;
    return p;
}

static struct taps taps_make(int64_t in, int64_t out)
{
    const double scale = (double)in / (double)out, wide = scale > 1 ? scale : 1;
    const double support = 2 * wide;
    struct taps t = {.n = out, .most = 2 * (int64_t)ceil(support) + 1};
    t.first = calloc((size_t)out, sizeof *t.first);
    t.count = calloc((size_t)out, sizeof *t.count);
    t.weight = calloc((size_t)(out * t.most), sizeof *t.weight);
    double *w = calloc((size_t)(out * t.most), sizeof *w);
    CHECK(t.first && t.count && t.weight && w, "out of memory");
    double largest = 0;
    for (int64_t i = 0; i < out; i++) {
        const double centre = scale * ((double)i + 0.5);
        int64_t lo = (int64_t)(centre - support + 0.5), hi = (int64_t)(centre + support + 0.5);
        if (lo < 0) lo = 0;
        if (hi > in) hi = in;
        double total = 0, *row = w + i * t.most;
        for (int64_t j = 0; j < hi - lo; j++) {
            row[j] = cubic(((double)(lo + j) - centre + 0.5) / wide);
            total += row[j];
        }
        for (int64_t j = 0; j < hi - lo; j++) {
            row[j] /= total;
            if (row[j] > largest) largest = row[j];
        }
        t.first[i] = lo;
        t.count[i] = hi - lo;
    }
    t.precision = choose_precision(largest);
    for (int64_t i = 0; i < out * t.most; i++) {
        const double v = w[i] * (double)(1 << t.precision);
        t.weight[i] = (int16_t)(v < 0 ? v - 0.5 : v + 0.5);
    }
    free(w);
    return t;
}

static void taps_free(struct taps *t)
{
    free(t->first);
    free(t->count);
    free(t->weight);
}

static uint8_t to_byte(int32_t sum, int precision)
{
    const int32_t v = sum >> precision; /* arithmetic shift, as gcc and clang do */
    return v < 0 ? 0 : v > 255 ? 255 : (uint8_t)v;
}

static void pass_width(uint8_t *out, const uint8_t *in, int64_t h, int64_t w, const struct taps *t)
{
    const int32_t half = 1 << (t->precision - 1);
    for (int64_t y = 0; y < h; y++) {
        for (int64_t x = 0; x < t->n; x++) {
            const uint8_t *p = in + y * w + t->first[x];
            const int16_t *k = t->weight + x * t->most;
            int32_t sum = half;
            for (int64_t j = 0; j < t->count[x]; j++) sum += p[j] * k[j];
            out[y * t->n + x] = to_byte(sum, t->precision);
        }
    }
}

static void pass_height(uint8_t *out, const uint8_t *in, int64_t w, const struct taps *t)
{
    const int32_t half = 1 << (t->precision - 1);
    int32_t *sum = malloc((size_t)w * sizeof *sum);
    CHECK(sum, "out of memory");
    for (int64_t y = 0; y < t->n; y++) {
        for (int64_t x = 0; x < w; x++) sum[x] = half;
        for (int64_t j = 0; j < t->count[y]; j++) {
            const uint8_t *p = in + (t->first[y] + j) * w;
            const int32_t k = t->weight[y * t->most + j];
            for (int64_t x = 0; x < w; x++) sum[x] += p[x] * k;
        }
        for (int64_t x = 0; x < w; x++) out[y * w + x] = to_byte(sum[x], t->precision);
    }
    free(sum);
}

void resize_plane(uint8_t *out, int64_t oh, int64_t ow, const uint8_t *in, int64_t h, int64_t w)
{
    CHECK(oh > 0 && ow > 0 && h > 0 && w > 0, "resize %lld x %lld to %lld x %lld", (long long)h,
          (long long)w, (long long)oh, (long long)ow);
    uint8_t *mid = malloc((size_t)(h * ow));
    CHECK(mid, "out of memory");
    if (ow == w) {
        memcpy(mid, in, (size_t)(h * w));
    } else {
        struct taps t = taps_make(w, ow);
        pass_width(mid, in, h, w, &t);
        taps_free(&t);
    }
    if (oh == h) {
        memcpy(out, mid, (size_t)(h * ow));
    } else {
        struct taps t = taps_make(h, oh);
        pass_height(out, mid, ow, &t);
        taps_free(&t);
    }
    free(mid);
}

void resize_cover(int64_t h, int64_t w, int64_t height, int64_t width, int64_t *oh, int64_t *ow,
                  int64_t *top, int64_t *left)
{
    const double fh = (double)h, fw = (double)w, th = (double)height, tw = (double)width;
    if (fh / fw < th / tw) { /* this order of operations: other orders round up too often */
        *oh = height;
        *ow = (int64_t)ceil(th / fh * fw);
    } else {
        *oh = (int64_t)ceil(tw / fw * fh);
        *ow = width;
    }
    *top = (int64_t)nearbyint((double)(*oh - height) / 2);
    *left = (int64_t)nearbyint((double)(*ow - width) / 2);
}
