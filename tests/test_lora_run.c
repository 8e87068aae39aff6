/* Adapters as a user runs them: osp sample with lora, osp convert merge, osp train from the result;
 * mistakes are named. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/lora_case.h"
#include "tests/check.h"
#include "tests/problem.h"
#include "tests/train_case.h"
#include "train/adapter.h"
#include "train/stored_model.h"

enum { SAID = 1 << 16 };

/* Three ranks write adapters for the averaged weights of base, raw ones and other averaged ones. */
static void make_adapters(struct comm *world, void *arg)
{
    const char *const *path = arg;
    struct ckpt *c = ckpt_open(world, path[0], true);
    struct stored_model m;
    struct err e = {0};
    stored_model_read(&m, c, &e);
    err_raise(&e);
    const struct lora_config cfg = lora_make_config(4, 8, lora_official_targets);
    struct fixture f;
    struct fixture_opts least = lora_least(&m.config, &cfg);
    least.fsdp = (struct fsdp_opts){.optimizer = true, .ema = true};
    fixture_open(&f, world, &least);
    for (int i = 0; i < f.lora->num_params; i++) {
        const struct param *p = &f.lora->param[i];
        double *x = problem_draw(param_count(p), rng_hash(p->name));
        lora_put(f.lora, STATE_LORA, p->name, x);
        for (int64_t k = 0; k < param_count(p); k++) x[k] *= 0.5;
        lora_put(f.lora, STATE_LORA_EMA, p->name, x);
        free(x);
    }
    struct adapter_base b = adapter_base_of(c, STATE_EMA);
    json_t *meta = json_pack("{s:i, s:s}", "step", 5, "stage", "rl");
    const struct ckpt_place place = {.dir = path[1]};
    const struct adapter_state s = {.step = 5};
    adapter_save(f.lora, &cfg, &f.mesh, &place, &b, &s, 1u << STATE_LORA | 1u << STATE_LORA_EMA,
                 meta, &e);
    err_raise(&e);
    json_decref(meta);
    adapter_base_free(&b);
    stored_model_free(&m);
    ckpt_close(c);
    fixture_close(&f);
}

/* Exit code of a command line; its output goes to said[]. */
static int run(const char *cmd, char said[SAID]) { return test_command(cmd, said, SAID); }

static const char *build(void) { return getenv("BUILD") ? getenv("BUILD") : "build/release"; }

static int sample(int ranks, const char *out, const char *more, char said[SAID])
{
    char *cmd =
        io_path("mpirun -n %d %s/osp sample configs/sample/tiny.yaml output_dir=%s/%s "
                "num_frames=null height=null width=null scheduler_config.num_inference_steps=2 "
                "samples_per_prompt=1 weight_dtype=fp32 %s 2>&1 </dev/null",
                ranks, build(), test_dir(), out, more);
    const int rc = run(cmd, said);
    free(cmd);
    return rc;
}

static bool same_video(const char *a, const char *b)
{
    char *cmd = io_path("cmp -s %s/%s/video_000000_00.mp4 %s/%s/video_000000_00.mp4", test_dir(), a,
                        test_dir(), b);
    const int rc = system(cmd);
    free(cmd);
    return rc == 0;
}

static void check_sampling(const char *base, const char *rl)
{
    char said[SAID], *with = io_path("checkpoint=%s lora=%s", base, rl),
                     *plain = io_path("checkpoint=%s", base);
    char *raw = io_path("%s lora_ema=false", with), *wrong = io_path("%s use_ema=false", with),
         *forced = io_path("%s use_ema=false lora_force_base=true", with),
         *none = io_path("checkpoint=%s lora=%s", base, base),
         *alone = io_path("checkpoint=%s", rl);
    EXPECT(sample(1, "base", plain, said) == 0, "%s", said);
    EXPECT(sample(1, "ema", with, said) == 0 && strstr(said, "adapters of rank 4, alpha 8"), "%s",
           said);
    EXPECT(strstr(said, "32 adapters of rank 4") && strstr(said, "the rest is frozen"), "%s", said);
    EXPECT(sample(2, "two", with, said) == 0, "%s", said);
    EXPECT(sample(1, "raw", raw, said) == 0, "%s", said);
    EXPECT(!same_video("base", "ema") && !same_video("ema", "raw"), "adapters change nothing");
    EXPECT(same_video("ema", "two"), "2 ranks make another video");
    EXPECT(sample(1, "ema", with, said) == 0 && strstr(said, " 0 to make"), "%s", said);
    EXPECT(sample(1, "ema", raw, said) == 0 && strstr(said, " 3 to make"), "%s", said);
    EXPECT(sample(1, "bad", wrong, said) == RC_CONFIG && strstr(said, "set use_ema: true"), "%s",
           said);
    EXPECT(sample(1, "forced", forced, said) == 0 && strstr(said, "as was asked for"), "%s", said);
    EXPECT(sample(1, "bad", none, said) == RC_DATA && strstr(said, "no adapter checkpoint"), "%s",
           said);
    EXPECT(sample(1, "bad", alone, said) == RC_CONFIG && strstr(said, "holds adapters only"), "%s",
           said);
    char *texts[] = {with, plain, raw, wrong, forced, none, alone};
    for (int i = 0; i < 7; i++) free(texts[i]);
}

static void train_on(struct comm *world, void *arg)
{
    struct train_case *c = calloc(1, sizeof *c);
    char *out = io_path("output_dir=%s/next", test_dir());
    const char *extra[] = {out, arg, NULL};
    double loss[2];
    train_case_open(c, world, extra);
    EXPECT(c->t.state.step == 0 && c->t.state.adam_steps == 0, "a merged start is no step 0");
    train_case_steps(c, 2, loss);
    train_case_close(c);
    free(out);
    free(c);
}

static void check_merge(const char *base, const char *rl)
{
    char said[SAID],
        *out = io_path("%s/merged", test_dir()),
        *cmd = io_path("%s/osp convert merge %s %s %s --ema 2>&1", build(), base, rl, out),
        *from = io_path("checkpoint=%s", out), *resume = io_path("resume=%s", out),
        *bare = io_path("%s/osp convert merge %s 2>&1", build(), base),
        *inspect = io_path("%s/osp inspect %s --verify 2>&1", build(), rl);
    EXPECT(run(cmd, said) == 0 && strstr(said, "32 adapters"), "%s", said);
    EXPECT(sample(1, "merged_video", from, said) == 0, "%s", said);
    EXPECT(!same_video("base", "merged_video"), "the merged weights are the base");
    comm_thread_run(2, train_on, resume);
    EXPECT(run(cmd, said) == RC_CANTCREAT, "%s", said);
    EXPECT(run(bare, said) == RC_USAGE && strstr(said, "BASE ADAPTER OUT"), "%s", said);
    EXPECT(run(inspect, said) == 0 && strstr(said, "adapters   rank 4, alpha 8, scale 2") &&
               strstr(said, "self_attn.q self_attn.k") && strstr(said, "SHA-256"),
           "%s", said);
    char *texts[] = {out, cmd, from, resume, bare, inspect};
    for (int i = 0; i < 6; i++) free(texts[i]);
}

static void test_run(struct comm *world)
{
    (void)world;
    if (system("command -v mpirun >/dev/null 2>&1")) {
        test_skip("mpirun is missing");
        return;
    }
    char *base = io_path("%s/sft", test_dir()), *rl = io_path("%s/rl", test_dir()),
         *out = io_path("output_dir=%s", base), *folder = io_path("%s/checkpoints", rl);
    comm_thread_run(2, train_case_save, out);
    const char *path[] = {base, folder};
    comm_thread_run(3, make_adapters, path);
    check_sampling(base, rl);
    check_merge(base, rl);
    char *texts[] = {base, rl, out, folder};
    for (int i = 0; i < 4; i++) free(texts[i]);
}

int main(int argc, char **argv)
{
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);
    setenv("OMP_NUM_THREADS", "1", 0);
    const struct test tests[] = {{.name = "sample with adapters, merge them, train on",
                                  .run = test_run,
                                  .flags = TEST_SLOW}};
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
