/* What a scorer is started from, looked for before anything is built: its program and, for
 * VideoAlign, the files of its folders (docs/reward.md). */
#ifndef RL_SCORER_FILES_H
#define RL_SCORER_FILES_H
#include <stdbool.h>

#include "core/err.h"
#include "rl/config.h"
/* The command line of the scorer with whole paths: its program, where that has a slash, and its
 * script (the first word that ends in .py) may be given from the working directory or from the
 * folder of the program's tree. malloc'ed. NULL: e (RC_NOINPUT) has the key and both paths. */
char *scorer_command(const struct reward_settings *r, struct err *e);
/* False: e (RC_NOINPUT) has the key and the first file that is missing. */
bool scorer_files(const struct reward_settings *r, struct err *e);
#endif
