/* Attention over the ranks of an axis, by heads (docs/spec/model.md 5.3; DeepSpeed-Ulysses).
 *
 * n ranks hold parts of the same sequences. With a = gcd(heads, n) head groups and m = n/a query
 * groups, rank r works on head group r mod a and query group r div a: it gets the keys and values
 * of all ranks, and the queries of the a ranks of its query group, for heads/a heads. m = 1 is
 * Ulysses; a = 1 is a gather of keys and values with local queries. No work is done twice.
 *
 * Everything moves in rows of width w = heads/a * head_dim, one exchange a time:
 *   pack      [a][q|k|v][rows, w]                  local rows, cut by head group
 *   gathered  [q_rows | k_rows | k_rows, w]        sequence by sequence, ranks in order within
 * The order inside a sequence does not matter to attention (positions were applied before).
 * Backward runs the same rows the other way; with m > 1 the m partial gradients of a key are
 * summed in the order of the ranks. */
#ifndef PARALLEL_ULYSSES_H
#define PARALLEL_ULYSSES_H
#include "core/arena.h"
#include "parallel/comm.h"

struct ulysses {
    struct comm *comm;
    struct dev *dev;
    int heads, head_groups, query_groups; /* all heads; a; m */
    int64_t rows, q_rows, k_rows;         /* local; gathered */
    struct seqs seqs;                     /* sequences over the gathered q rows and k rows */
    /* private: runs of the three exchanges, and the arrays behind seqs */
    struct run *in_send, *in_recv, *one_send, *one_recv, *back_recv;
    int num_in_send, num_in_recv, num_one_send, num_one_recv, num_back_recv;
    int32_t *ranges;
};
/* len[rank * num_seqs + s]: rows of sequence s on every rank of comm. On a rank the sequences lie
 * one after another, from row 0. */
struct ulysses *ulysses_new(struct dev *dev, struct comm *comm, int heads, int num_seqs,
                            const int32_t *len);
void ulysses_free(struct ulysses *u);
static inline int ulysses_heads(const struct ulysses *u) { return u->heads / u->head_groups; }
static inline int64_t ulysses_rows(const struct ulysses *u) { return u->q_rows + 2 * u->k_rows; }
/* Views of a gathered [q_rows + 2 k_rows, w] buffer. */
struct tensor ulysses_q(const struct ulysses *u, struct tensor gathered);
struct tensor ulysses_k(const struct ulysses *u, struct tensor gathered);
struct tensor ulysses_v(const struct ulysses *u, struct tensor gathered);
/* q, k, v: [rows, C] T, strided. tmp: for packing. */
void ulysses_gather_qkv(const struct ulysses *u, struct arena *tmp, struct tensor gathered,
                        struct tensor q, struct tensor k, struct tensor v);
/* One tensor that goes with the queries: x [rows, C] to gathered [q_rows, w], and back. */
void ulysses_gather(const struct ulysses *u, struct arena *tmp, struct tensor gathered,
                    struct tensor x);
void ulysses_scatter(const struct ulysses *u, struct arena *tmp, struct tensor x,
                     struct tensor gathered);
/* The adjoint of gather_qkv: dq, dk, dv [rows, C] = from the gathered gradients. */
void ulysses_scatter_qkv(const struct ulysses *u, struct arena *tmp, struct tensor dq,
                         struct tensor dk, struct tensor dv, struct tensor gathered);
#endif
