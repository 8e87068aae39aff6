/* The NCCL transport beyond the cases of test_comm, over the stand-in library: how its absence and
 * its errors are reported, and sums that are on their way at once. */
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "parallel/comm.h"
#include "tests/check.h"
#include "tests/fake_queue.h"
#include "tests/queue_dev.h"

static void inject(enum fake_fault f)
{
    void (*set)(enum fake_fault);
    void *symbol = queue_dev_nccl("fake_nccl_fault");
    memcpy(&set, &symbol, sizeof set);
    set(f);
}

static int aborts(void)
{
    int (*count)(void);
    void *symbol = queue_dev_nccl("fake_nccl_aborts");
    memcpy(&count, &symbol, sizeof count);
    return count();
}

static struct dev *enter(struct comm *world)
{
    struct dev *d = dev_open(QUEUE_DEV, DT_F32, 1);
    comm_device(world, d);
    return d;
}

static void leave(struct comm *world, struct dev *d)
{
    comm_device(world, NULL);
    dev_close(d);
    comm_context(world, NULL);
    world->deadline_s = 0;
    comm_barrier(world, "left"); /* the host's transport works on */
}

/* ---- absence --------------------------------------------------------------------------------- */

struct entry {
    struct comm *world;
    struct dev *dev;
};
static void enter_only(void *arg)
{
    const struct entry *e = arg;
    comm_device(e->world, e->dev);
}

static void absent(struct comm *world)
{
    char real[4096] = "";
    strncpy(real, getenv("OSP_NCCL"), sizeof real - 1);
    struct entry e = {world, dev_open(QUEUE_DEV, DT_F32, 1)};
    const char *const file[] = {"/nowhere/libnccl.so.2", "libm.so.6"};
    const char *const text[] = {
        "several ranks on GPUs need NCCL, and it cannot be opened: /nowhere/",
        "libm.so.6 has no ncclGetVersion; NCCL 2.13 or newer is needed"};
    for (int i = 0; i < 2; i++) {
        comm_barrier(world, "before");
        if (world->rank == 0) setenv("OSP_NCCL", file[i], 1); /* threads share it, processes not */
        comm_barrier(world, "set");
        if (strcmp(getenv("OSP_NCCL"), file[i]) == 0)
            expect_stop(text[i], RC_CONFIG, enter_only, &e);
        comm_device(world, NULL);
    }
    comm_barrier(world, "before");
    if (world->rank == 0) setenv("OSP_NCCL", real, 1);
    comm_barrier(world, "set");
    dev_close(e.dev);
}

/* ---- errors ---------------------------------------------------------------------------------- */

struct moved {
    struct comm *c;
    struct dev *dev;
};
static void gather(void *arg)
{
    const struct moved *m = arg;
    struct tensor own = dev_tensor(m->dev, DT_F32, 1, DIMS(5000)),
                  all = dev_tensor(m->dev, DT_F32, 1, DIMS(5000 * m->c->size));
    struct work w = {0};
    comm_all_gather(m->c, all, own, "blocks.7", &w);
    comm_wait(m->c, &w);
    dev_free(m->dev, own.data);
    dev_free(m->dev, all.data);
}

/* One rank meets the fault, and all stop: with the reason, the collective and the place. */
static void faulty(struct comm *world, enum fake_fault f, const char *mine, const char *others)
{
    struct dev *d = enter(world);
    const int before = aborts();
    struct moved m = {world, d};
    comm_context(world, "blocks.3");
    gather(&m);
    comm_barrier(world, "together");
    const bool hurt = world->rank == world->size - 1;
    if (hurt) inject(f);
    expect_stop(hurt ? mine : others, RC_HANG, gather, &m);
    EXPECT(aborts() > before, "the communicator was not given up");
    leave(world, d);
}

static void broken(struct comm *world)
{
    faulty(world, FAKE_ASYNC,
           "NCCL: an error while it ran: unhandled system error: said by the fake library, in "
           "all_gather #",
           "NCCL: an error while it ran: remote process exited: said by the fake library, in "
           "all_gather #");
    faulty(world, FAKE_ASYNC, "\"blocks.7\" on axis world, in blocks.3; look for the first line",
           "\"blocks.7\" on axis world, in blocks.3; look for the first line");
    faulty(world, FAKE_CALL, "NCCL: all_gather: unhandled system error", "remote process exited");
}

static void stuck(struct comm *world)
{
    struct dev *d = enter(world);
    struct moved m = {world, d};
    world->deadline_s = 0.02;
    inject(FAKE_HANG);
    const double begin = log_seconds();
    expect_stop("NCCL: ", RC_HANG, gather, &m);
    EXPECT(log_seconds() - begin >= 0.15, "it did not wait ten times the deadline");
    leave(world, d);
}

/* ---- several at once ------------------------------------------------------------------------- */

/* Sums of several sizes, each added to what is there, begun in one order and awaited in another;
 * the second time with the room of the first. */
static void sums(struct comm *world)
{
    enum { AT_ONCE = 4, MAX = 2000 };
    struct dev *d = enter(world);
    static const int64_t size[AT_ONCE] = {7, MAX, 1, 500};
    const int64_t ranks = world->size;
    struct comm *c = comm_split(world, 0, world->rank, "all");
    double *x = calloc((size_t)(MAX * ranks), sizeof *x);
    CHECK(x, "out of memory");
    for (int turn = 0; turn < 3; turn++) {
        struct tensor dst[AT_ONCE], src[AT_ONCE];
        struct work w[AT_ONCE] = {{0}};
        for (int i = 0; i < AT_ONCE; i++) {
            const int k = (i + turn) % AT_ONCE;
            dst[k] = dev_tensor(d, DT_F32, 1, DIMS(size[k]));
            src[k] = dev_tensor(d, DT_F32, 1, DIMS(size[k] * ranks));
            d->ops->fill(d, dst[k], 1000);
            for (int64_t j = 0; j < size[k] * ranks; j++)
                x[j] = (double)(j % 100 + k + turn) * (world->rank + 1);
            dev_put_f64(d, src[k], x);
            comm_reduce_scatter(c, dst[k], src[k], "sum", &w[k]);
        }
        for (int i = AT_ONCE - 1; i >= 0; i--) {
            comm_wait(c, &w[i]);
            dev_get_f64(d, x, dst[i]);
            for (int64_t j = 0; j < size[i]; j++) {
                const int64_t at = c->rank * size[i] + j;
                const double want =
                    1000 + (double)((at % 100 + i + turn) * ranks * (ranks + 1)) / 2;
                EXPECT(x[j] == want, "turn %d, sum %d: element %lld is %g, not %g", turn, i,
                       (long long)j, x[j], want);
            }
            dev_free(d, dst[i].data);
            dev_free(d, src[i].data);
        }
    }
    free(x);
    comm_free(c);
    leave(world, d);
}

/* What a step needs is there after the first one, in whatever order collectives are begun. */
static void rooms(struct comm *world)
{
    enum { STEPS = 50, KINDS = 4 };
    static const int64_t size[KINDS] = {2000, 7, 0, 500}; /* 0: a gather */
    int order[KINDS] = {0, 1, 2, 3};
    struct dev *d = enter(world);
    struct comm *c = comm_split(world, 0, world->rank, "all");
    struct tensor dst[KINDS], src[KINDS];
    size_t after_first = 0;
    for (int k = 0; k < KINDS; k++) {
        const int64_t n = size[k] ? size[k] : 100, all = n * world->size;
        dst[k] = dev_tensor(d, DT_F32, 1, DIMS(size[k] ? n : all));
        src[k] = dev_tensor(d, DT_F32, 1, DIMS(size[k] ? all : n));
        d->ops->fill(d, src[k], 1);
        d->ops->fill(d, dst[k], 1);
    }
    for (int i = 0; i < STEPS; i++) {
        struct work w[KINDS] = {{0}};
        for (int j = 0; j < KINDS; j++) {
            const int k = order[j];
            if (size[k])
                comm_reduce_scatter(c, dst[k], src[k], "sum", &w[k]);
            else
                comm_all_gather(c, dst[k], src[k], "gather", &w[k]);
        }
        for (int j = 0; j < KINDS; j++) { /* awaited in the next step's order */
            const int other = (i * 7 + j * 5) % KINDS, was = order[j];
            order[j] = order[other];
            order[other] = was;
        }
        for (int j = 0; j < KINDS; j++) comm_wait(c, &w[order[j]]);
        if (i == 0) after_first = d->count.bytes_now;
        EXPECT(d->count.bytes_now == after_first && d->count.bytes_peak == after_first,
               "step %d: %zu bytes, %zu at most, %zu after the first", i, d->count.bytes_now,
               d->count.bytes_peak, after_first);
    }
    for (int k = 0; k < KINDS; k++) {
        dev_free(d, dst[k].data);
        dev_free(d, src[k].data);
    }
    comm_free(c);
    leave(world, d);
}

int main(int argc, char **argv)
{
    queue_dev_register();
    const struct test tests[] = {
        {.name = "a missing NCCL and one that is none are named", /* first: found once, it stays */
         .run = absent,
         .ranks = {2}},
        {.name = "an error of one rank ends all, with reason and place",
         .run = broken,
         .ranks = {2, 4},
         .flags = TEST_MPI},
        {.name = "a collective without an end is given up",
         .run = stuck,
         .ranks = {2, 3},
         .flags = TEST_MPI},
        {.name = "several sums on their way at once",
         .run = sums,
         .ranks = {1, 2, 3, 4},
         .flags = TEST_MPI},
        {.name = "after the first step nothing is allocated",
         .run = rooms,
         .ranks = {2, 3},
         .flags = TEST_MPI},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
