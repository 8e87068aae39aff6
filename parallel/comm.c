#include "parallel/comm.h"

#include <stdlib.h>
#include <string.h>

#include "core/log.h"

static const char *const kind_names[COMM_KINDS] = {"all_gather", "reduce_scatter", "all_reduce",
                                                   "exchange", "broadcast"};

/* --check-comm: every rank tells what it is about to do; a mismatch names both sides instead of
 * hanging later. */
static void check_agreement(struct comm *c, enum comm_kind kind, double bytes, const char *tag)
{
    struct claim {
        uint64_t seq, kind, tag;
        double bytes;
    } mine = {c->seq, kind, rng_hash(tag), bytes};
    struct claim *all = calloc((size_t)c->size, sizeof *all);
    CHECK(all, "out of memory");
    struct tensor src = tensor_make(&mine, DT_U8, 1, DIMS(sizeof mine));
    struct tensor dst = tensor_make(all, DT_U8, 1, DIMS((int64_t)sizeof mine * c->size));
    c->ops->all_gather(c, dst, src, NULL);
    for (int r = 0; r < c->size; r++)
        CHECK(
            all[r].seq == mine.seq && all[r].kind == mine.kind && all[r].tag == mine.tag &&
                (kind == COMM_EXCHANGE || all[r].bytes == mine.bytes),
            "axis %s: collective #%llu \"%s\" (%s, %.0f bytes) meets #%llu (%s, %.0f bytes) of its "
            "rank %d",
            c->name, (unsigned long long)mine.seq, tag, kind_names[kind], bytes,
            (unsigned long long)all[r].seq, kind_names[all[r].kind], all[r].bytes, r);
    free(all);
}

static double begin(struct comm *c, enum comm_kind kind, double sent, double bytes, const char *tag)
{
    c->seq++;
    c->count[kind].calls++;
    c->count[kind].bytes += sent;
    const double now = log_seconds();
    c->since = now;
    c->doing = tag;
    if (c->check && c->size > 1) check_agreement(c, kind, bytes, tag);
    return now;
}

static void end(struct comm *c, double since)
{
    c->doing = NULL;
    c->seconds += log_seconds() - since;
}

static double bytes_of(struct tensor t) { return (double)tensor_bytes(t); }

void comm_all_gather(struct comm *c, struct tensor dst, struct tensor src, const char *tag,
                     struct work *w)
{
    CHECK(tensor_count(dst) == tensor_count(src) * c->size && dst.dtype == src.dtype &&
              tensor_contiguous(dst) && tensor_contiguous(src),
          "all_gather \"%s\": %lld elements of %s into %lld of %s over %d ranks", tag,
          (long long)tensor_count(src), dtype_name(src.dtype), (long long)tensor_count(dst),
          dtype_name(dst.dtype), c->size);
    const double t = begin(c, COMM_ALL_GATHER, bytes_of(src) * (c->size - 1), bytes_of(src), tag);
    c->ops->all_gather(c, dst, src, w);
    end(c, t);
}

void comm_reduce_scatter(struct comm *c, struct tensor dst, struct tensor src, const char *tag,
                         struct work *w)
{
    CHECK(tensor_count(src) == tensor_count(dst) * c->size && dst.dtype == src.dtype &&
              (dst.dtype == DT_F32 || dst.dtype == DT_F64),
          "reduce_scatter \"%s\": %lld elements into %lld over %d ranks", tag,
          (long long)tensor_count(src), (long long)tensor_count(dst), c->size);
    const double t =
        begin(c, COMM_REDUCE_SCATTER, bytes_of(dst) * (c->size - 1), bytes_of(dst), tag);
    c->ops->reduce_scatter(c, dst, src, w);
    end(c, t);
}

void comm_all_reduce(struct comm *c, struct tensor x, const char *tag, struct work *w)
{
    CHECK(x.dtype == DT_F32 || x.dtype == DT_F64, "all_reduce \"%s\" of %s", tag,
          dtype_name(x.dtype));
    const double sent = 2 * bytes_of(x) * (c->size - 1) / c->size;
    const double t = begin(c, COMM_ALL_REDUCE, sent, bytes_of(x), tag);
    c->ops->all_reduce(c, x, w);
    end(c, t);
}

void comm_exchange(struct comm *c, struct tensor dst, const struct run *recv, int num_recv,
                   struct tensor src, const struct run *send, int num_send, const char *tag,
                   struct work *w)
{
    double sent = 0;
    for (int i = 0; i < num_send; i++)
        if (send[i].peer != c->rank) sent += (double)(send[i].rows * tensor_width(src));
    sent *= (double)dtype_size(src.dtype);
    const double t = begin(c, COMM_EXCHANGE, sent, sent, tag);
    c->ops->exchange(c, dst, recv, num_recv, src, send, num_send, w);
    end(c, t);
}

void comm_broadcast(struct comm *c, struct tensor x, int root, const char *tag, struct work *w)
{
    const double sent = c->rank == root && c->size > 1 ? bytes_of(x) : 0;
    const double t = begin(c, COMM_BROADCAST, sent, bytes_of(x), tag);
    c->ops->broadcast(c, x, root, w);
    end(c, t);
}

void comm_wait(struct comm *c, struct work *w)
{
    if (!w->impl) return;
    const double t = log_seconds();
    c->since = t;
    c->doing = "wait";
    c->ops->wait(c, w);
    w->impl = NULL;
    end(c, t);
}

void comm_barrier(struct comm *c, const char *tag)
{
    double one = 1;
    comm_sum_f64(c, &one, 1, tag);
}

struct comm *comm_split(struct comm *c, int color, int key, const char *name)
{
    struct comm *s = c->ops->split(c, color, key, name);
    s->dev = c->dev;
    s->deadline_s = c->deadline_s;
    s->check = c->check;
    return s;
}

void comm_free(struct comm *c)
{
    if (c) c->ops->free(c);
}

void comm_sum_f64(struct comm *c, double *x, int n, const char *tag)
{
    comm_all_reduce(c, tensor_make(x, DT_F64, 1, DIMS(n)), tag, NULL);
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
    if (n) comm_broadcast(c, tensor_make(p, DT_U8, 1, DIMS((int64_t)n)), root, tag, NULL);
}

void comm_gather_bytes(struct comm *c, void *dst, const void *src, size_t n, const char *tag)
{
    struct tensor from = tensor_make((void *)(uintptr_t)src, DT_U8, 1, DIMS((int64_t)n));
    struct tensor to = tensor_make(dst, DT_U8, 1, DIMS((int64_t)n * c->size));
    comm_all_gather(c, to, from, tag, NULL);
}
