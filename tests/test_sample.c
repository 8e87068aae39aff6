/* Verb sample as a user runs it: the same videos on any number of ranks, finished items are kept,
 * mistakes are named. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/train_case.h"
#include "train/captions.h"

/* Exit code; the output goes to said[]. */
static int sample(int ranks, const char *out, const char *more, char said[8192])
{
    const char *build = getenv("BUILD");
    char *cmd = io_path("mpirun -n %d %s/osp sample configs/sample/tiny.yaml checkpoint=%s/sampled "
                        "output_dir=%s/%s num_frames=null height=null width=null "
                        "scheduler_config.num_inference_steps=2 samples_per_prompt=2 %s 2>&1 "
                        "</dev/null",
                        ranks, build ? build : "build/release", test_dir(), test_dir(), out, more);
    const int rc = test_command(cmd, said, 8192);
    free(cmd);
    return rc;
}

static bool same_file(const char *a, const char *b, int prompt, int k)
{
    char *cmd = io_path("cmp -s %s/%s/video_%06d_%02d.mp4 %s/%s/video_%06d_%02d.mp4", test_dir(), a,
                        prompt, k, test_dir(), b, prompt, k);
    const int rc = system(cmd);
    free(cmd);
    return rc == 0;
}

static time_t changed(const char *dir, const char *file)
{
    char *path = io_path("%s/%s/%s", test_dir(), dir, file);
    struct stat st;
    const time_t t = stat(path, &st) == 0 ? st.st_mtime : 0;
    free(path);
    return t;
}

/* The megabytes in "activations 1.2 MB, states 3.4 MB per rank". */
static double megabytes(const char *said, const char *what)
{
    const char *at = strstr(said, what);
    return at ? atof(at + strlen(what)) : -1;
}

/* Without guidance the batch has no second half, and there is one copy of the weights, EMA or not.
 * Depends on the checkpoint of the test before. */
static void least_work(const char *first)
{
    char plain[8192], batched[8192], guided[8192];
    EXPECT(sample(1, "plain", "scheduler_config.guidance_scale=1 batched_cfg=false", plain) == 0 &&
               sample(1, "batched", "scheduler_config.guidance_scale=1", batched) == 0 &&
               sample(1, "guided", "", guided) == 0,
           "%s", batched);
    const double a = megabytes(plain, "activations "), b = megabytes(batched, "activations "),
                 c = megabytes(guided, "activations ");
    EXPECT(a > 0 && a == b && c > 1.5 * b, "activations %g, %g, guided %g MB", a, b, c);
    EXPECT(same_file("plain", "batched", 0, 0) && !same_file("plain", "guided", 0, 0), "videos");
    /* masters and, for the gathers of more than one rank, nothing else: one float a parameter */
    const double params = megabytes(first, "model "), states = megabytes(first, "states ");
    EXPECT(params > 0 && states < 1.2 * 4 * params + 0.1, "%g MB of states for %g M parameters",
           states, params);
}

/* samples.json tells how the videos stand on the sheet, and of which prompt each is, also those of
 * prompts that were not asked for again. */
static void told(const char *folder, int64_t prompts, int64_t more)
{
    struct captions c;
    char *path = io_path("%s/%s", test_dir(), folder);
    captions_of_samples(&c, path);
    EXPECT(c.n == 2 * (prompts + more) && c.shown == 2 * prompts && c.samples == 2 &&
               c.rows == prompts && c.columns == 2,
           "%s: %lld videos, %lld of a prompt, %lld x %lld", folder, (long long)c.n,
           (long long)c.samples, (long long)c.rows, (long long)c.columns);
    for (int64_t i = 0; i < c.n; i++) {
        char *video = io_path("%s/%s", path, c.v[i].file);
        EXPECT(io_exists(video) && c.v[i].number == i / 2 && c.v[i].small &&
                   strstr(c.v[i].text, "seed 1024") && strstr(c.v[i].text, "2 steps · EMA"),
               "%s: \"%s\"", video, c.v[i].text);
        free(video);
    }
    captions_free(&c);
    free(path);
}

/* Another sheet, and the other videos are not forgotten. */
static void fewer_prompts(char said[8192])
{
    char *fewer = io_path("%s/fewer.txt", test_dir());
    char *line = io_path("head -n 1 configs/sample/prompts.txt > %s", fewer);
    char *set = io_path("prompt_txt=%s", fewer);
    EXPECT(system(line) == 0 && sample(1, "one", set, said) == 0 && strstr(said, "0 to make"), "%s",
           said);
    told("one", 1, 2);
    EXPECT(sample(1, "one", "", said) == 0 && strstr(said, "0 to make"), "%s", said);
    told("one", 3, 0);
    free(set);
    free(line);
    free(fewer);
}

/* What is cut is said, and by rank 0 alone. */
static void expect_long(char said[8192])
{
    char *path = io_path("%s/long.txt", test_dir()), *key = io_path("prompt_txt=%s", path);
    char text[2048] = "a\n\n";
    for (int i = 0; i < 300; i++) strcat(text, "word ");
    struct err e = {0};
    io_write_file(path, text, strlen(text), &e);
    EXPECT(!e.code && sample(2, "long", key, said) == 0, "%s%s", e.msg, said);
    const char *cut = strstr(said, "prompt_txt: 1 of 3 prompts is longer than ");
    EXPECT(cut && strstr(cut, " tokens and is cut: line 3 (301 tokens)\n"), "%s", said);
    EXPECT(cut && !strstr(cut + 1, "prompt_txt: 1 of 3") &&
               strstr(said, "1 empty line is an empty"),
           "%s", said);
    free(key);
    free(path);
}

/* Nothing is left behind by what is refused. */
static void refusals(char said[8192])
{
    EXPECT(sample(1, "bad", "num_frames=5", said) == RC_CONFIG &&
               strstr(said, "was trained with 4"),
           "%s", said);
    EXPECT(sample(1, "bad", "prompt_txt=none/here.txt", said) == RC_NOINPUT &&
               strstr(said, "no such file"),
           "%s", said);
    EXPECT(sample(1, "bad", "checkpoint=/nonexistent", said) == RC_NOINPUT &&
               strstr(said, "while using command line:8:12: checkpoint"),
           "%s", said);
    char *latin = io_path("%s/latin.txt", test_dir()), *key = io_path("prompt_txt=%s", latin);
    struct err e = {0};
    io_write_file(latin, "a cat\na caf\xe9\n", 13, &e);
    EXPECT(!e.code && sample(1, "bad", key, said) == RC_DATA &&
               strstr(said, "latin.txt:2: the line is not UTF-8"),
           "%s %s", e.msg, said);
    free(latin);
    free(key);
    expect_long(said);
    char *bad = io_path("%s/bad", test_dir());
    EXPECT(!io_exists(bad), "refused runs left %s", bad);
    EXPECT(sample(1, "word", "prompt_txt=nope", said) == 0 &&
               strstr(said, "no file \"nope\", so that is the prompt"),
           "%s", said);
    free(bad);
}

static void test_sample(struct comm *world)
{
    (void)world;
    if (system("command -v mpirun >/dev/null 2>&1")) {
        test_skip("mpirun is missing");
        return;
    }
    char said[8192], *out = io_path("output_dir=%s/sampled", test_dir());
    comm_thread_run(2, train_case_save, out);
    EXPECT(sample(1, "one", "", said) == 0, "%s", said);
    EXPECT(strstr(said, "6 to make") && strstr(said, "sheet.png"), "%s", said);
    told("one", 3, 0);
    least_work(said);
    EXPECT(sample(3, "three", "", said) == 0, "%s", said);
    for (int p = 0; p < 3; p++)
        for (int k = 0; k < 2; k++)
            EXPECT(same_file("one", "three", p, k), "video %d/%d differs between 1 and 3 ranks", p,
                   k);
    EXPECT(!same_file("one", "three", 0, 0) || changed("one", "samples.json"), "no manifest");
    /* the ranks share samples: videos one by one, tokens between 4 of them */
    EXPECT(sample(4, "four",
                  "use_sequence_parallel=true sp_size=2 use_skiparse_sequence_parallel=true "
                  "skiparse_sp_size=2",
                  said) == 0,
           "%s", said);
    for (int p = 0; p < 3; p++)
        EXPECT(same_file("one", "four", p, 1), "video %d differs under sequence parallelism", p);
    /* a signal to one rank in the middle of a video: the others stop too, what is done is kept */
    setenv("OSP_FAULT", "sample@1:5:term", 1);
    EXPECT(sample(2, "stopped", "", said) == RC_PREEMPTED &&
               strstr(said, "stopped by a signal after "),
           "%s", said);
    unsetenv("OSP_FAULT");
    char *manifest = io_path("%s/stopped/samples.json", test_dir());
    json_t *cut = json_load_file(manifest, 0, NULL);
    EXPECT(cut && !json_object_get(cut, "sheet"), "a sheet of what is not made yet");
    json_decref(cut);
    free(manifest);
    EXPECT(sample(2, "stopped", "", said) == 0 && !strstr(said, "6 to make"), "%s", said);
    told("stopped", 3, 0);
    for (int p = 0; p < 3; p++)
        for (int k = 0; k < 2; k++)
            EXPECT(same_file("stopped", "three", p, k), "video %d/%d differs after a stop", p, k);
    /* one video is gone: only that one is made again */
    char *gone = io_path("%s/one/video_000001_01.mp4", test_dir());
    EXPECT(remove(gone) == 0, "remove");
    EXPECT(sample(1, "one", "", said) == 0 && strstr(said, "1 to make"), "%s", said);
    EXPECT(same_file("one", "three", 1, 1), "the video made again differs");
    fewer_prompts(said);
    /* other parameters: all are made again */
    EXPECT(sample(1, "one", "scheduler_config.guidance_scale=2", said) == 0 &&
               strstr(said, "6 to make"),
           "%s", said);
    refusals(said);
    free(gone);
    free(out);
}

int main(int argc, char **argv)
{
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);
    setenv("OMP_NUM_THREADS", "1", 0);
    const struct test tests[] = {{.name = "samples do not depend on the ranks and are resumable",
                                  .run = test_sample,
                                  .flags = TEST_SLOW}};
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
