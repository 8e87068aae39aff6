/* Finite differences in f64: the judge of every backward. */
#ifndef TESTS_GRAD_H
#define TESTS_GRAD_H
#include <stdint.h>
struct grad_case {
    const char *name;
    double (*loss)(void *arg); /* evaluates the loss at the current values */
    void *arg;
    double step, tol;
};
/* Central differences for `entries` elements of x (all when n is small), chosen by a counter:
 * error = |fd - g| / max|g|; the worst must be below tol. x is changed and restored through set. */
double grad_worst(const struct grad_case *c, const char *tensor, double *x, const double *g,
                  int64_t n, int entries, void (*set)(void *arg));
#endif
