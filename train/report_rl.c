/* The page of a post-training run: tiles and curves over epochs. Keys: docs/rl.md. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/config.h"
#include "core/err.h"
#include "core/io.h"
#include "train/captions.h"
#include "train/report.h"

enum { COLOURS = 8, NAME = 48 };

bool report_is_rl(const struct runlog *l)
{
    return runlog_find(l, "reward/mean") || runlog_find(l, "eval/reward_mean");
}

/* ---- evaluations ------------------------------------------------------------------------------*/
/* The first finite value (by: 1) or the last (by: -1); its index, -1: none. */
static int finite_from(const struct series *s, int i, int by)
{
    while (i >= 0 && i < s->n && !isfinite(s->value[i])) i += by;
    return i < s->n ? i : -1;
}

/* The first key of these that the two configurations have other values of; NULL: none is known. */
static const char *changed_key(const char *a, const char *b, const char *const *key)
{
    for (; *key; key++) {
        char *x = cfg_line_of(a, *key), *y = cfg_line_of(b, *key);
        const bool other = x && y && strcmp(x, y);
        free(x);
        free(y);
        if (other) return *key;
    }
    return NULL;
}

struct report_change report_change(const char *run, const struct runlog *l)
{
    static const char *const keys[] = {"reward.weights",
                                       "reward.command",
                                       "reward.videoalign_dir",
                                       "reward.model_dir",
                                       "reward.template",
                                       "reward.profile",
                                       "rl_config.height",
                                       "rl_config.width",
                                       "rl_config.num_frames",
                                       "rl_config.eval_num_steps",
                                       "rl_config.guidance_scale",
                                       "rl.shift",
                                       "rl.negative_prompt",
                                       "seed",
                                       NULL};
    static const char *const file[] = {"rl_config.eval_prompt_file", NULL};
    const struct series *s = runlog_find(l, "eval/reward_mean");
    const int a = s ? finite_from(s, 0, 1) : -1, b = s ? finite_from(s, s->n - 1, -1) : -1;
    struct report_change is = {0};
    if (a < 0 || a == b) return is;
    char *first = io_path("%s/eval/epoch_%06lld", run, (long long)s->step[a]);
    char *last = io_path("%s/eval/epoch_%06lld", run, (long long)s->step[b]);
    const enum captions_prompts prompts = captions_compare(first, last);
    free(first);
    free(last);
    is.prompts = prompts == PROMPTS_DIFFER;
    if (s->start[a] >= 0 && s->start[b] >= 0) {
        const char *was = l->start[s->start[a]], *now = l->start[s->start[b]];
        is.key = changed_key(was, now, keys);
        if (!is.key && prompts == PROMPTS_UNKNOWN) is.key = changed_key(was, now, file);
    }
    snprintf(is.text, sizeof is.text, "%s%s%s%s", is.prompts ? "other prompts" : "",
             is.prompts && is.key ? ", " : "", is.key ? "other " : "", is.key ? is.key : "");
    return is;
}

/* ---- tiles ------------------------------------------------------------------------------------*/
static void evaluation_tile(FILE *out, const struct runlog *l, const struct report_change *change)
{
    const struct series *mean = runlog_find(l, "eval/reward_mean");
    const double std = series_first(runlog_find(l, "eval/reward_std"));
    const double a = series_first(mean), b = series_last(mean);
    char to[32];
    if (!mean) return;
    report_number(b, to);
    if (*change->text)
        report_tile(out, "Evaluation reward", to, "not comparable with the first, %.4g: %s", a,
                    change->text);
    else if (mean->n > 1 && std > 0)
        report_tile(out, "Evaluation reward", to, "%.4g → %.4g: %+.2f standard deviations", a, b,
                    (b - a) / std);
    else
        report_tile(out, "Evaluation reward", to, "of the weights it began with: %.4g", a);
}

static void last_tile(FILE *out, const struct runlog *l, const char *name, const char *key,
                      const char *note)
{
    char v[32];
    const struct series *s = runlog_find(l, key);
    if (s) report_tile(out, name, report_number(series_last(s), v), "%s", note);
}

void report_rl_tiles(FILE *out, const struct runlog *l, const struct report_change *change)
{
    char a[32], b[32];
    fprintf(out, "<div class=tiles>\n");
    snprintf(a, sizeof a, "%lld", (long long)l->step);
    report_tile(out, "Epochs", a, "%s optimizer steps",
                report_number(series_last(runlog_find(l, "update/optimizer_steps")), b));
    evaluation_tile(out, l, change);
    last_tile(out, l, "Reward of the samples", "reward/mean", "last epoch");
    last_tile(out, l, "KL from the base", "update/kl", "last epoch, per element of a sample");
    last_tile(out, l, "Clipped ratios", "update/clip_fraction", "share, last epoch");
    last_tile(out, l, "Skipped steps", "update/skipped_steps", "loss or norm not finite");
    double epoch = 0;
    static const char *const parts[] = {"time/rollout_s", "time/decode_s", "time/reward_wait_s",
                                        "time/update_s"};
    for (int i = 0; i < 4; i++) {
        const double v = series_median(runlog_find(l, parts[i]));
        epoch += isfinite(v) ? v : 0;
    }
    report_tile(out, "Time", report_duration(l->wall_s, a), "%s per epoch",
                report_duration(epoch, b));
    fprintf(out, "</div>\n");
}

/* ---- curves -----------------------------------------------------------------------------------*/
static void reward(FILE *out, const struct runlog *l)
{
    struct chart c = {.title = "Reward of the samples",
                      .note = "mean over an epoch; prompts differ between epochs",
                      .y_label = "reward",
                      .x_label = "epoch"};
    double *room;
    chart_add_smooth(&c, runlog_find(l, "reward/mean"), "mean", false, &room);
    chart_add(&c, runlog_find(l, "reward/max"), "best", 2, CURVE_FAINT);
    chart_add(&c, runlog_find(l, "reward/min"), "worst", 3, CURVE_FAINT);
    chart_put(out, &c);
    free(room);
}

static void spread(FILE *out, const struct runlog *l)
{
    struct chart c = {.title = "Spread of the reward",
                      .note = "standard deviations",
                      .y_label = "deviation",
                      .x_label = "epoch",
                      .from_zero = true};
    chart_add(&c, runlog_find(l, "reward/std"), "all samples", 0, CURVE_LINE);
    chart_add(&c, runlog_find(l, "reward/std_within_groups"), "within groups", 1, CURVE_LINE);
    chart_add(&c, runlog_find(l, "reward/std_between_groups"), "between groups", 2, CURVE_LINE);
    chart_put(out, &c);
}

/* All series prefix NAME suffix, in the order of the log; the name is the label. */
static void family(FILE *out, const struct runlog *l, struct chart c, const char *prefix,
                   const char *suffix, int colour, enum curve_style style)
{
    char label[CHART_CURVES][NAME];
    const size_t p = strlen(prefix), q = strlen(suffix);
    int total = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < l->num_series && c.n < CHART_CURVES; i++) {
            const struct series *s = &l->series[i];
            const size_t n = strlen(s->key);
            if (s->n == 0 || n <= p + q || strncmp(s->key, prefix, p) ||
                strcmp(s->key + n - q, suffix))
                continue;
            const char *name = s->key + p;
            if (memchr(name, '/', n - p - q) || strncmp(name, "reward_", 7) == 0 ||
                strcmp(name, "samples") == 0)
                continue;
            if (pass == 0) {
                total++;
                continue;
            }
            snprintf(label[c.n], NAME, "%.*s", (int)(n - p - q), name);
            const int shade = colour < 10 ? c.n % 4
                              : total > 1 ? colour + c.n * (COLOURS - 1) / (total - 1)
                                          : colour;
            chart_add(&c, s, label[c.n], shade, style);
        }
    chart_put(out, &c);
}

static void evaluation(FILE *out, const struct runlog *l, const struct report_change *change)
{
    char note[128] = "fixed prompts and noise, averaged adapters";
    if (*change->text)
        snprintf(note, sizeof note, "averaged adapters; the last has %s than the first",
                 change->text);
    struct chart c = {.title = "Evaluation", .note = note, .y_label = "reward", .x_label = "epoch"};
    chart_add(&c, runlog_find(l, "eval/reward_mean"), "reward", 0, CURVE_POINTS);
    chart_put(out, &c);
    family(
        out, l,
        (struct chart){.title = "Evaluation by dimension", .y_label = "score", .x_label = "epoch"},
        "eval/", "", 0, CURVE_POINTS);
}

static void divergence(FILE *out, const struct runlog *l)
{
    struct chart c = {.title = "KL from the base",
                      .note = "mean over trained steps, per element",
                      .y_label = "KL",
                      .x_label = "epoch",
                      .from_zero = true};
    chart_add(&c, runlog_find(l, "update/kl"), NULL, 0, CURVE_LINE);
    chart_put(out, &c);
    family(out, l,
           (struct chart){.title = "Distance of the velocity from the base by step",
                          .note = "root mean square",
                          .y_label = "distance",
                          .x_label = "epoch"},
           "update/velocity_gap/", "", 10, CURVE_LINE);
}

static void ratios(FILE *out, const struct runlog *l)
{
    struct chart c = {.title = "Clipped ratios",
                      .note = "share of the terms outside of the clip range",
                      .y_label = "share",
                      .x_label = "epoch",
                      .from_zero = true};
    chart_add(&c, runlog_find(l, "update/clip_fraction"), NULL, 1, CURVE_LINE);
    chart_put(out, &c);
    family(out, l,
           (struct chart){.title = "Largest |ln ratio| by step",
                          .note = "logarithmic",
                          .y_label = "|ln ratio|",
                          .x_label = "epoch",
                          .log_y = true},
           "update/max_log_ratio/", "", 10, CURVE_LINE);
}

static void optimizer(FILE *out, const struct runlog *l)
{
    struct chart g = {.title = "Gradient norm",
                      .note = "mean over the optimizer steps of an epoch, before clipping",
                      .y_label = "norm",
                      .x_label = "epoch",
                      .log_y = true};
    double *room;
    chart_add_smooth(&g, runlog_find(l, "update/grad_norm"), "norm", true, &room);
    chart_put(out, &g);
    free(room);
    struct chart a = {
        .title = "Adapter norms", .y_label = "norm", .x_label = "epoch", .from_zero = true};
    chart_add(&a, runlog_find(l, "adapter/norm_A"), "A", 0, CURVE_LINE);
    chart_add(&a, runlog_find(l, "adapter/norm_B"), "B", 1, CURVE_LINE);
    chart_put(out, &a);
}

/* Seconds of the parts of an epoch as shares; epochs where one is not finite count as nothing. */
static void time_split(FILE *out, const struct runlog *l)
{
    static const char *const key[] = {"time/rollout_s", "time/decode_s", "time/reward_wait_s",
                                      "time/update_s"};
    static const char *const name[] = {"rollout", "decode", "reward wait", "update"};
    struct chart c = {.title = "Where the time goes",
                      .note = "share of an epoch",
                      .y_label = "share",
                      .x_label = "epoch",
                      .percent = true};
    double *share[4] = {0};
    const struct series *s[4];
    for (int k = 0; k < 4; k++) {
        s[k] = runlog_find(l, key[k]);
        if (!s[k] || s[k]->n != s[0]->n) return;
    }
    for (int k = 0; k < 4; k++) {
        share[k] = calloc((size_t)s[0]->n, sizeof **share);
        CHECK(share[k], "out of memory");
        for (int i = 0; i < s[0]->n; i++) {
            const double all = s[0]->value[i] + s[1]->value[i] + s[2]->value[i] + s[3]->value[i];
            share[k][i] = all > 0 ? s[k]->value[i] / all : 0;
        }
        c.curve[c.n++] = (struct curve){name[k], s[0]->step, share[k], s[0]->n, k, CURVE_AREA};
    }
    chart_put(out, &c);
    for (int k = 0; k < 4; k++) free(share[k]);
}

void report_rl_charts(FILE *out, const struct runlog *l, const struct report_change *change)
{
    fprintf(out, "<h2>Reward</h2><div class=charts>\n");
    evaluation(out, l, change);
    reward(out, l);
    family(out, l,
           (struct chart){.title = "Scores by dimension",
                          .note = "mean over an epoch",
                          .y_label = "score",
                          .x_label = "epoch"},
           "reward/", "/mean", 0, CURVE_LINE);
    spread(out, l);
    fprintf(out, "</div>\n<h2>Updates</h2><div class=charts>\n");
    divergence(out, l);
    ratios(out, l);
    optimizer(out, l);
    time_split(out, l);
    fprintf(out, "</div>\n");
}
