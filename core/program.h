/* Files that come with the program (scripts/), found whatever the working directory is. */
#ifndef CORE_PROGRAM_H
#define CORE_PROGRAM_H
#include "core/err.h"
/* The folder that holds the scripts/ of this program; malloc'ed. NULL: there is none. */
char *program_tree(void);
/* An absolute path as it is; another one from the working directory or, where that does not exist,
 * below program_tree(). malloc'ed. NULL: neither exists; e (RC_NOINPUT) has the key and all paths
 * that were tried. */
char *program_find(const char *key, const char *path, struct err *e);
#endif
