/* Verb diff: two checkpoints, tensor by tensor. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/args.h"
#include "train/inspect.h"
#include "train/verbs.h"

static const char usage[] =
    "osp diff CHECKPOINT CHECKPOINT [--json]\n"
    "Compares all tensors. Exit code 0: every value is the same; 1: something differs.";

enum verdict { SAME, DIFFERENT, OTHER_SHAPE, ONLY_A, ONLY_B };
static const char *const verdict_name[] = {"same", "different", "shape", "only in A", "only in B"};

struct compared {
    struct ckpt_tensor a, b;
    enum verdict verdict;
    double max, relative; /* max |a-b|; ||a-b|| / ||a||; infinite where only one is finite */
};

static bool find(const struct ckpt *c, const struct ckpt_tensor *like, struct ckpt_tensor *out)
{
    const int n = ckpt_num_tensors(c);
    for (int i = 0; i < n; i++) {
        *out = ckpt_tensor_at(c, i);
        if (out->kind == like->kind && strcmp(out->name, like->name) == 0) return true;
    }
    return false;
}

static bool same_shape(const struct ckpt_tensor *a, const struct ckpt_tensor *b)
{
    return a->ndim == b->ndim && a->dtype == b->dtype &&
           memcmp(a->dim, b->dim, (size_t)a->ndim * sizeof *a->dim) == 0;
}

static void compare_values(struct ckpt *ca, struct ckpt *cb, struct compared *r, double *x,
                           double *y)
{
    double diff = 0, norm = 0;
    bool other = false; /* bits: also finds -0 against 0, and takes equal NaNs as equal */
    for (int64_t at = 0; at < r->a.count; at += SCAN_ELEMENTS) {
        const int64_t n = r->a.count - at < SCAN_ELEMENTS ? r->a.count - at : SCAN_ELEMENTS;
        ckpt_read_f64(ca, &r->a, at, n, x);
        ckpt_read_f64(cb, &r->b, at, n, y);
        if (memcmp(x, y, (size_t)n * sizeof *x) == 0 && other == false) {
            for (int64_t i = 0; i < n; i++) norm += isfinite(x[i]) ? x[i] * x[i] : 0;
            continue;
        }
        for (int64_t i = 0; i < n; i++) {
            if (memcmp(&x[i], &y[i], sizeof *x) == 0) {
                norm += isfinite(x[i]) ? x[i] * x[i] : 0;
                continue;
            }
            other = true;
            const double d = x[i] - y[i];
            const double far = isfinite(d) ? fabs(d) : INFINITY;
            r->max = fmax(r->max, far);
            diff += far * far;
            norm += isfinite(x[i]) ? x[i] * x[i] : 0;
        }
    }
    r->relative = norm > 0 ? sqrt(diff / norm) : diff > 0 ? INFINITY : 0;
    r->verdict = other ? DIFFERENT : SAME;
}

/* Everything of a against b, then what b has alone. */
static struct compared *compare(struct ckpt *a, struct ckpt *b, int *n)
{
    const int na = ckpt_num_tensors(a), nb = ckpt_num_tensors(b);
    struct compared *r = calloc((size_t)(na + nb) + 1, sizeof *r);
    double *x = malloc(SCAN_ELEMENTS * sizeof *x), *y = malloc(SCAN_ELEMENTS * sizeof *y);
    CHECK(r && x && y, "out of memory");
    for (int i = 0; i < na; i++) {
        r[i].a = ckpt_tensor_at(a, i);
        if (!find(b, &r[i].a, &r[i].b))
            r[i].verdict = ONLY_A;
        else if (!same_shape(&r[i].a, &r[i].b))
            r[i].verdict = OTHER_SHAPE;
        else
            compare_values(a, b, &r[i], x, y);
    }
    *n = na;
    for (int i = 0; i < nb; i++) {
        struct compared only = {.a = ckpt_tensor_at(b, i), .verdict = ONLY_B};
        struct ckpt_tensor found;
        if (!find(a, &only.a, &found)) r[(*n)++] = only;
    }
    free(x);
    free(y);
    return r;
}

static void print_row(FILE *out, const struct compared *r)
{
    char sa[96], sb[96];
    shape_string(sa, sizeof sa, &r->a);
    shape_string(sb, sizeof sb, &r->b);
    fprintf(out, "%-10s %s/%s %s %s", verdict_name[r->verdict], ckpt_kind_name(r->a.kind),
            r->a.name, sa, dtype_name(r->a.dtype));
    if (r->verdict == OTHER_SHAPE) fprintf(out, " in A, %s %s in B", sb, dtype_name(r->b.dtype));
    if (r->verdict == DIFFERENT)
        fprintf(out, "  max |a-b| %.6g, relative L2 %.3g", r->max, r->relative);
    fprintf(out, "\n");
}

static void real_or_text(json_t *o, const char *key, double v)
{
    json_object_set_new(o, key, isfinite(v) ? json_real(v) : json_string("inf"));
}

static void print_json(FILE *out, struct ckpt *a, struct ckpt *b, const struct compared *r, int n,
                       const int *count)
{
    json_t *rows = json_array(), *counts = json_object();
    for (int v = 0; v <= ONLY_B; v++)
        json_object_set_new(counts, verdict_name[v], json_integer(count[v]));
    for (int i = 0; i < n; i++) {
        if (r[i].verdict == SAME) continue;
        json_t *o = json_pack("{s:s, s:s, s:s}", "verdict", verdict_name[r[i].verdict], "kind",
                              ckpt_kind_name(r[i].a.kind), "name", r[i].a.name);
        if (r[i].verdict == DIFFERENT) {
            real_or_text(o, "max", r[i].max);
            real_or_text(o, "relative_l2", r[i].relative);
        }
        json_array_append_new(rows, o);
    }
    json_t *all = json_pack("{s:s, s:s, s:I, s:I, s:o, s:o}", "a", ckpt_path(a), "b", ckpt_path(b),
                            "step_a", (json_int_t)ckpt_step(a), "step_b", (json_int_t)ckpt_step(b),
                            "counts", counts, "tensors", rows);
    CHECK(all && json_dumpf(all, out, JSON_INDENT(1) | JSON_REAL_PRECISION(17)) == 0,
          "the comparison cannot be encoded");
    fprintf(out, "\n");
    json_decref(all);
}

int diff_checkpoints(const char *path_a, const char *path_b, bool json, FILE *out)
{
    struct comm *world = comm_self(NULL);
    struct ckpt *a = ckpt_open(world, path_a, false), *b = ckpt_open(world, path_b, false);
    int n, count[ONLY_B + 1] = {0};
    struct compared *r = compare(a, b, &n);
    for (int i = 0; i < n; i++) count[r[i].verdict]++;
    if (json) {
        print_json(out, a, b, r, n, count);
    } else {
        fprintf(out, "A %s, step %lld\nB %s, step %lld\n", ckpt_path(a), (long long)ckpt_step(a),
                ckpt_path(b), (long long)ckpt_step(b));
        for (int i = 0; i < n; i++)
            if (r[i].verdict != SAME) print_row(out, &r[i]);
        fprintf(out, "%d tensors are the same", count[SAME]);
        for (int v = DIFFERENT; v <= ONLY_B; v++)
            fprintf(out, ", %d %s", count[v], verdict_name[v]);
        fprintf(out, "\n");
    }
    free(r);
    ckpt_close(a);
    ckpt_close(b);
    comm_free(world);
    return count[SAME] == n ? 0 : 1;
}

int verb_diff(int argc, char **argv)
{
    struct args a;
    args_parse(&a, argc, argv, usage);
    if (!a.config || a.num_rest != 1 || a.num_sets) err_stop(RC_USAGE, "%s", usage);
    const int rc = diff_checkpoints(a.config, a.rest[0], a.json, stdout);
    args_free(&a);
    return rc;
}
