#include "tests/problem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double *problem_draw(int64_t n, uint64_t item)
{
    double *x = calloc((size_t)n, sizeof *x);
    const struct rng_stream s =
        rng_open((struct rng_key){.seed = 9, .use = RNG_TEST, .item = item});
    for (int64_t i = 0; i < n; i++) x[i] = rng_normal_at(s, (uint64_t)i);
    return x;
}

struct problem problem_new(const struct model_config *m, int first, int batch, int t, int h, int w)
{
    const int64_t per = m->in_dim * t * h * w * 4, out = m->out_dim * t * h * w * 4;
    const int64_t text = m->text_len * m->text_dim;
    struct problem p = {.n = per * batch, .out_n = out * batch, .text_n = text * batch};
    p.xt = calloc((size_t)p.n, sizeof(double));
    p.target = calloc((size_t)p.out_n, sizeof(double));
    p.text = calloc((size_t)p.text_n, sizeof(double));
    for (int b = 0; b < batch; b++) {
        const uint64_t g = (uint64_t)(first + b);
        double *parts[3] = {problem_draw(per, 3 * g), problem_draw(out, 3 * g + 1),
                            problem_draw(text, 3 * g + 2)};
        memcpy(p.xt + b * per, parts[0], (size_t)per * sizeof(double));
        memcpy(p.target + b * out, parts[1], (size_t)out * sizeof(double));
        memcpy(p.text + b * text, parts[2], (size_t)text * sizeof(double));
        for (int k = 0; k < 3; k++) free(parts[k]);
        p.t[b] = 37.5 + 211.25 * (double)(g % 5);
    }
    return p;
}

void problem_free(struct problem *p)
{
    free(p->xt);
    free(p->target);
    free(p->text);
}

struct step_io problem_io(const struct problem *p, double share)
{
    return (struct step_io){
        .xt = p->xt, .target = p->target, .text = p->text, .t = p->t, .share = share};
}

void problem_fill_params(struct fixture *f)
{
    for (int u = 0; u < f->dit->num_units; u++)
        for (int i = 0; i < f->dit->unit[u].num_params; i++) {
            const struct param *p = &f->dit->unit[u].param[i];
            const int64_t n = param_count(p);
            double *x = problem_draw(n, rng_hash(p->name));
            const double scale = p->ndim >= 2 ? 1 / sqrt((double)n / (double)p->dim[0]) : 0.2;
            for (int64_t k = 0; k < n; k++) x[k] = x[k] * scale + (p->init == INIT_ONE ? 1 : 0);
            fsdp_put(f->fsdp, STATE_MASTER, p->name, x);
            free(x);
        }
}

double *problem_grads(struct fixture *f, int64_t *n)
{
    *n = dit_num_params(f->dit);
    double *g = calloc((size_t)*n, sizeof *g), *at = g;
    for (int u = 0; u < f->dit->num_units; u++)
        for (int i = 0; i < f->dit->unit[u].num_params; i++) {
            fsdp_get(f->fsdp, STATE_GRAD, f->dit->unit[u].param[i].name, at);
            at += param_count(&f->dit->unit[u].param[i]);
        }
    return g;
}

void problem_fill_adapters(struct fixture *f)
{
    for (int i = 0; i < f->lora->num_params; i++) {
        const struct param *p = &f->lora->param[i];
        const int64_t n = param_count(p);
        double *x = problem_draw(n, rng_hash(p->name));
        for (int64_t k = 0; k < n; k++) x[k] /= sqrt((double)p->dim[1]);
        lora_put(f->lora, STATE_LORA, p->name, x);
        free(x);
    }
}

double *problem_adapter_grads(struct fixture *f, int64_t *n)
{
    *n = lora_num_elements(f->lora);
    double *g = calloc((size_t)*n, sizeof *g), *at = g;
    for (int i = 0; i < f->lora->num_params; i++) {
        lora_get(f->lora, STATE_GRAD, f->lora->param[i].name, at);
        at += param_count(&f->lora->param[i]);
    }
    return g;
}

double *problem_share(struct comm *world, double *x, int64_t *n)
{
    comm_broadcast_bytes(world, n, sizeof *n, 0, "number of values");
    if (!x) x = calloc((size_t)*n + 1, sizeof *x);
    comm_broadcast_bytes(world, x, (size_t)*n * sizeof *x, 0, "values");
    return x;
}

double problem_fd_loss(void *arg)
{
    const struct problem_fd *d = arg;
    const struct step_io io = problem_io(d->p, (double)d->p->out_n);
    return fixture_step(d->f, &io);
}

static void fd_put(void *arg)
{
    const struct problem_fd *d = arg;
    if (d->adapters)
        lora_put(d->f->lora, STATE_LORA, d->param->name, d->x);
    else
        fsdp_put(d->f->fsdp, STATE_MASTER, d->param->name, d->x);
}

static void fd_get(const struct problem_fd *d, bool grad, double *x)
{
    if (d->adapters)
        lora_get(d->f->lora, grad ? STATE_GRAD : STATE_LORA, d->param->name, x);
    else
        fsdp_get(d->f->fsdp, grad ? STATE_GRAD : STATE_MASTER, d->param->name, x);
}

double problem_fd_worst(const struct grad_case *c, struct problem_fd *d, const struct param *q,
                        int n, int entries)
{
    double worst = 0;
    for (int i = 0; i < n; i++) {
        d->param = &q[i];
        double *g = calloc((size_t)param_count(d->param), sizeof *g);
        d->x = calloc((size_t)param_count(d->param), sizeof *d->x);
        fd_get(d, true, g);
        fd_get(d, false, d->x);
        worst =
            fmax(worst, grad_worst(c, q[i].name, d->x, g, param_count(d->param), entries, fd_put));
        free(g);
        free(d->x);
    }
    return worst;
}
