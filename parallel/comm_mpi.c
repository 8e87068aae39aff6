/* MPI transport for host memory. Reductions are an all-to-all and a local sum in rank order: the
 * library's reduce-scatter is slower, and its order is not fixed. Counts are elements and are cut
 * into pieces that fit an int. */
#include <limits.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/comm.h"
#include "parallel/reduce.h"

struct mpi_work { /* what completes at the wait */
    MPI_Request *req;
    int num_req;
    void *parts; /* reduce-scatter: contributions received */
    struct tensor dst;
};

static MPI_Comm mpi(const struct comm *c) { return *(const MPI_Comm *)c->impl; }

static MPI_Datatype type_of(enum dtype d)
{
    switch (d) {
    case DT_F32:
        return MPI_FLOAT;
    case DT_F64:
        return MPI_DOUBLE;
    case DT_BF16:
        return MPI_UINT16_T;
    case DT_I16:
        return MPI_INT16_T;
    case DT_I32:
        return MPI_INT32_T;
    default:
        return MPI_UNSIGNED_CHAR;
    }
}

static int count_of(int64_t n)
{
    CHECK(n <= INT_MAX, "a message of %lld elements does not fit an MPI count", (long long)n);
    return (int)n;
}

static struct mpi_work *work_new(int requests)
{
    struct mpi_work *w = calloc(1, sizeof *w);
    CHECK(w, "out of memory");
    w->req = calloc((size_t)requests + 1, sizeof *w->req);
    CHECK(w->req, "out of memory");
    return w;
}

static void finish(struct comm *c, struct mpi_work *w)
{
    MPI_Waitall(w->num_req, w->req, MPI_STATUSES_IGNORE);
    if (w->parts) {
        const void **part = malloc((size_t)c->size * sizeof *part);
        CHECK(part, "out of memory");
        for (int r = 0; r < c->size; r++)
            part[r] = (char *)w->parts + (size_t)r * tensor_bytes(w->dst);
        reduce_parts(w->dst, part, c->size, true);
        free(part);
        free(w->parts);
    }
    free(w->req);
    free(w);
}

/* Hands the work to the caller, or completes it now. */
static void settle(struct comm *c, struct mpi_work *w, struct work *out)
{
    if (out)
        out->impl = w;
    else
        finish(c, w);
}

static void all_gather(struct comm *c, struct tensor dst, struct tensor src, struct work *out)
{
    struct mpi_work *w = work_new(1);
    const int n = count_of(tensor_count(src));
    MPI_Iallgather(src.data, n, type_of(src.dtype), dst.data, n, type_of(src.dtype), mpi(c),
                   &w->req[w->num_req++]);
    settle(c, w, out);
}

static void reduce_scatter(struct comm *c, struct tensor dst, struct tensor src, struct work *out)
{
    struct mpi_work *w = work_new(1);
    const int n = count_of(tensor_count(dst));
    w->dst = dst;
    w->parts = malloc(tensor_bytes(src) + 1);
    CHECK(w->parts, "out of memory");
    MPI_Ialltoall(src.data, n, type_of(src.dtype), w->parts, n, type_of(src.dtype), mpi(c),
                  &w->req[w->num_req++]);
    settle(c, w, out);
}

/* Every rank sums one part of the piece, from all ranks in rank order, and the parts are gathered:
 * 2 (size-1)/size of it leave a rank, and the order of the sum is fixed. */
static void sum_piece(struct comm *c, struct tensor x, char *all, int *count, int *first)
{
    const int n = count_of(tensor_count(x)), part = (n + c->size - 1) / c->size, me = c->rank;
    const size_t size = dtype_size(x.dtype);
    int *at = first + c->size, *mine = count + c->size;
    const void **from = malloc((size_t)c->size * sizeof *from);
    CHECK(from, "out of memory");
    for (int r = 0; r < c->size; r++) {
        first[r] = r * part < n ? r * part : n;
        count[r] = n - first[r] < part ? n - first[r] : part;
    }
    for (int r = 0; r < c->size; r++) {
        mine[r] = count[me];
        at[r] = r * count[me];
        from[r] = all + (size_t)at[r] * size;
    }
    MPI_Alltoallv(x.data, count, first, type_of(x.dtype), all, mine, at, type_of(x.dtype), mpi(c));
    reduce_parts(
        tensor_make((char *)x.data + (size_t)first[me] * size, x.dtype, 1, DIMS(count[me])), from,
        c->size, false);
    MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, x.data, count, first, type_of(x.dtype),
                   mpi(c));
    free(from);
}

static void all_reduce(struct comm *c, struct tensor x, struct work *out)
{
    (void)out; /* small values and replica sums: done on return */
    const int64_t n = tensor_count(x), step = 1 << 22;
    const size_t size = dtype_size(x.dtype);
    char *all = malloc(((size_t)(n < step ? n : step) + (size_t)c->size) * size + 1);
    int *count = calloc((size_t)c->size * 4, sizeof *count);
    CHECK(all && count, "out of memory");
    for (int64_t i = 0; i < n; i += step) {
        const int64_t len = n - i < step ? n - i : step;
        sum_piece(c, tensor_make((char *)x.data + (size_t)i * size, x.dtype, 1, &len), all, count,
                  count + 2 * c->size);
    }
    free(count);
    free(all);
}

static void exchange(struct comm *c, struct tensor dst, const struct run *recv, int num_recv,
                     struct tensor src, const struct run *send, int num_send, struct work *out)
{
    const size_t row = (size_t)tensor_width(src) * dtype_size(src.dtype);
    struct mpi_work *w = work_new(num_recv + num_send);
    MPI_Datatype row_type;
    MPI_Type_contiguous(count_of((int64_t)row), MPI_UNSIGNED_CHAR, &row_type);
    MPI_Type_commit(&row_type);
    int own = 0;
    for (int i = 0; i < num_recv; i++) {
        char *to = (char *)dst.data + (size_t)recv[i].row * row;
        if (recv[i].peer == c->rank) { /* the k-th own run out is the k-th own run in */
            while (own < num_send && send[own].peer != c->rank) own++;
            CHECK(own < num_send && send[own].rows == recv[i].rows, "own rows do not match");
            memcpy(to, (char *)src.data + (size_t)send[own++].row * row,
                   (size_t)recv[i].rows * row);
        } else {
            MPI_Irecv(to, count_of(recv[i].rows), row_type, recv[i].peer, 7, mpi(c),
                      &w->req[w->num_req++]);
        }
    }
    for (int i = 0; i < num_send; i++)
        if (send[i].peer != c->rank)
            MPI_Isend((char *)src.data + (size_t)send[i].row * row, count_of(send[i].rows),
                      row_type, send[i].peer, 7, mpi(c), &w->req[w->num_req++]);
    MPI_Type_free(&row_type); /* lives on until the messages are through */
    settle(c, w, out);
}

static void broadcast(struct comm *c, struct tensor x, int root, struct work *out)
{
    (void)out;
    const size_t bytes = tensor_bytes(x), step = (size_t)1 << 30;
    for (size_t i = 0; i < bytes; i += step)
        MPI_Bcast((char *)x.data + i, (int)(bytes - i < step ? bytes - i : step), MPI_UNSIGNED_CHAR,
                  root, mpi(c));
}

static void wait_done(struct comm *c, struct work *w) { finish(c, w->impl); }

static void poll(struct comm *c, struct work *work)
{
    (void)c;
    struct mpi_work *w = work->impl;
    int done;
    MPI_Testall(w->num_req, w->req, &done, MPI_STATUSES_IGNORE);
}

static struct comm *make(MPI_Comm m, const char *name);

static struct comm *split(struct comm *c, int color, int key, const char *name)
{
    MPI_Comm m;
    MPI_Comm_split(mpi(c), color, key, &m);
    return make(m, name);
}

static void free_comm(struct comm *c)
{
    MPI_Comm m = mpi(c);
    if (m != MPI_COMM_WORLD) MPI_Comm_free(&m);
    free(c->impl);
    free(c);
}

static const struct comm_ops ops = {"mpi",     all_gather, reduce_scatter, all_reduce, exchange,
                                    broadcast, wait_done,  poll,           split,      free_comm};

static struct comm *make(MPI_Comm m, const char *name)
{
    struct comm *c = calloc(1, sizeof *c);
    MPI_Comm *impl = malloc(sizeof *impl);
    CHECK(c && impl, "out of memory");
    *impl = m;
    c->impl = impl;
    c->name = name;
    c->ops = &ops;
    MPI_Comm_rank(m, &c->rank);
    MPI_Comm_size(m, &c->size);
    return c;
}

struct comm *comm_mpi_world(struct dev *dev)
{
    struct comm *c = make(MPI_COMM_WORLD, "world");
    c->dev = dev;
    return c;
}
