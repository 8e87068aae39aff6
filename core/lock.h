/* One writer per output: a lock file held with flock, which the kernel gives up whatever ends the
 * process. The file names the pid of its owner and is removed when the lock is released; one left
 * behind by a kill is free for the next. */
#ifndef CORE_LOCK_H
#define CORE_LOCK_H
#include <stdbool.h>

#include "core/err.h"
struct lock {
    int fd; /* -1: not held */
    char *path;
};
/* Never waits. False: e says that path cannot be created, or, with e untouched, another owner has
 * it, who is named in holder ("pid 123"). */
bool lock_take(struct lock *l, const char *path, char holder[32], struct err *e);
void lock_release(struct lock *l); /* nothing when it is not held */
#endif
