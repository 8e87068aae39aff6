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
    expect_command("/no/such/program", "reward.command: /no/such/program does not exist");
    in(root);
    free(script);
    free(sleeper);
    free(align);
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

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "files of the program are found from anywhere", .run = test_files},
        {.name = "a scorer's command line gets whole paths", .run = test_commands},
        {.name = "a run from another folder", .run = test_elsewhere, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
