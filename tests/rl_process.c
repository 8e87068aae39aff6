#include "tests/rl_process.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "parallel/checkpoint.h"
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

char *rl_yaml(const char *run, const char *algo)
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
            *found =
                json_is_number(v) ? json_number_value(v) : NAN; /* what is not finite is text */
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

static void same_metric(const char *name, const char *want, int epoch, const char *key, bool there)
{
    const double a = rl_metric(want, epoch, key), b = rl_metric(name, epoch, key);
    const int la = rl_metric_lines(want, epoch, key), lb = rl_metric_lines(name, epoch, key);
    EXPECT(la == there && lb == there, "epoch %d has %s %d times in %s, %d times in %s", epoch, key,
           la, want, lb, name);
    EXPECT(!there || fabs(a - b) <= 1e-6 * fabs(a) + 1e-15, "%s, epoch %d: %s is %.12g, not %.12g",
           name, epoch, key, b, a);
}

void rl_same_metrics(const char *name, const char *want, int first, int last, int eval_freq)
{
    static const char *const keys[] = {"reward/mean",        "reward/std_within_groups",
                                       "advantage/abs_mean", "update/loss",
                                       "update/kl_loss",     "update/policy_loss",
                                       "update/grad_norm",   "update/clip_limit",
                                       "update/approx_kl",   "update/kl",
                                       "adapter/norm_B"};
    for (int epoch = first; epoch <= last; epoch++) {
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            same_metric(name, want, epoch, keys[k], true);
        same_metric(name, want, epoch, "eval/reward_mean", eval_freq && epoch % eval_freq == 0);
        const double a = rl_metric(want, epoch, "update/window_first"),
                     b = rl_metric(name, epoch, "update/window_first");
        EXPECT(a == b, "%s, epoch %d: the window is at %g, not %g", name, epoch, b, a);
    }
}

/* ---- saved state ------------------------------------------------------------------------------*/
static struct ckpt *newest(struct comm *alone, const char *name)
{
    char *path = io_path("%s/%s", test_dir(), name);
    struct ckpt *c = ckpt_open(alone, path, true);
    free(path);
    return c;
}

/* Numbers are compared, all else is equal; doubles to `most` of the value. */
static void same_json(const char *what, const json_t *a, const json_t *b, double most)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)a, key, v)
    {
        const json_t *w = json_object_get(b, key);
        if (json_is_object(v)) {
            same_json(key, v, w, most);
            continue;
        }
        const double x = json_number_value(v), y = json_number_value(w);
        const bool same =
            json_is_real(v) && json_is_real(w) ? fabs(x - y) <= most * fabs(x) : json_equal(v, w);
        EXPECT(same, "%s: %s is %.17g, not %.17g", what, key, y, x);
    }
    EXPECT(json_is_object(a) && json_object_size(a) == json_object_size(b),
           "%s: %zu members of %zu", what, json_object_size(b), json_object_size(a));
}

/* Largest difference over the largest element of each kind, or -1 where a tensor is missing. */
static double tensor_gap(struct ckpt *a, struct ckpt *b, const struct ckpt_tensor *t)
{
    struct ckpt_tensor u;
    if (!ckpt_find(b, t->kind, t->name, &u) || u.count != t->count || u.dtype != t->dtype)
        return INFINITY;
    double *x = malloc((size_t)t->count * sizeof *x), *y = malloc((size_t)t->count * sizeof *y);
    CHECK(x && y, "out of memory");
    ckpt_read_f64(a, t, 0, t->count, x);
    ckpt_read_f64(b, &u, 0, t->count, y);
    const double gap = max_error(y, x, t->count, NULL);
    free(x);
    free(y);
    return gap;
}

void rl_same_state(const char *name, const char *want, double most)
{
    static const enum state_kind kinds[] = {STATE_LORA, STATE_LORA_EMA, STATE_LORA_M, STATE_LORA_V};
    static const char *const parts[] = {"state", "identity", "lora", "base"};
    struct comm *alone = comm_self(NULL);
    struct ckpt *a = newest(alone, want), *b = newest(alone, name);
    double worst = 0;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        EXPECT(ckpt_has(a, kinds[k]), "%s has no %s", want, ckpt_kind_name(kinds[k]));
    for (int i = 0; i < ckpt_num_tensors(a); i++) {
        const struct ckpt_tensor t = ckpt_tensor_at(a, i);
        const double gap = tensor_gap(a, b, &t);
        EXPECT(gap <= most, "%s: %s/%s is off by %.2g", name, ckpt_kind_name(t.kind), t.name, gap);
        worst = fmax(worst, gap);
    }
    EXPECT(ckpt_num_tensors(a) == ckpt_num_tensors(b) && ckpt_num_tensors(a) > 0,
           "%s: %d tensors of %d", name, ckpt_num_tensors(b), ckpt_num_tensors(a));
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++)
        same_json(parts[k], json_object_get(ckpt_meta(a), parts[k]),
                  json_object_get(ckpt_meta(b), parts[k]), most);
    const json_t *ra = json_object_get(ckpt_meta(a), "rl"),
                 *rb = json_object_get(ckpt_meta(b), "rl");
    EXPECT(ckpt_step(a) == ckpt_step(b) && /* the data cursor: noise and prompts are the epoch's */
               json_equal(json_object_get(ra, "epoch"), json_object_get(rb, "epoch")) &&
               json_equal(json_object_get(ra, "evaluated"), json_object_get(rb, "evaluated")),
           "%s: another epoch", name);
    if (test_verbose()) printf("    %s: state within %.1e of %s\n", name, worst, want);
    ckpt_close(a);
    ckpt_close(b);
    comm_free(alone);
}
