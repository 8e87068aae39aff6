#include "train/settings_rules.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/plan.h"

/* The problems found so far; a rule blames the key whose line the user has to change. */
struct rules {
    const struct loaded_settings *l;
    const struct settings *s;
    const struct cfg_field *schema;
    int n, problems;
    FILE *report;
};

static struct rules rules_of(const struct loaded_settings *l, FILE *report)
{
    struct rules r = {.l = l, .s = &l->s, .report = report};
    r.schema = settings_schema(l->verb, &r.n);
    return r;
}

static void blame(struct rules *r, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void blame(struct rules *r, const char *key, const char *fmt, ...)
{
    char where[512];
    cfg_where(r->schema, r->n, r->l->origin, key, where, sizeof where);
    fputs(where, r->report);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(r->report, fmt, ap);
    va_end(ap);
    fputc('\n', r->report);
    r->problems++;
}

static long long ll(int64_t v) { return (long long)v; }

/* ---- model ------------------------------------------------------------------------------------*/
static void rule_blocks(struct rules *r)
{
    const struct model_config *m = &r->s->model;
    const struct cfg_ints *list = &m->full_block_indices;
    for (int i = 1; i < list->n; i++)
        if (list->v[i] <= list->v[i - 1]) {
            blame(r, "model_config.full_block_indices", "must rise: %lld stands after %lld",
                  ll(list->v[i]), ll(list->v[i - 1]));
            return;
        }
    enum block_kind kind[MAX_BLOCKS];
    struct err e = {0};
    if (plan_blocks(m, kind, &e)) return;
    char key[128];
    const char *colon = strstr(e.msg, ": "); /* the message starts with the key */
    if (!colon) {
        blame(r, "model_config.num_layers", "%s", e.msg);
        return;
    }
    snprintf(key, sizeof key, "%.*s", (int)(colon - e.msg), e.msg);
    blame(r, key, "%s", colon + 2);
}

static void rule_model(struct rules *r)
{
    const struct model_config *m = &r->s->model;
    const int64_t head = m->dim / m->num_heads;
    if (r->s->model_name == 1 && m->skiparse_model_type != SKIPARSE_FULL)
        blame(r, "model_name",
              "wan_t2v is the model with full attention; set "
              "model_config.skiparse_model_type: full");
    if (m->full_block_indices.n && m->skiparse_model_type == SKIPARSE_FULL)
        blame(r, "model_config.full_block_indices", "means nothing with skiparse_model_type: full");
    if (m->dim % m->num_heads)
        blame(r, "model_config.num_heads", "%lld heads do not divide dim %lld", ll(m->num_heads),
              ll(m->dim));
    else if (head % 2 || head > 256)
        blame(r, "model_config.num_heads",
              "dim / num_heads is %lld; it must be even and at most "
              "256",
              ll(head));
    if (m->freq_dim % 2)
        blame(r, "model_config.freq_dim", "%lld is odd; it holds pairs of sine and cosine",
              ll(m->freq_dim));
    if (m->in_dim != m->out_dim)
        blame(r, "model_config.out_dim",
              "%lld differs from in_dim %lld; the model predicts a "
              "velocity of its input",
              ll(m->out_dim), ll(m->in_dim));
    rule_blocks(r);
}

/* Any number of Ulysses ranks will do (parallel/ulysses.h); SSP ranks share out sub-sequences. */
static void rule_classes(struct rules *r)
{
    const struct settings *s = r->s;
    const int64_t P = s->model.sparse_ratio, K = s->model.skiparse_dim == 0 ? P : P * P;
    if (s->use_skiparse_sequence_parallel && plan_ratio(&s->model) > 1 && K % s->skiparse_sp_size)
        blame(r, "skiparse_sp_size",
              "%lld does not divide the %lld sub-sequences of sparse_ratio %lld",
              ll(s->skiparse_sp_size), ll(K), ll(P));
}

static void rule_scheduler(struct rules *r)
{
    const struct scheduler_config *c = &r->s->scheduler;
    if (c->use_dynamic_shifting && c->base_image_seq >= c->max_image_seq)
        blame(r, "scheduler_config.max_image_seq", "%lld must be above base_image_seq %lld",
              ll(c->max_image_seq), ll(c->base_image_seq));
}

/* ---- what the table knows and the program cannot do yet ---------------------------------------*/
/* The only place that refuses such keys. */
static void refuse_unbuilt(struct rules *r)
{
    const struct settings *s = r->s;
    const char *weights = s->model.pretrained;
    if (weights && access(weights, R_OK) != 0)
        blame(r, "model_config.pretrained_model_dir_or_checkpoint", "%s: %s", weights,
              strerror(errno));
    else if (weights)
        blame(r, "model_config.pretrained_model_dir_or_checkpoint",
              "conversion of other "
              "checkpoints is not built yet; set null");
}

/* ---- data -------------------------------------------------------------------------------------*/
/* prefix: "" for the data job, the dataset section for training. */
static void rule_codec(struct rules *r, const char *prefix)
{
    const struct data_config *d = &r->s->data;
    char key[128];
    snprintf(key, sizeof key, "%scodec", prefix);
    if (!d->codec || strcmp(d->codec, "pixel") != 0) {
        blame(r, key, "the codec %s is not built yet; known: pixel", d->codec ? d->codec : "null");
        return;
    }
    const int64_t size[2] = {d->sample_height, d->sample_width};
    for (int i = 0; i < 2; i++) {
        snprintf(key, sizeof key, "%ssample_%s", prefix, i ? "width" : "height");
        if (size[i] % 4)
            blame(r, key, "%lld is not a multiple of 4 (codec pixel, patches of 2 x 2)",
                  ll(size[i]));
    }
}

/* docs/spec/sft.md 3.2: a stride means something only where no rate is asked for. */
static void rule_stride(struct rules *r, const char *prefix)
{
    const struct data_config *d = &r->s->data;
    if (!d->sample_stride || d->train_fps <= 0) return;
    char key[128];
    snprintf(key, sizeof key, "%ssample_stride", prefix);
    blame(r, key,
          "%lld contradicts train_fps %g, which decides the step already; set train_fps: null to "
          "go by stride, or leave sample_stride out",
          ll(d->sample_stride), d->train_fps);
}

static void rule_text_codec(struct rules *r, const char *key)
{
    const char *name = r->s->data.text_codec;
    if (!name || strcmp(name, "hash") != 0)
        blame(r, key, "the text codec %s is not built yet; known: hash", name ? name : "null");
}

static void rule_dataset(struct rules *r)
{
    const struct settings *s = r->s;
    const struct data_config *d = &s->data;
    if (d->dataset_name == 1) { /* t2v_random */
        if (!s->smoke)
            blame(r, "data_config.dataset_name",
                  "t2v_random is noise and trains nothing; say "
                  "smoke: true if that is meant");
        return;
    }
    if (!d->metafile_or_dir)
        blame(r, "data_config.dataset_config.metafile_or_dir_path", "is required for wan_t2v");
    rule_codec(r, "data_config.dataset_config.");
    rule_text_codec(r, "data_config.dataset_config.text_codec");
}

static void rule_data_stride(struct rules *r) { rule_stride(r, "data_config.dataset_config."); }

/* What the data make and the model takes. */
static void rule_data_model(struct rules *r)
{
    const struct settings *s = r->s;
    const struct data_config *d = &s->data;
    if (d->dataset_name == 1) return;
    if (d->codec && strcmp(d->codec, "pixel") == 0 && s->model.in_dim != 12)
        blame(r, "model_config.in_dim", "is %lld, but codec pixel makes 12 channels",
              ll(s->model.in_dim));
    if (d->text_max_length > s->model.text_len)
        blame(r, "data_config.dataset_config.text_max_length",
              "%lld is above "
              "model_config.text_len %lld",
              ll(d->text_max_length), ll(s->model.text_len));
}

static void rule_data_job(struct rules *r)
{
    const struct data_job *j = &r->s->job;
    const struct filter_config *f = &j->filter;
    if (!j->ann_txt_path == !j->meta_path)
        blame(r, "meta_path", "give one of ann_txt_path and meta_path%s",
              j->meta_path ? ", not both" : "");
    if (f->min_h_div_w_ratio > f->max_h_div_w_ratio)
        blame(r, "min_h_div_w_ratio", "%g is above max_h_div_w_ratio %g", f->min_h_div_w_ratio,
              f->max_h_div_w_ratio);
    if (f->min_motion_value > f->max_motion_value)
        blame(r, "min_motion_value", "%g is above max_motion_value %g", f->min_motion_value,
              f->max_motion_value);
    rule_codec(r, "");
    rule_stride(r, "");
    rule_text_codec(r, "text_codec");
}

/* ---- training ---------------------------------------------------------------------------------*/
static void rule_optimizer(struct rules *r)
{
    const struct settings *s = r->s;
    const struct cfg_reals *b = &s->optimizer.betas;
    if (b->n != 2 || b->v[0] >= 1 || b->v[1] >= 1)
        blame(r, "optimizer_config.betas", "expects two values in [0, 1)");
    if (s->ema_decay >= 1) blame(r, "ema_decay", "must be below 1");
    if (s->lr_schedule.warmup_steps > s->training_iteration)
        blame(r, "lr_schedule.warmup_steps", "%lld is above training_iteration %lld",
              ll(s->lr_schedule.warmup_steps), ll(s->training_iteration));
    if (s->init_max_grad_norm <= 0) blame(r, "init_max_grad_norm", "must be above 0");
}

static void rule_dtype(struct rules *r)
{
    const int device = r->s->device;
    if (settings_dtype(r->s) == DT_F64 && (device == DEVICE_CPU || device == DEVICE_CUDA))
        blame(r, "weight_dtype",
              "fp64 is computed by device: ref (or auto, which takes it); "
              "device: %s has bf16 and fp32",
              device == DEVICE_CPU ? "cpu" : "cuda");
}

static void rule_recompute(struct rules *r)
{
    const struct settings *s = r->s;
    if (s->gradient_checkpointing && s->recompute != -2)
        blame(r, "gradient_checkpointing", "and recompute say the same thing twice; give one");
    if (s->memory_budget_gb > 0 && s->recompute != RECOMPUTE_AUTO)
        blame(r, "memory_budget_gb", "is for recompute: auto");
    for (int i = 0; s->recompute == -1 && i < s->recompute_blocks.n; i++)
        if (s->recompute_blocks.v[i] >= s->model.num_layers)
            blame(r, "recompute", "there is no block %lld of %lld", ll(s->recompute_blocks.v[i]),
                  ll(s->model.num_layers));
}

static void rule_batches(struct rules *r)
{
    const struct data_config *d = &r->s->data;
    if (d->batch_size > 1024)
        blame(r, "data_config.batch_size", "%lld is above 1024", ll(d->batch_size));
    if (!d->batch_size && !d->global_batch_size)
        blame(r, "data_config.batch_size", "null needs data_config.global_batch_size");
    if (d->global_batch_size && d->batch_size && d->global_batch_size % d->batch_size)
        blame(r, "data_config.global_batch_size", "%lld is not a multiple of batch_size %lld",
              ll(d->global_batch_size), ll(d->batch_size));
}

static void rule_training(struct rules *r)
{
    const struct settings *s = r->s;
    if (s->validation.interval && s->validation.window == 0)
        blame(r, "validation.window", "is 0: nothing is held out to validate on");
    if (!s->output_dir || !*s->output_dir) blame(r, "output_dir", "must name a folder");
    if (!s->resume || !*s->resume) blame(r, "resume", "expects auto, never or a path");
}

static void rule_sampling(struct rules *r)
{
    const struct sample_config *p = &r->s->sample;
    if (p->height % 2) blame(r, "height", "%lld is odd", ll(p->height));
    if (p->width % 2) blame(r, "width", "%lld is odd", ll(p->width));
    if (!p->checkpoint || !*p->checkpoint) blame(r, "checkpoint", "must name a checkpoint");
    if (!p->prompt_txt) blame(r, "prompt_txt", "must be a file or a prompt");
}

/* ---- post-training ----------------------------------------------------------------------------*/
static void rule_reward(struct rules *r)
{
    const struct reward_settings *w = &r->s->reward;
    if (w->command && (w->videoalign_dir || w->model_dir))
        blame(r, "reward.command", "and reward.videoalign_dir name two scorers; give one");
    else if (!w->command && !w->videoalign_dir)
        blame(r, "reward.command",
              "is null, and so is reward.videoalign_dir: nothing scores the samples; "
              "\"python3 scripts/simple_scorer.py\" needs no weights");
    else if (!w->command && !w->model_dir)
        blame(r, "reward.model_dir", "must name the folder of Qwen2-VL-2B-Instruct");
    const char *d = w->device;
    if (d && strcmp(d, "cpu") && strcmp(d, "cuda") && strncmp(d, "cuda:", 5))
        blame(r, "reward.device", "\"%s\" is none of cpu, cuda, cuda:N, null", d);
}

static void rule_rollout(struct rules *r)
{
    const struct rl_config *c = &r->s->rl;
    if (!r->s->model.pretrained)
        blame(r, "model_config.pretrained_model_dir_or_checkpoint",
              "must name the checkpoint to start from: a run folder of osp train, or an iter_ "
              "folder");
    if (c->best_of && c->algo == ALGO_NFT)
        blame(r, "rl_config.best_of", "nft trains on every scored sample; leave it out");
    if (c->eval_epochs && !c->eval_prompt_file)
        blame(r, "rl_config.eval_prompt_file", "is needed for rl_config.eval_freq %lld",
              ll(c->eval_epochs));
    if (c->best_of % 2 || c->best_of > c->members)
        blame(r, "rl_config.best_of", "%lld must be even and at most num_image_per_prompt %lld",
              ll(c->best_of), ll(c->members));
    if (r->s->reward.min_group > c->members && c->group_stats && !c->merge_same_prompt)
        blame(r, "reward.min_group",
              "%lld is above num_image_per_prompt %lld: no group would count",
              ll(r->s->reward.min_group), ll(c->members));
    if (r->s->recompute == -1 || r->s->recompute == RECOMPUTE_AUTO)
        blame(r, "recompute",
              "a list of blocks and auto are not for osp rl; give all, attention, "
              "gemm or none");
}

/* A rule runs when none of the keys that it looks at was refused; a name that ends in a dot is a
 * whole section. */
enum {
    T = 1 << SETTINGS_TRAIN,
    D = 1 << SETTINGS_DATA,
    S = 1 << SETTINGS_SAMPLE,
    P = 1 << SETTINGS_PLAN,
    R = 1 << SETTINGS_RL
};
#define DATA "data_config.dataset_config."
static const struct {
    unsigned verbs;
    void (*run)(struct rules *r);
    const char *needs[6];
} all_rules[] = {
    {D, rule_data_job, {""}},
    {T | S | P, rule_model, {"model_config.", "model_name"}},
    {T | S | P,
     rule_classes,
     {"model_config.", "skiparse_sp_size", "use_skiparse_sequence_parallel"}},
    {T | S | P, rule_scheduler, {"scheduler_config."}},
    {S, rule_sampling, {"height", "width", "checkpoint", "prompt_txt"}},
    {T | S | P | R, rule_dtype, {"device", "weight_dtype"}},
    {T | P, rule_recompute, {"gradient_checkpointing", "recompute", "model_config.num_layers"}},
    {T | P, rule_batches, {"data_config.batch_size", "data_config.global_batch_size"}},
    {T | P, rule_training, {"validation.", "output_dir", "resume"}},
    {R, rule_reward, {"reward."}},
    {R, rule_rollout, {"rl_config.", "rl.", "model_config.", "recompute", "reward.", "adv."}},
    {T | P | R,
     rule_optimizer,
     {"optimizer_config.", "lr_schedule.", "ema_decay", "training_iteration",
      "init_max_grad_norm"}},
    {T, rule_dataset, {"data_config.", "smoke"}},
    {T | P, rule_data_stride, {DATA "train_fps", DATA "sample_stride"}},
    {T, rule_data_model, {"data_config.", "model_config.in_dim", "model_config.text_len"}},
    {T | S, refuse_unbuilt, {"model_config."}},
};

/* "": all keys. */
static bool may_judge(const struct rules *r, const char *key)
{
    if (*key) return cfg_usable(r->schema, r->n, r->l->origin, key);
    for (int i = 0; i < r->n; i++)
        if (r->l->origin[i].bad) return false;
    return true;
}

int settings_judge(const struct loaded_settings *l, FILE *report)
{
    struct rules r = rules_of(l, report);
    for (size_t k = 0; k < sizeof all_rules / sizeof *all_rules; k++) {
        bool run = all_rules[k].verbs >> l->verb & 1;
        for (int i = 0; i < 6 && all_rules[k].needs[i]; i++)
            run = run && may_judge(&r, all_rules[k].needs[i]);
        if (run) all_rules[k].run(&r);
    }
    return r.problems;
}

/* ---- rules that need the number of ranks ------------------------------------------------------*/
static void list_divisors(int ranks, char *out, size_t size)
{
    size_t n = 0;
    for (int f = 1; f <= ranks && n < size; f++)
        if (ranks % f == 0) n += (size_t)snprintf(out + n, size - n, "%s%d", n ? ", " : "", f);
}

static void rule_batch(struct rules *r, int64_t dp)
{
    const struct data_config *d = &r->s->data;
    const int64_t steps = r->s->gradient_accumulation_steps;
    const int64_t per = d->batch_size ? d->batch_size : steps, one = dp * per;
    if (!d->global_batch_size) return;
    if (d->global_batch_size % one)
        blame(r, "data_config.global_batch_size",
              "%lld is not a multiple of %lld = %lld data ranks x %s %lld",
              ll(d->global_batch_size), ll(one), ll(dp),
              d->batch_size ? "batch_size" : "gradient_accumulation_steps", ll(per));
    else if (steps > 1 && d->batch_size && d->global_batch_size != one * steps)
        blame(r, "gradient_accumulation_steps",
              "%lld contradicts global_batch_size %lld = "
              "%lld data ranks x batch_size %lld x %lld",
              ll(steps), ll(d->global_batch_size), ll(dp), ll(d->batch_size),
              ll(d->global_batch_size / one));
}

int settings_judge_ranks(const struct loaded_settings *l, int ranks, FILE *report)
{
    const struct settings *s = &l->s;
    struct rules r = rules_of(l, report);
    if (l->verb == SETTINGS_DATA) return 0;
    if (s->fsdp_size != FSDP_AUTO && ranks % s->fsdp_size) {
        char legal[256];
        list_divisors(ranks, legal, sizeof legal);
        blame(&r, "fsdp_size", "%lld does not divide %d ranks; possible: %s", ll(s->fsdp_size),
              ranks, legal);
    } else {
        const int64_t copies = s->fsdp_size == FSDP_AUTO ? 1 : ranks / s->fsdp_size;
        if (s->ddp_size && s->ddp_size != copies)
            blame(&r, "ddp_size",
                  "%lld contradicts %d ranks / fsdp_size %lld = %lld; change fsdp_size, or "
                  "leave ddp_size out",
                  ll(s->ddp_size), ranks, ll(ranks / copies), ll(copies));
    }
    const bool sparse = plan_ratio(&s->model) > 1;
    const int64_t ssp = s->use_skiparse_sequence_parallel && sparse ? s->skiparse_sp_size : 1;
    const int64_t sp = s->use_sequence_parallel ? s->sp_size : 1;
    if (ranks % (ssp * sp))
        blame(&r, ssp > 1 ? "skiparse_sp_size" : "sp_size",
              "%lld ranks per sample do not "
              "divide %d ranks",
              ll(ssp * sp), ranks);
    else if (l->verb != SETTINGS_SAMPLE)
        rule_batch(&r, ranks / (ssp * sp));
    return r.problems;
}
