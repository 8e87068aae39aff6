#include "train/dryrun.h"

#include <stdlib.h>
#include <string.h>

#include "model/sampler.h"

static struct dryrun_phase phase_of(const struct dev_counters *c, const struct dev_counters *before)
{
    return (struct dryrun_phase){.gemm_flops = c->gemm_flops - before->gemm_flops,
                                 .attn_flops = c->attn_fwd_flops + c->attn_bwd_flops -
                                               before->attn_fwd_flops - before->attn_bwd_flops,
                                 .row_bytes = c->row_bytes - before->row_bytes};
}

static void count_states(struct fsdp *f, struct dryrun_out *out)
{
    int n;
    const struct shard *s = fsdp_shards(f, &n);
    for (int i = 0; i < n; i++) {
        if (!s[i].frozen) out->master_bytes += tensor_bytes(s[i].master);
        if (s[i].frozen || s[i].wire.data != s[i].master.data)
            out->wire_bytes += tensor_bytes(s[i].wire);
        if (s[i].grad.data) out->grad_bytes += tensor_bytes(s[i].grad);
        if (s[i].m.data) out->moment_bytes += tensor_bytes(s[i].m) + tensor_bytes(s[i].v);
        if (s[i].ema.data) out->ema_bytes += tensor_bytes(s[i].ema);
        out->params_here += s[i].master.dim[0];
    }
    out->slot_bytes = fsdp_slot_bytes(f);
}

static void pass(struct ctx *c, struct dit *d, struct shape_plan *p, const struct dryrun_in *in,
                 struct dryrun_out *out)
{
    const struct model_config *m = &in->model;
    const enum dtype T = in->compute, S = dtype_state(T);
    const struct stage *first = dit_first_stage(p), *last = dit_last_stage(p);
    struct dit_run *run = calloc(1, sizeof *run);
    CHECK(run, "out of memory");
    double t[1024] = {0};
    CHECK(in->batch <= 1024, "micro-batch of %d", in->batch);
    /* what the trainer holds beside the model: latents, noisy rows, target, text */
    arena_new(c->keep, S, 5, DIMS(in->batch, m->in_dim, in->t, 2 * in->h, 2 * in->w));
    struct tensor xt = arena_new(c->keep, T, 2, DIMS(first->layout->rows, 4 * m->in_dim));
    struct tensor target = arena_new(c->keep, S, 2, DIMS(last->layout->rows, 4 * m->out_dim));
    struct tensor text =
        arena_new(c->keep, T, 2, DIMS((int64_t)in->batch * m->text_len, m->text_dim));
    arena_new(c->keep, S, 2, text.dim);
    const struct dev_counters start = c->dev->count;
    dit_forward(c, d, p, (struct dit_input){xt, text, t}, in->train, run);
    const struct dev_counters mid = c->dev->count;
    out->forward = phase_of(&mid, &start);
    struct tensor sum = arena_new(c->keep, DT_F64, 1, DIMS(in->batch));
    if (in->train) {
        struct tensor dout = arena_like(c->keep, run->out);
        c->dev->ops->flow_loss(c->dev, sum, dout, run->out, target, last->pos, 1);
        dit_backward(c, d, run, dout, (struct tensor){0}, (struct tensor){0});
        out->backward = phase_of(&c->dev->count, &mid);
    }
    free(run);
}

/* A step of sampling with guidance. */
static void sampling(struct ctx *c, const struct dit *d, const struct dryrun_in *in)
{
    const struct model_config *m = &in->model;
    const int samples = in->batched ? in->batch / 2 : in->batch;
    const double sigma[] = {1, 0};
    struct rng_key noise[256] = {0};
    CHECK(samples <= 256, "sampling of %d videos at once", samples);
    struct sampler s;
    sampler_init(&s, c, d, samples, in->t, in->h, in->w, in->batched);
    const struct tensor text =
        arena_new(c->keep, in->compute, 2, DIMS(samples * m->text_len, m->text_dim));
    const struct tensor null = arena_like(c->keep, text);
    sampler_run(
        &s,
        &(struct sampler_job){
            .sigma = sigma, .steps = 1, .guidance = 2, .text = text, .null = null, .noise = noise});
    sampler_free(&s);
}

/* What else runs in the same arenas: validation beside training, forward only, or the sampler
 * around the forward pass that was counted. */
static void walk_beside(struct ctx *c, struct dit *d, struct shape_plan *p,
                        const struct dryrun_in *in)
{
    arena_release(c->keep, 0);
    arena_release(c->tmp, 0);
    if (!in->train) {
        c->keep->peak = c->tmp->peak = 0;
        sampling(c, d, in);
        return;
    }
    struct dryrun_in forward = *in;
    struct dryrun_out unused;
    forward.train = false;
    pass(c, d, p, &forward, &unused);
}

void dryrun(const struct dryrun_in *in, struct dryrun_out *out)
{
    memset(out, 0, sizeof *out);
    struct dev *dev = dev_open("null", in->compute, 1);
    dev->stands_for = in->stands_for;
    if (in->device && !in->stands_for)
        dev->stands_for = dev_open(in->device, in->compute, in->threads);
    struct comm *world = comm_null(in->ranks, in->rank, dev);
    struct mesh mesh;
    mesh_init(&mesh, world, in->degrees);
    int most = in->t > in->h ? in->t : in->h;
    most = in->w > most ? in->w : most;
    struct dit *d = dit_new(dev, &in->model, in->recompute, in->recompute_blocks, most);
    if (in->by_block) dit_set_policies(d, in->policy);
    if (!in->train) dit_freeze(d);
    struct lora *lora = NULL;
    if (in->lora && in->lora->rank)
        lora = lora_new(dev, d, in->lora,
                        (struct lora_opts){.optimizer = in->fsdp.optimizer,
                                           .ema = in->fsdp.ema,
                                           .old = in->lora_old});
    struct fsdp *f = fsdp_new(dev, &mesh, d->unit, d->num_units, in->fsdp);
    struct shape_plan *p =
        plan_shape(dev, &mesh, &in->model, in->batch, in->t, in->h, in->w, (int)in->model.text_len);
    out->params = dit_num_params(d);
    out->rows = out->rows_least = out->rows_most = dit_first_stage(p)->layout->rows;
    for (int i = 0; i <= p->num_layers; i++) { /* stages that blocks run in */
        const int64_t rows = p->stage[p->at[i]].layout->rows;
        out->rows_least = rows < out->rows_least ? rows : out->rows_least;
        out->rows_most = rows > out->rows_most ? rows : out->rows_most;
    }
    count_states(f, out);
    out->lora_bytes = lora ? lora_bytes(lora) : 0;
    out->other_bytes = dev->count.bytes_now - out->lora_bytes - out->master_bytes -
                       out->wire_bytes - out->grad_bytes - out->moment_bytes - out->ema_bytes -
                       out->slot_bytes + 2 * (size_t)DRYRUN_SPARE;
    struct arena keep, tmp;
    arena_init(&keep, dev, (size_t)1 << DRY_ARENA_SHIFT, "keep");
    arena_init(&tmp, dev, (size_t)1 << DRY_ARENA_SHIFT, "tmp");
    const size_t before = dev->count.bytes_now;
    struct ctx c = {.dev = dev, .mesh = &mesh, .hooks = fsdp_hooks(f), .keep = &keep, .tmp = &tmp};
    if (in->body)
        in->body(in->body_arg, &c, d);
    else
        pass(&c, d, p, in, out);
    if (in->train) fsdp_finish_backward(f, true);
    if (in->train && lora) lora_reduce_grads(lora, mesh.axis[AXIS_WORLD]);
    for (int a = 0; a < AXIS_COUNT; a++) {
        const struct comm *x = mesh.axis[a];
        memcpy(out->comm[a], x->count, sizeof out->comm[a]);
        if (in->on_comm) in->on_comm(in->on_comm_arg, (enum axis)a, x->entry, x->num_entries);
    }
    if (!in->body) walk_beside(&c, d, p, in);
    out->keep_bytes = keep.peak;
    out->tmp_bytes = tmp.peak;
    out->device_bytes = dev->count.own_bytes;
    out->other_bytes +=
        dev->count.bytes_peak - before - out->device_bytes; /* tables of the walks */
    arena_free(&keep);
    arena_free(&tmp);
    plan_free(p);
    fsdp_free(f);
    lora_free(lora);
    dit_free(d, dev);
    mesh_free(&mesh);
    comm_free(world);
    if (!in->stands_for) dev_close(dev->stands_for);
    dev_close(dev);
}

size_t dryrun_bytes(const struct dryrun_out *o)
{
    return o->master_bytes + o->moment_bytes + o->ema_bytes + o->grad_bytes + o->wire_bytes +
           o->slot_bytes + o->lora_bytes + o->other_bytes + o->keep_bytes + o->tmp_bytes +
           o->device_bytes;
}

void dryrun_model_flops(const struct dryrun_in *in, struct dryrun_phase *forward,
                        struct dryrun_phase *backward)
{
    struct dryrun_in one = *in;
    one.ranks = 1;
    one.rank = 0;
    one.degrees = (struct mesh_degrees){1, 1, 1};
    one.recompute = RECOMPUTE_NONE;
    one.recompute_blocks = NULL;
    one.by_block = false;
    one.train = true;
    one.fsdp.optimizer = true;
    one.on_comm = NULL;
    one.body = NULL;
    struct dryrun_out out;
    dryrun(&one, &out);
    *forward = out.forward;
    *backward = out.backward;
}
