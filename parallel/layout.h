/* Which token rows are on this rank, in which order, and which of them form a sub-sequence
 * (docs/spec/model.md 5.3). Pure integers; no tensor data.
 *
 * A token (t,r,c) of the T x H x W grid has token class i and group class j, both in 0..K-1
 * (2-D: K = P*P; 1-D: K = P). chunk(i,j) = its tokens ordered by (t,r,c) (1-D: by flat index).
 *   token phase:  rows [b][i local][j][chunk]    a sub-sequence = all j of one i
 *   group phase:  rows [b][j local][i][chunk]    a sub-sequence = all i of one j
 * SSP rank s of S holds classes [s*G, (s+1)*G), G = K/S; Ulysses rank u of U holds part
 * [n*u/U, n*(u+1)/U) of the n tokens of every chunk. K = 1 is the plain order t,r,c. */
#ifndef PARALLEL_LAYOUT_H
#define PARALLEL_LAYOUT_H
#include <stdbool.h>
#include <stdint.h>

enum phase { PHASE_TOKEN, PHASE_GROUP, PHASE_COUNT };
struct grid {
    int t, h, w; /* tokens after patching */
    int ratio;   /* P; 1: no sub-sequences */
    int dims;    /* 2 or 1 */
};
struct part { /* this rank's share of the sequence */
    int ssp_size, ssp_rank, sp_size, sp_rank;
};
struct chunk {
    int b, i, j;
    int64_t row, rows; /* in this layout */
};
struct layout {
    struct grid grid;
    struct part part;
    enum phase phase;
    bool padded;            /* the reference layout of model.md 2.2, with rows for padding */
    int batch, num_classes; /* B, K */
    int64_t rows;
    int16_t *pos; /* [rows*3]; -1,-1,-1: padding */
    /* sub-sequences, B*G entries, lengths may be 0 */
    int num_seqs;
    int32_t *seq_first, *seq_len;
    /* one sequence per sample: full attention, cross attention (no padding rows inside) */
    int32_t *sample_first, *sample_len; /* [B] */
    struct chunk *chunks;               /* local chunks in row order; padded layouts have none */
    int num_chunks;
};
/* Stops when the part is illegal (S does not divide K). */
struct layout *layout_new(struct grid g, int batch, enum phase phase, struct part part);
/* Parity layout: rows [b][class][place], padded to multiples of P*P; one rank only. phase as
 * above; seq_* then cover padding too and real tokens are found by pos >= 0. */
struct layout *layout_padded(struct grid g, int batch, enum phase phase);
void layout_free(struct layout *l);
int grid_classes(struct grid g);                     /* K */
int token_class(struct grid g, int t, int r, int c); /* i */
int group_class(struct grid g, int t, int r, int c); /* j */
int64_t grid_tokens(struct grid g);
/* Length of chunk (i,j), analytic. */
int64_t chunk_count(struct grid g, int i, int j);
/* Rows of local sub-sequence q (0..G-1) in the layout of another rank's part, analytic. */
int64_t layout_seq_rows(struct grid g, enum phase phase, struct part part, int q);
#endif
