#include "tests/rl_process.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"

const struct process_opts plain_rl = {.verb = "rl"};

void write_text(const char *name, const char *text)
{
    struct err e = {0};
    char *path = io_path("%s/%s", test_dir(), name);
    io_write_file(path, text, strlen(text), &e);
    CHECK(!e.code, "%s", e.msg);
    free(path);
}

/* test_dir()/RUN.yaml: post-training of test_dir()/base into test_dir()/RUN. */
static char *rl_yaml(const char *run, const char *algo)
{
    char *text = io_path(
        "seed: 11\noutput_dir: %s/%s\nnum_epochs: %d\nsave_interval: 2\nweight_dtype: fp32\n"
        "ema_decay: 0.9\ngrad_clip: fixed\nrecompute: none\ninit_from: ema\n"
        "model_config: {pretrained_model_dir_or_checkpoint: %s/base}\n"
        "lora_config: {rank: 4, alpha: 8}\n"
        "optimizer_config: {lr: 2e-3, weight_decay: 0, eps: 1e-8}\n"
        "rl_config: {num_inference_steps: 4, sde_steps: 2, guidance_scale: 1.5,\n"
        "  num_image_per_prompt: 4, sample_batch_size: 4, train_batch_size: 2,\n"
        "  num_batches_per_epoch: 1, clip_range: 1e-2, %seval_freq: 2,\n"
        "  eval_num_steps: 2, prompt_file: %s/prompts.txt, eval_prompt_file: %s/prompts.txt}\n"
        "rl: {algo: %s, shift: 1.0}\n"
        "reward: {command: python3 scripts/simple_scorer.py}\n",
        test_dir(), run, EPOCHS, test_dir(), strcmp(algo, "nft") ? "kl_beta: 0.01, " : "",
        test_dir(), test_dir(), algo);
    char *name = io_path("%s.yaml", run), *path = io_path("%s/%s", test_dir(), name);
    write_text(name, text);
    free(name);
    free(text);
    return path;
}

int rl_run(const char *name, const char *algo, const struct process_opts *o, char **said)
{
    char *yaml = rl_yaml(name, algo), *log = io_path("%s/%s.log", test_dir(), name);
    remove(log);
    const int rc = process_run(yaml, log, o, NULL);
    if (said) *said = process_log(log);
    if (!said && rc) printf("    see %s\n", log);
    free(log);
    free(yaml);
    return rc;
}

bool rl_ready(void)
{
    static bool made;
    if (!process_ready()) return false;
    if (system("python3 -c 'import mmap, socket; socket.recv_fds' >/dev/null 2>&1")) {
        test_skip("no python3 (3.9 or newer)");
        return false;
    }
    if (made) return true;
    write_text("prompts.txt",
               "a bright red picture\na dark night\na green field\nfast blue waves\n");
    write_text("other.txt", "a bright red picture\na dark day\na green field\nfast blue waves\n");
    char *yaml = process_yaml("base", 24), *log = io_path("%s/base.log", test_dir());
    const struct process_opts train = {.verb = "train"};
    made = process_run(yaml, log, &train, NULL) == 0;
    EXPECT(made, "the base cannot be trained, see %s", log);
    free(log);
    free(yaml);
    return made;
}

/* A run that ends well has used the memory that was planned for it; one that is resumed may have
 * had little left to do. */
static void expect_memory(const char *name, const char *said)
{
    static const char line[] = "memory of this rank: ";
    double used = 0, planned = 0;
    const char *at = strstr(said, line);
    const int n = at ? sscanf(at + sizeof line - 1, "%lf MB at most, %lf", &used, &planned) : 0;
    const bool less = strstr(said, "resumed from") && used < planned;
    EXPECT(n == 2 && (less || fabs(planned / used - 1) < 0.05), "%s: %.3f MB used, %.3f MB planned",
           name, used, planned);
    printf("    %s: %.3f MB planned, %.3f MB used\n", name, planned, used);
}

bool rl_calm(const char *name, const char *algo, const struct process_opts *o)
{
    char *said;
    const int rc = rl_run(name, algo, o, &said);
    EXPECT(rc == 0, "%s: exit code %d: %s", name, rc, said);
    if (rc == 0) expect_memory(name, said);
    free(said);
    return rc == 0;
}

void rl_refuse(const char *name, const char *set, const char *says)
{
    struct process_opts o = plain_rl;
    char *said;
    o.sets[0] = set;
    const int rc = rl_run(name, "mix_grpo", &o, &said);
    EXPECT(rc == RC_CONFIG && strstr(said, says), "%s: exit code %d, no \"%s\" in: %s", set, rc,
           says, said);
    free(said);
}

/* The last value, and the lines that count. */
static int find_metric(const char *name, int epoch, const char *key, double *found)
{
    char *path = io_path("%s/%s/metrics.jsonl", test_dir(), name), *text = process_log(path);
    int lines = 0;
    *found = NAN;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *j = json_loads(line, 0, NULL), *v = json_object_get(j, key);
        const json_t *from = json_object_get(j, "from_step");
        if (from && json_integer_value(from) <= epoch) lines = 0;
        if (v && json_integer_value(json_object_get(j, "step")) == epoch) {
            *found = json_number_value(v);
            lines++;
        }
        json_decref(j);
    }
    free(text);
    free(path);
    return lines;
}

double rl_metric(const char *name, int epoch, const char *key)
{
    double x;
    find_metric(name, epoch, key, &x);
    return x;
}

int rl_metric_lines(const char *name, int epoch, const char *key)
{
    double x;
    return find_metric(name, epoch, key, &x);
}

void rl_same_metrics(const char *name, const char *want, int first, int last)
{
    static const char *const keys[] = {
        "reward/mean",      "reward/std_within_groups", "update/loss",      "update/kl_loss",
        "update/grad_norm", "advantage/abs_mean",       "eval/reward_mean", "update/approx_kl"};
    for (int epoch = first; epoch <= last; epoch++)
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            const double a = rl_metric(want, epoch, keys[k]), b = rl_metric(name, epoch, keys[k]);
            EXPECT(isnan(a) == isnan(b) && !(fabs(a - b) > 1e-6 * fabs(a) + 1e-12),
                   "%s, epoch %d: %s is %.12g, not %.12g", name, epoch, keys[k], b, a);
        }
}
