#include "tests/grad.h"

#include <math.h>
#include <stdio.h>

#include "core/rng.h"
#include "tests/check.h"

double grad_worst(const struct grad_case *c, const char *tensor, double *x, const double *g,
                  int64_t n, int entries, void (*set)(void *arg))
{
    double top = 0, worst = 0;
    for (int64_t i = 0; i < n; i++)
        if (fabs(g[i]) > top) top = fabs(g[i]);
    const struct rng_stream s =
        rng_open((struct rng_key){.seed = 5, .use = RNG_TEST, .item = rng_hash(tensor)});
    const int64_t tries = n < entries ? n : entries;
    for (int64_t k = 0; k < tries; k++) {
        const int64_t i = n <= entries ? k : (int64_t)(rng_uniform_at(s, (uint64_t)k) * (double)n);
        /* five points: the error of order step^4 allows a step large enough for small gradients */
        const double keep = x[i];
        double f[4];
        const double at[4] = {2, 1, -1, -2};
        for (int p = 0; p < 4; p++) {
            x[i] = keep + at[p] * c->step;
            if (set) set(c->arg);
            f[p] = c->loss(c->arg);
        }
        x[i] = keep;
        const double fd = (8 * (f[1] - f[2]) - (f[0] - f[3])) / (12 * c->step);
        /* a gradient that is zero everywhere must be zero in the differences too */
        const double e = fabs(fd - g[i]) / (top > 0 ? top : 1);
        if (e > worst) worst = e;
        EXPECT(e <= c->tol, "%s %s[%lld]: finite difference %.12g, gradient %.12g, error %.3g",
               c->name, tensor, (long long)i, fd, g[i], e);
    }
    if (set) set(c->arg);
    return worst;
}
