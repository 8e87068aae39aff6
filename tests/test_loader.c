/* The order of samples: independent of ranks and of interruptions. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "data/dataset.h"
#include "data/dataset_write.h"
#include "data/loader.h"
#include "parallel/comm.h"
#include "tests/check.h"

enum { N = 23, CLIPS = 4, F = 2, H = 4, W = 8, Z = 12 * F * (H / 2) * (W / 2), DIM = 6, LEN = 5 };
static const char *const words[] = {"red", "green fox", "blue"};

/* Sample i holds the value i everywhere; samples of odd number have two captions. */
static char *make(const char *name)
{
    struct err e = {0};
    char *path = io_path("%s/%s-%d.h5", test_dir(), name, rand());
    const struct dataset_spec spec = {.codec = "pixel",
                                      .text_codec = "hash",
                                      .frames = F,
                                      .height = H,
                                      .width = W,
                                      .text_dim = DIM,
                                      .text_len = LEN,
                                      .fps = 16,
                                      .window_stride = 1};
    struct dataset_writer *w = dataset_create(path, &spec, &e);
    err_raise(&e);
    int64_t caption[3];
    for (int k = 0; k < 3; k++) caption[k] = dataset_add_caption(w, words[k], &e);
    for (int c = 0; c < CLIPS; c++) dataset_add_clip(w, "clip.mp4", "00", N, c * N, (c + 1) * N);
    for (int i = 0; i < N; i++) {
        float z[Z];
        for (int k = 0; k < Z; k++) z[k] = (float)i;
        const int64_t at = i % CLIPS * N + i / CLIPS;
        dataset_add_sample(w, i % CLIPS, i / CLIPS, at, at, caption + i % 2, 1 + i % 2, z, &e);
    }
    dataset_finish(w, &e);
    err_raise(&e);
    return path;
}

static struct dataset *open_it(const char *path)
{
    struct err e = {0};
    struct dataset *d = dataset_open(path, 0, &e);
    err_raise(&e);
    return d;
}

static const struct loader_opts base = {.seed = 7,
                                        .dp_size = 1,
                                        .batch_size = 1,
                                        .global_batch = 4,
                                        .text_len = LEN,
                                        .text_drop_ratio = 0.3,
                                        .shuffle = true};

/* What one sample number must be, from a run on one rank: index, text. */
struct seen {
    int64_t index;
    float text[LEN * DIM];
};

static void collect(struct dataset *d, struct loader_opts o, uint64_t cursor, uint64_t steps,
                    struct seen *out, int *hits)
{
    struct loader *l = loader_open(d, o, cursor);
    const int64_t micro = o.global_batch / (o.dp_size * o.batch_size);
    for (uint64_t s = 0; s < steps * (uint64_t)micro; s++) {
        const struct batch *b = loader_next(l);
        EXPECT(b->n == o.batch_size, "batch of %d", b->n);
        for (int i = 0; i < b->n; i++) {
            const uint64_t g = b->sample[i];
            const uint64_t step = s / (uint64_t)micro;
            EXPECT(g >= cursor + step * (uint64_t)o.global_batch &&
                       g < cursor + (step + 1) * (uint64_t)o.global_batch &&
                       g % (uint64_t)o.dp_size == (uint64_t)o.dp_rank,
                   "sample %llu in step %llu of rank %d", (unsigned long long)g,
                   (unsigned long long)step, o.dp_rank);
            for (int k = 0; k < Z; k++)
                EXPECT(b->latent[i * Z + k] == (float)b->index[i], "latent is the sample's");
            out[g].index = b->index[i];
            memcpy(out[g].text, b->text + i * LEN * DIM, sizeof out[g].text);
            hits[g]++;
        }
    }
    loader_close(l);
}

static void same_on_all_ranks(struct comm *world)
{
    (void)world;
    enum { STEPS = 20, GB = 8, TOTAL = STEPS * GB };
    char *path = make("ranks");
    struct dataset *d = open_it(path);
    static struct seen want[TOTAL], got[TOTAL];
    int hits[TOTAL] = {0};
    struct loader_opts o = base;
    o.global_batch = GB;
    collect(d, o, 0, STEPS, want, hits);
    for (int g = 0; g < TOTAL; g++) {
        EXPECT(hits[g] == 1, "sample %d comes once", g);
        EXPECT(want[g].index == loader_sample(d, o.seed, true, (uint64_t)g), "order of %d", g);
    }
    for (int epoch = 0; epoch < TOTAL / N; epoch++) { /* every sample once per epoch */
        int count[N] = {0};
        for (int k = 0; k < N; k++) count[want[epoch * N + k].index]++;
        for (int k = 0; k < N; k++)
            EXPECT(count[k] == 1, "epoch %d has %d %d times", epoch, k, count[k]);
    }
    EXPECT(memcmp(want, want + N, N * sizeof *want) != 0, "epochs differ");
    for (int dp = 2; dp <= 8; dp *= 2) {
        for (int64_t b = 1; b * dp <= GB; b *= 2) {
            memset(hits, 0, sizeof hits);
            o.dp_size = dp;
            o.batch_size = b;
            for (o.dp_rank = 0; o.dp_rank < dp; o.dp_rank++) collect(d, o, 0, STEPS, got, hits);
            for (int g = 0; g < TOTAL; g++) EXPECT(hits[g] == 1, "dp %d: %d comes once", dp, g);
            EXPECT(memcmp(want, got, sizeof want) == 0, "dp %d, batch %lld: same samples and texts",
                   dp, (long long)b);
        }
    }
    dataset_close(d);
    free(path);
}

static void resumed(struct comm *world)
{
    (void)world;
    enum { STEPS = 16, TOTAL = STEPS * 4 };
    char *path = make("resume");
    struct dataset *d = open_it(path);
    static struct seen want[TOTAL], got[TOTAL];
    int hits[TOTAL] = {0};
    collect(d, base, 0, STEPS, want, hits);
    for (uint64_t s = 0; s < STEPS; s++) {
        memset(got, 0, sizeof got);
        collect(d, base, 0, s, got, hits);
        collect(d, base, s * 4, STEPS - s, got, hits);
        EXPECT(memcmp(want, got, sizeof want) == 0, "resumed after step %d", (int)s);
    }
    struct loader_opts o = base;
    o.seed = 8;
    collect(d, o, 0, STEPS, got, hits);
    EXPECT(memcmp(want, got, sizeof want) != 0, "another seed, another order");
    o.shuffle = false;
    collect(d, o, 0, STEPS, got, hits);
    for (int g = 0; g < TOTAL; g++) EXPECT(got[g].index == g % N, "in order without shuffle");
    dataset_close(d);
    free(path);
}

/* Ranks as threads, each with its own open file. */
static void in_threads(struct comm *world)
{
    static char *shared;
    if (world->rank == 0) shared = make("threads");
    comm_barrier(world, "file");
    struct dataset *d = open_it(shared);
    enum { STEPS = 10, GB = 8, TOTAL = STEPS * GB };
    struct seen *got = calloc(TOTAL, sizeof *got);
    int hits[TOTAL] = {0};
    struct loader_opts o = base;
    o.global_batch = GB;
    o.dp_rank = world->rank;
    o.dp_size = world->size;
    collect(d, o, 0, STEPS, got, hits);
    for (int g = 0; g < TOTAL; g++) {
        EXPECT(hits[g] == (g % world->size == world->rank), "sample %d on rank %d", g, world->rank);
    }
    free(got);
    dataset_close(d);
    comm_barrier(world, "done");
    if (world->rank == 0) free(shared);
}

static void captions(struct comm *world)
{
    (void)world;
    enum { STEPS = 1000, TOTAL = 4 * STEPS };
    struct err e = {0};
    char *path = make("captions");
    struct dataset *d = open_it(path);
    struct seen *got = calloc(TOTAL, sizeof *got);
    int *hits = calloc(TOTAL, sizeof *hits);
    collect(d, base, 0, STEPS, got, hits);
    float row[4][LEN * DIM];
    for (int k = -1; k < 3; k++) dataset_text(d, k, LEN, row[k + 1], &e);
    int drop = 0, first = 0, second = 0;
    for (int g = 0; g < TOTAL; g++) {
        int k = 0;
        while (k < 4 && memcmp(got[g].text, row[k], sizeof row[k]) != 0) k++;
        const int odd = (int)got[g].index % 2;
        EXPECT(k == 0 || (k < 4 && (odd ? k > 1 : k == 1)), "caption %d of sample %d", k,
               (int)got[g].index);
        drop += k == 0;
        first += odd && k == 2;
        second += odd && k == 3;
    }
    /* 4 standard deviations */
    EXPECT(fabs(drop / (double)TOTAL - 0.3) < 4 * sqrt(0.3 * 0.7 / TOTAL), "%d dropped", drop);
    EXPECT(abs(first - second) < 4 * sqrt(first + second), "%d and %d", first, second);
    free(got), free(hits), free(path);
    dataset_close(d);
}

struct stop_case { /* what a stop leaves open */
    struct dataset *d;
    struct loader_opts o;
    struct loader *l;
};

static void open_loader(void *arg)
{
    struct stop_case *c = arg;
    c->l = loader_open(c->d, c->o, 0);
}

static void read_all(void *arg)
{
    open_loader(arg);
    for (int i = 0; i < 3 * N; i++) loader_next(((struct stop_case *)arg)->l);
}

static void stops(struct comm *world)
{
    (void)world;
    char *path = make("stops");
    struct err e = {0};
    struct stop_case c = {dataset_open(path, 1, &e), base, NULL};
    expect_stop("none of the 23 samples is for training", RC_DATA, open_loader, &c);
    dataset_close(c.d);
    c.d = open_it(path);
    c.o.batch_size = 3;
    expect_stop("global_batch_size 4 is not a multiple of data ranks x batch_size = 1 x 3",
                RC_CONFIG, open_loader, &c);
    dataset_close(c.d);
    size_t n;
    char *p = io_read_file(path, &n, &e);
    const float value[4] = {17, 17, 17, 17}; /* payload of sample 17 */
    char *at = memmem(p, n, value, sizeof value);
    EXPECT(at, "payload found");
    at[2] ^= 1;
    io_write_file(path, p, n, &e);
    c = (struct stop_case){open_it(path), base, NULL};
    expect_stop("/latents rows 17 to 17 cannot be read", RC_DATA, read_all, &c);
    loader_close(c.l);
    dataset_close(c.d);
    free(p), free(path);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"1, 2, 4 and 8 data ranks see the same samples and captions", same_on_all_ranks, {0}, 0},
        {"resumed at any step like never interrupted", resumed, {0}, 0},
        {"ranks as threads", in_threads, {1, 2, 4}, 0},
        {"captions are chosen evenly and dropped at the ratio", captions, {0}, 0},
        {"a loader without samples, with a bad batch, on damage", stops, {0}, 0},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
