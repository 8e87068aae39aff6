/* How often the rows of 14B at 720p are read and written, counted by the dry run: of one more
 * block, of one more switch between the two orders of its rows. A pass is one reading or writing of
 * an array of rows; beside these a block has its text and its modulation, which are small. */
#include <stdio.h>

#include "tests/check.h"
#include "train/dryrun.h"

enum { TOKENS = 21 * 45 * 80, WIDTH = 5120 };

static struct dryrun_in problem(int layers, bool sparse)
{
    return (struct dryrun_in){
        .model = {.dim = WIDTH,
                  .ffn_dim = 13824,
                  .freq_dim = 256,
                  .in_dim = 16,
                  .out_dim = 16,
                  .num_heads = 40,
                  .num_layers = layers,
                  .text_len = 512,
                  .text_dim = 4096,
                  .eps = 1e-6,
                  .skiparse_model_type = sparse ? SKIPARSE_DUAL_END : SKIPARSE_FULL,
                  .sparse_ratio = 2,
                  .skiparse_dim = 1},
        .compute = DT_BF16,
        .recompute = RECOMPUTE_NONE,
        .ranks = 1,
        .degrees = {1, 1, 1},
        .fsdp = {.optimizer = true},
        .batch = 1,
        .t = 21,
        .h = 45,
        .w = 80,
        .train = true};
}

struct passes {
    double forward, backward, only; /* of a pass that keeps what backward needs, and of one alone */
};
/* Of `more` blocks beyond the first four, for each. */
static struct passes of_a_block(bool sparse, int more)
{
    struct passes sum = {0};
    for (int sign = -1; sign <= 1; sign += 2) {
        struct dryrun_in in = problem(sign > 0 ? 4 + more : 4, sparse);
        struct dryrun_out o;
        const double unit = sign / (2.0 * TOKENS * WIDTH * more);
        dryrun(&in, &o);
        sum.forward += unit * o.forward.row_bytes;
        sum.backward += unit * o.backward.row_bytes;
        in.train = in.fsdp.optimizer = false;
        dryrun(&in, &o);
        sum.only += unit * o.forward.row_bytes;
    }
    return sum;
}

static void count(const char *what, double got, double want)
{
    printf("    %-40s %.3f passes\n", what, got);
    EXPECT(got > want - 0.001 && got < want + 0.05, "%s: %.4f passes, not %g", what, got, want);
}

static void blocks(struct comm *w)
{
    (void)w;
    const struct passes same = of_a_block(false, 1), turn = of_a_block(true, 2);
    /* queries and keys 4, gate + residual + norm 4, query of the text 2, residual + norm 4, gate +
     * residual + norm of the next block 4 */
    count("a block, forward", same.forward, 18);
    count("a block, forward alone", same.only, 18);
    count("a block, backward", same.backward, 26);
    count("a switch, forward", turn.forward - same.forward, 0);
    /* in place there is no room for the norm while others still read what is added */
    count("a switch, forward alone", turn.only - same.only, 1);
    count("a switch, backward", turn.backward - same.backward, 1); /* dx in the other order */
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {{"passes over the rows", blocks, {0}, 0}};
    return test_main(argc, argv, tests, (int)(sizeof tests / sizeof *tests));
}
