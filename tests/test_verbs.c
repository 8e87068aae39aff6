/* What the program itself does before a verb. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/process.h"

/* Standard output of a command in which OSP stands for the program; errors go to %s/errors. */
static int osp(const char *launcher, const char *words, char said[16384])
{
    char *program = process_program();
    char *cmd = io_path("%s %s %s 2>%s/errors </dev/null", launcher, program, words, test_dir());
    const int rc = test_command(cmd, said, 16384);
    free(cmd);
    free(program);
    return rc;
}

static int count(const char *text, const char *what)
{
    int n = 0;
    for (const char *s = text; (s = strstr(s, what)); s++) n++;
    return n;
}

static void version(struct comm *world)
{
    (void)world;
    char said[16384];
    EXPECT(osp("", "--version", said) == 0 && strncmp(said, "osp ", 4) == 0 && said[4] > ' ', "%s",
           said);
    EXPECT(strstr(said, "], MPI ") && count(said, "\n") == 2, "%s", said);
    EXPECT(osp("", "--help", said) == 0 && strstr(said, "osp --version\n"), "%s", said);
}

static void one_process(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    char said[16384];
    char *errors = io_path("%s/errors", test_dir());
    EXPECT(osp("mpirun -n 3", "print-config train configs/train/tiny.yaml", said) == 0, "%s", said);
    char *warned = process_log(errors);
    EXPECT(count(said, "\nseed: ") == 1, "%d times: %s", count(said, "\nseed: "), said);
    EXPECT(count(warned, "osp print-config is one process: rank 0 of 3 does it") == 1, "%s",
           warned);
    free(warned);
    EXPECT(osp("mpirun -n 2", "report no/such/run", said) == RC_NOINPUT, "the code of rank 0");
    warned = process_log(errors);
    EXPECT(count(warned, "no such folder") == 1, "%s", warned);
    free(warned);
    EXPECT(osp("mpirun -n 1", "print-config train configs/train/tiny.yaml", said) == 0, "%s", said);
    warned = process_log(errors);
    EXPECT(!*warned, "%s", warned);
    free(warned);
    free(errors);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"the version is told, with what it was built with", version, {0}, 0},
        {"verbs of one process are done by rank 0 of several", one_process, {0}, TEST_SLOW}};
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
