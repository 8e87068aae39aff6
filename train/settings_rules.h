/* Rules between the keys of a configuration; those of one key alone are in its row of the schema.
 */
#ifndef TRAIN_SETTINGS_RULES_H
#define TRAIN_SETTINGS_RULES_H
#include <stdio.h>

#include "train/settings.h"

/* Writes a line per problem, "file:line:column: key: what", and returns how many there are. */
int settings_judge(const struct loaded_settings *l, FILE *report);
int settings_judge_ranks(const struct loaded_settings *l, int ranks, FILE *report);
#endif
