/* --check-comm: ranks that disagree about a collective are told so by name, both sides, instead of
 * waiting; and the text of what a rank is doing. */
#include <stdlib.h>
#include <string.h>

#include "parallel/comm.h"
#include "tests/check.h"

enum odd { ODD_NONE, ODD_NUMBER, ODD_KIND, ODD_SIZE, ODD_TAG, ODD_BROADCAST };

static void odd_rank(struct comm *world, void *arg)
{
    const enum odd odd = world->rank == 1 ? *(enum odd *)arg : ODD_NONE;
    double x[8] = {1}, all[32];
    world->check = true;
    comm_sum_f64(world, x, 1, "first");
    if (odd == ODD_NUMBER) world->seq++; /* as if it had done one more that met nobody */
    const int n = odd == ODD_SIZE ? 3 : 2;
    const char *tag = odd == ODD_TAG ? "blocks.4" : "blocks.3";
    if (odd == ODD_KIND)
        comm_gather_bytes(world, all, x, 16, tag);
    else if (odd == ODD_BROADCAST)
        comm_broadcast_bytes(world, x, 16, 0, tag);
    else
        comm_sum_f64(world, x, n, tag);
    comm_barrier(world, "last");
}

static void run_odd(void *arg) { comm_thread_run(3, odd_rank, arg); }

static void test_check(struct comm *world)
{
    (void)world;
    enum odd none = ODD_NONE;
    run_odd(&none);
    static const struct {
        enum odd odd;
        const char *one, *two; /* which side speaks first is open */
    } list[] = {
        {ODD_NUMBER, "#2 \"blocks.3\" (all_reduce, 16 bytes)",
         "#3 \"blocks.3\" (all_reduce, 16 bytes)"},
        {ODD_KIND, "(all_reduce, 16 bytes)", "(all_gather, 16 bytes)"},
        {ODD_SIZE, "(all_reduce, 16 bytes)", "(all_reduce, 24 bytes)"},
        {ODD_TAG, "#2 \"blocks.3\"", "#2 \"blocks.4\""},
        {ODD_BROADCAST, "(all_reduce, 16 bytes)", "(broadcast, 16 bytes)"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        enum odd odd = list[i].odd;
        expect_stop("ranks disagree on axis world: its rank ", RC_SOFTWARE, run_odd, &odd);
        expect_stop(list[i].one, RC_SOFTWARE, run_odd, &odd);
        expect_stop(list[i].two, RC_SOFTWARE, run_odd, &odd);
    }
}

static void test_where(struct comm *world)
{
    char text[128] = "ended";
    comm_where(world, text, sizeof text);
    EXPECT(strcmp(text, "ended") == 0, "%s", text);
    comm_context(world, "blocks.7");
    comm_where(world, text, sizeof text);
    EXPECT(strcmp(text, "ended, in blocks.7") == 0, "%s", text);
    char small[12] = "ended";
    comm_where(world, small, sizeof small);
    EXPECT(strcmp(small, "ended, in b") == 0, "%s", small);
    comm_context(world, NULL);
    double x = 1;
    comm_sum_f64(world, &x, 1, "sum");
    EXPECT(world->seq == 1 && !world->doing && strcmp(world->tag, "sum") == 0, "after a sum");
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "--check-comm names both sides of a mismatch", .run = test_check},
        {.name = "what a rank is doing", .run = test_where, .ranks = {1, 2}},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
