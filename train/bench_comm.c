/* osp bench comm: what one sparse block sends under each way to share a sample between ranks, and
 * how long it takes. Started under mpirun it measures; alone it counts on the null transport for
 * every rank. The counts are held against formulas (docs/parallelism.md): a difference is an
 * error. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "model/plan.h"
#include "parallel/launch.h"
#include "train/bench.h"

enum { MAX_SCHEMES = 24, MAX_RUNS = 100 };
enum scheme_kind { ULYSSES, SSP, NAIVE };
struct scheme {
    enum scheme_kind kind;
    int ssp, sp;
};
struct result { /* sums and maxima over the ranks */
    int64_t calls;
    double sent, most, want; /* elements: all ranks, the busiest rank, by formula */
    double seconds;          /* median of the slowest rank's times; 0: not measured */
    int64_t rows_least, rows_most;
};

static struct grid grid_of(const struct bench *b)
{
    return (struct grid){(int)b->t, (int)b->h, (int)b->w, (int)b->ratio, 2};
}

static struct part part_of(const struct scheme *s, int rank)
{
    return (struct part){s->ssp, rank / s->sp % s->ssp, s->sp, rank % s->sp};
}

static int gcd(int a, int b) { return b ? gcd(b, a % b) : a; }

/* Elements that leave a rank, by formula: chunk (i,j) leaves the SSP rank that owns class i when
 * class j is another's. Attention over U ranks with a = gcd(heads, U) head groups: q goes to a - 1
 * ranks and o comes from as many, k and v go to all U - 1, each time 1/a of the row. (o is counted
 * at the rank that has the row; the sums over the ranks are equal.) */
static double formula(const struct bench *b, const struct scheme *s, int rank)
{
    const struct grid g = grid_of(b);
    const struct part p = part_of(s, rank);
    const int K = grid_classes(g), G = K / s->ssp;
    double moved = 0, rows = 0, most = 0;
    for (int i = 0; i < K; i++)
        for (int j = 0; j < K; j++) {
            const int64_t n = chunk_count(g, i, j);
            const double mine = (double)(n * (p.sp_rank + 1) / s->sp - n * p.sp_rank / s->sp);
            if (i / G == p.ssp_rank && j / G != p.ssp_rank) moved += mine;
            if (i / G == p.ssp_rank) rows += mine;
        }
    if (s->kind == NAIVE) { /* equal shares, as large as the largest */
        for (int r = 0; r < s->ssp * s->sp; r++) {
            double n = 0;
            for (int q = 0; q < G; q++)
                n += (double)layout_seq_rows(g, PHASE_TOKEN, part_of(s, r), q);
            most = fmax(most, n);
        }
        return most * (double)b->dim * (s->ssp * s->sp - 1);
    }
    const int a = gcd((int)b->heads, s->sp);
    return moved * (double)b->dim + rows * (double)(b->dim / a) * (2 * (a - 1) + 2 * (s->sp - 1));
}

/* Buffers and exchanges of a block on this rank. */
struct block_comm {
    struct mesh mesh;
    struct layout *token, *group;
    struct redist *move;
    struct ulysses *ranks;
    struct tensor x, y, q, k, v, gathered, all, share;
    struct arena tmp;
};

static struct tensor rows_new(struct dev *dev, enum dtype t, int64_t rows, int64_t cols)
{
    struct tensor x = dev_tensor(dev, t, 2, DIMS(rows, cols));
    dev->ops->fill(dev, x, 1);
    return x;
}

static void open_ranks(struct block_comm *c, struct dev *dev, const struct bench *b,
                       const struct scheme *s, enum dtype t)
{
    const struct grid g = grid_of(b);
    const int n = c->token->num_seqs, rank = c->mesh.axis[AXIS_SEQ]->rank;
    int32_t *len = calloc((size_t)(s->sp * n) + 1, sizeof *len);
    CHECK(len, "out of memory");
    for (int u = 0; u < s->sp; u++)
        for (int q = 0; q < n; q++)
            len[u * n + q] =
                (int32_t)layout_seq_rows(g, PHASE_TOKEN, part_of(s, rank / s->sp * s->sp + u), q);
    c->ranks = ulysses_new(dev, c->mesh.axis[AXIS_SP], (int)b->heads, n, len);
    free(len);
    const int64_t rows = c->token->rows, w = b->dim / c->ranks->head_groups;
    c->q = rows_new(dev, t, rows, b->dim);
    c->k = rows_new(dev, t, rows, b->dim);
    c->v = rows_new(dev, t, rows, b->dim);
    c->gathered = rows_new(dev, t, ulysses_rows(c->ranks), w);
    arena_init(&c->tmp, dev, (size_t)(4 * rows * b->dim) * dtype_size(t) + (1 << 20), "tmp");
}

static void open_block(struct block_comm *c, struct comm *world, struct dev *dev,
                       const struct bench *b, const struct scheme *s, enum dtype t)
{
    *c = (struct block_comm){0};
    mesh_init(&c->mesh, world, (struct mesh_degrees){s->ssp, s->sp, 1});
    const struct part p = part_of(s, world->rank);
    c->token = layout_new(grid_of(b), 1, PHASE_TOKEN, p);
    c->group = layout_new(grid_of(b), 1, PHASE_GROUP, p);
    c->x = rows_new(dev, t, c->token->rows, b->dim);
    c->y = rows_new(dev, t, c->group->rows, b->dim);
    if (s->kind == NAIVE) {
        double most = (double)c->token->rows;
        comm_max_f64(world, &most, 1, "rows");
        if (strcmp(world->ops->name, "null") == 0) /* one rank stands for all: from the formula */
            most = formula(b, s, 0) / (double)b->dim / (s->ssp * s->sp - 1);
        c->share = rows_new(dev, t, (int64_t)most, b->dim);
        c->all = rows_new(dev, t, (int64_t)most * world->size, b->dim);
        return;
    }
    if (s->ssp > 1) c->move = redist_new(dev, c->mesh.axis[AXIS_SSP], c->token, c->group);
    if (s->sp > 1) open_ranks(c, dev, b, s, t);
}

static void close_block(struct block_comm *c, struct dev *dev)
{
    struct tensor *all[] = {&c->x, &c->y, &c->q, &c->k, &c->v, &c->gathered, &c->all, &c->share};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->data) dev_free(dev, all[i]->data);
    if (c->tmp.base) arena_free(&c->tmp);
    redist_free(c->move);
    ulysses_free(c->ranks);
    layout_free(c->token);
    layout_free(c->group);
    mesh_free(&c->mesh);
}

/* The communication of one sparse block, forward. */
static void run_block(struct block_comm *c)
{
    if (c->all.data) { /* everything to everyone, then one's own rows of it */
        comm_all_gather(c->mesh.axis[AXIS_SEQ], c->all, c->share, "everything", NULL);
        return;
    }
    if (c->move) redist_forward(c->move, c->y, c->x);
    if (c->ranks) {
        ulysses_gather_qkv(c->ranks, &c->tmp, c->gathered, c->q, c->k, c->v);
        ulysses_scatter(c->ranks, &c->tmp, c->q, ulysses_q(c->ranks, c->gathered));
    }
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Counts of one rank (elements sent, calls), and the median time when the transport is real. */
static void measure(struct comm *world, struct dev *dev, const struct bench *b,
                    const struct scheme *s, enum dtype t, struct result *r)
{
    struct block_comm c;
    const bool real = strcmp(world->ops->name, "null") != 0;
    open_block(&c, world, dev, b, s, t);
    run_block(&c); /* counted; also warms up */
    double sent = 0;
    int64_t calls = 0;
    for (int a = AXIS_WORLD + 1; a < AXIS_COUNT; a++)
        for (int k = 0; k < COMM_KINDS; k++) {
            sent += c.mesh.axis[a]->count[k].bytes / (double)dtype_size(t);
            calls += c.mesh.axis[a]->count[k].calls;
        }
    double second[MAX_RUNS] = {0};
    for (int i = 0; real && i < b->runs; i++) {
        comm_barrier(world, "start");
        const double t0 = log_seconds();
        run_block(&c);
        second[i] = log_seconds() - t0;
        comm_max_f64(world, &second[i], 1, "time");
    }
    qsort(second, (size_t)b->runs, sizeof *second, by_value);
    const int64_t rows[2] = {c.token->rows, c.group->rows};
    double sum[2] = {sent, formula(b, s, world->rank)},
           most[2] = {sent, (double)(rows[0] > rows[1] ? rows[0] : rows[1])},
           least = -(double)(rows[0] < rows[1] ? rows[0] : rows[1]);
    if (real) {
        comm_sum_f64(world, sum, 2, "sent");
        comm_max_f64(world, most, 2, "sent");
        comm_max_f64(world, &least, 1, "rows");
    }
    r->calls = calls;
    r->sent += sum[0];
    r->want += sum[1];
    r->most = fmax(r->most, most[0]);
    r->rows_most = most[1] > (double)r->rows_most ? (int64_t)most[1] : r->rows_most;
    r->rows_least =
        r->rows_least == 0 || -least < (double)r->rows_least ? (int64_t)-least : r->rows_least;
    r->seconds = real ? second[b->runs / 2] : 0;
    close_block(&c, dev);
}

static int list_schemes(const struct bench *b, int ranks, struct scheme *s)
{
    const int K = (int)(b->ratio * b->ratio);
    int n = 0;
    s[n++] = (struct scheme){ULYSSES, 1, ranks};
    for (int ssp = ranks; ssp > 1 && n < MAX_SCHEMES - 1; ssp--)
        if (ranks % ssp == 0 && K % ssp == 0) s[n++] = (struct scheme){SSP, ssp, ranks / ssp};
    s[n++] = (struct scheme){NAIVE, 1, ranks};
    return n;
}

static void print_row(const struct scheme *s, const struct result *r, const struct result *first,
                      int ranks, size_t size)
{
    char name[64], time[64] = "         -";
    if (s->kind == ULYSSES) snprintf(name, sizeof name, "Ulysses %d", s->sp);
    if (s->kind == NAIVE) snprintf(name, sizeof name, "all-gather + reshard");
    if (s->kind == SSP && s->sp == 1) snprintf(name, sizeof name, "SSP %d", s->ssp);
    if (s->kind == SSP && s->sp > 1)
        snprintf(name, sizeof name, "SSP %d x Ulysses %d", s->ssp, s->sp);
    if (r->seconds > 0) snprintf(time, sizeof time, "%10.3f", 1e3 * r->seconds);
    printf("  %-22s %5lld %12.3f %12.3f %9.2f %% %s", name, (long long)r->calls,
           1e-6 * r->sent / ranks * (double)size, 1e-6 * r->most * (double)size,
           100 * r->sent / first->sent, time);
    if (r->seconds > 0) printf(" %8.2f", r->seconds / first->seconds);
    printf("\n");
}

/* What has to hold; returns the number of differences. */
static int verify(const struct bench *b, const struct scheme *s, const struct result *r,
                  const struct result *first, int ranks)
{
    int bad = 0;
    if (r->sent != r->want) {
        printf("  DIFFERS: %.0f elements sent, by formula %.0f\n", r->sent, r->want);
        bad++;
    }
    const int calls = s->kind == NAIVE ? 1 : (s->ssp > 1) + 2 * (s->sp > 1);
    if (r->calls != calls) {
        printf("  DIFFERS: %lld calls, expected %d\n", (long long)r->calls, calls);
        bad++;
    }
    const int64_t PP = b->ratio * b->ratio;
    if (s->kind == SSP && s->sp == 1 && s->ssp == ranks && b->h % PP == 0 && b->w % PP == 0 &&
        b->heads % ranks == 0 && 4 * r->sent != first->sent) {
        printf("  DIFFERS: on a grid of whole units SSP sends a quarter of Ulysses\n");
        bad++;
    }
    return bad;
}

static void check_arguments(const struct bench *b, const struct comm *world, int ranks)
{
    if (world->size > 1 && b->ranks && b->ranks != world->size)
        err_stop(RC_USAGE, "bench comm: ranks=%lld, but %d were started", (long long)b->ranks,
                 world->size);
    if (ranks < 2)
        err_stop(RC_USAGE, "bench comm: start it with mpirun -n N, or say ranks=N to count only");
    if (b->dim % b->heads)
        err_stop(RC_USAGE, "bench comm: %lld heads do not divide dim %lld", (long long)b->heads,
                 (long long)b->dim);
    if (b->runs > MAX_RUNS || b->ratio < 2)
        err_stop(RC_USAGE, "bench comm: runs must be at most %d, ratio at least 2", MAX_RUNS);
}

static int print_table(const struct bench *b, const struct scheme *s, const struct result *r, int n,
                       int ranks, bool real)
{
    int bad = 0;
    printf("one sparse block forward, %d ranks, grid %lld x %lld x %lld, P %lld, dim %lld, %lld "
           "heads, %s, %s\n",
           ranks, (long long)b->t, (long long)b->h, (long long)b->w, (long long)b->ratio,
           (long long)b->dim, (long long)b->heads, b->dtype,
           real ? "measured" : "counted without a transport");
    printf("  %-22s %5s %12s %12s %11s %10s %8s\n", "", "calls", "MB a rank", "busiest",
           "of Ulysses", "ms", "ratio");
    for (int i = 0; i < n; i++) {
        print_row(&s[i], &r[i], &r[0], ranks, dtype_size(bench_dtype(b)));
        bad += verify(b, &s[i], &r[i], &r[0], ranks);
    }
    printf("  q, k and v go in one exchange; apart they make Ulysses 4 calls of the same bytes\n");
    for (int i = 0; i < n; i++)
        if (s[i].kind == SSP)
            printf("  tokens a rank at SSP %d x Ulysses %d: %lld to %lld\n", s[i].ssp, s[i].sp,
                   (long long)r[i].rows_least, (long long)r[i].rows_most);
    return bad;
}

int bench_comm(const struct bench *b, int argc, char **argv)
{
    struct comm *world = launch_start(&argc, &argv);
    const bool real = world->size > 1;
    const int ranks = real ? world->size : (int)b->ranks;
    check_arguments(b, world, ranks);
    struct dev *dev = dev_open(real ? b->device : "null", bench_dtype(b), (int)b->threads);
    struct scheme s[MAX_SCHEMES];
    struct result r[MAX_SCHEMES] = {0};
    const int n = list_schemes(b, ranks, s);
    if (real) comm_device(world, dev);
    for (int i = 0; i < n; i++)
        for (int rank = 0; rank < (real ? 1 : ranks); rank++) {
            struct comm *w = real ? world : comm_null(ranks, rank, dev);
            measure(w, dev, b, &s[i], bench_dtype(b), &r[i]);
            if (!real) comm_free(w);
        }
    int bad = world->rank == 0 ? print_table(b, s, r, n, ranks, real) : 0;
    comm_broadcast_bytes(world, &bad, sizeof bad, 0, "verdict");
    comm_device(world, NULL);
    dev_close(dev);
    launch_end(world);
    return bad ? RC_SOFTWARE : RC_OK;
}
