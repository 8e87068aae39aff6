/* Verb data, and the data set of a training run: built from its source when it is not there. */
#ifndef TRAIN_BUILD_H
#define TRAIN_BUILD_H
#include "data/dataset.h"
#include "parallel/comm.h"
#include "train/settings.h"
/* Rank 0 builds when the file is missing and a source is given; then all ranks open it. */
struct dataset *build_or_open(struct comm *world, const struct settings *s);
#endif
