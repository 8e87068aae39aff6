/* Post-training as a user runs it: `mpirun osp rl` with a scorer in Python is killed, stopped,
 * resumed, spread over other ranks, refused, and what it leaves is sampled from and merged. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/process.h"

enum { EPOCHS = 3 };
static const struct process_opts plain = {.verb = "rl"};

static void write_text(const char *name, const char *text)
{
    struct err e = {0};
    char *path = io_path("%s/%s", test_dir(), name);
    io_write_file(path, text, strlen(text), &e);
    CHECK(!e.code, "%s", e.msg);
    free(path);
}

/* test_dir()/RUN.yaml: post-training of test_dir()/base into test_dir()/RUN. */
static char *rl_yaml(const char *run, const char *algo)
{
    char *text = io_path(
        "seed: 11\noutput_dir: %s/%s\nnum_epochs: %d\nsave_interval: 1\nweight_dtype: fp32\n"
        "ema_decay: 0.9\ngrad_clip: fixed\nrecompute: none\ninit_from: ema\n"
        "model_config: {pretrained_model_dir_or_checkpoint: %s/base}\n"
        "lora_config: {rank: 4, alpha: 8}\n"
        "optimizer_config: {lr: 2e-3, weight_decay: 0, eps: 1e-8}\n"
        "rl_config: {num_inference_steps: 4, sde_steps: 2, guidance_scale: 1.5,\n"
        "  num_image_per_prompt: 4, sample_batch_size: 4, train_batch_size: 2,\n"
        "  num_batches_per_epoch: 1, clip_range: 1e-2, %seval_freq: 2,\n"
        "  eval_num_steps: 2, prompt_file: %s/prompts.txt, eval_prompt_file: %s/prompts.txt}\n"
        "rl: {algo: %s, shift: 1.0}\n"
        "reward: {command: python3 scripts/simple_scorer.py}\n",
        test_dir(), run, EPOCHS, test_dir(), strcmp(algo, "nft") ? "kl_beta: 0.01, " : "",
        test_dir(), test_dir(), algo);
    char *name = io_path("%s.yaml", run), *path = io_path("%s/%s", test_dir(), name);
    write_text(name, text);
    free(name);
    free(text);
    return path;
}

static int run(const char *name, const char *algo, const struct process_opts *o, char **said)
{
    char *yaml = rl_yaml(name, algo), *log = io_path("%s/%s.log", test_dir(), name);
    remove(log);
    const int rc = process_run(yaml, log, o, NULL);
    if (said) *said = process_log(log);
    if (!said && rc) printf("    see %s\n", log);
    free(log);
    free(yaml);
    return rc;
}

static bool ready(void)
{
    static bool made;
    if (!process_ready()) return false;
    if (system("python3 -c 'import mmap, socket; socket.recv_fds' >/dev/null 2>&1")) {
        test_skip("no python3 (3.9 or newer)");
        return false;
    }
    if (made) return true;
    write_text("prompts.txt",
               "a bright red picture\na dark night\na green field\nfast blue waves\n");
    write_text("other.txt", "a bright red picture\na dark day\na green field\nfast blue waves\n");
    char *yaml = process_yaml("base", 24), *log = io_path("%s/base.log", test_dir());
    const struct process_opts train = {.verb = "train"};
    made = process_run(yaml, log, &train, NULL) == 0;
    EXPECT(made, "the base cannot be trained, see %s", log);
    free(log);
    free(yaml);
    return made;
}

static bool calm(const char *name, const char *algo, const struct process_opts *o)
{
    char *said;
    const int rc = run(name, algo, o, &said);
    EXPECT(rc == 0, "%s: exit code %d: %s", name, rc, said);
    free(said);
    return rc == 0;
}

/* The last value of a key at an epoch; NaN: there is none. */
static double metric(const char *name, int epoch, const char *key)
{
    char *path = io_path("%s/%s/metrics.jsonl", test_dir(), name), *text = process_log(path);
    double found = NAN;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *j = json_loads(line, 0, NULL), *v = json_object_get(j, key);
        if (v && json_integer_value(json_object_get(j, "step")) == epoch)
            found = json_number_value(v);
        json_decref(j);
    }
    free(text);
    free(path);
    return found;
}

/* ---- interruptions ----------------------------------------------------------------------------*/
struct hurt {
    const char *name, *fault;
    int rc;
    const char *says;
};

static void hurt_one(const struct hurt *h, const char *algo, const char *want)
{
    char *said;
    struct process_opts o = plain;
    o.fault = h->fault;
    int rc = run(h->name, algo, &o, &said);
    EXPECT(rc == h->rc, "%s %s: exit code %d: %s", h->name, h->fault, rc, said);
    EXPECT(strstr(said, h->says), "%s: \"%s\" is not in: %s", h->name, h->says, said);
    free(said);
    rc = run(h->name, algo, &plain, &said);
    EXPECT(rc == 0 && strstr(said, "resumed from"), "%s, again: exit code %d: %s", h->name, rc,
           said);
    EXPECT(process_diff(want, h->name) == 0, "%s: other bits than the undisturbed run", h->name);
    const double a = metric(want, EPOCHS, "reward/mean"),
                 b = metric(h->name, EPOCHS, "reward/mean");
    EXPECT(a == b, "%s: reward %.17g, undisturbed %.17g", h->name, b, a);
    for (int e = 0; e <= EPOCHS; e++) { /* no evaluation is lost */
        const double c = metric(want, e, "eval/reward_mean"),
                     d = metric(h->name, e, "eval/reward_mean");
        EXPECT(isnan(c) ? isnan(d) : c == d, "%s: evaluation of epoch %d: %.17g, undisturbed %.17g",
               h->name, e, d, c);
    }
    free(said);
}

/* An epoch has 4 steps of rollouts and 4 updates; an evaluation has 2 steps. */
static void test_hurt(struct comm *world)
{
    (void)world;
    if (!ready() || !calm("calm", "mix_grpo", &plain)) return;
    static const struct hurt list[] = {
        {"in_updates", "update@0:7:kill", 137, "saved"},
        {"term_rollout", "rollout@1:6:term", RC_PREEMPTED, "before the updates of epoch 1"},
        {"in_rollout", "rollout@1:6:kill", 137, "saved"},
        {"in_save", "save@1:2:kill", 137, "saved"},
        {"in_scores", "scores@0:2:kill", 137, "saved"},
        {"in_evaluation", "evaluate@1:3:kill", 137, "saved"},
        {"term_updates", "update@1:6:term", RC_PREEMPTED, "in the updates of epoch 1"},
        {"term_first", "update@0:3:usr1", RC_PREEMPTED, "in the updates of epoch 0"},
        {"term_scores", "scores@1:2:term", RC_PREEMPTED, "epoch 1"},
        {"term_evaluation", "evaluate@0:3:term", RC_PREEMPTED, "epoch 2"},
    };
    const size_t n = test_fast() ? 2 : sizeof list / sizeof *list;
    for (size_t i = 0; i < n; i++) hurt_one(&list[i], "mix_grpo", "calm");
}

/* Rollouts of NFT use other weights than those that are saved as the trained ones. */
static void test_hurt_nft(struct comm *world)
{
    (void)world;
    if (!ready() || !calm("nft", "nft", &plain)) return;
    static const struct hurt list[] = {
        {"nft_term_rollout", "rollout@1:6:term", RC_PREEMPTED, "before the updates of epoch 1"},
        {"nft_in_updates", "update@0:8:kill", 137, "saved"},
        {"nft_term_updates", "update@0:8:term", RC_PREEMPTED, "in the updates of epoch 1"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) hurt_one(&list[i], "nft", "nft");
}

/* ---- ranks ------------------------------------------------------------------------------------*/
static void compare(const char *name, const char *want)
{
    static const char *const keys[] = {
        "reward/mean",      "reward/std_within_groups", "update/loss",      "update/kl_loss",
        "update/grad_norm", "advantage/abs_mean",       "eval/reward_mean", "update/approx_kl"};
    for (int epoch = 1; epoch <= 2; epoch++)
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            const double a = metric(want, epoch, keys[k]), b = metric(name, epoch, keys[k]);
            EXPECT(isnan(a) == isnan(b) && !(fabs(a - b) > 1e-6 * fabs(a) + 1e-12),
                   "%s, epoch %d: %s is %.12g, not %.12g", name, epoch, keys[k], b, a);
        }
}

/* The same samples on any ranks; in fp64, so that no pixel is rounded to another byte. */
static void test_ranks(struct comm *world)
{
    (void)world;
    static const struct {
        const char *name;
        int ranks;
        const char *sets[5];
    } list[] = {
        {"one", 1, {"rl_config.sample_batch_size=8", "rl_config.train_batch_size=4"}},
        {"four", 4, {"rl_config.sample_batch_size=2", "rl_config.train_batch_size=1"}},
        {"ssp",
         2,
         {"rl_config.sample_batch_size=8", "rl_config.train_batch_size=4",
          "use_skiparse_sequence_parallel=true", "skiparse_sp_size=2"}},
        {"ulysses",
         2,
         {"rl_config.sample_batch_size=8", "rl_config.train_batch_size=4",
          "use_sequence_parallel=true", "sp_size=2"}},
        {"accumulated", 2, {"rl_config.train_batch_size=1", "gradient_accumulation_steps=2"}},
    };
    struct process_opts o = plain;
    o.sets[0] = "weight_dtype=fp64";
    o.sets[1] = "num_epochs=2";
    if (!ready() || !calm("two", "flow_grpo", &o)) return;
    for (size_t i = 0; i < sizeof list / sizeof *list; i += test_fast() ? 2 : 1) {
        o.ranks = list[i].ranks;
        for (int k = 0; k < 5; k++) o.sets[2 + k] = list[i].sets[k];
        if (calm(list[i].name, "flow_grpo", &o)) compare(list[i].name, "two");
    }
}

/* ---- what it says and leaves ------------------------------------------------------------------*/
static void refuse(const char *name, const char *set, const char *says)
{
    struct process_opts o = plain;
    char *said;
    o.sets[0] = set;
    const int rc = run(name, "mix_grpo", &o, &said);
    EXPECT(rc == RC_CONFIG && strstr(said, says), "%s: exit code %d, no \"%s\" in: %s", set, rc,
           says, said);
    free(said);
}

static void test_refusals(struct comm *world)
{
    (void)world;
    if (!ready() || !calm("mine", "mix_grpo", &plain)) return;
    char *yaml = process_yaml("base2", 8), *log = io_path("%s/base2.log", test_dir()),
         *base = io_path("model_config.pretrained_model_dir_or_checkpoint=%s/base2", test_dir()),
         *prompts = io_path("rl_config.prompt_file=%s/other.txt", test_dir());
    const struct process_opts train = {.verb = "train", .sets = {"seed=8"}};
    EXPECT(process_run(yaml, log, &train, NULL) == 0, "see %s", log);
    refuse("mine", base, "was made for the");
    refuse("mine", "init_from=base", "was made for the");
    refuse("mine", "seed=12", "seed: 11 in the checkpoint, 12 now");
    refuse("mine", prompts, "prompts: ");
    refuse("mine", "rl.shift=3", "rl.shift: 1.0 in the checkpoint, 3.0 now");
    refuse("mine", "rl_config.train_batch_size=3", "rl_config.train_batch_size 3");
    refuse("mine", "rl_config.num_image_per_prompt=3",
           "no whole groups of num_image_per_prompt = 3");
    free(yaml);
    free(log);
    free(base);
    free(prompts);
}

/* Ends with the ninth clip, and refuses to start again. */
static const char dying[] =
    "import os, sys\nsys.path.insert(0, 'scripts')\nimport osp_reward, simple_scorer\n"
    "dead = '%s/dead.' + str(os.getppid())\nif os.path.exists(dead):\n    sys.exit(78)\n"
    "class Dying(simple_scorer.SimpleScorer):\n    left = 9\n    def score(self, clip):\n"
    "        Dying.left -= 1\n        if Dying.left < 0:\n            open(dead, 'w')\n"
    "            os._exit(78)\n        return super().score(clip)\nosp_reward.serve(Dying())\n";

/* No scorer is left in the second epoch: a checkpoint and exit code 75; with a good one it goes on
 * to the same end. */
static void test_dead(struct comm *world)
{
    (void)world;
    struct process_opts o = plain;
    if (!ready() || !calm("alive", "mix_grpo", &o)) return;
    char *text = io_path(dying, test_dir()), *said;
    write_text("dying.py", text);
    char *set = io_path("reward.command=python3 %s/dying.py", test_dir());
    o.sets[0] = set;
    int rc = run("dead", "mix_grpo", &o, &said);
    EXPECT(rc == RC_TEMP && strstr(said, "no scorer is left: stopped at epoch"), "exit code %d: %s",
           rc, said);
    free(said);
    rc = run("dead", "mix_grpo", &plain, &said);
    EXPECT(rc == 0 && strstr(said, "resumed from"), "exit code %d: %s", rc, said);
    EXPECT(process_diff("alive", "dead") == 0, "other bits than with a good scorer");
    free(said);
    free(set);
    free(text);
}

static int command(const char *cmd, char *said, size_t size)
{
    FILE *p = popen(cmd, "r");
    said[fread(said, 1, size - 1, p)] = 0;
    const int status = pclose(p);
    return status < 0 ? -1 : WEXITSTATUS(status);
}

static void expect_command(char *cmd, int rc, const char *says)
{
    enum { SAID = 1 << 16 };
    char *said = calloc(SAID, 1);
    const int got = command(cmd, said, SAID);
    EXPECT(got == rc && strstr(said, says), "%s: exit code %d, no \"%s\" in: %s", cmd, got, says,
           said);
    free(said);
    free(cmd);
}

static void test_result(struct comm *world)
{
    (void)world;
    static const char *const keys[] = {"reward/mean",
                                       "reward/std",
                                       "reward/VQ/mean",
                                       "update/loss",
                                       "update/kl_loss",
                                       "update/grad_norm",
                                       "update/lr",
                                       "update/kl",
                                       "update/approx_kl",
                                       "advantage/max",
                                       "update/clip_fraction",
                                       "time/rollout_s",
                                       "time/reward_wait_s"};
    if (!ready() || !calm("result", "mix_grpo", &plain)) return;
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
        EXPECT(isfinite(metric("result", EPOCHS, keys[k])), "no %s in the metrics", keys[k]);
    EXPECT(metric("result", 1, "update/first_log_ratio") == 0, "the first ratio is not 1");
    char *osp = process_program();
    const char *dir = test_dir();
    expect_command(io_path("%s inspect %s/result --verify 2>&1", osp, dir), 0, "rank 4, alpha 8");
    expect_command(io_path("%s sample configs/sample/tiny.yaml output_dir=%s/video num_frames=null "
                           "height=null width=null scheduler_config.num_inference_steps=2 "
                           "samples_per_prompt=1 weight_dtype=fp32 checkpoint=%s/base "
                           "lora=%s/result 2>&1 </dev/null",
                           osp, dir, dir, dir),
                   0, "adapters of rank 4");
    expect_command(
        io_path("%s convert merge %s/base %s/result %s/merged --ema 2>&1", osp, dir, dir, dir), 0,
        "32 adapters");
    free(osp);
}

/* The evaluation is of the same noise: where nothing is learned, its reward does not move a bit. */
static void test_still(struct comm *world)
{
    (void)world;
    struct process_opts o = plain;
    o.sets[0] = "optimizer_config.lr=0";
    if (!ready() || !calm("still", "mix_grpo", &o)) return;
    const double first = metric("still", 0, "eval/reward_mean"),
                 last = metric("still", EPOCHS, "eval/reward_mean");
    EXPECT(first == last, "reward %.17g, then %.17g", first, last);
}

/* A scorer's words are the reward, and every sample gets its own. */
static void test_learns(struct comm *world)
{
    (void)world;
    enum { LONG = 24 };
    struct process_opts o = plain;
    if (!ready()) return;
    write_text("bright.txt", "a bright white picture\na bright day\n");
    char *prompts = io_path("rl_config.prompt_file=%s/bright.txt", test_dir());
    const char *const sets[] = {prompts,
                                "num_epochs=24",
                                "reward.weights=[0, 0, 1]",
                                "optimizer_config.lr=1e-2",
                                "rl_config.sde_steps=3",
                                "rl_config.eval_freq=0",
                                "save_interval=24",
                                NULL};
    for (int k = 0; sets[k]; k++) o.sets[k] = sets[k];
    if (calm("learns", "mix_grpo", &o)) {
        double first = 0, last = 0, within = 0;
        for (int e = 1; e <= 4; e++) {
            first += metric("learns", e, "reward/mean") / 4;
            last += metric("learns", LONG - 4 + e, "reward/mean") / 4;
            within += metric("learns", e, "reward/std_within_groups") / 4;
        }
        printf("    reward from %.4f to %.4f, deviation in a group %.4f\n", first, last, within);
        EXPECT(last - first > 2 * within, "reward from %.4f to %.4f, deviation %.4f", first, last,
               within);
    }
    free(prompts);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "killed and stopped anywhere, it ends with the same bits",
         .run = test_hurt,
         .flags = TEST_SLOW},
        {.name = "NFT, killed and stopped", .run = test_hurt_nft, .flags = TEST_SLOW},
        {.name = "the same metrics on any ranks", .run = test_ranks, .flags = TEST_SLOW},
        {.name = "another base, seed or prompt file is refused",
         .run = test_refusals,
         .flags = TEST_SLOW},
        {.name = "scorers that die for good", .run = test_dead, .flags = TEST_SLOW},
        {.name = "sample from the result, merge it", .run = test_result, .flags = TEST_SLOW},
        {.name = "the reward rises", .run = test_learns, .flags = TEST_SLOW},
        {.name = "no learning, no change", .run = test_still, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
