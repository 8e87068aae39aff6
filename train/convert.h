/* What the forms of `osp convert` share. */
#ifndef TRAIN_CONVERT_H
#define TRAIN_CONVERT_H
#include "core/lock.h"
#include "parallel/comm.h"
/* OUT/checkpoints, malloc'ed; stops with RC_CANTCREAT when it holds more than a stopped job leaves
 * behind, or OUT is no run folder but one with checkpoints. */
char *convert_folder(const char *out);
/* Makes OUT and takes the lock that jobs writing there hold, when all is ready to be written. Stops
 * with RC_CANTCREAT when another has it, or dir (of convert_folder) exists by now. The caller
 * releases it. */
struct lock convert_lock(struct comm *world, const char *out, const char *dir);
#endif
