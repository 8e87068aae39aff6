/* Which samples an optimizer step takes, and the clipped objective of one of them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rl/units.h"
#include "rl/update.h"
#include "tests/check.h"

enum { MOST = 256 };
static const struct {
    int64_t batch, train, accumulation, batches; /* over all data ranks */
} sizes[] = {{8, 8, 1, 4}, {8, 4, 1, 3}, {8, 4, 2, 4},  {16, 4, 2, 2},
             {8, 8, 3, 6}, {4, 4, 1, 1}, {32, 4, 4, 5}, {8, 4, 4, 4}};

static struct sample_gain gain_at(int64_t i)
{
    return (struct sample_gain){.advantage = (double)(i % 5) - 2,
                                .weight = i % 5 == 2 || i % 7 == 0 ? 0 : 1,
                                .valid = i % 11 != 0};
}

/* Global numbers of the samples of a step, from all data ranks; returns how many. */
static int64_t whole_step(const struct rl_config *c, int dp, int64_t accumulation, int64_t inner,
                          int64_t step, const struct sample_gain *gain, bool *in, double terms[2])
{
    int64_t n = 0;
    memset(in, 0, MOST);
    for (int r = 0; r < dp; r++) {
        const struct units u = units_of(c, accumulation);
        const struct units_place p = {c, 5, 9, dp, r};
        struct step_set s = step_set(&p, &u, inner, step, gain);
        EXPECT(s.n == c->train_batch * accumulation, "rank %d of %d has %lld samples", r, dp,
               (long long)s.n);
        EXPECT(r == 0 || (terms[0] == s.policy_terms && terms[1] == s.kl_terms),
               "rank %d counts %g and %g terms", r, s.policy_terms, s.kl_terms);
        terms[0] = s.policy_terms;
        terms[1] = s.kl_terms;
        for (int64_t i = 0; i < s.n; i++) {
            const int64_t B = c->sample_batch,
                          at = s.taken[i].batch * B * dp + r * B + s.taken[i].local;
            EXPECT(s.taken[i].local < B && !in[at], "sample %lld twice", (long long)at);
            in[at] = true;
            n++;
        }
        free(s.taken);
    }
    return n;
}

static void check_step(const struct rl_config *c, const bool *in, const struct sample_gain *gain,
                       const double terms[2])
{
    double policy = 0, kl = 0;
    for (int i = 0; i < MOST; i++) {
        policy += in[i] && gain[i].weight > 0 && gain[i].advantage != 0;
        kl += in[i] && (gain_counts(c, &gain[i]) || (c->kl_on_zero_adv && gain[i].valid));
    }
    EXPECT(terms[0] == policy && terms[1] == kl, "%g and %g terms, not %g and %g", terms[0],
           terms[1], policy, kl);
}

static void test_sets(struct comm *world)
{
    (void)world;
    struct sample_gain gain[MOST];
    for (int i = 0; i < MOST; i++) gain[i] = gain_at(i);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (int64_t inner = 0; inner < 3; inner++) {
            bool first[64][MOST], in[MOST];
            for (int dp = 1; dp <= 4; dp *= 2) {
                const struct rl_config c = {.sample_batch = sizes[k].batch / dp,
                                            .train_batch = sizes[k].train / dp,
                                            .batches = sizes[k].batches,
                                            .kl_on_zero_adv = k % 2};
                const struct units u = units_of(&c, sizes[k].accumulation);
                int used[MOST] = {0};
                const int64_t all = sizes[k].batch * sizes[k].batches;
                EXPECT(u.count % u.per == 0, "%lld units by %lld", (long long)u.count,
                       (long long)u.per);
                for (int64_t s = 0; s < u.count / u.per; s++) {
                    double terms[2] = {0};
                    whole_step(&c, dp, sizes[k].accumulation, inner, s, gain, in, terms);
                    check_step(&c, in, gain, terms);
                    for (int i = 0; i < MOST; i++) used[i] += in[i];
                    if (dp == 1) memcpy(first[s], in, sizeof in);
                    EXPECT(memcmp(first[s], in, sizeof in) == 0,
                           "case %zu, step %lld: %d data ranks take other samples", k, (long long)s,
                           dp);
                }
                for (int i = 0; i < MOST; i++)
                    EXPECT(used[i] == (i < all), "sample %d is used %d times", i, used[i]);
            }
        }
}

/* Inner epochs and epochs have orders of their own. */
static void test_orders(struct comm *world)
{
    (void)world;
    const struct rl_config c = {.sample_batch = 4, .train_batch = 4, .batches = 16};
    const struct units u = units_of(&c, 1);
    struct sample_gain gain[64] = {{0}};
    int same[2] = {0};
    for (int64_t s = 0; s < 16; s++) {
        int64_t batch[3];
        for (int k = 0; k < 3; k++) {
            const struct units_place p = {&c, 5, k == 2, 1, 0};
            struct step_set set = step_set(&p, &u, k == 1, s, gain);
            batch[k] = set.taken[0].batch;
            free(set.taken);
        }
        same[0] += batch[0] == batch[1];
        same[1] += batch[0] == batch[2];
    }
    EXPECT(same[0] < 8 && same[1] < 8, "%d and %d of 16 steps take the same batch", same[0],
           same[1]);
}

/* docs/spec/rl.md 1.12: log-densities -.4321 and -.4301, advantages of both signs */
static void test_clip(struct comm *w)
{
    (void)w;
    const double up = -0.4301 + 0.4321, ratio = 1.0020020013;
    const struct {
        double log_ratio, advantage, clip, loss, slope;
        bool clipped;
    } v[] = {{up, 0.8, 5e-3, -0.8016016011, -0.8016016011, false},
             {up, 0.8, 1e-4, -0.80008, 0, true},
             {up, -0.8, 1e-4, 0.8016016011, 0.8016016011, true}, /* the worse one counts */
             {-up, 0.8, 1e-4, -0.8 / ratio, -0.8 / ratio, true},
             {-up, -0.8, 1e-4, 0.8 * (1 - 1e-4), 0, true},
             {0, 0.8, 1e-4, -0.8, -0.8, false}};
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
        const struct grpo_term t = grpo_objective(v[i].log_ratio, v[i].advantage, v[i].clip);
        EXPECT(fabs(t.loss - v[i].loss) < 1e-9 && fabs(t.slope - v[i].slope) < 1e-9 &&
                   t.clipped == v[i].clipped,
               "case %zu: loss %.10f, slope %.10f, clipped %d", i, t.loss, t.slope, t.clipped);
    }
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "every sample once, the same steps on any data ranks", .run = test_sets},
        {.name = "orders differ between epochs", .run = test_orders},
        {.name = "the clipped objective", .run = test_clip},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
