/* metrics.jsonl read back: one series per key, as the last start of the run sees it. Lines that a
 * resume has made obsolete are dropped, a cut line is passed over and counted. */
#ifndef TRAIN_RUNLOG_H
#define TRAIN_RUNLOG_H
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
struct series {
    char *key;
    int n, cap;
    double *step, *value; /* ascending steps; value may be NaN or infinite */
    int *start;           /* which start of the run measured it (runlog.start); -1: unknown */
};
struct run_event {
    char *time, *what; /* "resume", "finished", "preempted", "start" */
    int64_t step;
};
struct runlog {
    struct series *series;
    int num_series;
    struct run_event *event;
    int num_events;
    char **start; /* configurations, of every start of the run that told it */
    int num_starts;
    const char *config; /* of the last one; NULL: none */
    int64_t step;       /* largest */
    double wall_s;      /* of the last line */
    char *first_time, *last_time;
    int64_t lines, broken;
};
/* RC_NOINPUT: no such file; RC_DATA: not one line of it can be read. */
bool runlog_load(const char *path, struct runlog *log, struct err *e);
void runlog_free(struct runlog *log);
const struct series *runlog_find(const struct runlog *log, const char *key); /* NULL: none */
double series_last(const struct series *s);                                  /* finite; NaN: none */
double series_first(const struct series *s);
double series_median(const struct series *s);
#endif
