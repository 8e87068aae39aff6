#include "parallel/redist.h"

#include <stdlib.h>
#include <string.h>

/* Row of every token of l, by [b][t][r][c]; -1: not here. malloc'ed. */
static int32_t *rows_by_token(const struct layout *l)
{
    const struct grid g = l->grid;
    const int64_t tokens = grid_tokens(g), per = l->rows / l->batch;
    int32_t *at = malloc((size_t)(tokens * l->batch) * sizeof *at);
    CHECK(at, "out of memory");
    memset(at, 0xff, (size_t)(tokens * l->batch) * sizeof *at);
    for (int64_t r = 0; r < l->rows; r++) {
        const int16_t *p = l->pos + 3 * r;
        if (p[0] >= 0)
            at[r / per * tokens + ((int64_t)p[0] * g.h + p[1]) * g.w + p[2]] = (int32_t)r;
    }
    return at;
}

/* map[row of `to`] = row of `from` that holds the same token; -1: none. Returns false when it is
 * the identity. */
static bool row_map(const struct layout *from, const struct layout *to, int32_t *map)
{
    int32_t *at = rows_by_token(from);
    const struct grid g = to->grid;
    const int64_t per = to->rows / to->batch;
    bool moves = from->rows != to->rows;
    for (int64_t r = 0; r < to->rows; r++) {
        const int16_t *p = to->pos + 3 * r;
        const int64_t token = ((int64_t)p[0] * g.h + p[1]) * g.w + p[2];
        map[r] = p[0] < 0 ? -1 : at[r / per * grid_tokens(g) + token];
        CHECK(p[0] < 0 || map[r] >= 0, "layouts hold different tokens");
        if (map[r] != r) moves = true;
    }
    free(at);
    return moves;
}

static void build_maps(struct redist *r)
{
    int32_t *fwd = malloc((size_t)(r->dst->rows + 1) * sizeof *fwd);
    int32_t *bwd = malloc((size_t)(r->src->rows + 1) * sizeof *bwd);
    CHECK(fwd && bwd, "out of memory");
    r->moves = row_map(r->src, r->dst, fwd);
    memset(bwd, 0xff, (size_t)r->src->rows * sizeof *bwd);
    for (int64_t i = 0; i < r->dst->rows; i++)
        if (fwd[i] >= 0) bwd[fwd[i]] = (int32_t)i;
    if (r->moves) {
        r->forward_map = dev_tensor(r->dev, DT_I32, 1, DIMS(r->dst->rows));
        r->backward_map = dev_tensor(r->dev, DT_I32, 1, DIMS(r->src->rows));
        dev_put(r->dev, r->forward_map, fwd);
        dev_put(r->dev, r->backward_map, bwd);
    }
    free(fwd);
    free(bwd);
}

struct tagged {
    struct run run;
    int b, i, j;
};

static int by_peer_and_chunk(const void *a, const void *b)
{
    const struct tagged *x = a, *y = b;
    if (x->run.peer != y->run.peer) return x->run.peer - y->run.peer;
    if (x->b != y->b) return x->b - y->b;
    if (x->i != y->i) return x->i - y->i;
    return x->j - y->j;
}

/* The runs of one side, peer by peer; both sides list the chunks in the same order (b,i,j). The
 * peer of a chunk is the rank that owns it in the other phase. */
static struct run *side_runs(const struct layout *l, int per_rank, int *n)
{
    struct tagged *t = calloc((size_t)l->num_chunks + 1, sizeof *t);
    struct run *runs = calloc((size_t)l->num_chunks + 1, sizeof *runs);
    CHECK(t && runs, "out of memory");
    *n = 0;
    for (int k = 0; k < l->num_chunks; k++) {
        const struct chunk *c = &l->chunks[k];
        if (!c->rows) continue;
        const int peer = (l->phase == PHASE_TOKEN ? c->j : c->i) / per_rank;
        t[(*n)++] = (struct tagged){{peer, c->row, c->rows}, c->b, c->i, c->j};
    }
    qsort(t, (size_t)*n, sizeof *t, by_peer_and_chunk);
    for (int k = 0; k < *n; k++) runs[k] = t[k].run;
    free(t);
    return runs;
}

struct redist *redist_new(struct dev *dev, struct comm *ssp, const struct layout *src,
                          const struct layout *dst)
{
    struct redist *r = calloc(1, sizeof *r);
    CHECK(r, "out of memory");
    r->src = src;
    r->dst = dst;
    r->dev = dev;
    r->comm = ssp;
    if (src == dst) return r;
    if (!ssp || ssp->size == 1 || src->phase == dst->phase) {
        build_maps(r);
        return r;
    }
    CHECK(!src->padded && !dst->padded, "padded layouts run on one rank");
    const int per_rank = src->num_classes / ssp->size;
    r->moves = true;
    r->send = side_runs(src, per_rank, &r->num_send);
    r->recv = side_runs(dst, per_rank, &r->num_recv);
    return r;
}

void redist_free(struct redist *r)
{
    if (!r) return;
    if (r->forward_map.data) dev_free(r->dev, r->forward_map.data);
    if (r->backward_map.data) dev_free(r->dev, r->backward_map.data);
    free(r->send);
    free(r->recv);
    free(r);
}

static void move(const struct redist *r, struct tensor out, struct tensor in, bool forward)
{
    if (!r->moves) {
        r->dev->ops->copy(r->dev, out.data, in.data, tensor_bytes(in));
    } else if (r->send) {
        comm_exchange(r->comm, out, forward ? r->recv : r->send,
                      forward ? r->num_recv : r->num_send, in, forward ? r->send : r->recv,
                      forward ? r->num_send : r->num_recv, forward ? "switch" : "switch backward",
                      NULL);
    } else {
        r->dev->ops->rows_gather(r->dev, out, in, forward ? r->forward_map : r->backward_map);
    }
}

void redist_forward(const struct redist *r, struct tensor dst, struct tensor src)
{
    CHECK(src.dim[0] == r->src->rows && dst.dim[0] == r->dst->rows, "redist of %lld rows to %lld",
          (long long)src.dim[0], (long long)dst.dim[0]);
    move(r, dst, src, true);
}

void redist_backward(const struct redist *r, struct tensor dsrc, struct tensor ddst)
{
    CHECK(dsrc.dim[0] == r->src->rows && ddst.dim[0] == r->dst->rows, "redist of %lld rows back",
          (long long)ddst.dim[0]);
    move(r, dsrc, ddst, false);
}
