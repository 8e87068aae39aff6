/* The dry-run device: computes nothing, hands out addresses that fault when followed, checks
 * shapes, and counts FLOPs, bytes of the row ops and memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/dev.h"

struct block {
    void *p;
    size_t bytes;
    struct block *next;
};

static void *null_alloc(struct dev *d, size_t bytes)
{
    struct block *b = malloc(sizeof *b);
    CHECK(b, "out of memory");
    b->bytes = bytes ? bytes : 1;
    b->p = mmap(NULL, b->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(b->p != MAP_FAILED, "cannot reserve %zu bytes of address space", bytes);
    b->next = d->impl;
    d->impl = b;
    return b->p;
}

static void null_free(struct dev *d, void *p)
{
    struct block **at = (struct block **)&d->impl;
    while (*at && (*at)->p != p) at = &(*at)->next;
    CHECK(*at, "free of an address that was not allocated");
    struct block *b = *at;
    *at = b->next;
    munmap(b->p, b->bytes);
    free(b);
}

static void null_copy(struct dev *d, void *dst, const void *src, size_t bytes)
{
    (void)dst;
    (void)src;
    d->count.row_bytes += 2 * (double)bytes;
}
static void null_to_host(struct dev *d, void *dst, const void *src, size_t bytes)
{
    (void)d;
    (void)src;
    memset(dst, 0, bytes);
}
static void null_from_host(struct dev *d, void *dst, const void *src, size_t bytes)
{
    (void)d;
    (void)dst;
    (void)src;
    (void)bytes;
}
static void null_sync(struct dev *d) { (void)d; }

/* Row traffic of the tensors an op touches. */
static void touch(struct dev *d, struct tensor t)
{
    if (t.data) d->count.row_bytes += (double)tensor_bytes(t);
}

static void same_shape(struct tensor a, struct tensor b, const char *what)
{
    CHECK(a.dim[0] == b.dim[0] && tensor_width(a) == tensor_width(b),
          "%s: %lld x %lld against %lld x %lld", what, (long long)a.dim[0],
          (long long)tensor_width(a), (long long)b.dim[0], (long long)tensor_width(b));
}

static void null_gemm(struct dev *d, const struct gemm_args *g)
{
    const int64_t m = g->c.dim[0], n = g->c.dim[1];
    const int64_t ka = g->trans_a ? g->a.dim[0] : g->a.dim[1];
    const int64_t kb = g->trans_b ? g->b.dim[1] : g->b.dim[0];
    CHECK(ka == kb && (g->trans_a ? g->a.dim[1] : g->a.dim[0]) == m &&
              (g->trans_b ? g->b.dim[0] : g->b.dim[1]) == n && g->a.dtype == g->b.dtype,
          "gemm of %lldx%lld and %lldx%lld into %lldx%lld", (long long)g->a.dim[0],
          (long long)g->a.dim[1], (long long)g->b.dim[0], (long long)g->b.dim[1], (long long)m,
          (long long)n);
    d->count.gemm_flops += 2.0 * (double)m * (double)n * (double)ka;
    if (g->aux.data) same_shape(g->aux, g->c, "gemm aux");
    if (d->stands_for) dev_own(d, dev_own_bytes(d->stands_for, g, NULL));
}

static double pairs(const struct seqs *s)
{
    double n = 0;
    for (int i = 0; i < s->n; i++) n += (double)s->q_len[i] * (double)s->k_len[i];
    return n;
}

static void null_attn_fwd(struct dev *d, const struct attn_args *a)
{
    same_shape(a->o, a->q, "attention");
    d->count.attn_fwd_flops += 4 * pairs(a->seqs) * (double)tensor_width(a->q);
}

static void null_attn_bwd(struct dev *d, const struct attn_grad_args *a)
{
    same_shape(a->dq, a->q, "attention backward");
    same_shape(a->dk, a->k, "attention backward");
    d->count.attn_bwd_flops += 10 * pairs(a->seqs) * (double)tensor_width(a->q);
    if (d->stands_for) dev_own(d, dev_own_bytes(d->stands_for, NULL, a));
}

static void null_norm_rope_fwd(struct dev *d, const struct norm_rope_args *a)
{
    same_shape(a->out, a->x, "norm");
    CHECK(a->rstd.dim[0] == a->x.dim[0] && a->w.dim[0] == a->x.dim[1], "norm shapes");
    touch(d, a->x);
    touch(d, a->out);
}
static void null_norm_rope_bwd(struct dev *d, const struct norm_rope_grad_args *a)
{
    same_shape(a->dx, a->dy, "norm backward");
    touch(d, a->x);
    touch(d, a->dy);
    touch(d, a->dx);
}
static void null_ln_fwd(struct dev *d, const struct ln_args *a)
{
    same_shape(a->out, a->x, "layer norm");
    CHECK(!a->scale.data || a->x.dim[0] % a->scale.dim[0] == 0, "rows per sample");
    touch(d, a->x);
    touch(d, a->out);
}
static void null_ln_bwd(struct dev *d, const struct ln_grad_args *a)
{
    same_shape(a->dx, a->dy, "layer norm backward");
    touch(d, a->x);
    touch(d, a->dy);
    touch(d, a->dx);
}
/* x as the rows that go to `to`, which may be more or fewer. */
static struct tensor mapped(struct tensor x, struct tensor to, struct tensor map, const char *what)
{
    CHECK(!map.data || (map.dtype == DT_I32 && map.dim[0] == to.dim[0]), "%s: row map", what);
    if (map.data) x.dim[0] = to.dim[0];
    same_shape(to, x, what);
    return x;
}
static void null_gate_add_fwd(struct dev *d, const struct gate_add_args *a)
{
    touch(d, a->out);
    touch(d, mapped(a->x, a->out, a->map, "gate"));
    touch(d, mapped(a->y, a->out, a->map, "gate"));
}
static void null_gate_add_bwd(struct dev *d, const struct gate_add_grad_args *a)
{
    same_shape(a->dy, a->y, "gate backward");
    touch(d, a->dy);
    touch(d, mapped(a->dout, a->dy, a->map, "gate backward"));
    touch(d, a->y);
    if (!a->map.data) return;
    same_shape(a->dy, a->dx, "gate backward");
    touch(d, a->dx);
}
static void null_gate_add_ln_fwd(struct dev *d, const struct gate_add_ln_args *a)
{
    touch(d, mapped(a->x, a->ln.x, a->map, "gate and layer norm"));
    touch(d, mapped(a->y, a->ln.x, a->map, "gate and layer norm"));
    null_ln_fwd(d, &a->ln);
}
static void null_gate_add_ln_bwd(struct dev *d, const struct gate_add_ln_grad_args *a)
{
    null_ln_bwd(d, &a->ln);
    touch(d, a->ln.dx); /* it is read, too */
    if (!a->dy.data) return;
    same_shape(a->dy, a->y, "gate and layer norm backward");
    same_shape(a->dy, a->ln.dx, "gate and layer norm backward");
    touch(d, a->dy);
    touch(d, a->y);
}
static void map2(struct dev *d, struct tensor y, struct tensor x)
{
    same_shape(y, x, "elementwise");
    touch(d, x);
    touch(d, y);
}
static void map3(struct dev *d, struct tensor dx, struct tensor dy, struct tensor x)
{
    map2(d, dx, dy);
    touch(d, x);
}
static void null_sinusoid(struct dev *d, struct tensor out, const double *t)
{
    (void)t;
    touch(d, out);
}
static void null_rows_gather(struct dev *d, struct tensor out, struct tensor x, struct tensor map)
{
    CHECK(map.dim[0] == out.dim[0] && tensor_width(out) == tensor_width(x), "row map");
    touch(d, out);
    touch(d, out);
}
static void null_bcast_add(struct dev *d, struct tensor out, struct tensor row, struct tensor x)
{
    (void)row;
    map2(d, out, x);
}
static void null_colsum_add(struct dev *d, struct tensor drow, struct tensor dx)
{
    CHECK(tensor_count(drow) == tensor_width(dx), "column sum");
    touch(d, dx);
}
static void null_patch(struct dev *d, struct tensor a, struct tensor b, struct tensor pos,
                       enum patch_order order)
{
    (void)pos;
    (void)order;
    touch(d, a);
    touch(d, b);
}
static void null_flow_rows(struct dev *d, const struct flow_args *a)
{
    CHECK(a->xt.dim[0] == a->pos.dim[0] && a->xt.dim[1] == 4 * a->z.dim[1], "flow rows");
    touch(d, a->xt);
    touch(d, a->target);
}
static void null_flow_loss(struct dev *d, struct tensor sum, struct tensor dout, struct tensor pred,
                           struct tensor target, struct tensor pos, double scale)
{
    (void)sum;
    (void)pos;
    (void)scale;
    same_shape(pred, target, "loss");
    touch(d, pred);
    touch(d, target);
    touch(d, dout);
}
static void null_sample_step(struct dev *d, struct tensor x, struct tensor c, struct tensor u,
                             double guidance, double dsigma)
{
    (void)guidance;
    (void)dsigma;
    same_shape(x, c, "sample step");
    touch(d, x);
    touch(d, c);
    touch(d, u);
}
static void touch_rows(struct dev *d, struct tensor x, const struct tensor *t, int n,
                       struct tensor pos, int batch, const char *what)
{
    CHECK(batch > 0 && x.dim[0] % batch == 0 && x.dim[1] % 4 == 0 && pos.dim[0] == x.dim[0],
          "%s: [%lld,%lld] rows of %d samples", what, (long long)x.dim[0], (long long)x.dim[1],
          batch);
    for (int i = 0; i < n; i++) {
        if (t[i].data) same_shape(t[i], x, what);
        touch(d, t[i]);
    }
}
static void expect_sum(struct tensor sum, int batch, int64_t n, double quantum, const char *what)
{
    CHECK(sum.dtype == DT_F64 && sum.dim[0] == batch && tensor_width(sum) == n,
          "%s: sum is f64 [%d,%lld]", what, batch, (long long)n);
    dev_check_quantum(quantum);
}
static void null_solver_step(struct dev *d, const struct solver_step_args *a)
{
    const struct tensor t[] = {a->next, a->x, a->h, a->h, a->c, a->u}; /* h: read and written */
    touch_rows(d, a->x, t, 6, a->pos, a->batch, "solver step");
    CHECK(a->ch == 0 || a->h.data, "solver step without the history it needs");
}
static void touch_transition(struct dev *d, const struct transition_args *a)
{
    const struct tensor t[] = {a->x, a->next, a->c, a->u, a->ref_c, a->ref_u};
    touch_rows(d, a->x, t, 6, a->pos, a->batch, "transition");
    CHECK(!a->ref_c.data || !a->ref_u.data == !a->u.data, "transition: one of two is guided");
}
static void null_transition_sums(struct dev *d, struct tensor sum, const struct transition_args *a)
{
    expect_sum(sum, a->batch, TRANSITION_SUMS, a->quantum, "transition");
    touch_transition(d, a);
}
static void null_transition_grad(struct dev *d, struct tensor dc, struct tensor du,
                                 const struct transition_args *a, const double *policy,
                                 const double *kl, double gc, double gu)
{
    (void)policy;
    (void)kl;
    (void)gc;
    (void)gu;
    const struct tensor t[] = {dc, du};
    touch_transition(d, a);
    touch_rows(d, a->x, t, 2, a->pos, a->batch, "transition gradient");
}
static void touch_nft(struct dev *d, const struct nft_args *a)
{
    const struct tensor t[] = {a->target, a->v, a->old, a->ref};
    touch_rows(d, a->v, t, 4, a->pos, a->batch, "nft");
}
static void null_nft_sums(struct dev *d, struct tensor sum, const struct nft_args *a)
{
    expect_sum(sum, a->batch, NFT_SUMS, a->quantum, "nft");
    touch_nft(d, a);
}
static void null_nft_grad(struct dev *d, struct tensor dv, const struct nft_args *a,
                          const double *plus, const double *minus, const double *kl)
{
    (void)plus;
    (void)minus;
    (void)kl;
    touch_nft(d, a);
    touch_rows(d, a->v, &dv, 1, a->pos, a->batch, "nft gradient");
}
static void null_update(struct dev *d, const struct update_args *a)
{
    for (int i = 0; i < a->num_shards; i++) {
        const struct update_shard *s = &a->shard[i];
        const struct tensor all[] = {s->m, s->v, s->g, s->ema, s->wire};
        touch(d, s->p);
        for (int k = 0; k < 5; k++) {
            if (all[k].data) same_shape(all[k], s->p, "update");
            touch(d, all[k]);
        }
    }
}
static void null_sumsq(struct dev *d, struct tensor sum, const struct tensor *x, int n)
{
    (void)sum;
    for (int i = 0; i < n; i++) touch(d, x[i]);
}
static void null_axpy(struct dev *d, struct tensor y, double a, struct tensor x)
{
    (void)a;
    map2(d, y, x);
}
static void null_scale(struct dev *d, struct tensor x, double a)
{
    (void)a;
    touch(d, x);
}
static void null_fill(struct dev *d, struct tensor x, double a)
{
    (void)a;
    touch(d, x);
}
static void null_rng_normal(struct dev *d, struct tensor x, struct rng_stream s, uint64_t first,
                            double std)
{
    (void)s;
    (void)first;
    (void)std;
    touch(d, x);
}
static void null_rng_uniform(struct dev *d, struct tensor x, struct rng_stream s, uint64_t first,
                             double lo, double hi)
{
    (void)lo;
    (void)hi;
    null_rng_normal(d, x, s, first, 0);
}

static void null_dropout(struct dev *d, const struct dropout_args *a)
{
    dev_check_dropout(a);
    touch(d, a->x);
    touch(d, a->out);
    if (a->add) touch(d, a->out);
}

static const struct dev_ops table = {
    .name = "null",
    .alloc = null_alloc,
    .free = null_free,
    .copy = null_copy,
    .to_host = null_to_host,
    .from_host = null_from_host,
    .sync = null_sync,
    .gemm = null_gemm,
    .attn_fwd = null_attn_fwd,
    .attn_bwd = null_attn_bwd,
    .norm_rope_fwd = null_norm_rope_fwd,
    .norm_rope_bwd = null_norm_rope_bwd,
    .ln_fwd = null_ln_fwd,
    .ln_bwd = null_ln_bwd,
    .gate_add_fwd = null_gate_add_fwd,
    .gate_add_bwd = null_gate_add_bwd,
    .gate_add_ln_fwd = null_gate_add_ln_fwd,
    .gate_add_ln_bwd = null_gate_add_ln_bwd,
    .gelu_fwd = map2,
    .gelu_bwd = map3,
    .silu_fwd = map2,
    .silu_bwd = map3,
    .sinusoid = null_sinusoid,
    .rows_gather = null_rows_gather,
    .bcast_add = null_bcast_add,
    .colsum_add = null_colsum_add,
    .patch_rows = null_patch,
    .unpatch_rows = null_patch,
    .flow_rows = null_flow_rows,
    .flow_loss = null_flow_loss,
    .sample_step = null_sample_step,
    .solver_step = null_solver_step,
    .transition_sums = null_transition_sums,
    .transition_grad = null_transition_grad,
    .nft_sums = null_nft_sums,
    .nft_grad = null_nft_grad,
    .update = null_update,
    .sumsq = null_sumsq,
    .axpy = null_axpy,
    .scale = null_scale,
    .fill = null_fill,
    .cast = map2,
    .rng_normal = null_rng_normal,
    .rng_uniform = null_rng_uniform,
    .dropout = null_dropout,
};

static const struct dev_ops *ops(enum dtype compute)
{
    return compute == DT_F64 || compute == DT_F32 || compute == DT_BF16 ? &table : NULL;
}

static void stop(struct dev *d)
{
    while (d->impl) null_free(d, ((struct block *)d->impl)->p);
}

const struct dev_backend dev_null = {.name = "null", .ops = ops, .stop = stop};
