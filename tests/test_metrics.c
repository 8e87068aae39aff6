/* What a run writes for people: JSON lines and TensorBoard records. */
#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/fault.h"
#include "core/io.h"
#include "core/log.h"
#include "tests/check.h"
#include "train/metrics.h"
#include "train/tensorboard.h"

/* The bytes of a file as hex text. */
static char *hex_of(const char *path)
{
    struct err e = {0};
    size_t n = 0;
    uint8_t *p = (uint8_t *)(void *)io_read_file(path, &n, &e);
    EXPECT(!e.code, "%s", e.msg);
    char *text = calloc(2 * n + 1, 1);
    for (size_t i = 0; i < n; i++) sprintf(text + 2 * i, "%02x", p[i]);
    free(p);
    return text;
}

#define FIRST "1800000000000000a37f4b220900000040fc54d9411a0d627261696e2e4576656e743a32eced8f9d"
#define SCALAR                                                                                     \
    "200000000000000029eda9500900004040fc54d94110072a130a110a0a747261696e2f6c6f7373150000003e8385" \
    "957f"
#define PURGE "0f000000000000006d532b090900008040fc54d94110073a020801d1e17c88"
#define TEXT                                                                                       \
    "410000000000000000a9c2ab0900008040fc54d94110002a340a320a13636f6e6669672f746578745f73756d6d61" \
    "72"                                                                                           \
    "79421108071204120208014207736565643a20314a080a060a04746578744a3032c3"

static void golden_records(struct comm *world)
{
    (void)world;
    struct err e = {0};
    char *dir = io_path("%s/golden", test_dir());
    struct tensorboard *t = tensorboard_open(dir, 1700000000.0, -1, &e);
    EXPECT(t && !e.code, "%s", e.msg);
    const char *tag = "train/loss";
    const double loss = 0.125;
    tensorboard_scalars(t, 1700000001.0, 7, &tag, &loss, 1, &e);
    tensorboard_scalars(t, 1700000001.0, 7, NULL, NULL, 0, &e);
    tensorboard_text(t, 1700000002.0, 0, "config/text_summary", "seed: 1", &e);
    EXPECT(!e.code, "%s", e.msg);
    EXPECT(strstr(tensorboard_path(t), "/events.out.tfevents.1700000000."), "%s",
           tensorboard_path(t));
    char *hex = hex_of(tensorboard_path(t));
    EXPECT(strcmp(hex, FIRST SCALAR TEXT) == 0, "\n%s\n%s", hex, FIRST SCALAR TEXT);
    free(hex);
    /* the second start within the same second has its own file and purges */
    struct tensorboard *u = tensorboard_open(dir, 1700000002.0, 7, &e);
    struct tensorboard *v = tensorboard_open(dir, 1700000002.0, 7, &e);
    EXPECT(u && v && strcmp(tensorboard_path(u), tensorboard_path(v)) < 0, "two files, in order");
    hex = hex_of(tensorboard_path(v));
    const size_t n = strlen(hex), k = strlen(PURGE);
    EXPECT(n > k && strcmp(hex + n - k, PURGE) == 0, "%s", hex);
    free(hex);
    tensorboard_close(t);
    tensorboard_close(u);
    tensorboard_close(v);
    free(dir);
}

static void image_record(struct comm *world)
{
    (void)world;
    struct err e = {0};
    char *dir = io_path("%s/image", test_dir());
    struct tensorboard *t = tensorboard_open(dir, 1, -1, &e);
    tensorboard_image(t, 1, 300, "samples", 2, 300, "PNG", 3, &e);
    char *hex = hex_of(tensorboard_path(t));
    /* step 300; tag, then height 2, width 300, RGB, three bytes */
    EXPECT(strstr(hex, "10ac022a"), "%s", hex);
    EXPECT(strstr(hex, "0a0773616d706c6573220c080210ac0218032203504e47"), "%s", hex);
    free(hex);
    tensorboard_close(t);
    free(dir);
}

/* Lines of a metrics file as JSON values; NULL where a line does not parse. */
static int read_lines(const char *dir, json_t **out, int most)
{
    struct err e = {0};
    char *path = io_path("%s/metrics.jsonl", dir), *text = io_read_file(path, NULL, &e), *save;
    EXPECT(!e.code, "%s", e.msg);
    int n = 0;
    for (char *l = strtok_r(text, "\n", &save); l && n < most; l = strtok_r(NULL, "\n", &save))
        out[n++] = json_loads(l, 0, NULL);
    free(text);
    free(path);
    return n;
}

static void free_lines(json_t **l, int n)
{
    for (int i = 0; i < n; i++) json_decref(l[i]);
}

static double num(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static const char *str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static void lines_hold_values(struct comm *world)
{
    (void)world;
    struct err e = {0};
    char *dir = io_path("%s/lines", test_dir());
    struct metrics *m = metrics_open(dir, 0, -1, &e);
    EXPECT(m && !e.code, "%s", e.msg);
    metrics_text(m, "config", "a: \"x\\y\"\n\tb: 2\n");
    metrics_put(m, "train/loss", 9);
    metrics_put(m, "train/loss", 0.1f); /* the later one counts */
    metrics_put(m, "train/lr", 1.0 / 3);
    metrics_put(m, "bad", NAN);
    metrics_put(m, "up", INFINITY);
    metrics_put(m, "down", -INFINITY);
    metrics_flush(m, 12, 3.25);
    metrics_flush(m, 13, 4); /* nothing was put: no line */
    metrics_event(m, "finished", 13);
    metrics_close(m);
    json_t *l[8];
    const int n = read_lines(dir, l, 8);
    EXPECT(n == 3 && l[0] && l[1] && l[2], "%d lines", n);
    EXPECT(strcmp(str(l[0], "text"), "a: \"x\\y\"\n\tb: 2\n") == 0, "%s", str(l[0], "text"));
    EXPECT(num(l[1], "step") == 12 && num(l[1], "wall_s") == 3.25, "step and time");
    EXPECT((float)num(l[1], "train/loss") == 0.1f && num(l[1], "train/lr") == 1.0 / 3, "exact");
    EXPECT(!strcmp(str(l[1], "bad"), "nan") && !strcmp(str(l[1], "up"), "inf") &&
               !strcmp(str(l[1], "down"), "-inf"),
           "not finite: %s %s %s", str(l[1], "bad"), str(l[1], "up"), str(l[1], "down"));
    EXPECT(strlen(str(l[1], "t")) == 20 && str(l[1], "t")[19] == 'Z', "%s", str(l[1], "t"));
    EXPECT(!strcmp(str(l[2], "event"), "finished") && num(l[2], "step") == 13, "event");
    free_lines(l, n);
    EXPECT(!metrics_open(dir, 1, 0, &e) && !e.code, "rank 1 writes nothing");
    metrics_put(NULL, "x", 1);
    metrics_text(NULL, "x", "");
    metrics_event(NULL, "x", 1);
    metrics_flush(NULL, 1, 1);
    metrics_close(NULL);
    free(dir);
}

static void append(const char *dir, const char *text)
{
    char *path = io_path("%s/metrics.jsonl", dir);
    FILE *f = fopen(path, "a");
    fputs(text, f);
    fclose(f);
    free(path);
}

static void resume_after_a_cut(struct comm *world)
{
    (void)world;
    struct err e = {0};
    char *dir = io_path("%s/resume", test_dir());
    struct metrics *m = metrics_open(dir, 0, -1, &e);
    metrics_put(m, "a", 1);
    metrics_flush(m, 10, 1);
    metrics_close(m);
    append(dir, "{\"t\":\"2026-01-01T00:00:00Z\",\"step\":1"); /* the job was killed here */
    m = metrics_open(dir, 0, 5, &e);
    metrics_put(m, "a", 2);
    metrics_flush(m, 6, 2);
    metrics_close(m);
    m = metrics_open(dir, 0, -1, &e); /* started over in the same folder */
    metrics_close(m);
    json_t *l[8];
    const int n = read_lines(dir, l, 8);
    EXPECT(n == 5 && l[0] && !l[1] && l[2] && l[3] && l[4], "%d lines", n);
    EXPECT(!strcmp(str(l[2], "event"), "resume") && num(l[2], "from_step") == 6,
           "the step of the checkpoint stays");
    EXPECT(num(l[3], "step") == 6, "a whole line after it");
    EXPECT(num(l[4], "from_step") == 0 && !strcmp(str(l[4], "event"), "resume"), "starts over");
    free_lines(l, n);
    char *tb = io_path("%s/tb", dir);
    DIR *d = opendir(tb);
    int files = 0;
    for (struct dirent *f; (f = readdir(d));) files += strstr(f->d_name, "tfevents") != NULL;
    closedir(d);
    EXPECT(files == 3, "%d event files, one per start", files);
    free(tb);
    free(dir);
}

static void errors_are_told(struct comm *world)
{
    (void)world;
    struct err e = {0};
    char *dir = io_path("%s/errors", test_dir());
    struct metrics *m = metrics_open(dir, 0, -1, &e);
    log_set_level(LOG_WARN + 1); /* the warning is expected; keep it out of the test's output */
    fault_set("metrics:1");
    metrics_put(m, "a", 1);
    metrics_flush(m, 1, 1);
    fault_set("tensorboard:1");
    metrics_put(m, "a", 2);
    metrics_flush(m, 2, 1);
    fault_set(NULL);
    metrics_close(m);
    log_set_level(LOG_WARN);
    json_t *l[4];
    const int n = read_lines(dir, l, 4);
    EXPECT(n == 1 && num(l[0], "step") == 2, "the run goes on after a lost line: %d", n);
    free_lines(l, n);
    fault_set("tensorboard:1");
    EXPECT(!metrics_open(dir, 0, 0, &e) && e.code == RC_IO, "%d %s", e.code, e.msg);
    fault_set(NULL);
    e = (struct err){0};
    char *file = io_path("%s/metrics.jsonl/x", dir);
    EXPECT(!metrics_open(file, 0, -1, &e) && e.code, "a file is no folder");
    free(file);
    free(dir);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"event files match the golden records, byte by byte", golden_records, {0}, 0},
        {"an image is a record with size and bytes", image_record, {0}, 0},
        {"lines give back every number, also those JSON has no word for",
         lines_hold_values,
         {0},
         0},
        {"a resume starts a line of its own after a cut one", resume_after_a_cut, {0}, 0},
        {"a write that fails is told and costs one line", errors_are_told, {0}, 0},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
