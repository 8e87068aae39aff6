#include "parallel/ulysses.h"

#include <stdlib.h>

enum { PARTS = 3 }; /* q, k, v */

static int gcd(int a, int b) { return b ? gcd(b, a % b) : a; }

static void *array(size_t n, size_t size)
{
    void *p = calloc(n + 1, size);
    CHECK(p, "out of memory");
    return p;
}

static void add_run(struct run *list, int *n, int peer, int64_t row, int64_t rows)
{
    if (rows) list[(*n)++] = (struct run){peer, row, rows};
}

static int head_group(const struct ulysses *u, int rank) { return rank % u->head_groups; }
static int query_group(const struct ulysses *u, int rank) { return rank / u->head_groups; }

/* Where sequences begin: on this rank, and among the gathered queries and keys. */
static void lay_out(struct ulysses *u, int num_seqs, const int32_t *len)
{
    int32_t *r = u->ranges = array((size_t)num_seqs * 4, sizeof *r);
    int32_t *q_first = r, *q_len = r + num_seqs, *k_first = q_len + num_seqs;
    int32_t *k_len = k_first + num_seqs;
    const int mine = query_group(u, u->comm->rank);
    for (int s = 0; s < num_seqs; s++) {
        q_first[s] = (int32_t)u->q_rows;
        k_first[s] = (int32_t)u->k_rows;
        for (int p = 0; p < u->comm->size; p++) {
            const int32_t n = len[(size_t)p * (size_t)num_seqs + (size_t)s];
            if (query_group(u, p) == mine) u->q_rows += n;
            if (p == u->comm->rank) u->rows += n;
            u->k_rows += n;
        }
        q_len[s] = (int32_t)u->q_rows - q_first[s];
        k_len[s] = (int32_t)u->k_rows - k_first[s];
    }
    u->seqs = (struct seqs){num_seqs, q_first, q_len, k_first, k_len};
}

/* The runs to and from one peer. Both sides list part by part, sequence by sequence. */
static void peer_runs(struct ulysses *u, int peer, int num_seqs, const int32_t *len)
{
    const int me = u->comm->rank, to = head_group(u, peer);
    const bool same = query_group(u, peer) == query_group(u, me);
    const int32_t *own = len + (size_t)me * (size_t)num_seqs;
    const int32_t *his = len + (size_t)peer * (size_t)num_seqs;
    for (int part = same ? 0 : 1; part < PARTS; part++) {
        int64_t local = 0;
        for (int s = 0; s < num_seqs; s++) {
            int64_t at = part == 0 ? u->seqs.q_first[s] : u->seqs.k_first[s];
            for (int p = 0; p < peer; p++) /* the ranks before it in the sequence */
                if (part > 0 || query_group(u, p) == query_group(u, peer))
                    at += len[(size_t)p * (size_t)num_seqs + (size_t)s];
            if (part > 0) at += u->q_rows + (part - 1) * u->k_rows;
            add_run(u->in_recv, &u->num_in_recv, peer, at, his[s]);
            add_run(u->in_send, &u->num_in_send, peer, (to * PARTS + part) * u->rows + local,
                    own[s]);
            if (part == 0) {
                add_run(u->one_recv, &u->num_one_recv, peer, at, his[s]);
                add_run(u->one_send, &u->num_one_send, peer, to * u->rows + local, own[s]);
            }
            const int64_t base = part == 0
                                     ? to * u->rows
                                     : (u->head_groups + 2 * (int64_t)peer + part - 1) * u->rows;
            add_run(u->back_recv, &u->num_back_recv, peer, base + local, own[s]);
            local += own[s];
        }
    }
}

struct ulysses *ulysses_new(struct dev *dev, struct comm *comm, int heads, int num_seqs,
                            const int32_t *len)
{
    struct ulysses *u = array(1, sizeof *u);
    *u = (struct ulysses){.comm = comm, .dev = dev, .heads = heads};
    u->head_groups = gcd(heads, comm->size);
    u->query_groups = comm->size / u->head_groups;
    lay_out(u, num_seqs, len);
    const size_t most = (size_t)comm->size * (size_t)num_seqs * PARTS;
    struct run **lists[] = {&u->in_send, &u->in_recv, &u->one_send, &u->one_recv, &u->back_recv};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        *lists[i] = array(most, sizeof(struct run));
    for (int p = 0; p < comm->size; p++) peer_runs(u, p, num_seqs, len);
    return u;
}

void ulysses_free(struct ulysses *u)
{
    if (!u) return;
    free(u->ranges);
    free(u->in_send);
    free(u->in_recv);
    free(u->one_send);
    free(u->one_recv);
    free(u->back_recv);
    free(u);
}

struct tensor ulysses_q(const struct ulysses *u, struct tensor g)
{
    return tensor_rows(g, 0, u->q_rows);
}
struct tensor ulysses_k(const struct ulysses *u, struct tensor g)
{
    return tensor_rows(g, u->q_rows, u->k_rows);
}
struct tensor ulysses_v(const struct ulysses *u, struct tensor g)
{
    return tensor_rows(g, u->q_rows + u->k_rows, u->k_rows);
}

static int64_t width(const struct ulysses *u, struct tensor x) { return x.dim[1] / u->head_groups; }

/* Head group g of x [rows, C]: [rows, w]. */
static struct tensor slice(const struct ulysses *u, struct tensor x, int g)
{
    return tensor_cols(x, g * width(u, x), width(u, x));
}

void ulysses_gather_qkv(const struct ulysses *u, struct arena *tmp, struct tensor gathered,
                        struct tensor q, struct tensor k, struct tensor v)
{
    const size_t mark = arena_mark(tmp);
    const struct tensor x[PARTS] = {q, k, v};
    const int64_t n = u->rows;
    struct tensor pack = arena_new(tmp, q.dtype, 2, DIMS(u->head_groups * PARTS * n, width(u, q)));
    for (int g = 0; g < u->head_groups; g++)
        for (int part = 0; part < PARTS; part++)
            u->dev->ops->cast(u->dev, tensor_rows(pack, (g * PARTS + part) * n, n),
                              slice(u, x[part], g));
    comm_exchange(u->comm, gathered, u->in_recv, u->num_in_recv, pack, u->in_send, u->num_in_send,
                  "attention q, k, v", NULL);
    arena_release(tmp, mark);
}

void ulysses_gather(const struct ulysses *u, struct arena *tmp, struct tensor gathered,
                    struct tensor x)
{
    const size_t mark = arena_mark(tmp);
    struct tensor pack = arena_new(tmp, x.dtype, 2, DIMS(u->head_groups * u->rows, width(u, x)));
    for (int g = 0; g < u->head_groups; g++)
        u->dev->ops->cast(u->dev, tensor_rows(pack, g * u->rows, u->rows), slice(u, x, g));
    comm_exchange(u->comm, gathered, u->one_recv, u->num_one_recv, pack, u->one_send,
                  u->num_one_send, "attention gather", NULL);
    arena_release(tmp, mark);
}

void ulysses_scatter(const struct ulysses *u, struct arena *tmp, struct tensor x,
                     struct tensor gathered)
{
    const size_t mark = arena_mark(tmp);
    struct tensor pack = arena_new(tmp, x.dtype, 2, DIMS(u->head_groups * u->rows, width(u, x)));
    comm_exchange(u->comm, pack, u->one_send, u->num_one_send, gathered, u->one_recv,
                  u->num_one_recv, "attention output", NULL);
    for (int g = 0; g < u->head_groups; g++)
        u->dev->ops->cast(u->dev, slice(u, x, g), tensor_rows(pack, g * u->rows, u->rows));
    arena_release(tmp, mark);
}

/* dk or dv of head group g: the sum over the query groups. */
static void sum_partials(const struct ulysses *u, struct tensor dx, struct tensor pack, int part)
{
    for (int g = 0; g < u->head_groups; g++)
        for (int m = 0; m < u->query_groups; m++) {
            const int64_t peer = (int64_t)m * u->head_groups + g;
            const struct tensor from =
                tensor_rows(pack, (u->head_groups + 2 * peer + part - 1) * u->rows, u->rows);
            if (m == 0)
                u->dev->ops->cast(u->dev, slice(u, dx, g), from);
            else
                u->dev->ops->axpy(u->dev, slice(u, dx, g), 1, from);
        }
}

void ulysses_scatter_qkv(const struct ulysses *u, struct arena *tmp, struct tensor dq,
                         struct tensor dk, struct tensor dv, struct tensor gathered)
{
    const size_t mark = arena_mark(tmp);
    struct tensor pack = arena_new(
        tmp, dq.dtype, 2, DIMS((u->head_groups + 2 * u->comm->size) * u->rows, width(u, dq)));
    comm_exchange(u->comm, pack, u->back_recv, u->num_back_recv, gathered, u->in_recv,
                  u->num_in_recv, "attention dq, dk, dv", NULL);
    for (int g = 0; g < u->head_groups; g++)
        u->dev->ops->cast(u->dev, slice(u, dq, g), tensor_rows(pack, g * u->rows, u->rows));
    sum_partials(u, dk, pack, 1);
    sum_partials(u, dv, pack, 2);
    arena_release(tmp, mark);
}
