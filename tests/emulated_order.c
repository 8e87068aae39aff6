/* Order that is free. A device named cuda whose op gives other last bits at every call unless it is
 * told to be deterministic, as attention's backward pass by cuDNN does: the cases of ops take that
 * from the device as it comes, and compare two deterministic runs bit by bit. And sums by atomics
 * in the simulator. */
#include "tests/ops_case.h"

extern const struct dev_backend dev_cuda_emulated;
static struct dev_ops table;
static int calls[2]; /* as it comes, deterministic */

/* y = gelu(x), its first element up or down by a bit at most */
static void any_order(struct dev *d, struct tensor y, struct tensor x)
{
    dev_cuda_emulated.ops(d->compute)->gelu_fwd(d, y, x);
    const int call = calls[d->deterministic]++;
    if (d->deterministic) return;
    if (y.dtype == DT_BF16)
        *(uint16_t *)y.data ^= call % 2;
    else
        *(uint32_t *)y.data ^= call % 2;
}

static const struct dev_ops *ops(enum dtype compute)
{
    const struct dev_ops *emulated = dev_cuda_emulated.ops(compute);
    if (!emulated) return NULL;
    table = *emulated;
    table.gelu_fwd = any_order;
    return &table;
}

static void run(struct dev *d, const struct tensor *t, void *arg)
{
    (void)arg;
    d->ops->gelu_fwd(d, t[0], t[1]);
}

static void one_target(const struct target *t)
{
    struct ops_case c;
    case_begin(&c, t, "an op in any order");
    case_var(&c, "y", K_T, OUT, 0, 0, 1, 2, DIMS(5, 8));
    c.var[0].tol = 1e-2; /* a bit more than a bit of bf16 */
    case_var(&c, "x", K_T, IN, 0, -3, 3, 2, DIMS(5, 8));
    calls[0] = calls[1] = 0;
    case_check(&c, run, NULL);
    EXPECT(t->any_order && calls[0] > 0 && calls[1] == 2,
           "%s: %d calls as it comes, %d deterministic", t->name, calls[0], calls[1]);
}

static void test_order(struct comm *w)
{
    (void)w;
    each_target(one_target);
}

extern void emulated_count(struct dev *d, const int32_t *x, int64_t n, unsigned *bins, float *sum);
extern int emulated_places(struct dev *d, int64_t blocks, int32_t *owner, int *next);

static void test_atomics(struct comm *w)
{
    (void)w;
    enum { N = 1000, BINS = 7, BLOCKS = 6, MOST = 64 };
    struct dev *d = dev_open(dev_cuda_emulated.name, DT_F32, 1);
    int32_t x[N], owner[BLOCKS * MOST];
    unsigned bins[BINS] = {0}, want[BINS] = {0};
    float sum = 0, all = 0;
    for (int i = 0; i < N; i++) {
        x[i] = i * i % BINS;
        want[x[i]]++;
        all += (float)x[i];
    }
    emulated_count(d, x, N, bins, &sum);
    for (int i = 0; i < BINS; i++)
        EXPECT(bins[i] == want[i], "bin %d: %u, expected %u", i, bins[i], want[i]);
    EXPECT(sum == all, "sum %g, expected %g", (double)sum, (double)all);
    int next = 0;
    for (int i = 0; i < BLOCKS * MOST; i++) owner[i] = -1;
    const int lanes = emulated_places(d, BLOCKS, owner, &next);
    EXPECT(next == BLOCKS * lanes, "%d places, expected %d", next, BLOCKS * lanes);
    for (int i = 0; i < BLOCKS * MOST; i++)
        EXPECT(owner[i] == (i < next ? lanes : -1), "place %d: %d", i, owner[i]);
    dev_close(d);
}

int main(int argc, char **argv)
{
    static struct dev_backend named;
    named = dev_cuda_emulated;
    named.name = "cuda";
    named.ops = ops;
    dev_register(&named);
    dev_register(&dev_cuda_emulated);
    ops_only = named.name;
    const struct test t[] = {
        {.name = "bits are compared between deterministic runs where order is free",
         .run = test_order},
        {.name = "atomics of the simulator: every lane is counted once", .run = test_atomics},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
