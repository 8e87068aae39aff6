#include "rl/scorer_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "core/program.h"
#include "rl/reward_spawn.h"

/* ---- the command line -------------------------------------------------------------------------*/
enum { WORDS = 256 };

static bool ends_in(const char *word, const char *with)
{
    const size_t n = strlen(word), m = strlen(with);
    return n >= m && strcmp(word + n - m, with) == 0;
}

/* Appends a word so that spawner_words reads it back: in '...' where it must be, a ' of its own in
 * "...". */
static void add_word(FILE *f, const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "_-./=:,+@%";
    if (*word && !word[strspn(word, plain)]) {
        fputs(word, f);
        return;
    }
    fputs("'", f);
    for (; *word; word++) fputs(*word == '\'' ? "'\"'\"'" : (char[]){*word, 0}, f);
    fputs("'", f);
}

/* Is word i a script? "must": the script of a Python, which cannot run without it; anything else
 * that looks like one (in a container, in a line for sh) is only looked for. */
static bool is_script(char **word, int i, bool *must)
{
    const char *slash = strrchr(word[0], '/'), *name = slash ? slash + 1 : word[0];
    *must = strncmp(name, "python", 6) == 0;
    for (int k = 1; k < i; k++) {
        *must &= word[k][0] == '-';
        if (strcmp(word[k], "-c") == 0 || strcmp(word[k], "-m") == 0) return false;
    }
    return i > 0 && ends_in(word[i], ".py") && !strpbrk(word[i], " \t\n");
}

/* The words of the command, two of them with whole paths. */
static char *join(char **word, int n, struct err *e)
{
    char *line = NULL;
    size_t size;
    FILE *f = open_memstream(&line, &size);
    CHECK(f, "out of memory");
    bool script = false; /* seen */
    for (int i = 0; i < n && !e->code; i++) {
        bool must = true;
        struct err unfound = {0};
        const bool program = i == 0 && strchr(word[i], '/');
        const bool file = !script && !program && is_script(word, i, &must);
        char *path =
            program || file ? program_find("reward.command", word[i], must ? e : &unfound) : NULL;
        script |= file;
        if (i) fputs(" ", f);
        add_word(f, path ? path : word[i]);
        free(path);
    }
    CHECK(fclose(f) == 0, "out of memory");
    return line;
}

char *scorer_command(const struct reward_settings *r, struct err *e)
{
    const char *asked = r->command ? r->command : "python3 scripts/videoalign_scorer.py";
    char *text = strdup(asked), *word[WORDS];
    CHECK(text, "out of memory");
    const int n = spawner_words(text, word, WORDS);
    /* what cannot be read is refused by reward_open, as it stands */
    char *line = n > 0 ? join(word, n, e) : strdup(asked);
    free(text);
    if (!e->code) return line;
    free(line);
    return NULL;
}

/* ---- the folders ------------------------------------------------------------------------------*/
static bool have(const char *key, const char *path, struct err *e)
{
    if (!path || access(path, R_OK) == 0) return true;
    err_set(e, RC_NOINPUT, "%s: %s: %s", key, path, strerror(errno));
    return false;
}

static bool have_in(const char *key, const char *dir, const char *file, struct err *e)
{
    char *path = io_path("%s/%s", dir, file);
    const bool there = access(path, R_OK) == 0;
    if (!there)
        err_set(e, RC_NOINPUT, "%s: %s: %s (docs/reward.md says which folder each key names)", key,
                path, strerror(errno));
    free(path);
    return there;
}

/* Some entry of dir has a name that ends so. */
static bool any_ends_in(const char *dir, const char *with)
{
    bool any = false;
    DIR *d = opendir(dir);
    for (struct dirent *entry; d && !any && (entry = readdir(d));)
        any = ends_in(entry->d_name, with);
    if (d) closedir(d);
    return any;
}

static bool holds(const char *dir, const char *file)
{
    char *path = io_path("%s/%s", dir, file);
    const bool yes = io_exists(path);
    free(path);
    return yes;
}

/* checkpoint-N of the highest N, which the scorer takes; malloc'ed; NULL: there is none. */
static char *newest_checkpoint(const char *dir)
{
    int64_t newest = -1;
    DIR *d = opendir(dir);
    for (struct dirent *entry; d && (entry = readdir(d));) {
        long long n;
        int end = 0;
        if (sscanf(entry->d_name, "checkpoint-%lld%n", &n, &end) == 1 && !entry->d_name[end] &&
            n > newest)
            newest = n;
    }
    if (d) closedir(d);
    return newest < 0 ? NULL : io_path("%s/checkpoint-%lld", dir, (long long)newest);
}

/* As weight_files of scripts/videoalign_rules.py. */
static bool have_weights(const struct reward_settings *r, struct err *e)
{
    char *checkpoint = newest_checkpoint(r->videoalign_dir);
    if (!any_ends_in(r->model_dir, ".safetensors"))
        err_set(e, RC_NOINPUT, "reward.model_dir: %s has no *.safetensors (docs/reward.md)",
                r->model_dir);
    else if (!holds(r->model_dir, "tokenizer.json") && !holds(r->model_dir, "vocab.json") &&
             !(checkpoint && holds(checkpoint, "tokenizer")))
        err_set(e, RC_NOINPUT, "reward.model_dir: %s has no tokenizer.json (docs/reward.md)",
                r->model_dir);
    else if (!checkpoint)
        err_set(e, RC_NOINPUT, "reward.videoalign_dir: %s has no folder checkpoint-N",
                r->videoalign_dir);
    else if (!holds(checkpoint, "model.safetensors") &&
             !(holds(checkpoint, "adapter_model.safetensors") &&
               holds(checkpoint, "non_lora_state_dict.safetensors")))
        err_set(e, RC_NOINPUT,
                "reward.videoalign_dir: %s has neither model.safetensors nor "
                "adapter_model.safetensors with non_lora_state_dict.safetensors; a model.pth is "
                "converted once: python3 scripts/videoalign_convert.py %s",
                checkpoint, checkpoint);
    free(checkpoint);
    return !e->code;
}

bool scorer_files(const struct reward_settings *r, struct err *e)
{
    const bool own = r->template_dir != NULL;
    if (!have("reward.videoalign_dir", r->videoalign_dir, e) ||
        !have("reward.model_dir", r->model_dir, e) || !have("reward.template", r->template_dir, e))
        return false;
    if (r->command) return true;
    return have_in(own ? "reward.template" : "reward.videoalign_dir (reward.template is not given)",
                   own ? r->template_dir : r->videoalign_dir, "prompt_template.py", e) &&
           have_in("reward.videoalign_dir", r->videoalign_dir, "model_config.json", e) &&
           have_in("reward.model_dir", r->model_dir, "config.json", e) && have_weights(r, e);
}
