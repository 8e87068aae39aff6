/* Which windows are trained on and which are held out (data only, no file).
 *
 * The last `share` of every clip is held out: windows that begin there are for validation, windows
 * that end before it are for training, the few that straddle are neither.
 * Clips that are cut from the same file (same SHA-256) and share source frames form one group, with
 * the clips in between that link them: the last share of the source frames which the group covers
 * is held out, for all of its clips alike. So no source frame is ever on both sides. */
#ifndef DATA_SPLIT_H
#define DATA_SPLIT_H
#include "data/dataset_impl.h"
/* train, valid: room for t->n sample numbers each. */
void split_windows(const struct tables *t, double share, int64_t *train, int64_t *num_train,
                   int64_t *valid, int64_t *num_valid);
#endif
