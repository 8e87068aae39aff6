/* Advantages against the numbers and rules of docs/spec/rl.md 1.10, 1.11, 6.8. */
#include <math.h>
#include <string.h>

#include "core/rng.h"
#include "rl/advantage.h"
#include "tests/check.h"

enum { MOST = 96 };
static const struct adv_config USUAL = {
    .dims = 1, .weight = {1}, .eps = 1e-4, .clip_max = 5}; /* group std, ddof 0 */

static struct adv_member member(int64_t group, double score)
{
    return (struct adv_member){.group = group, .prompt = group, .valid = true, .score = {score}};
}

/* Groups of `size` with these scores. */
static int fill(struct adv_member *m, const double *score, int n, int size)
{
    for (int i = 0; i < n; i++) m[i] = member(i / size, score[i]);
    return n;
}

static void expect(const char *what, const struct adv_out *o, const double *want, int n, double tol)
{
    for (int i = 0; i < n; i++) {
        EXPECT(fabs(o[i].advantage - want[i]) <= tol, "%s: advantage %d is %.10g, expected %.10g",
               what, i, o[i].advantage, want[i]);
        EXPECT(o[i].weight == (o[i].advantage != 0), "%s: weight %d is %g", what, i, o[i].weight);
    }
}

static void vectors(struct comm *world)
{
    (void)world;
    static const double r[] = {1, 2, 3, 6}, ours[] = {-1.06898783, -.53449391, 0, 1.60348174},
                        peers[] = {-.9258201, -.4629100, 0, 1.3887301},
                        clipped[] = {-1, -.53449391, 0, 1}, plain[] = {-2, -1, 0, 3};
    struct adv_member m[4];
    struct adv_out o[4];
    struct adv_config c = USUAL;
    fill(m, r, 4, 4);
    advantages(&c, m, 4, o, NULL);
    expect("ddof 0", o, ours, 4, 5.1e-9);
    EXPECT(o[2].weight == 0 && o[3].weight == 1 && o[3].reward == 6, "weights, rewards");
    c.clip_max = 1;
    advantages(&c, m, 4, o, NULL);
    expect("clipped", o, clipped, 4, 5.1e-9);
    c = USUAL;
    c.scale = ADV_NO_STD;
    advantages(&c, m, 4, o, NULL);
    expect("no std", o, plain, 4, 0);
    c = USUAL;
    c.ddof = 1;
    c.eps = 1e-8;
    advantages(&c, m, 4, o, NULL);
    expect("ddof 1", o, peers, 4, 5.1e-8);
}

static void ties(struct comm *world)
{
    (void)world;
    static const double value[] = {.1, -3.3, 1e-3, 7, 0, 1e50, .1 + .2, -1e-300};
    struct adv_member m[12];
    struct adv_out o[12];
    for (int k = 0; k < 8; k++)
        for (int n = 2; n <= 12; n++)
            for (int scale = ADV_GROUP_STD; scale <= ADV_NO_STD; scale++) {
                struct adv_config c = USUAL;
                struct adv_stats s;
                c.scale = scale;
                c.eps = 0;
                c.clip_max = 1e300;
                for (int i = 0; i < n; i++) m[i] = member(1, value[k]);
                advantages(&c, m, n, o, &s);
                for (int i = 0; i < n; i++)
                    EXPECT(o[i].advantage == 0 && o[i].weight == 0, "%d of %g: A = %g", n, value[k],
                           o[i].advantage);
                EXPECT(s.zero_std_groups == 1 && s.effective == 0 && s.std == 0, "counted");
            }
    /* equal sums of different scores: what rounding leaves is no difference */
    struct adv_config c = USUAL;
    c.dims = 3;
    c.eps = 0;
    for (int i = 1; i < 3; i++) c.weight[i] = 1;
    static const double score[4][3] = {{.1, .2, .3}, {.3, .2, .1}, {.6, 0, 0}, {-.6, 1, .2}};
    for (int i = 0; i < 4; i++) {
        m[i] = member(0, 0);
        memcpy(m[i].score, score[i], sizeof score[i]);
    }
    advantages(&c, m, 4, o, NULL);
    for (int i = 0; i < 4; i++) EXPECT(o[i].advantage == 0, "rounding became %g", o[i].advantage);
    /* but a small difference is one */
    m[3].score[0] += 1e-9;
    advantages(&c, m, 4, o, NULL);
    EXPECT(o[3].advantage > 1.7 && o[0].advantage < -.5, "%g", o[3].advantage);
}

static void merged(struct comm *world)
{
    (void)world;
    static const double r[] = {1, 2, 3, 6}, want[] = {-1.06898783, -.53449391, 0, 1.60348174};
    struct adv_member m[4];
    struct adv_out o[4];
    struct adv_stats s;
    struct adv_config c = USUAL;
    fill(m, r, 4, 2);
    for (int i = 0; i < 4; i++) m[i].prompt = 5;
    advantages(&c, m, 4, o, &s);
    EXPECT(o[0].advantage < -.9 && o[1].advantage > .9 && s.groups == 2, "two groups");
    c.merge_same_prompt = true;
    advantages(&c, m, 4, o, &s);
    expect("merged", o, want, 4, 5.1e-9);
    EXPECT(s.groups == 1, "%lld groups", (long long)s.groups);
}

static void not_valid(struct comm *world)
{
    (void)world;
    static const double r[] = {1, 99, 2, 3, 6},
                        want[] = {-1.06898783, 0, -.53449391, 0, 1.60348174};
    static const double bad[] = {NAN, INFINITY, -INFINITY, 1e200, 99};
    struct adv_member m[5];
    struct adv_out o[5];
    struct adv_stats s;
    fill(m, r, 5, 5);
    for (int k = 0; k < 5; k++)
        for (int whole = 0; whole < 2; whole++) {
            struct adv_config c = USUAL;
            c.whole_epoch = whole;
            m[1].score[0] = bad[k];
            m[1].valid = k < 4; /* a score that is none: not valid either */
            advantages(&c, m, 5, o, &s);
            expect("one is not valid", o, want, 5, 5.1e-9);
            EXPECT(isnan(o[1].reward) && s.valid == 4 && s.members == 5 && s.mean == 3 &&
                       s.max == 6 && s.dim_mean[0] == 3,
                   "statistics over valid members");
        }
    struct adv_config watched = USUAL; /* a second score of weight 0 */
    watched.dims = 2;
    m[1].valid = true;
    m[1].score[1] = 1e200;
    advantages(&watched, m, 5, o, &s);
    EXPECT(s.valid == 4 && isfinite(s.dim_mean[1]), "a score that is watched has to be one, too");
    for (int i = 0; i < 5; i++) m[i].valid = false;
    advantages(&USUAL, m, 5, o, &s);
    EXPECT(s.valid == 0 && s.mean == 0 && s.std == 0 && s.min == 0 && s.std_between == 0 &&
               s.dropped_groups == 1 && s.adv_abs_mean == 0 && o[0].advantage == 0 && o[0].dropped,
           "none is valid");
    advantages(&USUAL, m, 0, o, &s);
    EXPECT(s.members == 0 && s.groups == 0, "empty table");
}

/* Members of a group and how many of them are valid; does it count? */
static void small_groups(struct comm *world)
{
    (void)world;
    static const struct {
        int size, valid, min_group, counts;
    } list[] = {{4, 4, 0, 1},   {4, 3, 0, 1}, {4, 2, 0, 0}, {4, 2, 2, 1}, {4, 3, 4, 0},
                {2, 2, 0, 1},   {2, 1, 0, 0}, {3, 2, 0, 1}, {3, 1, 0, 0}, {12, 11, 0, 1},
                {12, 10, 0, 0}, {1, 1, 0, 0}, {4, 1, 1, 1}};
    struct adv_member m[MOST];
    struct adv_out o[MOST];
    struct adv_stats s;
    for (int k = 0; k < 13; k++)
        for (int ddof = 0; ddof < 2; ddof++) {
            struct adv_config c = USUAL;
            c.min_group = list[k].min_group;
            c.ddof = ddof;
            const int n = list[k].size;
            for (int i = 0; i < n; i++) m[i] = member(3, i);
            for (int i = list[k].valid; i < n; i++) m[i].valid = false;
            for (int i = 0; i < 4; i++) m[n + i] = member(9, i); /* another one */
            advantages(&c, m, n + 4, o, &s);
            for (int i = 0; i < n; i++)
                EXPECT(o[i].dropped == !list[k].counts, "member %d of %d valid: dropped %d", i,
                       list[k].valid, o[i].dropped);
            EXPECT(s.dropped_groups == !list[k].counts, "%d of %d valid: %lld dropped",
                   list[k].valid, n, (long long)s.dropped_groups);
            EXPECT((o[0].advantage != 0) == (list[k].counts && list[k].valid > 1), "A = %g",
                   o[0].advantage);
            EXPECT(o[n].advantage < -1, "the other group is not touched");
        }
    /* merged groups and the whole epoch need as many as one group */
    struct adv_config c = USUAL;
    for (int i = 0; i < 12; i++) {
        m[i] = member(i / 4, i);
        m[i].prompt = 0;
        m[i].valid = i % 4 < 2;
    }
    advantages(&c, m, 12, o, &s);
    EXPECT(s.dropped_groups == 3 && s.std_within == 0, "each alone has too few");
    c.merge_same_prompt = true;
    advantages(&c, m, 12, o, &s);
    EXPECT(s.dropped_groups == 0 && s.effective == 6, "together they have enough");
}

/* Random tables in another order of rows give the same bits. */
static void any_order(struct comm *world)
{
    (void)world;
    const struct rng_stream r = rng_open((struct rng_key){.seed = 5, .use = RNG_TEST});
    for (int k = 0; k < 400; k++) {
        struct adv_member m[MOST], p[MOST];
        struct adv_out o[MOST], q[MOST];
        struct adv_stats s, t;
        const struct adv_config c = {.dims = 3,
                                     .weight = {1, .5, 2},
                                     .eps = 1e-4,
                                     .clip_max = 1.5,
                                     .scale = k % 3,
                                     .aggregate = k / 3 % 2,
                                     .ddof = k / 6 % 2,
                                     .merge_same_prompt = k / 12 % 2,
                                     .best_of = k / 24 % 2 * 6,
                                     .whole_epoch = k / 48 % 3 == 2};
        for (int i = 0; i < MOST; i++) {
            m[i] = member(i / 8, 0);
            m[i].prompt = i / 8 % 5;
            m[i].valid = rng_uniform_at(r, (uint64_t)(k * 1000 + i)) > .1;
            for (int d = 0; d < 3; d++)
                m[i].score[d] = rng_normal_at(r, (uint64_t)((k * 1000 + i) * 4 + d));
        }
        const struct rng_key shuffle = {.seed = 6, .use = RNG_TEST, .item = (uint64_t)k};
        for (int i = 0; i < MOST; i++) p[rng_permute(shuffle, (uint64_t)i, MOST)] = m[i];
        advantages(&c, m, MOST, o, &s);
        advantages(&c, p, MOST, q, &t);
        for (int i = 0; i < MOST; i++) {
            const struct adv_out *w = &q[rng_permute(shuffle, (uint64_t)i, MOST)];
            EXPECT(o[i].advantage == w->advantage && o[i].weight == w->weight &&
                       isfinite(o[i].advantage) && fabs(o[i].advantage) <= 1.5 &&
                       (m[i].valid || o[i].weight == 0),
                   "case %d, member %d: %g and %g", k, i, o[i].advantage, w->advantage);
        }
        EXPECT(s.mean == t.mean && s.std == t.std && s.std_within == t.std_within &&
                   s.std_between == t.std_between && s.effective == t.effective &&
                   s.effective > 0 && s.dim_std[2] == t.dim_std[2],
               "case %d: statistics", k);
    }
}

static void best_of(struct comm *world)
{
    (void)world;
    static const double r[] = {5, 1, 4, 8, 2, 7, 3, 6};
    struct adv_member m[8];
    struct adv_out o[8], all[8];
    struct adv_stats s;
    struct adv_config c = USUAL;
    fill(m, r, 8, 8);
    advantages(&c, m, 8, all, NULL);
    c.best_of = 4;
    advantages(&c, m, 8, o, &s);
    for (int i = 0; i < 8; i++) {
        const bool in = r[i] <= 2 || r[i] >= 7;
        EXPECT(o[i].advantage == (in ? all[i].advantage : 0) && o[i].weight == in, "reward %g: %g",
               r[i], o[i].advantage);
    }
    EXPECT(s.effective == 4, "%lld", (long long)s.effective);
    c.min_group = 2;
    m[1].valid = m[3].valid = false; /* the next best and worst take their places */
    advantages(&c, m, 8, o, &s);
    EXPECT(s.effective == 4 && o[4].weight == 1 && o[5].weight == 1 && o[6].weight == 1 &&
               o[7].weight == 1,
           "valid members only");
    c.best_of = 8;
    advantages(&c, m, 8, o, &s);
    EXPECT(s.effective == 6, "no more than there are: all");
    /* one that is not valid takes no place, even where the second best lies below the mean */
    static const double skew[] = {0, 1, 2, 3, 100, 7};
    static const double in[] = {1, 1, 0, 1, 1, 0};
    fill(m, skew, 6, 6);
    m[5].valid = false;
    c.best_of = 4;
    advantages(&c, m, 6, o, NULL);
    for (int i = 0; i < 6; i++) EXPECT(o[i].weight == in[i], "skewed: weight %d", i);
}

static void scales(struct comm *world)
{
    (void)world;
    static const double r[] = {1, 2, 3, 6, 10, 10, 10, 10};
    struct adv_member m[8];
    struct adv_out o[8];
    struct adv_stats s;
    struct adv_config c = USUAL;
    fill(m, r, 8, 4);
    c.scale = ADV_GLOBAL_STD;
    advantages(&c, m, 8, o, &s);
    const double std = sqrt((1 + 4 + 9 + 36 + 400) / 8. - 6.5 * 6.5);
    const double want[] = {-2 / (std + 1e-4), -1 / (std + 1e-4), 0, 3 / (std + 1e-4), 0, 0, 0, 0};
    expect("global std", o, want, 8, 1e-14);
    EXPECT(s.groups == 2 && s.zero_std_groups == 1 && s.dropped_groups == 0 && s.effective == 3,
           "groups");
    EXPECT(fabs(s.mean - 6.5) < 1e-14 && fabs(s.std - std) < 1e-14 && s.min == 1 && s.max == 10 &&
               fabs(s.std_within - sqrt(3.5 / 2)) < 1e-14 && fabs(s.std_between - 3.5) < 1e-14,
           "mean %g std %g within %g between %g", s.mean, s.std, s.std_within, s.std_between);
    EXPECT(fabs(s.adv_abs_mean - 6 / (std + 1e-4) / 8) < 1e-14 && s.adv_max == o[3].advantage,
           "advantages %g %g", s.adv_abs_mean, s.adv_max);
    c.scale = ADV_GROUP_STD;
    c.whole_epoch = true;
    advantages(&c, m, 8, o, &s);
    double epoch[8];
    for (int i = 0; i < 8; i++) epoch[i] = (r[i] - 6.5) / (std + 1e-4);
    expect("whole epoch", o, epoch, 8, 1e-14);
    EXPECT(s.groups == 1, "one group");
}

static void aggregates(struct comm *world)
{
    (void)world;
    static const double a[] = {1, 2, 3, 6}, b[] = {50, 20, 20, 10};
    struct adv_member m[4];
    struct adv_out o[4], x[4], y[4];
    struct adv_stats s;
    struct adv_config c = USUAL;
    fill(m, a, 4, 4);
    advantages(&c, m, 4, x, NULL);
    fill(m, b, 4, 4);
    advantages(&c, m, 4, y, NULL);
    c.dims = 3;
    c.weight[0] = 3;
    c.weight[1] = 1;
    c.weight[2] = 0; /* a score that is only watched */
    for (int i = 0; i < 4; i++) {
        m[i].score[0] = a[i];
        m[i].score[1] = b[i];
        m[i].score[2] = i;
    }
    c.aggregate = ADV_OF_ADVANTAGES;
    advantages(&c, m, 4, o, &s);
    for (int i = 0; i < 4; i++) {
        const double want = .75 * x[i].advantage + .25 * y[i].advantage;
        EXPECT(fabs(o[i].advantage - want) < 1e-14 && o[i].reward == 3 * a[i] + b[i], "%g, not %g",
               o[i].advantage, want);
    }
    EXPECT(s.dim_mean[2] == 1.5 && fabs(s.dim_std[2] - sqrt(1.25)) < 1e-14, "third score");
    for (int i = 0; i < 4; i++) m[i].score[1] = .3; /* says nothing */
    advantages(&c, m, 4, o, &s);
    for (int i = 0; i < 4; i++)
        EXPECT(fabs(o[i].advantage - .75 * x[i].advantage) < 1e-14, "%g", o[i].advantage);
    EXPECT(s.zero_std_groups == 0, "one score still differs");
    c.aggregate = ADV_OF_REWARD;
    for (int i = 0; i < 4; i++) m[i].score[1] = b[i];
    advantages(&c, m, 4, o, NULL);
    const double r0 = 53, mean = 34,
                 std = sqrt((53. * 53 + 26 * 26 + 29 * 29 + 28 * 28) / 4 - mean * mean);
    EXPECT(fabs(o[0].advantage - (r0 - mean) / (std + 1e-4)) < 1e-13, "%g", o[0].advantage);
}

static void stop(void *arg)
{
    struct adv_out o;
    advantages(arg, NULL, 0, &o, NULL);
}
static void refused(struct comm *world)
{
    (void)world;
    struct adv_config c = USUAL;
    c.weight[0] = 0;
    expect_stop("weights of scores are 0", RC_SOFTWARE, stop, &c);
    c.weight[0] = -1;
    c.aggregate = ADV_OF_ADVANTAGES;
    expect_stop("weights that sum to -1", RC_SOFTWARE, stop, &c);
    c = USUAL;
    c.best_of = 3;
    expect_stop("best_of 3 (even)", RC_SOFTWARE, stop, &c);
    c = USUAL;
    c.dims = 9;
    expect_stop("9 scores", RC_SOFTWARE, stop, &c);
    c = USUAL;
    c.ddof = 2;
    expect_stop("ddof 2", RC_SOFTWARE, stop, &c);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {"vectors of both conventions", vectors, {0}, 0},
        {"equal rewards give no advantage at all", ties, {0}, 0},
        {"groups of one prompt can be one group", merged, {0}, 0},
        {"members that are not valid count nothing", not_valid, {0}, 0},
        {"groups with too few valid members are dropped", small_groups, {0}, 0},
        {"the order of the table changes no bit", any_order, {0}, 0},
        {"the best and the worst of a group", best_of, {0}, 0},
        {"scale of the epoch, one group of all, statistics", scales, {0}, 0},
        {"the sum of scores or of their advantages", aggregates, {0}, 0},
        {"a configuration without sense is refused", refused, {0}, 0},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
