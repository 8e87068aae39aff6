/* What a run folder cannot be gone on with is said at the start, in one line: which key, what the
 * folder holds, what to do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/rl_process.h"

/* One epoch into test_dir()/NAME; set: a further key=value, or NULL. */
static bool short_run(const char *name, const char *set)
{
    const struct process_opts o = {
        .verb = "rl", .sets = {"num_epochs=1", "rl_config.eval_freq=0", set}, .ranks = 1};
    return rl_ready() && rl_calm(name, "mix_grpo", &o);
}

/* One run for the first two tests. */
static bool mine_ready(void)
{
    static bool made;
    return rl_ready() && (made = made || short_run("mine", NULL));
}

/* osp VERB with the YAML of a run; it must be refused with these words, and no step be taken. */
static void refused(const char *yaml, const char *verb, const char *set, const char *const *says)
{
    char *path = io_path("%s/%s.yaml", test_dir(), yaml),
         *log = io_path("%s/refused.log", test_dir());
    const struct process_opts o = {.verb = verb, .sets = {set}, .ranks = 1};
    remove(log);
    const int rc = process_run(path, log, &o, NULL);
    char *said = process_log(log);
    EXPECT(rc == RC_CONFIG, "%s %s: exit code %d: %s", verb, set, rc, said);
    for (; *says; says++)
        EXPECT(strstr(said, *says), "%s %s: no \"%s\" in: %s", verb, set, *says, said);
    EXPECT(!strstr(said, "scorers ready"), "%s %s: late: %s", verb, set, said);
    free(said);
    free(log);
    free(path);
}

/* A run of the other verb lies in output_dir, or is what resume names. */
static void test_folders(struct comm *world)
{
    (void)world;
    if (!mine_ready()) return;
    char *base = io_path("output_dir=%s/base", test_dir()),
         *mine = io_path("output_dir=%s/mine", test_dir()),
         *from = io_path("resume=%s/mine", test_dir());
    refused("mine", "rl", base,
            (const char *[]){"output_dir: ", "/base holds a model of osp train (step 24)",
                             "which osp rl does not go on from; use another output_dir, and name "
                             "it as model_config.pretrained_model_dir_or_checkpoint",
                             NULL});
    refused("base", "train", mine,
            (const char *[]){"output_dir: ", "/mine holds adapters of osp rl (epoch 1)",
                             "which osp train does not go on from; use another output_dir, or "
                             "merge them",
                             NULL});
    char *elsewhere = process_yaml("elsewhere", 2);
    refused("elsewhere", "train", from, (const char *[]){"resume: ", "holds adapters", NULL});
    free(elsewhere);
    free(from);
    free(mine);
    free(base);
}

/* Rollout, updates and result of an epoch are said of the same number, that of its checkpoint. */
static void test_numbers(struct comm *world)
{
    (void)world;
    if (!mine_ready()) return;
    char *log = io_path("%s/mine.log", test_dir()), *said = process_log(log);
    static const char *const says[] = {"epoch 1/1  rollout 1/1", "epoch 1/1  update 1/",
                                       "epoch 1/1  reward ", "iter_000000001"};
    for (int i = 0; i < 4; i++) EXPECT(strstr(said, says[i]), "no \"%s\" in: %s", says[i], said);
    EXPECT(!strstr(said, "epoch 0"), "an epoch 0: %s", said);
    free(said);
    free(log);
}

/* Another run in the folder, by words and with the place of the key, before scorers are waited for.
 */
static void test_identity(struct comm *world)
{
    (void)world;
    if (!mine_ready()) return;
    refused("mine", "rl", "rl.algo=flow_grpo",
            (const char *[]){"command line:", ": rl.algo: flow_grpo, but ",
                             "iter_000000001 was trained by mix_grpo; use another output_dir",
                             NULL});
    refused("mine", "rl", "window.strategy=random",
            (const char *[]){"window.strategy: fixed in the checkpoint, random now", NULL});
    refused("mine", "rl", "rl_config.sample_batch_size=8",
            (const char *[]){": rl_config.sample_batch_size: 8 x 1 data ranks = 8 samples of a "
                             "rollout batch over all data ranks, but ",
                             "was made with 4; take as many data ranks as then", NULL});
}

static void test_adapters(struct comm *world)
{
    (void)world;
    if (!mine_ready()) return;
    refused("mine", "rl", "lora_config.target_modules=[self_attn.q, ffn.0]",
            (const char *[]){"lora_config.target_modules: [self_attn.q, self_attn.k, self_attn.v, "
                             "self_attn.o, cross_attn.q, cross_attn.k, cross_attn.v, cross_attn.o] "
                             "in ",
                             "iter_000000001, [self_attn.q, ffn.0] now",
                             "set those of the checkpoint, or use another output_dir", NULL});
    refused("mine", "rl", "lora_config.target_modules=[self_attn.*, cross_attn.*, ffn.0]",
            (const char *[]){"ffn.0.lora_A.weight is on one side only", NULL});
    refused("mine", "rl", "lora_config.rank=3",
            (const char *[]){"lora_config.rank: 4 in ", ", 3 now; set 4, or use another", NULL});
    refused("mine", "rl", "lora_config.alpha=3",
            (const char *[]){"lora_config.alpha: 8 in ", ", 3 now; set 8, or use another", NULL});
    char *yaml = io_path("%s/mine.yaml", test_dir()), *log = io_path("%s/mine.log", test_dir());
    const struct process_opts same = {
        .verb = "rl",
        .sets = {"lora_config.target_modules=[self_attn.*, cross_attn.*]", "num_epochs=1",
                 "rl_config.eval_freq=0"},
        .ranks = 1};
    EXPECT(process_run(yaml, log, &same, NULL) == 0, "the same modules by other patterns: see %s",
           log);
    free(log);
    free(yaml);
}

/* Adapters of four blocks on six, as was insisted on: which modules, and what they were made for.
 */
static void test_other_model(struct comm *world)
{
    (void)world;
    if (!mine_ready()) return;
    char *yaml = process_yaml("deep", 1), *log = io_path("%s/deep.log", test_dir());
    const struct process_opts o = {
        .verb = "train", .sets = {"model_config.num_layers=6"}, .ranks = 1};
    EXPECT(process_run(yaml, log, &o, NULL) == 0, "see %s", log);
    char *text = io_path("output_dir: %s/video\ncheckpoint: %s/deep\nprompt_txt: a cat\n"
                         "num_frames: null\nheight: null\nwidth: null\nweight_dtype: fp32\n"
                         "lora: %s/mine\nlora_force_base: true\n",
                         test_dir(), test_dir(), test_dir());
    write_text("sampled.yaml", text);
    refused("sampled", "sample", "seed=1",
            (const char *[]){"mine/checkpoints/iter_000000001: its adapters for [self_attn.q, ",
                             "(blocks.4.self_attn.q.lora_A.weight is on one side only)",
                             "use it on its own base, ", "/base/checkpoints/iter_000000024", NULL});
    free(text);
    free(log);
    free(yaml);
}

/* Averages cannot begin in the middle of a run. */
static void test_averages(struct comm *world)
{
    (void)world;
    if (!short_run("raw", "ema_decay=0")) return;
    refused("raw", "rl", "ema_decay=0.9",
            (const char *[]){"ema_decay: 0 in ",
                             "but 0.9 now; set ema_decay: 0, or begin with its "
                             "weights only: another output_dir and lora_config.lora_path",
                             NULL});
    char *from = io_path("lora_config.lora_path=%s/raw", test_dir()), *said;
    const struct process_opts other = {
        .verb = "rl", .sets = {from, "lora_config.target_modules=[ffn.0]"}, .ranks = 1};
    const int rc = rl_run("begun", "mix_grpo", &other, &said);
    EXPECT(rc == RC_CONFIG && strstr(said, "[ffn.0] now") &&
               strstr(said, "or leave lora_config.lora_path out"),
           "exit code %d: %s", rc, said);
    short_run("begun", from); /* the remedy */
    free(said);
    free(from);
    char *yaml = process_yaml("plain", 2), *log = io_path("%s/plain.log", test_dir());
    const struct process_opts o = {.verb = "train", .sets = {"ema_decay=0"}, .ranks = 1};
    EXPECT(process_run(yaml, log, &o, NULL) == 0, "see %s", log);
    refused("plain", "train", "ema_decay=0.9",
            (const char *[]){"ema_decay: 0 in ",
                             "but 0.9 now; set ema_decay: 0, or use another "
                             "output_dir",
                             NULL});
    free(log);
    free(yaml);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "a folder of the other stage is named, with the remedy",
         .run = test_folders,
         .flags = TEST_SLOW},
        {.name = "an epoch has one number", .run = test_numbers, .flags = TEST_SLOW},
        {.name = "another run is named at the start", .run = test_identity, .flags = TEST_SLOW},
        {.name = "other adapters are named at the start", .run = test_adapters, .flags = TEST_SLOW},
        {.name = "adapters on a model of other blocks",
         .run = test_other_model,
         .flags = TEST_SLOW},
        {.name = "averages that a run does not have are named",
         .run = test_averages,
         .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
