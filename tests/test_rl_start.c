/* How a post-training run is started: from any working directory, with any algorithm. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "core/program.h"
#include "rl/reward_spawn.h"
#include "rl/scorer_files.h"
#include "tests/check.h"
#include "tests/rl_process.h"

enum { SAID = 1 << 16 };

/* ---- where files are --------------------------------------------------------------------------*/
static void in(const char *dir) { CHECK(chdir(dir) == 0, "%s", dir); }

static void expect_command(const char *command, const char *want)
{
    struct err e = {0};
    const struct reward_settings r = {.command = (char *)(uintptr_t)command};
    char *got = scorer_command(&r, &e), *word[16], said[2048] = "";
    const int n = got ? spawner_words(got, word, 16) : 0;
    for (int i = 0; i < n; i++)
        snprintf(said + strlen(said), sizeof said - strlen(said), "%s%s", i ? "|" : "", word[i]);
    EXPECT(strcmp(got ? said : e.msg, want) == 0, "%s: \"%s\", not \"%s\"", command,
           got ? said : e.msg, want);
    free(got);
}

static void test_files(struct comm *world)
{
    (void)world;
    struct err e = {0};
    char root[2048], *tree = program_tree(), *own;
    CHECK(getcwd(root, sizeof root), "no working directory");
    EXPECT(tree && strcmp(tree, root) == 0, "the tree is %s, not %s", tree, root);
    write_text("here.py", "");
    in(test_dir());
    /* the program's file, whatever the folder; the folder's own goes first */
    own = program_find("k", "scripts/simple_scorer.py", &e);
    char *want = io_path("%s/scripts/simple_scorer.py", root);
    EXPECT(own && strcmp(own, want) == 0, "%s", own ? own : e.msg);
    free(own);
    own = program_find("k", "here.py", &e);
    EXPECT(own && strcmp(own, "here.py") == 0, "%s", own ? own : e.msg);
    free(own);
    char *both = io_path("%s/both/scripts", test_dir());
    io_mkdir(both, &e);
    write_text("both/scripts/simple_scorer.py", "");
    in("both");
    own = program_find("k", "scripts/simple_scorer.py", &e);
    EXPECT(own && strcmp(own, "scripts/simple_scorer.py") == 0, "%s", own ? own : e.msg);
    free(own);
    free(both);
    own = program_find("k", want, &e);
    EXPECT(own && strcmp(own, want) == 0, "%s", own ? own : e.msg);
    free(own);
    free(want);
    in(root);
    free(tree);
}

static void test_commands(struct comm *world)
{
    (void)world;
    char root[2048];
    CHECK(getcwd(root, sizeof root), "no working directory");
    char *script = io_path("python3|-u|%s/scripts/simple_scorer.py|it's|a \"b\"|no/such.py", root),
         *sleeper = io_path("%s/scripts/env.sh|x", root),
         *align = io_path("python3|%s/scripts/videoalign_scorer.py", root),
         *nice = io_path("nice|python3|%s/scripts/simple_scorer.py", root),
         *gone = io_path("reward.command: scripts/gone.py is neither %s/scripts/gone.py nor "
                         "%s/scripts/gone.py; give its whole path",
                         test_dir(), root);
    in(test_dir());
    /* the first script only: other words may be anything */
    expect_command("python3 -u scripts/simple_scorer.py \"it's\" 'a \"b\"' no/such.py", script);
    expect_command("sleep 100", "sleep|100");
    expect_command("scripts/env.sh x", sleeper);
    expect_command("python3 'scripts/gone.py'", gone);
    expect_command(NULL, align);
    expect_command("python3 -c 'import a; a.b/c' x/y", "python3|-c|import a; a.b/c|x/y");
    expect_command("sh -c 'cd x && exec python3 y.py'", "sh|-c|cd x && exec python3 y.py");
    expect_command("docker run -i img python3 /opt/serve.py",
                   "docker|run|-i|img|python3|/opt/serve.py");
    expect_command("python3 -m pkg.serve.py", "python3|-m|pkg.serve.py");
    expect_command("nice python3 scripts/simple_scorer.py", nice);
    expect_command("/no/such/program", "reward.command: /no/such/program does not exist");
    in(root);
    free(script);
    free(sleeper);
    free(align);
    free(nice);
    free(gone);
}

static void expect_run(const char *set, int rc, const char *says)
{
    static char said[SAID];
    char root[2048];
    CHECK(getcwd(root, sizeof root), "no working directory");
    char *osp = process_program(), *yaml = rl_yaml("away", "mix_grpo");
    char *cmd =
        io_path("cd %s && %s%s%s rl %s num_epochs=1 rl_config.eval_freq=0 %s 2>&1 </dev/null",
                test_dir(), *osp == '/' ? "" : root, *osp == '/' ? "" : "/", osp, yaml, set);
    const int got = test_command(cmd, said, sizeof said);
    EXPECT(got == rc && strstr(said, says), "%s: %d, no \"%s\" in: %s", cmd, got, says, said);
    free(cmd);
    free(yaml);
    free(osp);
}

/* The configuration says scripts/simple_scorer.py. */
static void test_elsewhere(struct comm *world)
{
    (void)world;
    if (!rl_ready()) return;
    expect_run("", 0, "epoch 1/1  reward");
    expect_run("'reward.command=python3 scripts/simpel_scorer.py'", RC_NOINPUT,
               "reward.command: scripts/simpel_scorer.py is neither ");
}

/* ---- the algorithm by one key -----------------------------------------------------------------*/
static char *printed(const char *file, const char *more)
{
    static char said[SAID];
    char *osp = process_program(),
         *cmd = io_path("%s rl %s --print-config %s 2>&1 </dev/null", osp, file, more);
    const int rc = test_command(cmd, said, sizeof said);
    EXPECT(rc == 0, "%s: %d, %s", cmd, rc, said);
    free(cmd);
    free(osp);
    return said;
}

/* The table of docs/rl.md at 8 steps, sde_steps 4; - : it has no such part. */
static const struct {
    const char *algo, *value[11];
} table[] = {
    {"mix_grpo", {"fixed", "4", "sigma", "-", "euler", "1", "1", "false", "false", "0", "0.0001"}},
    {"mix_grpo_window",
     {"progressive", "4", "eta_snr", "0.7", "euler", "1", "1", "false", "true", "1", "1e-08"}},
    {"mix_grpo_flash",
     {"progressive", "4", "eta_snr", "0.7", "dpmpp2m", "0.4", "1", "false", "true", "1", "1e-08"}},
    {"flow_grpo",
     {"fixed", "8", "eta_snr", "0.7", "euler", "1", "1", "false", "false", "0", "0.0001"}},
    {"flow_grpo_fast",
     {"random", "2", "eta_snr", "0.7", "euler", "1", "1", "false", "true", "0", "0.0001"}},
    {"dance_grpo",
     {"fixed", "8", "eta_const", "0.25", "euler", "1", "0.6", "true", "true", "1", "1e-08"}},
    {"nft", {"-", "-", "-", "-", "euler", "1", "0.99", "true", "false", "0", "0.0001"}}};
static const char *const parts[11] = {"window:\n  strategy",
                                      "  size",
                                      "sde:\n  g_rule",
                                      "  eta",
                                      "ode:\n  solver",
                                      "  compress",
                                      "  timestep_fraction",
                                      "  shuffle_steps",
                                      "  init_same_noise",
                                      "adv:\n  ddof",
                                      "  eps"};

static void expect_line(const char *said, const char *algo, const char *part, const char *value)
{
    char *want = io_path("%s: %s  # rl.algo\n", part, value);
    EXPECT(strstr(said, want), "%s: no \"%s\"", algo, want);
    free(want);
}

/* rl.algo is the only key that has to change. */
static void test_algorithms(struct comm *world)
{
    (void)world;
    static const char *const files[] = {"configs/rl/tiny.yaml", "configs/rl/osp_14b.yaml"};
    for (size_t f = 0; f < 2; f++)
        for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
            char *set = io_path("rl.algo=%s rl_config.num_inference_steps=8 rl_config.sde_steps=4",
                                table[i].algo);
            const char *said = printed(files[f], set);
            free(set);
            /* tiny.yaml keeps one thing to itself, and says so where it makes a difference */
            const char *const noise = table[i].value[8];
            const bool kept = f == 0, nft = !strcmp(table[i].algo, "nft"),
                       differs = kept && !nft && !strcmp(noise, "false");
            for (int k = 0; k < 11; k++)
                if (*table[i].value[k] != '-' && !(kept && k == 8 && !nft))
                    expect_line(said, table[i].algo, parts[k], table[i].value[k]);
            const char *told = strstr(said, "alone would set");
            EXPECT(!told == !differs, "%s: %s", table[i].algo, said);
            EXPECT(!(nft && kept) == !strstr(said, "init_same_noise: true has no effect"), "%s",
                   said);
            EXPECT(!differs || strstr(said, "yaml sets rollout.init_same_noise: not what"), "%s",
                   said);
        }
}

/* A key of the file that says something else is named, on the command line it is meant. */
static void test_kept(struct comm *world)
{
    (void)world;
    write_text("kept.yaml", "model_config: {pretrained_model_dir_or_checkpoint: x}\n"
                            "rl_config: {prompt_file: x, num_image_per_prompt: 4}\nrl: {shift: 1}\n"
                            "sde: {g_rule: eta_snr, eta: 0.5}\nadv: {ddof: 1}\n"
                            "reward: {command: python3 scripts/simple_scorer.py}\n");
    char *file = io_path("%s/kept.yaml", test_dir());
    const char *said = printed(file, "rl.algo=dance_grpo");
    EXPECT(strstr(said, "sets sde.g_rule, sde.eta: not what rl.algo=dance_grpo alone would set"),
           "%s", said);
    said = printed(file, "rl.algo=flow_grpo");
    EXPECT(strstr(said, "sets sde.eta, adv.ddof: not what rl.algo=flow_grpo"), "%s", said);
    said = printed(file, "rl.algo=nft"); /* has no noise to set */
    EXPECT(strstr(said, "sets adv.ddof: not what rl.algo=nft"), "%s", said);
    EXPECT(!strstr(printed(file, ""), "alone would set"), "%s", said);
    said = printed(file, "rl.algo=dance_grpo sde.g_rule=eta_const sde.eta=0.3");
    EXPECT(!strstr(said, "alone would set"), "%s", said);
    free(file);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "files of the program are found from anywhere", .run = test_files},
        {.name = "a scorer's command line gets whole paths", .run = test_commands},
        {.name = "rl.algo alone switches the algorithm", .run = test_algorithms},
        {.name = "keys of the file that stay are named", .run = test_kept},
        {.name = "a run from another folder", .run = test_elsewhere, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
