/* What a run leaves for people: metrics.jsonl (one object per line, one write each, docs/spec and
 * README name the keys) and TensorBoard event files. Rank 0 only; on other ranks metrics_open
 * gives NULL and every call does nothing.
 *   <dir>/metrics.jsonl            {"t": RFC 3339 UTC, "step": n, "wall_s": s, key: number, ...};
 *                                  not-a-number and infinities as "nan", "inf", "-inf"; after a
 * resume a line {"event":"resume","from_step":n}: readers drop earlier lines with step >= n
 *   <dir>/tb/events.out.tfevents.* one new file per start; purge record at a resume */
#ifndef TRAIN_METRICS_H
#define TRAIN_METRICS_H
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
struct metrics;
/* last_step: -1 for a fresh run, otherwise the step of the checkpoint the run resumes from: what
 * was written up to it stays, "from_step" is the one after it. */
struct metrics *metrics_open(const char *dir, int rank, int64_t last_step, struct err *e);
void metrics_put(struct metrics *m, const char *key, double value);      /* "train/loss" */
void metrics_text(struct metrics *m, const char *key, const char *text); /* configuration */
/* Writes what was put since the last flush. */
void metrics_flush(struct metrics *m, int64_t step, double wall_s);
void metrics_event(struct metrics *m, const char *event, int64_t step);
/* The same with the time: of work that left no line of its own. */
void metrics_event_at(struct metrics *m, const char *event, int64_t step, double wall_s);
void metrics_close(struct metrics *m);
/* What the lines of a folder say of the run that a checkpoint of this step goes on with; call it
 * before metrics_open. Lines that nobody can read say nothing. */
struct metrics_past {
    double wall_s; /* largest of the run, also of steps that are done again; 0: no line */
    bool has_key;  /* a line of this step that stays holds the key */
};
struct metrics_past metrics_past(const char *dir, int64_t step, const char *key);
#endif
