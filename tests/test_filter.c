/* Descriptions of clips and the filter. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/rng.h"
#include "data/filter.h"
#include "data/meta.h"
#include "data/text.h"
#include "tests/check.h"

static char *put(const char *name, const char *text)
{
    struct err e = {0};
    char *path = io_path("%s/%s", test_dir(), name);
    io_write_file(path, text, strlen(text), &e);
    err_raise(&e);
    return path;
}

static void cleaning(struct comm *world)
{
    (void)world;
    char *a = text_clean("  a \t\n red\r\nfox\x01. "), *b = text_clean(" \n ");
    EXPECT(strcmp(a, "a red fox .") == 0 && b[0] == 0, "\"%s\" \"%s\"", a, b);
    free(a);
    free(b);
    EXPECT(text_is_utf8("héllo 色") && !text_is_utf8("\xff") && !text_is_utf8("\xc0\x80") &&
               !text_is_utf8("a\xe8\x89"),
           "UTF-8");
}

static void demo_records(struct comm *world)
{
    (void)world;
    struct err e = {0};
    struct clip_list l = {0};
    EXPECT(meta_read(&l, "tests/clips/clips.json", NULL, &e), "%s", e.msg);
    EXPECT(l.n == 6 && l.clip[1].num_cap == 2 && l.clip[0].has_size && !l.clip[3].has_size &&
               l.clip[4].has_cut && l.clip[4].cut[1] == 81 &&
               strcmp(l.clip[5].file, "tests/clips/example_3_B.mp4") == 0,
           "%lld records", (long long)l.n);
    meta_free(&l);
    char *index = put("all.txt", "\n");
    char cwd[4096], text[20000];
    EXPECT(realpath("tests/clips", cwd) != NULL, "path");
    snprintf(text, sizeof text, "%s,%s/clips.json\r\n\n %s , %s/clips.json \n", cwd, cwd, cwd, cwd);
    free(index);
    index = put("all.txt", text);
    EXPECT(meta_read_index(&l, index, &e) && l.n == 12, "%s", e.msg);
    meta_free(&l);
    free(index);
}

static void csv_records(struct comm *world)
{
    (void)world;
    struct err e = {0};
    struct clip_list l = {0};
    char *path = put("a.csv", "\xEF\xBB\xBFpath,text,fps,num_frames\r\n"
                              "a b.mp4,\"He said \"\"go\"\", and\nwent\",23.976,\r\n"
                              "c.mp4,plain,,81");
    EXPECT(meta_read(&l, path, "/root", &e), "%s", e.msg);
    EXPECT(l.n == 2 && strcmp(l.clip[0].cap[0], "He said \"go\", and went") == 0 &&
               l.clip[0].fps == 23.976 && !l.clip[0].has_frames && l.clip[1].num_frames == 81 &&
               !l.clip[1].has_fps && strcmp(l.clip[1].file, "/root/c.mp4") == 0,
           "fields");
    meta_free(&l);
    free(path);
}

static void bad_descriptions(struct comm *world)
{
    (void)world;
    static const struct {
        const char *name, *text, *message;
    } bad[] = {
        {"a.json", "[\n {\"path\": \"x\",\n  \"cap\" \"y\"}\n]", "a.json:3:"},
        {"a.json", "[{\"path\":\"x\",\"path\":\"y\"}]", "not valid JSON: duplicate object key"},
        {"a.json", "{\"path\":\"x\"}", "must be a list of records, but is an object"},
        {"a.json", "[{\"path\":\"x\",\"cap\":\"y\"}, 5]", "record 1 must be an object"},
        {"a.json", "[{\"cap\":\"y\"}]",
         "record 0: key \"path\" must be a string of 1 to 4096 bytes,"
         " but is missing"},
        {"a.json", "[{\"path\":\"x\",\"cap\":[1]}]", "key \"cap\" must be a string or a list"},
        {"a.json", "[{\"path\":\"x\",\"fps\":\"24\"}]",
         "key \"fps\" must be a number, but is a str"},
        {"a.json", "[{\"path\":\"x\",\"cut\":[0]}]", "key \"cut\" must be two integers"},
        {"a.json", "[{\"path\":\"x\",\"num_frames\":8.5}]",
         "key \"num_frames\" must be an integer"},
        {"a.json", "[{\"path\":\"x\",\"resolution\":[1,2]}]", "key \"resolution\" must be"},
        {"a.json", "[{\"path\":\"x\",\"crop\":[1,2,3,\"4\"]}]", "key \"crop\" must be four"},
        {"a.json", "[{\"path\":\"x\",\"cap\":\"\xff\"}]", "not valid JSON"},
        {"a.csv", "path,label\nx,y\n", "column \"label\" is unknown"},
        {"a.csv", "path,text\nx,y,z\n", "a.csv:2: 3 fields, but 2 columns"},
        {"a.csv", "path,text\nx,\"y\nz", "a.csv:2: quoted field without a closing quote"},
        {"a.csv", "path,text\nx,\"y\"z\n", "a.csv:2: text after a closing quote"},
        {"a.csv", "path,text,fps\nx,y,fast\n", "a.csv:2: column fps: \"fast\" is not a number"},
        {"a.csv", "path,text\n,y\n", "a.csv:2: column path is empty"},
        {"a.csv", "path\nx\n", "there must be the columns path and text"},
        {"a.csv", "path,text\nx,\xff\n", "column text must be UTF-8"},
        {"a.txt", "x", "must be a .json or .csv file"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        struct clip_list l = {0};
        char *path = put(bad[i].name, bad[i].text);
        EXPECT(!meta_read(&l, path, NULL, &e) && strstr(e.msg, bad[i].message) && e.code,
               "case %zu: wanted \"%s\", got \"%s\"", i, bad[i].message, e.msg);
        meta_free(&l);
        free(path);
    }
    struct err e = {0};
    struct clip_list l = {0};
    EXPECT(!meta_read(&l, "no/such.json", NULL, &e) && e.code == RC_NOINPUT &&
               strstr(e.msg, "no/such.json: No such file"),
           "%s", e.msg);
    char *path = put("index.txt", "root only\n");
    EXPECT(!meta_read_index(&l, path, &e) && strstr(e.msg, "index.txt:1: expected"), "%s", e.msg);
    free(path);
    meta_free(&l);
}

/* Descriptions with random bytes changed, cut or doubled: an error with the path, or records. */
static void mutated(const char *name, const char *text, size_t n, uint64_t item)
{
    const struct rng_stream s = rng_open((struct rng_key){.use = RNG_TEST, .item = item});
    char *p = malloc(2 * n + 1);
    memcpy(p, text, n);
    static const char special[] = "\"\\{}[],:\n\r\t 0-9e.\xff\0u";
    for (uint64_t k = 0; k < 1 + item % 5; k++) {
        const size_t at = rng_word(s, 3 * k) % n;
        const uint32_t what = rng_word(s, 3 * k + 1), v = rng_word(s, 3 * k + 2);
        if (what % 4 == 0 && n > 20) n = at + 1; /* cut */
        if (what % 4 == 1) p[at] = special[v % sizeof special];
        if (what % 4 == 2) p[at] ^= (char)(1 << v % 8);
        if (what % 4 == 3) memmove(p + at, p + v % (at + 1), n - at);
    }
    struct err e = {0};
    struct clip_list l = {0};
    char *path = io_path("%s/%s", test_dir(), name);
    FILE *f = fopen(path, "wb");
    fwrite(p, 1, n, f);
    fclose(f);
    const bool ok = meta_read(&l, path, NULL, &e);
    EXPECT(ok != (e.code != 0) && (ok || strstr(e.msg, path)), "%d: %s", ok, e.msg);
    for (int64_t i = 0; i < l.n; i++) {
        EXPECT(l.clip[i].path[0], "a path");
        for (int64_t k = 0; k < l.clip[i].num_cap; k++)
            EXPECT(text_is_utf8(l.clip[i].cap[k]) && l.clip[i].cap[k][0], "a caption");
    }
    meta_free(&l);
    free(path);
    free(p);
}

static void random_damage(struct comm *world)
{
    (void)world;
    struct err e = {0};
    size_t n;
    char *json = io_read_file("tests/clips/clips.json", &n, &e);
    err_raise(&e);
    static const char csv[] =
        "path,text,num_frames,height,width,fps\r\n"
        "a.mp4,\"one \"\"two\"\", three\",81,480,832,16\r\nb.mp4,four,,,,\r\n";
    const uint64_t times = (uint64_t)test_inputs(test_fast() ? 500 : 5000);
    for (uint64_t i = 0; i < times; i++) {
        mutated("mutated.json", json, n, i);
        mutated("mutated.csv", csv, sizeof csv - 1, i);
    }
    printf("    %llu damaged descriptions of each kind\n", (unsigned long long)times);
    free(json);
}

/* A clip that passes, and one change per rule. */
static const struct filter_opts opts = {.sample_height = 720,
                                        .sample_width = 1280,
                                        .sample_num_frames = 81,
                                        .train_fps = 16,
                                        .min_hxw = 921600,
                                        .too_long_factor = 5,
                                        .max_h_div_w_ratio = 1.2,
                                        .min_h_div_w_ratio = 0.4,
                                        .min_motion_value = 0.1,
                                        .max_motion_value = 0.5};
static char *captions[] = {"a caption"};

static void one_record_per_rule(struct comm *world)
{
    (void)world;
    const struct clip_record good = {.cap = captions, .num_cap = 1, .motion = 0.2};
    const struct video_info file = {1280, 720, 200, 24};
    struct clip_record c[] = {[0] = good, good, good, good, good, good, good, good, good,
                              good,       good, good, good, good, good, good, good};
    struct video_info v[17];
    for (int i = 0; i < 17; i++) v[i] = file;
    c[1].num_cap = 0;
    c[2].has_size = true, c[2].width = 1280;
    c[3].has_size = true, c[3].height = 720, c[3].width = 1281;
    c[4].has_fps = true, c[4].fps = 24.11;
    c[5].has_frames = true, c[5].num_frames = 199;
    c[6].has_cut = true, c[6].cut[0] = 100, c[6].cut[1] = 201;
    c[7].has_crop = true, c[7].crop = (struct video_crop){0, 1280, 10, 721};
    v[8].height = 1537;
    v[9].width = 1279;
    v[10].frames = 608;
    v[11].fps = 15.8;
    c[12].motion = 0.09;
    c[13].motion = 0.51;
    v[14].frames = 120;
    c[15].has_cut = true, c[15].cut[0] = 10, c[15].cut[1] = 130; /* its end counts */
    v[16].fps = 16.05, v[16].frames = 80;
    static const enum rule want[17] = {
        RULE_ACCEPTED,       RULE_NO_CAPTION,      RULE_NO_RESOLUTION, RULE_CONTRADICTION,
        RULE_CONTRADICTION,  RULE_CONTRADICTION,   RULE_CONTRADICTION, RULE_CONTRADICTION,
        RULE_ASPECT_RATIO,   RULE_TOO_SMALL,       RULE_TOO_LONG,      RULE_FPS_TOO_LOW,
        RULE_MOTION_TOO_LOW, RULE_MOTION_TOO_HIGH, RULE_TOO_SHORT,     RULE_TOO_SHORT,
        RULE_TOO_SHORT};
    static const char *const text[17] = {
        "",
        "no caption",
        "resolution 0 x 1280",
        "resolution 720 x 1281 in the record, 720 x 1280 in the file",
        "fps 24.11 in the record, 24 in the file",
        "num_frames 199 in the record, 200 in the file",
        "cut [100, 201) of a file of 200 frames",
        "crop x [0, 1280), y [10, 721)",
        "height / width = 1.201",
        "pixels, at least",
        "608 frames, at most 607.5",
        "15.8 frames per",
        "motion 0.09, at least 0.1",
        "motion 0.51, at most 0.5",
        "80 frames (120 at 24",
        "80 frames (120 at 24",
        "80 frames (80 at 16.05"};
    for (int i = 0; i < 17; i++) {
        struct clip_plan p;
        char detail[256];
        const enum rule r = filter_clip(&c[i], &v[i], &opts, &p, detail);
        EXPECT(r == want[i] && strstr(detail, text[i]), "case %d: %s (%s), wanted %s (%s)", i,
               rule_name(r), detail, rule_name(want[i]), text[i]);
    }
}

static void frames_of_the_plan(struct comm *world)
{
    (void)world;
    struct clip_record c = {.cap = captions,
                            .num_cap = 1,
                            .motion = 0.2,
                            .has_cut = true,
                            .cut = {7, 160},
                            .has_frames = true,
                            .num_frames = 153};
    const struct video_info v = {1280, 720, 200, 30};
    struct clip_plan p;
    char detail[256];
    EXPECT(filter_clip(&c, &v, &opts, &p, detail) == RULE_ACCEPTED, "%s", detail);
    EXPECT(p.step == 1.875 && p.count == 82 && p.start == 7, "step %g, %lld frames", p.step,
           (long long)p.count);
    static const int64_t want[] = {7, 8, 10, 12, 14, 16, 18, 20, 22};
    for (int k = 0; k < 9; k++) EXPECT(filter_frame(&p, k) == want[k], "frame %d", k);
    EXPECT(filter_frame(&p, p.count - 1) < 160, "inside the cut");
    struct filter_opts o = opts;
    o.train_fps = 0;
    o.sample_stride = 3;
    o.sample_num_frames = 51;
    EXPECT(filter_clip(&c, &v, &o, &p, detail) == RULE_ACCEPTED && p.step == 3 && p.count == 51 &&
               filter_frame(&p, 50) == 157,
           "stride mode: %s", detail);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"captions are trimmed and checked", cleaning, {0}, 0},
        {"official JSON and the index file", demo_records, {0}, 0},
        {"CSV: quotes, byte order mark, missing values", csv_records, {0}, 0},
        {"bad descriptions are refused with place and key", bad_descriptions, {0}, 0},
        {"randomly damaged descriptions never crash", random_damage, {0}, 0},
        {"one record per rule", one_record_per_rule, {0}, 0},
        {"frames of a cut, by rate and by stride", frames_of_the_plan, {0}, 0},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
