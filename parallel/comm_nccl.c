/* NCCL transport. Every communicator has a queue of its own on the device. A collective first makes
 * that queue wait for what the device was given before, then runs there; an event tells its end.
 * The wait is the host's: it looks at the event, at the library's asynchronous error and at the
 * clock by turns. So the watchdog sees who waits for what, as it does over MPI, and no kernel that
 * waits for a lost rank can hold up the host where nobody looks.
 * Reductions have the library's order: equal bits from run to run of one layout on one machine, but
 * not those of MPI. */
#include "parallel/comm_nccl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/crash.h"
#include "core/log.h"

/* ---- the library ----------------------------------------------------------------------------- */

/* What is used of nccl.h, under names of our own: the program is built without that header. */
enum { NCCL_OK = 0, NCCL_IN_PROGRESS = 7, NCCL_U8 = 1, NCCL_F32 = 7, NCCL_F64 = 8, NCCL_SUM = 0 };
struct nccl_id {
    char bytes[128];
};
#if defined(HAVE_NCCL_H)
#include <nccl.h>
_Static_assert((int)NCCL_OK == (int)ncclSuccess, "nccl.h has another ncclSuccess");
_Static_assert((int)NCCL_IN_PROGRESS == (int)ncclInProgress, "nccl.h has another ncclInProgress");
_Static_assert((int)NCCL_U8 == (int)ncclUint8, "nccl.h has another ncclUint8");
_Static_assert((int)NCCL_F32 == (int)ncclFloat32, "nccl.h has another ncclFloat32");
_Static_assert((int)NCCL_F64 == (int)ncclFloat64, "nccl.h has another ncclFloat64");
_Static_assert((int)NCCL_SUM == (int)ncclSum, "nccl.h has another ncclSum");
_Static_assert(sizeof(struct nccl_id) == sizeof(ncclUniqueId), "nccl.h has another ncclUniqueId");
#endif

typedef int reduction(const void *from, void *to, size_t n, int type, int op, void *comm,
                      void *stream);
static struct library {
    int (*GetVersion)(int *version);
    int (*GetUniqueId)(struct nccl_id *id);
    int (*CommInitRank)(void **comm, int size, struct nccl_id id, int rank);
    int (*CommDestroy)(void *comm);
    int (*CommAbort)(void *comm);
    int (*CommGetAsyncError)(void *comm, int *state);
    const char *(*GetErrorString)(int code);
    const char *(*GetLastError)(void *comm);
    int (*AllGather)(const void *from, void *to, size_t n, int type, void *comm, void *stream);
    reduction *ReduceScatter, *AllReduce;
    int (*Broadcast)(const void *from, void *to, size_t n, int type, int root, void *comm,
                     void *stream);
    int (*Send)(const void *from, size_t n, int type, int peer, void *comm, void *stream);
    int (*Recv)(void *to, size_t n, int type, int peer, void *comm, void *stream);
    int (*GroupStart)(void);
    int (*GroupEnd)(void);
} lib;
static pthread_mutex_t lib_lock = PTHREAD_MUTEX_INITIALIZER; /* ranks may be threads */
static bool lib_ready;

#define SYMBOL(name)                                 \
    {                                                \
        "nccl" #name, offsetof(struct library, name) \
    }
static const struct {
    const char *name;
    size_t at;
} symbols[] = {SYMBOL(GetVersion),     SYMBOL(GetUniqueId),  SYMBOL(CommInitRank),
               SYMBOL(CommDestroy),    SYMBOL(CommAbort),    SYMBOL(CommGetAsyncError),
               SYMBOL(GetErrorString), SYMBOL(GetLastError), SYMBOL(AllGather),
               SYMBOL(ReduceScatter),  SYMBOL(AllReduce),    SYMBOL(Broadcast),
               SYMBOL(Send),           SYMBOL(Recv),         SYMBOL(GroupStart),
               SYMBOL(GroupEnd)};

static void find_symbols(void *so, const char *file, struct err *e)
{
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *f = dlsym(so, symbols[i].name);
        if (!f) {
            err_set(e, RC_CONFIG, "%s has no %s; NCCL 2.13 or newer is needed", file,
                    symbols[i].name);
            return;
        }
        memcpy((char *)&lib + symbols[i].at, &f, sizeof f);
    }
}

static void open_library(struct err *e)
{
    const char *named = getenv("OSP_NCCL"), *file = named ? named : "libnccl.so.2";
    void *so = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!so)
        err_set(e, RC_CONFIG,
                "several ranks on GPUs need NCCL, and it cannot be opened: %s; install it (package "
                "libnccl2, or nvidia-nccl-cu13 of pip), or give its file in OSP_NCCL",
                dlerror());
    else
        find_symbols(so, file, e);
    if (e->code && so) dlclose(so);
    lib_ready = !e->code;
}

/* Once per process; a failed try may be followed by another. */
static void need_library(void)
{
    struct err e = {0};
    pthread_mutex_lock(&lib_lock);
    if (!lib_ready) open_library(&e);
    pthread_mutex_unlock(&lib_lock);
    err_raise(&e);
}

/* ---- errors ---------------------------------------------------------------------------------- */

struct flight { /* a collective on its way, or a used one for the next */
    void *event;
    void *room; /* reduce-scatter: the sum before it is added */
    size_t room_bytes;
    struct tensor sum, dst; /* at the wait: dst += sum; sum.data NULL: nothing to add */
    struct flight *next;
};
struct nccl {    /* comm.impl */
    void *comm;  /* the library's; NULL: one rank, or given up */
    void *queue; /* NULL: one rank */
    void *ready; /* event: the device has done what the next collective needs */
    const struct dev_queues *queues;
    const struct comm *world; /* whose context reports name */
    struct flight *idle;
};

static struct nccl *of(const struct comm *c) { return c->impl; }

/* Ends this communicator on the device, so that nothing there goes on waiting, and then the job. */
static _Noreturn void fail(struct comm *c, const char *what, const char *why)
{
    struct nccl *n = of(c);
    char text[900] = "NCCL: ";
    crash_add(text, sizeof text, what);
    crash_add(text, sizeof text, ": ");
    crash_add(text, sizeof text, why);
    comm_where(n->world, text, sizeof text);
    void *comm = n->comm;
    n->comm = NULL;
    if (comm) lib.CommAbort(comm);
    err_stop(
        RC_HANG,
        "%s; look for the first line of another rank; NCCL_DEBUG=WARN in the environment tells "
        "more",
        text);
}

static void check(struct comm *c, int r, const char *what)
{
    if (r == NCCL_OK || r == NCCL_IN_PROGRESS) return;
    const char *last = lib.GetLastError(of(c)->comm);
    char why[512];
    snprintf(why, sizeof why, "%s%s%s", lib.GetErrorString(r), last && *last ? ": " : "",
             last ? last : "");
    fail(c, what, why);
}

static void check_async(struct comm *c)
{
    int state = NCCL_OK;
    check(c, lib.CommGetAsyncError(of(c)->comm, &state), "asking for errors");
    check(c, state, "an error while it ran");
}

/* ---- flights --------------------------------------------------------------------------------- */

/* Whether a used flight suits better than another (or NULL) for this room. Collectives without a
 * room leave the rooms alone, and others take the least that is enough: after the first step there
 * is a room for whatever comes again, in whatever order, and nothing is allocated any more. Where
 * none is enough, the largest grows. */
static bool suits_better(const struct flight *f, const struct flight *than, size_t room)
{
    if (!room) return !f->room && !than;
    if (!f->room || !than) return f->room;
    const bool enough = f->room_bytes >= room, was_enough = than->room_bytes >= room;
    if (enough != was_enough) return enough;
    return enough ? f->room_bytes < than->room_bytes : f->room_bytes > than->room_bytes;
}

static struct flight *take(struct comm *c, size_t room)
{
    struct nccl *n = of(c);
    struct flight **at = NULL;
    for (struct flight **f = &n->idle; *f; f = &(*f)->next)
        if (suits_better(*f, at ? *at : NULL, room)) at = f;
    struct flight *f = at ? *at : NULL;
    if (f) {
        *at = f->next;
    } else {
        f = calloc(1, sizeof *f);
        CHECK(f, "out of memory");
        f->event = n->queues->event(c->dev);
    }
    if (room > f->room_bytes) {
        if (f->room) dev_free(c->dev, f->room);
        f->room = dev_alloc(c->dev, room);
        f->room_bytes = room;
    }
    f->sum = (struct tensor){0};
    f->next = NULL;
    return f;
}

/* Seconds a wait may take when nobody else ends it: the watchdog does at the deadline, or at ten
 * times that while files are written, and knows who is missing. */
static double limit(const struct comm *c) { return 10 * c->deadline_s; }

/* Between two looks: at first none, since most waits are short. */
static void pause_for(double waited)
{
    if (waited < 0.002)
        sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = waited < 0.1 ? 20000 : 200000}, NULL);
}

static void finish(struct comm *c, struct flight *f)
{
    struct nccl *n = of(c);
    const double begin = log_seconds();
    while (!n->queues->came(c->dev, f->event)) {
        const double waited = log_seconds() - begin;
        check_async(c);
        if (limit(c) > 0 && waited > limit(c))
            fail(c, "no end of a collective", "ten times comm_deadline_s have gone by");
        pause_for(waited);
    }
    check_async(c); /* an aborted collective ends too */
    if (f->sum.data) c->dev->ops->axpy(c->dev, f->dst, 1, f->sum);
    f->next = n->idle;
    n->idle = f;
}

/* The queue goes on when the device has made what is sent and has read what is overwritten. */
static void begin(struct comm *c)
{
    struct nccl *n = of(c);
    n->queues->record(c->dev, n->ready, NULL);
    n->queues->await(c->dev, n->queue, n->ready);
}

/* Hands the flight to the caller, or completes it now. */
static void settle(struct comm *c, struct flight *f, struct work *out)
{
    of(c)->queues->record(c->dev, f->event, of(c)->queue);
    if (out)
        out->impl = f;
    else
        finish(c, f);
}

/* ---- collectives ----------------------------------------------------------------------------- */

static struct tensor flat(struct tensor t)
{
    return tensor_make(t.data, t.dtype, 1, DIMS(tensor_count(t)));
}

static int type_of(struct tensor t) { return t.dtype == DT_F64 ? NCCL_F64 : NCCL_F32; }

/* What is only moved goes as bytes. */
static void all_gather(struct comm *c, struct tensor dst, struct tensor src, struct work *out)
{
    if (c->size == 1) {
        if (dst.data != src.data) c->dev->ops->copy(c->dev, dst.data, src.data, tensor_bytes(src));
        return;
    }
    struct flight *f = take(c, 0);
    begin(c);
    check(c,
          lib.AllGather(src.data, dst.data, tensor_bytes(src), NCCL_U8, of(c)->comm, of(c)->queue),
          "all_gather");
    settle(c, f, out);
}

/* The library writes the sum and does not add it: it goes through room of the flight. */
static void reduce_scatter(struct comm *c, struct tensor dst, struct tensor src, struct work *out)
{
    if (c->size == 1) {
        c->dev->ops->axpy(c->dev, flat(dst), 1, flat(src));
        return;
    }
    struct flight *f = take(c, tensor_bytes(dst));
    f->dst = f->sum = flat(dst);
    f->sum.data = f->room;
    begin(c);
    check(c,
          lib.ReduceScatter(src.data, f->room, (size_t)tensor_count(dst), type_of(dst), NCCL_SUM,
                            of(c)->comm, of(c)->queue),
          "reduce_scatter");
    settle(c, f, out);
}

static void all_reduce(struct comm *c, struct tensor x, struct work *out)
{
    if (c->size == 1) return;
    struct flight *f = take(c, 0);
    begin(c);
    check(c,
          lib.AllReduce(x.data, x.data, (size_t)tensor_count(x), type_of(x), NCCL_SUM, of(c)->comm,
                        of(c)->queue),
          "all_reduce");
    settle(c, f, out);
}

/* The k-th own run out is the k-th own run in; the device copies it among its other ops. */
static void copy_own(struct comm *c, struct tensor dst, const struct run *recv, int num_recv,
                     struct tensor src, const struct run *send, int num_send)
{
    const size_t row = (size_t)tensor_width(src) * dtype_size(src.dtype);
    int own = 0;
    for (int i = 0; i < num_recv; i++) {
        if (recv[i].peer != c->rank) continue;
        while (own < num_send && send[own].peer != c->rank) own++;
        CHECK(own < num_send && send[own].rows == recv[i].rows, "own rows do not match");
        c->dev->ops->copy(c->dev, (char *)dst.data + (size_t)recv[i].row * row,
                          (const char *)src.data + (size_t)send[own++].row * row,
                          (size_t)recv[i].rows * row);
    }
}

static void exchange(struct comm *c, struct tensor dst, const struct run *recv, int num_recv,
                     struct tensor src, const struct run *send, int num_send, struct work *out)
{
    const size_t row = (size_t)tensor_width(src) * dtype_size(src.dtype);
    struct nccl *n = of(c);
    copy_own(c, dst, recv, num_recv, src, send, num_send);
    if (c->size == 1) return;
    struct flight *f = take(c, 0);
    begin(c);
    check(c, lib.GroupStart(), "exchange");
    for (int i = 0; i < num_send; i++)
        if (send[i].peer != c->rank && send[i].rows)
            check(c,
                  lib.Send((const char *)src.data + (size_t)send[i].row * row,
                           (size_t)send[i].rows * row, NCCL_U8, send[i].peer, n->comm, n->queue),
                  "sending rows");
    for (int i = 0; i < num_recv; i++)
        if (recv[i].peer != c->rank && recv[i].rows)
            check(c,
                  lib.Recv((char *)dst.data + (size_t)recv[i].row * row, (size_t)recv[i].rows * row,
                           NCCL_U8, recv[i].peer, n->comm, n->queue),
                  "receiving rows");
    check(c, lib.GroupEnd(), "exchange");
    settle(c, f, out);
}

static void broadcast(struct comm *c, struct tensor x, int root, struct work *out)
{
    if (c->size == 1) return;
    struct flight *f = take(c, 0);
    begin(c);
    check(c,
          lib.Broadcast(x.data, x.data, tensor_bytes(x), NCCL_U8, root, of(c)->comm, of(c)->queue),
          "broadcast");
    settle(c, f, out);
}

static void wait_done(struct comm *c, struct work *w) { finish(c, w->impl); }

/* ---- communicators --------------------------------------------------------------------------- */

/* All ranks of the host communicator meet in a new one of the library. */
static void connect(struct comm *c, const struct comm *world)
{
    struct nccl *n = calloc(1, sizeof *n);
    CHECK(n, "out of memory");
    c->impl = n;
    n->world = world;
    n->queues = dev_queues_of(c->dev);
    if (c->size == 1) return;
    need_library();
    n->queue = n->queues->open(c->dev);
    n->ready = n->queues->event(c->dev);
    struct nccl_id id = {{0}};
    if (c->rank == 0) check(c, lib.GetUniqueId(&id), "the name of a new communicator");
    c->host->ops->broadcast(c->host, tensor_make(&id, DT_U8, 1, DIMS((int64_t)sizeof id)), 0, NULL);
    check(c, lib.CommInitRank(&n->comm, c->size, id, c->rank), "the start of a communicator");
}

static void disconnect(struct comm *c)
{
    struct nccl *n = of(c);
    if (n->comm) check(c, lib.CommDestroy(n->comm), "the end of a communicator");
    for (struct flight *f = n->idle, *next; f; f = next) {
        next = f->next;
        n->queues->drop(c->dev, f->event);
        if (f->room) dev_free(c->dev, f->room);
        free(f);
    }
    if (n->queue) {
        n->queues->drop(c->dev, n->ready);
        n->queues->close(c->dev, n->queue);
    }
    free(n);
}

static struct comm *split(struct comm *c, int color, int key, const char *name);

static void free_comm(struct comm *c)
{
    struct comm *host = c->host;
    disconnect(c);
    host->ops->free(host);
    free(c);
}

static const struct comm_ops ops = {"nccl",    all_gather, reduce_scatter, all_reduce, exchange,
                                    broadcast, wait_done,  NULL,           split,      free_comm};

static struct comm *over(struct comm *host, const char *name)
{
    struct comm *c = calloc(1, sizeof *c);
    CHECK(c, "out of memory");
    c->name = name;
    c->rank = host->rank;
    c->size = host->size;
    c->host = host;
    c->ops = &ops;
    return c;
}

static struct comm *split(struct comm *c, int color, int key, const char *name)
{
    struct comm *s = over(c->host->ops->split(c->host, color, key, name), name);
    s->dev = c->dev;
    connect(s, of(c)->world);
    return s;
}

/* The world keeps its address, which the watchdog and the program hold: what it was before becomes
 * its host communicator. */
void comm_nccl_enter(struct comm *world)
{
    struct comm *host = over(world, world->name);
    host->host = NULL;
    host->ops = world->ops;
    host->impl = world->impl;
    world->host = host;
    world->ops = &ops;
    connect(world, world);
    int version = 0;
    if (world->size == 1 || lib.GetVersion(&version) != NCCL_OK) return;
    if (world->rank == 0)
        log_info("transport NCCL %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

void comm_nccl_leave(struct comm *world)
{
    struct comm *host = world->host;
    disconnect(world);
    world->ops = host->ops;
    world->impl = host->impl;
    world->host = NULL;
    free(host);
}
