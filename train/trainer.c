#include "train/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/fault.h"
#include "core/log.h"
#include "parallel/launch.h"

int64_t trainer_global_batch(const struct settings *s, int dp)
{
    return s->data.global_batch_size ? s->data.global_batch_size
                                     : dp * s->data.batch_size * s->gradient_accumulation_steps;
}

/* With a global batch the accumulation follows from it; batch_size null: one pass per accumulation
 * step. */
int trainer_micro_batch(const struct settings *s, int dp)
{
    const int64_t gb = trainer_global_batch(s, dp);
    const int64_t unit =
        dp * (s->data.batch_size ? s->data.batch_size : s->gradient_accumulation_steps);
    if (gb % unit)
        err_stop(
            RC_CONFIG,
            "data_config.global_batch_size: %lld is not a multiple of %lld, what %d data ranks "
            "take in one pass",
            (long long)gb, (long long)unit, dp);
    return (int)(s->data.batch_size ? s->data.batch_size : gb / unit);
}

struct session_shape trainer_shape(const struct settings *s, const struct dataset *d, int ranks)
{
    const struct mesh_degrees m = session_degrees(s, ranks);
    return (struct session_shape){.batch = trainer_micro_batch(s, ranks / (m.ssp * m.sp)),
                                  .t = d->t,
                                  .h = d->h,
                                  .w = d->w,
                                  .channels = d->c};
}

void trainer_init(struct trainer *t, struct session *ses, struct dataset *d)
{
    const struct settings *s = ses->set;
    const struct scheduler_config *c = &s->scheduler;
    *t = (struct trainer){.ses = ses, .data = d};
    t->flow = (struct flow_config){c->use_dynamic_shifting,
                                   c->use_logitnorm_time_sampling,
                                   c->shift,
                                   c->base_shift,
                                   c->max_shift,
                                   c->logit_mean,
                                   c->logit_std,
                                   c->base_image_seq,
                                   c->max_image_seq};
    t->shift = flow_shift_for(&t->flow, d->h, d->w);
    t->schedule = (struct schedule){s->optimizer.lr, s->lr_schedule.min_lr_ratio,
                                    s->lr_schedule.kind == LR_COSINE, s->lr_schedule.warmup_steps,
                                    s->training_iteration};
    t->global_batch = trainer_global_batch(s, ses->mesh.dp);
    t->num_micro = (int)(t->global_batch / ses->mesh.dp / ses->shape.batch);
    clip_init(&t->state.clip, s->init_max_grad_norm);
    const int64_t latent = d->c * d->t * d->h * d->w, text = s->model.text_len * s->model.text_dim;
    t->host =
        malloc((size_t)ses->shape.batch * (size_t)(latent > text ? latent : text) * sizeof(float));
    CHECK(t->host, "out of memory");
    if (s->model.text_dim != d->text_dim)
        err_stop(RC_CONFIG,
                 "model_config.text_dim is %lld, but the data set %s has text rows of %lld",
                 (long long)s->model.text_dim, d->path, (long long)d->text_dim);
}

/* A stop was asked for, and the batch does not come: no step will end in time. */
static bool too_late(double waited) { return launch_signal() && waited > 10; }

void trainer_start(struct trainer *t)
{
    const struct settings *s = t->ses->set;
    const struct loader_opts o = {.seed = (uint64_t)s->seed,
                                  .dp_rank = t->ses->mesh.axis[AXIS_DP]->rank,
                                  .dp_size = t->ses->mesh.dp,
                                  .batch_size = t->ses->shape.batch,
                                  .global_batch = t->global_batch,
                                  .text_len = s->model.text_len,
                                  .text_drop_ratio = s->data.text_drop_ratio,
                                  .shuffle = s->data.shuffle,
                                  .give_up = too_late};
    t->loader = loader_open(t->data, o, (uint64_t)t->state.cursor);
}

void trainer_free(struct trainer *t)
{
    if (t->loader) loader_close(t->loader);
    free(t->host);
}

/* Host floats to a new tensor in S. */
static struct tensor upload(struct session *s, const float *host, int ndim, const int64_t *dim)
{
    struct tensor x = arena_new(&s->keep, ctx_state(&s->ctx), ndim, dim);
    if (x.dtype == DT_F32) {
        dev_put(s->dev, x, host);
        return x;
    }
    const int64_t n = tensor_count(x);
    double *wide = malloc((size_t)n * sizeof *wide);
    CHECK(wide, "out of memory");
    for (int64_t i = 0; i < n; i++) wide[i] = (double)host[i];
    dev_put_f64(s->dev, x, wide);
    free(wide);
    return x;
}

struct noisy { /* a micro-batch ready for the model */
    struct dit_input in;
    struct tensor target;
    double sigma[1024], t[1024];
    struct rng_key noise[1024];
};

static void make_noisy(struct trainer *t, const float *latent, const float *text, struct noisy *n)
{
    struct session *s = t->ses;
    const struct model_config *m = &s->dit->config;
    const struct stage *first = dit_first_stage(s->plan), *last = dit_last_stage(s->plan);
    const int64_t B = s->shape.batch;
    struct tensor z =
        upload(s, latent, 5, DIMS(B, s->shape.channels, s->shape.t, s->shape.h, s->shape.w));
    struct tensor text_s = upload(s, text, 2, DIMS(B * m->text_len, m->text_dim));
    struct tensor text_t = text_s;
    if (ctx_compute(&s->ctx) != text_s.dtype) {
        text_t = arena_new(&s->keep, ctx_compute(&s->ctx), 2, text_s.dim);
        s->dev->ops->cast(s->dev, text_t, text_s);
    }
    struct tensor xt =
        arena_new(&s->keep, ctx_compute(&s->ctx), 2, DIMS(first->layout->rows, 4 * m->in_dim));
    n->target =
        arena_new(&s->keep, ctx_state(&s->ctx), 2, DIMS(last->layout->rows, 4 * m->out_dim));
    for (int64_t b = 0; b < B; b++) n->t[b] = 1000 * n->sigma[b];
    struct flow_args a = {.xt = xt,
                          .target = n->target,
                          .z = z,
                          .pos = first->pos,
                          .sigma = n->sigma,
                          .noise = n->noise};
    if (first == last) {
        s->dev->ops->flow_rows(s->dev, &a);
    } else { /* x_t in the rows of the first stage, the target in those of the last */
        const size_t mark = arena_mark(&s->tmp);
        a.target = arena_new(&s->tmp, n->target.dtype, 2, xt.dim); /* not used */
        s->dev->ops->flow_rows(s->dev, &a);
        a.target = n->target;
        a.pos = last->pos;
        a.xt = arena_new(&s->tmp, xt.dtype, 2, n->target.dim); /* not used */
        s->dev->ops->flow_rows(s->dev, &a);
        arena_release(&s->tmp, mark);
    }
    n->in = (struct dit_input){xt, text_t, n->t};
}

/* Sum of squared errors per sample into sums[B] (own rows only). */
static void loss_sums(struct session *s, struct tensor dout, const struct dit_run *run,
                      struct tensor target, double scale, double *sums)
{
    struct tensor sum = arena_new(&s->keep, DT_F64, 1, DIMS(s->shape.batch));
    s->dev->ops->fill(s->dev, sum, 0);
    s->dev->ops->flow_loss(s->dev, sum, dout, run->out, target, dit_last_stage(s->plan)->pos,
                           scale);
    dev_get(s->dev, sums, sum);
}

static int64_t elements(const struct trainer *t)
{
    const struct session_shape *x = &t->ses->shape;
    return t->ses->dit->config.out_dim * x->t * x->h * x->w;
}

/* Forward and backward of one micro-batch; returns its share of the loss. */
static double micro_step(struct trainer *t)
{
    struct session *s = t->ses;
    struct noisy n;
    double sums[1024], loss = 0;
    comm_context(s->world, "waiting for data");
    const struct batch *batch = loader_next(t->loader);
    comm_context(s->world, NULL);
    arena_release(&s->keep, 0);
    for (int b = 0; b < batch->n; b++) {
        const uint64_t g = batch->sample[b];
        const uint64_t seed = (uint64_t)s->set->seed;
        n.sigma[b] = flow_shift(
            flow_base(&t->flow, (struct rng_key){.seed = seed, .use = RNG_SIGMA, .item = g}),
            t->shift);
        n.noise[b] = (struct rng_key){.seed = seed, .use = RNG_NOISE, .item = g};
    }
    make_noisy(t, batch->latent, batch->text, &n);
    dit_forward(&s->ctx, s->dit, s->plan, n.in, true, s->run);
    struct tensor dout = arena_like(&s->keep, s->run->out);
    const double share = (double)(t->global_batch * elements(t));
    double scale = 1 / share;
    if (s->set->grad_scale_ref) scale /= s->mesh.axis[AXIS_SEQ]->size;
    loss_sums(s, dout, s->run, n.target, scale, sums);
    dit_backward(&s->ctx, s->dit, s->run, dout, (struct tensor){0}, (struct tensor){0});
    for (int b = 0; b < batch->n; b++) loss += sums[b];
    return loss / share;
}

static double local_norm_squared(struct session *s)
{
    int n, trained = 0;
    const struct shard *sh = fsdp_shards(s->fsdp, &n);
    struct tensor *grad = calloc((size_t)n + 1, sizeof *grad);
    CHECK(grad, "out of memory");
    for (int i = 0; i < n; i++)
        if (!sh[i].frozen) grad[trained++] = sh[i].grad;
    arena_release(&s->keep, 0);
    struct tensor sum = arena_new(&s->keep, DT_F64, 1, DIMS(1));
    s->dev->ops->fill(s->dev, sum, 0);
    s->dev->ops->sumsq(s->dev, sum, grad, trained);
    free(grad);
    double v;
    dev_get(s->dev, &v, sum);
    return v;
}

static struct tensor range(struct tensor t, int64_t from, int64_t to)
{
    return t.data ? tensor_rows(t, from, to - from) : t;
}

/* Each shard in two parts: decayed, then not decayed. */
static int list_shards(const struct session *s, struct update_shard *list)
{
    int n, found = 0;
    const struct shard *sh = fsdp_shards(s->fsdp, &n);
    for (int i = 0; i < n; i++) {
        const bool wired = sh[i].wire.data != sh[i].master.data;
        const int64_t cut[3] = {0, sh[i].decay_end, sh[i].frozen_from};
        for (int part = 0; part < 2; part++) {
            const int64_t a = cut[part], b = cut[part + 1];
            if (a >= b) continue;
            list[found] = (struct update_shard){.p = range(sh[i].master, a, b),
                                                .m = range(sh[i].m, a, b),
                                                .v = range(sh[i].v, a, b),
                                                .g = range(sh[i].grad, a, b),
                                                .ema = range(sh[i].ema, a, b),
                                                .weight_decay =
                                                    part == 0 ? s->set->optimizer.weight_decay : 0};
            if (wired) list[found].wire = range(sh[i].wire, a, b);
            found++;
        }
    }
    return found;
}

static void update(struct trainer *t, double coef, double lr)
{
    struct session *s = t->ses;
    const struct optimizer_config *o = &s->set->optimizer;
    const double b1 = o->betas.v[0], b2 = o->betas.v[1];
    const int64_t tau = ++t->state.adam_steps;
    double keep = -1;
    if (s->set->ema_decay > 0 && (t->state.step + 1) % s->set->ema_update_interval == 0)
        keep = ema_decay_at(s->set->ema_decay, s->set->ema_warmup, t->state.ema_updates++);
    int n;
    fsdp_shards(s->fsdp, &n);
    struct update_shard *list = calloc(2 * (size_t)n + 1, sizeof *list);
    CHECK(list, "out of memory");
    const struct update_args a = {.shard = list,
                                  .num_shards = list_shards(s, list),
                                  .lr = lr,
                                  .beta1 = b1,
                                  .beta2 = b2,
                                  .eps = o->eps,
                                  .bias1 = 1 - pow(b1, (double)tau),
                                  .bias2 = 1 - pow(b2, (double)tau),
                                  .grad_scale = coef,
                                  .ema_keep = keep};
    s->dev->ops->update(s->dev, &a);
    free(list);
}

static enum clip_kind clip_rule(const struct settings *s)
{
    return s->grad_clip == CLIP_FIXED             ? CLIP_RULE_FIXED
           : s->grad_clip == CLIP_ADAPTIVE_CAPPED ? CLIP_RULE_ADAPTIVE_CAPPED
                                                  : CLIP_RULE_ADAPTIVE;
}

static double comm_seconds(const struct session *s)
{
    double sum = 0;
    for (int a = 0; a < AXIS_COUNT; a++) sum += s->mesh.axis[a]->seconds;
    return sum;
}

static uint64_t collectives_begun(const struct session *s)
{
    uint64_t n = 0;
    for (int a = 0; a < AXIS_COUNT; a++) n += s->mesh.axis[a]->seq;
    return n;
}

/* All ranks begin equally many collectives in a step. One that left one out may have met another
 * of the same size, which MPI cannot notice; here it is seen before the weights change: equal
 * numbers n on W ranks have W * sum(n*n) = sum(n)^2. */
static void require_same_count(const struct session *s, double mine, double sum, double squares)
{
    const double W = s->world->size;
    if (W * squares == sum * sum) return;
    err_stop(RC_HANG,
             "ranks disagree on how many collectives a step has: %.0f on this rank, %.4g on "
             "average; one was left out or is too much, the step is not used (--check-comm names "
             "it)",
             mine, sum / W);
}

struct step_result trainer_step(struct trainer *t, bool clock, bool preempt)
{
    struct session *s = t->ses;
    const double t0 = log_seconds(), comm0 = comm_seconds(s),
                 data0 = loader_wait_seconds(t->loader);
    err_push("training step %lld", (long long)t->state.step);
    fault_hit("step");
    double loss = 0;
    const uint64_t before = collectives_begun(s);
    fsdp_zero_grads(s->fsdp);
    for (int m = 0; m < t->num_micro; m++) {
        loss += micro_step(t);
        fsdp_finish_backward(s->fsdp, m + 1 == t->num_micro);
    }
    /* one reduction carries all that steers: replicas hold equal norms, signals are or-ed by sum */
    const int replicas = s->mesh.axis[AXIS_REPLICA]->size;
    const double begun = (double)(collectives_begun(s) - before);
    double x[6] = {loss,
                   local_norm_squared(s) / replicas,
                   launch_signal() || preempt ? 1 : 0,
                   clock ? 1 : 0,
                   begun,
                   begun * begun};
    comm_sum_f64(s->world, x, 6, "loss and norm");
    require_same_count(s, begun, x[4], x[5]);
    struct step_result r = {
        .loss = x[0], .norm = sqrt(x[1]), .signal = x[2] > 0, .clock = x[3] > 0};
    r.lr = schedule_lr(&t->schedule, t->state.step);
    r.skipped = !isfinite(r.loss) || !isfinite(r.norm);
    if (r.skipped) {
        t->state.skipped++;
        t->state.skipped_in_row++;
    } else {
        const struct clip_result c = clip_step(&t->state.clip, clip_rule(s->set), r.norm);
        r.norm_after = c.after;
        r.limit = c.limit;
        update(t, c.coef, r.lr);
        t->state.skipped_in_row = 0;
    }
    t->state.step++;
    t->state.cursor += t->global_batch;
    err_pop();
    r.seconds = log_seconds() - t0;
    r.comm_seconds = comm_seconds(s) - comm0;
    r.data_seconds = loader_wait_seconds(t->loader) - data0;
    t->state.seconds += r.seconds;
    return r;
}

static int64_t valid_count(const struct trainer *t)
{
    const int64_t want = t->ses->set->validation.samples;
    return want && want < t->data->num_valid ? want : t->data->num_valid;
}

/* Item i = (held-out sample i / buckets, bucket i mod buckets); the noise depends on both only. */
static void load_item(struct trainer *t, int64_t i, int buckets, int slot, float *latent,
                      float *text, struct noisy *n)
{
    struct session *s = t->ses;
    const int64_t count = valid_count(t), which = i / buckets;
    const int64_t sample = t->data->valid[which * t->data->num_valid / count];
    const int bucket = (int)(i % buckets);
    const int64_t nl = t->data->c * t->data->t * t->data->h * t->data->w;
    const int64_t nt = s->set->model.text_len * s->set->model.text_dim;
    struct err e = {0};
    dataset_latent(t->data, sample, latent + slot * nl, &e);
    err_raise(&e);
    dataset_text(t->data, dataset_caption_of(t->data, sample, 0), s->set->model.text_len,
                 text + slot * nt, &e);
    err_raise(&e);
    n->sigma[slot] = flow_bucket_sigma(bucket, buckets, t->shift);
    n->noise[slot] = (struct rng_key){.seed = (uint64_t)s->set->seed,
                                      .use = RNG_VALID,
                                      .step = (uint32_t)bucket,
                                      .item = (uint64_t)sample};
}

struct valid_result trainer_validate(struct trainer *t, bool ema)
{
    struct session *s = t->ses;
    struct noisy n;
    struct valid_result r = {.buckets = (int)s->set->validation.sigmas, .samples = valid_count(t)};
    CHECK(r.buckets <= MAX_BUCKETS, "validation.sigmas %d", r.buckets);
    if (r.samples == 0 || r.buckets == 0) return r;
    const int64_t B = s->shape.batch, items = r.samples * r.buckets, dp = s->mesh.dp;
    const int64_t nl = t->data->c * t->data->t * t->data->h * t->data->w;
    float *latent = calloc((size_t)(B * nl), sizeof *latent);
    float *text =
        calloc((size_t)(B * s->set->model.text_len * s->set->model.text_dim), sizeof *text);
    CHECK(latent && text, "out of memory");
    double sums[1024];
    if (ema) fsdp_use_ema(s->fsdp, true);
    comm_context(s->world, "validation");
    /* every data rank runs the same number of passes, whatever is left for it */
    for (int64_t base = 0; base < items; base += dp * B) {
        r.stopped = launch_stop(s->world);
        if (r.stopped) break;
        fault_hit("validate");
        const int64_t first = base + s->mesh.axis[AXIS_DP]->rank * B;
        for (int b = 0; b < B; b++)
            load_item(t, first + b < items ? first + b : 0, r.buckets, b, latent, text, &n);
        arena_release(&s->keep, 0);
        make_noisy(t, latent, text, &n);
        dit_forward(&s->ctx, s->dit, s->plan, n.in, false, s->run);
        loss_sums(s, (struct tensor){0}, s->run, n.target, 1, sums);
        for (int b = 0; b < B && first + b < items; b++)
            r.loss[(first + b) % r.buckets] += sums[b] / (double)(elements(t) * r.samples);
    }
    if (ema) fsdp_use_ema(s->fsdp, false);
    free(latent);
    free(text);
    comm_context(s->world, NULL);
    comm_sum_f64(s->world, r.loss, r.buckets, "validation loss");
    for (int k = 0; k < r.buckets; k++) {
        r.sigma[k] = flow_bucket_sigma(k, r.buckets, t->shift);
        r.mean += r.loss[k] / r.buckets;
    }
    return r;
}
