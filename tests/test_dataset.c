/* Building a data set from the demo clips; the file; what happens when things break. */
#include <fcntl.h>
#include <glob.h>
#include <hdf5.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/fault.h"
#include "core/io.h"
#include "core/log.h"
#include "data/build.h"
#include "data/codec.h"
#include "data/dataset.h"
#include "data/dataset_write.h"
#include "tests/check.h"
#include "tests/process.h"

enum { F = 9, H = 32, W = 48, Z = 12 * F * (H / 2) * (W / 2), DIM = 16, LEN = 40 };

static struct data_build config(const char *name)
{
    return (struct data_build){.meta_path = "tests/clips/clips.json",
                               .save_path = io_path("%s/%s", test_dir(), name),
                               .codec = "pixel",
                               .text_codec = "hash",
                               .filter = {.sample_height = H,
                                          .sample_width = W,
                                          .sample_num_frames = F,
                                          .train_fps = 16,
                                          .min_hxw = 1000,
                                          .too_long_factor = 100,
                                          .max_h_div_w_ratio = 2,
                                          .min_h_div_w_ratio = 0.3,
                                          .max_motion_value = 1},
                               .window_stride = 12,
                               .text_dim = DIM,
                               .text_len = LEN,
                               .max_failure_rate = 0.5};
}

/* Files whose names begin with path: the data set, temporary files, the lock. */
static int count_files(const char *path)
{
    char *pattern = io_path("%s*", path);
    glob_t found;
    const int n = glob(pattern, 0, NULL, &found) == 0 ? (int)found.gl_pathc : 0;
    globfree(&found);
    free(pattern);
    return n;
}

static char *put(const char *name, const void *text, size_t n)
{
    struct err e = {0};
    char *path = io_path("%s/%s", test_dir(), name);
    io_write_file(path, text, n, &e);
    err_raise(&e);
    return path;
}

/* One file for all tests of this program. */
static const char *demo(void)
{
    static char *path;
    if (!path) {
        struct err e = {0};
        struct data_build g = config("demo.h5");
        build_dataset(&g, NULL, &e);
        err_raise(&e);
        path = (char *)g.save_path;
    }
    return path;
}

static void built_from_clips(struct comm *world)
{
    (void)world;
    struct err e = {0};
    struct data_build g = config("first.h5");
    struct build_report r;
    EXPECT(build_dataset(&g, &r, &e), "%s", e.msg);
    /* resampled lengths 84, 82 (81.07), 96, 86 (85.3), 54 (cut), 60: windows (n - 9) / 12 + 1 */
    EXPECT(r.clips == 6 && r.count[RULE_ACCEPTED] == 6 && r.samples == 7 + 7 + 8 + 7 + 4 + 5,
           "%lld samples", (long long)r.samples);
    struct dataset *d = dataset_open(g.save_path, 0, &e);
    EXPECT(d, "%s", e.msg);
    if (!d) return;
    EXPECT(d->n == r.samples && d->c == 12 && d->t == F && d->h == H / 2 && d->w == W / 2 &&
               d->text_dim == DIM && d->fps == 16 && d->num_captions == 4 &&
               strcmp(d->codec, "pixel") == 0 && d->num_train == d->n && d->num_valid == 0,
           "header; %lld captions", (long long)d->num_captions);
    EXPECT(strcmp(dataset_id(d, 1), "example_1_A.mp4#0@18") == 0, "%s", dataset_id(d, 1));
    EXPECT(dataset_captions_of(d, 0) == 1 && dataset_captions_of(d, 7) == 2 &&
               dataset_caption_of(d, 7, 0) == dataset_caption_of(d, 0, 0),
           "captions are kept once");
    /* sample 8: second window of example_1_B, 30 -> 16 per second */
    static float z[Z], want[Z];
    static uint8_t rgb[3 * F * H * W];
    int64_t index[F], start;
    EXPECT(dataset_clip(d, 8, &start) == 1 && start == 12, "window at %lld", (long long)start);
    for (int k = 0; k < F; k++) index[k] = (int64_t)((12 + k) * 1.875);
    const struct video_crop whole = {0};
    EXPECT(video_read("tests/clips/example_1_B.mp4", index, F, whole, H, W, rgb, &e), "%s", e.msg);
    video_codec_find("pixel", &e)->encode(want, rgb, F, H, W);
    dataset_latent(d, 8, z, &e);
    EXPECT(!e.code && memcmp(z, want, sizeof z) == 0, "latent is that of its frames %s", e.msg);
    dataset_close(d);

    struct stat a, b;
    stat(g.save_path, &a);
    EXPECT(build_dataset(&g, &r, &e) && r.kept, "second build leaves the file alone");
    stat(g.save_path, &b);
    EXPECT(a.st_ino == b.st_ino && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec, "untouched");
    free((char *)g.save_path);
}

static void expect_kept(const struct data_build *g, const char *text)
{
    struct err e = {0};
    struct stat a, b;
    stat(g->save_path, &a);
    EXPECT(!build_dataset(g, NULL, &e) && e.code == RC_CONFIG && strstr(e.msg, text) &&
               strstr(e.msg, "overwrite: true"),
           "wanted \"%s\", got %d \"%s\"", text, e.code, e.msg);
    stat(g->save_path, &b);
    EXPECT(a.st_ino == b.st_ino && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec, "untouched");
}

/* What others may be using is replaced only when that is asked for. */
static void never_replaced_silently(struct comm *world)
{
    (void)world;
    struct err e = {0};
    struct data_build made = config("mine.h5"), g = made;
    struct build_report r;
    EXPECT(build_dataset(&g, &r, &e) && r.cut == 0, "%s", e.msg);
    g.window_stride = 0;
    expect_kept(&g, "its 38 samples were made with other settings:\n  window_stride: null, but the "
                    "data set was made with 12\n");
    g.text_dim = DIM + 1;
    expect_kept(&g, "\n  text_dim: ");
    g = made;
    g.filter.min_hxw = 1001;
    expect_kept(&g, "made from other clips or with other filter limits");
    g.overwrite = true;
    EXPECT(build_dataset(&g, &r, &e) && !r.kept, "%s", e.msg);
    g = made;
    g.overwrite = true;
    g.window_stride = 0;
    g.text_len = 2;
    EXPECT(build_dataset(&g, &r, &e) && !r.kept && r.samples == 6, "one window per clip: %s",
           e.msg);
    EXPECT(r.cut == 4, "%lld of 4 different captions are cut", (long long)r.cut);
    EXPECT(build_dataset(&g, &r, &e) && r.kept, "nothing to replace: %s", e.msg);
    io_write_file(made.save_path, "a diary", 7, &e);
    expect_kept(&made, "it is no data set that can be read: ");
    free((char *)made.save_path);
}

static void text_rows(struct comm *world)
{
    (void)world;
    struct err e = {0};
    struct dataset *d = dataset_open(demo(), 0, &e);
    EXPECT(d, "%s", e.msg);
    float got[LEN * DIM], want[LEN * DIM];
    const struct text_codec *c = text_codec_find("hash", &e);
    for (int64_t i = -1; i < d->num_captions; i++) {
        for (int64_t len = 1; len <= LEN; len += 13) {
            c->encode(want, len, DIM, i < 0 ? "" : dataset_caption(d, i));
            dataset_text(d, i, len, got, &e);
            EXPECT(!e.code && memcmp(got, want, (size_t)(len * DIM) * sizeof *got) == 0,
                   "caption %lld, %lld rows %s", (long long)i, (long long)len, e.msg);
        }
    }
    dataset_close(d);
}

static void split_by_window(struct comm *world)
{
    (void)world;
    struct err e = {0};
    struct dataset *d = dataset_open(demo(), 0.25, &e);
    EXPECT(d, "%s", e.msg);
    EXPECT(d->num_train > 0 && d->num_valid > 0 && d->num_train + d->num_valid < d->n,
           "%lld train, %lld valid of %lld", (long long)d->num_train, (long long)d->num_valid,
           (long long)d->n);
    static const int64_t length[6] = {84, 82, 96, 86, 54, 60};
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < (pass ? d->num_valid : d->num_train); i++) {
            int64_t start;
            const int64_t n = length[dataset_clip(d, (pass ? d->valid : d->train)[i], &start)];
            EXPECT(pass ? start >= 0.75 * (double)n : start + F <= 0.75 * (double)n,
                   "window at %lld of %lld", (long long)start, (long long)n);
        }
    }
    dataset_close(d);
    EXPECT(!dataset_open(demo(), 1.5, &e) && strstr(e.msg, "window 1.5"), "%s", e.msg);
}

static void broken_clips(struct comm *world)
{
    (void)world;
    struct err e = {0};
    size_t n;
    char *clip = io_read_file("tests/clips/example_3_B.mp4", &n, &e);
    err_raise(&e);
    free(put("good.mp4", clip, n));
    free(put("cut.mp4", clip, n / 3));
    free(clip);
    static const char *records =
        "[{\"path\":\"good.mp4\",\"cap\":\"a\"}, {\"path\":\"absent.mp4\",\"cap\":\"a\"},"
        " {\"path\":\"cut.mp4\",\"cap\":\"a\"}, {\"path\":\"good.mp4\",\"cap\":\" \"},"
        " {\"path\":\"good.mp4\",\"cap\":\"a\",\"fps\":24},"
        " {\"path\":\"good.mp4\",\"cap\":\"a\",\"cut\":[0,8]},"
        " {\"path\":\"good.mp4\",\"cap\":\"a\",\"resolution\":{\"height\":192,\"width\":340}},"
        " {\"path\":\"good.mp4\",\"cap\":\"a\"}]";
    char *meta = put("broken.json", records, strlen(records));
    struct data_build g = config("broken.h5");
    g.meta_path = meta;
    struct build_report r;
    EXPECT(build_dataset(&g, &r, &e), "%s", e.msg);
    EXPECT(r.count[RULE_ACCEPTED] == 2 && r.count[RULE_UNREADABLE] == 1 &&
               r.count[RULE_DECODE_FAILED] == 1 && r.count[RULE_NO_CAPTION] == 1 &&
               r.count[RULE_CONTRADICTION] == 2 && r.count[RULE_TOO_SHORT] == 1,
           "counts");
    const hid_t f = H5Fopen(g.save_path, H5F_ACC_RDONLY, H5P_DEFAULT);
    const hid_t set = H5Dopen2(f, "/rejected/detail", H5P_DEFAULT), t = H5Dget_type(set);
    char *text = calloc(6, H5Tget_size(t));
    H5Dread(set, t, H5S_ALL, H5S_ALL, H5P_DEFAULT, text);
    EXPECT(strstr(text, "absent.mp4: No such file"), "%s", text);
    free(text), H5Tclose(t), H5Dclose(set), H5Fclose(f);

    g.max_failure_rate = 0.4; /* 4 of 8 are broken */
    free((char *)g.save_path);
    g.save_path = io_path("%s/rate.h5", test_dir());
    EXPECT(!build_dataset(&g, &r, &e) && e.code == RC_DATA &&
               strstr(e.msg, "4 of 8 clips are broken, more than max_failure_rate 0.4"),
           "%s", e.msg);
    EXPECT(count_files(g.save_path) == 0, "something is left behind");
    e = (struct err){0};
    g.max_failure_rate = 1;
    g.filter.sample_num_frames = 200;
    EXPECT(!build_dataset(&g, &r, &e) && strstr(e.msg, "no samples: all 8 clips"), "%s", e.msg);
    EXPECT(count_files(g.save_path) == 0, "something is left behind");
    free((char *)g.save_path), free(meta);
}

static bool at_once(void) { return true; }

static void expect_failed(const struct data_build *g, const char *text, int code)
{
    struct err e = {0};
    const bool ok = build_dataset(g, NULL, &e);
    EXPECT(!ok && strstr(e.msg, text) && e.code == code && !io_exists(g->save_path),
           "wanted \"%s\" (%d), got \"%s\" (%d)", text, code, e.msg, e.code);
}

static void bad_jobs(struct comm *world)
{
    (void)world;
    struct data_build good = config("bad.h5"), g = good;
    g.codec = "wan";
    expect_failed(&g, "unknown video codec", RC_CONFIG);
    g = good;
    g.text_codec = "t5";
    expect_failed(&g, "unknown text codec", RC_CONFIG);
    g = good;
    g.filter.sample_width = 50;
    expect_failed(&g, "multiples of 4", RC_CONFIG);
    g = good;
    g.meta_path = NULL;
    expect_failed(&g, "one of ann_txt_path and meta_path must be set", RC_CONFIG);
    g.meta_path = "no/clips.json";
    expect_failed(&g, "no/clips.json: No such file", RC_NOINPUT);
    char *none = put("none.json", "[]", 2);
    g.meta_path = none;
    expect_failed(&g, "none.json: no records", RC_DATA);
    free(none);
    g = good;
    g.interrupted = at_once;
    expect_failed(&g, "interrupted before it was complete", RC_PREEMPTED);
    g = good;
    g.save_path = "/proc/no/place.h5";
    expect_failed(&g, "/proc/no", RC_CANTCREAT);
    free((char *)good.save_path);
}

/* Killed while writing: nothing under the final name, and the next run does the job. */
static void killed(struct comm *world)
{
    (void)world;
    struct err e = {0};
    struct data_build g = config("killed.h5");
    for (int ms = 5; ms <= 85; ms += test_fast() ? 40 : 20) {
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            build_dataset(&g, NULL, &e);
            _exit(0);
        }
        usleep((useconds_t)ms * 1000);
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        if (io_exists(g.save_path)) { /* it was faster: then the file must be whole */
            struct dataset *d = dataset_open(g.save_path, 0, &e);
            EXPECT(d, "%s", e.msg);
            dataset_close(d);
            unlink(g.save_path);
        }
    }
    struct build_report r;
    EXPECT(build_dataset(&g, &r, &e) && r.samples == 38, "%s", e.msg);
    EXPECT(count_files(g.save_path) == 1, "temporary files of killed jobs stay");
    free((char *)g.save_path);
}

/* A full disk, played by a limit on the size of files: an error, no file, and a normal end. */
static void disk_full(struct comm *world)
{
    (void)world;
    struct data_build g = config("full.h5");
    for (rlim_t bytes = 1000; bytes <= 600000; bytes *= test_fast() ? 9 : 3) {
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            const struct rlimit limit = {bytes, bytes};
            setrlimit(RLIMIT_FSIZE, &limit);
            signal(SIGXFSZ, SIG_IGN);
            alarm(20);
            struct err e = {0};
            const bool ok = build_dataset(&g, NULL, &e);
            int rc = ok ? 1 : 0;
            if (e.code != RC_IO && e.code != RC_CANTCREAT) rc = 2;
            if (!strstr(e.msg, "full.h5")) rc = 3;
            if (count_files(g.save_path)) rc = 4;
            setenv("PATH", "/nowhere", 1); /* the harness would remove the parent's files */
            EXPECT(freopen("/dev/null", "w", stderr), "quiet");
            exit(rc); /* not _exit: the exit handlers must work too */
        }
        int status;
        waitpid(child, &status, 0);
        EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "limit %lld: status %x",
               (long long)bytes, (unsigned)status);
    }
    free((char *)g.save_path);
}

/* Every file operation made to fail in turn: no data set, or (after the rename) a complete one. */
static void failing_operations(struct comm *world)
{
    (void)world;
    struct data_build g = config("fault.h5");
    int n = 1;
    for (bool ok = false; !ok && n < 50; n += test_fast() ? 3 : 1) {
        struct err e = {0}, e2 = {0};
        char spec[32];
        snprintf(spec, sizeof spec, "io:%d", n);
        fault_set(spec);
        ok = build_dataset(&g, NULL, &e);
        fault_set(NULL);
        EXPECT(ok || strstr(e.msg, "Input/output error"), "%s", e.msg);
        EXPECT(count_files(g.save_path) == io_exists(g.save_path), "operation %d leaves a file", n);
        if (io_exists(g.save_path)) {
            struct dataset *d = dataset_open(g.save_path, 0, &e2);
            EXPECT(d, "operation %d: %s", n, e2.msg);
            dataset_close(d);
            io_unlink(g.save_path, &e2);
        } else {
            EXPECT(!ok, "a success without a file");
        }
    }
    EXPECT(n > 4 && n < 50, "%d operations", n);
    free((char *)g.save_path);
}

/* ---- damaged files ----------------------------------------------------------------------------*/
static void expect_refused(const char *path, const char *text, int code)
{
    struct err e = {0};
    struct dataset *d = dataset_open(path, 0, &e);
    EXPECT(!d && e.code == code && strstr(e.msg, text) && strstr(e.msg, path),
           "wanted \"%s\" (%d), got \"%s\" (%d)", text, code, e.msg, e.code);
    dataset_close(d);
}

static char *changed(const char *name, const char *object, const char *attribute, hid_t type,
                     const void *value)
{
    struct err e = {0};
    size_t n;
    char *p = io_read_file(demo(), &n, &e);
    err_raise(&e);
    char *path = put(name, p, n);
    free(p);
    const hid_t f = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    if (attribute) {
        H5Adelete_by_name(f, object, attribute, H5P_DEFAULT);
        const hid_t s = H5Screate(H5S_SCALAR);
        const hid_t a =
            H5Acreate_by_name(f, object, attribute, type, s, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        H5Sclose(s);
        EXPECT(a >= 0 && H5Awrite(a, type, value) >= 0, "change %s", attribute);
        H5Aclose(a);
    } else if (value) { /* first element */
        const hid_t d = H5Dopen2(f, object, H5P_DEFAULT), s = H5Dget_space(d);
        const hsize_t at = 0, one = 1;
        const hid_t m = H5Screate_simple(1, &one, NULL);
        H5Sselect_hyperslab(s, H5S_SELECT_SET, &at, NULL, &one, NULL);
        EXPECT(H5Dwrite(d, type, m, s, H5P_DEFAULT, value) >= 0, "change %s", object);
        H5Sclose(m), H5Sclose(s), H5Dclose(d);
    } else {
        EXPECT(H5Ldelete(f, object, H5P_DEFAULT) >= 0, "remove %s", object);
    }
    H5Fclose(f);
    return path;
}

static void refused_files(struct comm *world)
{
    (void)world;
    expect_refused("no/such.h5", "No such file", RC_NOINPUT);
    expect_refused("tests", "not a regular file", RC_DATA);
    expect_refused("tests/clips/clips.json", "not an HDF5 file", RC_DATA);
    struct err e = {0};
    size_t n;
    char *p = io_read_file(demo(), &n, &e);
    char *cut = put("short.h5", p, n - 100);
    expect_refused(cut, "cut off", RC_DATA);
    free(p), free(cut);

    const int64_t two = 2, big = 1 << 20, minus = -1, nine = 8;
    char format[8] = "x", codec[8] = "wan";
    const hid_t text = H5Tcopy(H5T_C_S1);
    H5Tset_size(text, 8);
    H5Tset_cset(text, H5T_CSET_UTF8);
    const hid_t i64 = H5T_NATIVE_INT64;
    const struct {
        const char *object, *attribute;
        hid_t type;
        const void *value;
        const char *message;
    } bad[] = {
        {"/meta", "version", i64, &big, "data set version 1048576, but this program reads"},
        {"/meta", "format", text, format, "format \"x\" is not \"osp-data\""},
        {"/meta", "codec", text, codec, "unknown video codec \"wan\""},
        {"/meta", "codec_revision", text, format, "made with revision x of codec pixel"},
        {"/meta", "frames", i64, &nine, "do not belong to codec pixel"},
        {"/meta", "frames", i64, &big, "do not belong to codec pixel"},
        {"/meta", "text_dim", i64, &nine, "text rows of 16 values, text_dim is 8"},
        {"/meta", "window_stride", i64, &nine, "but the content has"},
        {"/text/first", NULL, i64, &two, "/text/first runs from 2"},
        {"/sample_caption/first", NULL, i64, &minus, "/sample_caption/first runs from -1"},
        {"/sample_caption/index", NULL, i64, &big, "caption 1048576 of 4"},
        {"/source/clip", NULL, i64, &big, "sample 0 is of clip 1048576 of 6"},
        {"/source/start", NULL, i64, &minus, "sample 0: window at -1"},
        {"/source/frames", NULL, i64, &minus, "clip 0 of -1 frames"},
        {"/source/first", NULL, i64, &minus, "clip 0 is source frames [-1, 126)"},
        {"/source/end", NULL, i64, &two, "sample 0: source frames 0 to 12 of clip [0, 2)"},
        {"/source/last", NULL, i64, &minus, "sample 0: source frames 0 to -1 of clip [0, 126)"},
        {"/id", NULL, 0, NULL, "damaged data set: /id cannot be opened"},
        {"/latents", NULL, 0, NULL, "damaged data set: /latents cannot be opened"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *path = changed("bad.h5", bad[i].object, bad[i].attribute, bad[i].type, bad[i].value);
        expect_refused(path, bad[i].message, RC_DATA);
        free(path);
    }
    H5Tclose(text);
}

/* Opens and reads everything; true when something was refused. */
static bool refused(const char *path)
{
    struct err e = {0};
    static float z[Z], text[LEN * DIM];
    struct dataset *d = dataset_open(path, 0.2, &e);
    if (!d) return true;
    for (int64_t i = 0; i < d->n && !e.code; i++) dataset_latent(d, i, z, &e);
    for (int64_t i = -1; i < d->num_captions && !e.code; i++) dataset_text(d, i, LEN, text, &e);
    dataset_close(d);
    return e.code != 0;
}

/* Any changed byte is either refused or harmless, and never a crash: the reads are compared. */
static void flipped_bytes(struct comm *world)
{
    (void)world;
    struct err e = {0};
    struct data_build g = config("small.h5");
    g.filter.sample_height = g.filter.sample_width = 8;
    g.filter.min_h_div_w_ratio = 0.1;
    g.filter.sample_num_frames = 1;
    g.window_stride = 40;
    build_dataset(&g, NULL, &e);
    err_raise(&e);
    size_t n;
    char *p = io_read_file(g.save_path, &n, &e), *path = put("flip.h5", p, n);
    const int fd = open(path, O_WRONLY);
    const size_t times = (size_t)test_inputs(test_fast() ? 150 : 1000);
    int tried = 0, caught = 0;
    fflush(stdout);
    for (; (size_t)tried < times; tried++) {
        const size_t at = (size_t)tried * n / times;
        const char flipped = (char)(p[at] ^ 1 << tried % 8);
        EXPECT(pwrite(fd, &flipped, 1, (off_t)at) == 1, "write");
        const pid_t child = fork();
        if (child == 0) {
            alarm(20);
            _exit(refused(path) ? 1 : 0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        EXPECT(WIFEXITED(status), "byte %zu of %zu: the reader died of signal %d", at, n,
               WTERMSIG(status));
        caught += WIFEXITED(status) && WEXITSTATUS(status) == 1;
        EXPECT(pwrite(fd, p + at, 1, (off_t)at) == 1, "write");
    }
    close(fd);
    EXPECT(!e.code && caught * 3 > tried, "%d of %d flips refused %s", caught, tried, e.msg);
    printf("    %d of %d flips refused\n", caught, tried);
    free(p), free(path), free((char *)g.save_path);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"built from the demo clips: windows, captions, latents, restart",
         built_from_clips,
         {0},
         0},
        {"a data set that is there is replaced only when that is asked for",
         never_replaced_silently,
         {0},
         0},
        {"embeddings are cut and padded, the empty caption is there", text_rows, {0}, 0},
        {"train and validation windows of a clip do not touch", split_by_window, {0}, 0},
        {"broken clips are counted, too many stop the job", broken_clips, {0}, 0},
        {"bad jobs are refused", bad_jobs, {0}, 0},
        {"a killed build leaves no data set", killed, {0}, 0},
        {"a full disk is an error and leaves nothing", disk_full, {0}, 0},
        {"every file operation failing in turn", failing_operations, {0}, 0},
        {"files that are not a data set of this version are refused", refused_files, {0}, 0},
        {"flipped bytes never crash the reader", flipped_bytes, {0}, 0},
    };
    if (!process_video_ready("data set")) return 0;
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
