/* What a data set was made with, beside what is asked for now. */
#ifndef DATA_DATASET_SAME_H
#define DATA_DATASET_SAME_H
#include <stdio.h>

#include "data/dataset.h"
#include "data/dataset_write.h"
/* A line "\n  KEY: asked, but the data set was made with stored" into out for every difference; the
 * keys are those of osp data behind prefix. Returns how many there are. text_dim 0 and input_hash
 * are not compared. */
int dataset_differs(FILE *out, const struct dataset *d, const struct dataset_spec *asked,
                    const char *prefix);
#endif
