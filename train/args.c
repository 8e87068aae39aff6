#include "train/args.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"

void args_parse(struct args *a, int argc, char **argv, const char *usage)
{
    memset(a, 0, sizeof *a);
    a->sets = calloc((size_t)argc + 1, sizeof *a->sets);
    a->rest = calloc((size_t)argc + 1, sizeof *a->rest);
    CHECK(a->sets && a->rest, "out of memory");
    const struct {
        const char *name;
        bool *flag;
    } flags[] = {{"--print-config", &a->print_config},
                 {"--help-config", &a->help_config},
                 {"--help", &a->help},
                 {"-h", &a->help},
                 {"--check-comm", &a->check_comm},
                 {"--json", &a->json},
                 {"--verify", &a->verify},
                 {"--forward", &a->forward},
                 {"--ema", &a->ema},
                 {"--force-base", &a->force_base},
                 {"--force", &a->force},
                 {"--raw", &a->raw}};
    for (int i = 0; i < argc; i++) {
        if (argv[i][0] == '-') {
            bool known = false;
            for (size_t k = 0; k < sizeof flags / sizeof *flags; k++)
                if (strcmp(argv[i], flags[k].name) == 0) *flags[k].flag = known = true;
            if (!known) err_stop(RC_USAGE, "unknown flag %s\n%s", argv[i], usage);
        } else if (strchr(argv[i], '=')) {
            a->sets[a->num_sets++] = argv[i];
        } else if (!a->config) {
            a->config = argv[i];
        } else {
            a->rest[a->num_rest++] = argv[i];
        }
    }
    if (a->help) {
        printf("%s\n", usage);
        exit(0);
    }
}

void args_no_rest(const struct args *a, const char *usage)
{
    if (a->num_rest)
        err_stop(RC_USAGE,
                 "\"%s\": expected key=value (one configuration file is given already, %s)\n%s",
                 a->rest[0], a->config, usage);
}

void args_free(struct args *a)
{
    free(a->sets);
    free(a->rest);
}
