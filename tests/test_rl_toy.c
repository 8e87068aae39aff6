/* docs/spec/rl.md 8.9: every algorithm learns to make darker latents with a model of two blocks,
 * and nothing moves without a learning rate. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "tests/rl_case.h"

/* Luma of a latent: the mean of its first channel. */
static double darkness(const struct policy *p, const float *latent)
{
    const int64_t n = p->elements / p->latent[0];
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)latent[i];
    return -sum / (double)n;
}

static struct policy_case_opts options(int algo)
{
    struct policy_case_opts o = {.device = "cpu",
                                 .compute = DT_F32,
                                 .model = policy_case_model(2, 2, 0),
                                 .recompute = RECOMPUTE_NONE,
                                 .t = 3,
                                 .h = 4,
                                 .w = 4,
                                 .rl = policy_case_config(algo)};
    o.model.num_layers = 2;
    o.model.in_dim = o.model.out_dim = 16;
    o.rl.members = 8;
    o.rl.sample_batch = 16;
    o.rl.train_batch = 16;
    o.rl.steps = 6;
    o.rl.sde_steps = 4;
    o.rl.shift = 1;
    o.rl.adv_clip_max = 2;
    return o;
}

struct course { /* means over the first and the last epochs, and of the deviation in a group */
    double first, last, sigma;
};

static struct course epochs(struct rl_case *r, int n)
{
    enum { MEAN_OF = 4 };
    struct course c = {0};
    for (int e = 0; e < n; e++) {
        const double m = rl_case_epoch(r, darkness);
        if (e < MEAN_OF) c.first += m / MEAN_OF, c.sigma += r->scores.std_within / MEAN_OF;
        if (e >= n - MEAN_OF) c.last += m / MEAN_OF;
    }
    return c;
}

static void test_learns(struct comm *world)
{
    const int n = test_fast() ? 12 : 25;
    for (int algo = 0; algo <= ALGO_NFT; algo++) {
        const bool named = algo == ALGO_MIX_GRPO || algo == ALGO_FLOW_GRPO || algo == ALGO_NFT;
        if (test_fast() && !named) continue;
        const struct policy_case_opts o = options(algo);
        struct rl_case r;
        rl_case_open(&r, world, &o);
        lora_init_params(r.c.f.lora, 3);
        const struct course c = epochs(&r, n);
        EXPECT(c.last - c.first > 3 * c.sigma, "%s: from %.4f to %.4f, deviation in a group %.4f",
               algo_name(algo), c.first, c.last, c.sigma);
        EXPECT(r.run.state.adapter.adam_steps == n && r.updates.stats.policy_loss != 0,
               "%s: %lld steps", algo_name(algo), (long long)r.run.state.adapter.adam_steps);
        printf("    %-16s %+5.1f deviations of a group in %d steps\n", algo_name(algo),
               (c.last - c.first) / c.sigma, n);
        rl_case_close(&r);
    }
}

static void test_still(struct comm *world)
{
    for (int algo = 0; algo <= ALGO_NFT; algo++) {
        if (test_fast() && algo != ALGO_MIX_GRPO && algo != ALGO_NFT) continue;
        const struct policy_case_opts o = options(algo);
        struct rl_case r;
        rl_case_open(&r, world, &o);
        lora_init_params(r.c.f.lora, 3);
        r.set.optimizer.lr = 0;
        const int64_t n = lora_num_elements(r.c.f.lora);
        double *before = policy_case_weights(&r.c, STATE_LORA);
        const struct course c = epochs(&r, 8);
        double *after = policy_case_weights(&r.c, STATE_LORA);
        /* groups of dance_grpo share their first noise: they spread less than epochs do */
        const double room = algo == ALGO_DANCE_GRPO ? 3 * c.sigma : c.sigma;
        EXPECT(fabs(c.last - c.first) < room, "%s: from %.4f to %.4f, deviation %.4f",
               algo_name(algo), c.first, c.last, c.sigma);
        EXPECT(memcmp(before, after, (size_t)n * sizeof *after) == 0, "%s: weights changed",
               algo_name(algo));
        free(before);
        free(after);
        rl_case_close(&r);
    }
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "every algorithm learns", .run = test_learns},
        {.name = "without a learning rate nothing moves", .run = test_still},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
