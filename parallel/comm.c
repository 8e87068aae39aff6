#include "parallel/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/crash.h"
#include "core/fault.h"
#include "core/log.h"
#include "parallel/comm_nccl.h"

static const char *const kind_names[COMM_KINDS] = {"all_gather", "reduce_scatter", "all_reduce",
                                                   "exchange", "broadcast"};

const char *comm_kind_name(int kind)
{
    return kind >= 0 && kind < COMM_KINDS ? kind_names[kind] : "split";
}

static _Thread_local const struct comm *current; /* the one this thread is in */

void comm_where(const struct comm *world, char *text, size_t size)
{
    const struct comm *c = current;
    const char *tag = c ? c->doing : NULL;
    if (tag) {
        crash_add(text, size, ", in ");
        crash_add(text, size, comm_kind_name(c->kind));
        crash_add(text, size, " #");
        crash_add_number(text, size, c->doing_seq);
        crash_add(text, size, " \"");
        crash_add(text, size, tag);
        crash_add(text, size, "\" on axis ");
        crash_add(text, size, c->name);
    }
    const char *context = world ? world->context : NULL;
    if (context) {
        crash_add(text, size, ", in ");
        crash_add(text, size, context);
    }
}

/* Host values go by the transport of host memory, also where the tensors have another one. */
static struct comm *host_of(struct comm *c) { return c->host ? c->host : c; }

struct claim { /* what a rank is about to do */
    uint64_t seq, kind;
    double bytes;
    char tag[40];
};

static void claim_text(char *out, size_t size, const struct claim *c)
{
    snprintf(out, size, "#%llu \"%s\" (%s, %.0f bytes)", (unsigned long long)c->seq, c->tag,
             comm_kind_name((int)c->kind), c->bytes);
}

/* --check-comm: every rank tells what it is about to do; a mismatch names both sides instead of
 * hanging later. The claims themselves always match: they have one size. */
static void check_agreement(struct comm *c, enum comm_kind kind, double bytes, const char *tag)
{
    struct claim mine = {c->seq, kind, bytes, ""};
    snprintf(mine.tag, sizeof mine.tag, "%s", tag);
    struct claim *all = calloc((size_t)c->size, sizeof *all);
    CHECK(all, "out of memory");
    struct tensor src = tensor_make(&mine, DT_U8, 1, DIMS(sizeof mine));
    struct tensor dst = tensor_make(all, DT_U8, 1, DIMS((int64_t)sizeof mine * c->size));
    host_of(c)->ops->all_gather(host_of(c), dst, src, NULL);
    for (int r = 0; r < c->size; r++) {
        const struct claim *o = &all[r];
        if (o->seq == mine.seq && o->kind == mine.kind && !strcmp(o->tag, mine.tag) &&
            (kind == COMM_EXCHANGE || o->bytes == mine.bytes))
            continue;
        char here[128], there[128];
        claim_text(here, sizeof here, &mine);
        claim_text(there, sizeof there, o);
        err_stop(RC_SOFTWARE,
                 "ranks disagree on axis %s: its rank %d begins %s, its rank %d begins %s", c->name,
                 c->rank, here, r, there);
    }
    free(all);
}

static struct comm_entry *entry_of(struct comm *c, enum comm_kind kind, const char *where)
{
    for (int i = 0; i < c->num_entries; i++)
        if (c->entry[i].kind == kind && strcmp(c->entry[i].where, where) == 0) return &c->entry[i];
    if (c->num_entries % 64 == 0) {
        c->entry = realloc(c->entry, (size_t)(c->num_entries + 64) * sizeof *c->entry);
        CHECK(c->entry, "out of memory");
    }
    struct comm_entry *e = &c->entry[c->num_entries++];
    *e = (struct comm_entry){.kind = kind};
    snprintf(e->where, sizeof e->where, "%s", where);
    return e;
}

static void count(struct comm *c, enum comm_kind kind, double sent, const char *tag)
{
    struct comm_count *n[2] = {&c->count[kind],
                               &entry_of(c, kind, c->block ? c->block : tag)->count};
    for (int i = 0; i < 2; i++) {
        n[i]->calls++;
        n[i]->bytes += sent;
    }
}

void comm_reset_counts(struct comm *c)
{
    memset(c->count, 0, sizeof c->count);
    c->num_entries = 0;
    free(c->entry);
    c->entry = NULL;
}

static double begin(struct comm *c, enum comm_kind kind, double sent, double bytes, const char *tag)
{
    c->seq++;
    count(c, kind, sent, tag);
    const double now = log_seconds();
    c->since = now;
    c->kind = kind;
    c->tag = tag;
    c->doing_seq = c->seq;
    c->doing = tag;
    current = c;
    if (c->check && c->size > 1) check_agreement(c, kind, bytes, tag);
    return now;
}

static void end(struct comm *c, double since, struct work *w)
{
    if (w) { /* comm_wait reports by these */
        w->seq = c->seq;
        w->kind = c->kind;
        w->tag = c->tag;
    }
    c->doing = NULL;
    current = NULL;
    c->seconds += log_seconds() - since;
}

/* A test leaves a collective out on one rank; those of dry runs and of one rank do not count. */
static bool left_out(const struct comm *c)
{
    return c->size > 1 && strcmp(c->ops->name, "null") != 0 && fault_hit("comm");
}

static double bytes_of(struct tensor t) { return (double)tensor_bytes(t); }

/* by: c, or the one that carries its host values */
static void gather(struct comm *c, struct comm *by, struct tensor dst, struct tensor src,
                   const char *tag, struct work *w)
{
    CHECK(tensor_count(dst) == tensor_count(src) * c->size && dst.dtype == src.dtype &&
              tensor_contiguous(dst) && tensor_contiguous(src),
          "all_gather \"%s\": %lld elements of %s into %lld of %s over %d ranks", tag,
          (long long)tensor_count(src), dtype_name(src.dtype), (long long)tensor_count(dst),
          dtype_name(dst.dtype), c->size);
    if (left_out(c)) return;
    const double t = begin(c, COMM_ALL_GATHER, bytes_of(src) * (c->size - 1), bytes_of(src), tag);
    by->ops->all_gather(by, dst, src, w);
    end(c, t, w);
}

void comm_all_gather(struct comm *c, struct tensor dst, struct tensor src, const char *tag,
                     struct work *w)
{
    gather(c, c, dst, src, tag, w);
}

void comm_reduce_scatter(struct comm *c, struct tensor dst, struct tensor src, const char *tag,
                         struct work *w)
{
    CHECK(tensor_count(src) == tensor_count(dst) * c->size && dst.dtype == src.dtype &&
              (dst.dtype == DT_F32 || dst.dtype == DT_F64),
          "reduce_scatter \"%s\": %lld elements into %lld over %d ranks", tag,
          (long long)tensor_count(src), (long long)tensor_count(dst), c->size);
    if (left_out(c)) return;
    const double t =
        begin(c, COMM_REDUCE_SCATTER, bytes_of(dst) * (c->size - 1), bytes_of(dst), tag);
    c->ops->reduce_scatter(c, dst, src, w);
    end(c, t, w);
}

static void sum(struct comm *c, struct comm *by, struct tensor x, const char *tag, struct work *w)
{
    CHECK(x.dtype == DT_F32 || x.dtype == DT_F64, "all_reduce \"%s\" of %s", tag,
          dtype_name(x.dtype));
    const double sent = 2 * bytes_of(x) * (c->size - 1) / c->size;
    if (left_out(c)) return;
    const double t = begin(c, COMM_ALL_REDUCE, sent, bytes_of(x), tag);
    by->ops->all_reduce(by, x, w);
    end(c, t, w);
}

void comm_all_reduce(struct comm *c, struct tensor x, const char *tag, struct work *w)
{
    sum(c, c, x, tag, w);
}

void comm_exchange(struct comm *c, struct tensor dst, const struct run *recv, int num_recv,
                   struct tensor src, const struct run *send, int num_send, const char *tag,
                   struct work *w)
{
    double sent = 0;
    for (int i = 0; i < num_send; i++)
        if (send[i].peer != c->rank) sent += (double)(send[i].rows * tensor_width(src));
    sent *= (double)dtype_size(src.dtype);
    if (left_out(c)) return;
    const double t = begin(c, COMM_EXCHANGE, sent, sent, tag);
    c->ops->exchange(c, dst, recv, num_recv, src, send, num_send, w);
    end(c, t, w);
}

static void spread(struct comm *c, struct comm *by, struct tensor x, int root, const char *tag,
                   struct work *w)
{
    const double sent = c->rank == root && c->size > 1 ? bytes_of(x) : 0;
    if (left_out(c)) return;
    const double t = begin(c, COMM_BROADCAST, sent, bytes_of(x), tag);
    by->ops->broadcast(by, x, root, w);
    end(c, t, w);
}

void comm_broadcast(struct comm *c, struct tensor x, int root, const char *tag, struct work *w)
{
    spread(c, c, x, root, tag, w);
}

void comm_wait(struct comm *c, struct work *w)
{
    if (!w->impl) return;
    const double t = log_seconds();
    c->since = t;
    c->kind = w->kind;
    c->doing_seq = w->seq;
    c->doing = w->tag;
    current = c;
    c->ops->wait(c, w);
    w->impl = NULL;
    end(c, t, NULL);
}

void comm_poll(struct comm *c, struct work *w)
{
    if (w->impl && c->ops->poll) c->ops->poll(c, w);
}

void comm_barrier(struct comm *c, const char *tag)
{
    double one = 1;
    comm_sum_f64(c, &one, 1, tag);
}

struct comm *comm_split(struct comm *c, int color, int key, const char *name)
{
    c->since = log_seconds(); /* waits for all, like the others, but moves nothing */
    c->kind = COMM_KINDS;
    c->tag = name;
    c->doing_seq = ++c->seq;
    c->doing = name;
    struct comm *s = c->ops->split(c, color, key, name);
    c->doing = NULL;
    s->dev = c->dev;
    s->deadline_s = c->deadline_s;
    s->check = c->check;
    return s;
}

void comm_device(struct comm *world, struct dev *dev)
{
    if (world->host) comm_nccl_leave(world);
    world->dev = dev;
    if (dev && dev_queues_of(dev)) comm_nccl_enter(world);
}

void comm_free(struct comm *c)
{
    if (!c) return;
    free(c->entry);
    c->ops->free(c);
}

void comm_sum_f64(struct comm *c, double *x, int n, const char *tag)
{
    sum(c, host_of(c), tensor_make(x, DT_F64, 1, DIMS(n)), tag, NULL);
}

void comm_max_f64(struct comm *c, double *x, int n, const char *tag)
{
    double *all = malloc((size_t)n * (size_t)c->size * sizeof *all);
    CHECK(all, "out of memory");
    comm_gather_bytes(c, all, x, (size_t)n * sizeof *x, tag);
    for (int r = 0; r < c->size; r++)
        for (int i = 0; i < n; i++)
            if (all[r * n + i] > x[i] || r == 0) x[i] = all[r * n + i];
    free(all);
}

void comm_broadcast_bytes(struct comm *c, void *p, size_t n, int root, const char *tag)
{
    if (n) spread(c, host_of(c), tensor_make(p, DT_U8, 1, DIMS((int64_t)n)), root, tag, NULL);
}

void comm_gather_bytes(struct comm *c, void *dst, const void *src, size_t n, const char *tag)
{
    struct tensor from = tensor_make((void *)(uintptr_t)src, DT_U8, 1, DIMS((int64_t)n));
    struct tensor to = tensor_make(dst, DT_U8, 1, DIMS((int64_t)n * c->size));
    gather(c, host_of(c), to, from, tag, NULL);
}
