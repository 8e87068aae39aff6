#include "rl/window.h"

#include <math.h>

#include "core/err.h"
#include "core/rng.h"

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Epochs that the window stays at `at`. The linear decay in integers, rounded down: no rounding
 * decides. */
static int64_t stay(const struct window_config *c, int64_t limit, int64_t at)
{
    const int64_t least = c->min_iters ? c->min_iters : larger(1, c->iters / 4);
    switch (c->strategy) {
    case WINDOW_DECAY:
        return larger(least, (c->iters * (limit - at) + least * at) / limit);
    case WINDOW_EXP_DECAY: {
        const double late = (double)larger(0, at - c->decay_from);
        return larger(1, (int64_t)ceil((double)c->iters * exp(-c->decay_rate * late)));
    }
    default:
        return c->iters;
    }
}

/* Takes the stays from `at` on off *epoch until one of them is not over, and returns where; -1:
 * all are. */
static int64_t walk(const struct window_config *c, int64_t limit, int64_t at, int64_t *epoch)
{
    const int64_t last = limit - c->size, stride = c->stride ? c->stride : c->size;
    for (;;) {
        const int64_t here = stay(c, limit, at);
        if (*epoch < here) return at;
        *epoch -= here;
        if (at == last) return -1;
        at = smaller(at + stride, last);
    }
}

/* At most three walks over the places, whatever the epoch. */
static int64_t moving(const struct window_config *c, int64_t limit, int64_t epoch)
{
    const int64_t last = limit - c->size;
    const int64_t at = walk(c, limit, smaller(c->start, last), &epoch);
    if (at >= 0) return at;
    if (!c->roll_back) return last;
    int64_t left = INT64_MAX;
    (void)walk(c, limit, 0, &left);
    epoch %= INT64_MAX - left; /* epochs of a whole pass */
    return walk(c, limit, 0, &epoch);
}

struct window window_at(const struct window_config *c, int steps, uint64_t seed, int64_t epoch)
{
    CHECK(epoch >= 0 && c->size >= 1 && c->start >= 0 && c->start + c->size <= steps,
          "window [%lld, %lld) of %d steps in epoch %lld", (long long)c->start,
          (long long)(c->start + c->size), steps, (long long)epoch);
    if (c->strategy == WINDOW_FIXED) return (struct window){(int)c->start, (int)c->size};
    const int64_t limit = c->limit ? c->limit : steps - 2;
    CHECK(c->size <= limit && limit <= steps, "window of %lld steps within %lld of %d",
          (long long)c->size, (long long)limit, steps);
    int64_t first;
    if (c->strategy == WINDOW_RANDOM) {
        const struct rng_stream s = rng_open(
            (struct rng_key){.seed = seed, .use = RNG_WINDOW, .step = 1, .item = (uint64_t)epoch});
        first = (int64_t)(rng_uniform_at(s, 0) * (double)(limit - c->size + 1));
    } else {
        CHECK(c->strategy == WINDOW_PROGRESSIVE || c->strategy == WINDOW_DECAY ||
                  c->strategy == WINDOW_EXP_DECAY,
              "window strategy %d", c->strategy);
        CHECK(c->iters >= 1 && c->min_iters >= 0 && c->stride >= 0 && c->decay_rate >= 0,
              "a window moves by %lld after %lld epochs", (long long)c->stride,
              (long long)c->iters);
        first = moving(c, limit, epoch);
    }
    return (struct window){(int)first, (int)c->size};
}
