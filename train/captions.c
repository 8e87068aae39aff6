#include "train/captions.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/log.h"
#include "data/grid.h"

/* ---- reading ----------------------------------------------------------------------------------*/
/* One kind of file: how an entry becomes a caption, and which video it is of. */
struct kind {
    const char *name, *format;
    bool (*entry)(struct caption *c, json_t *item, int64_t i, int64_t samples, json_error_t *why);
    int64_t (*sample)(json_t *item); /* -1: it does not say */
};

static json_t *load(const char *path, json_error_t *why)
{
    struct err e = {0};
    size_t n;
    char *text = io_read_file(path, &n, &e);
    json_t *all = text ? json_loadb(text, n, JSON_REJECT_DUPLICATES, why) : NULL;
    if (!text) snprintf(why->text, sizeof why->text, "%.*s", (int)sizeof why->text - 1, e.msg);
    free(text);
    return all;
}

/* Older files do not say how many samples a prompt has: as many as the largest number wants. */
static int64_t samples_of(const struct kind *k, const json_t *all, json_t *items)
{
    const json_t *said = json_object_get(all, "samples_per_prompt");
    if (said) return json_is_integer(said) ? json_integer_value(said) : 0;
    const size_t n = json_array_size(items);
    int64_t most = 0;
    for (size_t i = 0; i < n; i++) {
        const int64_t s = k->sample(json_array_get(items, i));
        if (s > most && s < (int64_t)n) most = s;
    }
    return most + 1;
}

static bool take_items(struct captions *c, const struct kind *k, json_t *items, json_error_t *why)
{
    const int64_t n = (int64_t)json_array_size(items);
    c->v = calloc((size_t)n + 1, sizeof *c->v);
    CHECK(c->v, "out of memory");
    for (int64_t i = 0; i < n; i++) {
        json_t *item = json_array_get(items, (size_t)i);
        if (json_is_null(item)) continue; /* not made yet */
        struct caption *to = &c->v[c->n++];
        to->reward = NAN;
        to->number = i / c->samples;
        if (!k->entry(to, item, i, c->samples, why)) return false;
    }
    return true;
}

static bool take(struct captions *c, const struct kind *k, const json_t *all, json_error_t *why)
{
    const char *format = json_string_value(json_object_get(all, "format"));
    json_t *items = json_object_get(all, "items");
    const json_t *sheet = json_object_get(all, "sheet");
    snprintf(why->text, sizeof why->text, "no list of items of format %s", k->format);
    if (!format || strcmp(format, k->format) || !json_is_array(items)) return false;
    snprintf(why->text, sizeof why->text, "samples_per_prompt is no positive number");
    if ((c->samples = samples_of(k, all, items)) < 1) return false;
    c->rows = json_integer_value(json_object_get(sheet, "rows"));
    c->columns = json_integer_value(json_object_get(sheet, "columns"));
    c->shown = json_integer_value(json_object_get(sheet, "videos"));
    c->items = (int64_t)json_array_size(items);
    return take_items(c, k, items, why);
}

static void captions_read(struct captions *c, const char *folder, const struct kind *k, bool quiet)
{
    *c = (struct captions){0};
    char *path = io_path("%s/%s", folder, k->name);
    if (io_exists(path)) {
        json_error_t why = {0};
        json_t *all = load(path, &why);
        if (!all || !take(c, k, all, &why)) {
            if (!quiet)
                log_warn("%s: %s; the report names these videos by their files only", path,
                         why.text);
            captions_free(c);
        }
        json_decref(all);
    }
    free(path);
}

static char *copy(const char *s)
{
    char *p = strdup(s);
    CHECK(p, "out of memory");
    return p;
}

/* Entry i is sample i % samples of its prompt: only so the names of the files can be told. */
static bool in_place(int64_t i, int64_t samples, int64_t sample, json_error_t *why)
{
    if (sample == i % samples) return true;
    snprintf(why->text, sizeof why->text, "item %lld says that it is sample %lld of its prompt",
             (long long)i, (long long)sample);
    return false;
}

/* ---- samples.json -----------------------------------------------------------------------------*/
static int64_t sample_of_parameters(json_t *item)
{
    const json_t *s = json_object_get(json_object_get(item, "parameters"), "sample");
    return json_is_integer(s) ? json_integer_value(s) : -1;
}

/* " with averaged adapters of PATH"; malloc'ed. */
static char *adapters_of(const json_t *parameters)
{
    const char *lora = json_string_value(json_object_get(parameters, "lora"));
    if (!lora) return copy("without adapters");
    const bool averaged = json_is_true(json_object_get(parameters, "lora_ema"));
    return io_path("with %s adapters of %s", averaged ? "averaged" : "raw", lora);
}

static bool sample_entry(struct caption *c, json_t *item, int64_t i, int64_t samples,
                         json_error_t *why)
{
    const char *prompt;
    json_int_t sample, seed, steps, at, height, width;
    double guidance;
    int ema;
    json_t *p = json_object_get(item, "parameters");
    if (json_unpack_ex(p, why, 0, "{s:s, s:I, s:I, s:I, s:F, s:b, s:I, s:I, s:I}", "prompt",
                       &prompt, "sample", &sample, "seed", &seed, "steps", &steps, "guidance",
                       &guidance, "ema", &ema, "checkpoint_step", &at, "height", &height, "width",
                       &width))
        return false;
    if (!in_place(i, samples, sample, why)) return false;
    char *adapters = adapters_of(p);
    c->file = io_path("video_%06lld_%02lld.mp4", (long long)c->number, (long long)sample);
    c->prompt = copy(prompt);
    c->text = io_path("sample %lld · seed %lld · guidance %g · %lld steps · %s weights of step "
                      "%lld, %s",
                      (long long)sample, (long long)seed, guidance, (long long)steps,
                      ema ? "EMA" : "raw", (long long)at, adapters);
    c->small = height < GRID_CELL || width < GRID_CELL;
    free(adapters);
    return true;
}

void captions_of_samples(struct captions *c, const char *folder)
{
    static const struct kind k = {"samples.json", "osp-samples", sample_entry,
                                  sample_of_parameters};
    captions_read(c, folder, &k, false);
}

/* ---- prompts.json -----------------------------------------------------------------------------*/
static int64_t sample_of_item(json_t *item)
{
    const json_t *s = json_object_get(item, "sample");
    return json_is_integer(s) ? json_integer_value(s) : -1;
}

static bool evaluation_entry(struct caption *c, json_t *item, int64_t i, int64_t samples,
                             json_error_t *why)
{
    const char *prompt;
    json_int_t sample, height, width;
    if (json_unpack_ex(item, why, 0, "{s:s, s:I, s:I, s:I}", "prompt", &prompt, "sample", &sample,
                       "height", &height, "width", &width) ||
        !in_place(i, samples, sample, why))
        return false;
    const json_t *reward = json_object_get(item, "reward");
    if (json_is_number(reward)) c->reward = json_number_value(reward);
    c->file = io_path("prompt_%03lld_%02lld.mp4", (long long)c->number, (long long)sample);
    c->prompt = copy(prompt);
    c->text = isfinite(c->reward)
                  ? io_path("sample %lld · reward %.4f", (long long)sample, c->reward)
                  : io_path("sample %lld · not scored", (long long)sample);
    c->small = height < GRID_CELL || width < GRID_CELL;
    return true;
}

static const struct kind evaluation = {"prompts.json", "osp-evaluation", evaluation_entry,
                                       sample_of_item};

void captions_of_evaluation(struct captions *c, const char *folder)
{
    captions_read(c, folder, &evaluation, false);
}

/* The next prompt, whatever the number of its samples; NULL: no more. */
static const struct caption *next_prompt(const struct captions *c, int64_t *i)
{
    if (*i >= c->n) return NULL;
    const struct caption *at = &c->v[*i];
    while (*i < c->n && c->v[*i].number == at->number) ++*i;
    return at;
}

enum captions_prompts captions_compare(const char *folder, const char *other)
{
    struct captions a, b;
    captions_read(&a, folder, &evaluation, true);
    captions_read(&b, other, &evaluation, true);
    enum captions_prompts is = a.n && b.n ? PROMPTS_SAME : PROMPTS_UNKNOWN;
    for (int64_t i = 0, j = 0; is == PROMPTS_SAME && (i < a.n || j < b.n);) {
        const struct caption *x = next_prompt(&a, &i), *y = next_prompt(&b, &j);
        if (!x || !y || x->number != y->number || strcmp(x->prompt, y->prompt)) is = PROMPTS_DIFFER;
    }
    captions_free(&a);
    captions_free(&b);
    return is;
}

/* -----------------------------------------------------------------------------------------------*/
const struct caption *captions_find(const struct captions *c, const char *file)
{
    for (int64_t i = 0; i < c->n; i++)
        if (strcmp(c->v[i].file, file) == 0) return &c->v[i];
    return NULL;
}

void captions_free(struct captions *c)
{
    for (int64_t i = 0; i < c->n; i++) {
        free(c->v[i].file);
        free(c->v[i].prompt);
        free(c->v[i].text);
    }
    free(c->v);
    *c = (struct captions){0};
}
