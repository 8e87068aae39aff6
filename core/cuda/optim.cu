/* What runs over a list of flat arrays in one launch: the optimizer step and the sum of squares.
 * The list goes to the device as a table; a block takes one tile of one array and finds it by the
 * first tile of each. The memory traffic bounds both, so the arithmetic is double. */
#include "core/cuda/cuda.h"

#include <stdlib.h>

namespace
{

#ifdef CUDA_EMULATE
enum : int64_t { TILE = 1 << 8 }; /* the tests are small */
#else
enum : int64_t { TILE = 1 << 13 };
#endif

/* The last of n entries whose first tile is not behind `tile`. */
template <class Entry> DEVICE const Entry &entry_of(const Entry *table, int n, int64_t tile)
{
    int low = 0;
    for (int high = n; high - low > 1;) {
        const int mid = (low + high) / 2;
        if (table[mid].first <= tile)
            low = mid;
        else
            high = mid;
    }
    return table[low];
}

struct Shard {
    float *p, *m, *v, *ema;
    const float *g;
    View wire;
    double decay;
    int64_t count, first; /* elements; tile of the first */
};

struct Update {
    struct Shared {
    };
    const Shard *table;
    int num_shards;
    double beta1, beta2, rate, root, eps, grad_scale, ema_keep;
    DEVICE void operator()(Block &b, Shared &, int64_t tile) const
    {
        const Shard s = entry_of(table, num_shards, tile);
        const int64_t from = (tile - s.first) * TILE;
        const int64_t end = from + TILE < s.count ? from + TILE : s.count;
        for (int64_t i = from + b.lane; i < end; i += b.lanes) step(s, i);
    }
    DEVICE void step(const Shard &s, int64_t i) const
    {
        const double grad = (double)s.g[i] * grad_scale;
        const float m = (float)((double)s.m[i] + (1 - beta1) * (grad - (double)s.m[i]));
        const float v = (float)(beta2 * (double)s.v[i] + (1 - beta2) * grad * grad);
        const double x = (double)s.p[i] * s.decay;
        const float p = (float)(x - rate * (double)m / (sqrt((double)v) / root + eps));
        s.m[i] = m;
        s.v[i] = v;
        s.p[i] = p;
        if (s.ema) {
            const double ema = (double)s.ema[i];
            s.ema[i] = (float)(ema - (1 - ema_keep) * (ema - (double)p));
        }
        if (s.wire.p) put(s.wire, 0, i, p);
    }
};

Shard shard_of(const struct update_args *a, const struct update_shard *s, int64_t first)
{
    CHECK(s->p.dtype == DT_F32 && s->m.dtype == DT_F32 && s->v.dtype == DT_F32 &&
              s->g.dtype == DT_F32,
          "update: p, m, v and g are f32");
    Shard k = {};
    k.p = (float *)s->p.data;
    k.m = (float *)s->m.data;
    k.v = (float *)s->v.data;
    k.g = (const float *)s->g.data;
    k.ema = a->ema_keep >= 0 ? (float *)s->ema.data : NULL;
    k.wire = view(s->wire);
    k.decay = 1 - a->lr * s->weight_decay;
    k.count = tensor_count(s->p);
    k.first = first;
    return k;
}

struct Squares { /* of one array */
    View x;
    int64_t count, first, tiles;
};
struct SquareParts {
    struct Shared {
        double buf[MAX_LANES];
    };
    const Squares *table;
    int n;
    double *part;
    DEVICE void operator()(Block &b, Shared &sh, int64_t tile) const
    {
        const Squares &s = entry_of(table, n, tile);
        const int64_t from = (tile - s.first) * SUM_BLOCK;
        const int64_t end = from + SUM_BLOCK < s.count ? from + SUM_BLOCK : s.count;
        double sum = 0;
        for (int64_t i = from + b.lane; i < end; i += b.lanes) {
            const double x = get_f64(s.x, 0, i);
            sum += x * x;
        }
        sum = block_sum(b, sh.buf, sum);
        if (b.lane == 0) part[tile] = sum;
    }
};
struct SquareEnds { /* one block: array after array */
    struct Shared {
        double buf[MAX_LANES];
    };
    const Squares *table;
    int n;
    const double *part;
    View sum;
    DEVICE void operator()(Block &b, Shared &sh, int64_t) const
    {
        for (int k = 0; k < n; k++) {
            double x = 0;
            for (int64_t i = b.lane; i < table[k].tiles; i += b.lanes)
                x += part[table[k].first + i];
            x = block_sum(b, sh.buf, x);
            if (b.lane == 0) put_f64(sum, 0, 0, get_f64(sum, 0, 0) + x);
        }
    }
};

template <class Entry> Entry *host_table(int n)
{
    Entry *t = (Entry *)calloc((size_t)n + 1, sizeof *t);
    CHECK(t, "out of memory");
    return t;
}

} // namespace

void cuda_update(struct dev *d, const struct update_args *a)
{
    Shard *host = host_table<Shard>(a->num_shards);
    int64_t tiles = 0;
    for (int i = 0; i < a->num_shards; i++) {
        host[i] = shard_of(a, &a->shard[i], tiles);
        tiles += (host[i].count + TILE - 1) / TILE;
    }
    const size_t bytes = (size_t)a->num_shards * sizeof *host;
    Shard *table = (Shard *)cuda_scratch(d, bytes);
    cuda_from_host(d, table, host, bytes);
    free(host);
    blocks(d, tiles,
           Update{table, a->num_shards, a->beta1, a->beta2, a->lr / a->bias1, sqrt(a->bias2),
                  a->eps, a->grad_scale, a->ema_keep});
}

void cuda_sumsq(struct dev *d, struct tensor sum, const struct tensor *x, int n)
{
    CHECK(sum.dtype == DT_F64, "sum of squares: sum is f64");
    Squares *host = host_table<Squares>(n);
    int64_t tiles = 0;
    for (int i = 0; i < n; i++) {
        cuda_expect_real(x[i], "sum of squares");
        CHECK(tensor_contiguous(x[i]), "sum of squares: contiguous arrays");
        host[i].x = view(x[i]);
        host[i].count = tensor_count(x[i]);
        host[i].first = tiles;
        host[i].tiles = (host[i].count + SUM_BLOCK - 1) / SUM_BLOCK;
        tiles += host[i].tiles;
    }
    const size_t bytes = (size_t)n * sizeof *host;
    double *part = (double *)cuda_scratch(d, (size_t)tiles * sizeof *part + bytes);
    Squares *table = (Squares *)(part + tiles);
    cuda_from_host(d, table, host, bytes);
    free(host);
    blocks(d, tiles, SquareParts{table, n, part});
    blocks(d, 1, SquareEnds{table, n, part, view(sum)});
}
