#include "train/compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "data/dataset.h"

struct compare {
    struct dataset *d;
    const struct prompts *prompts;
    int items;
    double *distance; /* [items][prompts]; NaN: not known */
    double *found;    /* [items][prompts]: by this rank since the last share */
    float *window;
};

static bool has_caption(const struct dataset *d, int64_t sample, const char *text)
{
    for (int64_t k = 0; k < dataset_captions_of(d, sample); k++)
        if (strcmp(dataset_caption(d, dataset_caption_of(d, sample, k)), text) == 0) return true;
    return false;
}

static void take_known(struct compare *c, const json_t *manifest)
{
    for (int i = 0; i < c->items; i++) {
        const json_t *known = json_object_get(json_array_get(manifest, (size_t)i), "distances");
        for (int p = 0; p < c->prompts->n; p++)
            c->distance[i * c->prompts->n + p] =
                known ? json_number_value(json_array_get(known, (size_t)p)) : NAN;
    }
}

struct compare *compare_open(const char *path, const struct prompts *p, int items,
                             const json_t *manifest)
{
    struct err e = {0};
    struct compare *c = calloc(1, sizeof *c);
    CHECK(c, "out of memory");
    c->d = dataset_open(path, 0, &e);
    err_raise(&e);
    c->prompts = p;
    c->items = items;
    c->distance = calloc((size_t)items * (size_t)p->n, sizeof *c->distance);
    c->found = calloc((size_t)items * (size_t)p->n, sizeof *c->found);
    c->window = malloc((size_t)(c->d->c * c->d->t * c->d->h * c->d->w) * sizeof *c->window);
    CHECK(c->distance && c->found && c->window, "out of memory");
    for (int k = 0; k < p->n; k++) {
        int64_t i = 0;
        while (i < c->d->n && !has_caption(c->d, i, p->text[k])) i++;
        if (i == c->d->n)
            err_stop(RC_CONFIG, "compare: no clip of %s has the caption \"%.60s\"", path,
                     p->text[k]);
    }
    take_known(c, manifest);
    return c;
}

void compare_close(struct compare *c)
{
    if (!c) return;
    dataset_close(c->d);
    free(c->distance);
    free(c->found);
    free(c->window);
    free(c);
}

void compare_item(struct compare *c, int item, const float *latent)
{
    const int64_t n = c->d->c * c->d->t * c->d->h * c->d->w;
    double *row = c->found + item * c->prompts->n;
    int64_t *windows = calloc((size_t)c->prompts->n, sizeof *windows);
    CHECK(windows, "out of memory");
    for (int64_t s = 0; s < c->d->n; s++) {
        struct err e = {0};
        dataset_latent(c->d, s, c->window, &e);
        err_raise(&e);
        double sum = 0;
        for (int64_t i = 0; i < n; i++) {
            const double x = (double)latent[i] - (double)c->window[i];
            sum += x * x;
        }
        for (int p = 0; p < c->prompts->n; p++)
            if (has_caption(c->d, s, c->prompts->text[p])) {
                row[p] += sum / (double)n;
                windows[p]++;
            }
    }
    for (int p = 0; p < c->prompts->n; p++) row[p] /= (double)windows[p];
    free(windows);
}

void compare_share(struct compare *c, struct comm *world)
{
    const int n = c->items * c->prompts->n;
    comm_sum_f64(world, c->found, n, "distances");
    for (int i = 0; i < n; i++)
        if (c->found[i] > 0) c->distance[i] = c->found[i];
    memset(c->found, 0, (size_t)n * sizeof *c->found);
}

json_t *compare_json(const struct compare *c, int item)
{
    json_t *a = json_array();
    for (int p = 0; p < c->prompts->n; p++)
        json_array_append_new(a, json_real(c->distance[item * c->prompts->n + p]));
    return a;
}

void compare_print(const struct compare *c, int per_prompt)
{
    const int P = c->prompts->n;
    int nearest = 0;
    log_info(
        "distance of each sample to the clips of each caption (mean squared error of latents);");
    log_info("the sample of the caption itself should be the smallest of its column block");
    for (int p = 0; p < P; p++) log_info("  caption %d: %.70s", p + 1, c->prompts->text[p]);
    for (int s = 0; s < per_prompt; s++)
        for (int to = 0; to < P; to++) {
            char line[512];
            int n = snprintf(line, sizeof line, "  noise %d, clips of caption %d:", s + 1, to + 1),
                best = 0;
            for (int p = 0; p < P; p++) {
                const double d = c->distance[(p * per_prompt + s) * P + to];
                if (d < c->distance[(best * per_prompt + s) * P + to]) best = p;
                n += snprintf(line + n, sizeof line - (size_t)n, "  sample %d %.4f", p + 1, d);
            }
            nearest += best == to;
            log_info("%s  %s", line, best == to ? "own nearest" : "OTHER NEARER");
        }
    log_info("text: own prompt nearest in %d of %d", nearest, per_prompt * P);
}
