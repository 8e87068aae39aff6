/* Configurations of `osp rl`: the official file, and what the algorithm decides. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/log.h"
#include "rl/algo.h"
#include "tests/check.h"
#include "train/settings.h"

struct job {
    const char *path;
    char *const *sets;
    int num_sets;
};

static void load_job(void *arg)
{
    const struct job *j = arg;
    struct loaded_settings l;
    settings_load(&l, SETTINGS_RL, j->path, j->sets, j->num_sets);
    settings_free(&l);
}

static void test_official_rl(struct comm *world)
{
    (void)world;
    struct job j = {.path = "tests/data/official_rl_14b.yaml"};
    load_job(&j);
    static const char *const refused[] = {"rl_config.use_cfg_in_train=false",
                                          "rl_config.kl_reward=0.1",
                                          "rl_config.sample_time_per_prompt=2",
                                          "resume_epoch=3",
                                          "optimizer_config.resume_lr=1e-4",
                                          "reward.score_limit=0",
                                          "reward.score_limit=-1",
                                          "reward.device=gpu"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        char text[128], *sets[] = {text};
        snprintf(text, sizeof text, "%s", refused[i]);
        j.sets = sets;
        j.num_sets = 1;
        expect_stop("1 problem", RC_CONFIG, load_job, &j);
    }
}

/* The shift has no default: what a checkpoint was trained with must be said. */
static void test_shift(struct comm *world)
{
    (void)world;
    char *path = io_path("%s/no_shift.yaml", test_dir());
    FILE *in = fopen("configs/rl/tiny.yaml", "r"), *out = fopen(path, "w");
    char line[1024];
    bool dropped = false;
    while (in && out && fgets(line, sizeof line, in))
        if (strstr(line, "shift:"))
            dropped = true;
        else
            fputs(line, out);
    EXPECT(in && out && dropped, "configs/rl/tiny.yaml has no shift");
    if (in) fclose(in);
    if (out) fclose(out);
    struct job j = {.path = path};
    expect_stop("shift: is required", RC_CONFIG, load_job, &j);
    char nft[] = "rl.algo=nft", best[] = "rl_config.best_of=2", *sets[] = {nft, best};
    j = (struct job){"configs/rl/tiny.yaml", sets, 2};
    expect_stop("rl_config.best_of: nft trains on every scored sample", RC_CONFIG, load_job, &j);
    free(path);
}

/* Files of other verbs are named as such in one line; files of this one never are. */
static void load_any(void *arg)
{
    struct job *j = arg;
    struct loaded_settings l;
    settings_load(&l, (enum settings_verb)j->num_sets, j->path, NULL, 0);
    settings_free(&l);
}

static void test_other_verb(struct comm *world)
{
    (void)world;
    static const struct {
        const char *path;
        enum settings_verb verb;
        const char *says;
    } list[] = {
        {"configs/train/tiny.yaml", SETTINGS_RL, "a configuration of osp train, not of osp rl"},
        {"configs/train/osp_14b.yaml", SETTINGS_RL, "run it: mpirun -n RANKS osp train configs/"},
        {"configs/rl/tiny.yaml", SETTINGS_TRAIN, "a configuration of osp rl, not of osp train"},
        {"configs/train/tiny.yaml", SETTINGS_SAMPLE, "osp train, not of osp sample"},
        {"configs/rl/tiny.yaml", SETTINGS_SAMPLE, "osp rl, not of osp sample"},
        {"configs/sample/tiny.yaml", SETTINGS_RL, "osp sample, not of osp rl"},
        {"configs/data/clips.yaml", SETTINGS_TRAIN, "it: osp data configs/data/clips.yaml"}};
    char line[1024];
    static const enum settings_verb of[] = {SETTINGS_TRAIN, SETTINGS_TRAIN, SETTINGS_RL,
                                            SETTINGS_TRAIN, SETTINGS_RL,    SETTINGS_SAMPLE,
                                            SETTINGS_DATA};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        EXPECT(settings_nearest(list[i].verb, list[i].path) == of[i], "%s", list[i].path);
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct job j = {list[i].path, NULL, list[i].verb};
        expect_stop(list[i].says, RC_CONFIG, load_any, &j);
        EXPECT(settings_whose(list[i].verb, j.path, line, sizeof line) == SETTINGS_WHOLLY_OTHER &&
                   !strchr(line, '\n'),
               "%s", line);
    }
    /* A mistake of its own: the line, and then the list. A typo, a missing or a foreign key in a
     * file of this verb: only the list. */
    static const struct {
        const char *base, *more;
        enum settings_whose whose;
        const char *says;
    } mixed[] = {
        {"configs/train/tiny.yaml", "sede: 1\n", SETTINGS_PARTLY_OTHER, "sede: unknown key"},
        {"configs/rl/tiny.yaml", "sede: 1\n", SETTINGS_OWN, "sede: unknown key"},
        {"configs/rl/tiny.yaml", "training_iteration: 5\nprompt_txt: a cat\n", SETTINGS_OWN,
         "2 problems in the configuration"},
        {NULL, "seed: 5\n", SETTINGS_OWN, "rl.shift: is required"}};
    for (size_t i = 0; i < sizeof mixed / sizeof *mixed; i++) {
        char *path = io_path("%s/mixed.yaml", test_dir()), text[8192] = "";
        FILE *in = mixed[i].base ? fopen(mixed[i].base, "r") : NULL;
        struct err e = {0};
        if (in) text[fread(text, 1, sizeof text - 200, in)] = 0;
        if (in) fclose(in);
        strcat(text, mixed[i].more);
        io_write_file(path, text, strlen(text), &e);
        struct job j = {path, NULL, SETTINGS_RL};
        expect_stop(mixed[i].says, RC_CONFIG, load_any, &j);
        EXPECT(settings_whose(SETTINGS_RL, path, line, sizeof line) == mixed[i].whose, "%s with %s",
               mixed[i].base, mixed[i].more);
        free(path);
    }
}

static void test_dropout(struct comm *world)
{
    (void)world;
    char text[64] = "lora_config.dropout=0.25", *sets[] = {text};
    struct job j = {"configs/rl/tiny.yaml", sets, 1};
    struct loaded_settings l;
    settings_load(&l, SETTINGS_RL, j.path, NULL, 0);
    EXPECT(l.s.lora.dropout == 0, "dropout %g by default", l.s.lora.dropout);
    settings_free(&l);
    settings_load(&l, SETTINGS_RL, j.path, sets, 1);
    EXPECT(l.s.lora.dropout == 0.25, "dropout %g", l.s.lora.dropout);
    settings_free(&l);
    static const char *const refused[] = {"1", "-0.1", "often"};
    for (int i = 0; i < 3; i++) {
        snprintf(text, sizeof text, "lora_config.dropout=%s", refused[i]);
        expect_stop("lora_config.dropout", RC_CONFIG, load_job, &j);
    }
}

static char *text_of(const char *path, char *const *sets, int num_sets, bool resolve)
{
    struct loaded_settings l;
    struct err e = {0};
    settings_load(&l, SETTINGS_RL, path, sets, num_sets);
    const struct settings before = l.s;
    if (resolve) EXPECT(algo_resolve(&l.s.rl, &e), "%s", e.msg);
    settings_changed(&l, &before, "rl.algo");
    char *text = settings_text(&l, resolve);
    settings_free(&l);
    return text;
}

/* Without the origins. */
static char *plain(const char *text)
{
    char *out = calloc(strlen(text) + 1, 1), *o = out;
    for (const char *s = text; *s;) {
        const size_t line = strcspn(s, "\n");
        const char *mark = memmem(s, line, "  # ", 4);
        const size_t keep = mark ? (size_t)(mark - s) : line;
        memcpy(o, s, keep);
        o += keep;
        *o++ = '\n';
        s += line + (s[line] == '\n');
    }
    return out;
}

static void resolve_one(const char *file, const char *algo)
{
    static const char *const open[] = {"sde_steps: null", "timestep_fraction: null",
                                       "strategy: auto",  "\n  size: null",
                                       "g_rule: auto",    "solver: auto",
                                       "compress: null",  "init_same_noise: auto",
                                       "ddof: null",      "shuffle_steps: auto"};
    char set[64], *sets[] = {set};
    snprintf(set, sizeof set, "rl.algo=%s", algo);
    char *full = text_of(file, sets, 1, true), *once = plain(full);
    char *path = io_path("%s/c.yaml", test_dir());
    struct err e = {0};
    io_write_file(path, once, strlen(once), &e);
    EXPECT(!e.code, "%s", e.msg);
    char *again = text_of(path, NULL, 0, false);
    free(path);
    for (size_t k = 0; k < sizeof open / sizeof *open; k++)
        EXPECT(!strstr(once, open[k]), "%s: %s", algo, open[k]);
    EXPECT(strstr(full, "  # rl.algo"), "%s", full);
    EXPECT(strcmp(once, again) == 0, "%s:\n%s\n%s", algo, once, again);
    free(full);
    free(once);
    free(again);
}

/* What `osp rl` writes has no choice of the algorithm left open, and reads back the same. */
static void test_resolved(struct comm *world)
{
    (void)world;
    static const char *const algos[] = {"mix_grpo",  "mix_grpo_window", "mix_grpo_flash",
                                        "flow_grpo", "flow_grpo_fast",  "dance_grpo",
                                        "nft"};
    for (size_t i = 0; i < sizeof algos / sizeof *algos; i++) {
        resolve_one("configs/rl/tiny.yaml", algos[i]);
        resolve_one("configs/rl/osp_14b.yaml", algos[i]);
    }
}

static void test_reward_keys(struct comm *world)
{
    (void)world;
    static const struct {
        const char *set;
        double limit;
        const char *device;
    } cases[] = {{NULL, 100, NULL},
                 {"reward.score_limit=1e4", 1e4, NULL},
                 {"reward.device=cuda:3", 100, "cuda:3"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[64], *sets[] = {text};
        struct loaded_settings l;
        snprintf(text, sizeof text, "%s", cases[i].set ? cases[i].set : "");
        settings_load(&l, SETTINGS_RL, "configs/rl/tiny.yaml", sets, cases[i].set != NULL);
        const struct reward_settings *r = &l.s.reward;
        EXPECT(r->score_limit == cases[i].limit, "case %zu: %g", i, r->score_limit);
        EXPECT(cases[i].device ? r->device && !strcmp(r->device, cases[i].device) : !r->device,
               "case %zu: %s", i, r->device);
        settings_free(&l);
    }
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"a file of another verb is named as such", test_other_verb, {0}, 0},
        {"the official file of post-training loads", test_official_rl, {0}, 0},
        {"limit of scores, device of scorers", test_reward_keys, {0}, 0},
        {"the shift must be said; best_of is not for nft", test_shift, {0}, 0},
        {"dropout of the adapters is a share", test_dropout, {0}, 0},
        {"what the algorithm decides is written down, and reads back", test_resolved, {0}, 0},
    };
    log_set_level(LOG_WARN);
    return test_main(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
