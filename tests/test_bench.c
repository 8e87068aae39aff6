/* osp bench comm as a user runs it: the promised shares, counted and measured; mistakes named. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/process.h"

/* Exit code of "BEFORE osp bench comm REST"; what it prints goes to said. */
static int bench(const char *before, const char *rest, char said[8192])
{
    char *osp = process_program();
    char *cmd = io_path("%s %s bench comm %s 2>&1 </dev/null", before, osp, rest);
    const int rc = test_command(cmd, said, 8192);
    free(cmd);
    free(osp);
    return rc;
}

static bool row_says(const char *said, const char *row, const char *text)
{
    const char *line = strstr(said, row);
    const char *end = line ? strchr(line, '\n') : NULL;
    const char *at = line ? strstr(line, text) : NULL;
    return at && at < end;
}

static void test_counts(struct comm *world)
{
    (void)world;
    char said[8192];
    if (!process_ready()) return;
    EXPECT(bench("", "ranks=4 dim=5120 heads=40 dtype=bf16", said) == 0, "%s", said);
    EXPECT(row_says(said, "  Ulysses 4 ", " 580.608 ") && row_says(said, "  SSP 4 ", " 24.81 %") &&
               row_says(said, "  SSP 4 ", "    1 "),
           "720p: %s", said);
    EXPECT(strstr(said, "18480 to 19320"), "%s", said);
    EXPECT(bench("", "ranks=4 h=48", said) == 0 && row_says(said, "  SSP 4 ", " 25.00 %"),
           "768p: %s", said);
    EXPECT(bench("", "ranks=8 h=48 heads=16", said) == 0 &&
               row_says(said, "  SSP 4 x Ulysses 2", " 78.57 %") &&
               row_says(said, "  SSP 4 x Ulysses 2", "    3 "),
           "%s", said);
    /* ranks that the heads do not allow, sizes that do not divide */
    EXPECT(bench("", "ranks=8", said) == 0 && strstr(said, "SSP 4 x Ulysses 2"), "%s", said);
    EXPECT(bench("", "ranks=7 heads=7 dim=77 t=1 h=5 w=5 ratio=3", said) == 0, "%s", said);
    EXPECT(bench("", "ranks=5 heads=4 t=1 h=5 w=5", said) == 0, "%s", said);
    EXPECT(bench("", "ranks=6 ratio=3 h=18 w=18 t=2", said) == 0 &&
               row_says(said, "  SSP 3 x Ulysses 2", " %"),
           "%s", said);
}

static void test_measured(struct comm *world)
{
    (void)world;
    char said[8192];
    if (!process_ready()) return;
    EXPECT(bench("mpirun -n 4", "t=1 dim=192 runs=3", said) == 0, "%s", said);
    EXPECT(strstr(said, ", measured\n") && row_says(said, "  SSP 4 ", " 24.81 %") &&
               row_says(said, "  Ulysses 4 ", " 1.00\n"),
           "%s", said);
}

static void test_mistakes(struct comm *world)
{
    (void)world;
    static const struct {
        const char *rest, *text;
    } bad[] = {
        {"", "start it with mpirun -n N, or say ranks=N"},
        {"ranks=4 heads=7", "7 heads do not divide dim 1536"},
        {"ranks=4 runs=1000", "runs must be at most 100"},
        {"ranks=4 ratio=1", "ratio at least 2"},
        {"ranks=4 dtype=int8", "cannot use \"dtype=int8\""},
        {"ranks=4 colour=red", "cannot use \"colour=red\""},
        {"something else", "osp bench"},
    };
    char said[8192];
    if (!process_ready()) return;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        EXPECT(bench("", bad[i].rest, said) == RC_USAGE && strstr(said, bad[i].text), "%s: %s",
               bad[i].rest, said);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "bench comm counts what the formulas say", .run = test_counts},
        {.name = "bench comm measures over MPI", .run = test_measured},
        {.name = "bench comm names mistakes", .run = test_mistakes},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
