/* One op on several devices with the same inputs: the ref device in f64 judges. Every array lies
 * between guard elements, and between its rows too when it is strided; guards and inputs must come
 * out as they went in, and the result of one thread must equal that of several bit by bit (on cuda:
 * of one deterministic run that of another). Arrays start at a multiple of 16 bytes, and then once
 * more 1, 4 or 8 elements behind one. */
#ifndef TESTS_OPS_CASE_H
#define TESTS_OPS_CASE_H
#include "core/dev.h"
#include "tests/check.h"

enum kind { K_T, K_S, K_F64, K_I16, K_I32 };
enum role { IN, OUT };
enum { MAXVAR = 16, SIDES = 4 }; /* ref f64, tested, tested with 1 thread, with 3 threads */
struct var {
    char name[32];
    enum kind kind;
    enum role role;
    int ndim;
    int64_t dim[TENSOR_MAXDIM], width, ld, count;
    double *value; /* what the array holds before the op, [rows][width] */
    double tol;    /* 0: the default of the dtype */
    double floor;  /* errors are relative to max|want|, or to this if it is larger */
};
struct target { /* a device under test */
    char name[64];
    const char *dev;
    enum dtype compute;
    const char *isa, *gemm, *mx; /* settings of the cpu device, or NULL */
    bool any_order;              /* equal bits from run to run with dev->deterministic only */
};
struct ops_case {
    struct target target;
    char what[160];
    struct var var[MAXVAR];
    int n;
    void *arg;
    /* runs the op; t: the arrays in the order they were declared */
    void (*run)(struct dev *d, const struct tensor *t, void *arg);
};

extern const char *ops_only; /* one device; NULL: the one that OPS_DEVICE names, or all */
/* The arrays of this run start where kernels that move 16 bytes at once do not take them: an op on
 * copies of them goes another way and may differ in its last bits. */
extern bool ops_shifted;
struct dev *target_open(const struct target *t, int threads);
/* Calls f for every device and dtype of this build (the cpu device once per instruction set). */
void each_target(void (*f)(const struct target *t));
void case_begin(struct ops_case *c, const struct target *t, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Declares an array [dim...] with `gap` elements between rows; values uniform in [lo, hi). Returns
 * its number. Integers: lo..hi-1. */
int case_var(struct ops_case *c, const char *name, enum kind kind, enum role role, int64_t gap,
             double lo, double hi, int ndim, const int64_t *dim);
void case_check(struct ops_case *c, void (*run)(struct dev *, const struct tensor *, void *),
                void *arg);
#endif
