/* Attention of bf16 on the tensor units, own kernels: no score matrix, sums in f32, weights rounded
 * to bf16 before the second product. Deterministic: whatever a block writes no other block touches.
 * Forward and dq: a block of four warps owns 64 queries of a head and walks over the keys, 16
 * queries a warp. dk and dv: it owns 64 keys and walks over the queries, on transposed scores, so
 * that weights go from one product to the next in registers. The backward pass computes the scores
 * twice (7 products for the 5 that adding dq from many blocks would take).
 * Head dimensions up to 128; others, and f32, have the kernels of attention.cu. */
#include "core/cuda/warp.h"

namespace
{

enum { QUERIES = 64, KEYS = 64, STEP = 32 /* rows of the other side at a time, backward */ };
const float LOG2_E = 1.44269504088896341f, LN_2 = 0.693147180559945309f;

/* ---- arguments ------------------------------------------------------------------------------- */

struct Half { /* [rows, heads, dim] bf16 */
    uint16_t *p;
    int64_t ld;
    int dim;
    bool wide; /* rows of a head start at multiples of 16 bytes and are whole ones */
    DEVICE uint16_t *at(int64_t row, int64_t head) const { return p + row * ld + head * dim; }
};
Half half_of(struct tensor t)
{
    const int64_t ld = tensor_ld(t), dim = t.dim[2];
    return Half{(uint16_t *)t.data, ld, (int)dim,
                ld % 8 == 0 && dim % 8 == 0 && (uintptr_t)t.data % 16 == 0};
}

struct Part { /* rows of one side that a block owns, and all rows of the other side */
    int64_t first, other;
    int rows, others;
};
/* The tiles of up to MOST_RANGES ranges, counted through. */
enum { MOST_RANGES = 32 };
struct Tiles {
    int32_t first[MOST_RANGES], len[MOST_RANGES], other[MOST_RANGES], others[MOST_RANGES];
    int64_t start[MOST_RANGES + 1];
    int n;
    DEVICE Part part(int64_t tile, int size) const
    {
        int i = 0;
        while (tile >= start[i + 1]) i++;
        const int64_t at = (tile - start[i]) * size, left = len[i] - at;
        return Part{first[i] + at, other[i], (int)(left < size ? left : size), others[i]};
    }
};
/* Of the open ranges from number *at on, which moves behind them. */
Tiles tiles_of(const struct seqs *s, const unsigned char *way, int *at, int size, bool own_keys)
{
    Tiles t = {};
    for (; *at < s->n && t.n < MOST_RANGES; ++*at) {
        const int i = *at;
        if (way[i] != ATTENTION_OWN) continue;
        t.first[t.n] = own_keys ? s->k_first[i] : s->q_first[i];
        t.len[t.n] = own_keys ? s->k_len[i] : s->q_len[i];
        t.other[t.n] = own_keys ? s->q_first[i] : s->k_first[i];
        t.others[t.n] = own_keys ? s->q_len[i] : s->k_len[i];
        t.start[t.n + 1] = t.start[t.n] + (t.len[t.n] + size - 1) / size;
        t.n++;
    }
    return t;
}

typedef uint32_t __attribute__((may_alias)) Pair;

/* ---- tiles in shared memory ------------------------------------------------------------------ */

/* 8 more elements a row: eight rows then lie in different banks */
template <int ROWS, int DIM> struct Tile {
    alignas(16) uint16_t e[ROWS][DIM + 8];
    /* n rows of a head; the rest is zeros */
    DEVICE void load(const Block &b, const Half &t, int64_t row, int64_t head, int n)
    {
        for (int i = b.lane; i < ROWS * (DIM / 8); i += b.lanes) {
            const int r = i / (DIM / 8), c = i % (DIM / 8) * 8;
            Quad q = {};
            if (r < n && c < t.dim) {
                const uint16_t *from = t.at(row + r, head) + c;
                if (t.wide) {
                    expect_aligned(from);
                    q = *(const Quad *)from;
                } else {
                    for (int k = 0; k < 8 && c + k < t.dim; k++)
                        q.w[k / 2] |= (uint32_t)from[k] << k % 2 * 16;
                }
            }
            expect_aligned(&e[r][c]);
            *(Quad *)&e[r][c] = q;
        }
    }
};

/* c[COLS / 8] = or += A (rows row.. of a) times the transposed first COLS rows of b */
template <int COLS, int DIM, int RA, int RB>
DEVICE void scores(Block &b, float (&c)[COLS / 8][4], const Tile<RA, DIM> &a, int row,
                   const Tile<RB, DIM> &rows)
{
    UNROLL
    for (int n = 0; n < COLS / 8; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
    UNROLL
    for (int k = 0; k < DIM; k += 16) {
        uint32_t left[4], right[4];
        load_a(b, left, a.e, row, k);
        UNROLL
        for (int n = 0; n < COLS; n += 16) {
            load_b_rows(b, right, rows.e, n, k);
            mma(b, c[n / 8], left, right[0], right[1]);
            mma(b, c[n / 8 + 1], left, right[2], right[3]);
        }
    }
}
/* c[DIM / 8] += W (16 x COLS, as it came from a product) times the first COLS rows of b */
template <int COLS, int DIM, int RB>
DEVICE void weighted(Block &b, float (&c)[DIM / 8][4], const float (&w)[COLS / 8][4],
                     const Tile<RB, DIM> &rows)
{
    UNROLL
    for (int k = 0; k < COLS; k += 16) {
        uint32_t left[4], right[4];
        a_of_c(left, w[k / 8], w[k / 8 + 1]);
        UNROLL
        for (int n = 0; n < DIM; n += 16) {
            load_b(b, right, rows.e, k, n);
            mma(b, c[n / 8], left, right[0], right[1]);
            mma(b, c[n / 8 + 1], left, right[2], right[3]);
        }
    }
}

/* Rows row.. of this warp (n of them exist), times a factor for each half. */
template <int DIM>
DEVICE void write_rows(const Block &b, const Half &t, int64_t row, int64_t head, int n,
                       const float (&c)[DIM / 8][4], float low, float high)
{
    const int g = b.lane % WARP / 4, at = b.lane % 4 * 2;
    UNROLL
    for (int half = 0; half < 2; half++) {
        if (g + 8 * half >= n) continue;
        const float f = half ? high : low;
        uint16_t *to = t.at(row + g + 8 * half, head);
        UNROLL
        for (int x = 0; x < DIM / 8; x++) {
            const int col = 8 * x + at; /* the dimension is even */
            if (col >= t.dim) continue;
            const uint32_t pair = bf16_pair(f * c[x][2 * half], f * c[x][2 * half + 1]);
            if (t.wide) {
                *(Pair *)(to + col) = pair;
            } else {
                to[col] = (uint16_t)pair;
                to[col + 1] = (uint16_t)(pair >> 16);
            }
        }
    }
}

/* ---- forward --------------------------------------------------------------------------------- */

struct FlashArgs {
    Half o, q, k, v;
    float *lse;
    int64_t heads, tiles;
    float scale; /* of scores in units of log 2 */
    Tiles ranges;
};
template <int DIM> struct FlashForward {
    static constexpr int WARPS = QUERIES / 16;
    struct Shared {
        Tile<QUERIES, DIM> q;
        Tile<KEYS, DIM> k, v;
    };
    FlashArgs a;

    /* Scores to weights; o and sum follow a new maximum. */
    DEVICE void softmax(Block &b, float (&s)[KEYS / 8][4], float (&out)[DIM / 8][4],
                        float (&top)[2], float (&sum)[2], int keys) const
    {
        const int t = b.lane % 4;
        UNROLL
        for (int half = 0; half < 2; half++) {
            float best = -INFINITY;
            UNROLL
            for (int n = 0; n < KEYS / 8; n++) UNROLL
            for (int e = 2 * half; e < 2 * half + 2; e++) {
                s[n][e] = 8 * n + 2 * t + e % 2 < keys ? s[n][e] * a.scale : -INFINITY;
                best = s[n][e] > best ? s[n][e] : best;
            }
            for (int mask = 1; mask < 4; mask *= 2) {
                const float x = warp_xor(b, best, mask);
                best = x > best ? x : best;
            }
            const float now = best > top[half] ? best : top[half];
            const float keep = exp2f(top[half] - now); /* 0 at first */
            float part = 0;
            UNROLL
            for (int n = 0; n < KEYS / 8; n++) UNROLL
            for (int e = 2 * half; e < 2 * half + 2; e++) part += s[n][e] = exp2f(s[n][e] - now);
            sum[half] = sum[half] * keep + part;
            top[half] = now;
            UNROLL
            for (int x = 0; x < DIM / 8; x++) {
                out[x][2 * half] *= keep;
                out[x][2 * half + 1] *= keep;
            }
        }
    }

    DEVICE void operator()(Block &b, Shared &sh, int64_t item) const
    {
        const int64_t head = item / a.tiles;
        const Part p = a.ranges.part(item % a.tiles, QUERIES);
        const int row = b.lane / WARP * 16, g = b.lane % WARP / 4;
        sh.q.load(b, a.q, p.first, head, p.rows);
        float out[DIM / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
        for (int j = 0; j < p.others; j += KEYS) {
            const int n = p.others - j < KEYS ? p.others - j : KEYS;
            sh.k.load(b, a.k, p.other + j, head, n);
            sh.v.load(b, a.v, p.other + j, head, n);
            b.sync();
            float s[KEYS / 8][4];
            scores<KEYS>(b, s, sh.q, row, sh.k);
            softmax(b, s, out, top, sum, n);
            weighted<KEYS>(b, out, s, sh.v);
            b.sync();
        }
        float inverse[2];
        for (int half = 0; half < 2; half++) {
            for (int mask = 1; mask < 4; mask *= 2) sum[half] += warp_xor(b, sum[half], mask);
            inverse[half] = p.others ? 1 / sum[half] : 0;
            const int at = row + g + 8 * half;
            if (b.lane % 4 == 0 && at < p.rows)
                a.lse[(p.first + at) * a.heads + head] =
                    p.others ? top[half] * LN_2 + logf(sum[half]) : -INFINITY;
        }
        write_rows<DIM>(b, a.o, p.first + row, head, p.rows - row, out, inverse[0], inverse[1]);
    }
};

/* ---- backward -------------------------------------------------------------------------------- */

struct FlashGrad {
    Half dq, dk, dv, d_o, o, q, k, v;
    const float *lse;
    float *delta; /* [q rows, heads]: sum over the head of d_o * o */
    int64_t heads, tiles;
    float scale;
    Tiles ranges;
};

struct FlashDelta {
    FlashGrad a;
    DEVICE void operator()(int64_t i) const
    {
        const uint16_t *g = a.d_o.at(i / a.heads, i % a.heads),
                       *o = a.o.at(i / a.heads, i % a.heads);
        float s = 0;
        for (int x = 0; x < a.o.dim; x++) s += bf16_to_float(g[x]) * bf16_to_float(o[x]);
        a.delta[i] = s;
    }
};

/* dq of 64 queries */
template <int DIM> struct FlashQuery {
    static constexpr int WARPS = QUERIES / 16;
    struct Shared {
        Tile<QUERIES, DIM> q, g;
        Tile<STEP, DIM> k, v;
    };
    FlashGrad a;
    DEVICE void operator()(Block &b, Shared &sh, int64_t item) const
    {
        const int64_t head = item / a.tiles;
        const Part p = a.ranges.part(item % a.tiles, QUERIES);
        const int row = b.lane / WARP * 16, g = b.lane % WARP / 4, t = b.lane % 4;
        sh.q.load(b, a.q, p.first, head, p.rows);
        sh.g.load(b, a.d_o, p.first, head, p.rows);
        float base[2], delta[2], dq[DIM / 8][4] = {};
        for (int half = 0; half < 2; half++) {
            const int at = row + g + 8 * half;
            const int64_t i = (p.first + at) * a.heads + head;
            base[half] = at < p.rows ? a.lse[i] * LOG2_E : 0;
            delta[half] = at < p.rows ? a.delta[i] : 0;
        }
        for (int j = 0; j < p.others; j += STEP) {
            const int n = p.others - j < STEP ? p.others - j : STEP;
            sh.k.load(b, a.k, p.other + j, head, n);
            sh.v.load(b, a.v, p.other + j, head, n);
            b.sync();
            float s[STEP / 8][4], dp[STEP / 8][4];
            scores<STEP>(b, s, sh.q, row, sh.k);
            scores<STEP>(b, dp, sh.g, row, sh.v);
            UNROLL
            for (int x = 0; x < STEP / 8; x++) UNROLL
            for (int e = 0; e < 4; e++) {
                const float w = exp2f(a.scale * LOG2_E * s[x][e] - base[e / 2]);
                s[x][e] = 8 * x + 2 * t + e % 2 < n ? w * (dp[x][e] - delta[e / 2]) : 0;
            }
            weighted<STEP>(b, dq, s, sh.k);
            b.sync();
        }
        write_rows<DIM>(b, a.dq, p.first + row, head, p.rows - row, dq, a.scale, a.scale);
    }
};

/* dk and dv of 64 keys */
template <int DIM> struct FlashKey {
    static constexpr int WARPS = KEYS / 16;
    struct Shared {
        Tile<KEYS, DIM> k, v;
        Tile<STEP, DIM> q, g;
        float base[STEP], delta[STEP];
    };
    FlashGrad a;
    DEVICE void operator()(Block &b, Shared &sh, int64_t item) const
    {
        const int64_t head = item / a.tiles;
        const Part p = a.ranges.part(item % a.tiles, KEYS);
        const int row = b.lane / WARP * 16, t = b.lane % 4;
        sh.k.load(b, a.k, p.first, head, p.rows);
        sh.v.load(b, a.v, p.first, head, p.rows);
        float dk[DIM / 8][4] = {}, dv[DIM / 8][4] = {};
        for (int j = 0; j < p.others; j += STEP) {
            const int n = p.others - j < STEP ? p.others - j : STEP;
            sh.q.load(b, a.q, p.other + j, head, n);
            sh.g.load(b, a.d_o, p.other + j, head, n);
            for (int i = b.lane; i < STEP; i += b.lanes) { /* no query: weight 2^-inf */
                const int64_t at = (p.other + j + i) * a.heads + head;
                sh.base[i] = i < n ? a.lse[at] * LOG2_E : INFINITY;
                sh.delta[i] = i < n ? a.delta[at] : 0;
            }
            b.sync();
            float s[STEP / 8][4], dp[STEP / 8][4];
            scores<STEP>(b, s, sh.k, row, sh.q);
            scores<STEP>(b, dp, sh.v, row, sh.g);
            UNROLL
            for (int x = 0; x < STEP / 8; x++) UNROLL
            for (int e = 0; e < 4; e++) {
                const int query = 8 * x + 2 * t + e % 2;
                s[x][e] = exp2f(a.scale * LOG2_E * s[x][e] - sh.base[query]);
                dp[x][e] = s[x][e] * (dp[x][e] - sh.delta[query]);
            }
            weighted<STEP>(b, dv, s, sh.g);
            weighted<STEP>(b, dk, dp, sh.q);
            b.sync();
        }
        write_rows<DIM>(b, a.dk, p.first + row, head, p.rows - row, dk, a.scale, a.scale);
        write_rows<DIM>(b, a.dv, p.first + row, head, p.rows - row, dv, 1, 1);
    }
};

/* ---- launch ---------------------------------------------------------------------------------- */

template <template <int> class Kernel, class Args>
void by_dim(struct dev *d, int64_t n, int64_t dim, const Args &a)
{
    if (dim <= 32)
        warps(d, n, Kernel<32>{a});
    else if (dim <= 64)
        warps(d, n, Kernel<64>{a});
    else if (dim <= 96)
        warps(d, n, Kernel<96>{a});
    else
        warps(d, n, Kernel<128>{a});
}

/* Whether there is anything to do. */
bool takes(struct tensor q, const struct seqs *s, const unsigned char *way)
{
    bool open = false;
    for (int i = 0; i < s->n; i++) open = open || way[i] == ATTENTION_OWN;
    return open && HAVE_WARPS && q.dtype == DT_BF16 && q.dim[2] <= 128;
}
void done(const struct seqs *s, unsigned char *way)
{
    for (int i = 0; i < s->n; i++)
        if (way[i] == ATTENTION_OWN) way[i] = ATTENTION_BY_FLASH;
}

} // namespace

void cuda_flash_fwd(struct dev *d, const struct attn_args *a, unsigned char *way)
{
    if (!takes(a->q, a->seqs, way)) return;
    FlashArgs f = {half_of(a->o),
                   half_of(a->q),
                   half_of(a->k),
                   half_of(a->v),
                   (float *)a->lse.data,
                   a->q.dim[1],
                   0,
                   (float)a->scale * LOG2_E,
                   {}};
    for (int at = 0; at < a->seqs->n;) {
        f.ranges = tiles_of(a->seqs, way, &at, QUERIES, false);
        f.tiles = f.ranges.start[f.ranges.n];
        by_dim<FlashForward>(d, f.tiles * f.heads, a->q.dim[2], f);
    }
    done(a->seqs, way);
}

void cuda_flash_bwd(struct dev *d, const struct attn_grad_args *a, unsigned char *way)
{
    if (!takes(a->q, a->seqs, way)) return;
    FlashGrad g = {half_of(a->dq),
                   half_of(a->dk),
                   half_of(a->dv),
                   half_of(a->d_o),
                   half_of(a->o),
                   half_of(a->q),
                   half_of(a->k),
                   half_of(a->v),
                   (const float *)a->lse.data,
                   NULL,
                   a->q.dim[1],
                   0,
                   (float)a->scale,
                   {}};
    const int64_t stats = a->q.dim[0] * g.heads, dim = a->q.dim[2];
    g.delta = (float *)cuda_scratch(d, (size_t)stats * sizeof(float));
    each(d, stats, FlashDelta{g});
    for (int at = 0; at < a->seqs->n;) {
        g.ranges = tiles_of(a->seqs, way, &at, QUERIES, false);
        g.tiles = g.ranges.start[g.ranges.n];
        by_dim<FlashQuery>(d, g.tiles * g.heads, dim, g);
    }
    for (int at = 0; at < a->seqs->n;) {
        g.ranges = tiles_of(a->seqs, way, &at, KEYS, true);
        g.tiles = g.ranges.start[g.ranges.n];
        by_dim<FlashKey>(d, g.tiles * g.heads, dim, g);
    }
    done(a->seqs, way);
}
