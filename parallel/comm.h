/* Communicators: one table of collectives over four transports (mpi, threads, nccl, null).
 * Collectives are numbered and tagged, for hang reports and for --check-comm. Sizes in elements.
 * Reductions are of f32 and f64 (sums; in rank order, so that they are deterministic, but NCCL has
 * an order of its own); any type can be moved. Buffers belong to the caller and must stay untouched
 * until the wait. */
#ifndef PARALLEL_COMM_H
#define PARALLEL_COMM_H
#include "core/dev.h"
#include "core/tensor.h"

struct comm;
struct work { /* a collective in flight; zeroed = done */
    void *impl;
    uint64_t seq; /* what it is, for comm_wait's report */
    int kind;
    const char *tag;
};
struct run { /* rows [row, row+rows) to or from a peer */
    int peer;
    int64_t row, rows;
};
enum comm_kind {
    COMM_ALL_GATHER,
    COMM_REDUCE_SCATTER,
    COMM_ALL_REDUCE,
    COMM_EXCHANGE,
    COMM_BROADCAST,
    COMM_KINDS
};
struct comm_count {
    int64_t calls;
    double bytes; /* sent by this rank to other ranks */
};
struct comm_entry { /* the count of one kind at one place */
    char where[64]; /* a block ("blocks.7"), or the tag of a collective outside the blocks */
    enum comm_kind kind;
    struct comm_count count;
};
struct comm_ops {
    const char *name;
    /* dst [size*n] = concatenation of all src [n] */
    void (*all_gather)(struct comm *, struct tensor dst, struct tensor src, struct work *);
    /* dst [n] += sum over ranks of their part [rank*n, ..) of src [size*n]; f32, f64 */
    void (*reduce_scatter)(struct comm *, struct tensor dst, struct tensor src, struct work *);
    void (*all_reduce)(struct comm *, struct tensor x, struct work *);
    void (*exchange)(struct comm *, struct tensor dst, const struct run *recv, int num_recv,
                     struct tensor src, const struct run *send, int num_send, struct work *);
    void (*broadcast)(struct comm *, struct tensor x, int root, struct work *);
    void (*wait)(struct comm *, struct work *);
    /* Lets a collective in flight move on; NULL: the transport does so by itself. */
    void (*poll)(struct comm *, struct work *);
    /* ranks of equal color, ordered by key */
    struct comm *(*split)(struct comm *, int color, int key, const char *name);
    void (*free)(struct comm *);
};
struct comm {
    const char *name;
    int rank, size;
    const struct comm_ops *ops;
    struct dev *dev; /* whose memory the tensors are in */
    void *impl;
    struct comm *host; /* carries host values; NULL: this one does (its tensors are host memory) */
    /* What this rank does here, read by the watchdog's thread. Tags and contexts outlive the comm's
     * use. */
    _Atomic uint64_t seq;        /* collectives begun so far */
    const char *_Atomic tag;     /* of the last one begun */
    const char *_Atomic doing;   /* of the one in flight that this rank waits in; NULL: none */
    _Atomic uint64_t doing_seq;  /* its number */
    _Atomic int kind;            /* of the one in flight, or the last one */
    const char *_Atomic context; /* the caller's place in its own work; NULL: none */
    _Atomic double since;
    double deadline_s; /* 0: none */
    bool check;        /* --check-comm: compare number, kind, size and tag first */
    struct comm_count count[COMM_KINDS];
    const char *block;        /* counts go to this block; NULL: to the place their tag names */
    struct comm_entry *entry; /* counts by place, in the order of their first use */
    int num_entries;
    double seconds; /* spent inside calls and waits */
};

/* work NULL: the call returns when the result is there. */
void comm_all_gather(struct comm *, struct tensor dst, struct tensor src, const char *tag,
                     struct work *);
void comm_reduce_scatter(struct comm *, struct tensor dst, struct tensor src, const char *tag,
                         struct work *);
void comm_all_reduce(struct comm *, struct tensor x, const char *tag, struct work *);
void comm_exchange(struct comm *, struct tensor dst, const struct run *recv, int num_recv,
                   struct tensor src, const struct run *send, int num_send, const char *tag,
                   struct work *);
void comm_broadcast(struct comm *, struct tensor x, int root, const char *tag, struct work *);
void comm_wait(struct comm *, struct work *);
void comm_poll(struct comm *, struct work *);
const char *comm_kind_name(int kind);
/* Names the block (or other work) this rank is in, for reports of hangs and crashes; set it on the
 * world's comm. NULL: none. */
static inline void comm_context(struct comm *world, const char *where) { world->context = where; }
/* Appends ", in all_gather #41 "blocks.7" on axis shard" and the context of world: what this thread
 * does. Safe in a signal handler. */
void comm_where(const struct comm *world, char *text, size_t size);
void comm_barrier(struct comm *, const char *tag);
/* Forgets all counts. */
void comm_reset_counts(struct comm *);
struct comm *comm_split(struct comm *, int color, int key, const char *name);
void comm_free(struct comm *);
/* Collective: from now on the tensors of the world, and of what is split from it later, are in the
 * memory of dev. A device with queues of its own (cuda) gets NCCL, and host values stay with the
 * transport the world came with; all others, and NULL (before the device is closed), get that
 * transport alone. */
void comm_device(struct comm *world, struct dev *dev);

/* Host values, always in host memory. */
void comm_sum_f64(struct comm *, double *x, int n, const char *tag);
void comm_max_f64(struct comm *, double *x, int n, const char *tag);
void comm_broadcast_bytes(struct comm *, void *p, size_t n, int root, const char *tag);
/* dst [size * n] bytes = concatenation */
void comm_gather_bytes(struct comm *, void *dst, const void *src, size_t n, const char *tag);

/* Transports. The world's tensors live on dev (NULL: host memory; comm_device sets it later). */
struct comm *comm_self(struct dev *dev);                     /* one rank, no transport */
struct comm *comm_null(int size, int rank, struct dev *dev); /* counts, moves nothing */
struct comm *comm_mpi_world(struct dev *dev);                /* after launch_start */
/* Runs f(world, arg) on n threads, each with its own rank; returns when all have returned. A
 * CHECK on one rank (trapped by f) must break the others out: comm_thread_break. */
void comm_thread_run(int n, void (*f)(struct comm *world, void *arg), void *arg);
void comm_thread_break(struct comm *world);
#endif
