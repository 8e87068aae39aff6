/* The memory that `osp plan` predicts, against what the device counts while the same configuration
 * trains, validates and samples: within 0.5 % of each other (5 % are promised). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/sampler.h"
#include "tests/check.h"
#include "tests/train_case.h"
#include "train/plan.h"

struct job {
    const char *set[10];
    int ranks;
    bool batched;         /* sampling: both branches in one pass */
    double planned, used; /* of the rank that needs the most; an answer */
};

static double largest(struct comm *world, double mine)
{
    double all[64], most = 0;
    CHECK(world->size <= 64, "%d ranks", world->size);
    comm_gather_bytes(world, all, &mine, sizeof mine, "memory");
    for (int r = 0; r < world->size; r++) most = fmax(most, all[r]);
    return most;
}

/* Two steps, and a validation, which runs forward only. */
static void train(struct comm *world, void *arg)
{
    struct job *j = arg;
    struct train_case *c = calloc(1, sizeof *c);
    CHECK(c, "out of memory");
    train_case_open(c, world, j->set);
    double loss[2];
    train_case_steps(c, 2, loss);
    trainer_validate(&c->t, false);
    const double used = largest(world, (double)session_bytes(&c->ses));
    if (world->rank == 0) {
        struct plan_cost plan;
        plan_cost(&c->l.s, world->size, &plan);
        j->planned = (double)dryrun_bytes(&plan.rank);
        j->used = used;
    }
    train_case_close(c);
    free(c);
}

/* Two videos with guidance, by a session that holds one kind of weights. */
static void sample(struct comm *world, void *arg)
{
    struct job *j = arg;
    struct train_case *c = calloc(1, sizeof *c);
    CHECK(c, "out of memory");
    train_case_open(c, world, j->set);
    struct session_shape shape = c->ses.shape;
    struct session s;
    const bool batched = j->batched;
    shape.batch = batched ? 4 : 2;
    shape.batched = batched;
    session_open(&s, &c->l.s, world, shape, false);
    fsdp_init_params(s.fsdp, 3);
    struct sampler sampler;
    sampler_init(&sampler, &s.ctx, s.dit, 2, (int)shape.t, (int)shape.h / 2, (int)shape.w / 2,
                 batched);
    const struct model_config *m = &c->l.s.model;
    struct tensor text =
        arena_new(&s.keep, ctx_compute(&s.ctx), 2, DIMS(2 * m->text_len, m->text_dim));
    struct tensor null = arena_like(&s.keep, text);
    s.dev->ops->fill(s.dev, text, 0.5);
    s.dev->ops->fill(s.dev, null, 0);
    const double sigma[] = {1, 0.5, 0};
    const struct rng_key noise[2] = {{.seed = 1, .use = RNG_TEST}, {.seed = 2, .use = RNG_TEST}};
    sampler_run(
        &sampler,
        &(struct sampler_job){
            .sigma = sigma, .steps = 2, .guidance = 4, .text = text, .null = null, .noise = noise});
    const double used = largest(world, (double)session_bytes(&s)),
                 planned = largest(world, (double)dryrun_bytes(&s.cost));
    if (world->rank == 0) {
        j->planned = planned;
        j->used = used;
    }
    sampler_free(&sampler);
    session_close(&s);
    comm_device(world, c->ses.dev);
    train_case_close(c);
    free(c);
}

static void compare(const char *what, const struct job *j)
{
    char keys[512] = "";
    for (int i = 0; j->set[i]; i++) {
        strncat(keys, " ", sizeof keys - strlen(keys) - 1);
        strncat(keys, j->set[i], sizeof keys - strlen(keys) - 1);
    }
    printf("    %8.3f MB planned, %8.3f MB used, %+5.2f %%: %s, %d rank%s%s\n", 1e-6 * j->planned,
           1e-6 * j->used, 100 * (j->planned / j->used - 1), what, j->ranks,
           j->ranks > 1 ? "s" : "", keys);
    EXPECT(fabs(j->planned / j->used - 1) < 0.005, "planned %.0f bytes, used %.0f", j->planned,
           j->used);
}

static void training(struct comm *world)
{
    (void)world;
    static const char *const device[][2] = {{"device=cpu", "weight_dtype=fp32"},
                                            {"device=cpu", "weight_dtype=bf16"},
                                            {"device=ref", "weight_dtype=fp64"}};
    static const struct job list[] = {
        {.set = {"recompute=all"}, .ranks = 1},
        {.set = {"recompute=attention"}, .ranks = 1},
        {.set = {"recompute=none"}, .ranks = 1},
        {.set = {"recompute=auto", "memory_budget_gb=0.0115"}, .ranks = 1},
        {.set = {"recompute=[1,2]", "ema_decay=0", "gradient_accumulation_steps=2",
                 "data_config.batch_size=2", "data_config.global_batch_size=null"},
         .ranks = 1},
        {.set = {"model_config.skiparse_model_type=full", "recompute=gemm"}, .ranks = 1},
        {.set = {"model_config.pad_mode=ref", "recompute=none"}, .ranks = 1},
        {.set = {"recompute=none", "fsdp_size=1", "explicit_prefetching_num_blocks=0"}, .ranks = 2},
        {.set = {"use_skiparse_sequence_parallel=true", "skiparse_sp_size=2", "recompute=none"},
         .ranks = 2},
        {.set = {"use_sequence_parallel=true", "sp_size=2", "recompute=all"}, .ranks = 2},
        {.set = {"use_skiparse_sequence_parallel=true", "skiparse_sp_size=2",
                 "use_sequence_parallel=true", "sp_size=2", "recompute=attention"},
         .ranks = 4},
        {.set = {"recompute=all", "fsdp_size=2"}, .ranks = 4},
    };
    for (size_t d = 0; d < sizeof device / sizeof *device; d++)
        for (size_t i = d % 3; i < sizeof list / sizeof *list; i += test_fast() ? 3 : 1) {
            struct job j = list[i];
            int n = 0;
            while (j.set[n]) n++;
            for (int k = 0; k < 2; k++) j.set[n + k] = device[d][k];
            comm_thread_run(j.ranks, train, &j);
            compare("training", &j);
        }
}

static void sampling(struct comm *world)
{
    (void)world;
    static const struct job list[] = {
        {.set = {"device=cpu"}, .ranks = 1},
        {.set = {"device=cpu"}, .ranks = 1, .batched = true},
        {.set = {"device=cpu", "weight_dtype=bf16"}, .ranks = 2},
        {.set = {"device=ref", "use_skiparse_sequence_parallel=true", "skiparse_sp_size=2"},
         .ranks = 2},
        {.set = {"device=cpu", "use_sequence_parallel=true", "sp_size=2"},
         .ranks = 2,
         .batched = true},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct job j = list[i];
        comm_thread_run(j.ranks, sample, &j);
        compare("sampling", &j);
    }
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"a training run needs what is planned", training, {0}, 0},
        {"sampling needs what is planned", sampling, {0}, 0},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
