/* Finite differences judge the backward ops of the ref device in f64; tests/test_ops.c then holds
 * every other device to them. Each case is a forward op, a random weighting of its output as the
 * loss, and the backward op. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "tests/check.h"
#include "tests/grad.h"

enum { MAXT = 12 };
struct probe {
    struct dev *d;
    struct tensor t[MAXT];
    int n;
    struct tensor out, dout; /* forward result; weights of the loss */
    void (*forward)(struct probe *p);
    struct seqs seqs;
    struct rope rope;
    bool turn;
    double one;
};

static struct tensor add(struct probe *p, double lo, double hi, int ndim, const int64_t *dim)
{
    struct tensor x = dev_tensor(p->d, DT_F64, ndim, dim);
    p->d->ops->rng_uniform(
        p->d, x, rng_open((struct rng_key){.seed = 7, .use = RNG_TEST, .item = (uint64_t)p->n}), 0,
        lo, hi);
    return p->t[p->n++] = x;
}
static struct tensor zeros(struct probe *p, int ndim, const int64_t *dim)
{
    struct tensor x = add(p, 0, 1, ndim, dim);
    p->d->ops->fill(p->d, x, 0);
    return x;
}
static void open_probe(struct probe *p)
{
    memset(p, 0, sizeof *p);
    p->d = dev_open("ref", DT_F64, 1);
}
static void close_probe(struct probe *p)
{
    for (int i = 0; i < p->n; i++) dev_free(p->d, p->t[i].data);
    dev_close(p->d);
}

static double loss(void *arg)
{
    struct probe *p = arg;
    p->forward(p);
    const double *y = p->out.data, *w = p->dout.data;
    double s = 0;
    for (int64_t i = 0; i < tensor_count(p->out); i++) s += y[i] * w[i];
    return s;
}
static void judge(struct probe *p, const char *op, const char *name, struct tensor x,
                  struct tensor g)
{
    const struct grad_case c = {op, loss, p, 1e-5, 1e-6};
    grad_worst(&c, name, x.data, g.data, tensor_count(x), 60, NULL);
}

/* t: q k v o lse do dq dk dv */
static void attn_forward(struct probe *p)
{
    p->d->ops->attn_fwd(
        p->d, &(struct attn_args){p->t[3], p->t[4], p->t[0], p->t[1], p->t[2], &p->seqs, 0.6});
}
static void test_attn(struct comm *w)
{
    (void)w;
    struct probe p;
    open_probe(&p);
    for (int i = 0; i < 3; i++) add(&p, -1, 1, 3, DIMS(9, 2, 6));
    zeros(&p, 3, DIMS(9, 2, 6));
    zeros(&p, 2, DIMS(9, 2));
    add(&p, -1, 1, 3, DIMS(9, 2, 6));
    for (int i = 0; i < 3; i++) zeros(&p, 3, DIMS(9, 2, 6));
    const int32_t qf[] = {0, 4, 4}, ql[] = {4, 0, 5}, kf[] = {3, 0, 1}, kl[] = {6, 1, 2};
    p.seqs = (struct seqs){3, qf, ql, kf, kl};
    p.forward = attn_forward;
    p.out = p.t[3];
    p.dout = p.t[5];
    attn_forward(&p);
    p.d->ops->attn_bwd(p.d, &(struct attn_grad_args){p.t[6], p.t[7], p.t[8], p.t[5], p.t[3], p.t[4],
                                                     p.t[0], p.t[1], p.t[2], &p.seqs, 0.6});
    judge(&p, "attention", "q", p.t[0], p.t[6]);
    judge(&p, "attention", "k", p.t[1], p.t[7]);
    judge(&p, "attention", "v", p.t[2], p.t[8]);
    close_probe(&p);
}

/* t: x w out rstd dy dx dw cos sin ... */
static void norm_forward(struct probe *p)
{
    static int16_t pos[] = {0, 1, 2, 2, 0, 1, -1, -1, -1, 1, 2, 0, 0, 0, 0};
    const struct tensor at = p->turn ? tensor_make(pos, DT_I16, 2, DIMS(5, 3)) : (struct tensor){0};
    p->d->ops->norm_rope_fwd(
        p->d, &(struct norm_rope_args){p->t[2], p->t[3], p->t[0], p->t[1], at, &p->rope, 2, 1e-6});
    if (p->one == 0) return; /* one: run the backward as well */
    p->d->ops->norm_rope_bwd(p->d, &(struct norm_rope_grad_args){p->t[5], p->t[6], p->t[4], p->t[0],
                                                                 p->t[3], p->t[1], at, &p->rope, 2,
                                                                 1e-6});
}
static void test_norm(struct comm *w)
{
    (void)w;
    for (int turn = 0; turn < 2; turn++) {
        struct probe p;
        open_probe(&p);
        p.turn = turn;
        add(&p, -1, 1, 2, DIMS(5, 12));
        add(&p, 0.5, 1.5, 1, DIMS(12));
        p.out = zeros(&p, 2, DIMS(5, 12));
        zeros(&p, 1, DIMS(5));
        p.dout = add(&p, -1, 1, 2, DIMS(5, 12));
        zeros(&p, 2, DIMS(5, 12));
        zeros(&p, 1, DIMS(12));
        const struct tensor angle = add(&p, 0, 3, 2, DIMS(3, 1)), c = zeros(&p, 2, DIMS(3, 1)),
                            s = zeros(&p, 2, DIMS(3, 1));
        for (int i = 0; i < 3; i++) { /* the backward relies on a rotation */
            ((double *)c.data)[i] = cos(((double *)angle.data)[i]);
            ((double *)s.data)[i] = sin(((double *)angle.data)[i]);
        }
        for (int axis = 0; axis < 3; axis++) {
            p.rope.pairs[axis] = 1;
            p.rope.cos[axis] = c;
            p.rope.sin[axis] = s;
        }
        p.forward = norm_forward;
        p.one = 1;
        norm_forward(&p);
        p.one = 0;
        judge(&p, "norm", "x", p.t[0], p.t[5]);
        judge(&p, "norm", "w", p.t[1], p.t[6]);
        close_probe(&p);
    }
}

/* t: x scale shift out mean rstd dy dx dscale dshift */
static void ln_forward(struct probe *p)
{
    p->d->ops->ln_fwd(p->d, &(struct ln_args){p->t[3], p->t[4], p->t[5], p->t[0], p->t[1], p->t[2],
                                              p->one, 1e-6});
}
static void test_ln(struct comm *w)
{
    (void)w;
    for (int B = 1; B < 3; B++) {
        struct probe p;
        open_probe(&p);
        p.one = B - 1;
        add(&p, -1, 1, 2, DIMS(6, 10));
        add(&p, -1, 1, 2, DIMS(B, 10));
        add(&p, -1, 1, 2, DIMS(B, 10));
        p.out = zeros(&p, 2, DIMS(6, 10));
        zeros(&p, 1, DIMS(6));
        zeros(&p, 1, DIMS(6));
        p.dout = add(&p, -1, 1, 2, DIMS(6, 10));
        zeros(&p, 2, DIMS(6, 10));
        zeros(&p, 2, DIMS(B, 10));
        zeros(&p, 2, DIMS(B, 10));
        p.forward = ln_forward;
        ln_forward(&p);
        p.d->ops->ln_bwd(p.d, &(struct ln_grad_args){p.t[7], p.t[8], p.t[9], p.t[6], p.t[0], p.t[4],
                                                     p.t[5], p.t[1], p.one});
        judge(&p, "layer norm", "x", p.t[0], p.t[7]);
        judge(&p, "layer norm", "scale", p.t[1], p.t[8]);
        judge(&p, "layer norm", "shift", p.t[2], p.t[9]);
        close_probe(&p);
    }
}

/* t: y gate x out dout dy dgate */
static void gate_forward(struct probe *p)
{
    p->d->ops->gate_add_fwd(p->d, &(struct gate_add_args){p->t[3], p->t[2], p->t[0], p->t[1], {0}});
}
static void gelu_forward(struct probe *p) { p->d->ops->gelu_fwd(p->d, p->t[3], p->t[0]); }
static void silu_forward(struct probe *p) { p->d->ops->silu_fwd(p->d, p->t[3], p->t[0]); }
static void test_small(struct comm *w)
{
    (void)w;
    struct probe p;
    open_probe(&p);
    add(&p, -3, 3, 2, DIMS(6, 7));
    add(&p, -1, 1, 2, DIMS(2, 7));
    add(&p, -1, 1, 2, DIMS(6, 7));
    p.out = zeros(&p, 2, DIMS(6, 7));
    p.dout = add(&p, -1, 1, 2, DIMS(6, 7));
    zeros(&p, 2, DIMS(6, 7));
    zeros(&p, 2, DIMS(2, 7));
    p.forward = gate_forward;
    p.d->ops->gate_add_bwd(
        p.d, &(struct gate_add_grad_args){
                 .dy = p.t[5], .dgate = p.t[6], .dout = p.t[4], .y = p.t[0], .gate = p.t[1]});
    judge(&p, "gate", "y", p.t[0], p.t[5]);
    judge(&p, "gate", "gate", p.t[1], p.t[6]);
    p.forward = gelu_forward;
    p.d->ops->gelu_bwd(p.d, p.t[5], p.t[4], p.t[0]);
    judge(&p, "gelu", "x", p.t[0], p.t[5]);
    p.forward = silu_forward;
    p.d->ops->silu_bwd(p.d, p.t[5], p.t[4], p.t[0]);
    judge(&p, "silu", "x", p.t[0], p.t[5]);
    close_probe(&p);
}

/* t: a b bias out aux dout da db dbias dy'; out = gelu(a b^T + bias), all gradients through gemm */
static void linear_forward(struct probe *p)
{
    p->d->ops->gemm(p->d, &(struct gemm_args){.c = p->t[3],
                                              .a = p->t[0],
                                              .b = p->t[1],
                                              .trans_b = true,
                                              .alpha = 1,
                                              .epilogue = EPI_BIAS_GELU,
                                              .bias = p->t[2],
                                              .aux = p->t[4]});
}
static void test_linear(struct comm *w)
{
    (void)w;
    struct probe p;
    open_probe(&p);
    add(&p, -1, 1, 2, DIMS(5, 6));
    add(&p, -1, 1, 2, DIMS(4, 6));
    add(&p, -1, 1, 1, DIMS(4));
    p.out = zeros(&p, 2, DIMS(5, 4));
    zeros(&p, 2, DIMS(5, 4));
    p.dout = add(&p, -1, 1, 2, DIMS(5, 4));
    zeros(&p, 2, DIMS(5, 6));
    zeros(&p, 2, DIMS(4, 6));
    zeros(&p, 1, DIMS(4));
    const struct tensor one = zeros(&p, 2, DIMS(4, 4)), dy = zeros(&p, 2, DIMS(5, 4));
    for (int i = 0; i < 4; i++) ((double *)one.data)[5 * i] = 1;
    p.forward = linear_forward;
    linear_forward(&p);
    p.d->ops->gemm(
        p.d, &(struct gemm_args){
                 .c = dy, .a = p.dout, .b = one, .alpha = 1, .epilogue = EPI_DGELU, .aux = p.t[4]});
    p.d->ops->gemm(p.d, &(struct gemm_args){.c = p.t[6], .a = dy, .b = p.t[1], .alpha = 1});
    p.d->ops->gemm(p.d, &(struct gemm_args){.c = p.t[7],
                                            .a = dy,
                                            .b = p.t[0],
                                            .trans_a = true,
                                            .alpha = 1,
                                            .beta = 1,
                                            .epilogue = EPI_BIAS_GRAD,
                                            .bias = p.t[8]});
    judge(&p, "linear", "x", p.t[0], p.t[6]);
    judge(&p, "linear", "w", p.t[1], p.t[7]);
    judge(&p, "linear", "bias", p.t[2], p.t[8]);
    close_probe(&p);
}

/* t: pred target sum dout; the loss is the sum over samples of 0.25 * sum */
static void loss_forward(struct probe *p)
{
    static int16_t pos[] = {0, 0, 0, -1, -1, -1, 0, 0, 1, 0, 1, 0};
    p->d->ops->fill(p->d, p->t[2], 0);
    p->d->ops->flow_loss(p->d, p->t[2], p->t[3], p->t[0], p->t[1],
                         tensor_make(pos, DT_I16, 2, DIMS(4, 3)), 0.25);
}
static void test_loss(struct comm *w)
{
    (void)w;
    struct probe p;
    open_probe(&p);
    add(&p, -1, 1, 2, DIMS(4, 8));
    add(&p, -1, 1, 2, DIMS(4, 8));
    p.out = zeros(&p, 1, DIMS(2));
    zeros(&p, 2, DIMS(4, 8));
    p.dout = zeros(&p, 1, DIMS(2));
    const struct tensor g = zeros(&p, 2, DIMS(4, 8));
    p.d->ops->fill(p.d, p.dout, 0.25);
    p.forward = loss_forward;
    loss_forward(&p);
    p.d->ops->cast(p.d, g, p.t[3]);
    judge(&p, "flow loss", "pred", p.t[0], g);
    close_probe(&p);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {.name = "finite differences: linear with gelu, gradients by epilogues",
         .run = test_linear},
        {.name = "finite differences: attention over ranges", .run = test_attn},
        {.name = "finite differences: RMS norm and rotation", .run = test_norm},
        {.name = "finite differences: layer norm and modulation", .run = test_ln},
        {.name = "finite differences: gate, gelu, silu", .run = test_small},
        {.name = "finite differences: flow loss", .run = test_loss},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
