/* When the report of a post-training run compares its first evaluation with its last. */
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "train/report.h"

static void put(const char *name, const char *text)
{
    struct err e = {0};
    char *path = io_path("%s/run/%s", test_dir(), name), *dir = io_path("%s", path);
    *strrchr(dir, '/') = 0;
    io_mkdir(dir, &e);
    io_write_file(path, text, strlen(text), &e);
    EXPECT(!e.code, "%s", e.msg);
    free(dir);
    free(path);
}

/* One prompt twice, and another. */
static void put_prompts(const char *epoch, const char *second)
{
    char *name = io_path("eval/%s/prompts.json", epoch);
    char *text = io_path("{\"format\":\"osp-evaluation\",\"samples_per_prompt\":2,\"items\":["
                         "{\"prompt\":\"a\",\"sample\":0,\"height\":8,\"width\":8,\"reward\":1},"
                         "{\"prompt\":\"a\",\"sample\":1,\"height\":8,\"width\":8,\"reward\":2},"
                         "{\"prompt\":\"%s\",\"sample\":0,\"height\":8,\"width\":8,\"reward\":3}]}",
                         second);
    put(name, text);
    name[strlen(name) - strlen("prompts.json")] = 0;
    char *video = io_path("%sprompt_000_00.mp4", name);
    put(video, "video");
    free(video);
    free(text);
    free(name);
}

/* A run of two starts with these configurations; the second goes on from epoch 3, whose evaluation
 * it makes up for. */
static char *page(const char *first, const char *second)
{
    struct err e = {0};
    char *log = io_path("{\"event\":\"text\",\"key\":\"config\",\"text\":\"%s\"}\n"
                        "{\"step\":0,\"eval/reward_mean\":1,\"eval/reward_std\":0.5}\n"
                        "{\"step\":3,\"reward/mean\":1}\n"
                        "{\"step\":4,\"reward/mean\":1,\"eval/reward_mean\":9}\n"
                        "{\"event\":\"resume\",\"from_step\":4}\n"
                        "{\"event\":\"text\",\"key\":\"config\",\"text\":\"%s\"}\n"
                        "{\"step\":3,\"eval/reward_mean\":1.75,\"eval/reward_std\":0.5}\n",
                        first, second);
    put("metrics.jsonl", log);
    char *run = io_path("%s/run", test_dir()), *path = io_path("%s/report.html", run);
    report_write(run);
    char *text = io_read_file(path, NULL, &e);
    EXPECT(text, "%s", e.msg);
    free(path);
    free(run);
    free(log);
    return text;
}

/* why NULL: they are compared. key: none of their rewards are. */
static void expect_compared(const char *first, const char *second, const char *why, const char *key)
{
    char *p = page(first, second);
    char *said = io_path("not comparable with the first, 1: %s</small>", why ? why : "");
    char *pairs = io_path("the rewards are not comparable: other %s</p>", key ? key : "");
    char *note = io_path("the last has %s than the first", why ? why : "");
    const bool gain = strstr(p, "+1.50 standard deviations"), each = strstr(p, "(+0.0000)");
    EXPECT(gain == !why && each == !key, "%s / %s: gain %d, of a video %d", first, second, gain,
           each);
    EXPECT(!!strstr(p, said) == !!why && !!strstr(p, pairs) == !!key && !!strstr(p, note) == !!why,
           "%s / %s: not \"%s\"", first, second, said);
    EXPECT(strstr(p, "<title>0: 1</title>") && strstr(p, "<title>3: 1.75</title>"), "the points");
    free(note);
    free(pairs);
    free(said);
    free(p);
}

static void compared(struct comm *world)
{
    (void)world;
    static const char a[] = "seed: 1\\nreward:\\n  command: x\\n  weights: [1]\\n"
                            "rl_config:\\n  eval_prompt_file: p\\nlora_config:\\n  weights: [3]\\n",
                      weights[] = "seed: 1\\nreward:\\n  command: x\\n  weights: [2]\\n",
                      command[] = "seed: 1\\nreward:\\n  command: y\\n  weights: [1]\\n",
                      file[] = "seed: 1\\nrl_config:\\n  eval_prompt_file: q\\n",
                      rest[] = "seed: 1\\nlora_config:\\n  weights: [4]\\nother: 1\\n";
    put_prompts("epoch_000000", "b");
    put_prompts("epoch_000003", "b");
    put_prompts("epoch_000004", "c");
    expect_compared(a, a, NULL, NULL);
    expect_compared(a, rest, NULL, NULL);
    expect_compared(a, file, NULL, NULL); /* a file of another name with the same prompts */
    expect_compared(a, weights, "other reward.weights", "reward.weights");
    expect_compared(a, command, "other reward.command", "reward.command");
    put_prompts("epoch_000003", "c");
    expect_compared(a, a, "other prompts", NULL);
    put_prompts("epoch_000003", "a");
    expect_compared(a, weights, "other prompts, other reward.weights", "reward.weights");
    expect_compared(a, a, "other prompts", NULL);
}

/* Evaluations of older programs have no prompts.json: the name of the file is what is known. */
static void without_prompts(struct comm *world)
{
    (void)world;
    char *run = io_path("%s/run/eval", test_dir());
    struct err e = {0};
    io_remove_tree(run, &e);
    put("eval/epoch_000000/prompt_000_00.mp4", "video");
    char *p =
        page("rl_config:\\n  eval_prompt_file: p\\n", "rl_config:\\n  eval_prompt_file: q\\n");
    EXPECT(strstr(p, "not comparable with the first, 1: other rl_config.eval_prompt_file"), "file");
    free(p);
    p = page("", "");
    EXPECT(strstr(p, "+1.50 standard deviations"), "nothing is known");
    free(p);
    free(run);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"evaluations with other prompts or weights are not compared", compared, {0}, 0},
        {"without prompts.json the configuration decides", without_prompts, {0}, 0}};
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
