/* Folds adapters into their base: W + (alpha/r) B A, tensor by tensor (docs/spec/rl.md 2.7). */
#ifndef TRAIN_MERGE_H
#define TRAIN_MERGE_H
#include <stdbool.h>
struct merge_job {
    const char *base, *adapter; /* run, checkpoint folder or its parent */
    const char *out;            /* run folder to make: checkpoints/iter_000000000 in it */
    bool ema;                   /* the averaged adapter */
    bool force_base;            /* although the adapter was made for other weights */
};
/* One process. The result opens in `osp sample` and `osp train` (resume: OUT, which starts at step
 * 0 with new moments); its manifest says what it was made of. Memory: two tensors at a time. Stops
 * with the reason when something does not fit. */
void merge_adapter(const struct merge_job *job);
#endif
