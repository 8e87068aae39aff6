#include "parallel/layout.h"

#include <stdlib.h>

#include "core/err.h"

int grid_classes(struct grid g) { return g.dims == 2 ? g.ratio * g.ratio : g.ratio; }
int64_t grid_tokens(struct grid g) { return (int64_t)g.t * g.h * g.w; }

static int64_t flat(struct grid g, int t, int r, int c) { return ((int64_t)t * g.h + r) * g.w + c; }

int token_class(struct grid g, int t, int r, int c)
{
    const int P = g.ratio;
    return g.dims == 2 ? r % P * P + c % P : (int)(flat(g, t, r, c) % P);
}

int group_class(struct grid g, int t, int r, int c)
{
    const int P = g.ratio;
    return g.dims == 2 ? r / P % P * P + c / P % P : (int)(flat(g, t, r, c) / P % P);
}

static int64_t steps(int64_t from, int64_t end, int64_t step)
{
    return from >= end ? 0 : (end - from + step - 1) / step;
}

/* Residues of chunk (i,j): rows and columns modulo P*P (2-D), or the flat index (1-D). */
static int row_residue(struct grid g, int i, int j) { return j / g.ratio * g.ratio + i / g.ratio; }
static int col_residue(struct grid g, int i, int j) { return j % g.ratio * g.ratio + i % g.ratio; }

int64_t chunk_count(struct grid g, int i, int j)
{
    const int PP = g.ratio * g.ratio;
    if (g.dims == 1) return steps((int64_t)j * g.ratio + i, grid_tokens(g), PP);
    return g.t * steps(row_residue(g, i, j), g.h, PP) * steps(col_residue(g, i, j), g.w, PP);
}

/* Writes (t,r,c) of tokens [first, first+count) of a chunk. */
static void chunk_positions(struct grid g, int i, int j, int64_t first, int64_t count, int16_t *pos)
{
    const int PP = g.ratio * g.ratio;
    const int64_t rows = steps(row_residue(g, i, j), g.h, PP);
    const int64_t cols = steps(col_residue(g, i, j), g.w, PP);
    for (int64_t n = first; n < first + count; n++, pos += 3) {
        if (g.dims == 1) {
            const int64_t at = n * PP + (int64_t)j * g.ratio + i;
            pos[0] = (int16_t)(at / ((int64_t)g.h * g.w));
            pos[1] = (int16_t)(at / g.w % g.h);
            pos[2] = (int16_t)(at % g.w);
        } else {
            pos[0] = (int16_t)(n / (rows * cols));
            pos[1] = (int16_t)(row_residue(g, i, j) + n / cols % rows * PP);
            pos[2] = (int16_t)(col_residue(g, i, j) + n % cols * PP);
        }
    }
}

static void check_grid(struct grid g, int batch)
{
    CHECK(g.t >= 1 && g.h >= 1 && g.w >= 1 && g.t <= 1024 && g.h <= 1024 && g.w <= 1024,
          "token grid %d x %d x %d: every extent must be 1..1024 (rotary tables)", g.t, g.h, g.w);
    CHECK(g.ratio >= 1 && (g.dims == 1 || g.dims == 2), "sparse ratio %d in %d-D", g.ratio, g.dims);
    CHECK(batch >= 1 && batch * grid_tokens(g) < INT32_MAX, "%d samples of %lld tokens", batch,
          (long long)grid_tokens(g));
}

static struct layout *layout_alloc(struct grid g, int batch, enum phase phase, int num_seqs)
{
    struct layout *l = calloc(1, sizeof *l);
    CHECK(l, "out of memory");
    l->grid = g;
    l->batch = batch;
    l->phase = phase;
    l->num_classes = grid_classes(g);
    l->num_seqs = num_seqs;
    l->seq_first = calloc((size_t)num_seqs, sizeof(int32_t));
    l->seq_len = calloc((size_t)num_seqs, sizeof(int32_t));
    l->sample_first = calloc((size_t)batch, sizeof(int32_t));
    l->sample_len = calloc((size_t)batch, sizeof(int32_t));
    CHECK(l->seq_first && l->seq_len && l->sample_first && l->sample_len, "out of memory");
    return l;
}

static void finish_rows(struct layout *l, int64_t rows)
{
    l->rows = rows;
    l->pos = calloc((size_t)rows * 3 + 1, sizeof(int16_t));
    CHECK(l->pos, "out of memory");
    for (int b = 0; b < l->batch; b++) {
        l->sample_first[b] = (int32_t)(b * (rows / l->batch));
        l->sample_len[b] = (int32_t)(rows / l->batch);
    }
}

/* Tokens of chunk (i,j) before part u of U. */
static int64_t part_begin(int64_t tokens, int u, int U) { return tokens * u / U; }

static int64_t part_rows(struct grid g, struct part p, int i, int j)
{
    const int64_t n = chunk_count(g, i, j);
    return part_begin(n, p.sp_rank + 1, p.sp_size) - part_begin(n, p.sp_rank, p.sp_size);
}

int64_t layout_seq_rows(struct grid g, enum phase phase, struct part part, int q)
{
    const int K = grid_classes(g), own = part.ssp_rank * (K / part.ssp_size) + q;
    int64_t rows = 0;
    for (int other = 0; other < K; other++)
        rows +=
            phase == PHASE_TOKEN ? part_rows(g, part, own, other) : part_rows(g, part, other, own);
    return rows;
}

struct layout *layout_new(struct grid g, int batch, enum phase phase, struct part part)
{
    check_grid(g, batch);
    const int K = grid_classes(g), S = part.ssp_size;
    CHECK(S >= 1 && K % S == 0, "skiparse_sp_size %d does not divide the %d sub-sequences", S, K);
    const int G = K / S, s = part.ssp_rank;
    struct layout *l = layout_alloc(g, batch, phase, batch * G);
    l->part = part;
    l->chunks = calloc((size_t)batch * (size_t)G * (size_t)K, sizeof *l->chunks);
    CHECK(l->chunks, "out of memory");
    int64_t row = 0;
    for (int q = 0; q < batch * G; q++) {
        l->seq_first[q] = (int32_t)row;
        for (int other = 0; other < K; other++) {
            const int own = s * G + q % G;
            const int i = phase == PHASE_TOKEN ? own : other;
            const int j = phase == PHASE_TOKEN ? other : own;
            const int64_t rows = part_rows(g, part, i, j);
            l->chunks[l->num_chunks++] = (struct chunk){q / G, i, j, row, rows};
            row += rows;
        }
        l->seq_len[q] = (int32_t)row - l->seq_first[q];
    }
    finish_rows(l, row);
    for (int k = 0; k < l->num_chunks; k++) {
        const struct chunk *c = &l->chunks[k];
        const int64_t n = chunk_count(g, c->i, c->j);
        chunk_positions(g, c->i, c->j, part_begin(n, part.sp_rank, part.sp_size), c->rows,
                        l->pos + 3 * c->row);
    }
    return l;
}

static int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

/* Token (t,r,c) at place `place` of sub-sequence `cls` of the padded grid (model.md 2.2, 2.6). */
static void padded_position(struct grid g, enum phase phase, int cls, int64_t place, int16_t pos[3])
{
    const int P = g.ratio, PP = P * P;
    int64_t t, r, c;
    if (g.dims == 1) {
        const int64_t at =
            phase == PHASE_TOKEN ? place * P + cls : place / P * PP + cls * P + place % P;
        t = at / ((int64_t)g.h * g.w);
        r = at / g.w % g.h;
        c = at % g.w;
    } else {
        const int64_t wide = round_up(g.w, PP) / P, high = round_up(g.h, PP) / P;
        t = place / (wide * high);
        r = place / wide % high;
        c = place % wide;
        const int p = cls / P, q = cls % P;
        r = phase == PHASE_TOKEN ? r * P + p : r / P * PP + p * P + r % P;
        c = phase == PHASE_TOKEN ? c * P + q : c / P * PP + q * P + c % P;
    }
    const bool real = t < g.t && r < g.h && c < g.w;
    pos[0] = real ? (int16_t)t : -1;
    pos[1] = real ? (int16_t)r : -1;
    pos[2] = real ? (int16_t)c : -1;
}

struct layout *layout_padded(struct grid g, int batch, enum phase phase)
{
    check_grid(g, batch);
    const int K = grid_classes(g), PP = g.ratio * g.ratio;
    int64_t len = (int64_t)g.t * (round_up(g.h, PP) / g.ratio) * (round_up(g.w, PP) / g.ratio);
    if (g.dims == 1) len = (grid_tokens(g) + PP - 1) / PP * PP / K;
    struct layout *l = layout_alloc(g, batch, phase, batch * K);
    l->padded = true;
    l->part = (struct part){1, 0, 1, 0};
    finish_rows(l, batch * K * len);
    for (int q = 0; q < batch * K; q++) {
        l->seq_first[q] = (int32_t)(q * len);
        l->seq_len[q] = (int32_t)len;
        for (int64_t n = 0; n < len; n++)
            padded_position(g, phase, q % K, n, l->pos + 3 * (q * len + n));
    }
    return l;
}

void layout_free(struct layout *l)
{
    if (!l) return;
    free(l->pos);
    free(l->seq_first);
    free(l->seq_len);
    free(l->sample_first);
    free(l->sample_len);
    free(l->chunks);
    free(l);
}
