/* Training and sampling under sequence parallelism: the curve of one rank, checkpoints that move
 * between layouts, the videos of one rank. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/train_case.h"

enum { MOST = 200 };
struct curve {
    const char *extra[12];
    int steps;
    bool save;
    double loss[MOST], norm[MOST], valid;
};

static void run_rank(struct comm *world, void *arg)
{
    struct curve *a = arg;
    struct train_case *c = calloc(1, sizeof *c);
    train_case_open(c, world, a->extra);
    for (int i = 0; i < a->steps; i++) {
        const struct step_result r = trainer_step(&c->t, false, false);
        if (world->rank == 0) a->loss[i] = r.loss, a->norm[i] = r.norm;
    }
    const struct valid_result v = trainer_validate(&c->t, true);
    if (world->rank == 0) a->valid = v.mean;
    if (a->save) resume_save(&c->t, &c->l);
    train_case_close(c);
    free(c);
}

static double worst(const double *a, const double *b, int n)
{
    double w = 0;
    for (int i = 0; i < n; i++) {
        const double e = fabs(a[i] / b[i] - 1);
        if (!(e <= w)) w = e;
    }
    return w;
}

#define SSP "use_skiparse_sequence_parallel=true", "skiparse_sp_size=2"
#define SP "use_sequence_parallel=true", "sp_size=2"

static void compare(const char *device, const char *dtype, int steps, double tol)
{
    struct curve one = {.extra = {device, dtype, "resume=never"}, .steps = steps};
    struct curve four = {
        .extra = {device, dtype, "resume=never", SSP, SP, "fsdp_size=4", "recompute=attention"},
        .steps = steps};
    comm_thread_run(1, run_rank, &one);
    comm_thread_run(4, run_rank, &four);
    const double loss = worst(four.loss, one.loss, steps), norm = worst(four.norm, one.norm, steps);
    printf("    %s %s, %d steps at fsdp 4, ssp 2, sp 2: loss %.5f -> %.5f, worst relative "
           "difference: loss %.1e, norm %.1e, validation %.1e\n",
           device, dtype, steps, one.loss[0], one.loss[steps - 1], loss, norm,
           fabs(four.valid / one.valid - 1));
    EXPECT(loss <= tol && norm <= 100 * tol && fabs(four.valid / one.valid - 1) <= tol,
           "loss %g, norm %g, validation %g against %g", loss, norm, four.valid, one.valid);
    EXPECT(steps < 50 || one.loss[steps - 1] < one.loss[0], "the loss does not fall: %g to %g",
           one.loss[0], one.loss[steps - 1]);
}

static void test_curve_f64(struct comm *w)
{
    (void)w;
    compare("device=ref", "weight_dtype=fp64", test_fast() ? 5 : MOST / 4, 1e-10);
}

static void test_curve_f32(struct comm *w)
{
    (void)w;
    if (!dev_supports("cpu", DT_F32)) {
        test_skip("no cpu device");
        return;
    }
    compare("device=cpu", "weight_dtype=fp32", MOST, 1e-6);
}

/* 5 steps on one layout, 5 on another, against 10 on one rank. */
static void test_move(struct comm *w)
{
    (void)w;
    char *out = io_path("output_dir=%s/moved", test_dir());
    const char *device = "device=ref", *dtype = "weight_dtype=fp64";
    struct curve whole = {.extra = {device, dtype, "resume=never"}, .steps = 10};
    struct curve first = {.extra = {device, dtype, out, SSP, SP}, .steps = 5, .save = true};
    struct curve second = {.extra = {device, dtype, out, SP, "fsdp_size=2"}, .steps = 5};
    comm_thread_run(1, run_rank, &whole);
    comm_thread_run(8, run_rank, &first);
    comm_thread_run(4, run_rank, &second);
    EXPECT(worst(first.loss, whole.loss, 5) < 1e-12, "before the save");
    EXPECT(worst(second.loss, whole.loss + 5, 5) < 1e-12, "after it: %.17g, %.17g", second.loss[0],
           whole.loss[5]);
    free(out);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "50 steps give the losses of one rank, f64", .run = test_curve_f64},
        {.name = "200 steps give the losses of one rank, f32",
         .run = test_curve_f32,
         .flags = TEST_SLOW},
        {.name = "a checkpoint moves between layouts", .run = test_move},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
