/* The parts of verb report. */
#ifndef TRAIN_REPORT_H
#define TRAIN_REPORT_H
#include <stdio.h>

#include "train/runlog.h"

/* Writes <run>/report.html and returns the number of samples on it; stops when run is no run. */
int report_write(const char *run);
/* Pictures and videos of <run>/samples; returns how many there are. */
int report_samples(FILE *out, const char *run);
/* Clips that the data set of this configuration does without; nothing when it cannot be read. */
void report_rejected(FILE *out, const char *config);
void report_charts(FILE *out, const struct runlog *log);
extern const char report_style[];
#endif
