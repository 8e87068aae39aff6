/* A device named cuda whose op gives other last bits at every call unless it is told to be
 * deterministic, as attention's backward pass by cuDNN does: the cases of ops take that from the
 * device as it comes, and compare two deterministic runs bit by bit. */
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

int main(int argc, char **argv)
{
    static struct dev_backend named;
    named = dev_cuda_emulated;
    named.name = "cuda";
    named.ops = ops;
    dev_register(&named);
    ops_only = named.name;
    const struct test t[] = {
        {.name = "bits are compared between deterministic runs where order is free",
         .run = test_order},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
