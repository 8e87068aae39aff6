/* Where dropout in front of the adapters acts, and what its mean is; its gradients are in
 * test_lora.c, its layouts in test_lora_layouts.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/adapter.h"
#include "tests/check.h"
#include "tests/lora_case.h"

static const char *const everything[] = {"*", NULL};
static double *outputs(struct comm *world, struct fixture_opts o, const uint8_t *gate,
                       const struct rng_key *drop, int64_t *n)
{
    struct fixture f;
    lora_open_filled(&f, world, &o);
    f.ctx.gate = gate;
    f.ctx.drop = drop;
    struct problem p = problem_new(&o.model, 0, o.batch, o.t, o.h, o.w);
    double *v = calloc((size_t)p.out_n, sizeof *v);
    struct step_io io = problem_io(&p, 1);
    io.v = v;
    fixture_step(&f, &io);
    *n = p.out_n;
    problem_free(&p);
    fixture_close(&f);
    return v;
}

/* Nothing without masks, nothing at p = 0; with them other numbers, but not for the base;
 * every sample has the mask of its key. */
static void dropout_on(struct comm *world, const char *device, enum dtype type)
{
    if (!dev_supports(device, type)) return;
    const struct model_config m = lora_small_model();
    const struct lora_config all = lora_make_config(4, 8, everything),
                             thin = lora_thinned(all, 0.3);
    const uint8_t gate[] = {1, 0, 1};
    const struct rng_key swapped[] = {lora_masks[2], lora_masks[1], lora_masks[0]};
    struct fixture_opts o = lora_options(&m, &all), t = lora_options(&m, &thin);
    o.device = t.device = device;
    o.compute = t.compute = type;
    o.batch = t.batch = 3;
    int64_t n;
    double *on = outputs(world, o, NULL, NULL, &n), *zero = outputs(world, o, NULL, lora_masks, &n),
           *unused = outputs(world, t, NULL, NULL, &n),
           *gated = outputs(world, t, gate, lora_masks, &n),
           *dropped = outputs(world, t, NULL, lora_masks, &n),
           *other = outputs(world, t, NULL, swapped, &n);
    o.lora = NULL;
    double *base = outputs(world, o, NULL, NULL, &n);
    const int64_t per = n / 3;
    const size_t bytes = (size_t)per * sizeof *base;
    EXPECT(memcmp(zero, on, 3 * bytes) == 0, "%s %s: p = 0 changes bits", device, dtype_name(type));
    EXPECT(memcmp(unused, on, 3 * bytes) == 0, "%s %s: dropout without masks", device,
           dtype_name(type));
    EXPECT(memcmp(gated + per, base + per, bytes) == 0, "%s %s: a row that is off has dropout",
           device, dtype_name(type));
    for (int b = 0; b < 3; b++) {
        const size_t at = (size_t)(b * per);
        EXPECT(memcmp(dropped + at, on + at, bytes), "%s: sample %d has no dropout", device, b);
        EXPECT((memcmp(dropped + at, other + at, bytes) == 0) == (b == 1),
               "%s: sample %d has not the mask of its key", device, b);
        if (b != 1)
            EXPECT(max_error(dropped + at, gated + at, per, NULL) < (type == DT_BF16 ? 0.1 : 1e-5),
                   "%s: sample %d with a gate beside it", device, b);
    }
    double *const out[] = {on, zero, unused, gated, dropped, other, base};
    for (int i = 0; i < 7; i++) free(out[i]);
}

static void test_dropout(struct comm *world)
{
    dropout_on(world, "ref", DT_F64);
    dropout_on(world, "cpu", DT_F32);
    dropout_on(world, "cpu", DT_BF16);
}

/* Over many masks the adapters' term is what it is without: one linear alone, whose output is
 * linear in the term. */
static void test_mean(struct comm *world)
{
    struct model_config m = lora_small_model();
    const char *const last[] = {"blocks.1.ffn.2", NULL};
    const struct lora_config one = lora_thinned(lora_make_config(4, 1, last), 0.5);
    struct fixture_opts o = lora_options(&m, &one);
    enum { MASKS = 600 };
    struct fixture f;
    lora_open_filled(&f, world, &o);
    struct problem p = problem_new(&m, 0, o.batch, o.t, o.h, o.w);
    struct ctx *c = &f.ctx;
    const struct linear *lin = block_linear(&f.dit->block[1], LINEAR_FFN_OUT);
    const int64_t rows = 6, in = m.ffn_dim, out = m.dim;
    double *x = problem_draw(rows * in, 3), *y = calloc((size_t)(rows * out), sizeof *y),
           *want = calloc((size_t)(rows * out), sizeof *y),
           *mean = calloc((size_t)(rows * out), sizeof *y),
           *square = calloc((size_t)(rows * out), sizeof *y);
    struct tensor xt = arena_new(c->keep, DT_F64, 2, DIMS(rows, in)),
                  yt = arena_new(c->keep, DT_F64, 2, DIMS(rows, out));
    dev_put_f64(f.dev, xt, x);
    c->samples = 2;
    const struct token_rows text = {0};
    for (int k = -1; k < MASKS; k++) {
        const struct rng_key key[2] = {{.seed = 1, .use = RNG_TEST, .item = (uint64_t)(2 * k)},
                                       {.seed = 1, .use = RNG_TEST, .item = (uint64_t)(2 * k + 1)}};
        c->drop = k < 0 ? NULL : key;
        f.dev->ops->fill(f.dev, yt, 0);
        adapter_forward(c, lin->lora, yt, xt, &text, c->tmp);
        arena_release(c->tmp, 0);
        dev_get_f64(f.dev, y, yt);
        for (int64_t i = 0; i < rows * out; i++) {
            if (k < 0) want[i] = y[i];
            if (k >= 0) mean[i] += y[i] / MASKS, square[i] += y[i] * y[i] / MASKS;
        }
    }
    for (int64_t i = 0; i < rows * out; i++) {
        const double std = sqrt(fmax(square[i] - mean[i] * mean[i], 0));
        EXPECT(std > 0 && fabs(mean[i] - want[i]) < 5 * std / sqrt(MASKS),
               "element %lld: mean %g over masks of std %g, %g without", (long long)i, mean[i], std,
               want[i]);
    }
    double *const all[] = {x, y, want, mean, square};
    for (int i = 0; i < 5; i++) free(all[i]);
    problem_free(&p);
    fixture_close(&f);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "dropout is where there is a mask, by the sample's key", .run = test_dropout},
        {.name = "dropout keeps the mean of the adapters' term", .run = test_mean},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
