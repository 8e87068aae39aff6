/* Post-training as a user runs it: `mpirun osp rl` with a scorer in Python is spread over other
 * ranks, refused, left without scorers, and what it leaves is sampled from and merged. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/fake_scorer.h"
#include "tests/rl_process.h"

/* ---- ranks ------------------------------------------------------------------------------------*/
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
    struct process_opts o = plain_rl;
    o.sets[0] = "weight_dtype=fp64";
    o.sets[1] = "num_epochs=2";
    if (!rl_ready() || !rl_calm("two", "flow_grpo", &o)) return;
    for (size_t i = 0; i < sizeof list / sizeof *list; i += test_fast() ? 2 : 1) {
        o.ranks = list[i].ranks;
        for (int k = 0; k < 5; k++) o.sets[2 + k] = list[i].sets[k];
        if (rl_calm(list[i].name, "flow_grpo", &o)) rl_same_metrics(list[i].name, "two", 1, 2, 2);
    }
}

/* ---- what it says and leaves ------------------------------------------------------------------*/
static void test_refusals(struct comm *world)
{
    (void)world;
    if (!rl_ready() || !rl_calm("mine", "mix_grpo", &plain_rl)) return;
    char *yaml = process_yaml("base2", 8), *log = io_path("%s/base2.log", test_dir()),
         *base = io_path("model_config.pretrained_model_dir_or_checkpoint=%s/base2", test_dir()),
         *prompts = io_path("rl_config.prompt_file=%s/other.txt", test_dir());
    const struct process_opts train = {.verb = "train", .sets = {"seed=8"}};
    EXPECT(process_run(yaml, log, &train, NULL) == 0, "see %s", log);
    rl_refuse("mine", base, "was made for the");
    rl_refuse("mine", "init_from=base", "was made for the");
    rl_refuse("mine", "seed=12", "seed: 11 in the checkpoint, 12 now");
    rl_refuse("mine", prompts, "other.txt holds other prompts than those that ");
    rl_refuse("mine", "rl.shift=3", "rl.shift: 1.0 in the checkpoint, 3.0 now");
    rl_refuse("mine", "rl_config.train_batch_size=3",
              "command line:1:28: rl_config.train_batch_size: 3 x ");
    rl_refuse("mine", "rl_config.num_image_per_prompt=2",
              "rl_config.num_image_per_prompt: 4 in the checkpoint, 2 now");
    rl_refuse("fresh", "rl_config.num_image_per_prompt=3",
              "command line:1:32: rl_config.num_image_per_prompt: 3, but a rollout batch has 8");
    free(yaml);
    free(log);
    free(base);
    free(prompts);
}

/* A word that is no key=value, a key that nobody reads, and a stop while a scorer starts. */
static void test_words(struct comm *world)
{
    (void)world;
    struct process_opts o = {.verb = "rl", .sets = {"num_epochs", "3"}};
    char *said;
    if (!rl_ready()) return;
    int rc = rl_run("words", "mix_grpo", &o, &said);
    EXPECT(rc == RC_USAGE && strstr(said, "\"num_epochs\": expected key=value"), "%d: %s", rc,
           said);
    free(said);
    o = (struct process_opts){
        .verb = "rl", .sets = {"rl_config.sde_steps=3", "--print-config"}, .ranks = 1};
    rc = rl_run("notice", "flow_grpo", &o, &said);
    EXPECT(rc == 0 && strstr(said, "rl_config.sde_steps: 3 has no effect"), "%d: %s", rc, said);
    free(said);
    rc = rl_run("quiet", "mix_grpo", &o, &said);
    EXPECT(rc == 0 && !strstr(said, "has no effect"), "%d: %s", rc, said);
    free(said);
    rc = rl_run("kl", "nft", &o, &said);
    EXPECT(rc == 0 && !strstr(said, "kl_beta: 0.5 has no effect"), "%d: %s", rc, said);
    free(said);
    o.sets[0] = "rl_config.kl_beta=0.5";
    rc = rl_run("kl", "nft", &o, &said);
    EXPECT(rc == 0 && strstr(said, "kl_beta: 0.5 has no effect") &&
               strstr(said, "kl_beta: 0  # rl.algo"),
           "%d: %s", rc, said);
    free(said);
    char *align = io_path("reward.videoalign_dir=%s", test_dir()),
         *qwen = io_path("reward.model_dir=%s", test_dir());
    o = (struct process_opts){
        .verb = "rl", .sets = {"reward.command=null", align, qwen}, .ranks = 1};
    rc = rl_run("align", "mix_grpo", &o, &said);
    EXPECT(rc == RC_NOINPUT && strstr(said, "reward.template is not given") &&
               strstr(said, "prompt_template.py"),
           "%d: %s", rc, said);
    free(said);
    free(align);
    free(qwen);
    char *yaml = io_path("%s/words.yaml", test_dir()), *log = io_path("%s/slow.log", test_dir());
    o = (struct process_opts){.verb = "rl", .sets = {"reward.command=sleep 100"}, .ranks = 1};
    const pid_t job = process_start(yaml, log, &o);
    pid_t rank[2];
    char *text = process_log(log);
    for (int i = 0; i < 200 && !strstr(text, "waiting for the scorers"); i++) {
        process_nap(0.1);
        free(text);
        text = process_log(log);
    }
    if (process_ranks(yaml, rank, 2) > 0) kill(rank[0], SIGTERM);
    rc = process_end(job);
    free(text);
    text = process_log(log);
    EXPECT(rc == RC_PREEMPTED && strstr(text, "while the scorers start"), "%d: %s", rc, text);
    free(text);
    free(yaml);
    free(log);
}

/* No start before the newest epoch of the folder, and none beside what is damaged there. */
static void test_newer(struct comm *world)
{
    (void)world;
    struct process_opts o = plain_rl;
    char *said, *path = io_path("resume=%s/newer/checkpoints/iter_000000002", test_dir()),
                *bad = io_path("%s/damaged/checkpoints/iter_000000009", test_dir());
    struct err e = {0};
    o.sets[0] = "rl_config.eval_freq=0";
    if (!rl_ready() || !rl_calm("newer", "mix_grpo", &o)) return;
    rl_refuse("newer", path, "iter_000000002 would start at epoch 2, but");
    rl_refuse("newer", "resume=never", "holds checkpoints up to epoch 4; set resume: auto");
    io_mkdir(bad, &e);
    rl_refuse("damaged", "resume=never", "holds checkpoints, which are damaged");
    o.fault = "update@0:1:usr1";
    int rc = rl_run("first", "mix_grpo", &o, &said);
    EXPECT(rc == RC_PREEMPTED, "exit code %d: %s", rc, said);
    rl_refuse("first", "resume=never", "holds checkpoints up to epoch 0");
    free(said);
    o.fault = NULL;
    o.sets[1] = path;
    rl_calm("elsewhere", "mix_grpo", &o); /* the same start is fine where nothing is newer */
    free(path);
    free(bad);
}

/* All that the samples depend on is named at once. */
static void test_window(struct comm *world)
{
    (void)world;
    static const char *const says[] = {"window.min_iters: 0 in the checkpoint, 3 now",
                                       "window.decay_rate: 0.1", "window.decay_from: 13",
                                       "window.roll_back: true in the checkpoint, false now",
                                       "lora_config.dropout: 0.0 in the checkpoint, 0.5 now"};
    const struct process_opts o = {.verb = "rl",
                                   .sets = {"window.min_iters=3", "window.decay_rate=0.25",
                                            "window.decay_from=7", "window.roll_back=false",
                                            "lora_config.dropout=0.5", "num_epochs=2"}},
                              once = {.verb = "rl", .sets = {"num_epochs=1"}};
    char *said;
    if (!rl_ready() || !rl_calm("window", "mix_grpo_window", &once)) return;
    const int rc = rl_run("window", "mix_grpo_window", &o, &said);
    EXPECT(rc == RC_CONFIG, "exit code %d: %s", rc, said);
    for (size_t k = 0; k < sizeof says / sizeof *says; k++)
        EXPECT(strstr(said, says[k]), "no \"%s\" in: %s", says[k], said);
    free(said);
}

/* Ends with the clip after so many, and refuses to start again. */
static const char dying[] =
    "import os, sys\nsys.path.insert(0, 'scripts')\nimport osp_reward, simple_scorer\n"
    "dead = '%s/dead.' + str(os.getppid())\nif os.path.exists(dead):\n    sys.exit(78)\n"
    "class Dying(simple_scorer.SimpleScorer):\n    left = %d\n    def score(self, clip):\n"
    "        Dying.left -= 1\n        if Dying.left < 0:\n            open(dead, 'w')\n"
    "            os._exit(78)\n        return super().score(clip)\nosp_reward.serve(Dying())\n";

/* No scorer is left in the second epoch: a checkpoint and exit code 75; with a good one it goes on
 * to the same end. */
static void test_dead(struct comm *world)
{
    (void)world;
    struct process_opts o = plain_rl;
    if (!rl_ready() || !rl_calm("alive", "mix_grpo", &o)) return;
    char *text = io_path(dying, test_dir(), 9), *said;
    write_text("dying.py", text);
    char *set = io_path("reward.command=python3 %s/dying.py", test_dir());
    o.sets[0] = set;
    int rc = rl_run("dead", "mix_grpo", &o, &said);
    EXPECT(rc == RC_TEMP && strstr(said, "no scorer is left: stopped at epoch"), "exit code %d: %s",
           rc, said);
    free(said);
    rc = rl_run("dead", "mix_grpo", &plain_rl, &said);
    EXPECT(rc == 0 && strstr(said, "resumed from"), "exit code %d: %s", rc, said);
    EXPECT(process_diff("alive", "dead") == 0, "other bits than with a good scorer");
    free(said);
    free(set);
    free(text);
}

/* Every scorer ends with the second of the 4 clips that it gets of the evaluation at epoch 2: there
 * is no mean over the others. */
static void test_dead_evaluation(struct comm *world)
{
    (void)world;
    struct process_opts o = plain_rl;
    if (!rl_ready() || !rl_calm("heard", "mix_grpo", &o)) return;
    char *text = io_path(dying, test_dir(), 4 + 4 + 4 + 1), *said;
    write_text("dying.py", text);
    char *set = io_path("reward.command=python3 %s/dying.py", test_dir());
    o.sets[0] = set;
    int rc = rl_run("unheard", "mix_grpo", &o, &said);
    EXPECT(rc == RC_TEMP && strstr(said, "no scorer is left: stopped in the evaluation of epoch 2"),
           "exit code %d: %s", rc, said);
    free(said);
    EXPECT(rl_metric_lines("unheard", 2, "eval/reward_mean") == 0, "an evaluation of some clips");
    rc = rl_run("unheard", "mix_grpo", &plain_rl, &said);
    EXPECT(rc == 0 && strstr(said, "resumed from"), "exit code %d: %s", rc, said);
    free(said);
    o.sets[1] = "reward.on_dead=degrade";
    rc = rl_run("degraded", "mix_grpo", &o, &said);
    EXPECT(rc == 0 && strstr(said, "no evaluation from epoch 2 on") &&
               !strstr(said, "no evaluation from epoch 4"),
           "exit code %d: %s", rc, said);
    free(said);
    char *told = io_path("%s/degraded/eval/epoch_000002/prompts.json", test_dir());
    said = process_log(told);
    const char *lost = strstr(said, "\"reward\": null"); /* the first clip was scored */
    EXPECT(lost && lost > strstr(said, "\"a dark night\""), "%s", said);
    free(said);
    free(told);
    for (int e = 2; e <= EPOCHS; e += 2) {
        EXPECT(rl_metric_lines("unheard", e, "eval/reward_mean") == 1 &&
                   rl_metric("unheard", e, "eval/reward_mean") ==
                       rl_metric("heard", e, "eval/reward_mean"),
               "epoch %d is not evaluated as with a good scorer", e);
        EXPECT(rl_metric_lines("degraded", e, "eval/reward_mean") == 0, "epoch %d: some clips", e);
    }
    EXPECT(process_diff("heard", "unheard") == 0, "other bits than with a good scorer");
    if (rl_calm("degraded", "mix_grpo", &plain_rl))
        EXPECT(rl_metric_lines("degraded", EPOCHS, "eval/reward_mean") == 1,
               "the last evaluation is not made up");
    free(set);
    free(text);
}

/* Refuses every clip as input. */
static const char refusing[] =
    "import sys\nsys.path.insert(0, 'scripts')\nimport osp_reward, simple_scorer\n"
    "class Refusing(simple_scorer.SimpleScorer):\n    def score(self, clip):\n"
    "        raise osp_reward.BadInput('not my kind of clip')\nosp_reward.serve(Refusing())\n";

/* Too many clips without a score: the time until then counts, so that starting again and again
 * comes to an end. */
static void test_invalid(struct comm *world)
{
    (void)world;
    struct process_opts o = plain_rl;
    if (!rl_ready()) return;
    write_text("refusing.py", refusing);
    char *set = io_path("reward.command=python3 %s/refusing.py", test_dir()),
         *metrics = io_path("%s/invalid/metrics.jsonl", test_dir()), *said;
    o.sets[0] = set;
    o.sets[1] = "rl_config.eval_freq=0";
    o.sets[2] = "max_seconds=0.01";
    int rc = rl_run("invalid", "mix_grpo", &o, &said);
    EXPECT(rc == RC_TEMP && strstr(said, "8 of 8 clips of epoch 1 have no score"),
           "exit code %d: %s", rc, said);
    free(said);
    said = process_log(metrics);
    EXPECT(strstr(said, "\"stopped\""), "the end is no event: %s", said);
    free(said);
    rc = rl_run("invalid", "mix_grpo", &o, &said);
    EXPECT(rc == 0 && !strstr(said, "have no score"), "exit code %d: %s", rc, said);
    free(said);
    free(metrics);
    free(set);
}

static void expect_device(const char *run, int number, const char *device)
{
    char *log = io_path("%s/%s/reward_%d.log", test_dir(), run, number), *text = process_log(log),
         *want = io_path("I was told device=%s\n", device);
    EXPECT(strstr(text, want), "%s: no %s in \"%s\"", log, device, text);
    free(want);
    free(text);
    free(log);
}

/* On a host of two GPUs, as far as the program can see; the scorer tells what it was told. */
static void test_devices(struct comm *world)
{
    (void)world;
    static const struct {
        const char *name, *gpus, *set, *told[2], *says;
    } list[] = {
        {"by_rank", "OSP_GPUS=2", "reward.device=null", {"cuda:0", "cuda:1"}, "rank 1 on cuda:1"},
        {"shared", "OSP_GPUS=1", "reward.device=cuda", {"cuda:0", "cuda:0"}, "rank 1 on cuda:0"},
        {"none", "OSP_GPUS=0", "reward.device=null", {"cpu", "cpu"}, "rank 0 on cpu, rank 1"},
        {"named", "OSP_GPUS=2", "reward.device=cuda:7", {"cuda:7", "cuda:7"}, "rank 0 on cuda:7"},
    };
    char self[400], set[450];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    snprintf(set, sizeof set, "reward.command=%s --scorer fine", self);
    if (!rl_ready()) return;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        const struct process_opts o = {
            .verb = "rl",
            .sets = {set, list[i].set, "num_epochs=1", "rl_config.eval_freq=0"},
            .env = {list[i].gpus}};
        char *said;
        const int rc = rl_run(list[i].name, "mix_grpo", &o, &said);
        EXPECT(!rc && strstr(said, list[i].says) && !strstr(said, "against those"),
               "%s: exit code %d: %s", list[i].name, rc, said);
        for (int k = 0; k < 2; k++) expect_device(list[i].name, k, list[i].told[k]);
        free(said);
    }
    const struct process_opts o = {
        .verb = "rl", .sets = {set, "reward.device=cuda"}, .env = {"OSP_GPUS=0"}};
    char *said;
    const int rc = rl_run("absent", "mix_grpo", &o, &said);
    EXPECT(rc == RC_CONFIG && strstr(said, "reward.device: cuda, but no GPU"), "%d: %s", rc, said);
    free(said);
}

/* The history of DPM-Solver++ is needed from the second epoch on only; memory is sized before. */
static void test_late_history(struct comm *world)
{
    (void)world;
    const struct process_opts o = {
        .verb = "rl",
        .sets = {"rl_config.num_inference_steps=10", "window.start=6", "window.size=2",
                 "window.limit=8", "window.iters=1", "rl_config.sample_batch_size=16",
                 "rl_config.train_batch_size=1", "recompute=all", "rl_config.kl_beta=0",
                 "num_epochs=2", "rl_config.eval_freq=0"},
        .ranks = 1};
    if (rl_ready()) rl_calm("late", "mix_grpo_flash", &o);
}

static void expect_command(char *cmd, int rc, const char *says)
{
    enum { SAID = 1 << 16 };
    char *said = calloc(SAID, 1);
    const int got = test_command(cmd, said, SAID);
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
    if (!rl_ready() || !rl_calm("result", "mix_grpo", &plain_rl)) return;
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
        EXPECT(isfinite(rl_metric("result", EPOCHS, keys[k])), "no %s in the metrics", keys[k]);
    EXPECT(rl_metric("result", 1, "update/first_log_ratio") == 0, "the first ratio is not 1");
    char *osp = process_program();
    const char *dir = test_dir();
    expect_command(io_path("%s inspect %s/result --verify 2>&1", osp, dir), 0, "rank 4, alpha 8");
    expect_command(io_path("cat %s/base/checkpoints/iter_000000024/keep", dir), 0,
                   "the base of adapters in ");
    expect_command(
        io_path("%s plan %s/result.yaml ranks=2 2>&1", osp, dir), 0,
        "8 samples in 2 groups; a data rank makes 1 batches of 4, 4 updates of 2 samples, "
        "2 optimizer steps");
    expect_command(io_path("%s plan %s/result.yaml ranks=2 2>&1", osp, dir), 0,
                   "adapters of rank 4");
    expect_command(io_path("%s plan %s/result.yaml ranks=2..8 2>&1", osp, dir), RC_USAGE,
                   "for configurations of osp train");
    expect_command(io_path("%s plan %s/result.yaml rl.algo=dance 2>&1", osp, dir), RC_CONFIG,
                   "rl.algo");
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

/* With dropout the first ratio is 1, the evaluation before the first epoch is that of the base, and
 * memory that was sized before is enough. */
static void test_dropout(struct comm *world)
{
    (void)world;
    struct process_opts o = plain_rl;
    if (!rl_ready() || !rl_calm("whole", "mix_grpo", &o)) return;
    o.sets[0] = "lora_config.dropout=0.3";
    o.sets[1] = "lora_config.target_modules=['*']";
    o.sets[2] = "recompute=all";
    if (!rl_calm("thin", "mix_grpo", &o) || !rl_calm("thin_nft", "nft", &o)) return;
    for (int e = 1; e <= EPOCHS; e++)
        EXPECT(rl_metric("thin", e, "update/first_log_ratio") == 0, "epoch %d: ratio %g", e,
               rl_metric("thin", e, "update/first_log_ratio"));
    EXPECT(rl_metric("thin", 0, "eval/reward_mean") == rl_metric("whole", 0, "eval/reward_mean"),
           "dropout in the evaluation of the base");
    EXPECT(rl_metric("thin", 2, "eval/reward_mean") != rl_metric("whole", 2, "eval/reward_mean"),
           "dropout changes nothing");
}

/* The evaluation is of the same noise: where nothing is learned, its reward does not move a bit. */
static void test_still(struct comm *world)
{
    (void)world;
    struct process_opts o = plain_rl;
    o.sets[0] = "optimizer_config.lr=0";
    if (!rl_ready() || !rl_calm("still", "mix_grpo", &o)) return;
    const double first = rl_metric("still", 0, "eval/reward_mean"),
                 last = rl_metric("still", EPOCHS, "eval/reward_mean");
    EXPECT(first == last, "reward %.17g, then %.17g", first, last);
}

/* Writes down the prompts it is shown. */
static const char writing[] =
    "import sys\nsys.path.insert(0, 'scripts')\nimport osp_reward, simple_scorer\n"
    "class Writing(simple_scorer.SimpleScorer):\n    def score(self, clip):\n"
    "        with open('%s/shown', 'a') as f:\n            f.write(clip.prompt + '\\n')\n"
    "        return super().score(clip)\nosp_reward.serve(Writing())\n";

/* Scores nothing until the log tells of the whole second rollout; after a while, nothing at all. */
static const char patient[] =
    "import sys, time\nsys.path.insert(0, 'scripts')\nimport osp_reward, simple_scorer\n"
    "class Patient(simple_scorer.SimpleScorer):\n    end = None\n    def score(self, clip):\n"
    "        Patient.end = Patient.end or time.monotonic() + 45\n"
    "        while 'rollout 2/2 step 4' not in open('%s/overlap.log').read():\n"
    "            if time.monotonic() > Patient.end:\n"
    "                raise osp_reward.BadInput('no second rollout')\n"
    "            time.sleep(0.05)\n        return super().score(clip)\n"
    "osp_reward.serve(Patient())\n";

/* Scores are made beside the next rollout: all clips of a batch find a place without one of them
 * scored. */
static void test_overlap(struct comm *world)
{
    (void)world;
    struct process_opts o = plain_rl;
    if (!rl_ready()) return;
    char *text = io_path(patient, test_dir());
    write_text("patient.py", text);
    char *set = io_path("reward.command=python3 %s/patient.py", test_dir());
    const char *const sets[] = {set,
                                "num_epochs=1",
                                "rl_config.eval_freq=0",
                                "rl_config.sample_batch_size=8",
                                "rl_config.num_batches_per_epoch=2",
                                NULL};
    for (int k = 0; sets[k]; k++) o.sets[k] = sets[k];
    if (rl_calm("overlap", "mix_grpo", &o))
        EXPECT(rl_metric("overlap", 1, "reward/invalid_share") == 0, "%g without a score",
               rl_metric("overlap", 1, "reward/invalid_share"));
    free(set);
    free(text);
}

/* Two epochs of 2 of the 4 prompts, 4 samples each: every prompt 4 times. */
static void test_prompts(struct comm *world)
{
    (void)world;
    struct process_opts o = plain_rl;
    if (!rl_ready()) return;
    char *text = io_path(writing, test_dir()), *shown = io_path("%s/shown", test_dir());
    write_text("writing.py", text);
    char *set = io_path("reward.command=python3 %s/writing.py", test_dir());
    o.sets[0] = set;
    o.sets[1] = "rl_config.eval_freq=0";
    o.sets[2] = "num_epochs=2";
    if (rl_calm("prompts", "mix_grpo", &o)) {
        static const char *const want[] = {"red picture\n", "dark night\n", "green field\n",
                                           "blue waves\n"};
        char *said = process_log(shown);
        for (int k = 0; k < 4; k++) {
            int n = 0;
            for (const char *at = said; (at = strstr(at, want[k])); at++) n++;
            EXPECT(n == 4, "%d clips of %s", n, want[k]);
        }
        free(said);
    }
    free(set);
    free(shown);
    free(text);
}

/* A scorer's words are the reward, and every sample gets its own. */
static void test_learns(struct comm *world)
{
    (void)world;
    enum { LONG = 24 };
    struct process_opts o = plain_rl;
    if (!rl_ready()) return;
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
    if (rl_calm("learns", "mix_grpo", &o)) {
        double first = 0, last = 0, within = 0;
        for (int e = 1; e <= 4; e++) {
            first += rl_metric("learns", e, "reward/mean") / 4;
            last += rl_metric("learns", LONG - 4 + e, "reward/mean") / 4;
            within += rl_metric("learns", e, "reward/std_within_groups") / 4;
        }
        printf("    reward from %.4f to %.4f, deviation in a group %.4f\n", first, last, within);
        EXPECT(last - first > 2 * within, "reward from %.4f to %.4f, deviation %.4f", first, last,
               within);
    }
    free(prompts);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--scorer")) fake_scorer(argv[2]);
    const struct test tests[] = {
        {.name = "the same metrics on any ranks", .run = test_ranks, .flags = TEST_SLOW},
        {.name = "another base, seed or prompt file is refused",
         .run = test_refusals,
         .flags = TEST_SLOW},
        {.name = "words, keys without effect, a stop before the start",
         .run = test_words,
         .flags = TEST_SLOW},
        {.name = "no start before the newest epoch", .run = test_newer, .flags = TEST_SLOW},
        {.name = "another window or dropout is refused", .run = test_window, .flags = TEST_SLOW},
        {.name = "a history that is needed late", .run = test_late_history, .flags = TEST_SLOW},
        {.name = "a scorer gets the GPU of its rank", .run = test_devices, .flags = TEST_SLOW},
        {.name = "scorers that die for good", .run = test_dead, .flags = TEST_SLOW},
        {.name = "clips without a score", .run = test_invalid, .flags = TEST_SLOW},
        {.name = "scorers that die in an evaluation",
         .run = test_dead_evaluation,
         .flags = TEST_SLOW},
        {.name = "sample from the result, merge it", .run = test_result, .flags = TEST_SLOW},
        {.name = "dropout of the adapters", .run = test_dropout, .flags = TEST_SLOW},
        {.name = "every clip with its prompt", .run = test_prompts, .flags = TEST_SLOW},
        {.name = "scores beside the next rollout", .run = test_overlap, .flags = TEST_SLOW},
        {.name = "the reward rises", .run = test_learns, .flags = TEST_SLOW},
        {.name = "no learning, no change", .run = test_still, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
