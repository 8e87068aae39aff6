/* `mpirun osp rl` is killed and stopped in every part of an epoch; the next start goes on to the
 * bits and the metrics of an undisturbed run. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/rl_process.h"

struct hurt {
    const char *name, *fault;
    int rc;
    const char *says;
    int resumed; /* epoch that the next run goes on from; 0: some */
};

static void hurt_one(const struct hurt *h, const char *algo, const char *want)
{
    char *said;
    struct process_opts o = plain_rl;
    o.fault = h->fault;
    int rc = rl_run(h->name, algo, &o, &said);
    EXPECT(rc == h->rc, "%s %s: exit code %d: %s", h->name, h->fault, rc, said);
    EXPECT(strstr(said, h->says), "%s: \"%s\" is not in: %s", h->name, h->says, said);
    free(said);
    rc = rl_run(h->name, algo, &plain_rl, &said);
    EXPECT(rc == 0 && (h->rc != RC_PREEMPTED || strstr(said, "resumed from")),
           "%s, again: exit code %d: %s", h->name, rc, said);
    char *at = io_path("at epoch %d\n", h->resumed);
    EXPECT(!h->resumed || strstr(said, at), "%s, again: no \"%s\" in: %s", h->name, at, said);
    free(at);
    EXPECT(process_diff(want, h->name) == 0, "%s: other bits than the undisturbed run", h->name);
    const double a = rl_metric(want, EPOCHS, "reward/mean"),
                 b = rl_metric(h->name, EPOCHS, "reward/mean");
    EXPECT(a == b, "%s: reward %.17g, undisturbed %.17g", h->name, b, a);
    for (int e = 0; e <= EPOCHS; e++) { /* no evaluation is lost, none is there twice */
        const int lines = rl_metric_lines(h->name, e, "eval/reward_mean");
        EXPECT(lines == (e % 2 == 0), "%s: %d evaluations of epoch %d", h->name, lines, e);
        const double c = rl_metric(want, e, "eval/reward_mean"),
                     d = rl_metric(h->name, e, "eval/reward_mean");
        EXPECT(isnan(c) ? isnan(d) : c == d, "%s: evaluation of epoch %d: %.17g, undisturbed %.17g",
               h->name, e, d, c);
    }
    free(said);
}

/* An epoch has 4 steps of rollouts and 4 updates (NFT: 6); an evaluation has 2 steps. Checkpoints
 * are written after epochs 2 and 4: what stops in epoch 1, in the second optimizer step of two, has
 * to write its own. */
static void test_hurt(struct comm *world)
{
    (void)world;
    if (!rl_ready() || !rl_calm("calm", "mix_grpo", &plain_rl)) return;
    static const struct hurt list[] = {
        {"in_updates", "update@0:11:kill", 137, "saved", 0},
        {"term_updates", "update@1:8:term", RC_PREEMPTED, "in the updates of epoch 2", 0},
        {"in_rollout", "rollout@1:10:kill", 137, "saved", 0},
        {"in_save", "save@1:2:kill", 137, "saved", 0},
        {"in_scores", "scores@0:3:kill", 137, "epoch", 0},
        {"in_evaluation", "evaluate@1:3:kill", 137, "epoch", 2},
        {"in_last_evaluation", "evaluate@0:6:kill", 137, "epoch", 4},
        {"after_evaluation", "rollout@1:9:kill", 137, "evaluation at epoch 2", 2},
        {"term_rollout", "rollout@1:6:term", RC_PREEMPTED, "before the updates of epoch 2", 0},
        {"term_first", "update@0:3:usr1", RC_PREEMPTED, "in the updates of epoch 1", 0},
        {"term_scores", "scores@1:2:term", RC_PREEMPTED, "before the updates of epoch", 0},
        {"term_evaluation", "evaluate@0:3:term", RC_PREEMPTED, "in the evaluation of epoch 2", 2},
    };
    const size_t n = test_fast() ? 2 : sizeof list / sizeof *list;
    for (size_t i = 0; i < n; i++) hurt_one(&list[i], "mix_grpo", "calm");
}

/* Rollouts of NFT use other weights than those that are saved as the trained ones. */
static void test_hurt_nft(struct comm *world)
{
    (void)world;
    if (!rl_ready() || !rl_calm("nft", "nft", &plain_rl)) return;
    static const struct hurt list[] = {
        {"nft_term_rollout", "rollout@1:6:term", RC_PREEMPTED, "before the updates of epoch 2", 0},
        {"nft_in_updates", "update@0:15:kill", 137, "saved", 0},
        {"nft_term_updates", "update@0:11:term", RC_PREEMPTED, "in the updates of epoch 2", 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) hurt_one(&list[i], "nft", "nft");
}

/* Every evaluation has a checkpoint before it, also between those of save_interval. */
static void test_intervals(struct comm *world)
{
    (void)world;
    if (!rl_ready()) return;
    struct process_opts o = plain_rl;
    o.sets[0] = "num_epochs=3";
    o.sets[1] = "save_interval=10";
    o.sets[2] = "rl_config.eval_freq=3";
    o.fault = "evaluate@0:4:kill"; /* the evaluation of epoch 0 has 2 steps */
    char *said, *last = io_path("%s/intervals/checkpoints/iter_000000003", test_dir());
    int rc = rl_run("intervals", "mix_grpo", &o, &said);
    EXPECT(rc == 137 && io_exists(last), "exit code %d, %s is %sthere: %s", rc, last,
           io_exists(last) ? "" : "not ", said);
    free(said);
    o.fault = NULL;
    rc = rl_run("intervals", "mix_grpo", &o, &said);
    EXPECT(rc == 0 && strstr(said, "at epoch 3\n") &&
               rl_metric_lines("intervals", 3, "eval/reward_mean") == 1,
           "again: exit code %d: %s", rc, said);
    free(said);
    free(last);
}

enum { THREE = 3 }; /* epochs of those that are moved */
/* One start of a run: the fault that ends it (NULL: it ends well), and the epoch it goes on from.
 */
struct start {
    const char *fault;
    int ranks, from;
    const char *sets[4];
};

static void go_on(const char *name, const struct process_opts *whole, const struct start *s)
{
    struct process_opts o = *whole;
    char *said, *at = io_path("at epoch %d\n", s->from);
    int n = 0;
    while (o.sets[n]) n++;
    for (int k = 0; k < 4 && s->sets[k]; k++) o.sets[n++] = s->sets[k];
    o.fault = s->fault;
    o.ranks = s->ranks;
    const int rc = rl_run(name, "mix_grpo", &o, &said);
    EXPECT(rc == (s->fault ? 137 : 0) && (s->from == 0) == !strstr(said, "resumed from") &&
               (s->from == 0 || strstr(said, at)),
           "%s on %d ranks from epoch %d: exit code %d: %s", name, s->ranks, s->from, rc, said);
    free(at);
    free(said);
}

/* Everything that a run carries moves: window, clip limit, averages. Otherwise losing it on the way
 * would not be seen. */
static void require_motion(const char *name, int epochs)
{
    int places = 0, held = 0, moved = 0;
    for (int e = 2; e <= epochs; e++) {
        places += rl_metric(name, e, "update/window_first") !=
                  rl_metric(name, e - 1, "update/window_first");
        moved +=
            rl_metric(name, e, "update/clip_limit") != rl_metric(name, e - 1, "update/clip_limit");
    }
    for (int e = 1; e <= epochs; e++)
        held += rl_metric(name, e, "update/grad_norm") > rl_metric(name, e, "update/clip_limit");
    if (test_verbose())
        for (int e = 1; e <= epochs; e++)
            printf("    %s, epoch %d: window at %g, norm %.4g of at most %.4g\n", name, e,
                   rl_metric(name, e, "update/window_first"),
                   rl_metric(name, e, "update/grad_norm"), rl_metric(name, e, "update/clip_limit"));
    EXPECT(places && held && moved, "%s: window %d, clip %d, limit %d times", name, places, held,
           moved);
}

#define DATA_1 "rl_config.sample_batch_size=8", "rl_config.train_batch_size=4"
#define DATA_4 "rl_config.sample_batch_size=2", "rl_config.train_batch_size=1"
#define SSP_2 "use_skiparse_sequence_parallel=true", "skiparse_sp_size=2"
#define ULYSSES_2 "use_sequence_parallel=true", "sp_size=2"

/* Killed and gone on with where other ranks have the same samples, once or twice: the metrics and
 * the last state are those of a run that nothing has happened to. */
static void check_moves(const char *const *moves, const char *whole, const struct start (*runs)[3],
                        const char *const *name, int n)
{
    const struct process_opts o = {.verb = "rl",
                                   .sets = {"weight_dtype=fp64", "save_interval=1",
                                            "rl_config.eval_freq=3", "num_epochs=3",
                                            "rl_config.num_inference_steps=5", moves[0], moves[1],
                                            "window.size=2", "window.limit=4", "window.iters=1",
                                            "grad_clip=adaptive", "init_max_grad_norm=1.6e-4"}};
    if (!rl_ready() || !rl_calm(whole, "mix_grpo", &o)) return;
    require_motion(whole, THREE);
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < 3 && runs[i][k].ranks; k++) go_on(name[i], &o, &runs[i][k]);
        rl_same_metrics(name[i], whole, 1, THREE, THREE);
        rl_same_state(name[i], whole, 1e-12);
    }
}

/* Window that moves by one, twice from ranks to ranks. An epoch has 4 updates. */
static void test_layouts(struct comm *world)
{
    (void)world;
    static const struct start runs[][3] = {
        {{"update@1:7:kill", 2, 0, {NULL}},
         {"update@3:6:kill", 4, 1, {SSP_2}},
         {NULL, 2, 2, {DATA_1, ULYSSES_2}}},
    };
    static const char *const name[] = {"ssp_ulysses"};
    check_moves((const char *[]){"window.strategy=progressive", "window.stride=1"}, "steady", runs,
                name, 1);
}

/* A window at random, other data ranks. */
static void test_other_ranks(struct comm *world)
{
    (void)world;
    static const struct start runs[][3] = {
        {{"update@0:7:kill", 2, 0, {NULL}}, {NULL, 4, 1, {DATA_4}}},
        {{"rollout@1:8:kill", 2, 0, {NULL}}, {NULL, 1, 1, {DATA_1}}},
    };
    static const char *const name[] = {"on_four", "on_one"};
    check_moves((const char *[]){"window.strategy=random", "seed=12"}, "whole", runs, name, 2);
}

static void append(const char *name, const char *line)
{
    char *path = io_path("%s/%s/metrics.jsonl", test_dir(), name);
    FILE *f = fopen(path, "a");
    CHECK(f, "%s", path);
    fputs(line, f);
    fclose(f);
    free(path);
}

/* Time that went into an epoch which is done again counts for max_seconds. */
static void test_budget(struct comm *world)
{
    (void)world;
    char *said;
    struct process_opts o = plain_rl;
    if (!rl_ready()) return;
    o.sets[0] = "save_interval=1";
    o.sets[1] = "rl_config.eval_freq=0";
    o.fault = "rollout@1:7:term";
    int rc = rl_run("budget", "mix_grpo", &o, &said);
    char *log = io_path("%s/budget/metrics.jsonl", test_dir()), *text = process_log(log);
    const char *line = strstr(text, "\"step\":1,\"wall_s\":"), /* of the epoch; events come later */
        *event = strstr(text, "\"event\":\"preempted\",\"step\":1,\"wall_s\":");
    const double epoch = line ? atof(strstr(line, "wall_s") + 8) : 0;
    const double spent = event ? atof(strstr(event, "wall_s") + 8) : 0;
    EXPECT(rc == RC_PREEMPTED && spent > epoch && epoch > 0, "exit code %d, %g s after %g s: %s",
           rc, spent, epoch, said);
    free(said);
    append("budget", "{\"event\":\"preempted\",\"step\":1,\"wall_s\":1000}\n{\"half a li");
    o.fault = NULL;
    o.sets[2] = "max_seconds=999";
    rc = rl_run("budget", "mix_grpo", &o, &said);
    EXPECT(rc == 0 && rl_metric_lines("budget", 2, "reward/mean") == 0 &&
               strstr(said, "at epoch 1\n"),
           "exit code %d, an epoch after the end of the time: %s", rc, said);
    free(said);
    o.sets[2] = "max_seconds=2000";
    rc = rl_run("budget", "mix_grpo", &o, &said);
    EXPECT(rc == 0 && rl_metric_lines("budget", EPOCHS, "reward/mean") == 1 &&
               rl_metric("budget", 2, "wall_s") > 1000,
           "exit code %d: %s", rc, said);
    free(said);
    free(text);
    free(log);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "killed and stopped anywhere, it ends with the same bits",
         .run = test_hurt,
         .flags = TEST_SLOW},
        {.name = "an evaluation between two saves", .run = test_intervals, .flags = TEST_SLOW},
        {.name = "killed, it goes on with other ranks",
         .run = test_other_ranks,
         .flags = TEST_SLOW},
        {.name = "killed twice, it goes on with SSP and with Ulysses",
         .run = test_layouts,
         .flags = TEST_SLOW},
        {.name = "the time of what is done again counts", .run = test_budget, .flags = TEST_SLOW},
        {.name = "NFT, killed and stopped", .run = test_hurt_nft, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
