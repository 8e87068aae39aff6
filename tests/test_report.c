/* The page of a run, from metrics.jsonl files made by hand. */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "data/hdf.h"
#include "tests/check.h"
#include "train/captions.h"
#include "train/report.h"
#include "train/report_svg.h"

static char *fresh_run(const char *name)
{
    struct err e = {0};
    char *run = io_path("%s/%s", test_dir(), name);
    io_mkdir(run, &e);
    EXPECT(!e.code, "%s", e.msg);
    return run;
}

static void put_file(const char *run, const char *name, const void *text, size_t n)
{
    struct err e = {0};
    char *path = io_path("%s/%s", run, name);
    io_write_file(path, text, n, &e);
    EXPECT(!e.code, "%s", e.msg);
    free(path);
}

static void put_text(const char *run, const char *name, const char *text)
{
    put_file(run, name, text, strlen(text));
}

static char *page_of(const char *run)
{
    struct err e = {0};
    report_write(run);
    char *path = io_path("%s/report.html", run), *text = io_read_file(path, NULL, &e);
    EXPECT(!e.code, "%s", e.msg);
    free(path);
    return text;
}

#define T "\"t\":\"2026-01-02T03:04:05Z\""
static const char sample_log[] =
    "{" T ",\"event\":\"text\",\"key\":\"config\",\"text\":\"seed: 1\\nnote: <&>\\n\"}\n"
    "{" T ",\"step\":0,\"wall_s\":0,\"validation/raw/loss\":2,\"validation/ema/loss\":2.5,"
    "\"validation/raw/sigma_0.100\":3,\"validation/ema/sigma_0.100\":3}\n"
    "{" T ",\"step\":10,\"wall_s\":1,\"train/loss\":1.5,\"train/lr\":0.001,\"train/grad_norm\":2}\n"
    "{" T ",\"step\":20,\"wall_s\":2,\"train/loss\":\"nan\",\"train/lr\":0.001}\n"
    "{" T ",\"step\":30,\"wall_s\":3,\"train/loss\":77}\n"
    "{" T ",\"step\":3\n"
    "{" T ",\"event\":\"resume\",\"from_step\":21}\n"
    "{" T ",\"step\":30,\"wall_s\":4,\"train/loss\":1.25,\"train/skipped_steps\":1,"
    "\"speed/tokens_per_s\":12345}\n"
    "{" T ",\"step\":40,\"wall_s\":75,\"validation/raw/loss\":1,\"validation/ema/loss\":0.5}\n"
    "{" T ",\"event\":\"finished\",\"step\":40}\n"
    "{" T ",\"st";

static void log_is_read_back(struct comm *world)
{
    (void)world;
    char *run = fresh_run("log"), *path = io_path("%s/metrics.jsonl", run);
    put_text(run, "metrics.jsonl", sample_log);
    struct runlog l;
    struct err e = {0};
    EXPECT(runlog_load(path, &l, &e), "%s", e.msg);
    const struct series *s = runlog_find(&l, "train/loss");
    EXPECT(s && s->n == 3 && s->value[0] == 1.5 && isnan(s->value[1]), "three points");
    EXPECT(s && s->step[2] == 30 && s->value[2] == 1.25, "the line before the resume is gone");
    EXPECT(l.step == 40 && l.wall_s == 75 && l.broken == 2, "%lld %g %lld", (long long)l.step,
           l.wall_s, (long long)l.broken);
    EXPECT(l.num_events == 3 && !strcmp(l.event[1].what, "resume"), "%d events", l.num_events);
    EXPECT(l.config && !strcmp(l.config, "seed: 1\nnote: <&>\n"), "configuration");
    EXPECT(series_median(s) == (1.5 + 1.25) / 2 && series_last(s) == 1.25, "median and last");
    runlog_free(&l);
    free(path);
    free(run);
}

static int count(const char *text, const char *what)
{
    int n = 0;
    for (const char *s = text; (s = strstr(s, what)); s++) n++;
    return n;
}

static void page_has_everything(struct comm *world)
{
    (void)world;
    char *run = fresh_run("page"), *samples = io_path("%s/samples/late", run);
    struct err e = {0};
    io_mkdir(samples, &e);
    put_text(run, "metrics.jsonl", sample_log);
    put_file(run, "samples/sheet.png", "\x89PNGx", 5);
    put_file(run, "samples/late/b.mp4", "video", 5);
    put_text(run, "samples/notes.txt", "not shown");
    char *big = calloc(1, 4 << 20);
    put_file(run, "samples/b#g.mp4", big, 4 << 20);
    free(big);
    char *p = page_of(run);
    static const char *const want[] = {"<h1>page</h1>",
                                       "finished",
                                       "Training loss",
                                       "Validation loss",
                                       "noise level",
                                       "Gradient norm",
                                       "Learning rate",
                                       "Throughput",
                                       "1 min 15 s",
                                       "(× 0.5)",
                                       "(× 0.2)",
                                       "data:image/png;base64,iVBOR3g=",
                                       "data:video/mp4;base64,dmlkZW8=",
                                       "href=\"samples/b%23g.mp4\"",
                                       "note: &lt;&amp;&gt;",
                                       "2 could not be read",
                                       "prefers-color-scheme:dark"};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        EXPECT(strstr(p, want[i]), "no \"%s\"", want[i]);
    EXPECT(count(p, "<svg") == count(p, "</svg>") && count(p, "<svg") >= 6, "%d", count(p, "<svg"));
    EXPECT(!strstr(p, "http:") && !strstr(p, "https:") && !strstr(p, "<script"), "self-contained");
    const char *last = strstr(p, "<h2>Schedule");
    EXPECT(!strstr(p, "nan ") && !strstr(p, " nan") && !strstr(p, "inf ") && last, "plain numbers");
    EXPECT(!strstr(p, "notes.txt") && count(p, "data:video") == 1,
           "only pictures and small videos");
    put_text(run, "config.yaml", "seed: 2  # default\n");
    char *again = page_of(run);
    EXPECT(strstr(again, "seed: 2  # default"), "config.yaml comes first");
    free(again);
    free(p);
    free(samples);
    free(run);
}

/* ---- post-training ---------------------------------------------------------------------------*/
#define EPOCH(n, more)                                                                           \
    "{" T ",\"step\":" #n ",\"wall_s\":" #n "0,\"reward/mean\":0." #n ",\"reward/std\":0.2,"     \
    "\"reward/min\":-1,\"reward/max\":1,\"reward/std_within_groups\":0.1,"                       \
    "\"reward/std_between_groups\":0.3,\"reward/VQ/mean\":0.1,\"reward/TA<b>/mean\":0.2,"        \
    "\"reward/VQ/std\":0.1,\"advantage/max\":2,\"update/optimizer_steps\":" #n ","               \
    "\"update/skipped_steps\":0,\"adapter/norm_A\":3,\"adapter/norm_B\":0." #n ","               \
    "\"time/rollout_s\":4,\"time/decode_s\":1,\"time/reward_wait_s\":2,\"time/update_s\":3" more \
    "}\n"
#define UPDATE                                                                      \
    ",\"update/grad_norm\":0.01,\"update/kl\":0.002,\"update/clip_fraction\":0.25," \
    "\"update/max_log_ratio/step_00\":0.1,\"update/max_log_ratio/step_03\":0.2,"    \
    "\"update/velocity_gap/step_00\":0.1"
static const char rl_log[] =
    "{" T ",\"step\":0,\"wall_s\":0,\"eval/reward_mean\":1,\"eval/reward_std\":0.5,"
    "\"eval/samples\":6,\"eval/VQ\":0.1,\"eval/MQ\":0.2}\n" EPOCH(1, UPDATE) EPOCH(2, "")
        EPOCH(3, UPDATE) "{" T ",\"step\":3,\"wall_s\":31,\"eval/reward_mean\":1.75,"
                         "\"eval/reward_std\":0.6,\"eval/samples\":6,\"eval/VQ\":0.4,"
                         "\"eval/MQ\":0.3}\n{" T ",\"event\":\"finished\",\"step\":3}\n";

static char *rl_run(const char *name)
{
    struct err e = {0};
    char *run = fresh_run(name), *before = io_path("%s/eval/epoch_000000", run),
         *between = io_path("%s/eval/epoch_000002", run),
         *after = io_path("%s/eval/epoch_000003", run);
    io_mkdir(before, &e);
    io_mkdir(between, &e);
    io_mkdir(after, &e);
    EXPECT(!e.code, "%s", e.msg);
    put_text(run, "metrics.jsonl", rl_log);
    put_file(run, "eval/epoch_000000/prompt_000_00.mp4", "video", 5);
    put_file(run, "eval/epoch_000002/prompt_000_00.mp4", "between", 7);
    put_file(run, "eval/epoch_000003/prompt_000_00.mp4", "after", 5);
    put_file(run, "eval/epoch_000003/prompt_001_00.mp4", "alone", 5);
    free(after);
    free(between);
    free(before);
    return run;
}

static void page_of_post_training(struct comm *world)
{
    (void)world;
    char *run = rl_run("rl"), *p = page_of(run);
    static const char *const want[] = {"Evaluation reward",
                                       "1 → 1.75: +1.50 standard deviations",
                                       "3 optimizer steps",
                                       "10 s per epoch",
                                       "Reward of the samples",
                                       "Scores by dimension",
                                       "TA&lt;b&gt;",
                                       "Evaluation by dimension",
                                       "within groups",
                                       "between groups",
                                       "KL from the base",
                                       "Clipped ratios",
                                       "Largest |ln ratio| by step",
                                       "step_03",
                                       "Distance of the velocity",
                                       "Gradient norm",
                                       "Adapter norms",
                                       "Where the time goes",
                                       "reward wait",
                                       "decode",
                                       ">epoch</text>",
                                       "Before and after",
                                       "epoch_000000, then epoch_000003",
                                       "base64,dmlkZW8=",
                                       "base64,YWZ0ZXI="};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        EXPECT(strstr(p, want[i]), "no \"%s\"", want[i]);
    EXPECT(count(p, "class=pair") == 1 && count(p, "data:video") == 2, "one pair, not the others");
    EXPECT(count(p, "<svg") == 12 && count(p, "</svg>") == 12, "%d charts", count(p, "<svg"));
    EXPECT(!strstr(p, "Training loss") && !strstr(p, ">samples</span>"), "nothing of training");
    EXPECT(!strstr(p, "http:") && !strstr(p, "https:") && !strstr(p, "<script"), "self-contained");
    EXPECT(!strstr(p, " nan") && !strstr(p, "inf "), "plain numbers");
    free(p);
    put_text(run, "metrics.jsonl", "{" T ",\"step\":0,\"eval/reward_mean\":1}\n");
    p = page_of(run); /* it has only just begun */
    EXPECT(strstr(p, "of the weights it began with: 1") && count(p, "<svg") == 1, "%d",
           count(p, "<svg"));
    free(p);
    free(run);
}

/* ---- captions --------------------------------------------------------------------------------*/
#define PARAMETERS(prompt, sample, more)                                                         \
    "{\"parameters\":{\"prompt\":\"" prompt "\",\"sample\":" #sample ",\"seed\":7,\"steps\":25," \
    "\"guidance\":4.5,\"ema\":true,\"checkpoint_step\":30,\"height\":32,\"width\":320" more "}}"
#define WILD "<script>&\\\" a \u00e9toile"
#define WILD_HTML "&lt;script&gt;&amp;&quot; a \u00e9toile"
#define ITEMS                                                                              \
    "\"items\":[" PARAMETERS(WILD, 0, "") "," PARAMETERS(WILD, 1, "") ",null," PARAMETERS( \
        "", 1, ",\"lora\":\"runs/<rl>\",\"lora_ema\":true") "," PARAMETERS("third", 0, "") "]"
static const char samples_json[] =
    "{\"format\":\"osp-samples\",\"complete\":true,\"samples_per_prompt\":2," ITEMS
    ",\"sheet\":{\"videos\":5,\"rows\":2,\"columns\":2}}";

/* 3 prompts with 2 samples, the last with one; the third item was not made, of which there is an
 * older video. */
static char *sampled_run(const char *name, const char *manifest)
{
    struct err e = {0};
    char *run = fresh_run(name), *samples = io_path("%s/samples/more", run);
    io_mkdir(samples, &e);
    put_text(run, "metrics.jsonl", sample_log);
    put_file(run, "samples/another.png", "\x89PNGa", 5);
    put_file(run, "samples/sheet.png", "\x89PNGs", 5);
    put_file(run, "samples/video_grid.mp4", "grid", 4);
    put_file(run, "samples/video_000000_00.mp4", "0/0", 3);
    put_file(run, "samples/video_000000_01.mp4", "0/1", 3);
    put_file(run, "samples/video_000001_00.mp4", "old", 3);
    put_file(run, "samples/video_000001_01.mp4", "1/1", 3);
    put_file(run, "samples/video_000002_00.mp4", "2/0", 3);
    put_file(run, "samples/more/video_000000_00.mp4", "other", 5);
    if (manifest) put_text(run, "samples/samples.json", manifest);
    free(samples);
    return run;
}

/* Each of them once, in this order; NULL ends the list. */
static void expect_order(const char *page, const char *const *want)
{
    for (const char *at = page; *want; want++) {
        const char *found = strstr(at, *want);
        EXPECT(found, "no \"%s\"%s", *want, strstr(page, *want) ? " here, but before" : "");
        EXPECT(count(page, *want) == 1, "\"%s\" %d times", *want, count(page, *want));
        at = found ? found : at;
    }
}

static void samples_have_captions(struct comm *world)
{
    (void)world;
    char *run = sampled_run("captions", samples_json), *p = page_of(run);
    static const char *const want[] = {
        "<h2>Samples",
        "rows are prompts in this order, columns are samples 0 to 1;",
        "<a href=\"samples/sheet.png\">",
        "<a href=\"samples/video_grid.mp4\">",
        "<p class=prompt>" WILD_HTML "</p>",
        "base64,MC8w\"",
        "<span>sample 0 · seed 7 · guidance 4.5 · 25 steps · EMA weights of step 30, without "
        "adapters</span><a href=\"samples/video_000000_00.mp4\">samples/video_000000_00.mp4</a>",
        "base64,MC8x\"",
        "<span>sample 1 · seed 7 · guidance 4.5 · 25 steps · EMA weights of step 30, without "
        "adapters</span><a href=\"samples/video_000000_01.mp4\">",
        "<p class=prompt>(the empty prompt)</p>",
        "base64,MS8x\"",
        "EMA weights of step 30, with averaged adapters of runs/&lt;rl&gt;</span><a "
        "href=\"samples/video_000001_01.mp4\">",
        "<p class=prompt>third</p>",
        "<a href=\"samples/video_000002_00.mp4\">",
        "<h3>Other files</h3>",
        "<figcaption><a href=\"samples/another.png\">",
        "<figcaption><a href=\"samples/more/video_000000_00.mp4\">",
        "<figcaption><a href=\"samples/video_000001_00.mp4\">",
        "<h2>Events",
        NULL};
    expect_order(p, want);
    EXPECT(count(p, "<figure class=\"sample small\">") == 4 && count(p, "<p class=prompt>") == 3,
           "three prompts, four small videos");
    EXPECT(count(p, "<div") == count(p, "</div>") && count(p, "<span") == count(p, "</span>"),
           "tags");
    EXPECT(!strstr(p, "<script") && !strstr(p, "runs/<rl>"), "not escaped");
    free(p);
    free(run);
    run = sampled_run("nested", NULL); /* what is in a folder of samples has a heading */
    put_text(run, "samples/more/samples.json",
             "{\"format\":\"osp-samples\",\"items\":[" PARAMETERS("inner", 0, "") "]}");
    p = page_of(run);
    static const char *const inner[] = {
        "<h2>Samples",          "<h3>samples/more</h3>",          "<p class=prompt>inner</p>",
        "<h3>Other files</h3>", "<a href=\"samples/sheet.png\">", NULL};
    expect_order(p, inner);
    EXPECT(!strstr(p, "Contact sheet"), "a line for no sheet");
    free(p);
    free(run);
}

/* What the line says of a sheet of 2 samples a prompt with so many columns. */
static void sheet_lines(struct comm *world)
{
    (void)world;
    static const struct {
        const char *samples, *more, *columns, *says;
    } list[] = {
        {"2", "", "4", "rows are 2 prompts each, in this order, with samples 0 to 1 side by"},
        {"2", "", "3", "prompts, and the samples of each, in this order, row by row from"},
        {"1", "", "3", "prompts in this order, row by row from the left;"},
        {"1", "", "1", "Contact sheet: rows are prompts in this order;"},
        {"1", ",null", "1", "Contact sheet of the first 1 videos: rows are prompts in"}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        char *text =
            io_path("{\"format\":\"osp-samples\",\"samples_per_prompt\":%s,\"items\":[" PARAMETERS(
                        "p", 0, "") "%s],\"sheet\":{\"videos\":1,\"rows\":2,"
                                    "\"columns\":%s}}",
                    list[i].samples, list[i].more, list[i].columns);
        char *run = sampled_run("line", text), *p = page_of(run);
        EXPECT(strstr(p, list[i].says), "no \"%s\"", list[i].says);
        free(p);
        free(run);
        free(text);
    }
}

/* The page of a run, and whether a warning about this file came. */
static char *warned_page(const char *run, const char *file, bool *warned)
{
    char *log = io_path("%s/warnings", test_dir());
    fflush(stderr);
    const int keep = dup(2), to = open(log, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    dup2(to, 2);
    char *page = page_of(run);
    dup2(keep, 2);
    close(to);
    close(keep);
    struct err e = {0};
    char *said = io_read_file(log, NULL, &e);
    *warned = said && strstr(said, "warning: ") && strstr(said, file) &&
              strstr(said, "by their files only");
    free(said);
    free(log);
    return page;
}

/* The ids of charts count on from page to page. */
static bool same_samples(const char *a, const char *b)
{
    const char *x = strstr(a, "<h2>Samples"), *y = strstr(b, "<h2>Samples");
    return x && y && strcmp(x, y) == 0;
}

static void damaged_samples(struct comm *world)
{
    (void)world;
    static const char *const bad[] = {
        "",
        "[]",
        "null",
        "{\"format\":\"osp-samples\"}",
        "{\"format\":\"other\"," ITEMS "}",
        "{" ITEMS "}",
        "{\"format\":\"osp-samples\",\"items\":{}}",
        "{\"format\":\"osp-samples\",\"items\":[1]}",
        "{\"format\":\"osp-samples\",\"items\":[{\"parameters\":[]}]}",
        "{\"format\":\"osp-samples\",\"samples_per_prompt\":0," ITEMS "}",
        "{\"format\":\"osp-samples\",\"samples_per_prompt\":\"2\"," ITEMS "}",
        "{\"format\":\"osp-samples\",\"samples_per_prompt\":3," ITEMS "}",
        "{\"format\":\"osp-samples\",\"items\":[" PARAMETERS("x", 9223372036854775807, "") "]}",
        "{\"format\":\"osp-samples\",\"items\":[" PARAMETERS("x", -1, "") "]}",
        "{\"format\":\"osp-samples\",\"items\":[" PARAMETERS("\xff\xfe", 0, "") "]}",
        "{\"format\":\"osp-samples\",\"items\":[" PARAMETERS("a\\u0000b", 0, "") "]}",
        "{\"format\":\"osp-samples\",\"items\":[" PARAMETERS("x", 0, ",\"seed\":8") "]}",
        "{\"format\":\"osp-samples\",\"items\":[{\"parameters\":{\"prompt\":\"x\"}}]}"};
    bool warned;
    char *run = sampled_run("damage", NULL), *want = warned_page(run, "samples.json", &warned);
    EXPECT(!warned && !strstr(want, "class=prompt") && !strstr(want, "Other files"), "without");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_text(run, "samples/samples.json", bad[i]);
        char *p = warned_page(run, "samples/samples.json", &warned);
        EXPECT(warned, "case %zu: no warning", i);
        EXPECT(same_samples(p, want), "case %zu: another page than without samples.json", i);
        free(p);
    }
    put_text(run, "samples/samples.json", samples_json); /* older files do not tell the number */
    char *whole = page_of(run), *old = strdup(samples_json);
    memset(strstr(old, "\"samples_per_prompt\":2,"), ' ', strlen("\"samples_per_prompt\":2,"));
    put_text(run, "samples/samples.json", old);
    char *p = warned_page(run, "samples.json", &warned);
    EXPECT(!warned && same_samples(p, whole), "the number of samples is not found");
    free(p);
    free(old);
    free(whole);
    free(want);
    free(run);
}

/* Every length and damaged bytes at every place: captions or none, never a crash. */
static void cut_samples(struct comm *world)
{
    (void)world;
    char *run = fresh_run("cut"), *path = io_path("%s/samples.json", run);
    const size_t n = strlen(samples_json);
    int64_t some = 0;
    log_set_level(LOG_WARN + 1);
    for (size_t i = 0; i < 4 * n; i += i < n ? 1 : 5) {
        char *text = strdup(samples_json);
        if (i >= n) text[i % n] = "x\"9}"[i / n];
        FILE *f = fopen(path, "w");
        CHECK(f && fwrite(text, i < n ? i : n, 1, f) <= 1 && fclose(f) == 0, "%s", path);
        struct captions c;
        captions_of_samples(&c, run);
        EXPECT(i >= n || c.n == 0, "%lld captions of %zu bytes", (long long)c.n, i);
        some += c.n > 0;
        captions_free(&c);
        free(text);
    }
    log_set_level(LOG_WARN);
    EXPECT(some > 50, "captions of %lld files", (long long)some); /* a letter of a prompt */
    free(path);
    free(run);
}

#define SCORE(prompt, sample, reward)                \
    "{\"prompt\":\"" prompt "\",\"sample\":" #sample \
    ",\"height\":320,\"width\":320,\"reward\":" reward "}"
#define EVALUATION(items) \
    "{\"format\":\"osp-evaluation\",\"samples_per_prompt\":2,\"items\":[" items "]}"

static void rewards_before_and_after(struct comm *world)
{
    (void)world;
    char *run = rl_run("rewards");
    put_file(run, "eval/epoch_000000/prompt_000_01.mp4", "b01", 3);
    put_file(run, "eval/epoch_000003/prompt_000_01.mp4", "a01", 3);
    put_file(run, "eval/epoch_000000/prompt_001_00.mp4", "b10", 3);
    put_text(run, "eval/epoch_000000/prompts.json",
             EVALUATION(SCORE(WILD, 0, "0.25") "," SCORE(WILD, 1, "-1") "," SCORE("old", 0, "3")));
    put_text(
        run, "eval/epoch_000003/prompts.json",
        EVALUATION(SCORE(WILD, 0, "0.75") "," SCORE(WILD, 1, "null") "," SCORE("new <b>", 0, "2")));
    char *p = page_of(run);
    static const char *const want[] = {
        "<h2>Before and after",
        "<p class=prompt>" WILD_HTML "</p>",
        "<span>sample 0 · reward 0.2500</span><a href=\"eval/epoch_000000/prompt_000_00.mp4\">",
        "<span>sample 0 · reward 0.7500 (+0.5000)</span><a "
        "href=\"eval/epoch_000003/prompt_000_00.mp4\">",
        "<span>sample 1 · reward -1.0000</span><a href=\"eval/epoch_000000/prompt_000_01.mp4\">",
        "<span>sample 1 · not scored</span><a href=\"eval/epoch_000003/prompt_000_01.mp4\">",
        "<span>old · sample 0 · reward 3.0000</span><a "
        "href=\"eval/epoch_000000/prompt_001_00.mp4\">",
        "<span>new &lt;b&gt; · sample 0 · reward 2.0000</span><a "
        "href=\"eval/epoch_000003/prompt_001_00.mp4\">",
        NULL};
    expect_order(p, want);
    EXPECT(count(p, "class=pair") == 3 && count(p, "<p class=prompt>") == 1, "3 pairs, 1 prompt");
    EXPECT(count(p, "<div") == count(p, "</div>") && !strstr(p, "<script"), "tags");
    free(p);
    bool warned; /* one of the two is damaged: what is known of the other */
    put_text(run, "eval/epoch_000000/prompts.json", EVALUATION(SCORE("x", 1, "1")));
    p = warned_page(run, "eval/epoch_000000/prompts.json", &warned);
    EXPECT(warned && strstr(p, "<figcaption><a href=\"eval/epoch_000000/prompt_000_00.mp4\">"),
           "the damaged one");
    EXPECT(strstr(p, "<span>" WILD_HTML " · sample 0 · reward 0.7500</span>"), "the other one");
    free(p);
    free(run);
}

static void clips_left_out(struct comm *world)
{
    (void)world;
    char *run = fresh_run("clips"), *data = io_path("%s/clips.h5", run);
    char *text[] = {"a<1>.mp4", "b.mp4"}, *rule[] = {"too_short", "unreadable"};
    struct hdf h;
    struct err e = {0};
    const bool ok = hdf_create(&h, data, &e) && hdf_group(&h, "/rejected", &e) &&
                    hdf_put_texts(&h, "/rejected/path", text, 2, &e) &&
                    hdf_put_texts(&h, "/rejected/rule", rule, 2, &e) &&
                    hdf_put_texts(&h, "/rejected/detail", text, 2, &e) && hdf_close(&h, &e);
    EXPECT(ok, "%s", e.msg);
    put_text(run, "metrics.jsonl", sample_log);
    char *config = io_path("data_config:\n  metafile_or_dir_path: %s  # clips.yaml:3:1\n", data);
    put_text(run, "config.yaml", config);
    char *p = page_of(run);
    EXPECT(strstr(p, "Clips that were not used") && strstr(p, "<td>a&lt;1&gt;.mp4<td>too_short"),
           "%.200s", p);
    free(p);
    put_text(run, "clips.h5", "this is not a data set");
    log_set_level(LOG_WARN + 1); /* the warning is expected */
    p = page_of(run);
    log_set_level(LOG_WARN);
    EXPECT(!strstr(p, "Clips that were not used") && strstr(p, "Configuration"), "goes on without");
    free(p);
    free(config);
    free(data);
    free(run);
}

static void report_of(void *run) { report_write(run); }

static void errors_are_clear(struct comm *world)
{
    (void)world;
    char *run = fresh_run("empty"), *none = io_path("%s/none", test_dir());
    expect_stop("no such folder", RC_NOINPUT, report_of, none);
    expect_stop("no metrics.jsonl here", RC_NOINPUT, report_of, run);
    put_text(run, "metrics.jsonl", "");
    expect_stop("is empty", RC_DATA, report_of, run);
    put_text(run, "metrics.jsonl", "\x01\x02\x03\nxx\n");
    expect_stop("no line of it is JSON", RC_DATA, report_of, run);
    put_text(run, "metrics.jsonl", "{\"event\":\"resume\",\"from_step\":0}\n");
    char *p = page_of(run); /* a run that has only just begun */
    EXPECT(strstr(p, "running, or ended without notice") && !strstr(p, "<svg"), "no curves yet");
    free(p);
    free(none);
    free(run);
}

static void odd_curves(struct comm *world)
{
    (void)world;
    static const double x[] = {1, 2, 3}, bad[] = {NAN, INFINITY, -1}, same[] = {5, 5, 5};
    struct chart c = {.title = "a<b", .y_label = "y", .log_y = true};
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    c.curve[c.n++] = (struct curve){"bad", x, bad, 3, 0, CURVE_POINTS};
    svg_chart(f, &c); /* nothing that a logarithm can show */
    c.curve[0].y = same;
    svg_chart(f, &c);
    c.log_y = false;
    svg_chart(f, &c);
    c.curve[0].n = 1;
    svg_chart(f, &c);
    fclose(f);
    EXPECT(strstr(text, "no finite values") && strstr(text, "a&lt;b"), "%.400s", text);
    EXPECT(!strstr(text, "nan") && !strstr(text, "\"inf") && !strstr(text, " inf"), "%s", text);
    free(text);
    char s[32];
    EXPECT(!strcmp(si_number(12345, s), "12.3k") && !strcmp(si_number(0.5, s), "0.5") &&
               !strcmp(si_number(999.9, s), "1k") && !strcmp(si_number(-2.5e12, s), "-2.5T"),
           "%s", s);
    const double v[] = {1, 100, 1, NAN, 1};
    double out[5];
    running_median(out, v, 5);
    EXPECT(out[1] == 1 && out[3] == 1, "a spike is ignored");
    smooth(out, v, 5);
    EXPECT(out[1] == 34 && out[4] == 1, "%g %g", out[1], out[4]);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"metrics.jsonl: a resume hides later steps, cut lines are counted",
         log_is_read_back,
         {0},
         0},
        {"the page has curves, numbers, samples and configuration, and needs no network",
         page_has_everything,
         {0},
         0},
        {"the page of a post-training run", page_of_post_training, {0}, 0},
        {"samples stand under their prompts, escaped, with how they were made",
         samples_have_captions,
         {0},
         0},
        {"how prompts stand on the sheet is said", sheet_lines, {0}, 0},
        {"a samples.json that is damaged or foreign is a warning", damaged_samples, {0}, 0},
        {"no byte of samples.json crashes a report", cut_samples, {0}, 0},
        {"before and after have prompts and rewards", rewards_before_and_after, {0}, 0},
        {"clips that the data set does without are listed", clips_left_out, {0}, 0},
        {"a folder that is no run is a clear error", errors_are_clear, {0}, 0},
        {"curves without finite values, flat ones, single points", odd_curves, {0}, 0},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
