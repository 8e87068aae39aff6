/* Real processes: `mpirun -n 2 osp train` is killed with SIGKILL at random moments, again and
 * again; every start resumes, and the run ends with the bits of an undisturbed one. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "core/io.h"
#include "core/rng.h"
#include "tests/check.h"
#include "tests/process.h"

enum { ITERATIONS = 160 };
static const struct process_opts plain;

static void test_kill(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    const char *count = getenv("KILLS");
    const int kills = count ? atoi(count) : test_fast() ? 3 : 20;
    char *calm = process_yaml("calm", ITERATIONS), *storm = process_yaml("storm", ITERATIONS);
    char *log = io_path("%s/kill.log", test_dir());
    EXPECT(process_run(calm, log, &plain, NULL) == 0, "the undisturbed run failed, see %s", log);
    const struct rng_stream s =
        rng_open((struct rng_key){.seed = (uint64_t)time(NULL), .use = RNG_TEST});
    int done = 0, early = 0, rounds = 0;
    uint64_t draw = 0;
    while (done < kills && rounds < 2 * kills) { /* a run that ends first is followed by another */
        char *dir = io_path("%s/storm", test_dir());
        struct err e = {0};
        io_remove_tree(dir, &e);
        free(dir);
        rounds++;
        for (int rc = 1; rc != 0;) {
            const pid_t pid = process_start(storm, log, &plain);
            if (done < kills) {
                process_nap(0.25 + 1.2 * rng_uniform_at(s, draw++));
                pid_t rank[16];
                const int n = process_ranks(storm, rank, 16);
                const int which = (int)(rng_uniform_at(s, draw++) * (n + 1));
                if (n) kill(which < n ? rank[which] : pid, SIGKILL);
                early += !n;
                done += n > 0;
            }
            rc = process_end(pid);
            process_wait_gone(storm);
            EXPECT(rc == 0 || rc == 137 || rc == 1 || rc == 143, "exit code %d, see %s", rc, log);
            if (rc != 0 && rc != 137 && rc != 1 && rc != 143) break;
        }
        EXPECT(process_diff("calm", "storm") == 0,
               "the killed run ends with other bits; see %s/diff.log", test_dir());
    }
    EXPECT(done >= kills, "only %d of %d kills", done, kills);
    printf("    %d kills in %d runs (%d starts too early to kill)\n", done, rounds, early);
    free(calm);
    free(storm);
    free(log);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "kill -9 at random moments loses nothing", .run = test_kill, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
