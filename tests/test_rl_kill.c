/* `mpirun osp rl` is killed and stopped in every part of an epoch; the next start goes on to the
 * bits and the metrics of an undisturbed run. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "tests/rl_process.h"

struct hurt {
    const char *name, *fault;
    int rc;
    const char *says;
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
    EXPECT(process_diff(want, h->name) == 0, "%s: other bits than the undisturbed run", h->name);
    const double a = rl_metric(want, EPOCHS, "reward/mean"),
                 b = rl_metric(h->name, EPOCHS, "reward/mean");
    EXPECT(a == b, "%s: reward %.17g, undisturbed %.17g", h->name, b, a);
    for (int e = 0; e <= EPOCHS; e++) { /* no evaluation is lost */
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
        {"in_updates", "update@0:11:kill", 137, "saved"},
        {"term_updates", "update@1:8:term", RC_PREEMPTED, "in the updates of epoch 1"},
        {"in_rollout", "rollout@1:10:kill", 137, "saved"},
        {"in_save", "save@1:2:kill", 137, "saved"},
        {"in_scores", "scores@0:3:kill", 137, "epoch"},
        {"in_evaluation", "evaluate@1:3:kill", 137, "epoch"},
        {"term_rollout", "rollout@1:6:term", RC_PREEMPTED, "before the updates of epoch 1"},
        {"term_first", "update@0:3:usr1", RC_PREEMPTED, "in the updates of epoch 0"},
        {"term_scores", "scores@1:2:term", RC_PREEMPTED, "before the updates of epoch"},
        {"term_evaluation", "evaluate@0:3:term", RC_PREEMPTED, "epoch 2"},
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
        {"nft_term_rollout", "rollout@1:6:term", RC_PREEMPTED, "before the updates of epoch 1"},
        {"nft_in_updates", "update@0:15:kill", 137, "saved"},
        {"nft_term_updates", "update@0:11:term", RC_PREEMPTED, "in the updates of epoch 1"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) hurt_one(&list[i], "nft", "nft");
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "killed and stopped anywhere, it ends with the same bits",
         .run = test_hurt,
         .flags = TEST_SLOW},
        {.name = "NFT, killed and stopped", .run = test_hurt_nft, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
