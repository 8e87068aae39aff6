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

/* Killed in the second epoch of three, it goes on where other ranks have the same samples. */
static void test_other_ranks(struct comm *world)
{
    (void)world;
    static const struct {
        const char *name, *fault, *sets[2];
        int ranks;
    } list[] = {{"on_four",
                 "update@0:7:kill",
                 {"rl_config.sample_batch_size=2", "rl_config.train_batch_size=1"},
                 4},
                {"on_one",
                 "rollout@1:6:kill",
                 {"rl_config.sample_batch_size=8", "rl_config.train_batch_size=4"},
                 1}};
    const struct process_opts whole = {
        .verb = "rl",
        .sets = {"weight_dtype=fp64", "num_epochs=3", "save_interval=1", "rl_config.eval_freq=0"}};
    if (!rl_ready() || !rl_calm("whole", "mix_grpo", &whole)) return;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct process_opts o = whole;
        char *said;
        o.fault = list[i].fault;
        int rc = rl_run(list[i].name, "mix_grpo", &o, &said);
        EXPECT(rc == 137, "%s: exit code %d: %s", list[i].name, rc, said);
        free(said);
        o.fault = NULL;
        o.ranks = list[i].ranks;
        for (int k = 0; k < 2; k++) o.sets[4 + k] = list[i].sets[k];
        rc = rl_run(list[i].name, "mix_grpo", &o, &said);
        EXPECT(rc == 0 && strstr(said, "at epoch 1\n"), "%s on %d ranks: exit code %d: %s",
               list[i].name, o.ranks, rc, said);
        free(said);
        rl_same_metrics(list[i].name, "whole", 1, 3);
        EXPECT(isfinite(rl_metric(list[i].name, 3, "update/loss")), "%s: no loss", list[i].name);
    }
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
        {.name = "the time of what is done again counts", .run = test_budget, .flags = TEST_SLOW},
        {.name = "NFT, killed and stopped", .run = test_hurt_nft, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
