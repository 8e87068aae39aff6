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
enum { GOLDEN_VARIANTS = 8 };
extern const char *golden_only; /* one device, or NULL: all */
/* Number k of all: ref f64 and f32, cpu f32 and bf16, cuda f32 and bf16, some in the padded layout
 * too; NULL: not of golden_only. */
const struct variant *golden_variant(int k);
/* Those that this build and machine have. */
int golden_variants(struct variant *v, int max);
struct model_config golden_model(long long file);
/* Row in the reference layout [S*B, n] (kind 1 token, 2 group) or [B, N] (kind 0). */
int64_t golden_place(int kind, int P, int T, int H, int W, int B, int b, int t, int r, int c);
/* Counts one check. tol64 is used for f64, tol32 for f32, l2_bf16 (relative L2) for bf16 (0: the
 * quantity is not compared in bf16). stored_f64 false relaxes tol64 to 2e-7. */
struct bound {
    double tol64, tol32, l2_bf16;
};
void golden_compare(const struct variant *v, const char *what, const double *got,
                    const double *want, int64_t n, bool stored_f64, struct bound b);
/* Gradients of parameters, one after the other as the files have them: each by itself, and (bf16,
 * by norm) all of a block, or of a layer outside the blocks, together, where 2e-2 holds on every
 * device. By itself 2e-2 holds on cuda (3e-2 on cpu, where one of 40 values came to 2.1e-2) but for
 * what makes queries and keys, which keeps the 6e-2 of tests/golden/README.md. */
struct grad_sum {
    char group[64];
    double diff, all; /* squared */
};
void golden_grad(const struct variant *v, struct grad_sum *sum, const char *name, const double *got,
                 const double *want, int64_t n, bool stored_f64);
void golden_grad_end(const struct variant *v, struct grad_sum *sum);
void golden_label(char *out, int size, const struct variant *v, const char *file,
                  const char *group);
double relative_l2(const double *got, const double *want, int64_t n);

/* One group of a file on one variant. What it reads and makes lives until the group is done. */
struct golden_case {
    struct variant v;
    struct dev *dev; /* with_dev only; arena holds its tensors */
    struct arena arena;
    long long file;
    const char *name; /* of the file */
    char group[96];   /* "/padded" */
    void **owned;
    int num_owned, room;
};
/* Which variants: the first one, as nothing depends on the device; the plain layout in f64 and f32;
 * the same with bf16; all, with the padded layout. */
enum golden_on { GOLDEN_HOST, GOLDEN_EXACT, GOLDEN_DEVICES, GOLDEN_ALL };
/* Runs f on every group with dataset (or group) `key` of the files PREFIX*.h5 and on the files
 * themselves where key is in the root; each one is a line of the output and of the counts. Skips
 * when there is no such file. with_dev: c->dev and c->arena are ready. */
void golden_each(const char *prefix, const char *key, enum golden_on on, bool with_dev,
                 void (*f)(struct golden_case *c));
bool golden_has(const struct golden_case *c, const char *name);
struct h5_array golden_read(struct golden_case *c, const char *name); /* CHECK when missing */
double golden_attr(const struct golden_case *c, const char *name);
double *golden_doubles(struct golden_case *c, int64_t n); /* zeros */
struct tensor golden_put(struct golden_case *c, enum dtype d, int ndim, const int64_t *dim,
                         const double *host);
struct tensor golden_new(struct golden_case *c, enum dtype d, int ndim, const int64_t *dim);
double *golden_get(struct golden_case *c, struct tensor t); /* rows may be strided */
/* t against dataset `name` of the group, both flat. state: got is S, so f32 where T is bf16. */
void golden_check(struct golden_case *c, const char *name, struct tensor t, struct bound b);
void golden_check_values(struct golden_case *c, const char *name, const double *got, bool state,
                         struct bound b);
#endif
