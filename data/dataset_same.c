#include "data/dataset_same.h"

#include <math.h>
#include <string.h>

struct same {
    FILE *out;
    const char *prefix;
    int differences;
};

static void value_text(char out[64], double v, bool null)
{
    if (null && v == 0)
        snprintf(out, 64, "null");
    else
        snprintf(out, 64, "%.10g", v);
}

/* null: 0 stands for null. */
static void same_number(struct same *c, const char *key, double asked, double stored, bool null)
{
    char a[64], b[64];
    if (fabs(asked - stored) <= 1e-9 * stored) return;
    value_text(a, asked, null);
    value_text(b, stored, null);
    c->differences++;
    fprintf(c->out, "\n  %s%s: %s, but the data set was made with %s", c->prefix, key, a, b);
}

static void same_word(struct same *c, const char *key, const char *asked, const char *stored)
{
    if (asked && strcmp(asked, stored) == 0) return;
    c->differences++;
    fprintf(c->out, "\n  %s%s: %s, but the data set was made with %s", c->prefix, key,
            asked ? asked : "null", stored);
}

int dataset_differs(FILE *out, const struct dataset *d, const struct dataset_spec *asked,
                    const char *prefix)
{
    struct same c = {.out = out, .prefix = prefix};
    same_number(&c, "sample_height", (double)asked->height, (double)d->height, false);
    same_number(&c, "sample_width", (double)asked->width, (double)d->width, false);
    same_number(&c, "sample_num_frames", (double)asked->frames, (double)d->frames, false);
    same_number(&c, "train_fps", asked->fps, d->fps, true);
    same_number(&c, "sample_stride", (double)asked->sample_stride, (double)d->sample_stride, true);
    same_number(&c, "window_stride", (double)asked->window_stride, (double)d->window_stride, true);
    same_number(&c, "text_max_length", (double)asked->text_len, (double)d->text_len, false);
    if (asked->text_dim)
        same_number(&c, "text_dim", (double)asked->text_dim, (double)d->text_dim, false);
    same_word(&c, "codec", asked->codec, d->codec);
    same_word(&c, "text_codec", asked->text_codec, d->text_codec);
    return c.differences;
}
