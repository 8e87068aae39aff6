#include "tests/fixture.h"

#include <stdlib.h>
#include <string.h>

_Thread_local struct dit_run fixture_run;

struct model_config fixture_model(void)
{
    return (struct model_config){.dim = 24,
                                 .ffn_dim = 40,
                                 .freq_dim = 16,
                                 .in_dim = 3,
                                 .out_dim = 3,
                                 .num_heads = 2,
                                 .num_layers = 4,
                                 .text_len = 5,
                                 .text_dim = 8,
                                 .eps = 1e-6,
                                 .skiparse_model_type = SKIPARSE_DUAL_END,
                                 .sparse_ratio = 2,
                                 .num_full_blocks = 0,
                                 .skiparse_dim = 1,
                                 .skiparse_strict = false};
}

void fixture_open(struct fixture *f, struct comm *world, const struct fixture_opts *o)
{
    memset(f, 0, sizeof *f);
    struct mesh_degrees d = o->degrees;
    if (!d.ssp) d = (struct mesh_degrees){1, 1, world->size};
    f->dev = dev_open(o->device, o->compute, o->threads ? o->threads : 1);
    f->dev->poison = true;
    mesh_init(&f->mesh, world, d);
    int most = o->t > o->h ? o->t : o->h;
    most = o->w > most ? o->w : most;
    f->dit = dit_new(f->dev, &o->model, o->recompute, o->recompute_blocks, most);
    if (o->lora)
        f->lora =
            lora_new(f->dev, f->dit, o->lora,
                     (struct lora_opts){
                         .optimizer = o->fsdp.optimizer, .ema = o->fsdp.ema, .old = o->lora_old});
    f->fsdp = fsdp_new(f->dev, &f->mesh, f->dit->unit, f->dit->num_units, o->fsdp);
    f->plan =
        plan_shape(f->dev, &f->mesh, &o->model, o->batch, o->t, o->h, o->w, (int)o->model.text_len);
    const size_t room = o->room ? (size_t)o->room : 1;
    arena_init(&f->keep, f->dev, room * (size_t)192 << 20, "keep");
    arena_init(&f->tmp, f->dev, room * (size_t)96 << 20, "tmp");
    f->ctx = (struct ctx){.dev = f->dev,
                          .mesh = &f->mesh,
                          .hooks = fsdp_hooks(f->fsdp),
                          .keep = &f->keep,
                          .tmp = &f->tmp};
}

void fixture_close(struct fixture *f)
{
    arena_free(&f->keep);
    arena_free(&f->tmp);
    plan_free(f->plan);
    fsdp_free(f->fsdp);
    lora_free(f->lora);
    dit_free(f->dit, f->dev);
    mesh_free(&f->mesh);
    dev_close(f->dev);
}

struct dryrun_in fixture_dryrun(const struct fixture_opts *o, const struct comm *world)
{
    return (struct dryrun_in){.model = o->model,
                              .compute = o->compute,
                              .recompute = o->recompute,
                              .recompute_blocks = o->recompute_blocks,
                              .ranks = world->size,
                              .rank = world->rank,
                              .degrees = o->degrees,
                              .fsdp = o->fsdp,
                              .lora = o->lora,
                              .batch = o->batch,
                              .t = o->t,
                              .h = o->h,
                              .w = o->w,
                              .train = true};
}

/* Latent array on the device in S. */
static struct tensor latent(struct fixture *f, const double *host, int64_t channels)
{
    const struct shape_plan *p = f->plan;
    struct tensor x = arena_new(&f->keep, dtype_state(f->dev->compute), 5,
                                DIMS(p->batch, channels, p->grid.t, 2 * p->grid.h, 2 * p->grid.w));
    if (host)
        dev_put_f64(f->dev, x, host);
    else
        f->dev->ops->fill(f->dev, x, 0);
    return x;
}

static struct tensor rows_of(struct fixture *f, struct tensor x, const struct stage *s,
                             enum patch_order order, enum dtype t)
{
    struct tensor state = arena_new(&f->keep, x.dtype, 2, DIMS(s->layout->rows, 4 * x.dim[1]));
    f->dev->ops->patch_rows(f->dev, state, x, s->pos, order);
    if (t == x.dtype) return state;
    struct tensor r = arena_new(&f->keep, t, 2, state.dim);
    f->dev->ops->cast(f->dev, r, state);
    return r;
}

static void latent_out(struct fixture *f, double *out, struct tensor rows, const struct stage *s,
                       enum patch_order order)
{
    struct tensor state = rows;
    if (rows.dtype != dtype_state(f->dev->compute)) {
        state = arena_new(&f->keep, dtype_state(f->dev->compute), 2, rows.dim);
        f->dev->ops->cast(f->dev, state, rows);
    }
    struct tensor x = latent(f, NULL, rows.dim[1] / 4);
    f->dev->ops->unpatch_rows(f->dev, x, state, s->pos, order);
    dev_get_f64(f->dev, out, x);
}

double fixture_step(struct fixture *f, const struct step_io *io)
{
    const struct model_config *m = &f->dit->config;
    const enum dtype T = f->dev->compute;
    const struct stage *first = dit_first_stage(f->plan), *last = dit_last_stage(f->plan);
    const int64_t B = f->plan->batch;
    arena_release(&f->keep, 0);
    arena_release(&f->tmp, 0);
    struct tensor text = arena_new(&f->keep, T, 2, DIMS(B * m->text_len, m->text_dim));
    dev_put_f64(f->dev, text, io->text);
    const struct dit_input in = {rows_of(f, latent(f, io->xt, m->in_dim), first, PATCH_IN, T), text,
                                 io->t};
    struct tensor target =
        rows_of(f, latent(f, io->target, m->out_dim), last, PATCH_OUT, dtype_state(T));
    dit_forward(&f->ctx, f->dit, f->plan, in, io->backward, &fixture_run);
    struct tensor sum = arena_new(&f->keep, DT_F64, 1, DIMS(B));
    f->dev->ops->fill(f->dev, sum, 0);
    struct tensor dout = {0}, dxt = {0}, dtext = {0};
    if (io->backward) dout = arena_like(&f->keep, fixture_run.out);
    f->dev->ops->flow_loss(f->dev, sum, dout, fixture_run.out, target, last->pos, 1 / io->share);
    if (io->backward) {
        if (io->dxt) dxt = arena_like(&f->keep, in.xt);
        if (io->dtext) dtext = arena_like(&f->keep, in.text);
        dit_backward(&f->ctx, f->dit, &fixture_run, dout, dxt, dtext);
        fsdp_finish_backward(f->fsdp, true);
        if (io->dxt) latent_out(f, io->dxt, dxt, first, PATCH_IN);
        if (io->dtext) dev_get_f64(f->dev, io->dtext, dtext);
    }
    if (io->v) latent_out(f, io->v, fixture_run.out, last, PATCH_OUT);
    double *sums = malloc((size_t)B * sizeof *sums), loss = 0;
    CHECK(sums, "out of memory");
    dev_get_f64(f->dev, sums, sum);
    for (int64_t b = 0; b < B; b++) loss += sums[b];
    free(sums);
    return loss / io->share;
}
