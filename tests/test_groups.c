/* Prompts, groups and noise keys of docs/spec/rl.md 1.2 and 1.3. */
#include <stdlib.h>
#include <string.h>

#include "rl/groups.h"
#include "tests/check.h"

enum { EPOCHS = 40, MOST = 64 };

static struct groups_config config(int64_t prompts, int64_t members, int64_t batch, int64_t dp)
{
    return (struct groups_config){.num_prompts = prompts,
                                  .members = members,
                                  .batch = batch,
                                  .batches = 3,
                                  .dp = dp,
                                  .scatter = true,
                                  .seed = 11};
}
static const int64_t CASES[][4] = {/* prompts, members, batch, data ranks */
                                   {10, 4, 2, 2},  {10, 4, 4, 2}, {7, 2, 3, 4},  {3, 4, 3, 4},
                                   {100, 1, 2, 8}, {1, 8, 4, 2},  {64, 4, 2, 16}};
enum { NUM_CASES = sizeof CASES / sizeof *CASES };

static struct groups_config config_of(int k)
{
    return config(CASES[k][0], CASES[k][1], CASES[k][2], CASES[k][3]);
}

static bool same(const struct group_entry *a, const struct group_entry *b)
{
    return a->group == b->group && a->prompt == b->prompt && a->member == b->member &&
           a->sample == b->sample;
}

static int by_number(const void *x, const void *y)
{
    const int64_t a = *(const int64_t *)x, b = *(const int64_t *)y;
    return (a > b) - (a < b);
}

/* One batch: m groups of G members each once, distinct prompts. prompt [m]: of its groups. */
static void check_batch(const struct groups_config *c, int64_t epoch, int64_t b, int64_t *prompt)
{
    const int64_t n = c->dp * c->batch, m = n / c->members;
    bool seen[MOST] = {false};
    for (int64_t i = 0; i < n; i++) {
        const struct group_entry e = groups_entry(c, epoch, b, i);
        const int64_t k = e.group - (epoch * c->batches + b) * m;
        EXPECT(k >= 0 && k < m && e.member >= 0 && e.member < c->members && e.prompt >= 0 &&
                   e.prompt < c->num_prompts && e.sample == e.group * c->members + e.member,
               "entry %lld: group %lld member %lld", (long long)i, (long long)e.group,
               (long long)e.member);
        if (k < 0 || k >= m || e.member < 0 || e.member >= c->members) return;
        EXPECT(!seen[k * c->members + e.member], "member %lld of %lld twice", (long long)e.member,
               (long long)e.group);
        for (int64_t j = 0; j < c->members; j++)
            EXPECT(!seen[k * c->members + j] || prompt[k] == e.prompt, "one prompt a group");
        seen[k * c->members + e.member] = true;
        prompt[k] = e.prompt;
    }
    int64_t sorted[MOST];
    memcpy(sorted, prompt, (size_t)m * sizeof *sorted);
    qsort(sorted, (size_t)m, sizeof *sorted, by_number);
    for (int64_t k = 1; k < m; k++)
        EXPECT(sorted[k] != sorted[k - 1], "prompt %lld twice in a batch", (long long)sorted[k]);
}

/* Every pass: each prompt once, but for num_prompts mod m of them. */
static void passes(struct comm *world)
{
    (void)world;
    for (int k = 0; k < 2 * NUM_CASES; k++) {
        struct groups_config c = config_of(k / 2);
        c.scatter = k % 2;
        const int64_t m = c.dp * c.batch / c.members, per_pass = c.num_prompts / m;
        int uses[128] = {0};
        int64_t left_out[128] = {0};
        for (int64_t n = 0; n < EPOCHS * c.batches; n++) {
            int64_t prompt[MOST];
            check_batch(&c, n / c.batches, n % c.batches, prompt);
            for (int64_t j = 0; j < m; j++) uses[prompt[j]]++;
            if ((n + 1) % per_pass) continue;
            int64_t used = 0;
            for (int64_t p = 0; p < c.num_prompts; p++) {
                EXPECT(uses[p] <= 1, "prompt %lld: %d times in a pass", (long long)p, uses[p]);
                used += uses[p];
                left_out[p] += !uses[p];
                uses[p] = 0;
            }
            EXPECT(used == c.num_prompts / m * m, "%lld prompts in a pass", (long long)used);
        }
        const int64_t whole = EPOCHS * c.batches / per_pass;
        for (int64_t p = 0; p < c.num_prompts && whole >= 30; p++)
            EXPECT(left_out[p] < whole, "prompt %lld is always left out", (long long)p);
    }
}

static void orders(struct comm *world)
{
    (void)world;
    struct groups_config c = config(40, 2, 2, 2), other = c;
    c.batches = 1;
    other = c;
    other.seed++;
    int equal = 0, seeds = 0;
    for (int64_t i = 0; i < 20; i++) { /* two passes of 20 epochs */
        const struct group_entry a = groups_entry(&c, i, 0, 0), b = groups_entry(&c, i + 20, 0, 0),
                                 d = groups_entry(&other, i, 0, 0);
        equal += a.prompt == b.prompt;
        seeds += a.prompt == d.prompt;
    }
    EXPECT(equal < 6 && seeds < 6, "%d of 20 again in the next pass, %d with another seed", equal,
           seeds);
    /* no lag: the first epochs differ already */
    int64_t p[3][2];
    for (int64_t i = 0; i < 3; i++) check_batch(&c, i, 0, p[i]);
    for (int i = 0; i < 2; i++)
        EXPECT(p[0][i] != p[1][0] && p[0][i] != p[1][1] && p[1][i] != p[2][0] && p[1][i] != p[2][1],
               "epochs 0 to 2 repeat a prompt");
}

/* scatter moves the entries of pack; asked again, in any order, everything is the same. */
static void scatter(struct comm *world)
{
    (void)world;
    int moved = 0, total = 0;
    for (int k = 0; k < NUM_CASES; k++) {
        const struct groups_config c = config_of(k);
        struct groups_config pack = c;
        pack.scatter = false;
        const int64_t n = c.dp * c.batch;
        for (int64_t at = 12; at-- > 0;) {
            const int64_t epoch = at / 3, b = at % 3;
            bool taken[MOST] = {false};
            for (int64_t i = 0; i < n; i++) {
                const struct group_entry e = groups_entry(&c, epoch, b, i),
                                         again = groups_entry(&c, epoch, b, i);
                EXPECT(same(&e, &again), "entry %lld", (long long)i);
                int64_t j = 0;
                struct group_entry p = groups_entry(&pack, epoch, b, 0);
                while (!same(&e, &p) && ++j < n) p = groups_entry(&pack, epoch, b, j);
                EXPECT(j < n && !taken[j], "entry %lld is none of pack", (long long)i);
                if (j < n) taken[j] = true;
                moved += j != i;
                total++;
            }
            for (int64_t i = 0; i < n; i++) {
                const struct group_entry e = groups_entry(&pack, epoch, b, i);
                EXPECT(e.sample == (epoch * 3 + b) * n + i, "pack: in order");
            }
        }
    }
    EXPECT(moved > total / 2, "%d of %d entries move", moved, total);
    /* and differently from batch to batch */
    const struct groups_config c = config(64, 4, 2, 16);
    int stay = 0;
    for (int64_t i = 0; i < 32; i++)
        stay += groups_entry(&c, 0, 0, i).sample + 32 == groups_entry(&c, 0, 1, i).sample;
    EXPECT(stay < 10, "%d of 32 places stay", stay);
}

struct noise {
    uint64_t item;
    uint32_t step;
};
static int by_noise(const void *x, const void *y)
{
    const struct noise *a = x, *b = y;
    if (a->item != b->item) return a->item < b->item ? -1 : 1;
    return (a->step > b->step) - (a->step < b->step);
}

/* Keys of 3 epochs and 5 steps; how many are different. */
static int64_t keys(const struct groups_config *c, bool shared)
{
    static struct noise list[3 * 3 * MOST * 6];
    int64_t n = 0, distinct = 0;
    for (int64_t batch = 0; batch < 9; batch++)
        for (int64_t i = 0; i < c->dp * c->batch; i++) {
            const struct group_entry e = groups_entry(c, batch / 3, batch % 3, i);
            for (int s = -1; s < 5; s++) {
                const struct rng_key k = s < 0 ? groups_initial_noise(c, &e, shared)
                                               : groups_step_noise(c, &e, s, shared);
                EXPECT(k.seed == c->seed && k.use == RNG_SDE && k.step == (uint32_t)(s + 1), "key");
                list[n++] = (struct noise){k.item, k.step};
            }
        }
    qsort(list, (size_t)n, sizeof *list, by_noise);
    for (int64_t i = 0; i < n; i++) distinct += i == 0 || by_noise(&list[i], &list[i - 1]) != 0;
    return distinct;
}

static void noise_keys(struct comm *world)
{
    (void)world;
    for (int k = 0; k < NUM_CASES; k++) {
        struct groups_config c = config_of(k);
        const int64_t samples = 9 * c.dp * c.batch, groups = samples / c.members;
        EXPECT(keys(&c, false) == 6 * samples, "every sample and step its own");
        EXPECT(keys(&c, true) == 6 * groups, "one trajectory a group");
        c.same_noise = true;
        EXPECT(keys(&c, false) == groups + 5 * samples, "one start a group, its own steps");
    }
    /* what is shared is the noise of member 0 */
    const struct groups_config some = config_of(0);
    for (int64_t i = 0; i < 4; i++) {
        const struct group_entry e = groups_entry(&some, 1, 2, i);
        EXPECT(groups_step_noise(&some, &e, 3, true).item == (uint64_t)(e.sample - e.member) &&
                   groups_step_noise(&some, &e, 3, false).item == (uint64_t)e.sample,
               "sample %lld", (long long)e.sample);
    }
    /* a member keeps its noise wherever it is placed */
    struct groups_config c = config(64, 4, 2, 16), wide = config(64, 4, 4, 8);
    wide.scatter = false;
    for (int64_t i = 0; i < 32; i++) {
        const struct group_entry e = groups_entry(&c, 2, 1, i),
                                 w = groups_entry(&wide, 2, 1, e.sample % 32);
        EXPECT(same(&e, &w), "sample %lld depends on the layout", (long long)e.sample);
    }
}

static void outside(void *arg) { (void)groups_entry(arg, 0, 3, 0); }
static void mistakes(struct comm *world)
{
    (void)world;
    for (int k = 0; k < NUM_CASES; k++) {
        struct err e = {0};
        const struct groups_config c = config_of(k);
        EXPECT(groups_check(&c, &e) && e.code == 0, "case %d: %s", k, e.msg);
    }
    static const struct {
        int64_t prompts, members, batch, dp;
        const char *says;
    } bad[] = {{10, 4, 3, 2, "has 6 samples (sample_batch_size 3 on 2 data"},
               {1, 4, 4, 2, "rl_config.prompt_file: it has 1 prompts and a rollout batch takes 2"},
               {10, 0, 4, 2, "num_image_per_prompt"},
               {10, 4, 0, 2, "sample_batch_size"}};
    for (int k = 0; k < 4; k++) {
        struct err e = {0};
        const struct groups_config c =
            config(bad[k].prompts, bad[k].members, bad[k].batch, bad[k].dp);
        EXPECT(!groups_check(&c, &e) && e.code == RC_CONFIG && strstr(e.msg, bad[k].says), "%s",
               e.msg);
    }
    struct groups_config c = config_of(0);
    expect_stop("batch 3 of 3", RC_SOFTWARE, outside, &c);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {"every prompt once in a pass, never twice in a batch", passes, {0}, 0},
        {"passes and seeds differ, epochs do not lag", orders, {0}, 0},
        {"scatter moves the entries of pack", scatter, {0}, 0},
        {"noise by group, member and step", noise_keys, {0}, 0},
        {"mistakes are named", mistakes, {0}, 0},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
