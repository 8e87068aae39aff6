/* Two transports without peers: `self` (one rank; collectives are copies) and `null` (the dry run:
 * any size, moves nothing, comm.c counts). */
#include <stdlib.h>
#include <string.h>

#include "parallel/comm.h"

static bool copies(const struct comm *c) { return c->impl == NULL; }

static void move(struct comm *c, struct tensor dst, struct tensor src)
{
    if (!copies(c) || dst.data == src.data) return;
    if (c->dev)
        c->dev->ops->copy(c->dev, dst.data, src.data, tensor_bytes(src));
    else
        memcpy(dst.data, src.data, tensor_bytes(src));
}

static void all_gather(struct comm *c, struct tensor dst, struct tensor src, struct work *w)
{
    (void)w;
    if (dst.dtype == DT_U8 && copies(c))
        memmove(dst.data, src.data, tensor_bytes(src)); /* host values */
    else if (dst.dtype == DT_U8)
        for (int r = 0; r < c->size; r++)
            memcpy((char *)dst.data + (size_t)r * tensor_bytes(src), src.data, tensor_bytes(src));
    else
        move(c, dst, src);
}

static void reduce_scatter(struct comm *c, struct tensor dst, struct tensor src, struct work *w)
{
    (void)w;
    if (!copies(c)) return;
    src.dim[0] = tensor_count(src);
    src.ndim = 1;
    dst.dim[0] = src.dim[0];
    dst.ndim = 1;
    CHECK(c->dev, "reduce_scatter needs a device");
    c->dev->ops->axpy(c->dev, dst, 1, src);
}

static void all_reduce(struct comm *c, struct tensor x, struct work *w)
{
    (void)c;
    (void)x;
    (void)w;
}

static void exchange(struct comm *c, struct tensor dst, const struct run *recv, int num_recv,
                     struct tensor src, const struct run *send, int num_send, struct work *w)
{
    (void)w;
    if (!copies(c)) return;
    CHECK(num_recv == num_send, "exchange with itself: %d runs out, %d in", num_send, num_recv);
    for (int i = 0; i < num_send; i++)
        move(c, tensor_rows(dst, recv[i].row, recv[i].rows),
             tensor_rows(src, send[i].row, send[i].rows));
}

static void broadcast(struct comm *c, struct tensor x, int root, struct work *w)
{
    (void)c;
    (void)x;
    (void)root;
    (void)w;
}

static void wait_done(struct comm *c, struct work *w)
{
    (void)c;
    (void)w;
}

static void free_comm(struct comm *c) { free(c); }

static struct comm *split(struct comm *c, int color, int key, const char *name);

static const struct comm_ops self_ops = {"self",   all_gather, reduce_scatter, all_reduce,
                                         exchange, broadcast,  wait_done,      NULL,
                                         split,    free_comm};
static const struct comm_ops null_ops = {"null",   all_gather, reduce_scatter, all_reduce,
                                         exchange, broadcast,  wait_done,      NULL,
                                         split,    free_comm};

static struct comm *make(const struct comm_ops *ops, int size, int rank, const char *name,
                         struct dev *dev)
{
    struct comm *c = calloc(1, sizeof *c);
    CHECK(c, "out of memory");
    c->name = name;
    c->size = size;
    c->rank = rank;
    c->ops = ops;
    c->dev = dev;
    c->impl = ops == &null_ops ? c : NULL; /* marks the transport that moves nothing */
    return c;
}

/* The size of a null split is not known from one rank; the caller sets it (mesh.c). */
static struct comm *split(struct comm *c, int color, int key, const char *name)
{
    (void)color;
    (void)key;
    return make(c->ops, 1, 0, name, c->dev);
}

struct comm *comm_self(struct dev *dev) { return make(&self_ops, 1, 0, "world", dev); }

struct comm *comm_null(int size, int rank, struct dev *dev)
{
    return make(&null_ops, size, rank, "world", dev);
}
