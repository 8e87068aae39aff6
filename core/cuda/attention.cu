/* Attention over ranges: by cuDNN where it can (sdpa.cu), else by own kernels on the tensor units
 * (flash.cu), else (f32, wide heads) by the plain and deterministic kernels here: a block owns
 * one query (forward, dq) or one key (dk, dv) of one head and walks over the other side in tiles of
 * one row per lane. In a tile a lane first computes one score from beginning to end, then adds up
 * its share of the head's elements over the tile. Nothing is added by two blocks. */
#include "core/cuda/cuda.h"

#include <stdlib.h>

namespace
{

enum { MAX_HEAD = 256 };

struct Heads { /* [rows, heads, head_dim] */
    View v;
    int64_t dim;
    DEVICE float at(int64_t row, int64_t head, int64_t x) const
    {
        return get(v, row, head * dim + x);
    }
    DEVICE void set(int64_t row, int64_t head, int64_t x, float value) const
    {
        put(v, row, head * dim + x, value);
    }
    /* dot product of a row of this head with the row in `with` */
    DEVICE float dot(int64_t row, int64_t head, const float *with) const
    {
        float s = 0;
        for (int64_t x = 0; x < dim; x++) s += at(row, head, x) * with[x];
        return s;
    }
    DEVICE void load(Block &b, int64_t row, int64_t head, float *into) const
    {
        for (int64_t x = b.lane; x < dim; x += b.lanes) into[x] = at(row, head, x);
    }
};

struct Range {
    int64_t q_first, q_len, k_first, k_len;
};
DEVICE int64_t tile_of(const Block &b, int64_t first, int64_t len)
{
    return len - first < b.lanes ? len - first : b.lanes;
}

struct AttentionForward {
    struct Shared {
        float q[MAX_HEAD], o[MAX_HEAD], weight[MAX_LANES], buf[MAX_LANES];
    };
    Heads o, q, k, v;
    float *lse;
    int64_t heads;
    Range range;
    float scale;
    DEVICE void operator()(Block &b, Shared &sh, int64_t item) const
    {
        const int64_t row = range.q_first + item / heads, h = item % heads;
        q.load(b, row, h, sh.q);
        for (int64_t x = b.lane; x < q.dim; x += b.lanes) sh.o[x] = 0;
        float top = -INFINITY, sum = 0; /* the same on every lane */
        b.sync();
        for (int64_t j = 0; j < range.k_len; j += b.lanes) {
            const int64_t n = tile_of(b, j, range.k_len), key = range.k_first + j;
            const bool mine = b.lane < n;
            const float score = mine ? scale * k.dot(key + b.lane, h, sh.q) : -INFINITY;
            const float best = block_max(b, sh.buf, score), now = best > top ? best : top;
            const float keep = top == -INFINITY ? 0 : expf(top - now);
            const float weight = mine ? expf(score - now) : 0;
            sh.weight[b.lane] = weight;
            sum = sum * keep + block_sum(b, sh.buf, weight);
            for (int64_t x = b.lane; x < q.dim; x += b.lanes) {
                float acc = sh.o[x] * keep;
                for (int64_t i = 0; i < n; i++) acc += sh.weight[i] * v.at(key + i, h, x);
                sh.o[x] = acc;
            }
            top = now;
            b.sync();
        }
        for (int64_t x = b.lane; x < q.dim; x += b.lanes)
            o.set(row, h, x, range.k_len ? sh.o[x] / sum : 0);
        if (b.lane == 0) lse[row * heads + h] = range.k_len ? top + logf(sum) : -INFINITY;
    }
};

struct Gradients {
    Heads dq, dk, dv, d_o, o, q, k, v;
    const float *lse;
    float *delta; /* [q rows, heads]: sum over the head of d_o * o */
    int64_t heads;
    Range range;
    float scale;
};

/* dq and delta of one query. */
struct AttentionQuery {
    struct Shared {
        float q[MAX_HEAD], d_o[MAX_HEAD], dq[MAX_HEAD], ds[MAX_LANES], buf[MAX_LANES];
    };
    Gradients g;
    DEVICE void operator()(Block &b, Shared &sh, int64_t item) const
    {
        const int64_t row = g.range.q_first + item / g.heads, h = item % g.heads, dim = g.q.dim;
        g.q.load(b, row, h, sh.q);
        g.d_o.load(b, row, h, sh.d_o);
        float part = 0;
        for (int64_t x = b.lane; x < dim; x += b.lanes) {
            part += g.d_o.at(row, h, x) * g.o.at(row, h, x);
            sh.dq[x] = 0;
        }
        const float delta = block_sum(b, sh.buf, part), lse = g.lse[row * g.heads + h];
        if (b.lane == 0) g.delta[row * g.heads + h] = delta;
        for (int64_t j = 0; j < g.range.k_len; j += b.lanes) {
            const int64_t n = tile_of(b, j, g.range.k_len), key = g.range.k_first + j;
            if (b.lane < n) {
                const float p = expf(g.scale * g.k.dot(key + b.lane, h, sh.q) - lse);
                sh.ds[b.lane] = g.scale * p * (g.v.dot(key + b.lane, h, sh.d_o) - delta);
            }
            b.sync();
            for (int64_t x = b.lane; x < dim; x += b.lanes) {
                float acc = sh.dq[x];
                for (int64_t i = 0; i < n; i++) acc += sh.ds[i] * g.k.at(key + i, h, x);
                sh.dq[x] = acc;
            }
            b.sync();
        }
        for (int64_t x = b.lane; x < dim; x += b.lanes) g.dq.set(row, h, x, sh.dq[x]);
    }
};

/* dk and dv of one key; delta is there already. */
struct AttentionKey {
    struct Shared {
        float k[MAX_HEAD], v[MAX_HEAD], dk[MAX_HEAD], dv[MAX_HEAD], p[MAX_LANES], ds[MAX_LANES];
    };
    Gradients g;
    DEVICE void operator()(Block &b, Shared &sh, int64_t item) const
    {
        const int64_t row = g.range.k_first + item / g.heads, h = item % g.heads, dim = g.q.dim;
        g.k.load(b, row, h, sh.k);
        g.v.load(b, row, h, sh.v);
        for (int64_t x = b.lane; x < dim; x += b.lanes) sh.dk[x] = sh.dv[x] = 0;
        b.sync();
        for (int64_t j = 0; j < g.range.q_len; j += b.lanes) {
            const int64_t n = tile_of(b, j, g.range.q_len), query = g.range.q_first + j;
            if (b.lane < n) {
                const int64_t i = query + b.lane, stat = i * g.heads + h;
                const float p = expf(g.scale * g.q.dot(i, h, sh.k) - g.lse[stat]);
                sh.p[b.lane] = p;
                sh.ds[b.lane] = g.scale * p * (g.d_o.dot(i, h, sh.v) - g.delta[stat]);
            }
            b.sync();
            for (int64_t x = b.lane; x < dim; x += b.lanes) {
                float dk = sh.dk[x], dv = sh.dv[x];
                for (int64_t i = 0; i < n; i++) {
                    dk += sh.ds[i] * g.q.at(query + i, h, x);
                    dv += sh.p[i] * g.d_o.at(query + i, h, x);
                }
                sh.dk[x] = dk;
                sh.dv[x] = dv;
            }
            b.sync();
        }
        for (int64_t x = b.lane; x < dim; x += b.lanes) {
            g.dk.set(row, h, x, sh.dk[x]);
            g.dv.set(row, h, x, sh.dv[x]);
        }
    }
};

Heads heads_of(struct tensor t)
{
    CHECK(t.ndim == 3 && t.dim[2] % 2 == 0 && t.dim[2] <= MAX_HEAD,
          "attention: head dimension %lld must be even and at most 256", (long long)t.dim[2]);
    cuda_expect_float(t, "attention");
    return Heads{view(t), t.dim[2]};
}

Range range_of(const struct seqs *s, int i)
{
    return Range{s->q_first[i], s->q_len[i], s->k_first[i], s->k_len[i]};
}

/* One entry per range. */
unsigned char *ways(const struct seqs *s)
{
    unsigned char *way = (unsigned char *)calloc((size_t)s->n + 1, 1);
    CHECK(way, "out of memory");
    return way;
}

float *stats(struct tensor lse)
{
    CHECK(lse.dtype == DT_F32 && tensor_contiguous(lse), "attention: lse is f32, contiguous");
    return (float *)lse.data;
}

} // namespace

void cuda_attn_fwd(struct dev *d, const struct attn_args *a)
{
    AttentionForward f = {heads_of(a->o), heads_of(a->q), heads_of(a->k), heads_of(a->v),
                          stats(a->lse),  a->q.dim[1],    Range{},        (float)a->scale};
    unsigned char *way = ways(a->seqs);
    cuda_library_attn_fwd(d, a, way);
    cuda_flash_fwd(d, a, way);
    for (int i = 0; i < a->seqs->n; i++) {
        if (way[i] != ATTENTION_OWN) continue;
        f.range = range_of(a->seqs, i);
        blocks(d, f.range.q_len * f.heads, f);
    }
    free(way);
}

void cuda_attn_bwd(struct dev *d, const struct attn_grad_args *a)
{
    Gradients g = {};
    g.dq = heads_of(a->dq);
    g.dk = heads_of(a->dk);
    g.dv = heads_of(a->dv);
    g.d_o = heads_of(a->d_o);
    g.o = heads_of(a->o);
    g.q = heads_of(a->q);
    g.k = heads_of(a->k);
    g.v = heads_of(a->v);
    g.lse = stats(a->lse);
    g.heads = a->q.dim[1];
    g.scale = (float)a->scale;
    unsigned char *way = ways(a->seqs);
    cuda_library_attn_bwd(d, a, way);
    cuda_flash_bwd(d, a, way);
    g.delta = (float *)cuda_scratch(d, (size_t)(a->q.dim[0] * g.heads) * sizeof(float));
    for (int i = 0; i < a->seqs->n; i++) {
        if (way[i] != ATTENTION_OWN) continue;
        g.range = range_of(a->seqs, i);
        blocks(d, g.range.q_len * g.heads, AttentionQuery{g});
        blocks(d, g.range.k_len * g.heads, AttentionKey{g});
    }
    free(way);
}
