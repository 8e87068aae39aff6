/* Which curves the page of a run shows. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "train/report.h"
#include "train/report_svg.h"

enum { SIGMA_COLOURS = 8 };

void chart_add(struct chart *c, const struct series *s, const char *label, int color,
               enum curve_style style)
{
    if (!s || c->n == CHART_CURVES) return;
    c->curve[c->n++] = (struct curve){label, s->step, s->value, s->n, color, style};
}

void chart_add_smooth(struct chart *c, const struct series *s, const char *label, bool median,
                      double **room)
{
    *room = NULL;
    if (!s) return;
    if (s->n < 8) {
        chart_add(c, s, label, 0, CURVE_LINE);
        return;
    }
    *room = malloc((size_t)s->n * sizeof **room);
    CHECK(*room, "out of memory");
    (median ? running_median : smooth)(*room, s->value, s->n);
    chart_add(c, s, label, 0, CURVE_FAINT);
    c->curve[c->n++] = (struct curve){
        median ? "running median" : "running mean", s->step, *room, s->n, 0, CURVE_LINE};
}

void chart_put(FILE *out, const struct chart *c)
{
    if (c->n) svg_chart(out, c);
}

static void loss(FILE *out, const struct runlog *l)
{
    struct chart c = {
        .title = "Training loss", .note = "logarithmic", .y_label = "loss", .log_y = true};
    double *room;
    chart_add_smooth(&c, runlog_find(l, "train/loss"), "per log interval", false, &room);
    chart_put(out, &c);
    free(room);
}

static void validation(FILE *out, const struct runlog *l)
{
    struct chart c = {.title = "Validation loss", .note = "held-out windows", .y_label = "loss"};
    chart_add(&c, runlog_find(l, "validation/raw/loss"), "weights", 1, CURVE_POINTS);
    chart_add(&c, runlog_find(l, "validation/ema/loss"), "EMA of the weights", 0, CURVE_POINTS);
    chart_put(out, &c);
}

/* Buckets of sigma, from little noise (dark) to much. */
static void sigma(FILE *out, const struct runlog *l)
{
    const char *which = runlog_find(l, "validation/ema/loss") ? "ema" : "raw";
    char prefix[64], label[CHART_CURVES][48];
    snprintf(prefix, sizeof prefix, "validation/%s/sigma_", which);
    int total = 0, k = 0;
    for (int i = 0; i < l->num_series; i++)
        total += l->series[i].n > 0 && strncmp(l->series[i].key, prefix, strlen(prefix)) == 0;
    struct chart c = {.title = "Validation loss by noise level",
                      .y_label = "loss",
                      .log_y = true,
                      .note = strcmp(which, "ema") ? "sigma 0: clean, 1: noise; weights"
                                                   : "sigma 0: clean, 1: noise; EMA"};
    for (int i = 0; i < l->num_series && c.n < CHART_CURVES; i++) {
        const struct series *s = &l->series[i];
        if (s->n == 0 || strncmp(s->key, prefix, strlen(prefix))) continue;
        snprintf(label[c.n], sizeof label[0], "σ %.40s", s->key + strlen(prefix));
        const int colour = total > 1 ? k * (SIGMA_COLOURS - 1) / (total - 1) : 0;
        chart_add(&c, s, label[c.n], 10 + colour, CURVE_POINTS);
        k++;
    }
    chart_put(out, &c);
}

static void gradients(FILE *out, const struct runlog *l)
{
    struct chart c = {
        .title = "Gradient norm", .note = "before clipping", .y_label = "norm", .log_y = true};
    double *room;
    chart_add_smooth(&c, runlog_find(l, "train/grad_norm"), "norm", true, &room);
    chart_add(&c, runlog_find(l, "train/clip_limit"), "clip limit", 3, CURVE_LIMIT);
    chart_put(out, &c);
    free(room);
}

static void single(FILE *out, const struct runlog *l, const char *key, struct chart c, int colour)
{
    chart_add(&c, runlog_find(l, key), NULL, colour, CURVE_LINE);
    chart_put(out, &c);
}

static void time_split(FILE *out, const struct runlog *l)
{
    struct chart c = {.title = "Where the time goes",
                      .note = "share of a step",
                      .y_label = "share",
                      .percent = true};
    chart_add(&c, runlog_find(l, "speed/compute_share"), "compute", 0, CURVE_AREA);
    chart_add(&c, runlog_find(l, "speed/comm_share"), "communication", 1, CURVE_AREA);
    chart_add(&c, runlog_find(l, "speed/data_share"), "data", 2, CURVE_AREA);
    if (c.n == 3) svg_chart(out, &c);
}

void report_charts(FILE *out, const struct runlog *l)
{
    fprintf(out, "<h2>Learning</h2><div class=charts>\n");
    loss(out, l);
    validation(out, l);
    sigma(out, l);
    gradients(out, l);
    fprintf(out, "</div>\n<h2>Schedule and speed</h2><div class=charts>\n");
    single(out, l, "train/lr",
           (struct chart){.title = "Learning rate", .y_label = "rate", .from_zero = true}, 2);
    single(
        out, l, "speed/tokens_per_s",
        (struct chart){
            .title = "Throughput", .note = "all ranks", .y_label = "tokens / s", .from_zero = true},
        0);
    single(out, l, "speed/step_s",
           (struct chart){.title = "Time of a step", .y_label = "seconds", .from_zero = true}, 1);
    time_split(out, l);
    fprintf(out, "</div>\n");
}
