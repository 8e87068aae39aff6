/* Shared by the golden tests: model configuration from file attributes, places in the reference
 * layouts, comparison with the bounds of tests/golden/README.md 4. */
#ifndef TESTS_GOLDEN_H
#define TESTS_GOLDEN_H
#include "tests/fixture.h"
#include "tests/h5.h"
struct variant { /* what a golden case runs on */
    const char *device;
    enum dtype compute;
    int pad_mode;
};
/* ref f64, ref f32, cpu f32, cpu bf16: those that this build has. */
int golden_variants(struct variant *v, int max);
struct model_config golden_model(long long file);
/* Row in the reference layout [S*B, n] (kind 1 token, 2 group) or [B, N] (kind 0). */
int64_t golden_place(int kind, int P, int T, int H, int W, int B, int b, int t, int r, int c);
/* Counts one check. tol64 is used for f64, tol32 for f32, l2_bf16 (relative L2) for bf16 (0: the
 * quantity is not compared in bf16). stored_f64 false relaxes tol64 to 2e-7. */
struct bound {
    double tol64, tol32, l2_bf16;
};
void golden_compare(const struct variant *v, const char *what, const double *got, const double *want,
                    int64_t n, bool stored_f64, struct bound b);
void golden_label(char *out, int size, const struct variant *v, const char *file, const char *group);
double relative_l2(const double *got, const double *want, int64_t n);
#endif
