/* The parts of verb report. */
#ifndef TRAIN_REPORT_H
#define TRAIN_REPORT_H
#include <stdio.h>

#include "train/report_svg.h"
#include "train/runlog.h"

/* Writes <run>/report.html and returns the number of samples on it; stops when run is no run. */
int report_write(const char *run);
/* Pictures and videos of <run>/samples; returns how many there are. */
int report_samples(FILE *out, const char *run);
/* Clips that the data set of this configuration does without; nothing when it cannot be read. */
void report_rejected(FILE *out, const char *config);
void report_charts(FILE *out, const struct runlog *log);
/* ---- post-training ----------------------------------------------------------------------------*/
bool report_is_rl(const struct runlog *log);
/* What keeps the first and the last evaluation from telling about training, as far as is known.
 * prompts: they have others (eval/epoch_N/prompts.json), so their means cannot be compared; key:
 * what decides rewards and has another value in the configurations they ran under, so no rewards
 * can; NULL: nothing. text: "other prompts", "other reward.weights" or both; empty: they can be. */
struct report_change {
    bool prompts;
    const char *key;
    char text[80];
};
struct report_change report_change(const char *run, const struct runlog *log);
void report_rl_tiles(FILE *out, const struct runlog *log, const struct report_change *change);
void report_rl_charts(FILE *out, const struct runlog *log, const struct report_change *change);
/* Videos of <run>/eval, first evaluation and last side by side; returns the number of pairs. */
int report_before_after(FILE *out, const char *run, const struct report_change *change);
/* ---- parts ------------------------------------------------------------------------------------*/
void report_tile(FILE *out, const char *name, const char *value, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
const char *report_number(double v, char out[32]);
const char *report_duration(double seconds, char out[32]);
/* s NULL: nothing. */
void chart_add(struct chart *c, const struct series *s, const char *label, int color,
               enum curve_style style);
/* The curve as measured, faint, under its smooth form. *room keeps the smooth values: free it. */
void chart_add_smooth(struct chart *c, const struct series *s, const char *label, bool median,
                      double **room);
/* A chart without curves is not drawn. */
void chart_put(FILE *out, const struct chart *c);
extern const char report_style[];
#endif
