/* Held-out windows: no source frame is both trained on and held out, however clips are cut. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/rng.h"
#include "data/build.h"
#include "data/dataset.h"
#include "data/split.h"
#include "tests/check.h"

enum { MOST = 4096, FRAMES = 4, FILE_FRAMES = 400 };

struct made { /* clips cut from two files, and their windows */
    struct tables t;
    char *sha[64], *path[64];
    int64_t clip_frames[64], first[64], end[64], clip[MOST], start[MOST], frame[MOST], last[MOST];
    int64_t train[MOST], valid[MOST], num_train, num_valid;
};

/* A window at every resampled frame; step in source frames. */
static void add_clip(struct made *m, char *sha, int64_t first, int64_t end, double step)
{
    struct tables *t = &m->t;
    const int64_t c = t->clips++, frames = (int64_t)((double)(end - first - 1) / step) + 1;
    m->sha[c] = sha;
    m->path[c] = "file.mp4";
    m->clip_frames[c] = frames;
    m->first[c] = first;
    m->end[c] = end;
    for (int64_t k = 0; k + FRAMES <= frames; k++) {
        const int64_t i = t->n++;
        m->clip[i] = c;
        m->start[i] = k;
        m->frame[i] = (int64_t)((double)first + (double)k * step);
        m->last[i] = (int64_t)((double)first + (double)(k + FRAMES - 1) * step);
    }
}

static struct made *make(void)
{
    struct made *m = calloc(1, sizeof *m);
    CHECK(m, "out of memory");
    m->t = (struct tables){.frames = FRAMES,
                           .clip = m->clip,
                           .start = m->start,
                           .frame = m->frame,
                           .last = m->last,
                           .clip_path = m->path,
                           .clip_sha = m->sha,
                           .clip_frames = m->clip_frames,
                           .clip_first = m->first,
                           .clip_end = m->end};
    return m;
}

static void split(struct made *m, double share)
{
    split_windows(&m->t, share, m->train, &m->num_train, m->valid, &m->num_valid);
}

/* Bit 1: trained on, bit 2: held out. */
static int both_sides(const struct made *m, const char *sha)
{
    unsigned char seen[FILE_FRAMES] = {0};
    int n = 0;
    for (int side = 0; side < 2; side++)
        for (int64_t i = 0; i < (side ? m->num_valid : m->num_train); i++) {
            const int64_t w = (side ? m->valid : m->train)[i];
            if (strcmp(m->sha[m->clip[w]], sha)) continue;
            for (int64_t f = m->frame[w]; f <= m->last[w]; f++)
                seen[f] |= (unsigned char)(1 + side);
        }
    for (int f = 0; f < FILE_FRAMES; f++) n += seen[f] == 3;
    return n;
}

static void overlapping(struct comm *world)
{
    (void)world;
    struct made *m = make();
    /* a chain: the first and the third have no frame in common, the second links them */
    add_clip(m, "aa", 0, 60, 1.5);
    add_clip(m, "bb", 0, 60, 1.5); /* another file */
    add_clip(m, "aa", 90, 140, 1);
    add_clip(m, "aa", 50, 100, 2);
    add_clip(m, "aa", 140, 200, 1); /* touches, shares nothing */
    split(m, 0.25);
    EXPECT(both_sides(m, "aa") == 0 && both_sides(m, "bb") == 0, "%d frames on both sides",
           both_sides(m, "aa"));
    /* the group covers [0, 140): 105 and later are held out */
    int64_t held = 0;
    for (int64_t i = 0; i < m->num_valid; i++) {
        const int64_t w = m->valid[i], c = m->clip[w];
        if (c == 1 || c == 4) continue;
        held++;
        EXPECT(c == 2 && m->frame[w] >= 105, "window at %lld of clip %lld is held out",
               (long long)m->frame[w], (long long)c);
    }
    EXPECT(held == 140 - 105 - FRAMES + 1, "%lld windows held out", (long long)held);
    for (int64_t i = 0; i < m->num_train; i++)
        EXPECT(m->clip[m->train[i]] == 1 || m->clip[m->train[i]] == 4 || m->last[m->train[i]] < 105,
               "window up to %lld is trained on", (long long)m->last[m->train[i]]);
    /* clips that share nothing: the last quarter of each, in its own resampled frames */
    for (int64_t i = 0; i < m->num_valid; i++) {
        const int64_t w = m->valid[i], c = m->clip[w];
        if (c == 1 || c == 4)
            EXPECT(4 * m->start[w] >= 3 * m->clip_frames[c], "window %lld", (long long)m->start[w]);
    }
    free(m);
}

static void random_cuts(struct comm *world)
{
    (void)world;
    const struct rng_stream s = rng_open((struct rng_key){.seed = 3, .use = RNG_TEST});
    uint64_t at = 0;
    for (int round = 0; round < 200; round++) {
        struct made *m = make();
        for (int c = 0; c < 8; c++) {
            const int64_t first = (int64_t)(rng_uniform_at(s, at++) * 300);
            const int64_t len = 10 + (int64_t)(rng_uniform_at(s, at++) * 80);
            add_clip(m, c % 2 ? "aa" : "bb", first, first + len, 1 + rng_uniform_at(s, at++));
        }
        const double share = rng_uniform_at(s, at++);
        split(m, share);
        EXPECT(both_sides(m, "aa") == 0 && both_sides(m, "bb") == 0, "round %d, share %g", round,
               share);
        EXPECT(m->num_train + m->num_valid <= m->t.n, "too many");
        split(m, 0);
        EXPECT(m->num_train == m->t.n && m->num_valid == 0, "share 0 holds nothing out");
        split(m, 1);
        EXPECT(m->num_train == 0 && m->num_valid == m->t.n, "share 1 holds all out");
        free(m);
    }
}

/* Two records of one clip of the tree, through the data set file. */
static void from_clips(struct comm *world)
{
    (void)world;
    struct err e = {0};
    size_t n;
    char *clip = io_read_file("tests/clips/example_3_B.mp4", &n, &e);
    err_raise(&e);
    char *video = io_path("%s/one.mp4", test_dir()), *meta = io_path("%s/cuts.json", test_dir()),
         *out = io_path("%s/cuts.h5", test_dir());
    const char *records = "[{\"path\":\"one.mp4\",\"cap\":\"a\",\"cut\":[0,40]},"
                          " {\"path\":\"./one.mp4\",\"cap\":\"b\",\"cut\":[20,60]}]";
    io_write_file(video, clip, n, &e);
    io_write_file(meta, records, strlen(records), &e);
    const struct data_build g = {.meta_path = meta,
                                 .save_path = out,
                                 .codec = "pixel",
                                 .text_codec = "hash",
                                 .filter = {.sample_height = 16,
                                            .sample_width = 16,
                                            .sample_num_frames = FRAMES,
                                            .train_fps = 16, /* as the clip */
                                            .too_long_factor = 1e9,
                                            .max_h_div_w_ratio = 10,
                                            .max_motion_value = 1e9},
                                 .window_stride = 1,
                                 .text_dim = 8,
                                 .text_len = 8};
    EXPECT(build_dataset(&g, NULL, &e), "%s", e.msg);
    struct dataset *d = dataset_open(out, 0.25, &e);
    EXPECT(d && d->num_train > 0 && d->num_valid > 0, "%s", e.msg);
    for (int side = 0; d && side < 2; side++)
        for (int64_t i = 0; i < (side ? d->num_valid : d->num_train); i++) {
            const char *id = dataset_id(d, (side ? d->valid : d->train)[i]);
            const int frame = atoi(strrchr(id, '@') + 1);
            EXPECT(side ? frame >= 45 : frame + FRAMES <= 45, "%s is %s", id,
                   side ? "held out" : "trained on");
        }
    dataset_close(d);
    free(clip), free(video), free(meta), free(out);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "overlapping cuts of one file are split together", .run = overlapping},
        {.name = "random cuts share no frame between the sides", .run = random_cuts},
        {.name = "two records of one file, through the data set", .run = from_clips},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
