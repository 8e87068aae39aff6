/* Every collective, over threads, over MPI and over a stand-in for NCCL (tests/fake_nccl.c),
 * against what it must give, many in a row, on all ranks at once: values, and (make tsan) no race.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "parallel/comm.h"
#include "tests/check.h"
#include "tests/queue_dev.h"

enum { MOST = 48, ROUNDS = 25 };

/* The device of this rank's test: one of host memory, or one with queues, which gets NCCL. */
static _Thread_local const char *device = "ref";

/* Value i of rank r in a round: small integers, so that sums are exact in f32. */
static double value(int round, int r, int64_t i)
{
    return (double)((round * 31 + r * 7 + (int)i * 3) % 101) - 50;
}

static struct tensor make(struct dev *d, enum dtype t, int64_t n, int round, int r)
{
    double x[8 * MOST];
    struct tensor v = dev_tensor(d, t, 1, DIMS(n));
    for (int64_t i = 0; i < n; i++) x[i] = value(round, r, i);
    dev_put_f64(d, v, x);
    return v;
}

static void expect_values(struct dev *d, const char *what, struct tensor t,
                          double (*want)(int round, int size, int rank, int64_t n, int64_t i),
                          int round, const struct comm *c, int64_t n)
{
    double x[8 * MOST];
    dev_get_f64(d, x, t);
    for (int64_t i = 0; i < tensor_count(t); i++) {
        const double w = want(round, c->size, c->rank, n, i);
        EXPECT(x[i] == w, "%s, round %d, rank %d of %d: element %lld is %g, not %g", what, round,
               c->rank, c->size, (long long)i, x[i], w);
    }
}

static double want_gather(int round, int size, int rank, int64_t n, int64_t i)
{
    (void)size, (void)rank;
    return value(round, (int)(i / n), i % n);
}

static double want_scatter(int round, int size, int rank, int64_t n, int64_t i)
{
    double sum = value(round, rank, i); /* it is added to what is there */
    for (int r = 0; r < size; r++) sum += value(round + 1, r, rank * n + i);
    return sum;
}

static double want_sum(int round, int size, int rank, int64_t n, int64_t i)
{
    double sum = 0;
    (void)rank, (void)n;
    for (int r = 0; r < size; r++) sum += value(round, r, i);
    return sum;
}

static double want_root(int round, int size, int rank, int64_t n, int64_t i)
{
    (void)rank, (void)n;
    return value(round, round % size, i);
}

/* Every rank gives its row p to rank p and gets row `rank` of all. */
static double want_turn(int round, int size, int rank, int64_t n, int64_t i)
{
    (void)size;
    return value(round, (int)(i / n), rank * n + i % n);
}

static void turn(struct comm *c, struct dev *d, enum dtype t, int64_t n, int round)
{
    struct tensor src = make(d, t, n * c->size, round, c->rank);
    struct tensor dst = dev_tensor(d, t, 2, DIMS(c->size, n));
    struct run send[8], recv[8];
    for (int p = 0; p < c->size; p++) send[p] = recv[p] = (struct run){p, p, 1};
    comm_exchange(c, dst, recv, c->size, tensor_view(src, 2, DIMS(c->size, n)), send, c->size,
                  "rows", NULL);
    expect_values(d, "exchange", dst, want_turn, round, c, n);
    dev_free(d, src.data);
    dev_free(d, dst.data);
}

static void one_round(struct comm *c, struct dev *d, enum dtype t, int round)
{
    const int64_t n = 1 + (round * 13) % (MOST - 1);
    struct tensor own = make(d, t, n, round, c->rank), all = dev_tensor(d, t, 1, DIMS(n * c->size)),
                  sum = make(d, t, n * c->size, round + 1, c->rank),
                  root = make(d, t, n, round, c->rank);
    struct work w[2] = {{0}, {0}};
    comm_all_gather(c, all, own, "gather", &w[0]);
    comm_wait(c, &w[0]);
    expect_values(d, "all_gather", all, want_gather, round, c, n);
    comm_reduce_scatter(c, own, sum, "scatter", &w[1]);
    comm_wait(c, &w[1]);
    expect_values(d, "reduce_scatter", own, want_scatter, round, c, n);
    comm_all_reduce(c, sum, "sum", NULL);
    expect_values(d, "all_reduce", sum, want_sum, round + 1, c, n);
    comm_broadcast(c, root, round % c->size, "root", NULL);
    expect_values(d, "broadcast", root, want_root, round, c, n);
    turn(c, d, t, n, round);
    struct tensor const used[] = {own, all, sum, root};
    for (int i = 0; i < 4; i++) dev_free(d, used[i].data);
}

static void collectives(struct comm *world)
{
    for (int k = 0; k < 2; k++) {
        struct dev *d = dev_open(device, k ? DT_F64 : DT_F32, 1);
        comm_device(world, d);
        for (int round = 0; round < ROUNDS; round++) {
            world->check = round % 2;
            one_round(world, d, k ? DT_F64 : DT_F32, round);
        }
        world->check = false;
        /* halves of the world, by turns with the whole: the groups do not disturb each other */
        struct comm *half = comm_split(world, world->rank % 2, world->rank, "half");
        for (int round = 0; round < ROUNDS; round++) {
            one_round(half, d, k ? DT_F64 : DT_F32, round);
            if (round % 5 == 0) one_round(world, d, k ? DT_F64 : DT_F32, round);
        }
        comm_free(half);
        comm_device(world, NULL);
        dev_close(d);
    }
}

static void host_values(struct comm *world)
{
    for (int round = 0; round < ROUNDS; round++) {
        double x[2] = {world->rank, 1}, top = world->rank * 2.5;
        int64_t word = world->rank == round % world->size ? 77 + round : 0, all[8];
        comm_sum_f64(world, x, 2, "sum");
        comm_max_f64(world, &top, 1, "most");
        EXPECT(x[0] == world->size * (world->size - 1) / 2.0 && x[1] == world->size &&
                   top == (world->size - 1) * 2.5,
               "%g %g %g", x[0], x[1], top);
        comm_broadcast_bytes(world, &word, sizeof word, round % world->size, "word");
        EXPECT(word == 77 + round, "%lld", (long long)word);
        word += world->rank;
        comm_gather_bytes(world, all, &word, sizeof word, "words");
        for (int r = 0; r < world->size; r++)
            EXPECT(all[r] == 77 + round + r, "%lld", (long long)all[r]);
        comm_barrier(world, "round");
    }
}

/* Run k from rank a to rank b: its length, 0 for some. Both sides list their runs in this order. */
enum { RUNS = 3, WIDTH = 5 };
static int64_t run_rows(int a, int b, int k) { return (a * 3 + b * 6 + k) % 4; }

/* The runs of one side, spread over its rows back to front; row r of run k from a to b holds
 * 1000a + 100b + 10k + r. */
static int list_runs(const struct comm *c, bool send, struct run *run, int64_t *rows)
{
    int n = 0;
    *rows = 0;
    for (int p = 0; p < c->size; p++)
        for (int k = 0; k < RUNS; k++) {
            const int a = send ? c->rank : p, b = send ? p : c->rank;
            const int64_t len = run_rows(a, b, k);
            if (!len) continue;
            run[n++] = (struct run){p, *rows, len};
            *rows += len;
        }
    for (int i = 0; send && i < n; i++) run[i].row = *rows - run[i].row - run[i].rows;
    return n;
}

static double run_value(int a, int b, int k, int64_t row)
{
    return 1000 * a + 100 * b + 10 * k + (double)row;
}

/* Fills the rows to send, or checks those received. */
static void each_run(const struct comm *c, bool send, const struct run *run, double *x)
{
    int n = 0;
    for (int p = 0; p < c->size; p++)
        for (int k = 0; k < RUNS; k++) {
            const int a = send ? c->rank : p, b = send ? p : c->rank;
            if (!run_rows(a, b, k)) continue;
            for (int64_t r = 0; r < run[n].rows; r++)
                for (int w = 0; w < WIDTH; w++) {
                    double *at = x + (run[n].row + r) * WIDTH + w;
                    const double v = run_value(a, b, k, r) + w * 0.25;
                    if (send) *at = v;
                    EXPECT(*at == v, "rank %d: row %lld of run %d from %d is %g, not %g", c->rank,
                           (long long)r, k, a, *at, v);
                }
            n++;
        }
}

/* Several exchanges on their way at once, of several types. */
static void exchanges(struct comm *world)
{
    enum { TYPES = 2, MAX = 8 * RUNS * 4 };
    static const enum dtype types[TYPES] = {DT_F64, DT_F32};
    struct dev *d = dev_open(device, DT_F64, 1);
    struct dev *before = world->dev;
    comm_device(world, d);
    struct run send[8 * RUNS], recv[8 * RUNS];
    int64_t out, in;
    const int num_send = list_runs(world, true, send, &out);
    const int num_recv = list_runs(world, false, recv, &in);
    struct tensor from[TYPES], to[TYPES];
    struct work work[TYPES] = {{0}};
    double x[MAX * WIDTH];
    for (int i = 0; i < TYPES; i++) {
        from[i] = dev_tensor(d, types[i], 2, DIMS(out, WIDTH));
        to[i] = dev_tensor(d, types[i], 2, DIMS(in, WIDTH));
        each_run(world, true, send, x);
        dev_put_f64(d, from[i], x);
        comm_exchange(world, to[i], recv, num_recv, from[i], send, num_send, "runs", &work[i]);
    }
    for (int i = 0; i < TYPES; i++) {
        comm_poll(world, &work[i]);
        comm_wait(world, &work[i]);
        dev_get_f64(d, x, to[i]);
        each_run(world, false, recv, x);
        dev_free(d, from[i].data);
        dev_free(d, to[i].data);
    }
    comm_device(world, before);
    dev_close(d);
}

/* Types that are moved and never added up, with odd sizes: byte i of rank r is what it must be. */
static void moves(struct comm *world)
{
    enum { BYTES = 8 * 2 * MOST };
    static const enum dtype types[] = {DT_BF16, DT_I16, DT_I32, DT_U8};
    struct dev *d = dev_open(device, DT_F32, 1);
    comm_device(world, d);
    for (int t = 0; t < 4; t++) {
        const int64_t n = 2 * MOST / (int64_t)dtype_size(types[t]) - t, size = world->size;
        const size_t bytes = (size_t)n * dtype_size(types[t]);
        struct tensor own = dev_tensor(d, types[t], 1, DIMS(n)),
                      all = dev_tensor(d, types[t], 1, DIMS(n * size));
        unsigned char x[BYTES];
        for (size_t i = 0; i < bytes; i++) x[i] = (unsigned char)(world->rank * 50 + (int)i * 3);
        dev_put(d, own, x);
        struct work w = {0};
        comm_all_gather(world, all, own, "bytes", &w);
        comm_wait(world, &w);
        comm_broadcast(world, own, (int)size - 1, "last", NULL);
        dev_get(d, x, all);
        for (size_t i = 0; i < bytes * (size_t)size; i++)
            EXPECT(x[i] == (unsigned char)((int)(i / bytes) * 50 + (int)(i % bytes) * 3),
                   "%s: byte %zu is %d", dtype_name(types[t]), i, x[i]);
        dev_get(d, x, own);
        for (size_t i = 0; i < bytes; i++)
            EXPECT(x[i] == (unsigned char)((size - 1) * 50 + (int)i * 3), "%s: byte %zu is %d",
                   dtype_name(types[t]), i, x[i]);
        dev_free(d, own.data);
        dev_free(d, all.data);
    }
    comm_device(world, NULL);
    dev_close(d);
}

static void over_nccl(struct comm *world, void (*f)(struct comm *world))
{
    device = QUEUE_DEV;
    f(world);
    device = "ref";
}

static void nccl_collectives(struct comm *world) { over_nccl(world, collectives); }
static void nccl_exchanges(struct comm *world) { over_nccl(world, exchanges); }
static void nccl_moves(struct comm *world) { over_nccl(world, moves); }

/* Host values beside a world whose tensors are on a device, and one that is gone again. */
static void nccl_host_values(struct comm *world)
{
    struct dev *d = dev_open(QUEUE_DEV, DT_F32, 1);
    comm_device(world, d);
    host_values(world);
    comm_device(world, NULL);
    dev_close(d);
    host_values(world);
}

int main(int argc, char **argv)
{
    queue_dev_register();
    const struct test tests[] = {
        {.name = "collectives of the world and of its halves, in a row",
         .run = collectives,
         .ranks = {1, 2, 4, 8},
         .flags = TEST_MPI},
        {.name = "sums, bytes and barriers of the host",
         .run = host_values,
         .ranks = {1, 2, 4, 8},
         .flags = TEST_MPI},
        {.name = "exchanges of scattered runs, several at once",
         .run = exchanges,
         .ranks = {1, 2, 3, 4, 8},
         .flags = TEST_MPI},
        {.name = "types that are only moved", .run = moves, .ranks = {1, 2, 4}, .flags = TEST_MPI},
        {.name = "over NCCL: collectives of the world and of its halves, in a row",
         .run = nccl_collectives,
         .ranks = {1, 2, 3, 4},
         .flags = TEST_MPI},
        {.name = "over NCCL: exchanges of scattered runs, several at once",
         .run = nccl_exchanges,
         .ranks = {1, 2, 3, 4},
         .flags = TEST_MPI},
        {.name = "over NCCL: types that are only moved",
         .run = nccl_moves,
         .ranks = {1, 2, 4},
         .flags = TEST_MPI},
        {.name = "over NCCL: sums, bytes and barriers of the host",
         .run = nccl_host_values,
         .ranks = {1, 2, 4},
         .flags = TEST_MPI},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
