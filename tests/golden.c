#include "tests/golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"

const char *golden_only;

const struct variant *golden_variant(int k)
{
    static const struct variant all[GOLDEN_VARIANTS] = {
        {"ref", DT_F64, PAD_NONE},  {"ref", DT_F64, PAD_REF},   {"ref", DT_F32, PAD_NONE},
        {"cpu", DT_F32, PAD_NONE},  {"cpu", DT_F32, PAD_REF},   {"cpu", DT_BF16, PAD_NONE},
        {"cuda", DT_F32, PAD_NONE}, {"cuda", DT_BF16, PAD_NONE}};
    return !golden_only || strcmp(all[k].device, golden_only) == 0 ? &all[k] : NULL;
}

int golden_variants(struct variant *v, int max)
{
    int n = 0;
    for (int k = 0; k < GOLDEN_VARIANTS && n < max; k++) {
        const struct variant *x = golden_variant(k);
        if (x && dev_supports(x->device, x->compute)) v[n++] = *x;
    }
    return n;
}

struct model_config golden_model(long long f)
{
    char type[32];
    h5_attr_text(f, "/", "model_type", type, sizeof type);
    const bool full = strcmp(type, "full") == 0;
    return (struct model_config){.dim = (int64_t)h5_attr(f, "/", "dim"),
                                 .ffn_dim = (int64_t)h5_attr(f, "/", "ffn"),
                                 .freq_dim = (int64_t)h5_attr(f, "/", "freq_dim"),
                                 .in_dim = (int64_t)h5_attr(f, "/", "in_dim"),
                                 .out_dim = (int64_t)h5_attr(f, "/", "out_dim"),
                                 .num_heads = (int64_t)h5_attr(f, "/", "heads"),
                                 .num_layers = (int64_t)h5_attr(f, "/", "layers"),
                                 .text_len = (int64_t)h5_attr(f, "/", "text_len"),
                                 .text_dim = (int64_t)h5_attr(f, "/", "text_dim"),
                                 .eps = h5_attr(f, "/", "eps"),
                                 .skiparse_model_type = full ? SKIPARSE_FULL : SKIPARSE_DUAL_END,
                                 .sparse_ratio = (int64_t)h5_attr(f, "/", "P"),
                                 .num_full_blocks = (int64_t)h5_attr(f, "/", "nf"),
                                 .skiparse_dim = 1,
                                 .skiparse_strict = true};
}

int64_t golden_place(int kind, int P, int T, int H, int W, int B, int b, int t, int r, int c)
{
    if (kind == 0) return (((int64_t)b * T + t) * H + r) * W + c;
    const int PP = P * P, hp = (H + PP - 1) / PP * PP / P, wp = (W + PP - 1) / PP * PP / P;
    int s, y, x;
    if (kind == 1) {
        s = r % P * P + c % P;
        y = r / P;
        x = c / P;
    } else {
        s = r / P % P * P + c / P % P;
        y = r / PP * P + r % P;
        x = c / PP * P + c % P;
    }
    const int64_t n = (int64_t)T * hp * wp;
    return ((int64_t)s * B + b) * n + ((int64_t)t * hp + y) * wp + x;
}

double relative_l2(const double *got, const double *want, int64_t n)
{
    double d = 0, w = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(got[i])) return INFINITY;
        d += (got[i] - want[i]) * (got[i] - want[i]);
        w += want[i] * want[i];
    }
    return d == 0 ? 0 : sqrt(d / w);
}

void golden_compare(const struct variant *v, const char *what, const double *got,
                    const double *want, int64_t n, bool stored_f64, struct bound b)
{
    if (v->compute == DT_BF16) {
        if (b.l2_bf16 == 0) return;
        const double e = relative_l2(got, want, n);
        EXPECT(e <= b.l2_bf16, "%s: L2 error %.3g > %.3g", what, e, b.l2_bf16);
        return;
    }
    double tol = v->compute == DT_F64 ? b.tol64 : b.tol32;
    if (v->compute == DT_F64 && !stored_f64 && tol < 2e-7) tol = 2e-7;
    expect_close(what, got, want, n, tol);
}

/* The sum of dp over the keys of a query is 0 behind a softmax: the gradients of what makes queries
 * and keys are sums that cancel (that of a key's bias is what rotation and norm leave of 0), and
 * rounding weighs more in them. */
static bool before_softmax(const char *name)
{
    static const char *const parts[] = {"attn.q.", "attn.k.", "attn.norm_", "norm3."};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strstr(name, parts[i])) return true;
    return false;
}

void golden_grad(const struct variant *v, struct grad_sum *sum, const char *name, const double *got,
                 const double *want, int64_t n, bool stored_f64)
{
    const bool cuda = strcmp(v->device, "cuda") == 0;
    const struct bound other = {2e-7, 5e-6, cuda ? 2e-2 : 3e-2}, sensitive = {2e-7, 1e-5, 6e-2};
    golden_compare(v, name, got, want, n, stored_f64, before_softmax(name) ? sensitive : other);
    int len = 0, dots = strncmp(name, "blocks.", 7) == 0 ? 2 : 1;
    while (name[len] && !(name[len] == '.' && --dots == 0)) len++;
    if (strncmp(name, "grads/", 6) == 0) len = 5; /* of one block */
    if (strncmp(name, sum->group, (size_t)len) != 0 || sum->group[len]) {
        golden_grad_end(v, sum);
        snprintf(sum->group, sizeof sum->group, "%.*s", len, name);
    }
    for (int64_t i = 0; i < n; i++) {
        sum->diff += (got[i] - want[i]) * (got[i] - want[i]);
        sum->all += want[i] * want[i];
    }
}

void golden_grad_end(const struct variant *v, struct grad_sum *sum)
{
    const double e = sum->diff != 0 ? sqrt(sum->diff / sum->all) : 0;
    if (v->compute == DT_BF16)
        EXPECT(e <= 2e-2, "all gradients of %s: L2 error %.3g > 0.02", sum->group, e);
    *sum = (struct grad_sum){0};
}

void golden_label(char *out, int size, const struct variant *v, const char *file, const char *group)
{
    snprintf(out, (size_t)size, "%s %s on %s %s%s", file, group, v->device, dtype_name(v->compute),
             v->pad_mode == PAD_REF ? " (padded layout)" : "");
}

static void own(struct golden_case *c, void *p)
{
    if (c->num_owned == c->room) {
        c->room = c->room ? 2 * c->room : 64;
        c->owned = realloc(c->owned, (size_t)c->room * sizeof *c->owned);
    }
    CHECK(p && c->owned, "out of memory");
    c->owned[c->num_owned++] = p;
}

bool golden_has(const struct golden_case *c, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", c->group, name);
    return h5_has(c->file, path);
}

struct h5_array golden_read(struct golden_case *c, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", c->group, name);
    struct h5_array a = h5_read(c->file, path);
    own(c, a.v);
    return a;
}

double golden_attr(const struct golden_case *c, const char *name)
{
    return h5_attr(c->file, c->group[0] ? c->group : "/", name);
}

double *golden_doubles(struct golden_case *c, int64_t n)
{
    double *p = calloc((size_t)n + 1, sizeof *p);
    own(c, p);
    return p;
}

struct tensor golden_new(struct golden_case *c, enum dtype d, int ndim, const int64_t *dim)
{
    struct tensor t = arena_new(&c->arena, d, ndim, dim);
    if (d == DT_F64 || d == DT_F32 || d == DT_BF16) c->dev->ops->fill(c->dev, t, 0);
    return t;
}

struct tensor golden_put(struct golden_case *c, enum dtype d, int ndim, const int64_t *dim,
                         const double *host)
{
    struct tensor t = arena_new(&c->arena, d, ndim, dim);
    dev_put_f64(c->dev, t, host);
    return t;
}

double *golden_get(struct golden_case *c, struct tensor t)
{
    double *out = golden_doubles(c, tensor_count(t));
    if (!tensor_contiguous(t)) {
        struct tensor flat = arena_like(&c->arena, t);
        c->dev->ops->cast(c->dev, flat, t);
        t = flat;
    }
    dev_get_f64(c->dev, out, t);
    return out;
}

void golden_check_values(struct golden_case *c, const char *name, const double *got, bool state,
                         struct bound b)
{
    const struct h5_array want = golden_read(c, name);
    struct variant v = c->v;
    if (state) v.compute = dtype_state(v.compute);
    golden_compare(&v, name, got, want.v, want.count, want.stored_f64, b);
}

void golden_check(struct golden_case *c, const char *name, struct tensor t, struct bound b)
{
    const struct h5_array want = golden_read(c, name);
    EXPECT(tensor_count(t) == want.count, "%s has %lld values, the file %lld", name,
           (long long)tensor_count(t), (long long)want.count);
    if (tensor_count(t) == want.count) golden_check_values(c, name, golden_get(c, t), false, b);
}

struct each {
    struct golden_case c;
    const char *key;
    void (*f)(struct golden_case *c);
    int found, files;
};

static void each_one(struct each *e)
{
    struct golden_case *c = &e->c;
    char label[256];
    golden_label(label, sizeof label, &c->v, c->name, c->group[0] ? c->group + 1 : "(root)");
    const int before = test_failures();
    e->found++;
    e->f(c);
    test_note(label, test_failures() == before);
    for (int i = 0; i < c->num_owned; i++) free(c->owned[i]);
    c->num_owned = 0;
    if (c->dev) arena_release(&c->arena, 0);
}

static void each_group(void *arg, const char *name, bool is_group)
{
    struct each *e = arg;
    if (!is_group) return;
    snprintf(e->c.group, sizeof e->c.group, "/%s", name);
    if (golden_has(&e->c, e->key)) each_one(e);
}

static void each_file(void *arg, long long file, const char *name)
{
    struct each *e = arg;
    e->c.file = file;
    e->c.name = name;
    e->c.group[0] = 0;
    if (golden_has(&e->c, e->key))
        each_one(e);
    else
        h5_each(file, "/", each_group, e);
}

static bool wanted(const struct variant *v, enum golden_on on)
{
    if (on == GOLDEN_ALL) return true;
    return v->pad_mode == PAD_NONE && (on == GOLDEN_DEVICES || v->compute != DT_BF16);
}

void golden_each(const char *prefix, const char *key, enum golden_on on, bool with_dev,
                 void (*f)(struct golden_case *c))
{
    struct variant v[16];
    const int n = on == GOLDEN_HOST ? 1 : golden_variants(v, 16);
    if (on == GOLDEN_HOST) golden_variants(v, 1);
    struct each e = {.key = key, .f = f};
    for (int i = 0; i < n; i++) {
        if (!wanted(&v[i], on)) continue;
        memset(&e.c, 0, sizeof e.c);
        e.c.v = v[i];
        if (with_dev) {
            e.c.dev = dev_open(v[i].device, v[i].compute, 2);
            e.c.dev->poison = true;
            arena_init(&e.c.arena, e.c.dev, (size_t)64 << 20, "golden");
        }
        e.files += golden_files(prefix, each_file, &e);
        free(e.c.owned);
        if (!with_dev) continue;
        arena_free(&e.c.arena);
        dev_close(e.c.dev);
    }
    if (!e.files)
        test_skip("no file %s*.h5 in %s", prefix, golden_dir());
    else
        EXPECT(e.found, "files %s*.h5 without any %s", prefix, key);
}
