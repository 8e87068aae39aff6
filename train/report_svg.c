#include "train/report_svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"

enum { WIDTH = 640, HEIGHT = 300, LEFT = 64, RIGHT = 14, TOP = 10, BOTTOM = 44, MOST_POINTS = 900 };
enum { MOST_TICKS = 24, TITLED_POINTS = 120 };
static const double limit_gap = 0.04; /* of the range, above and below the curves */

void html_text(FILE *out, const char *s)
{
    for (; *s; s++) {
        switch (*s) {
        case '&':
            fputs("&amp;", out);
            break;
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc(*s, out);
        }
    }
}

void html_link(FILE *out, const char *path)
{
    for (const unsigned char *c = (const unsigned char *)path; *c; c++) {
        const bool plain = (*c >= '0' && *c <= '9') || (*c >= 'A' && *c <= 'Z') ||
                           (*c >= 'a' && *c <= 'z') || strchr("-._~/", *c);
        fprintf(out, plain ? "%c" : "%%%02X", *c);
    }
}

const char *si_number(double v, char out[32])
{
    static const char *const letter[] = {"", "k", "M", "G", "T", "P", "E"};
    int k = 0;
    double a = fabs(v);
    while (a >= 999.5 && k < 6) {
        a /= 1000;
        v /= 1000;
        k++;
    }
    if (!isfinite(v))
        snprintf(out, 32, "–");
    else
        snprintf(out, 32, "%.3g%s", v, letter[k]);
    return out;
}

static int reach_of(int n) { return n < 80 ? 1 : n < 4000 ? n / 40 : 100; }

void smooth(double *out, const double *in, int n)
{
    const int reach = reach_of(n);
    double sum = 0;
    int count = 0, from = 0, to = 0; /* the window is [from, to) */
    for (int i = 0; i < n; i++) {
        for (; to < n && to <= i + reach; to++)
            if (isfinite(in[to])) {
                sum += in[to];
                count++;
            }
        for (; from < i - reach; from++)
            if (isfinite(in[from])) {
                sum -= in[from];
                count--;
            }
        out[i] = count ? sum / count : NAN;
    }
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void running_median(double *out, const double *in, int n)
{
    const int reach = reach_of(n);
    double window[2 * 100 + 1];
    for (int i = 0; i < n; i++) {
        int m = 0;
        for (int k = i - reach < 0 ? 0 : i - reach; k < n && k <= i + reach; k++)
            if (isfinite(in[k])) window[m++] = in[k];
        qsort(window, (size_t)m, sizeof *window, ascending);
        out[i] = m ? (window[(m - 1) / 2] + window[m / 2]) / 2 : NAN;
    }
}

struct frame {             /* from values to the picture */
    double x0, x1, y0, y1; /* y in log10 for a log axis */
    bool log_y;
};

static double px(const struct frame *f, double x)
{
    return LEFT + (x - f->x0) / (f->x1 - f->x0) * (WIDTH - LEFT - RIGHT);
}

static bool drawable(const struct frame *f, double y)
{
    return isfinite(y) && (!f->log_y || y > 0);
}

static double py(const struct frame *f, double y)
{
    const double v = f->log_y ? log10(y) : y;
    return TOP + (f->y1 - v) / (f->y1 - f->y0) * (HEIGHT - TOP - BOTTOM);
}

/* The upper end of what counts: one spike must not flatten a curve. */
static double robust_top(const struct curve *c, bool log_y)
{
    double top = -INFINITY, second = -INFINITY;
    for (int i = 0; i < c->n; i++) {
        const double y = c->y[i];
        if (!isfinite(y) || (log_y && y <= 0)) continue;
        if (y > top) {
            second = top;
            top = y;
        } else if (y > second) {
            second = y;
        }
    }
    return !log_y && isfinite(second) && top > 8 * fabs(second) ? 1.5 * second : top;
}

static struct frame frame_of(const struct chart *c)
{
    struct frame f = {INFINITY, -INFINITY, INFINITY, -INFINITY, c->log_y};
    for (int k = 0; k < c->n; k++) {
        const struct curve *v = &c->curve[k];
        for (int i = 0; i < v->n; i++) {
            f.x0 = fmin(f.x0, v->x[i]);
            f.x1 = fmax(f.x1, v->x[i]);
            if (drawable(&f, v->y[i])) f.y0 = fmin(f.y0, c->log_y ? log10(v->y[i]) : v->y[i]);
        }
        const double top = robust_top(v, c->log_y);
        if (isfinite(top)) f.y1 = fmax(f.y1, c->log_y ? log10(top) : top);
    }
    if (!(f.x1 > f.x0)) f.x1 = f.x0 + 1;
    if (c->percent) {
        f.y0 = 0;
        f.y1 = 1;
        return f;
    }
    if (c->from_zero && !c->log_y) f.y0 = fmin(f.y0, 0);
    if (!(f.y1 > f.y0)) {
        const double half = c->log_y || f.y0 == 0 ? 0.5 : 0.1 * fabs(f.y0);
        f.y1 = f.y0 + half;
        f.y0 -= c->from_zero ? 0 : half;
    }
    const double gap = limit_gap * (f.y1 - f.y0);
    f.y1 += gap;
    if (!c->from_zero || c->log_y) f.y0 -= gap;
    return f;
}

/* 1, 2 or 5 times a power of ten: about `want` steps over the range. */
static double nice_step(double range, int want)
{
    const double raw = range / want, power = pow(10, floor(log10(raw))), m = raw / power;
    return (m < 1.5 ? 1 : m < 3.5 ? 2 : m < 7.5 ? 5 : 10) * power;
}

static int linear_ticks(double from, double to, int want, double *t)
{
    const double step = nice_step(to - from, want);
    int n = 0;
    for (double k = ceil(from / step - 1e-9); k * step <= to + 1e-9 * step && n < MOST_TICKS; k++)
        t[n++] = k * step;
    return n;
}

/* Decades, with 2 and 5 (or all digits) between them when there are few. from, to: log10. */
static int log_ticks(double from, double to, double *t)
{
    const double range = to - from;
    int n = 0;
    const int every = range > 8 ? 2 : 1;
    for (int d = (int)floor(from); d <= (int)ceil(to); d++)
        for (int m = 1; m < 10; m++) {
            const bool wanted =
                m == 1 ? d % every == 0 : (range < 3 && (m == 2 || m == 5)) || range < 0.8;
            const double v = d + log10(m);
            if (wanted && v >= from && v <= to && n < MOST_TICKS) t[n++] = pow(10, v);
        }
    return n >= 2 && (range >= 0.7 || n >= 4) ? n
                                              : 0; /* a short range reads better in even steps */
}

static const char *tick_text(double v, bool percent, char out[32])
{
    if (percent) {
        snprintf(out, 32, "%.0f%%", 100 * fabs(v));
        return out;
    }
    return si_number(fabs(v) < 1e-300 ? 0 : v, out);
}

static void axes(FILE *out, const struct chart *c, const struct frame *f)
{
    double t[MOST_TICKS];
    char text[32];
    int n = c->log_y ? log_ticks(f->y0, f->y1, t) : linear_ticks(f->y0, f->y1, 5, t);
    if (c->log_y && n == 0) n = linear_ticks(pow(10, f->y0), pow(10, f->y1), 5, t);
    for (int i = 0; i < n; i++) {
        const double y = py(f, t[i]);
        fprintf(out, "<path class=grid d=\"M%d %.1fH%d\"/>", LEFT, y, WIDTH - RIGHT);
        fprintf(out, "<text class=tick x=%d y=%.1f text-anchor=end>%s</text>", LEFT - 8, y + 4,
                tick_text(t[i], c->percent, text));
    }
    n = linear_ticks(f->x0, f->x1, 7, t);
    for (int i = 0; i < n; i++) {
        const double x = px(f, t[i]);
        fprintf(out, "<path class=axis d=\"M%.1f %dv5\"/>", x, HEIGHT - BOTTOM);
        fprintf(out, "<text class=tick x=%.1f y=%d text-anchor=middle>%s</text>", x,
                HEIGHT - BOTTOM + 19, tick_text(t[i], false, text));
    }
    fprintf(out, "<path class=axis d=\"M%d %dH%d\"/>", LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT);
    fprintf(out, "<text class=label x=%d y=%d text-anchor=middle>%s</text>",
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, c->x_label ? c->x_label : "step");
    fprintf(out, "<text class=label transform=\"translate(13 %d) rotate(-90)\" text-anchor=middle>",
            (TOP + HEIGHT - BOTTOM) / 2);
    html_text(out, c->y_label);
    fprintf(out, "</text>\n");
}

/* Few points are drawn as they are; of many, the lowest and the highest of every bucket. */
static int thin(const struct curve *c, int *keep)
{
    if (c->n <= MOST_POINTS) {
        for (int i = 0; i < c->n; i++) keep[i] = i;
        return c->n;
    }
    int n = 0;
    const int buckets = MOST_POINTS / 2;
    for (int b = 0; b < buckets; b++) {
        const int from = (int)((long long)b * c->n / buckets);
        const int to = (int)((long long)(b + 1) * c->n / buckets);
        int low = from, high = from;
        for (int i = from; i < to; i++) {
            if (!(c->y[i] >= c->y[low])) low = i;
            if (!(c->y[i] <= c->y[high])) high = i;
        }
        keep[n++] = low < high ? low : high;
        if (low != high) keep[n++] = low < high ? high : low;
    }
    return n;
}

static void draw_line(FILE *out, const struct curve *c, const struct frame *f)
{
    static const char *const extra[] = {"", " faint", " limit", "", ""};
    int *keep = malloc((size_t)(c->n + MOST_POINTS) * sizeof *keep);
    CHECK(keep, "out of memory");
    const int n = thin(c, keep);
    bool pen = false; /* lifted at values that cannot be drawn */
    fprintf(out, "<path class=\"line c%d%s\" d=\"", c->color, extra[c->style]);
    for (int i = 0; i < n; i++) {
        const double y = c->y[keep[i]];
        if (drawable(f, y))
            fprintf(out, "%c%.1f %.1f", pen ? 'L' : 'M', px(f, c->x[keep[i]]), py(f, y));
        pen = drawable(f, y);
    }
    fprintf(out, "\"/>");
    char a[32], b[32];
    for (int i = 0; i < n && c->style == CURVE_POINTS && n <= TITLED_POINTS; i++)
        if (drawable(f, c->y[i]))
            fprintf(out,
                    "<circle class=\"dot c%d\" cx=%.1f cy=%.1f r=3><title>%s: %s</title></circle>",
                    c->color, px(f, c->x[i]), py(f, c->y[i]), si_number(c->x[i], a),
                    (snprintf(b, sizeof b, "%.5g", c->y[i]), b));
    fprintf(out, "\n");
    free(keep);
}

/* Shares on top of each other: curve k fills from the sum of those before it. */
static void draw_areas(FILE *out, const struct chart *c, const struct frame *f)
{
    const int n = c->curve[0].n;
    double *base = calloc((size_t)n + 1, sizeof *base);
    CHECK(base, "out of memory");
    for (int k = 0; k < c->n; k++) {
        const struct curve *v = &c->curve[k];
        fprintf(out, "<path class=\"area c%d\" d=\"", v->color);
        for (int i = 0; i < n; i++)
            fprintf(out, "%c%.1f %.1f", i ? 'L' : 'M', px(f, v->x[i]), py(f, base[i]));
        for (int i = n - 1; i >= 0; i--) {
            base[i] = fmin(1, base[i] + (i < v->n && isfinite(v->y[i]) ? fmax(0, v->y[i]) : 0));
            fprintf(out, "L%.1f %.1f", px(f, v->x[i]), py(f, base[i]));
        }
        fprintf(out, "Z\"/>\n");
    }
    free(base);
}

static void legend(FILE *out, const struct chart *c)
{
    int named = 0;
    for (int k = 0; k < c->n; k++) named += c->curve[k].label != NULL;
    if (!named) return;
    fprintf(out, "<div class=legend>");
    for (int k = 0; k < c->n; k++) {
        if (!c->curve[k].label) continue;
        fprintf(out, "<span><i class=\"key c%d%s\"></i>", c->curve[k].color,
                c->curve[k].style == CURVE_LIMIT   ? " limit"
                : c->curve[k].style == CURVE_FAINT ? " faint"
                                                   : "");
        html_text(out, c->curve[k].label);
        fprintf(out, "</span>");
    }
    fprintf(out, "</div>");
}

void svg_chart(FILE *out, const struct chart *c)
{
    static int number; /* every clip path of the page needs its own name */
    const int id = number++;
    const struct frame f = frame_of(c);
    fprintf(out, "<figure><figcaption><b>");
    html_text(out, c->title);
    fprintf(out, "</b>");
    if (c->note) {
        fprintf(out, " <small>");
        html_text(out, c->note);
        fprintf(out, "</small>");
    }
    fprintf(out, "</figcaption>");
    legend(out, c);
    fprintf(out, "<svg viewBox=\"0 0 %d %d\" role=img aria-label=\"", WIDTH, HEIGHT);
    html_text(out, c->title);
    fprintf(out, "\">\n");
    if (isfinite(f.y0) && isfinite(f.y1) && isfinite(f.x0)) {
        axes(out, c, &f);
        fprintf(out,
                "<clipPath id=p%d><rect x=%d y=%d width=%d height=%d /></clipPath>"
                "<g clip-path=\"url(#p%d)\">\n",
                id, LEFT, TOP - 4, WIDTH - LEFT - RIGHT + 6, HEIGHT - TOP - BOTTOM + 4, id);
        if (c->percent)
            draw_areas(out, c, &f);
        else
            for (int k = 0; k < c->n; k++) draw_line(out, &c->curve[k], &f);
        fprintf(out, "</g>");
    } else {
        fprintf(out, "<text class=label x=%d y=%d text-anchor=middle>no finite values</text>",
                WIDTH / 2, HEIGHT / 2);
    }
    fprintf(out, "</svg></figure>\n");
}
