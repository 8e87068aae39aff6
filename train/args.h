/* Command line of a verb: `osp VERB CONFIG [key=value ...] [--flag ...]`. Flags are actions, not
 * settings; anything with '=' that does not start with '-' is an override. */
#ifndef TRAIN_ARGS_H
#define TRAIN_ARGS_H
#include <stdbool.h>
struct args {
    const char *config; /* first plain argument; NULL: none */
    char **sets;
    int num_sets;
    char **rest; /* further plain arguments */
    int num_rest;
    bool print_config, help_config, help, check_comm, json, verify, forward, ema, force_base, force,
        raw;
};
/* usage: shown for --help and with a wrong flag (exit 64). */
void args_parse(struct args *a, int argc, char **argv, const char *usage);
/* Stops on a word that is no key=value, naming it: for verbs that take one file. */
void args_no_rest(const struct args *a, const char *usage);
void args_free(struct args *a);
#endif
