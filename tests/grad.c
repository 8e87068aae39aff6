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
        const double keep = x[i];
        x[i] = keep + c->step;
        if (set) set(c->arg);
        const double up = c->loss(c->arg);
        x[i] = keep - c->step;
        if (set) set(c->arg);
        const double down = c->loss(c->arg);
        x[i] = keep;
        const double fd = (up - down) / (2 * c->step);
        /* a gradient that is zero everywhere must be zero in the differences too */
        const double e = fabs(fd - g[i]) / (top > 0 ? top : 1);
        if (e > worst) worst = e;
        EXPECT(e <= c->tol, "%s %s[%lld]: finite difference %.12g, gradient %.12g, error %.3g",
               c->name, tensor, (long long)i, fd, g[i], e);
    }
    if (set) set(c->arg);
    return worst;
}
