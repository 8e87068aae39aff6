/* Saving and resuming a training run: the tensors of fsdp and the scalars of the trainer. */
#ifndef TRAIN_RESUME_H
#define TRAIN_RESUME_H
#include "train/trainer.h"
/* Writes <output_dir>/checkpoints/iter_<step>; stops with RC_IO on failure (the checkpoint before
 * is intact then). */
void resume_save(struct trainer *t, const struct loaded_settings *l);
/* By settings.resume: auto, never, or a path. Returns false when the run starts fresh. Structural
 * keys must agree with the checkpoint; every other difference is logged once. */
bool resume_load(struct trainer *t, const struct loaded_settings *l);
#endif
