/* Verb plan of a post-training configuration. */
#include "rl/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "core/yaml_tree.h"
#include "rl/verb.h"
#include "train/print_config.h"

static const char usage[] =
    "osp plan CONFIG [ranks=N] [key=value ...] [--json] [--print-config] [--help-config]\n"
    "Memory, FLOPs and communication of an epoch of post-training, rollouts and updates apart,\n"
    "counted by walking the real code without computing, and an estimate of the time. The model "
    "is\n"
    "that of the base, or of model_config where the base is not here.";

/* ---- counting ---------------------------------------------------------------------------------*/
static double matrix_seconds(const struct dry_counts *d)
{
    return 1e-12 * (d->gemm / plan_chip.linear_tflops + d->attn_fwd / plan_chip.attn_fwd_tflops +
                    d->attn_bwd / plan_chip.attn_bwd_tflops);
}

static void add_rank(struct rl_phase *p, const struct dry_counts *d, bool largest)
{
    p->flops += d->gemm + d->attn_fwd + d->attn_bwd;
    p->attention += d->attn_fwd + d->attn_bwd;
    p->matrix_s = fmax(p->matrix_s, matrix_seconds(d));
    p->row_bytes = fmax(p->row_bytes, d->row_bytes);
    if (largest) memcpy(p->comm, d->comm, sizeof p->comm);
}

/* Samples and steps of an epoch, as updates.c takes them. */
static void count_epoch(const struct settings *s, struct rl_plan *p)
{
    const struct rl_config *c = &s->rl;
    const int64_t samples = c->sample_batch * c->batches;
    p->trained = algo_steps_trained(c, &p->steps);
    p->rollout.times = c->batches;
    p->update.times = samples / c->train_batch * p->trained * c->inner_epochs;
    p->step.times = samples / (c->train_batch * s->gradient_accumulation_steps) * c->inner_epochs;
}

static void estimate(const struct settings *s, struct rl_plan *p)
{
    struct rl_phase *const all[] = {&p->rollout, &p->update, &p->step};
    for (int i = 0; i < 3; i++) {
        struct plan_cost c = p->c;
        c.num_micro = 1;
        memcpy(c.comm, all[i]->comm, sizeof c.comm);
        plan_estimate(s, &c, all[i]->matrix_s, all[i]->row_bytes);
        all[i]->seconds = c.step_s + plan_axis_seconds(s, &c, AXIS_WORLD);
        p->epoch_s += (double)all[i]->times * all[i]->seconds;
        p->epoch_flops += (double)all[i]->times * all[i]->flops;
    }
}

static void walk(const struct settings *s, struct rl_plan *p)
{
    const int group = p->c.in.degrees.ssp * p->c.in.degrees.sp;
    struct dry_epoch e = {.dry = {.cfg = &s->rl}, .seed = (uint64_t)s->seed};
    const int latent[] = {(int)p->c.shape.channels, (int)p->c.shape.t, (int)p->c.shape.h,
                          (int)p->c.shape.w};
    memcpy(e.dry.latent, latent, sizeof latent);
    p->c.shape.body = dry_epoch_body;
    p->c.shape.body_arg = &e;
    p->c.shape.lora_old = s->rl.algo == ALGO_NFT;
    for (int r = 0; r < group; r++) {
        struct dryrun_out o;
        const struct dryrun_in in = session_dryrun(s, p->c.ranks, r, p->c.shape, true);
        dryrun(&in, &o);
        const bool largest = r == 0 || dryrun_bytes(&o) > dryrun_bytes(&p->c.rank);
        add_rank(&p->rollout, &e.rollout, largest);
        add_rank(&p->update, &e.update, largest);
        p->c.rows_most = r == 0 || o.rows_most > p->c.rows_most ? o.rows_most : p->c.rows_most;
        p->c.rows_least = r == 0 || o.rows_least < p->c.rows_least ? o.rows_least : p->c.rows_least;
        if (!largest) continue;
        p->c.rank = o;
        p->c.in = in;
        memcpy(p->step.comm[AXIS_WORLD], o.comm[AXIS_WORLD], sizeof o.comm[AXIS_WORLD]);
        p->host_bytes = e.host_bytes;
    }
    p->steps = e.plan;
    p->evaluations = e.evaluations;
    p->c.shape.body_arg = NULL;
}

static int64_t adapter_elements(const struct settings *s)
{
    struct dev *dev = dev_open("null", settings_dtype(s), 1);
    struct dit *d = dit_new(dev, &s->model, RECOMPUTE_ALL, NULL, 8);
    struct lora *l = lora_new(dev, d, &s->lora, (struct lora_opts){0});
    const int64_t n = lora_num_elements(l);
    lora_free(l);
    dit_free(d, dev);
    dev_close(dev);
    return n;
}

void rl_plan_make(const struct settings *settings, const char *codec, int ranks, struct rl_plan *p)
{
    struct settings s = *settings;
    struct err e = {0};
    s.data.codec = (char *)(uintptr_t)codec;
    s.data.batch_size = s.rl.train_batch;
    s.data.sample_num_frames = s.rl.frames;
    s.data.sample_height = s.rl.height;
    s.data.sample_width = s.rl.width;
    const struct mesh_degrees d = session_degrees(&s, ranks);
    const int group = d.ssp * d.sp;
    CHECK(group > 0 && ranks % group == 0, "%d ranks in groups of %d", ranks, group);
    err_raise(dry_check_batches(&s, &e));
    *p = (struct rl_plan){.c = {.ranks = ranks, .dp = ranks / group, .num_micro = 1}};
    const struct groups_config g = algo_groups(&s.rl, 1 << 30, p->c.dp, (uint64_t)s.seed);
    if (!groups_check(&g, &e)) err_raise(&e);
    p->c.in.degrees = d;
    p->c.shape = plan_latent(&s, p->c.dp);
    if (p->c.shape.channels != s.model.in_dim)
        err_stop(RC_CONFIG, "codec %s gives %lld channels, model_config.in_dim is %lld", codec,
                 (long long)p->c.shape.channels, (long long)s.model.in_dim);
    p->c.tokens = p->c.shape.t * (p->c.shape.h / 2) * (p->c.shape.w / 2);
    walk(&s, p);
    p->adapters = adapter_elements(&s);
    count_epoch(&s, p);
    estimate(&s, p);
}

/* ---- the page ---------------------------------------------------------------------------------*/
static void print_head(FILE *out, const struct settings *s, const struct rl_plan *p)
{
    const struct plan_cost *c = &p->c;
    const struct mesh_degrees *d = &c->in.degrees;
    const struct rl_config *r = &s->rl;
    char a[32], b[32], *blocks = plan_schedule(&s->model);
    fprintf(out, "parameters     %s, adapters of rank %lld: %s\n", plan_grouped(c->rank.params, a),
            (long long)s->lora.rank, plan_grouped(p->adapters, b));
    fprintf(out, "blocks         %s\n", blocks);
    fprintf(out, "ranks          %d = %d data x %d skiparse_sp x %d sp; fsdp %d\n", c->ranks, c->dp,
            d->ssp, d->sp, d->fsdp);
    fprintf(out, "latent         %lld x %lld x %lld x %lld, %s tokens a sample\n",
            (long long)c->shape.channels, (long long)c->shape.t, (long long)c->shape.h,
            (long long)c->shape.w, plan_grouped(c->tokens, a));
    fprintf(out, "algorithm      %s: %d steps, %d trained%s\n", algo_name(r->algo), p->steps.n,
            p->trained, r->guidance > 1 ? ", guided" : "");
    fprintf(out,
            "epoch          %lld samples in %lld groups; a data rank makes %lld batches of %lld, "
            "%lld updates of %lld samples, %lld optimizer steps\n",
            (long long)(r->sample_batch * r->batches * c->dp),
            (long long)(r->sample_batch * r->batches * c->dp / r->members),
            (long long)p->rollout.times, (long long)r->sample_batch, (long long)p->update.times,
            (long long)r->train_batch, (long long)p->step.times);
    fprintf(out, "rollout batch  %lld velocities of a sample, %lld without the shared path\n",
            (long long)p->evaluations, (long long)(p->steps.n * r->sample_batch));
    free(blocks);
}

static const struct {
    const char *name;
    size_t at;
} phases[] = {{"a rollout batch", offsetof(struct rl_plan, rollout)},
              {"an update", offsetof(struct rl_plan, update)},
              {"a sum of gradients", offsetof(struct rl_plan, step)}};
enum { PHASES = sizeof phases / sizeof *phases };

static const struct rl_phase *phase_at(const struct rl_plan *p, int i)
{
    return (const struct rl_phase *)(const void *)((const char *)p + phases[i].at);
}

static void print_costs(FILE *out, const struct rl_plan *p)
{
    const char *letter;
    const double unit = plan_unit(p->rollout.flops, &letter);
    fprintf(out, "\nwhat a data rank does in an epoch; %sFLOP (multiply-add = 2), with recompute\n",
            letter);
    fprintf(out, "  %-20s %8s %14s %14s %12s %12s\n", "", "times", "FLOP each", "of it attention",
            "s each", "s an epoch");
    for (int i = 0; i < PHASES; i++) {
        const struct rl_phase *x = phase_at(p, i);
        fprintf(out, "  %-20s %8lld %14.6g %14.6g %12.4g %12.4g\n", phases[i].name,
                (long long)x->times, x->flops / unit, x->attention / unit, x->seconds,
                (double)x->times * x->seconds);
    }
    fprintf(out, "  %-20s %8s %14.6g %14s %12s %12.4g\n", "epoch", "", p->epoch_flops / unit, "",
            "", p->epoch_s);
    fprintf(out,
            "  seconds are an estimate for %s; decoding, waiting for scores and evaluations are "
            "not in it\n",
            plan_chip.name);
}

static void print_comm(FILE *out, const struct settings *s, const struct rl_plan *p)
{
    fprintf(out, "\ncommunication (sent by the largest rank), MB\n");
    fprintf(out, "  %-20s %-12s %-15s %8s %14s %14s  %s\n", "", "axis", "collective", "calls",
            "each time", "an epoch", "link");
    bool any = false;
    for (int i = 0; i < PHASES; i++)
        for (int a = 0; a < AXIS_COUNT; a++)
            for (int k = 0; k < COMM_KINDS; k++) {
                const struct rl_phase *x = phase_at(p, i);
                const struct comm_count *n = &x->comm[a][k];
                if (n->bytes <= 0) continue;
                const bool near = plan_axis_in_node(&p->c, (enum axis)a);
                any = true;
                fprintf(out, "  %-20s %-12s %-15s %8lld %14.3f %14.3f  %s, %g GB/s\n",
                        phases[i].name, plan_axis_name((enum axis)a),
                        plan_kind_name((enum comm_kind)k), (long long)n->calls, 1e-6 * n->bytes,
                        1e-6 * n->bytes * (double)x->times, near ? "in the node" : "between nodes",
                        near ? s->plan.nvlink_gbps : s->plan.ib_gbps);
            }
    if (!any) fprintf(out, "  none\n");
}

void rl_plan_print(FILE *out, const struct settings *s, const struct rl_plan *p)
{
    print_head(out, s, p);
    plan_print_memory(out, &p->c.rank);
    fprintf(out, "  and %.3f GB of host memory for the states of an epoch\n",
            1e-9 * (double)p->host_bytes);
    print_costs(out, p);
    print_comm(out, s, p);
}

static json_t *phase_json(const struct rl_plan *p, const struct rl_phase *x)
{
    struct plan_cost c = p->c;
    memcpy(c.comm, x->comm, sizeof c.comm);
    return json_pack("{s:I, s:f, s:f, s:f, s:o}", "times", (json_int_t)x->times, "flops", x->flops,
                     "attention_flops", x->attention, "seconds", x->seconds, "comm",
                     plan_comm_json(&c));
}

void rl_plan_print_json(FILE *out, const struct rl_plan *p)
{
    const struct mesh_degrees *d = &p->c.in.degrees;
    json_t *all = json_pack(
        "{s:I, s:I, s:i, s:i, s:i, s:i, s:I, s:i, s:i, s:I, s:I, s:o, s:o, s:o, s:o, s:f, s:f}",
        "parameters", (json_int_t)p->c.rank.params, "adapters", (json_int_t)p->adapters, "ranks",
        p->c.ranks, "skiparse_sp_size", d->ssp, "sp_size", d->sp, "fsdp_size", d->fsdp,
        "tokens_per_sample", (json_int_t)p->c.tokens, "steps", p->steps.n, "trained_steps",
        p->trained, "velocities_per_batch", (json_int_t)p->evaluations, "host_bytes",
        (json_int_t)p->host_bytes, "memory_bytes", plan_memory_json(&p->c.rank), "rollout_batch",
        phase_json(p, &p->rollout), "update", phase_json(p, &p->update), "optimizer_step",
        phase_json(p, &p->step), "epoch_flops", p->epoch_flops, "epoch_seconds", p->epoch_s);
    CHECK(all, "the plan cannot be encoded");
    CHECK(json_dumpf(all, out, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) == 0,
          "cannot write the plan");
    fprintf(out, "\n");
    json_decref(all);
}

/* ---- the verb ---------------------------------------------------------------------------------*/
static bool has_section(const struct ytree *t)
{
    if (t->root < 0 || t->node[t->root].kind != Y_MAP) return false;
    for (int k = t->node[t->root].first; k >= 0; k = t->node[t->node[k].next].next) {
        const char *key = t->node[k].text;
        if (key && (strcmp(key, "rl") == 0 || strcmp(key, "rl_config") == 0)) return true;
    }
    return false;
}

bool verb_rl_owns(int argc, char **argv)
{
    const char *path = NULL;
    for (int i = 0; i < argc && !path; i++)
        if (argv[i][0] != '-' && !strchr(argv[i], '=')) path = argv[i];
    struct err e = {0};
    size_t size = 0;
    char *text = path && access(path, R_OK) == 0 ? io_read_file(path, &size, &e) : NULL;
    if (!text) return false; /* the other verb says why */
    struct ytree t;
    const bool owns = ytree_parse(&t, text, size) && has_section(&t);
    ytree_free(&t);
    free(text);
    return owns;
}

static bool given(const struct loaded_settings *l, const char *key)
{
    int n;
    const struct cfg_field *f = settings_schema(l->verb, &n);
    for (int i = 0; i < n; i++)
        if (strcmp(f[i].key, key) == 0) return strcmp(l->origin[i].file, "default") != 0;
    return false;
}

/* From the base where it is here; otherwise the file must say it. Name of the codec. */
static void take_model(struct loaded_settings *l, char codec[32])
{
    const struct settings *s = &l->s;
    snprintf(codec, 32, "wan");
    if (s->model.pretrained && access(s->model.pretrained, R_OK) == 0) {
        struct comm *self = comm_self(NULL);
        struct ckpt *k = ckpt_open(self, s->model.pretrained, false);
        struct stored_model m;
        struct err e = {0};
        stored_model_read(&m, k, &e);
        err_raise(&e);
        dry_take_base(l, &m);
        memcpy(codec, m.codec, sizeof m.codec);
        stored_model_free(&m);
        ckpt_close(k);
        comm_free(self);
        return;
    }
    if (!given(l, "model_config.dim") || !s->rl.frames || !s->rl.height || !s->rl.width)
        err_stop(RC_CONFIG,
                 "the base %s is not here, so the plan needs model_config.dim and the rest of the "
                 "model, and rl_config.num_frames, height and width",
                 s->model.pretrained ? s->model.pretrained : "(none)");
    log_info("the base %s is not here: planned by model_config, with the Wan VAE",
             s->model.pretrained ? s->model.pretrained : "(none)");
}

static void plan_file(const struct args *a)
{
    struct loaded_settings l;
    struct rl_plan p;
    char codec[32];
    struct err e = {0};
    settings_load(&l, SETTINGS_RL, a->config, a->sets, a->num_sets);
    dry_resolve(&l);
    take_model(&l, codec);
    settings_check_ranks(&l, (int)l.s.plan.ranks);
    settings_raise(&l, dry_check_batches(&l.s, &e));
    rl_plan_make(&l.s, codec, (int)l.s.plan.ranks, &p);
    if (a->json)
        rl_plan_print_json(stdout, &p);
    else
        rl_plan_print(stdout, &l.s, &p);
    settings_free(&l);
}

int verb_rl_plan(int argc, char **argv)
{
    struct args a;
    args_parse(&a, argc, argv, usage);
    char **sets = plan_keys(&a), **as_given = a.sets;
    a.sets = sets;
    int rc = RC_OK;
    for (int i = 0; i < a.num_sets; i++)
        if (strncmp(sets[i], "plan.ranks=", 11) == 0 && strstr(sets[i], ".."))
            err_stop(RC_USAGE, "a table over ranks=A..B is for configurations of osp train\n%s",
                     usage);
    if (a.help_config || a.print_config) {
        rc = print_config(SETTINGS_RL, &a);
    } else {
        if (a.num_rest || a.forward) err_stop(RC_USAGE, "%s", usage);
        if (a.json) log_set_level(LOG_WARN_ALL); /* nothing but JSON on stdout */
        plan_file(&a);
    }
    a.sets = as_given;
    plan_keys_free(sets, a.num_sets);
    args_free(&a);
    return rc;
}
