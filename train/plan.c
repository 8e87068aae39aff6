/* Verb plan: what a step of this configuration needs, before anybody pays for it. */
#include "train/plan.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/log.h"
#include "model/plan.h"
#include "train/args.h"
#include "train/fit.h"
#include "train/print_config.h"
#include "train/verbs.h"

static const char usage[] =
    "osp plan CONFIG [ranks=N | ranks=A..B [--forward]] [key=value ...] [--json] [--print-config]\n"
    "         [--help-config]\n"
    "Memory, FLOPs and communication of a training step, counted by walking the real code without\n"
    "computing, and an estimate of its time. ranks=A..B: a table of A, 2A, 4A, ... up to B ranks;\n"
    "--forward: one forward pass instead of a step. No device is needed.\n"
    "A configuration of osp rl: an epoch, its rollouts and its updates apart.";

struct amount {
    const char *name;
    double value;
};
enum { MEMORY_KINDS = 12 };

static void memory_of(const struct dryrun_out *o, struct amount m[MEMORY_KINDS])
{
    const struct amount all[MEMORY_KINDS] = {{"masters", (double)o->master_bytes},
                                             {"moments", (double)o->moment_bytes},
                                             {"EMA", (double)o->ema_bytes},
                                             {"gradients", (double)o->grad_bytes},
                                             {"wire copies", (double)o->wire_bytes},
                                             {"gather slots", (double)o->slot_bytes},
                                             {"tables", (double)o->other_bytes},
                                             {"adapters", (double)o->lora_bytes},
                                             {"activations kept", (double)o->keep_bytes},
                                             {"temporaries", (double)o->tmp_bytes},
                                             {"device's own", (double)o->device_bytes},
                                             {"total", (double)dryrun_bytes(o)}};
    memcpy(m, all, sizeof all);
}

static const char *recompute_name(const struct dryrun_in *in)
{
    static const char *const name[] = {"all", "attention kept", "matrix products kept", "none"};
    static char by_block[256];
    if (!in->by_block) return in->recompute_blocks ? "by block" : name[in->recompute];
    fit_describe(&in->model, in->policy, by_block, sizeof by_block);
    return by_block;
}

const char *plan_grouped(int64_t v, char out[32])
{
    char digits[32];
    snprintf(digits, sizeof digits, "%lld", (long long)v);
    int n = 0, len = (int)strlen(digits);
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0) out[n++] = ',';
        out[n++] = digits[i];
    }
    out[n] = 0;
    return out;
}

/* F: full, T: token mode, G: group mode. */
char *plan_schedule(const struct model_config *m)
{
    enum block_kind kind[MAX_BLOCKS];
    struct err e = {0};
    plan_blocks(m, kind, &e);
    err_raise(&e);
    char *text = calloc(1, 2 * MAX_BLOCKS + 1);
    CHECK(text, "out of memory");
    for (int64_t i = 0; i < m->num_layers; i++) {
        text[2 * i] = "FTG"[kind[i]];
        text[2 * i + 1] = i + 1 < m->num_layers ? ' ' : 0;
    }
    return text;
}

static void print_head(FILE *out, const struct settings *s, const struct plan_cost *c)
{
    const struct mesh_degrees *d = &c->in.degrees;
    char a[32], b[32];
    char *blocks = plan_schedule(&s->model);
    fprintf(out, "parameters     %s\n", plan_grouped(c->rank.params, a));
    fprintf(out, "blocks         %s\n", blocks);
    fprintf(out, "ranks          %d = %d data x %d skiparse_sp x %d sp; fsdp %d, %d replica%s\n",
            c->ranks, c->dp, d->ssp, d->sp, d->fsdp, c->ranks / d->fsdp,
            c->ranks / d->fsdp > 1 ? "s" : "");
    fprintf(out, "batch          %lld a step: %d micro-batch%s of %d on each data rank\n",
            (long long)c->global_batch, c->num_micro, c->num_micro > 1 ? "es" : "", c->shape.batch);
    fprintf(out, "latent         %lld x %lld x %lld x %lld, %s tokens a sample\n",
            (long long)c->shape.channels, (long long)c->shape.t, (long long)c->shape.h,
            (long long)c->shape.w, plan_grouped(c->tokens / c->shape.batch, a));
    fprintf(out, "tokens a rank  %s", plan_grouped(c->rows_most, a));
    if (c->rows_least != c->rows_most)
        fprintf(out, " (least loaded: %s)", plan_grouped(c->rows_least, b));
    fprintf(out, "\nrecompute      %s\n", recompute_name(&c->in));
    free(blocks);
}

double plan_unit(double v, const char **letter)
{
    static const struct {
        double scale;
        const char *letter;
    } unit[] = {{1e15, "P"}, {1e12, "T"}, {1e9, "G"}, {1e6, "M"}};
    int i = 0;
    while (i < 3 && v < unit[i].scale) i++;
    *letter = unit[i].letter;
    return unit[i].scale;
}

void plan_print_memory(FILE *out, const struct dryrun_out *o)
{
    struct amount m[MEMORY_KINDS];
    memory_of(o, m);
    const bool large = m[MEMORY_KINDS - 1].value > 1e9;
    fprintf(out, "\nmemory of the largest rank, %s\n", large ? "GB" : "MB");
    for (int i = 0; i < MEMORY_KINDS; i++)
        if (m[i].value > 0 || (strcmp(m[i].name, "adapters") && strcmp(m[i].name, "device's own")))
            fprintf(out, "  %-18s %10.3f\n", m[i].name, (large ? 1e-9 : 1e-6) * m[i].value);
    const double gb = 1e-9 * m[MEMORY_KINDS - 1].value, share = gb / plan_chip.memory_gb;
    fprintf(out, "  %.0f %% of %.0f GB (%s)%s\n", 100 * share, plan_chip.memory_gb, plan_chip.name,
            share > 1      ? ": DOES NOT FIT"
            : share > 0.92 ? ": little room for the libraries"
                           : "");
}

static void print_flops(FILE *out, const struct plan_cost *c)
{
    const char *letter;
    const double unit = plan_unit(c->linear + c->attention, &letter);
    fprintf(out, "\nFLOPs of a sample, %sFLOP (multiply-add = 2)\n", letter);
    const struct amount row[] = {
        {"forward: linear layers", c->linear}, {"forward: attention", c->attention},
        {"forward", c->linear + c->attention}, {"model (3 linear + 3.5 attention)", c->model},
        {"model (3 forward)", c->megatron},    {"executed, with recompute", c->executed}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        fprintf(out, "  %-34s %12.6g\n", row[i].name, row[i].value / unit);
    if (c->replicated > 0)
        fprintf(out, "  done by several ranks of a sample  %12.3g %%\n", 100 * c->replicated);
}

static void print_comm(FILE *out, const struct settings *s, const struct plan_cost *c)
{
    fprintf(out, "\ncommunication of a step (sent by the largest rank)\n");
    double most = 0;
    for (int a = 0; a < AXIS_COUNT; a++)
        for (int k = 0; k < COMM_KINDS; k++) most = fmax(most, c->comm[a][k].bytes);
    const double unit = most > 1e9 ? 1e9 : 1e6;
    fprintf(out, "  %-12s %-15s %8s %12s  %s\n", "axis", "collective", "calls",
            most > 1e9 ? "GB" : "MB", "link");
    bool any = false;
    for (int a = 0; a < AXIS_COUNT; a++)
        for (int k = 0; k < COMM_KINDS; k++) {
            const struct comm_count *n = &c->comm[a][k];
            if (n->bytes <= 0) continue;
            const bool near = plan_axis_in_node(c, (enum axis)a);
            any = true;
            fprintf(out, "  %-12s %-15s %8lld %12.3f  %s, %g GB/s\n", plan_axis_name((enum axis)a),
                    plan_kind_name((enum comm_kind)k), (long long)n->calls, n->bytes / unit,
                    near ? "in the node" : "between nodes",
                    near ? s->plan.nvlink_gbps : s->plan.ib_gbps);
        }
    if (!any) fprintf(out, "  none\n");
}

static void print_time(FILE *out, const struct plan_cost *c)
{
    const double mfu =
        c->model * (double)c->global_batch / c->step_s / c->ranks / (1e12 * plan_chip.peak_tflops);
    fprintf(out,
            "\nestimate for %s: linear %.0f, attention %.0f forward and %.0f backward TFLOP/s, row "
            "ops %.1f TB/s\n",
            plan_chip.name, plan_chip.linear_tflops, plan_chip.attn_fwd_tflops,
            plan_chip.attn_bwd_tflops, plan_chip.row_tb_s);
    const struct amount row[] = {
        {"matrix products and attention", c->compute_s},
        {"row ops", c->rows_s},
        {"sequence exchanges", c->sequence_s},
        {c->waits ? "fsdp (gathers waited for)" : "fsdp (beside the compute)", c->fsdp_s},
        {"replicas", c->replica_s},
        {"step", c->step_s}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        fprintf(out, "  %-34s %12.4g s\n", row[i].name, row[i].value);
    fprintf(out, "  %.4g samples an hour, %.4g tokens/s, MFU %.1f %% of %.0f TFLOP/s\n",
            3600 * (double)c->global_batch / c->step_s,
            (double)(c->global_batch * c->tokens / c->shape.batch) / c->step_s, 100 * mfu,
            plan_chip.peak_tflops);
}

void plan_print(FILE *out, const struct settings *s, const struct plan_cost *c)
{
    print_head(out, s, c);
    plan_print_memory(out, &c->rank);
    print_flops(out, c);
    print_comm(out, s, c);
    print_time(out, c);
}

json_t *plan_memory_json(const struct dryrun_out *o)
{
    struct amount m[MEMORY_KINDS];
    memory_of(o, m);
    json_t *memory = json_object();
    for (int i = 0; i < MEMORY_KINDS; i++)
        json_object_set_new(memory, m[i].name, json_integer((json_int_t)m[i].value));
    return memory;
}

json_t *plan_comm_json(const struct plan_cost *c)
{
    json_t *list = json_array();
    for (int a = 0; a < AXIS_COUNT; a++)
        for (int k = 0; k < COMM_KINDS; k++)
            if (c->comm[a][k].bytes > 0)
                json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:f, s:b}", "axis",
                                                      plan_axis_name((enum axis)a), "kind",
                                                      plan_kind_name((enum comm_kind)k), "calls",
                                                      (json_int_t)c->comm[a][k].calls, "bytes",
                                                      c->comm[a][k].bytes, "in_node",
                                                      (int)plan_axis_in_node(c, (enum axis)a)));
    return list;
}

void plan_print_json(FILE *out, const struct settings *s, const struct plan_cost *c)
{
    char *blocks = plan_schedule(&s->model);
    json_t *all =
        json_pack("{s:I, s:s, s:i, s:i, s:i, s:i, s:I, s:i, s:I, s:I, s:s, s:o, s:o, s:o}",
                  "parameters", (json_int_t)c->rank.params, "blocks", blocks, "ranks", c->ranks,
                  "skiparse_sp_size", c->in.degrees.ssp, "sp_size", c->in.degrees.sp, "fsdp_size",
                  c->in.degrees.fsdp, "global_batch", (json_int_t)c->global_batch, "num_micro",
                  c->num_micro, "tokens_per_sample", (json_int_t)(c->tokens / c->shape.batch),
                  "tokens_per_rank", (json_int_t)c->rows_most, "recompute", recompute_name(&c->in),
                  "memory_bytes", plan_memory_json(&c->rank), "comm", plan_comm_json(c), "flops",
                  json_pack("{s:f, s:f, s:f, s:f, s:f}", "forward_linear", c->linear,
                            "forward_attention", c->attention, "model", c->model, "megatron",
                            c->megatron, "executed", c->executed));
    CHECK(all, "the plan cannot be encoded");
    json_object_set_new(all, "seconds",
                        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "matrix", c->compute_s, "rows",
                                  c->rows_s, "sequence", c->sequence_s, "fsdp", c->fsdp_s,
                                  "replica", c->replica_s, "step", c->step_s));
    CHECK(json_dumpf(all, out, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) == 0,
          "cannot write the plan");
    fprintf(out, "\n");
    json_decref(all);
    free(blocks);
}

/* Takes "A..B" out of a ranks= override, which then says A; false: there is none. */
static bool range_of(char **sets, int n, int *from, int *to)
{
    bool found = false;
    for (int i = 0; i < n; i++) {
        char *dots = strstr(sets[i], "..");
        if (strncmp(sets[i], "plan.ranks=", 11) != 0 || !dots) continue;
        char rest;
        if (sscanf(sets[i] + 11, "%d..%d%c", from, to, &rest) != 2 || *from < 1 || *to < *from)
            err_stop(RC_USAGE, "%s: expected A..B with 1 <= A <= B", sets[i] + 5);
        *dots = 0;
        found = true;
    }
    return found;
}

char **plan_keys(const struct args *a)
{
    char **sets = calloc((size_t)a->num_sets + 1, sizeof *sets);
    CHECK(sets, "out of memory");
    for (int i = 0; i < a->num_sets; i++)
        sets[i] = io_path("%s%s", strncmp(a->sets[i], "ranks=", 6) == 0 ? "plan." : "", a->sets[i]);
    return sets;
}

void plan_keys_free(char **sets, int n)
{
    for (int i = 0; i < n; i++) free(sets[i]);
    free(sets);
}

static void plan_one(const struct loaded_settings *l, const struct args *a)
{
    if (a->forward) err_stop(RC_USAGE, "--forward belongs to ranks=A..B\n%s", usage);
    settings_check_ranks(l, (int)l->s.plan.ranks);
    struct plan_cost c;
    plan_cost(&l->s, (int)l->s.plan.ranks, &c);
    (a->json ? plan_print_json : plan_print)(stdout, &l->s, &c);
}

int verb_plan(int argc, char **argv)
{
    struct args a;
    args_parse(&a, argc, argv, usage);
    char **sets = plan_keys(&a), **given = a.sets;
    a.sets = sets;
    int rc = RC_OK;
    if (a.help_config || a.print_config) {
        rc = print_config(SETTINGS_PLAN, &a);
    } else {
        if (!a.config || a.num_rest) err_stop(RC_USAGE, "%s", usage);
        if (a.json) log_set_level(LOG_WARN_ALL); /* nothing but JSON on stdout */
        int from = 0, to = 0;
        const bool range = range_of(sets, a.num_sets, &from, &to);
        struct loaded_settings l;
        settings_load(&l, SETTINGS_PLAN, a.config, a.sets, a.num_sets);
        if (range)
            plan_scaling(stdout, &l.s, from, to, a.forward);
        else
            plan_one(&l, &a);
        settings_free(&l);
    }
    a.sets = given;
    plan_keys_free(sets, a.num_sets);
    args_free(&a);
    return rc;
}
