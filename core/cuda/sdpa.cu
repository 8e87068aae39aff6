/* Attention by cuDNN: which ranges go together in one call, where their rows are, and the
 * statistics in our order. The library has them as [batch][head][row], the ops as [row][head]; they
 * are turned around by a kernel, which costs microseconds, since that is the order the library is
 * known for. */
#include "core/cuda/cuda.h"

#include <stdlib.h>

extern "C" {
#include "core/log.h"
}

namespace
{

/* Ranges of equal lengths at equal distances: entries of one batch. */
struct Group {
    int64_t batch, q_len, k_len, q_first, k_first, q_step, k_step;
};

bool follows(const struct seqs *s, int i, const Group &g)
{
    if (s->q_len[i] != g.q_len || s->k_len[i] != g.k_len) return false;
    const int64_t q = s->q_first[i] - g.q_first, k = s->k_first[i] - g.k_first;
    if (g.batch == 1) return q > 0 && k > 0; /* it makes the distance */
    return q == g.batch * g.q_step && k == g.batch * g.k_step;
}

/* The group of the first open range; its members become BY_LIBRARY. False: none is open. */
bool next_group(const struct seqs *s, unsigned char *way, Group *g)
{
    g->batch = 0;
    for (int i = 0; i < s->n; i++) {
        if (way[i] != ATTENTION_OPEN || (g->batch && !follows(s, i, *g))) continue;
        if (!g->batch) {
            *g = Group{0, s->q_len[i], s->k_len[i], s->q_first[i], s->k_first[i], 0, 0};
        } else if (g->batch == 1) {
            g->q_step = s->q_first[i] - g->q_first;
            g->k_step = s->k_first[i] - g->k_first;
        }
        g->batch++;
        way[i] = ATTENTION_BY_LIBRARY;
    }
    return g->batch > 0;
}

/* A range that cuDNN can have: not an empty one, nor one query with one key, which it does not
 * support. */
bool suits(const struct seqs *s, int i)
{
    return s->q_len[i] && s->k_len[i] && (s->q_len[i] > 1 || s->k_len[i] > 1);
}

bool wanted(const struct dev *d, enum dtype t)
{
    return t == DT_BF16 && !d->own_attention && !d->deterministic;
}

bool prepare(struct dev *d, const struct seqs *s, enum dtype t, unsigned char *way)
{
    const bool any = wanted(d, t) && cuda_sdpa(d);
    for (int i = 0; i < s->n; i++) way[i] = any && suits(s, i) ? ATTENTION_OPEN : ATTENTION_OWN;
    return any;
}

/* True for a reason that has not been said before; beyond the last of the list all are old. */
bool is_new(const char *why)
{
    enum { MOST = 8 };
    static char told[MOST][256];
    for (int i = 0; i < MOST; i++) {
        if (!told[i][0]) {
            strncpy(told[i], why, sizeof told[i] - 1);
            return true;
        }
        if (strncmp(told[i], why, sizeof told[i] - 1) == 0) return false;
    }
    return false;
}

/* Back to the own kernels, which is said once for every reason. */
void refuse(const struct seqs *s, const Group &g, unsigned char *way, const char *why)
{
    if (is_new(why))
        log_warn_all("attention of %lld x %lld rows by own kernels, slow: %s", (long long)g.q_len,
                     (long long)g.k_len, why);
    for (int i = 0; i < s->n; i++) {
        const int64_t q = s->q_first[i] - g.q_first;
        if (way[i] == ATTENTION_BY_LIBRARY && s->q_len[i] == g.q_len && s->k_len[i] == g.k_len &&
            q >= 0 && (g.q_step ? q % g.q_step == 0 && q / g.q_step < g.batch : q == 0))
            way[i] = ATTENTION_OWN;
    }
}

struct Call {
    struct sdpa_shape shape;
    struct sdpa_call call;
    bool aligned;
};

/* Where the rows of a group are in a tensor [rows, heads, head_dim]. */
void place(Call *c, enum sdpa_tensor which, struct tensor t, const Group &g, bool keys)
{
    const int64_t ld = tensor_ld(t), first = keys ? g.k_first : g.q_first;
    const int64_t len = keys ? g.k_len : g.q_len, step = keys ? g.k_step : g.q_step;
    int64_t *by = c->shape.stride[which];
    by[0] = (g.batch > 1 ? step : len) * ld;
    by[1] = t.dim[2];
    by[2] = ld;
    c->call.data[which] = (uint16_t *)t.data + first * ld;
    c->aligned &= t.dtype == DT_BF16 && (uintptr_t)c->call.data[which] % 16 == 0 && ld % 8 == 0 &&
                  t.dim[2] % 8 == 0;
}

Call call_of(const Group &g, struct tensor q, struct tensor k, struct tensor v, struct tensor o,
             double scale)
{
    Call c;
    memset(&c, 0, sizeof c); /* the shape is compared byte by byte */
    c.aligned = true;
    c.shape.batch = g.batch;
    c.shape.heads = q.dim[1];
    c.shape.q_len = g.q_len;
    c.shape.k_len = g.k_len;
    c.shape.dim = q.dim[2];
    c.call.scale = (float)scale;
    place(&c, SDPA_Q, q, g, false);
    place(&c, SDPA_K, k, g, true);
    place(&c, SDPA_V, v, g, true);
    place(&c, SDPA_O, o, g, false);
    return c;
}

/* lse[row][head] from [batch][head][row], or the other way. */
struct Turn {
    float *rows, *heads;
    Group g;
    int64_t num_heads;
    bool to_rows;
    DEVICE void operator()(int64_t i) const
    {
        const int64_t row = i % g.q_len, h = i / g.q_len % num_heads, b = i / g.q_len / num_heads;
        float *at = rows + (g.q_first + b * g.q_step + row) * num_heads + h;
        if (to_rows)
            *at = heads[i];
        else
            heads[i] = *at;
    }
};

size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }

/* Scratch of a call: statistics, and backward the sums of d_o * o and of dq, and workspace. */
struct Room {
    size_t column, wide, bytes;
};
Room room_of(const struct sdpa_shape &s, int64_t workspace)
{
    const size_t n = (size_t)(s.batch * s.heads * s.q_len);
    Room r = {rounded(n * sizeof(float)), rounded(n * (size_t)s.dim * sizeof(float)), 0};
    r.bytes = r.column + (s.backward ? r.column + r.wide : 0) + (size_t)workspace;
    return r;
}

/* False: the library has no plan. */
bool make_room(struct dev *d, Call *c, struct err *why)
{
    if (!c->aligned) {
        err_set(why, RC_CONFIG, "rows or heads do not begin at multiples of 16 bytes");
        return false;
    }
    const int64_t workspace = cudnn_workspace(cuda_sdpa(d), &c->shape, why);
    if (workspace < 0) return false;
    const Room r = room_of(c->shape, workspace);
    const bool back = c->shape.backward;
    char *p = (char *)cuda_scratch(d, r.bytes);
    c->call.lse = p;
    if (back) c->call.row_sum = p += r.column;
    if (back) c->call.dq_sum = p += r.column;
    c->call.workspace = p + (back ? r.wide : r.column);
    return true;
}

bool run_group(struct dev *d, Call *c, struct tensor lse, const Group &g, struct err *why)
{
    if (!make_room(d, c, why)) return false;
    const int64_t heads = c->shape.heads, n = g.batch * heads * g.q_len;
    const bool back = c->shape.backward;
    const Turn turn = {(float *)lse.data, (float *)c->call.lse, g, heads, !back};
    if (back) each(d, n, turn);
    if (!cudnn_run(cuda_sdpa(d), &c->shape, &c->call, cuda_queue(d), why)) return false;
    if (!back) each(d, n, turn);
    return true;
}

Call backward_of(const Group &g, const struct attn_grad_args *a)
{
    Call c = call_of(g, a->q, a->k, a->v, a->o, a->scale);
    c.shape.backward = 1;
    place(&c, SDPA_DO, a->d_o, g, false);
    place(&c, SDPA_DQ, a->dq, g, false);
    place(&c, SDPA_DK, a->dk, g, true);
    place(&c, SDPA_DV, a->dv, g, true);
    return c;
}

/* Scratch of the group that needs most; none where the library cannot be opened. */
size_t library_bytes(struct dev *d, const struct attn_grad_args *a)
{
    size_t most = 0;
    Group g;
    if (!wanted(d, a->q.dtype) || !cuda_sdpa(d)) return 0;
    unsigned char *way = (unsigned char *)calloc((size_t)a->seqs->n + 1, 1);
    CHECK(way, "out of memory");
    for (int i = 0; i < a->seqs->n; i++)
        way[i] = suits(a->seqs, i) ? ATTENTION_OPEN : ATTENTION_OWN;
    while (next_group(a->seqs, way, &g)) {
        const Call c = backward_of(g, a);
        const size_t bytes = c.aligned ? room_of(c.shape, SDPA_WORKSPACE).bytes : 0;
        most = bytes > most ? bytes : most;
    }
    free(way);
    return most;
}

} // namespace

void cuda_library_attn_fwd(struct dev *d, const struct attn_args *a, unsigned char *way)
{
    Group g;
    if (!prepare(d, a->seqs, a->q.dtype, way)) return;
    while (next_group(a->seqs, way, &g)) {
        Call c = call_of(g, a->q, a->k, a->v, a->o, a->scale);
        struct err why = {};
        if (!run_group(d, &c, a->lse, g, &why)) refuse(a->seqs, g, way, why.msg);
    }
}

void cuda_library_attn_bwd(struct dev *d, const struct attn_grad_args *a, unsigned char *way)
{
    Group g;
    if (!prepare(d, a->seqs, a->q.dtype, way)) return;
    while (next_group(a->seqs, way, &g)) {
        Call c = backward_of(g, a);
        struct err why = {};
        if (!run_group(d, &c, a->lse, g, &why)) refuse(a->seqs, g, way, why.msg);
    }
}

size_t cuda_attn_bwd_bytes(struct dev *d, const struct attn_grad_args *a)
{
    const size_t library = library_bytes(d, a);
    const size_t own = (size_t)(a->q.dim[0] * a->q.dim[1]) * sizeof(float); /* sums of d_o * o */
    return library > own ? library : own;
}
