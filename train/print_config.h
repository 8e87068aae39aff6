/* `osp print-config`, and --print-config and --help-config of the other verbs. */
#ifndef TRAIN_PRINT_CONFIG_H
#define TRAIN_PRINT_CONFIG_H
#include "train/args.h"
#include "train/settings.h"
int print_config(enum settings_verb verb, const struct args *a);
/* Logs each key of the effective configuration whose value differs from that in `then`, an earlier
 * one of the same verb (NULL: nothing is known). */
void config_log_changes(const struct loaded_settings *l, const char *then);
#endif
