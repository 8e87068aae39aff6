#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "train/args.h"
#include "train/print_config.h"
#include "train/verbs.h"

static const char usage[] =
    "osp print-config [VERB] CONFIG [key=value ...]\n"
    "VERB: train, data, sample, plan or rl; default: the one whose keys the file has.\n"
    "The effective configuration as YAML, with the origin of every value. --help-config: all keys.";

int print_config(enum settings_verb verb, const struct args *a)
{
    if (a->help_config) {
        int n;
        const struct cfg_field *schema = settings_schema(verb, &n);
        char *text = cfg_help(schema, n);
        fputs(text, stdout);
        free(text);
        return RC_OK;
    }
    if (!a->config) err_stop(RC_USAGE, "%s", usage);
    struct loaded_settings l;
    settings_load(&l, verb, a->config, a->sets, a->num_sets);
    char *text = settings_text(&l, true);
    fputs(text, stdout);
    free(text);
    settings_free(&l);
    return RC_OK;
}

int verb_print_config(int argc, char **argv)
{
    static const char *const names[] = {"train", "data", "sample", "plan", "rl"};
    static const enum settings_verb verbs[] = {SETTINGS_TRAIN, SETTINGS_DATA, SETTINGS_SAMPLE,
                                               SETTINGS_PLAN, SETTINGS_RL};
    enum settings_verb verb = SETTINGS_TRAIN;
    bool named = false;
    for (int i = 0; argc > 0 && i < 5 && !named; i++) {
        named = strcmp(argv[0], names[i]) == 0;
        if (named) verb = verbs[i];
    }
    struct args a;
    args_parse(&a, argc - named, argv + named, usage);
    if (!named && a.config) verb = settings_nearest(verb, a.config);
    const int rc = print_config(verb, &a);
    args_free(&a);
    return rc;
}

void config_log_changes(const struct loaded_settings *l, const char *then)
{
    if (!then) return;
    char *text = settings_text(l, false);
    struct cfg_line now = {.text = text};
    while (cfg_next_line(&now)) {
        char *was = cfg_line_of(then, now.key);
        if (!was)
            log_info("changed since the checkpoint: %s: not known then, now %.*s", now.key, now.len,
                     now.value);
        else if (strlen(was) != (size_t)now.len || strncmp(was, now.value, (size_t)now.len))
            log_info("changed since the checkpoint: %s: %s, now %.*s", now.key, was, now.len,
                     now.value);
        free(was);
    }
    free(text);
}
