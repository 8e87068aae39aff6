/* Line charts as inline SVG. Colours are CSS classes (c0 ... c7, faint, limit), so that one chart
 * serves light and dark; report.c has the style sheet. */
#ifndef TRAIN_REPORT_SVG_H
#define TRAIN_REPORT_SVG_H
#include <stdbool.h>
#include <stdio.h>

enum { CHART_CURVES = 16 };
enum curve_style { CURVE_LINE, CURVE_FAINT, CURVE_LIMIT, CURVE_POINTS, CURVE_AREA };
struct curve {
    const char *label; /* NULL: not in the legend */
    const double *x, *y;
    int n, color;
    enum curve_style style;
};
struct chart {
    const char *title, *note;      /* note: small text beside the title; NULL: none */
    const char *y_label, *x_label; /* x_label NULL: step */
    bool log_y, from_zero;
    bool percent; /* y is a share; areas are stacked, 0 to 100 % */
    struct curve curve[CHART_CURVES];
    int n;
};
void svg_chart(FILE *out, const struct chart *c);
/* Text with &, <, > and quotes escaped. */
void html_text(FILE *out, const char *s);
void html_link(FILE *out, const char *path); /* for href: relative, percent-encoded */
/* "12.3k", "4.56M": three digits and an SI letter. */
const char *si_number(double v, char out[32]);
/* Mean and median over neighbours, wider for longer curves: 1/40 of the points to each side, at
 * most 100. The mean is for losses, whose noise has to be averaged; the median ignores spikes. */
void smooth(double *out, const double *in, int n);
void running_median(double *out, const double *in, int n);
#endif
