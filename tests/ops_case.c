#include "tests/ops_case.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/bf16.h"
#include "core/rng.h"

/* Elements around an array. Allocations start at a multiple of 16 bytes, and so do arrays, but for
 * the shifted ones. */
enum { GUARD = 64 };
static const size_t shifts[] = {1, 4, 8}; /* bf16: by 2, 8 and 16 bytes */
const char *ops_only;
bool ops_shifted;

static void add_cpu(void (*f)(const struct target *), enum dtype t)
{
    const char *isa[] = {"plain", "avx2", "avx512"};
    const char *gemm[] = {"own", "blas", "dnnl"};
    for (int i = 0; i < 3; i++) {
        bool here = i == 0;
#if defined(__x86_64__)
        __builtin_cpu_init();
        if (i == 1) here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        if (i == 2) here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
#endif
        if (!here) continue;
        for (int g = 0; g < (i ? 3 : 1); g++) {
            if (test_fast() && i != 1 && i != 0) continue;
            struct target x = {
                .dev = "cpu", .compute = t, .isa = isa[i], .gemm = gemm[g], .mx = "no"};
            snprintf(x.name, sizeof x.name, "cpu %s %s gemm=%s", dtype_name(t), isa[i], gemm[g]);
            f(&x);
        }
    }
}

/* Matrix units, which work in bf16: in plain C everywhere, AMX where the machine has it. */
static void add_mx(void (*f)(const struct target *))
{
    const char *mx[] = {"emulated", "amx"};
    struct dev *d = dev_open("cpu", DT_BF16, 1);
    char line[256];
    dev_describe(d, line, sizeof line);
    dev_close(d);
    for (int i = 0; i < (strstr(line, "AMX") ? 2 : 1); i++) {
        struct target x = {
            .dev = "cpu", .compute = DT_BF16, .isa = "plain", .gemm = "mx", .mx = mx[i]};
        snprintf(x.name, sizeof x.name, "cpu bf16 matrix units=%s", mx[i]);
        f(&x);
    }
}

void each_target(void (*f)(const struct target *))
{
    const enum dtype types[] = {DT_F32, DT_BF16};
    const char *wanted = ops_only ? ops_only : getenv("OPS_DEVICE");
    int found = 0;
    for (const char *const *n = dev_names(); *n; n++) {
        if (strcmp(*n, "null") == 0 || (wanted && strcmp(*n, wanted) != 0)) continue;
        found++;
        for (int i = 0; i < 2; i++) {
            if (!dev_supports(*n, types[i])) continue;
            if (strcmp(*n, "cpu") == 0) {
                add_cpu(f, types[i]);
                if (types[i] == DT_BF16) add_mx(f);
                continue;
            }
            /* the only device that may: struct dev, deterministic */
            struct target t = {
                .dev = *n, .compute = types[i], .any_order = strcmp(*n, "cuda") == 0};
            snprintf(t.name, sizeof t.name, "%s %s", *n, dtype_name(types[i]));
            f(&t);
        }
    }
    EXPECT(found, "no device %s here", wanted ? wanted : "at all");
}

void case_begin(struct ops_case *c, const struct target *t, const char *fmt, ...)
{
    memset(c, 0, sizeof *c);
    c->target = *t;
    const int n = snprintf(c->what, sizeof c->what, "%s: ", t->name);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->what + n, sizeof c->what - (size_t)n, fmt, ap);
    va_end(ap);
}

static enum dtype type_of(enum kind k, enum dtype compute)
{
    switch (k) {
    case K_T:
        return compute;
    case K_S:
        return dtype_state(compute);
    case K_F64:
        return DT_F64;
    case K_I16:
        return DT_I16;
    default:
        return DT_I32;
    }
}

static double rounded(double x, enum dtype t)
{
    return t == DT_BF16 ? (double)bf16_to(bf16_from((float)x)) : t == DT_F32 ? (double)(float)x : x;
}

int case_var(struct ops_case *c, const char *name, enum kind kind, enum role role, int64_t gap,
             double lo, double hi, int ndim, const int64_t *dim)
{
    CHECK(c->n < MAXVAR, "too many arrays");
    struct var *v = &c->var[c->n];
    snprintf(v->name, sizeof v->name, "%s", name);
    v->kind = kind;
    v->role = role;
    v->ndim = ndim;
    v->width = 1;
    for (int i = 0; i < ndim; i++) {
        v->dim[i] = dim[i];
        if (i) v->width *= dim[i];
    }
    v->ld = v->width + gap;
    v->count = v->dim[0] * v->width;
    v->value = malloc((size_t)(v->count + 1) * sizeof *v->value);
    CHECK(v->value, "out of memory");
    const struct rng_stream s = rng_open((struct rng_key){
        .seed = 11, .use = RNG_TEST, .step = (uint32_t)c->n, .item = rng_hash(name)});
    const enum dtype t = type_of(kind, c->target.compute);
    for (int64_t i = 0; i < v->count; i++) {
        const double x = lo + (hi - lo) * rng_uniform_at(s, (uint64_t)i);
        v->value[i] = t == DT_I16 || t == DT_I32 ? floor(x) : rounded(x, t);
    }
    return c->n++;
}

static void store(unsigned char *at, enum dtype t, double x)
{
    const float f = (float)x;
    const uint16_t h = bf16_from(f);
    const int16_t s = (int16_t)(t == DT_I16 ? x : 0);
    const int32_t i = (int32_t)(t == DT_I32 ? x : 0);
    memcpy(at,
           t == DT_F64    ? (const void *)&x
           : t == DT_F32  ? (const void *)&f
           : t == DT_BF16 ? (const void *)&h
           : t == DT_I16  ? (const void *)&s
                          : (const void *)&i,
           dtype_size(t));
}

static double load(const unsigned char *at, enum dtype t)
{
    double x;
    float f;
    uint16_t h;
    switch (t) {
    case DT_F64:
        memcpy(&x, at, 8);
        return x;
    case DT_F32:
        memcpy(&f, at, 4);
        return (double)f;
    case DT_BF16:
        memcpy(&h, at, 2);
        return (double)bf16_to(h);
    default:
        return 0;
    }
}

/* One array on one side: the bytes before and after, guards included. */
struct copy {
    struct tensor t;
    void *base;
    unsigned char *bytes;
    size_t size, first; /* bytes in all; elements before the array */
};

static void copy_open(struct copy *k, struct dev *d, const struct var *v, enum dtype t,
                      size_t shift)
{
    const size_t e = dtype_size(t);
    k->first = GUARD + shift;
    k->size = ((size_t)(v->dim[0] * v->ld) + k->first + GUARD) * e;
    k->bytes = malloc(k->size);
    CHECK(k->bytes, "out of memory");
    memset(k->bytes, 0xA5, k->size);
    for (int64_t i = 0; i < v->count; i++)
        store(k->bytes + (k->first + (size_t)(i / v->width * v->ld + i % v->width)) * e, t,
              v->value[i]);
    k->base = dev_alloc(d, k->size);
    d->ops->from_host(d, k->base, k->bytes, k->size);
    k->t = tensor_make((char *)k->base + k->first * e, t, v->ndim, v->dim);
    if (v->ld != v->width) k->t.ld = v->ld;
}

/* Reads the array back: checks guards (and everything, for an input), returns its values. */
static double *copy_close(struct copy *k, struct dev *d, const struct var *v, const char *what,
                          int side)
{
    unsigned char *after = malloc(k->size);
    double *out = malloc((size_t)(v->count + 1) * sizeof *out);
    CHECK(after && out, "out of memory");
    d->ops->to_host(d, after, k->base, k->size);
    dev_free(d, k->base);
    const enum dtype t = k->t.dtype;
    const size_t e = dtype_size(t);
    for (int64_t i = 0; i < v->count; i++) {
        const size_t at = (k->first + (size_t)(i / v->width * v->ld + i % v->width)) * e;
        out[i] = load(after + at, t);
        if (v->role == OUT) memcpy(k->bytes + at, after + at, e);
    }
    EXPECT(memcmp(after, k->bytes, k->size) == 0, "%s: side %d changed %s", what, side,
           v->role == OUT ? "the guards of an output" : "an input");
    memcpy(k->bytes, after, k->size);
    free(after);
    return out;
}

/* how: which of the sides differs from ref, for the message */
static void compare(const struct ops_case *c, const struct var *v, const double *out,
                    const double *ref, const char *how)
{
    const enum dtype t = type_of(v->kind, c->target.compute);
    const double tol = t == DT_BF16 ? (v->tol > 4e-3 ? v->tol : 4e-3) : v->tol > 0 ? v->tol : 5e-6;
    bool close = true; /* false for a NaN */
    for (int64_t i = 0; i < v->count; i++)
        close &= fabs(out[i] - ref[i]) <= tol * v->floor || (isinf(ref[i]) && out[i] == ref[i]);
    if (close) return;
    double *got = malloc((size_t)v->count * sizeof *got),
           *want = malloc((size_t)v->count * sizeof *want);
    CHECK(got && want, "out of memory");
    for (int64_t i = 0; i < v->count; i++) { /* an infinity that is right counts as one */
        const bool same = isinf(ref[i]) && out[i] == ref[i];
        got[i] = same ? 0 : out[i];
        want[i] = same ? 0 : ref[i];
    }
    char name[256];
    snprintf(name, sizeof name, "%s: %s%s", c->what, v->name, how);
    expect_close(name, got, want, v->count, tol);
    free(got);
    free(want);
}

struct dev *target_open(const struct target *t, int threads)
{
    if (t->isa) setenv("CPU_ISA", t->isa, 1);
    if (t->gemm) setenv("CPU_GEMM", t->gemm, 1);
    if (t->mx) setenv("CPU_MX", t->mx, 1);
    struct dev *d = dev_open(t->dev, t->compute, threads);
    unsetenv("CPU_ISA");
    unsetenv("CPU_GEMM");
    unsetenv("CPU_MX");
    return d;
}

/* One run of the op on a device of its own. */
struct side {
    struct copy copy[MAXVAR];
    double *out[MAXVAR];
};
typedef void run_op(struct dev *, const struct tensor *, void *);

/* shift: of each array, or NULL. Closes d. */
static void run_side(struct ops_case *c, struct side *s, int number, struct dev *d,
                     const size_t *shift, run_op *run, void *arg)
{
    struct tensor t[MAXVAR];
    for (int i = 0; i < c->n; i++) {
        copy_open(&s->copy[i], d, &c->var[i],
                  type_of(c->var[i].kind, number ? c->target.compute : DT_F64),
                  shift ? shift[i] : 0);
        t[i] = s->copy[i].t;
    }
    run(d, t, arg);
    d->ops->sync(d);
    for (int i = 0; i < c->n; i++)
        s->out[i] = copy_close(&s->copy[i], d, &c->var[i], c->what, number);
    dev_close(d);
}

static void free_side(const struct ops_case *c, struct side *s)
{
    for (int i = 0; i < c->n; i++) {
        free(s->out[i]);
        free(s->copy[i].bytes);
    }
}

/* Side 1 has two threads and is as the device comes; 2 and 3 have one and three, and must equal
 * each other bit by bit, and side 1 too unless that may add in any order. */
static struct dev *open_side(const struct target *t, int number)
{
    if (number == 0) return dev_open("ref", DT_F64, 1);
    struct dev *d = target_open(t, number == 1 ? 2 : number == 2 ? 1 : 3);
    if (t->any_order && number > 1) d->deterministic = true;
    return d;
}

static void compare_sides(const struct ops_case *c, const struct side *side)
{
    const int first = c->target.any_order ? 2 : 1; /* of those with equal bits */
    for (int i = 0; i < c->n; i++) {
        if (c->var[i].role != OUT) continue;
        compare(c, &c->var[i], side[1].out[i], side[0].out[i], "");
        if (first == 2) compare(c, &c->var[i], side[2].out[i], side[0].out[i], " (deterministic)");
        for (int s = first + 1; s < SIDES; s++)
            EXPECT(memcmp(side[first].copy[i].bytes, side[s].copy[i].bytes, side[s].copy[i].size) ==
                       0,
                   "%s: %s depends on %s", c->what, c->var[i].name,
                   first == 2 ? "the run, though deterministic" : "the number of threads");
    }
}

/* Arrays that do not start where an allocation does: on the kernels of the cuda device, which move
 * 16 bytes at once where they may, one after the other and then all of them; elsewhere all. Large
 * cases take one of these by turns. */
static void run_shifted(struct ops_case *c, const struct side *ref, run_op *run, void *arg)
{
    static int cases;
    const int number = cases++, each = strncmp(c->target.dev, "cuda", 4) == 0 ? c->n : 0;
    if (getenv("TEST_FAST") && number % 4) return; /* some of them in the fast set */
    int64_t all = 0;
    for (int i = 0; i < c->n; i++) all += c->var[i].count;
    const bool large = all > 20000;
    ops_shifted = each > 0;
    for (int k = 0; k <= each; k++) { /* k == each: all */
        if (large && k != number % (each + 1)) continue;
        size_t shift[MAXVAR] = {0};
        for (int i = 0; i < c->n; i++)
            if (k == each || i == k) shift[i] = shifts[(number + k) % 3];
        struct side s;
        run_side(c, &s, SIDES, target_open(&c->target, 2), shift, run, arg);
        for (int i = 0; i < c->n; i++) {
            char how[80];
            snprintf(how, sizeof how, " (%s %zu elements off)", k == each ? "all" : c->var[k].name,
                     shifts[(number + k) % 3]);
            if (c->var[i].role == OUT) compare(c, &c->var[i], s.out[i], ref->out[i], how);
        }
        free_side(c, &s);
    }
    ops_shifted = false;
}

void case_check(struct ops_case *c, run_op *run, void *arg)
{
    struct side side[SIDES];
    for (int s = 0; s < SIDES; s++)
        run_side(c, &side[s], s, open_side(&c->target, s), NULL, run, arg);
    compare_sides(c, side);
    run_shifted(c, &side[0], run, arg);
    for (int s = 0; s < SIDES; s++) free_side(c, &side[s]);
    for (int i = 0; i < c->n; i++) free(c->var[i].value);
}
