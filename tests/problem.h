/* Inputs and parameters of a model for tests: normal numbers by counter, the same on any rank. */
#ifndef TESTS_PROBLEM_H
#define TESTS_PROBLEM_H
#include "tests/fixture.h"
#include "tests/grad.h"
struct problem { /* one batch, host doubles in the latent layout */
    int64_t n, out_n, text_n;
    double *xt, *target, *text, t[16];
};
/* n normal numbers of stream `item`; malloc'ed. */
double *problem_draw(int64_t n, uint64_t item);
/* Samples [first, first+batch) of an endless stream, so that ranks can take their own. t, h, w:
 * token grid. */
struct problem problem_new(const struct model_config *m, int first, int batch, int t, int h, int w);
void problem_free(struct problem *p);
/* Its arrays as the input of a forward pass. */
struct step_io problem_io(const struct problem *p, double share);
/* Non-trivial values everywhere: weights of normal size, norms around 1. */
void problem_fill_params(struct fixture *f);
/* Gradients of all parameters, in unit order; malloc'ed; collective. */
double *problem_grads(struct fixture *f, int64_t *n);
/* The same for adapters: non-zero everywhere (without B there is no gradient of A), and all their
 * gradients, in their order; malloc'ed. */
void problem_fill_adapters(struct fixture *f);
double *problem_adapter_grads(struct fixture *f, int64_t *n);
/* The loss of one step as a function of one tensor, for finite differences. */
struct problem_fd {
    struct fixture *f;
    struct problem *p;
    const struct param *param; /* what problem_fd_worst is at */
    bool adapters;
    double *x;
};
double problem_fd_loss(void *fd);
/* Worst error over `entries` elements of each of n parameters or adapters. */
double problem_fd_worst(const struct grad_case *c, struct problem_fd *fd, const struct param *q,
                        int n, int entries);
/* What rank 0 has, on every rank: *n doubles malloc'ed; x is NULL on the others. */
double *problem_share(struct comm *world, double *x, int64_t *n);
#endif
