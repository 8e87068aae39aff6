/* Verb report: one self-contained page of a run. No network, no scripts. */
#include "train/report.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "train/args.h"
#include "train/report_svg.h"
#include "train/verbs.h"

static const char usage[] =
    "osp report RUN\n"
    "Writes RUN/report.html from RUN/metrics.jsonl, RUN/samples and, of post-training, RUN/eval:\n"
    "one file with curves, samples and configuration, to be opened in any browser.";

void report_tile(FILE *out, const char *name, const char *value, const char *fmt, ...)
{
    fprintf(out, "<div class=tile><span>%s</span><b>%s</b><small>", name, value);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(out, fmt, ap);
    va_end(ap);
    fprintf(out, "</small></div>\n");
}

const char *report_number(double v, char out[32])
{
    snprintf(out, 32, isfinite(v) ? "%.4g" : "–", v);
    return out;
}

const char *report_duration(double s, char out[32])
{
    const long t = isfinite(s) && s > 0 ? lround(s) : 0;
    if (t >= 3600)
        snprintf(out, 32, "%ld h %02ld min", t / 3600, t / 60 % 60);
    else if (t >= 60)
        snprintf(out, 32, "%ld min %02ld s", t / 60, t % 60);
    else
        snprintf(out, 32, isfinite(s) ? "%.3g s" : "–", s);
    return out;
}

/* start -> end, and what part of the start is left. */
static void loss_tile(FILE *out, const struct runlog *l, const char *name, const char *key)
{
    const struct series *s = runlog_find(l, key);
    char from[32], to[32];
    if (!s) return;
    const double a = series_first(s), b = series_last(s);
    report_number(a, from);
    if (isfinite(a) && isfinite(b) && a > 0)
        report_tile(out, name, report_number(b, to), "%s → %s (× %.3g)", from, to, b / a);
    else
        report_tile(out, name, report_number(b, to), "from %s", from);
}

/* The end of the smoothed curve: a single value of the loss is noise. */
static void train_loss_tile(FILE *out, const struct runlog *l)
{
    const struct series *s = runlog_find(l, "train/loss");
    if (!s) return;
    double *v = malloc((size_t)s->n * sizeof *v);
    CHECK(v, "out of memory");
    smooth(v, s->value, s->n);
    char from[32], to[32];
    report_number(v[0], from);
    report_number(v[s->n - 1], to);
    report_tile(out, "Training loss (smoothed)", to, "%s → %s (× %.3g)", from, to,
                v[s->n - 1] / v[0]);
    free(v);
}

static int count_events(const struct runlog *l, const char *what)
{
    int n = 0;
    for (int i = 0; i < l->num_events; i++) n += strcmp(l->event[i].what, what) == 0;
    return n;
}

static void tiles(FILE *out, const struct runlog *l)
{
    char a[32], b[32];
    const struct series *tokens = runlog_find(l, "speed/tokens_per_s");
    const struct series *flops = runlog_find(l, "speed/flops_per_s");
    const double skipped = series_last(runlog_find(l, "train/skipped_steps"));
    const int resumes = count_events(l, "resume");
    fprintf(out, "<div class=tiles>\n");
    snprintf(a, sizeof a, "%lld", (long long)l->step);
    report_tile(out, "Steps", a, "%d resume%s", resumes, resumes == 1 ? "" : "s");
    train_loss_tile(out, l);
    loss_tile(out, l, "Validation, weights", "validation/raw/loss");
    loss_tile(out, l, "Validation, EMA", "validation/ema/loss");
    if (tokens)
        report_tile(out, "Tokens per second", si_number(series_median(tokens), a),
                    "median; last %s", si_number(series_last(tokens), b));
    if (flops)
        report_tile(out, "Model FLOP/s", si_number(series_median(flops), a), "median, all ranks");
    report_tile(out, "Skipped steps", report_number(isfinite(skipped) ? skipped : 0, a),
                "loss or norm not finite");
    report_tile(out, "Training time", report_duration(l->wall_s, a), "%s per step",
                report_duration(series_median(runlog_find(l, "speed/step_s")), b));
    fprintf(out, "</div>\n");
}

static void head(FILE *out, const char *name, const struct runlog *l)
{
    const char *last = l->num_events ? l->event[l->num_events - 1].what : "";
    const bool done = strcmp(last, "finished") == 0, stopped = strcmp(last, "preempted") == 0;
    fprintf(out, "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
                 "<meta name=viewport content=\"width=device-width,initial-scale=1\"><title>");
    html_text(out, name);
    fprintf(out, " – training report</title>\n<style>\n%s</style></head>\n", report_style);
    fprintf(out, "<body><main><header><h1>");
    html_text(out, name);
    fprintf(out, "</h1><span class=\"badge%s\">%s</span></header>\n<p class=sub>",
            done ? " ok" : "",
            done      ? "finished"
            : stopped ? "stopped early, can be resumed"
                      : "running, or ended without notice");
    html_text(out, l->first_time ? l->first_time : "");
    fprintf(out, " – ");
    html_text(out, l->last_time ? l->last_time : "");
    fprintf(out, "</p>\n");
}

static void events(FILE *out, const struct runlog *l)
{
    if (l->num_events == 0) return;
    fprintf(out, "<h2>Events</h2><div class=scroll><table><tr><th>time<th>event<th>step\n");
    for (int i = 0; i < l->num_events; i++) {
        fprintf(out, "<tr><td>");
        html_text(out, l->event[i].time);
        fprintf(out, "<td>");
        html_text(out, l->event[i].what);
        fprintf(out, "<td>%lld\n", (long long)l->event[i].step);
    }
    fprintf(out, "</table></div>\n");
}

/* config.yaml says where every value came from; the log has the text without that. */
static void configuration(FILE *out, const char *run, const struct runlog *l)
{
    char *path = io_path("%s/config.yaml", run);
    struct err e = {0};
    char *text = io_exists(path) ? io_read_file(path, NULL, &e) : NULL;
    err_raise(&e);
    const char *config = text ? text : l->config;
    report_rejected(out, config);
    if (config) {
        fprintf(out, "<h2>Configuration</h2><div class=scroll><pre>");
        html_text(out, config);
        fprintf(out, "</pre></div>\n");
    }
    free(text);
    free(path);
}

/* The last part of a path, without slashes at its end. malloc'ed. */
static char *name_of(const char *run)
{
    char *full = realpath(run, NULL), *name = NULL;
    if (full && strrchr(full, '/')) name = strdup(strrchr(full, '/') + 1);
    free(full);
    return name && name[0] ? name : io_path("%s", run);
}

int report_write(const char *run)
{
    char *lines = io_path("%s/metrics.jsonl", run), *page = io_path("%s/report.html", run);
    struct runlog log;
    struct err e = {0};
    if (!io_exists(run)) err_stop(RC_NOINPUT, "%s: no such folder", run);
    if (!io_exists(lines))
        err_stop(RC_NOINPUT, "%s: no metrics.jsonl here (is it the output_dir of a run?)", run);
    runlog_load(lines, &log, &e);
    err_raise(&e);
    char *text = NULL, *name = name_of(run);
    size_t n;
    FILE *out = open_memstream(&text, &n);
    CHECK(out, "out of memory");
    head(out, name, &log);
    const bool rl = report_is_rl(&log);
    const struct report_change change = report_change(run, &log);
    if (rl) {
        report_rl_tiles(out, &log, &change);
        report_rl_charts(out, &log, &change);
    } else {
        tiles(out, &log);
        report_charts(out, &log);
    }
    const int samples = report_before_after(out, run, &change) + report_samples(out, run);
    events(out, &log);
    configuration(out, run, &log);
    fprintf(out, "<footer>%lld lines of metrics", (long long)log.lines);
    if (log.broken) fprintf(out, "; %lld could not be read", (long long)log.broken);
    fprintf(out,
            ". All numbers of the curves are in metrics.jsonl.</footer></main></body></html>\n");
    CHECK(fclose(out) == 0, "out of memory");
    io_write_file(page, text, n, &e);
    err_raise(&e);
    free(text);
    free(name);
    runlog_free(&log);
    free(page);
    free(lines);
    return samples;
}

int verb_report(int argc, char **argv)
{
    struct args a;
    args_parse(&a, argc, argv, usage);
    if (!a.config || a.num_rest || a.num_sets) err_stop(RC_USAGE, "%s", usage);
    report_write(a.config);
    printf("%s/report.html\n", a.config);
    args_free(&a);
    return RC_OK;
}
