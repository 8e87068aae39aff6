#include "train/plan.h"

#include <math.h>
#include <string.h>

#include "core/err.h"
#include "data/codec.h"
#include "model/plan.h"
#include "train/fit.h"
#include "train/trainer.h"

/* Linear layers 740-750 and attention 700 forward, 590 backward are what cuBLAS and cuDNN reach on
 * an H200 with random data; 4.3 of 4.8 TB/s is a streaming kernel. Sustained power limits can cost
 * another 5 to 10 %. */
const struct chip plan_chip = {.name = "H200",
                               .memory_gb = 141,
                               .peak_tflops = 989,
                               .linear_tflops = 750,
                               .attn_fwd_tflops = 700,
                               .attn_bwd_tflops = 590,
                               .row_tb_s = 4.3,
                               .per_node = 8,
                               .near_us = 4,
                               .far_us = 15};

/* The Wan VAE is planned for before it can be run: 16 channels, 4 frames and 8 x 8 pixels to one.
 */
struct session_shape plan_latent(const struct settings *s, int dp)
{
    const struct data_config *d = &s->data;
    struct session_shape shape = {.batch = trainer_micro_batch(s, dp)};
    if (d->codec && strncmp(d->codec, "wan", 3) == 0) {
        if ((d->sample_num_frames - 1) % 4 || d->sample_height % 16 || d->sample_width % 16)
            err_stop(RC_CONFIG,
                     "codec %s: sample_num_frames must be 4k + 1, height and width multiples "
                     "of 16; here %lld x %lld x %lld",
                     d->codec, (long long)d->sample_num_frames, (long long)d->sample_height,
                     (long long)d->sample_width);
        shape.t = (d->sample_num_frames - 1) / 4 + 1;
        shape.h = d->sample_height / 8;
        shape.w = d->sample_width / 8;
        shape.channels = 16;
        return shape;
    }
    struct err e = {0};
    int64_t z[4] = {0};
    const struct video_codec *c = video_codec_find(d->codec, &e);
    if (c) c->shape(d->sample_num_frames, d->sample_height, d->sample_width, z, &e);
    err_raise(&e);
    shape.channels = z[0];
    shape.t = z[1];
    shape.h = z[2];
    shape.w = z[3];
    return shape;
}

const char *plan_axis_name(enum axis a)
{
    static const char *const name[AXIS_COUNT] = {"world",    "data", "skiparse_sp", "sp",
                                                 "sequence", "fsdp", "replica"};
    return name[a];
}

const char *plan_kind_name(enum comm_kind k)
{
    static const char *const name[COMM_KINDS] = {"all-gather", "reduce-scatter", "all-reduce",
                                                 "exchange", "broadcast"};
    return name[k];
}

/* The counts of one micro-batch, over a step: replicas are summed once, at its end. */
static void step_comm(struct plan_cost *c)
{
    for (int a = 0; a < AXIS_COUNT; a++)
        for (int k = 0; k < COMM_KINDS; k++) {
            const int times = a == AXIS_REPLICA ? 1 : c->num_micro;
            c->comm[a][k].calls = times * c->rank.comm[a][k].calls;
            c->comm[a][k].bytes = times * c->rank.comm[a][k].bytes;
        }
}

/* The same passes on one rank: what all ranks of a sequence together must at least do. */
static struct dryrun_out whole_sample(const struct dryrun_in *in)
{
    struct dryrun_in one = *in;
    struct dryrun_out o;
    one.ranks = 1;
    one.rank = 0;
    one.degrees = (struct mesh_degrees){1, 1, 1};
    one.on_comm = NULL;
    dryrun(&one, &o);
    return o;
}

static double all_flops(const struct dryrun_out *o)
{
    return o->forward.gemm_flops + o->forward.attn_flops + o->backward.gemm_flops +
           o->backward.attn_flops;
}

struct group {                  /* over the ranks of one sequence group */
    double matrix_s, row_bytes; /* slowest, most */
    double flops;               /* sum */
};

static struct group walk_group(const struct settings *s, int size, bool train, struct plan_cost *c)
{
    struct group g = {0};
    for (int r = 0; r < size; r++) {
        struct dryrun_out o;
        c->in = session_dryrun(s, c->ranks, r, c->shape, train);
        if (train && s->recompute == RECOMPUTE_AUTO) fit_take(&c->in, c->level);
        dryrun(&c->in, &o);
        g.flops += all_flops(&o);
        g.matrix_s = fmax(g.matrix_s, plan_matrix_seconds(&o.forward, &o.backward));
        g.row_bytes = fmax(g.row_bytes, o.forward.row_bytes + o.backward.row_bytes);
        c->rows_most = r == 0 || o.rows_most > c->rows_most ? o.rows_most : c->rows_most;
        c->rows_least = r == 0 || o.rows_least < c->rows_least ? o.rows_least : c->rows_least;
        if (r == 0 || dryrun_bytes(&o) > dryrun_bytes(&c->rank)) c->rank = o;
    }
    return g;
}

/* recompute: auto with memory_budget_gb, or what an H200 leaves to a program. */
static int choose_level(const struct settings *s, int size, const struct plan_cost *c)
{
    const double gb = s->memory_budget_gb > 0 ? s->memory_budget_gb : 130;
    struct dryrun_out o;
    int least = fit_levels(&s->model);
    for (int r = 0; r < size; r++) {
        const struct dryrun_in in = session_dryrun(s, c->ranks, r, c->shape, true);
        const int level = fit_level(&in, (size_t)(1e9 * gb), &o);
        least = level < least ? level : least;
    }
    return least;
}

void plan_cost(const struct settings *s, int ranks, struct plan_cost *c)
{
    const struct mesh_degrees d = session_degrees(s, ranks);
    const int group = d.ssp * d.sp;
    CHECK(group > 0 && ranks % group == 0, "%d ranks in groups of %d", ranks, group);
    *c = (struct plan_cost){.ranks = ranks, .dp = ranks / group};
    c->shape = plan_latent(s, c->dp);
    if (c->shape.channels != s->model.in_dim)
        err_stop(RC_CONFIG, "codec %s gives %lld channels, model_config.in_dim is %lld",
                 s->data.codec, (long long)c->shape.channels, (long long)s->model.in_dim);
    c->global_batch = trainer_global_batch(s, c->dp);
    c->num_micro = (int)(c->global_batch / c->dp / c->shape.batch);
    c->tokens = c->shape.batch * c->shape.t * (c->shape.h / 2) * (c->shape.w / 2);
    if (s->recompute == RECOMPUTE_AUTO) c->level = choose_level(s, group, c);
    const struct group g = walk_group(s, group, true, c);
    const struct dryrun_out whole = whole_sample(&c->in);
    struct dryrun_phase f, b;
    dryrun_model_flops(&c->in, &f, &b);
    const double samples = c->shape.batch;
    c->linear = f.gemm_flops / samples;
    c->attention = f.attn_flops / samples;
    c->model = (f.gemm_flops + f.attn_flops + b.gemm_flops + b.attn_flops) / samples;
    c->megatron = 3 * (c->linear + c->attention);
    c->executed = all_flops(&whole) / samples;
    c->replicated = g.flops / all_flops(&whole) - 1;
    step_comm(c);
    plan_estimate(s, c, g.matrix_s, g.row_bytes);
}

void plan_forward(const struct settings *s, int ranks, struct plan_cost *c)
{
    const struct mesh_degrees d = session_degrees(s, ranks);
    const int group = d.ssp * d.sp;
    CHECK(group > 0 && ranks % group == 0, "%d ranks in groups of %d", ranks, group);
    *c = (struct plan_cost){.ranks = ranks, .dp = ranks / group, .num_micro = 1};
    c->shape = plan_latent(s, c->dp);
    c->shape.batch = 1;
    c->global_batch = c->dp;
    const struct group g = walk_group(s, group, false, c);
    step_comm(c);
    plan_estimate(s, c, g.matrix_s, g.row_bytes);
}
