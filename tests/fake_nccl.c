/* A libnccl.so.2 for machines without a GPU: what parallel/comm_nccl.c uses of it, in host memory,
 * between processes or threads of one machine. Ranks of a communicator share a file with one ring
 * of bytes for each ordered pair; a job is a list of transfers over these rings that advance by
 * turns, so that the calls of a group run at once and those of one pair keep their order. Jobs run
 * where the queue runs them (tests/fake_queue.h), in the call itself for a NULL queue. A message
 * begins with its size, so that calls that do not match are an error and no hang. */
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "tests/fake_queue.h"

enum { OK = 0, SYSTEM = 2, ARGUMENT = 4, USAGE = 5, REMOTE = 6 };
enum { U8 = 1, F32 = 7, F64 = 8 };
enum { RING = 512, MOST_RANKS = 8, MOST_OPS = 256 };
struct id {
    char bytes[128];
};
struct ring {
    _Atomic uint64_t head, tail; /* bytes written and read */
    char data[RING];
};
struct shared {
    _Atomic int joined, broken;
    struct ring ring[MOST_RANKS][MOST_RANKS]; /* [from][to] */
};
struct comm {
    int rank, size;
    struct shared *shared;
    _Atomic int state, jobs; /* asynchronous error; jobs not yet done */
    _Atomic bool aborted;
};
struct transfer {
    bool send;
    int peer;
    char *data;
    uint64_t bytes, header, at; /* at: of the header's 8 bytes and then of the data */
};
struct job {
    struct comm *comm;
    struct transfer *t;
    int num;
    bool hangs;
    void (*last)(struct job *); /* when all is there; NULL: nothing to do */
    char *parts, *to;           /* of a reduction: [size][count], and where the sum goes */
    const char *own;
    size_t count;
    int type;
};

static _Thread_local enum fake_fault fault;
static _Thread_local int depth; /* of groups */
static _Thread_local struct job *group[MOST_OPS];
static _Thread_local void *group_queue;
static _Thread_local int group_jobs;
static _Atomic int aborts, names;

void fake_nccl_fault(enum fake_fault f) { fault = f; }
int fake_nccl_aborts(void) { return aborts; }

/* ---- jobs ------------------------------------------------------------------------------------ */

static bool stopped(struct comm *c)
{
    if (c->shared->broken && c->state == OK) c->state = REMOTE;
    return c->aborted || c->state != OK;
}

static void break_all(struct comm *c, int state)
{
    if (c->state == OK) c->state = state;
    c->shared->broken = 1;
}

/* Moves what fits now, of the header or of the data; true: something moved. */
static bool move(struct comm *c, struct transfer *t)
{
    struct ring *r =
        t->send ? &c->shared->ring[c->rank][t->peer] : &c->shared->ring[t->peer][c->rank];
    const uint64_t head = r->head, tail = r->tail, used = head - tail;
    const bool first = t->at < 8;
    const uint64_t left = first ? 8 - t->at : t->bytes + 8 - t->at,
                   room = t->send ? RING - used : used;
    const uint64_t at = (t->send ? head : tail) % RING;
    uint64_t n = left < room ? left : room;
    if (n > RING - at) n = RING - at;
    if (!n) return false;
    char *mine = first ? (char *)&t->header + t->at : t->data + t->at - 8;
    memcpy(t->send ? r->data + at : mine, t->send ? mine : r->data + at, n);
    t->at += n;
    if (t->send)
        r->head = head + n;
    else
        r->tail = tail + n;
    if (!t->send && t->at == 8 && t->header != t->bytes) break_all(c, USAGE);
    return true;
}

static bool done(const struct transfer *t) { return t->at == t->bytes + 8; }

/* One turn: the first unfinished transfer of each direction and peer moves. */
static bool turn(struct job *j, bool *all)
{
    bool busy[2][MOST_RANKS] = {{false}}, moved = false;
    *all = true;
    for (int i = 0; i < j->num; i++) {
        struct transfer *t = &j->t[i];
        if (done(t)) continue;
        *all = false;
        if (busy[t->send][t->peer]) continue;
        busy[t->send][t->peer] = true;
        moved |= move(j->comm, t);
    }
    return moved;
}

static void run(void *arg)
{
    struct job *j = arg;
    struct comm *c = j->comm;
    for (bool all = false; (!all || j->hangs) && !stopped(c);)
        if (!turn(j, &all)) nanosleep(&(struct timespec){.tv_nsec = 5000}, NULL);
    if (j->last && !stopped(c)) j->last(j);
    free(j->parts);
    free(j->t);
    free(j);
    c->jobs--;
}

static struct job *job_new(struct comm *c, int transfers)
{
    struct job *j = calloc(1, sizeof *j);
    j->comm = c;
    j->t = calloc((size_t)transfers + 1, sizeof *j->t);
    return j;
}

static void add(struct job *j, bool send, int peer, const void *data, size_t bytes)
{
    j->t[j->num++] =
        (struct transfer){send, peer, (char *)(uintptr_t)data, bytes, send ? bytes : 0, 0};
}

static int launch(struct job *j, void *queue)
{
    struct comm *c = j->comm;
    j->hangs = fault == FAKE_HANG;
    if (fault == FAKE_ASYNC) break_all(c, SYSTEM);
    fault = FAKE_NONE;
    c->jobs++;
    if (queue)
        ((struct fake_queue *)queue)->run(queue, run, j);
    else
        run(j);
    return OK;
}

static size_t size_of(int type) { return type == U8 ? 1 : type == F32 ? 4 : type == F64 ? 8 : 0; }

/* Arguments no call may have, and the injected error of a call. */
static int refused(struct comm *c, int type, int peer)
{
    if (!c || !size_of(type) || peer < 0 || peer >= c->size) return ARGUMENT;
    if (fault != FAKE_CALL) return c->state;
    fault = FAKE_NONE;
    return SYSTEM;
}

/* ---- the calls ------------------------------------------------------------------------------- */

int ncclGetVersion(int *version)
{
    *version = 29999;
    return OK;
}

int ncclGetUniqueId(struct id *id)
{
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "/dev/shm/osp-fake-nccl-%d-%d", (int)getpid(), names++);
    return OK;
}

int ncclCommInitRank(struct comm **out, int size, struct id id, int rank)
{
    if (size > MOST_RANKS) return ARGUMENT;
    const int fd = open(id.bytes, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(struct shared)) != 0) return SYSTEM;
    struct comm *c = calloc(1, sizeof *c);
    c->rank = rank;
    c->size = size;
    c->shared = mmap(NULL, sizeof *c->shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (c->shared == MAP_FAILED) return SYSTEM;
    c->shared->joined++;
    while (c->shared->joined < size) sched_yield();
    if (rank == 0) unlink(id.bytes);
    *out = c;
    return OK;
}

static int end(struct comm *c)
{
    while (c->jobs) sched_yield();
    munmap(c->shared, sizeof *c->shared);
    free(c);
    return OK;
}

int ncclCommDestroy(struct comm *c) { return c->state ? c->state : end(c); }

int ncclCommAbort(struct comm *c)
{
    aborts++;
    c->aborted = true;
    c->shared->broken = 1;
    return end(c);
}

int ncclCommGetAsyncError(struct comm *c, int *state)
{
    if (!c) return ARGUMENT;
    stopped(c);
    *state = c->state;
    return OK;
}

const char *ncclGetErrorString(int code)
{
    static const char *const text[] = {
        "no error",         "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage",        "remote process exited"};
    return code >= 0 && code <= REMOTE ? text[code] : "unknown";
}

const char *ncclGetLastError(struct comm *c)
{
    (void)c;
    return "said by the fake library";
}

int ncclAllGather(const void *from, char *to, size_t n, int type, struct comm *c, void *queue)
{
    const int bad = refused(c, type, 0);
    if (bad) return bad;
    const size_t bytes = n * size_of(type);
    struct job *j = job_new(c, 2 * c->size);
    for (int p = 0; p < c->size; p++) {
        add(j, true, p, from, bytes);
        add(j, false, p, to + (size_t)p * bytes, bytes);
    }
    return launch(j, queue);
}

static void add_parts(struct job *j)
{
    for (size_t i = 0; i < j->count; i++) {
        double s = 0;
        for (int r = 0; r < j->comm->size; r++) {
            const size_t at = (size_t)r * j->count + i;
            s += j->type == F64 ? ((double *)j->parts)[at] : (double)((float *)j->parts)[at];
        }
        if (j->type == F64)
            ((double *)j->to)[i] = s;
        else
            ((float *)j->to)[i] = (float)s;
    }
}

/* Rank p gets the n elements at step * p of everyone and adds them up. */
static int reduce(const char *from, size_t step, char *to, size_t n, int type, int op,
                  struct comm *c, void *queue)
{
    const int bad = op != 0 || type == U8 ? ARGUMENT : refused(c, type, 0);
    if (bad) return bad;
    const size_t bytes = n * size_of(type);
    struct job *j = job_new(c, 2 * c->size);
    j->parts = malloc((size_t)c->size * bytes + 1);
    j->to = to;
    j->count = n;
    j->type = type;
    j->last = add_parts;
    for (int p = 0; p < c->size; p++) {
        add(j, true, p, from + (size_t)p * step * size_of(type), bytes);
        add(j, false, p, j->parts + (size_t)p * bytes, bytes);
    }
    return launch(j, queue);
}

int ncclReduceScatter(const void *from, void *to, size_t n, int type, int op, struct comm *c,
                      void *queue)
{
    return reduce(from, n, to, n, type, op, c, queue);
}

int ncclAllReduce(const void *from, void *to, size_t n, int type, int op, struct comm *c,
                  void *queue)
{
    return reduce(from, 0, to, n, type, op, c, queue);
}

int ncclBroadcast(const void *from, void *to, size_t n, int type, int root, struct comm *c,
                  void *queue)
{
    const int bad = refused(c, type, root);
    if (bad) return bad;
    const size_t bytes = n * size_of(type);
    struct job *j = job_new(c, c->size);
    for (int p = 0; p < c->size && c->rank == root; p++)
        if (p != root) add(j, true, p, from, bytes);
    if (c->rank != root) add(j, false, root, to, bytes);
    return launch(j, queue);
}

/* Calls of a group become transfers of one job per communicator, when the group ends. */
static int point(bool send, const void *data, size_t bytes, int peer, struct comm *c, void *queue)
{
    struct job *j = NULL;
    for (int i = 0; i < group_jobs; i++)
        if (group[i]->comm == c) j = group[i];
    if (!j) {
        if (group_jobs == MOST_OPS) return USAGE;
        j = group[group_jobs++] = job_new(c, MOST_OPS);
    }
    if (j->num == MOST_OPS) return USAGE;
    add(j, send, peer, data, bytes);
    group_queue = queue;
    return OK;
}

int ncclGroupStart(void)
{
    depth++;
    return OK;
}

int ncclGroupEnd(void)
{
    if (depth == 0) return USAGE;
    if (--depth) return OK;
    const int n = group_jobs;
    group_jobs = 0;
    for (int i = 0; i < n; i++) launch(group[i], group_queue);
    return OK;
}

static int single(bool send, const void *data, size_t n, int type, int peer, struct comm *c,
                  void *queue)
{
    int bad = refused(c, type, peer);
    if (bad) return bad;
    ncclGroupStart();
    bad = point(send, data, n * size_of(type), peer, c, queue);
    ncclGroupEnd();
    return bad;
}

int ncclSend(const void *from, size_t n, int type, int peer, struct comm *c, void *queue)
{
    return single(true, from, n, type, peer, c, queue);
}

int ncclRecv(void *to, size_t n, int type, int peer, struct comm *c, void *queue)
{
    return single(false, to, n, type, peer, c, queue);
}
