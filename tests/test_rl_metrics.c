/* What `osp rl` tells of an epoch: the keys that docs/rl.md lists, all of them and no others, with
 * finite values, the same in metrics.jsonl and in the event file of TensorBoard; and what it tells
 * of the videos of an evaluation. */
#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/rl_process.h"
#include "train/captions.h"

enum { MOST = 1024, TAG = 96 };

/* ---- event file -------------------------------------------------------------------------------*/
struct scalar {
    int64_t step;
    char tag[TAG];
    double value;
};
struct scalars {
    int n;
    struct scalar v[MOST];
};
struct bytes {
    const uint8_t *at, *end;
};

/* Bit by bit, not by the code that writes. */
static uint32_t crc32c(struct bytes b)
{
    uint32_t c = ~0u;
    for (; b.at < b.end; b.at++) {
        c ^= *b.at;
        for (int k = 0; k < 8; k++) c = c >> 1 ^ (c & 1 ? 0x82F63B78u : 0);
    }
    return ~c;
}

static uint64_t take_little(struct bytes *b, int n)
{
    uint64_t v = 0;
    CHECK(b->end - b->at >= n, "the file ends within a number");
    for (int i = 0; i < n; i++) v |= (uint64_t)b->at[i] << 8 * i;
    b->at += n;
    return v;
}

static uint64_t take_varint(struct bytes *b)
{
    uint64_t v = 0;
    for (int shift = 0;; shift += 7) {
        const uint64_t x = take_little(b, 1);
        v |= (x & 127) << shift;
        if (x < 128) return v;
    }
}

static struct bytes take(struct bytes *b, uint64_t n)
{
    CHECK((uint64_t)(b->end - b->at) >= n, "the file ends within %llu bytes",
          (unsigned long long)n);
    b->at += n;
    return (struct bytes){b->at - n, b->at};
}

struct field { /* of a protobuf message */
    unsigned number;
    uint64_t value;
    struct bytes bytes;
};

static bool next_field(struct bytes *b, struct field *f)
{
    if (b->at == b->end) return false;
    const uint64_t key = take_varint(b);
    *f = (struct field){.number = (unsigned)(key >> 3)};
    switch (key & 7) {
    case 0:
        f->value = take_varint(b);
        break;
    case 2:
        f->bytes = take(b, take_varint(b));
        break;
    default:
        f->value = take_little(b, (key & 7) == 1 ? 8 : 4);
    }
    return true;
}

/* Summary.Value: 1 tag, 2 simple_value. Texts have no simple_value. */
static void add_value(struct bytes b, int64_t step, struct scalars *out)
{
    struct scalar s = {.step = step};
    bool simple = false;
    for (struct field f; next_field(&b, &f);) {
        if (f.number == 1)
            snprintf(s.tag, TAG, "%.*s", (int)(f.bytes.end - f.bytes.at), (const char *)f.bytes.at);
        if (f.number != 2) continue;
        const uint32_t bits = (uint32_t)f.value;
        float x;
        memcpy(&x, &bits, sizeof x);
        s.value = (double)x;
        simple = true;
    }
    CHECK(out->n < MOST, "more than %d values", MOST);
    if (simple) out->v[out->n++] = s;
}

/* Event: 2 step, 5 summary, whose 1 are values. */
static void add_event(struct bytes b, struct scalars *out)
{
    int64_t step = 0;
    struct bytes summary = {NULL, NULL};
    for (struct field f; next_field(&b, &f);) {
        if (f.number == 2) step = (int64_t)f.value;
        if (f.number == 5) summary = f.bytes;
    }
    for (struct field f; next_field(&summary, &f);)
        if (f.number == 1) add_value(f.bytes, step, out);
}

static void expect_sum(struct bytes b, struct bytes *from)
{
    const uint32_t c = crc32c(b), want = (c >> 15 | c << 17) + 0xA282EAD8u;
    const uint64_t got = take_little(from, 4);
    EXPECT(got == want, "checksum %08llx, not %08x", (unsigned long long)got, want);
}

static void read_events(const char *path, struct scalars *out)
{
    struct err e = {0};
    size_t size;
    char *text = io_read_file(path, &size, &e);
    err_raise(&e);
    struct bytes b = {(const uint8_t *)text, (const uint8_t *)text + size};
    while (b.at < b.end) {
        const struct bytes length = {b.at, b.at + 8};
        const uint64_t n = take_little(&b, 8);
        expect_sum(length, &b);
        const struct bytes event = take(&b, n);
        expect_sum(event, &b);
        add_event(event, out);
    }
    free(text);
}

/* Those of all starts of a run. */
static struct scalars *events_of(const char *run, int *files)
{
    struct scalars *out = calloc(1, sizeof *out);
    char *dir = io_path("%s/%s/tb", test_dir(), run);
    DIR *d = opendir(dir);
    CHECK(out && d, "%s", dir);
    *files = 0;
    for (struct dirent *f; (f = readdir(d));) {
        if (!strstr(f->d_name, "tfevents")) continue;
        char *path = io_path("%s/%s", dir, f->d_name);
        read_events(path, out);
        ++*files;
        free(path);
    }
    closedir(d);
    free(dir);
    return out;
}

static const struct scalar *find(const struct scalars *s, int64_t step, const char *tag)
{
    const struct scalar *found = NULL;
    for (int i = 0; i < s->n; i++)
        if (strcmp(s->v[i].tag, tag) == 0 && (step < 0 || s->v[i].step == step)) {
            EXPECT(step < 0 || !found, "%s of step %lld twice", tag, (long long)step);
            found = &s->v[i];
        }
    return found;
}

/* ---- metrics.jsonl ----------------------------------------------------------------------------*/
/* Every number of the lines of steps is an event, with the same value as a float. */
static int compare_lines(const char *run, const struct scalars *s)
{
    char *path = io_path("%s/%s/metrics.jsonl", test_dir(), run), *text = process_log(path);
    int n = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *j = json_loads(line, 0, NULL), *v;
        const char *key;
        const json_t *step = json_object_get(j, "step");
        EXPECT(j, "no JSON: %s", line);
        if (!step || json_object_get(j, "event")) {
            json_decref(j);
            continue;
        }
        json_object_foreach(j, key, v)
        {
            if (!strchr(key, '/')) continue; /* t, step, wall_s */
            const struct scalar *e = find(s, json_integer_value(step), key);
            const double x = json_number_value(v);
            EXPECT(json_is_number(v) && isfinite(x), "%s: %s", key, json_string_value(v));
            EXPECT(e && e->value == (double)(float)x,
                   "%s of step %lld is %.9g in the lines, %.9g "
                   "as an event",
                   key, (long long)json_integer_value(step), x, e ? e->value : NAN);
            n++;
        }
        json_decref(j);
    }
    free(text);
    free(path);
    return n;
}

/* ---- docs/rl.md -------------------------------------------------------------------------------*/
struct keys {
    int n;
    char v[MOST][TAG];
};

static void add_key(struct keys *k, const char *before, const char *by, const char *after)
{
    CHECK(k->n < MOST, "more than %d keys", MOST);
    snprintf(k->v[k->n++], TAG, "%s%s%s", before, by, after);
}

/* DIM is a dimension of the scorer, NN a trained step. */
static void add_documented(struct keys *k, const char *name)
{
    static const char *const dims[] = {"VQ", "MQ", "TA"}, *const steps[] = {"00", "01"};
    char *before = io_path("%s", name), *dim = strstr(before, "DIM"), *step = strstr(before, "NN");
    if (dim) *dim = 0;
    if (step) *step = 0;
    for (int i = 0; dim && i < 3; i++) add_key(k, before, dims[i], name + (dim - before) + 3);
    for (int i = 0; step && i < 2; i++) add_key(k, before, steps[i], "");
    if (!dim && !step) add_key(k, name, "", "");
    free(before);
}

/* The names in backquotes of the first column of the table of metrics. One without a slash goes on
 * from the first of its line. */
static struct keys *documented(void)
{
    struct keys *k = calloc(1, sizeof *k);
    struct err e = {0};
    char *text = io_read_file("docs/rl.md", NULL, &e), *rest;
    err_raise(&e);
    char *table = strstr(text, "\n| key | meaning |\n");
    CHECK(k && table, "docs/rl.md has no table of metrics");
    char *line = strtok_r(table + strlen("\n| key | meaning |\n"), "\n", &rest);
    for (; line && line[0] == '|'; line = strtok_r(NULL, "\n", &rest)) {
        char first[TAG] = "", *end = strchr(line + 1, '|');
        for (char *q = strchr(line, '`'); q && q < end; q = strchr(q + 1, '`')) {
            char *close = strchr(q + 1, '`');
            *close = 0;
            char *name = io_path("%s%s", strchr(q + 1, '/') ? "" : first, q + 1);
            if (!*first) snprintf(first, TAG, "%.*s", (int)(strrchr(name, '/') + 1 - name), name);
            add_documented(k, name);
            free(name);
            q = close;
        }
    }
    free(text);
    return k;
}

static void test_tags(struct comm *world)
{
    (void)world;
    struct process_opts o = plain_rl;
    o.sets[0] = "num_epochs=2";
    if (!rl_ready() || !rl_calm("told", "mix_grpo", &o)) return;
    int files;
    struct scalars *s = events_of("told", &files);
    struct keys *k = documented();
    EXPECT(k->n > 40 && files == 1, "%d keys in docs/rl.md, %d event files", k->n, files);
    for (int i = 0; i < k->n; i++)
        EXPECT(find(s, -1, k->v[i]), "docs/rl.md: %s is no tag", k->v[i]);
    for (int i = 0; i < s->n; i++) {
        int known = 0;
        for (int j = 0; j < k->n; j++) known += strcmp(k->v[j], s->v[i].tag) == 0;
        EXPECT(known == 1, "%s is %d times in docs/rl.md", s->v[i].tag, known);
        EXPECT(isfinite(s->v[i].value), "%s is %g", s->v[i].tag, s->v[i].value);
    }
    const int n = compare_lines("told", s);
    EXPECT(n == s->n, "%d values in the lines, %d as events", n, s->n);
    if (test_verbose()) printf("    %d keys, %d values\n", k->n, n);
    free(k);
    free(s);
}

/* ---- eval/epoch_N/prompts.json ----------------------------------------------------------------*/
/* Scores how long the prompt is, and the clip; what is raw is something else. */
static const char reading[] =
    "import sys\nsys.path.insert(0, 'scripts')\nimport osp_reward, simple_scorer\n"
    "class Reading(simple_scorer.SimpleScorer):\n    def score(self, clip):\n"
    "        raw, norm, frames, ms = super().score(clip)\n"
    "        return [0, 0, 0], [len(clip.prompt) / 32, norm[1], norm[2]], frames, ms\n"
    "osp_reward.serve(Reading())\n";

/* Item by item the prompt, its video and its score; their means are the metrics. */
static void same_scores(const char *run, int epoch, int samples)
{
    static const char *const prompt[] = {"a bright red picture", "a dark night", "a green field",
                                         "fast blue waves"};
    char *folder = io_path("%s/%s/eval/epoch_%06d", test_dir(), run, epoch);
    char *path = io_path("%s/prompts.json", folder);
    json_t *all = json_load_file(path, 0, NULL), *items = json_object_get(all, "items");
    struct captions c;
    captions_of_evaluation(&c, folder);
    EXPECT(json_array_size(items) == 4 * (size_t)samples && c.n == 4 * samples, "%s: %lld", path,
           (long long)c.n);
    double mean[4] = {0};
    for (int i = 0; i < c.n && i < 4 * samples; i++) {
        static const char *const dim[] = {"VQ", "MQ", "TA"};
        json_t *item = json_array_get(items, (size_t)i), *score = json_object_get(item, "scores");
        const char *want = prompt[i / samples];
        char *video = io_path("%s/%s", folder, c.v[i].file);
        EXPECT(!strcmp(c.v[i].prompt, want) && io_exists(video), "%s is of \"%s\"", video,
               c.v[i].prompt);
        for (int k = 0; k < 3; k++)
            mean[k] += json_number_value(json_object_get(score, dim[k])) / (4 * samples);
        mean[3] += c.v[i].reward / (4 * samples);
        const double got = json_number_value(json_object_get(score, "VQ"));
        EXPECT(got == (double)strlen(want) / 32, "item %d: VQ %g", i, got);
        free(video);
    }
    static const char *const key[] = {"eval/VQ", "eval/MQ", "eval/TA", "eval/reward_mean"};
    for (int k = 0; k < 4; k++) {
        const double x = rl_metric(run, epoch, key[k]);
        EXPECT(fabs(mean[k] - x) < 1e-7, "%s: %.9g, of the items %.9g", key[k], x, mean[k]);
    }
    captions_free(&c);
    json_decref(all);
    free(path);
    free(folder);
}

static void test_prompts(struct comm *world)
{
    (void)world;
    struct process_opts o = plain_rl;
    char *text = io_path("%s/reading.py", test_dir()),
         *set = io_path("reward.command=python3 %s", text);
    write_text("reading.py", reading);
    o.sets[0] = "num_epochs=1";
    o.sets[1] = "rl_config.eval_samples=2";
    o.sets[2] = set;
    if (rl_ready() && rl_calm("read", "mix_grpo", &o)) {
        same_scores("read", 0, 2);
        same_scores("read", 1, 2);
    }
    free(set);
    free(text);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "every documented key is a tag with the value of its line",
         .run = test_tags,
         .flags = TEST_SLOW},
        {.name = "an evaluation names the prompts and scores of its videos",
         .run = test_prompts,
         .flags = TEST_SLOW}};
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
