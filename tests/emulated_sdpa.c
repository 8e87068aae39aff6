/* The way from attention's ranges to the calls of a library and back, on the emulated cuda device
 * with a stand-in for cuDNN: the same numbers as from the own kernels, for ranges of all kinds, and
 * the calls that were expected. */
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "core/rng.h"
#include "tests/check.h"
#include "tests/fake_cudnn.h"

extern const struct dev_backend dev_cuda_emulated;
extern struct cudnn *emulated_cudnn;
extern size_t cuda_attn_bwd_bytes(const struct dev *d, const struct attn_grad_args *a);
static struct cudnn library;

struct ranges {
    const char *name;
    int n;
    int32_t q_first[8], q_len[8], k_first[8], k_len[8];
    int64_t most_batch; /* 0: none by the library */
    int calls;          /* of the forward pass */
};
static const struct ranges cases[] = {
    {"one range", 1, {0}, {33}, {0}, {33}, 1, 1},
    {"equal neighbours", 3, {0, 11, 22}, {11, 11, 11}, {0, 11, 22}, {11, 11, 11}, 3, 1},
    {"two lengths", 4, {0, 10, 20, 28}, {10, 10, 8, 8}, {0, 10, 20, 28}, {10, 10, 8, 8}, 2, 2},
    {"two lengths by turns", 4, {0, 9, 14, 23}, {9, 5, 9, 5}, {0, 9, 14, 23}, {9, 5, 9, 5}, 2, 2},
    {"unequal distances", 3, {0, 7, 20}, {6, 6, 6}, {0, 7, 20}, {6, 6, 6}, 2, 2},
    {"other keys", 3, {0, 12, 24}, {12, 12, 9}, {20, 10, 0}, {7, 7, 10}, 1, 3},
    {"keys at another distance", 2, {0, 12}, {12, 12}, {3, 10}, {7, 7}, 2, 1},
    {"keys that leave the distance", 3, {0, 6, 12}, {6, 6, 6}, {0, 7, 20}, {6, 6, 6}, 2, 2},
    {"empty ones", 4, {0, 9, 9, 20}, {9, 0, 9, 5}, {0, 9, 18, 27}, {9, 9, 0, 5}, 1, 2},
    {"one row with one key", 4, {0, 6, 7, 8}, {6, 1, 1, 1}, {0, 6, 7, 8}, {6, 1, 1, 5}, 1, 2},
    {"gaps that stay", 2, {3, 20}, {5, 5}, {4, 21}, {9, 9}, 2, 1},
};
enum { ROWS = 36, OUTPUTS = 5 };
struct problem {
    struct dev *d;
    int64_t heads, dim;
    struct tensor qkv, dqkv, o, d_o, lse; /* q, k and v are slices of one array */
    double *out[OUTPUTS];                 /* o, lse, dq, dk, dv as the pass left them */
};

static struct tensor slice(const struct problem *p, struct tensor all, int part)
{
    const int64_t C = p->heads * p->dim;
    return tensor_heads(tensor_cols(all, part * C, C), p->heads);
}

static void keep(struct problem *p, int which, struct tensor t)
{
    const int64_t n = t.dim[0] * tensor_width(t);
    struct tensor packed = dev_tensor(p->d, t.dtype, 2, DIMS(t.dim[0], tensor_width(t)));
    p->d->ops->cast(p->d, packed, t);
    free(p->out[which]);
    p->out[which] = malloc((size_t)n * sizeof(double));
    CHECK(p->out[which], "out of memory");
    dev_get_f64(p->d, p->out[which], packed);
    dev_free(p->d, packed.data);
}

static void passes(struct problem *p, const struct ranges *r)
{
    const struct dev_ops *ops = p->d->ops;
    const int64_t C = p->heads * p->dim;
    const struct seqs s = {r->n, r->q_first, r->q_len, r->k_first, r->k_len};
    const struct rng_stream random = rng_open((struct rng_key){.seed = 3, .use = RNG_TEST});
    ops->rng_normal(p->d, p->qkv, random, 0, 1);
    ops->rng_normal(p->d, p->d_o, random, 77777, 1);
    ops->fill(p->d, p->o, 5);
    ops->fill(p->d, p->lse, 6);
    ops->fill(p->d, p->dqkv, 7);
    struct tensor q = slice(p, p->qkv, 0), k = slice(p, p->qkv, 1), v = slice(p, p->qkv, 2);
    struct tensor o = tensor_heads(p->o, p->heads);
    ops->attn_fwd(p->d, &(struct attn_args){o, p->lse, q, k, v, &s, 0.3});
    const int calls = library.calls;
    ops->attn_bwd(p->d, &(struct attn_grad_args){
                            slice(p, p->dqkv, 0), slice(p, p->dqkv, 1), slice(p, p->dqkv, 2),
                            tensor_heads(p->d_o, p->heads), o, p->lse, q, k, v, &s, 0.3});
    EXPECT(library.calls == 2 * calls, "%s: %d calls forward, %d with the backward pass", r->name,
           calls, library.calls);
    keep(p, 0, p->o);
    keep(p, 1, p->lse);
    for (int i = 0; i < 3; i++) keep(p, 2 + i, tensor_cols(p->dqkv, i * C, C));
}

static void open_problem(struct problem *p, enum dtype t, int64_t heads, int64_t dim)
{
    const int64_t C = heads * dim;
    *p = (struct problem){.d = dev_open(dev_cuda_emulated.name, t, 1), .heads = heads, .dim = dim};
    p->qkv = dev_tensor(p->d, t, 2, DIMS(ROWS, 3 * C));
    p->dqkv = dev_tensor(p->d, t, 2, DIMS(ROWS, 3 * C));
    p->o = dev_tensor(p->d, t, 2, DIMS(ROWS, C));
    p->d_o = dev_tensor(p->d, t, 2, DIMS(ROWS, C));
    p->lse = dev_tensor(p->d, DT_F32, 2, DIMS(ROWS, heads));
    emulated_cudnn = &library;
}

static void close_problem(struct problem *p)
{
    const struct tensor all[] = {p->qkv, p->dqkv, p->o, p->d_o, p->lse};
    for (int i = 0; i < 5; i++) dev_free(p->d, all[i].data);
    for (int i = 0; i < OUTPUTS; i++) free(p->out[i]);
    dev_close(p->d);
}

/* Of rows without keys: lse is -inf on both sides. */
static void finite(double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (x[i] < -1e30) x[i] = -100;
}

static void compare(const struct problem *got, const struct problem *own, const char *name)
{
    const int64_t C = got->heads * got->dim;
    static const char *const what[] = {"o", "lse", "dq", "dk", "dv"};
    for (int i = 0; i < OUTPUTS; i++) {
        const int64_t n = ROWS * (i == 1 ? got->heads : C);
        char text[96];
        snprintf(text, sizeof text, "%s: %s", name, what[i]);
        finite(got->out[i], n);
        finite(own->out[i], n);
        expect_close(text, got->out[i], own->out[i], n, i == 1 ? 1e-5 : 1e-2);
    }
}

static void test_ranges(struct comm *w)
{
    (void)w;
    struct problem got, own;
    open_problem(&got, DT_BF16, 3, 24);
    open_problem(&own, DT_BF16, 3, 24);
    own.d->own_attention = true;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct ranges *r = &cases[i];
        library = (struct cudnn){.refused_len = -1};
        passes(&got, r);
        EXPECT(library.calls == 2 * r->calls && library.most_batch == r->most_batch,
               "%s: %d calls of both passes, expected %d; the largest batch is %lld, expected %lld",
               r->name, library.calls, 2 * r->calls, (long long)library.most_batch,
               (long long)r->most_batch);
        library = (struct cudnn){.refused_len = -1};
        passes(&own, r);
        EXPECT(library.calls == 0, "%s: own_attention called the library", r->name);
        compare(&got, &own, r->name);
    }
    close_problem(&got);
    close_problem(&own);
}

/* Everything that the library does not get, and one that it refuses beside one that it takes. */
static void test_left_out(struct comm *w)
{
    (void)w;
    const struct ranges *two = &cases[2];
    const struct {
        const char *name;
        enum dtype t;
        int64_t dim, refused;
        bool own, deterministic;
        int calls;
    } list[] = {{"f32", DT_F32, 24, -1, false, false, 0},
                {"own", DT_BF16, 24, -1, true, false, 0},
                {"deterministic", DT_BF16, 24, -1, false, true, 0},
                {"odd rows", DT_BF16, 22, -1, false, false, 0},
                {"refused", DT_BF16, 24, 10, false, false, 2},
                {"all", DT_BF16, 24, -1, false, false, 4}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct problem got, own;
        open_problem(&got, list[i].t, 2, list[i].dim);
        open_problem(&own, list[i].t, 2, list[i].dim);
        library = (struct cudnn){.refused_len = list[i].refused};
        own.d->own_attention = true;
        got.d->own_attention = list[i].own;
        got.d->deterministic = list[i].deterministic;
        passes(&got, two);
        EXPECT(library.calls == list[i].calls, "%s: %d calls", list[i].name, library.calls);
        library.calls = 0;
        passes(&own, two);
        compare(&got, &own, list[i].name);
        close_problem(&got);
        close_problem(&own);
    }
}

/* What the plan says of a backward pass, from tensors without memory. */
static size_t planned(const struct problem *p, const struct ranges *r)
{
    const struct seqs s = {r->n, r->q_first, r->q_len, r->k_first, r->k_len};
    struct problem nowhere = *p;
    nowhere.qkv.data = nowhere.dqkv.data = nowhere.o.data = nowhere.d_o.data = nowhere.lse.data =
        (void *)256;
    const struct problem *n = &nowhere;
    const struct tensor o = tensor_heads(n->o, n->heads), d_o = tensor_heads(n->d_o, n->heads);
    return cuda_attn_bwd_bytes(
        p->d, &(struct attn_grad_args){slice(n, n->dqkv, 0), slice(n, n->dqkv, 1),
                                       slice(n, n->dqkv, 2), d_o, o, n->lse, slice(n, n->qkv, 0),
                                       slice(n, n->qkv, 1), slice(n, n->qkv, 2), &s, 0.3});
}

/* Scratch: never more than planned, and the plan is not more than 5 % beyond. */
static void test_bytes(struct comm *w)
{
    (void)w;
    enum { SLACK = 24 }; /* of malloc, which is asked for the size of a block */
    static const struct {
        enum dtype t;
        int64_t heads, dim;
        bool own, deterministic;
    } list[] = {{DT_BF16, 4, 64, false, false}, {DT_BF16, 2, 128, false, false},
                {DT_BF16, 8, 16, true, false},  {DT_BF16, 8, 16, false, true},
                {DT_BF16, 8, 22, false, false}, {DT_F32, 8, 8, false, false}};
    for (size_t l = 0; l < sizeof list / sizeof *list; l++) {
        struct problem p;
        open_problem(&p, list[l].t, list[l].heads, list[l].dim);
        p.d->own_attention = list[l].own;
        p.d->deterministic = list[l].deterministic;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            library = (struct cudnn){.refused_len = -1};
            passes(&p, &cases[i]);
            const size_t plan = planned(&p, &cases[i]), last = malloc_usable_size(p.d->impl),
                         used = last > library.most_room ? last : library.most_room;
            EXPECT((library.most_room > 0) == (l < 2), "%s: wrong way", cases[i].name);
            EXPECT(plan + SLACK >= used && (double)plan <= 1.05 * (double)used,
                   "%lld heads of %lld, %s: %zu bytes planned, %zu taken", (long long)list[l].heads,
                   (long long)list[l].dim, cases[i].name, plan, used);
        }
        close_problem(&p);
    }
}

/* Said once for every reason, however often and whatever comes between. */
static void test_said(struct comm *w)
{
    (void)w;
    struct problem p[2];
    char said[4096], path[4096];
    snprintf(path, sizeof path, "%s/said", test_dir());
    open_problem(&p[0], DT_BF16, 2, 24);
    open_problem(&p[1], DT_BF16, 2, 22); /* rows that are not aligned: another reason */
    log_set_level(LOG_WARN_ALL);
    const int to = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600), was = dup(2);
    CHECK(to >= 0 && was >= 0 && dup2(to, 2) == 2, "%s", path);
    for (int i = 0; i < 6; i++) {
        library = (struct cudnn){.refused_len = 9};
        passes(&p[i % 2], &cases[3]);
    }
    log_set_level(LOG_WARN);
    CHECK(dup2(was, 2) == 2, "stderr");
    close(was);
    const ssize_t n = pread(to, said, sizeof said - 1, 0);
    close(to);
    said[n > 0 ? n : 0] = 0;
    int lines = 0;
    for (const char *at = said; (at = strstr(at, "attention of ")); at++) lines++;
    EXPECT(lines == 2 &&
               strstr(said, "warning: attention of 9 x 9 rows by own kernels, slow: the ") &&
               strstr(said, "rows or heads do not begin at multiples of 16 bytes"),
           "%d lines: %s", lines, said);
    for (int i = 0; i < 2; i++) close_problem(&p[i]);
}

int main(int argc, char **argv)
{
    dev_register(&dev_cuda_emulated);
    const struct test t[] = {
        {.name = "a reason is said once", .run = test_said}, /* first: said before is not said */
        {.name = "ranges of all kinds through the library", .run = test_ranges},
        {.name = "what the library does not get", .run = test_left_out},
        {.name = "scratch is planned to 5 %", .run = test_bytes},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
