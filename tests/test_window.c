/* Windows of stochastic steps against docs/spec/rl.md 1.18. */
#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "rl/window.h"
#include "tests/check.h"

static const struct window_config OFFICIAL = {
    .strategy = WINDOW_PROGRESSIVE, .size = 4, .stride = 1, .iters = 25, .roll_back = true};

static int at(const struct window_config *c, int64_t epoch)
{
    const struct window w = window_at(c, 25, 7, epoch);
    EXPECT(w.size == c->size && w.first >= 0 && w.first + w.size <= 25, "window {%d, %d}", w.first,
           w.size);
    return w.first;
}

static void official_windows(struct comm *world)
{
    (void)world;
    struct window_config c = OFFICIAL;
    for (int64_t i = 0; i < 3000; i++) {
        const int want = (int)(i / 25 % 20); /* never short, never empty */
        EXPECT(at(&c, i) == want, "epoch %lld starts at %d", (long long)i, at(&c, i));
    }
    EXPECT(at(&c, 475) == 19 && at(&c, 499) == 19 && at(&c, 500) == 0, "rolls back");
    c.roll_back = false;
    EXPECT(at(&c, 475) == 19 && at(&c, 500) == 19 && at(&c, 1000000) == 19, "stays");
    c = OFFICIAL;
    c.stride = 0; /* no overlap: the last place is cut off at limit - size */
    static const int places[] = {0, 4, 8, 12, 16, 19, 0, 4};
    for (int i = 0; i < 8; i++) EXPECT(at(&c, 25 * i + 24) == places[i], "place %d", i);
    c.start = 10; /* of the first pass only */
    static const int from_ten[] = {10, 14, 18, 19, 0, 4, 8, 12, 16, 19, 0};
    for (int i = 0; i < 11; i++) EXPECT(at(&c, 25 * i) == from_ten[i], "place %d from 10", i);
    c.limit = 25;
    EXPECT(at(&c, 25 * 3) == 21 && at(&c, 25 * 4) == 0, "up to the given limit");
}

/* The state machine of the official code with its stop moved to limit - size. */
struct machine {
    int64_t cur, count;
};
static int64_t stay(const struct window_config *c, int64_t cur)
{
    const int64_t least = c->min_iters ? c->min_iters : c->iters / 4 > 1 ? c->iters / 4 : 1;
    if (c->strategy == WINDOW_DECAY) {
        const double p = (double)cur / 23;
        const int64_t t = (int64_t)((double)c->iters * (1 - p) + (double)least * p + 1e-9);
        return t > least ? t : least;
    }
    if (c->strategy == WINDOW_EXP_DECAY)
        return (int64_t)ceil((double)c->iters *
                             exp(-c->decay_rate * fmax(0, (double)(cur - c->decay_from))));
    return c->iters;
}
static void turn(struct machine *m, const struct window_config *c)
{
    if (++m->count < stay(c, m->cur)) return;
    m->count = 0;
    const int64_t last = 23 - c->size;
    if (m->cur == last)
        m->cur = c->roll_back ? 0 : last;
    else
        m->cur = m->cur + c->stride < last ? m->cur + c->stride : last;
}

static void moving_windows(struct comm *world)
{
    (void)world;
    static const int strategy[] = {WINDOW_PROGRESSIVE, WINDOW_DECAY, WINDOW_EXP_DECAY};
    for (int k = 0; k < 48; k++) {
        struct window_config c = OFFICIAL;
        c.strategy = strategy[k % 3];
        c.stride = 1 + k / 3 % 4;
        c.roll_back = k / 12 % 2;
        c.start = k / 24 * 3;
        c.decay_from = 13;
        c.decay_rate = .1;
        c.min_iters = k % 2; /* 0: a quarter */
        struct machine m = {.cur = c.start};
        for (int64_t i = 0; i < 1500; i++, turn(&m, &c))
            EXPECT(at(&c, i) == m.cur, "case %d, epoch %lld: %d, not %lld", k, (long long)i,
                   at(&c, i), (long long)m.cur);
    }
    /* decay of the script: tau 10 to 1 */
    struct window_config c = OFFICIAL;
    c.strategy = WINDOW_DECAY;
    c.iters = 10;
    c.min_iters = 1;
    EXPECT(at(&c, 9) == 0 && at(&c, 10) == 1 && at(&c, 18) == 1 && at(&c, 19) == 2, "decay");
}

static void random_windows(struct comm *world)
{
    (void)world;
    struct window_config c = OFFICIAL;
    c.strategy = WINDOW_RANDOM;
    int count[25] = {0}, first[200], other = 0;
    for (int i = 0; i < 200; i++) first[i] = at(&c, i);
    for (int i = 199; i >= 0; i--) {
        EXPECT(at(&c, i) == first[i], "epoch %d depends on what was asked before", i);
        other += window_at(&c, 25, 8, i).first != first[i];
    }
    EXPECT(other > 150, "the seed changes %d of 200", other);
    for (int i = 0; i < 20000; i++) count[at(&c, i)]++;
    for (int i = 0; i < 25; i++)
        EXPECT(i < 20 ? abs(count[i] - 1000) < 150 : count[i] == 0, "start %d: %d times", i,
               count[i]);
}

static void late_epochs(struct comm *world)
{
    (void)world;
    struct window_config c = OFFICIAL;
    c.strategy = WINDOW_EXP_DECAY;
    c.iters = 2;
    c.decay_rate = .1;
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < 1000; i++) (void)at(&c, 1000000000000 + i);
    clock_gettime(CLOCK_MONOTONIC, &b);
    const double s = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
    EXPECT(s < 1, "%g s for 1000 late epochs", s);
}

static void no_place(void *arg)
{
    (void)arg;
    struct window_config c = OFFICIAL;
    c.size = 24;
    (void)window_at(&c, 25, 0, 0);
}
static void refused(struct comm *world)
{
    (void)world;
    expect_stop("window of 24 steps within 23", RC_SOFTWARE, no_place, NULL);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {"the official window moves without short or empty places", official_windows, {0}, 0},
        {"moving windows follow the official rules", moving_windows, {0}, 0},
        {"random windows are uniform and know no past", random_windows, {0}, 0},
        {"a late epoch costs nothing", late_epochs, {0}, 0},
        {"a window without a place is refused", refused, {0}, 0},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
