/* The configuration as text: read back by keys, changes since a checkpoint; and what is said to
 * keys of other programs and to folders. */
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "train/print_config.h"

static void expect_value(const char *text, const char *key, const char *want)
{
    char *got = cfg_line_of(text, key);
    EXPECT(want ? got && strcmp(got, want) == 0 : !got, "%s: %s, expected %s", key,
           got ? got : "none", want ? want : "none");
    free(got);
}

static void read_back(struct comm *world)
{
    (void)world;
    static const char text[] =
        "seed: 1  # a.yaml:1:1\nempty: \na:\n  x: 1\n  b:\n    x: \"2  # \\\" 3\""
        "  # a.yaml:2:2\n  c:\n    d:\n      x: 4\n  y: [5, 6]\nx: \"7: 8\"\n";
    expect_value(text, "seed", "1");
    expect_value(text, "empty", "");
    expect_value(text, "a.x", "1");
    expect_value(text, "a.b.x", "\"2  # \\\" 3\"");
    expect_value(text, "a.c.d.x", "4");
    expect_value(text, "a.y", "[5, 6]");
    expect_value(text, "x", "\"7: 8\"");
    expect_value(text, "y", NULL);
    expect_value(text, "a", NULL);
    expect_value("", "a", NULL);
    expect_value("no lines of ours\n\n  - x\n", "x", NULL);
    /* every key of every verb comes back, in its order */
    for (int v = SETTINGS_TRAIN; v <= SETTINGS_RL; v++) {
        int n, at = 0;
        const struct cfg_field *schema = settings_schema((enum settings_verb)v, &n);
        struct settings *s = calloc(1, sizeof *s);
        CHECK(s, "out of memory");
        char *all = cfg_text(schema, n, s, NULL);
        for (struct cfg_line l = {.text = all}; cfg_next_line(&l); at++) {
            while (at < n && schema[at].type >= CFG_ONLY) at++;
            EXPECT(at < n && strcmp(schema[at].key, l.key) == 0, "key %d is %s", at, l.key);
        }
        for (; at < n; at++) EXPECT(schema[at].type >= CFG_ONLY, "%s is missing", schema[at].key);
        free(all);
        free(s);
    }
}

static struct loaded_settings now;
static void log_changes(void *then) { config_log_changes(&now, then); }

static void changes(struct comm *world)
{
    (void)world;
    settings_load(&now, SETTINGS_TRAIN, "configs/train/tiny.yaml", NULL, 0);
    char *then = settings_text(&now, false), *said = test_output(log_changes, then);
    EXPECT(!*said, "%s", said);
    free(said);
    settings_free(&now);
    settings_load(&now, SETTINGS_TRAIN, "configs/train/tiny.yaml",
                  (char *[]){"optimizer_config.lr=0.25", "resume=never", "output_dir=runs/tin"}, 3);
    char *before = strstr(then, "seed: "), *lr = cfg_line_of(then, "optimizer_config.lr");
    memcpy(before, "sead", 4); /* as from a program that had no seed */
    char *want = io_path("changed since the checkpoint: optimizer_config.lr: %s, now 0.25\n", lr);
    said = test_output(log_changes, then);
    EXPECT(strstr(said, want), "%s is not in %s", want, said);
    EXPECT(strstr(said, "changed since the checkpoint: seed: not known then, now ") &&
               strstr(said, "changed since the checkpoint: resume: auto, now never\n") &&
               strstr(said, "changed since the checkpoint: output_dir: runs/tiny, now runs/tin\n"),
           "%s", said);
    int lines = 0;
    for (char *s = said; (s = strchr(s, '\n')); s++) lines++;
    EXPECT(lines == 4, "%d lines: %s", lines, said);
    free(want);
    free(lr);
    free(said);
    free(then);
    settings_free(&now);
}

static struct {
    enum settings_verb verb;
    const char *path;
    char *set;
} job;
static void load(void *ignored)
{
    (void)ignored;
    if (now.origin) settings_free(&now);
    settings_load(&now, job.verb, job.path, &job.set, job.set != NULL);
}

static void other_names(struct comm *world)
{
    (void)world;
    static const struct {
        enum settings_verb verb;
        char *set;
        const char *key;
    } cases[] = {
        {SETTINGS_TRAIN, "optimizer_config.learning_rate=1", "optimizer_config.lr"},
        {SETTINGS_RL, "learning_rate=1", "optimizer_config.lr"},
        {SETTINGS_TRAIN, "steps=1", "training_iteration"},
        {SETTINGS_SAMPLE, "steps=1", "scheduler_config.num_inference_steps"},
        {SETTINGS_RL, "rl_config.num_steps=1", "rl_config.num_inference_steps"},
        {SETTINGS_RL, "epochs=1", "num_epochs"},
        {SETTINGS_TRAIN, "batch=1", "data_config.batch_size"},
        {SETTINGS_TRAIN, "warmup=1", "lr_schedule.warmup_steps"},
        {SETTINGS_TRAIN, "wd=1", "optimizer_config.weight_decay"},
        {SETTINGS_TRAIN, "seq_parallel=true", "use_sequence_parallel"},
        {SETTINGS_SAMPLE, "cfg_scale=1", "scheduler_config.guidance_scale"},
        {SETTINGS_RL, "rl_config.cfg=1", "rl_config.guidance_scale"},
        {SETTINGS_TRAIN, "precision=bf16", "weight_dtype"},
        {SETTINGS_SAMPLE, "dtype=bf16", "weight_dtype"},
        {SETTINGS_TRAIN, "save_every=1", "save_interval"},
        {SETTINGS_TRAIN, "checkpoint_interval=1", "save_interval"},
        {SETTINGS_TRAIN, "warmup_steps=1", "lr_schedule.warmup_steps"}, /* our own word first */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *want = io_path("unknown key (did you mean \"%s\"?)", cases[i].key);
        job.verb = cases[i].verb;
        job.path = job.verb == SETTINGS_TRAIN    ? "configs/train/tiny.yaml"
                   : job.verb == SETTINGS_SAMPLE ? "configs/sample/tiny.yaml"
                                                 : "configs/rl/tiny.yaml";
        job.set = cases[i].set;
        expect_stop(want, RC_CONFIG, load, NULL);
        free(want);
    }
    job.verb = SETTINGS_SAMPLE; /* which has no such thing */
    job.path = "configs/sample/tiny.yaml";
    job.set = "learning_rate=1";
    expect_stop("learning_rate: unknown key", RC_CONFIG, load, NULL);
    job.path = "configs";
    job.set = NULL;
    expect_stop("configuration configs: is a folder", RC_NOINPUT, load, NULL);
    if (now.origin) settings_free(&now);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"the text of a configuration is read back by whole keys", read_back, {0}, 0},
        {"changes since a checkpoint are said with the whole key and both values", changes, {0}, 0},
        {"words of other programs lead to the key; a folder is no configuration",
         other_names,
         {0},
         0}};
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
