/* `mpirun osp rl` with VideoAlign as its scorer, given as a user gives it: a tiny random Qwen2-VL
 * and checkpoint in the files of the real ones (tests/videoalign_tiny.py). Needs torch. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/rl_process.h"

enum { CLIPS = 8, SAID = 1 << 14 };
static const char *const dims[] = {"VQ", "MQ", "TA"};
static const double weights[] = {1, 0.5, 2};
static char *align, *qwen, *template, *path; /* key=value, PATH=... */

static bool command_runs(char *cmd) /* takes cmd */
{
    static char said[SAID];
    const int rc = test_command(cmd, said, sizeof said);
    EXPECT(rc == 0, "%s: %d, %s", cmd, rc, said);
    free(cmd);
    return rc == 0;
}

/* The folders, and the interpreter as `python3`. */
static bool ready(void)
{
    static bool made;
    const char *py = process_python_torch(), *dir = test_dir();
    if (!py || !rl_ready()) return false;
    if (made) return true;
    char here[2048];
    if (!getcwd(here, sizeof here)) return false;
    const bool own = strchr(py, '/');
    path = io_path("PATH=%s%s%.*s%s%s", own ? here : "", own ? "/" : "",
                   own ? (int)(strrchr(py, '/') - py) : 0, py, own ? ":" : "", getenv("PATH"));
    align = io_path("reward.videoalign_dir=%s/tiny/align", dir);
    qwen = io_path("reward.model_dir=%s/tiny/base", dir);
    template = io_path("reward.template=%s/tiny", dir);
    made = command_runs(io_path("%s tests/videoalign_tiny.py %s/tiny 2>&1", py, dir)) &&
           command_runs(io_path("%s scripts/videoalign_convert.py %s/tiny/align/checkpoint-7 2>&1",
                                py, dir));
    return made;
}

static struct process_opts options(void)
{
    return (struct process_opts){.verb = "rl",
                                 .sets = {"reward.command=null", align, qwen, template,
                                          "reward.weights=[1, 0.5, 2]", "num_epochs=2",
                                          "reward.device=cpu"},
                                 .env = {path}};
}

/* ---- the whole job ----------------------------------------------------------------------------*/
/* While it runs, its scorers are seen; afterwards nothing of it is. */
static int run_watched(const char *name)
{
    struct process_opts o = options();
    char *mark = io_path("OSP_REWARD_MARK=%s", test_dir()), *yaml = rl_yaml(name, "mix_grpo"),
         *log = io_path("%s/%s.log", test_dir(), name);
    pid_t pid[32];
    o.env[1] = mark;
    const pid_t job = process_start(yaml, log, &o);
    int seen = 0, left;
    char *text = process_log(log);
    for (int i = 0; i < 1200 && !strstr(text, "scorers ready"); i++) {
        process_nap(0.1);
        free(text);
        text = process_log(log);
    }
    for (int i = process_marked(mark, pid, 32) - 1; i >= 0; i--) {
        char *cmd = io_path("grep -aq scripts/videoalign_scorer.py /proc/%d/cmdline", (int)pid[i]);
        seen += system(cmd) == 0;
        free(cmd);
    }
    const int rc = process_end(job);
    for (int i = 0; i < 100 && (left = process_marked(mark, pid, 32)); i++) process_nap(0.1);
    EXPECT(rc == 0, "exit code %d, see %s", rc, text);
    EXPECT(seen == 2, "%d scorers while it ran", seen);
    EXPECT(left == 0, "%d processes are left, the first is %d", left, (int)pid[0]);
    free(text);
    free(log);
    free(yaml);
    free(mark);
    return rc;
}

static void expect_rewards(const char *name, const char *prefix, const char *suffix,
                           const char *sum_key, int epoch)
{
    double sum = 0;
    for (int d = 0; d < 3; d++) {
        char *key = io_path("%s/%s%s", prefix, dims[d], suffix);
        const double x = rl_metric(name, epoch, key);
        EXPECT(isfinite(x), "epoch %d: no %s", epoch, key);
        sum += weights[d] * x;
        free(key);
    }
    const double got = rl_metric(name, epoch, sum_key);
    EXPECT(fabs(got - sum) <= 1e-9 * (1 + fabs(sum)), "epoch %d: %s %.12g, not %.12g", epoch,
           sum_key, got, sum);
}

static void test_job(struct comm *world)
{
    (void)world;
    if (!ready() || run_watched("job")) return;
    for (int epoch = 1; epoch <= 2; epoch++) {
        expect_rewards("job", "reward", "/mean", "reward/mean", epoch);
        EXPECT(rl_metric("job", epoch, "reward/invalid_share") == 0, "clips without a score");
        EXPECT(rl_metric("job", epoch, "update/grad_norm") > 0, "nothing to learn from");
    }
    for (int epoch = 0; epoch <= 2; epoch += 2)
        expect_rewards("job", "eval", "", "eval/reward_mean", epoch);
    char *osp = process_program();
    const char *dir = test_dir();
    if (command_runs(io_path("%s report %s/job 2>&1", osp, dir)))
        command_runs(io_path("grep -q .Evaluation reward. %s/job/report.html", dir));
    command_runs(io_path("test -s %s/job/tb/events.out.tfevents*", dir));
    free(osp);
}

/* ---- a second opinion -------------------------------------------------------------------------*/
/* The clips of the first epoch do not depend on any score: kept by another scorer, then scored by
 * VideoAlign alone. */
static void test_alone(struct comm *world)
{
    (void)world;
    if (!ready()) return;
    const char *dir = test_dir();
    char *record = io_path("reward.command=python3 tests/videoalign_clips.py record %s/clips", dir);
    struct process_opts o = options();
    o.sets[5] = "num_epochs=1";
    if (isnan(rl_metric("job", 1, "reward/mean")) && !rl_calm("job", "mix_grpo", &o)) return;
    o = (struct process_opts){.verb = "rl",
                              .sets = {record, "num_epochs=1", "rl_config.eval_freq=0"}};
    char *cmd = io_path("mkdir %s/clips", dir);
    if (command_runs(cmd) && rl_calm("record", "mix_grpo", &o)) {
        char said[SAID];
        double want[3];
        int n = 0;
        cmd = io_path("%s tests/videoalign_clips.py score %s/clips videoalign_dir=%s/tiny/align "
                      "base_dir=%s/tiny/base template=%s/tiny device=cpu 2>%s/alone.log",
                      process_python_torch(), dir, dir, dir, dir, dir);
        const int rc = test_command(cmd, said, sizeof said);
        const int words = sscanf(said, "%d %lf %lf %lf", &n, &want[0], &want[1], &want[2]);
        EXPECT(rc == 0 && words == 4 && n == CLIPS, "%s: %d, %s", cmd, rc, said);
        for (int d = 0; d < 3 && words == 4; d++) {
            char *key = io_path("reward/%s/mean", dims[d]);
            const double got = rl_metric("job", 1, key);
            EXPECT(fabs(got - want[d]) <= 1e-5, "%s is %.9g, alone %.9g", key, got, want[d]);
            if (test_verbose()) printf("    %s %.9g, alone %.9g\n", key, got, want[d]);
            free(key);
        }
        free(cmd);
    }
    free(record);
}

/* ---- what is missing --------------------------------------------------------------------------*/
/* One clear error, before anything is built and before a scorer is started. */
static void test_missing(struct comm *world)
{
    (void)world;
    static const struct {
        const char *file, *says;
    } list[] = {
        {"base/config.json", "reward.model_dir: "},
        {"base/model.safetensors", "has no *.safetensors"},
        {"base/tokenizer.json", "has no tokenizer.json"},
        {"align/model_config.json", "reward.videoalign_dir: "},
        {"align/checkpoint-7/model.safetensors", "scripts/videoalign_convert.py"},
        {"prompt_template.py", "reward.template: "},
    };
    if (!ready()) return;
    struct process_opts o = options();
    o.ranks = 1;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        char *file = io_path("%s/tiny/%s", test_dir(), list[i].file), *said,
             *away = io_path("%s.away", file);
        EXPECT(rename(file, away) == 0, "%s", file);
        const int rc = rl_run("missing", "mix_grpo", &o, &said);
        EXPECT(rc == RC_NOINPUT && strstr(said, list[i].says) && !strstr(said, "parameters") &&
                   !strstr(said, "waiting for the scorers"),
               "without %s: %d, %s", list[i].file, rc, said);
        EXPECT(rename(away, file) == 0, "%s", away);
        free(away);
        free(file);
        free(said);
    }
    /* the newest is meant, whatever an older one has */
    char *newer = io_path("%s/tiny/align/checkpoint-11", test_dir()), *said;
    EXPECT(mkdir(newer, 0777) == 0, "%s", newer);
    const int rc = rl_run("missing", "mix_grpo", &o, &said);
    EXPECT(rc == RC_NOINPUT && strstr(said, "checkpoint-11 has neither"), "%d: %s", rc, said);
    EXPECT(rmdir(newer) == 0, "%s", newer);
    free(newer);
    free(said);
}

/* ---- the published file -----------------------------------------------------------------------*/
/* configs/rl/osp_14b.yaml as its header says, on 8 ranks (2 data ranks of 4 SSP ranks); the base is
 * tiny, and the clips have its size. */
static void test_published(struct comm *world)
{
    (void)world;
    if (!ready()) return;
    const char *dir = test_dir();
    char *base = io_path("model_config.pretrained_model_dir_or_checkpoint=%s/base", dir),
         *prompts = io_path("rl_config.prompt_file=%s/prompts.txt", dir),
         *out = io_path("output_dir=%s/published", dir), *log = io_path("%s/published.log", dir);
    const struct process_opts o = {
        .verb = "rl",
        .ranks = 8,
        .sets = {base, prompts, out, align, qwen, template, "rl_config.height=null",
                 "rl_config.width=null", "rl_config.num_frames=null", "num_epochs=1",
                 "rl_config.num_batches_per_epoch=1", "reward.device=cpu"},
        .env = {path}};
    const int rc = process_run("configs/rl/osp_14b.yaml", log, &o, NULL);
    char *said = process_log(log);
    EXPECT(rc == 0 && strstr(said, "iter_000000001"), "exit code %d: %s", rc, said);
    double sum = 0;
    for (int d = 0; d < 3; d++) {
        char *key = io_path("reward/%s/mean", dims[d]);
        sum += rl_metric("published", 1, key);
        free(key);
    }
    EXPECT(fabs(rl_metric("published", 1, "reward/mean") - sum) <= 1e-9 * (1 + fabs(sum)),
           "the sum of the rewards is not %.12g", sum);
    EXPECT(rl_metric("published", 1, "reward/invalid_share") == 0, "clips without a score");
    EXPECT(rl_metric("published", 1, "update/grad_norm") > 0, "nothing to learn from");
    EXPECT(rl_metric("published", 1, "update/first_log_ratio") <= 1e-5, "not on policy");
    free(said);
    free(log);
    free(out);
    free(prompts);
    free(base);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "the whole job with VideoAlign", .run = test_job, .flags = TEST_SLOW},
        {.name = "its scores are those of VideoAlign alone", .run = test_alone, .flags = TEST_SLOW},
        {.name = "the published 14B file on 8 ranks, with a tiny base",
         .run = test_published,
         .flags = TEST_SLOW},
        {.name = "a missing file is named at once", .run = test_missing, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
