#include "model/plan.h"

#include <stdlib.h>
#include <string.h>

int plan_ratio(const struct model_config *m)
{
    return m->skiparse_model_type == SKIPARSE_FULL && m->full_block_indices.n == 0
               ? 1
               : (int)m->sparse_ratio;
}

/* Marks the full blocks; false when the official rules forbid the numbers. */
static bool mark_full(const struct model_config *m, bool *full, struct err *e)
{
    const int n = (int)m->num_layers, nf = (int)m->num_full_blocks;
    if (m->full_block_indices.n) {
        for (int i = 0; i < m->full_block_indices.n; i++) {
            const int64_t at = m->full_block_indices.v[i];
            if (at < 0 || at >= n) {
                err_set(e, RC_CONFIG, "model_config.full_block_indices: block %lld is not in 0..%d",
                        (long long)at, n - 1);
                return false;
            }
            full[at] = true;
        }
        return true;
    }
    if (m->skiparse_model_type == SKIPARSE_FULL || plan_ratio(m) == 1) {
        for (int i = 0; i < n; i++) full[i] = true;
        return true;
    }
    const bool even = n % 2 == 0 && nf % 2 == 0 && nf >= 0 && nf <= n;
    const bool strict = nf % 4 == 0 && nf <= n / 2;
    if (!even || (m->skiparse_strict && !strict)) {
        err_set(e, RC_CONFIG,
                "model_config.num_full_blocks: %d of %d layers; dual_end needs an even number of "
                "layers and %s (or give full_block_indices)",
                nf, n,
                m->skiparse_strict ? "a multiple of 4 that is at most half of the layers, unless "
                                     "skiparse_strict is false"
                                   : "an even number of full blocks");
        return false;
    }
    for (int i = 0; i < n; i++) full[i] = i < nf / 2 || i >= n - nf / 2;
    return true;
}

bool plan_blocks(const struct model_config *m, enum block_kind *kind, struct err *e)
{
    if (m->num_layers < 1 || m->num_layers > MAX_BLOCKS) {
        err_set(e, RC_CONFIG, "model_config.num_layers: %lld is not in 1..%d",
                (long long)m->num_layers, MAX_BLOCKS);
        return false;
    }
    bool full[MAX_BLOCKS] = {false};
    if (!mark_full(m, full, e)) return false;
    int run = 0; /* sparse blocks since the last full one */
    for (int i = 0; i < m->num_layers; i++) {
        kind[i] = full[i] ? BLOCK_FULL : run % 2 ? BLOCK_GROUP : BLOCK_TOKEN;
        run = full[i] ? 0 : run + 1;
    }
    return true;
}

static int32_t *own(struct stage *s, int slot, int64_t n)
{
    s->owned[slot] = calloc((size_t)n + 1, sizeof(int32_t));
    CHECK(s->owned[slot], "out of memory");
    return s->owned[slot];
}

/* Padded layouts attend over real tokens only: compact rows, and ranges over them. */
static void stage_compact(struct stage *s, struct dev *dev)
{
    const struct layout *l = s->layout;
    int32_t *real = own(s, 2, l->rows), *unreal = own(s, 3, l->rows);
    int32_t *first = own(s, 4, l->num_seqs), *len = own(s, 5, l->num_seqs);
    int64_t n = 0;
    for (int q = 0; q < l->num_seqs; q++) {
        first[q] = (int32_t)n;
        for (int64_t r = l->seq_first[q]; r < l->seq_first[q] + l->seq_len[q]; r++) {
            unreal[r] = l->pos[3 * r] < 0 ? -1 : (int32_t)n;
            if (unreal[r] >= 0) real[n++] = (int32_t)r;
        }
        len[q] = (int32_t)n - first[q];
    }
    s->num_real = n;
    s->real = dev_tensor(dev, DT_I32, 1, DIMS(n));
    s->unreal = dev_tensor(dev, DT_I32, 1, DIMS(l->rows));
    dev_put(dev, s->real, real);
    dev_put(dev, s->unreal, unreal);
    s->sub = (struct seqs){l->num_seqs, first, len, first, len};
}

static void stage_init(struct stage *s, struct dev *dev, struct layout *l, int text_len)
{
    s->layout = l;
    s->pos = dev_tensor(dev, DT_I16, 2, DIMS(l->rows, 3));
    dev_put(dev, s->pos, l->pos);
    int32_t *first = own(s, 0, l->batch), *len = own(s, 1, l->batch);
    for (int b = 0; b < l->batch; b++) {
        first[b] = b * text_len;
        len[b] = text_len;
    }
    s->cross = (struct seqs){l->batch, l->sample_first, l->sample_len, first, len};
    s->full =
        (struct seqs){l->batch, l->sample_first, l->sample_len, l->sample_first, l->sample_len};
    s->sub = (struct seqs){l->num_seqs, l->seq_first, l->seq_len, l->seq_first, l->seq_len};
    if (l->padded) stage_compact(s, dev);
}

/* Attention of a stage over the ranks of a sample: rows per sequence on every rank are analytic. */
static void stage_ranks(struct stage *s, struct dev *dev, const struct mesh *mesh, int heads)
{
    const struct layout *l = s->layout;
    const int G = l->num_seqs / l->batch, S = l->part.ssp_size, U = l->part.sp_size;
    int32_t *sub = calloc((size_t)(S * U * l->num_seqs) + 1, sizeof *sub);
    int32_t *full = calloc((size_t)(S * U * l->batch) + 1, sizeof *full);
    CHECK(sub && full, "out of memory");
    for (int r = 0; r < S * U; r++)
        for (int q = 0; q < l->num_seqs; q++) {
            const struct part part = {S, r / U, U, r % U};
            sub[r * l->num_seqs + q] = (int32_t)layout_seq_rows(l->grid, l->phase, part, q % G);
            full[r * l->batch + q / G] += sub[r * l->num_seqs + q];
        }
    if (U > 1) /* the ranks of this SSP rank: r = s*U + u */
        s->sub_ranks = ulysses_new(dev, mesh->axis[AXIS_SP], heads, l->num_seqs,
                                   sub + l->part.ssp_rank * U * l->num_seqs);
    if (S * U > 1) s->full_ranks = ulysses_new(dev, mesh->axis[AXIS_SEQ], heads, l->batch, full);
    free(sub);
    free(full);
}

/* Stages: 0 token phase, 1 group phase; with padding: 0 token, 1 group, 2 plain order. */
static void choose_stages(struct shape_plan *p, const struct part *part, bool padded)
{
    struct grid plain = p->grid;
    plain.ratio = 1;
    for (int phase = 0; phase < 2; phase++)
        stage_init(&p->stage[phase], p->dev,
                   padded ? layout_padded(p->grid, p->batch, (enum phase)phase)
                          : layout_new(p->grid, p->batch, (enum phase)phase, *part),
                   p->text_len);
    p->num_stages = padded ? 3 : 2;
    if (padded)
        stage_init(&p->stage[2], p->dev, layout_new(plain, p->batch, PHASE_TOKEN, *part),
                   p->text_len);
    int now = padded ? 2 : 0;
    for (int i = 0; i < p->num_layers; i++) {
        if (p->kind[i] == BLOCK_FULL && padded) now = 2;
        if (p->kind[i] == BLOCK_TOKEN) now = 0;
        if (p->kind[i] == BLOCK_GROUP) now = 1;
        p->at[i] = now;
    }
    p->at[p->num_layers] = padded ? 2 : now;
}

struct shape_plan *plan_shape(struct dev *dev, struct mesh *mesh, const struct model_config *m,
                              int batch, int t, int h, int w, int text_len)
{
    struct shape_plan *p = calloc(1, sizeof *p);
    CHECK(p, "out of memory");
    struct err e = {0};
    if (!plan_blocks(m, p->kind, &e)) err_raise(&e);
    p->dev = dev;
    p->batch = batch;
    p->text_len = text_len;
    p->num_layers = (int)m->num_layers;
    p->grid = (struct grid){t, h, w, plan_ratio(m), m->skiparse_dim == 0 ? 1 : 2};
    const struct comm *ssp = mesh->axis[AXIS_SSP], *sp = mesh->axis[AXIS_SP];
    const struct part part = {ssp->size, ssp->rank, sp->size, sp->rank};
    const bool padded = m->pad_mode == PAD_REF && p->grid.ratio > 1;
    if (padded && mesh->axis[AXIS_SEQ]->size > 1)
        err_stop(RC_CONFIG,
                 "pad_mode: ref is the layout for parity tests and runs without sequence "
                 "parallelism; set pad_mode: none");
    choose_stages(p, &part, padded);
    for (int s = 0; s < p->num_stages && !padded; s++)
        stage_ranks(&p->stage[s], dev, mesh, (int)m->num_heads);
    for (int s = 0; s < p->num_stages; s++)
        if (p->stage[s].layout->rows > p->max_rows) p->max_rows = p->stage[s].layout->rows;
    int before = padded ? 2 : 0;
    for (int i = 0; i <= p->num_layers; i++) {
        if (p->at[i] != before) {
            struct redist **r = &p->moves[before * 3 + p->at[i]];
            if (!*r)
                *r = redist_new(dev, mesh->axis[AXIS_SSP], p->stage[before].layout,
                                p->stage[p->at[i]].layout);
            p->enter[i] = *r;
        }
        before = p->at[i];
    }
    return p;
}

static void stage_free(struct stage *s, struct dev *dev)
{
    if (!s->layout) return;
    dev_free(dev, s->pos.data);
    if (s->real.data) dev_free(dev, s->real.data);
    if (s->unreal.data) dev_free(dev, s->unreal.data);
    ulysses_free(s->full_ranks);
    ulysses_free(s->sub_ranks);
    for (size_t i = 0; i < sizeof s->owned / sizeof *s->owned; i++) free(s->owned[i]);
    layout_free(s->layout);
}

void plan_free(struct shape_plan *p)
{
    if (!p) return;
    for (int i = 0; i < 9; i++) redist_free(p->moves[i]);
    for (int s = 0; s < p->num_stages; s++) stage_free(&p->stage[s], p->dev);
    free(p);
}
