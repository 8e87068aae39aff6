/* recompute: auto: the levels, what fits, and a training run in a budget. */
#include <stdio.h>
#include <string.h>

#include "tests/check.h"
#include "train/fit.h"

static const struct model_config tiny = {.dim = 96,
                                         .ffn_dim = 192,
                                         .freq_dim = 32,
                                         .in_dim = 12,
                                         .out_dim = 12,
                                         .num_heads = 4,
                                         .num_layers = 6,
                                         .text_len = 8,
                                         .text_dim = 16,
                                         .eps = 1e-6,
                                         .skiparse_model_type = SKIPARSE_DUAL_END,
                                         .sparse_ratio = 2,
                                         .num_full_blocks = 2,
                                         .skiparse_dim = 1};

static void levels(struct comm *w)
{
    (void)w;
    enum recompute p[MAX_BLOCKS];
    EXPECT(fit_levels(&tiny) == 18, "%d", fit_levels(&tiny));
    fit_policies(&tiny, 0, p);
    for (int i = 0; i < 6; i++) EXPECT(p[i] == RECOMPUTE_ALL, "block %d: %d", i, p[i]);
    fit_policies(&tiny, 18, p);
    for (int i = 0; i < 6; i++) EXPECT(p[i] == RECOMPUTE_NONE, "block %d: %d", i, p[i]);
    fit_policies(&tiny, 2, p); /* the blocks of full attention are the first and the last */
    for (int i = 0; i < 6; i++)
        EXPECT(p[i] == (i == 0 || i == 5 ? RECOMPUTE_ATTENTION : RECOMPUTE_ALL), "block %d: %d", i,
               p[i]);
    char text[200];
    fit_policies(&tiny, 8, p);
    fit_describe(&tiny, p, text, sizeof text);
    EXPECT(strcmp(text, "4 blocks: attention kept, 2 blocks: matrix products kept") == 0, "%s",
           text);
}

static struct dryrun_in problem(void)
{
    return (struct dryrun_in){.model = tiny,
                              .compute = DT_F32,
                              .recompute = RECOMPUTE_ALL,
                              .ranks = 2,
                              .degrees = {1, 1, 2},
                              .fsdp = {.optimizer = true},
                              .batch = 2,
                              .t = 3,
                              .h = 8,
                              .w = 8,
                              .train = true};
}

static void too_little(void *arg)
{
    struct dryrun_in in = problem();
    struct dryrun_out o;
    fit_level(&in, *(const size_t *)arg, &o);
}

/* Each level's own need is a budget that it fits into, and one byte less is not. */
static void budgets(struct comm *w)
{
    (void)w;
    struct dryrun_in in = problem();
    struct dryrun_out o;
    size_t need[19];
    for (int k = 0; k <= 18; k++) {
        fit_take(&in, k);
        dryrun(&in, &o);
        need[k] = dryrun_bytes(&o);
        EXPECT(k == 0 || need[k] >= need[k - 1], "level %d needs %zu, the one before %zu", k,
               need[k], need[k - 1]);
    }
    for (int k = 0; k <= 18; k++) {
        const int got = fit_level(&in, need[k], &o);
        EXPECT(got >= k && need[got] <= need[k], "budget of level %d: %d", k, got);
        if (k > 0 && need[k] > need[k - 1])
            EXPECT(fit_level(&in, need[k] - 1, &o) == k - 1, "a byte less than level %d", k);
    }
    size_t less = need[0] - 1;
    expect_stop("a rank needs ", RC_CONFIG, too_little, &less);
    EXPECT(fit_host_bytes() > (size_t)1 << 20, "%zu bytes of memory are free", fit_host_bytes());
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"levels go block by block, full attention first", levels, {0}, 0},
        {"the highest level that fits", budgets, {0}, 0},
    };
    return test_main(argc, argv, tests, (int)(sizeof tests / sizeof *tests));
}
