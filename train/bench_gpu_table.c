/* The ratios of `osp bench gpu` against what is aimed at on an H200 (docs/gpu-log.md): markdown. A
 * row whose cases were not measured says so; no row is left out. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "train/bench_gpu.h"
#include "train/plan.h"

enum { MAX_ROWS = 16 };
struct row {
    const char *what;
    double value; /* NaN: not measured */
    double accept, moonshot;
    bool at_most;
    const char *why; /* in place of a value */
};

static const struct gpu_result *find(const struct gpu_report *r, const char *name, const char *side,
                                     const char *variant)
{
    const struct gpu_result *best = NULL;
    for (int i = 0; i < r->num_results; i++) {
        const struct gpu_result *x = &r->result[i];
        if (strcmp(x->c->name, name) || strcmp(x->side, side) || strcmp(x->variant, variant))
            continue;
        /* the fastest of PyTorch's backends is the one to beat */
        if (!best || x->median < best->median) best = x;
    }
    return best;
}

static const struct gpu_result *ours(const struct gpu_report *r, const char *name)
{
    return find(r, name, "osp", "");
}

static double seconds(const struct gpu_result *x) { return x ? x->median : NAN; }

static double full_over_sparse(const struct gpu_report *r, const char *full, const char *sparse)
{
    return seconds(ours(r, full)) / seconds(ours(r, sparse));
}

/* How many times faster than PyTorch; not where results differ or were not compared. */
static double over_torch(const struct gpu_report *r, const char *name)
{
    const struct gpu_result *t = find(r, name, "torch", "padded");
    if (!t) t = find(r, name, "torch", "full"); /* of a model without sparse blocks */
    if (!t || !(t->error >= 0 && t->error <= r->limit)) return NAN;
    return seconds(t) / seconds(ours(r, name));
}

/* A model of 8 full and 32 sparse blocks on 4 ranks, by the two blocks at the load of one of them:
 * a quarter of its FLOPs (without recompute) in the time of 8 + 32 blocks. Without embedding, head
 * and exchanges. */
static double cluster_mfu(const struct gpu_report *r)
{
    const struct gpu_result *f = ours(r, "14b_720p_block_full_of_4"),
                            *s = ours(r, "14b_720p_block_sparse_of_4");
    if (!f || !s) return NAN;
    const double time = 8 * f->median + 32 * s->median;
    return (8 * f->c->flops + 32 * s->c->flops) / time / (1e12 * plan_chip.peak_tflops);
}

static double elementwise(const struct gpu_report *r)
{
    const struct gpu_result *x = ours(r, "14b_720p_sparse");
    if (!x || !(x->shares.products > 0)) return NAN;
    return 1 - (x->shares.products + x->shares.attention) / x->median;
}

static double mfu(const struct gpu_result *x)
{
    return x ? x->c->flops / x->median / (1e12 * plan_chip.peak_tflops) : NAN;
}

/* variant=short. There is no acceptance for it: what is aimed at are estimates (docs/gpu-log.md).
 */
static int short_rows(const struct gpu_report *r, struct row *row)
{
    static const char step[] = "1.3b_480p_sparse_step_keep_attention";
    static const char again[] = "1.3b_480p_sparse_step_recompute_all";
    const struct row list[] = {
        {"14B 480P full forward, s", seconds(ours(r, "14b_480p_full")), 0, 2.3, true, NULL},
        {"14B 480P sparse forward, s", seconds(ours(r, "14b_480p_sparse")), 0, 1.6, true, NULL},
        {"full / sparse at 480P (1.46 in FLOPs)",
         full_over_sparse(r, "14b_480p_full", "14b_480p_sparse"), 0, 0, false, NULL},
        {"ours / torch, 14B full 480P", over_torch(r, "14b_480p_full"), 0, 0, false, NULL},
        {"ours / torch, 14B sparse 480P (padded torch)", over_torch(r, "14b_480p_sparse"), 0, 0,
         false, NULL},
        {"1.3B 480P sparse training step, attention kept, s", seconds(ours(r, step)), 0, 1.15, true,
         NULL},
        {"the same, MFU", mfu(ours(r, step)), 0, 0, false, NULL},
        {"the same / torch with full checkpointing", over_torch(r, step), 0, 0, false, NULL},
        {"the same, full recompute on both sides", over_torch(r, again), 0, 0, false, NULL}};
    memcpy(row, list, sizeof list);
    return (int)(sizeof list / sizeof *list);
}

static int make_rows(const struct gpu_report *r, struct row *row)
{
    if (strcmp(r->o->variant, "short") == 0) return short_rows(r, row);
    static const char step[] = "1.3b_720p_sparse_step_keep_attention";
    static const char again[] = "1.3b_720p_sparse_step_recompute_all";
    const struct gpu_result *sparse = ours(r, "14b_720p_sparse");
    const struct row list[] = {
        {"14B 720P sparse forward, s", seconds(sparse), 5.8, 5.4, true, NULL},
        {"full / sparse at 720P", full_over_sparse(r, "14b_720p_full", "14b_720p_sparse"), 1.65,
         1.74, false, NULL},
        {"full / sparse at 768x1280", full_over_sparse(r, "14b_768p_full", "14b_768p_sparse"), 1.70,
         1.77, false, NULL},
        {"14B 720P full forward, s", seconds(ours(r, "14b_720p_full")), 9.6, 9.35, true, NULL},
        {"ours / torch, 14B sparse 720P (padded torch)", over_torch(r, "14b_720p_sparse"), 1.08,
         1.2, false, NULL},
        {"1.3B 720P sparse training step, attention kept, s", seconds(ours(r, step)), 4.5, 4.1,
         true, NULL},
        {"the same, MFU", mfu(ours(r, step)), 0, 0.55, false, NULL},
        {"the same / torch with full checkpointing", over_torch(r, step), 1.25, 1.4, false, NULL},
        {"the same, full recompute on both sides", over_torch(r, again), 1.1, 1.2, false, NULL},
        {"blocks at the load of 1 of 4 ranks: MFU of a cluster", cluster_mfu(r), 0.50, 0.58, false,
         NULL},
        {"8 GPUs 720P sparse, 100 forwards, s", NAN, 78, 70, true, "not measured here: one GPU"},
        {"elementwise part of a 14B 720P sparse forward", elementwise(r), 0.06, 0.035, true, NULL},
        {"peak device memory, 14B 720P sparse forward, GB",
         sparse && sparse->bytes > 0 ? 1e-9 * sparse->bytes : NAN, 45, 36, true, NULL}};
    memcpy(row, list, sizeof list);
    return (int)(sizeof list / sizeof *list);
}

static const char *verdict(const struct gpu_report *r, const struct row *w, double aim)
{
    if (isnan(w->value)) return "not measured";
    if (strcmp(r->o->device, "cuda") || strcmp(r->o->scale, "full")) return "not judged";
    return (w->at_most ? w->value <= aim : w->value >= aim) ? "yes" : "**no**";
}

static void print_row(FILE *out, const struct gpu_report *r, const struct row *w)
{
    char value[48], aim[2][32];
    snprintf(value, sizeof value, "%s", w->why ? w->why : "not measured");
    if (!isnan(w->value)) snprintf(value, sizeof value, "%.4g", w->value);
    const double goal[2] = {w->accept, w->moonshot};
    for (int i = 0; i < 2; i++) {
        snprintf(aim[i], sizeof aim[i], "%s %g", w->at_most ? "<=" : ">=", goal[i]);
        if (!(goal[i] > 0)) snprintf(aim[i], sizeof aim[i], "-");
    }
    fprintf(out, "| %s | %s | %s | %s | %s | %s |\n", w->what, value, aim[0],
            w->accept > 0 ? verdict(r, w, w->accept) : "-", aim[1],
            w->moonshot > 0 ? verdict(r, w, w->moonshot) : "-");
}

static void print_result(FILE *out, const struct gpu_report *r, const struct gpu_result *x)
{
    const double rate = 1e-12 * x->c->flops / x->median;
    char speed[48], memory[32] = "", error[48] = "";
    if (x->c->kind == GPU_COPY)
        snprintf(speed, sizeof speed, "%.0f GB/s |", 2e-9 * (double)x->c->bytes / x->median);
    else
        snprintf(speed, sizeof speed, "%.4g TF/s | %.3f", rate, rate / plan_chip.peak_tflops);
    if (x->bytes > 0) snprintf(memory, sizeof memory, "%.2f", 1e-9 * x->bytes);
    if (x->error >= 0)
        snprintf(error, sizeof error, x->error <= r->limit ? "%.1e" : "**%.1e**", x->error);
    fprintf(out, "| %c | %s | %s %s %s | %.4g (%.4g-%.4g, %d) | %s | %s | %s |\n", x->c->part,
            x->c->name, x->side, x->variant, x->sdpa, x->median, x->min, x->max, x->runs, speed,
            memory, error);
}

static void print_head(FILE *out, const struct gpu_report *r)
{
    char day[32];
    const time_t now = time(NULL);
    struct tm tm;
    strftime(day, sizeof day, "%Y-%m-%d %H:%M", gmtime_r(&now, &tm));
    fprintf(out, "%s UTC, commit %s, `%s`\n\n", day, r->commit, r->command);
    fprintf(out, "- ours: %s\n- PyTorch: %s\n", r->about,
            *r->torch_about ? r->torch_about : "not asked (torch=PYTHON)");
    if (r->wrong)
        fprintf(out, "- **outputs differ by more than %g: ratios of those cases are left out**\n",
                r->limit);
}

void gpu_table(FILE *out, const struct gpu_report *r)
{
    struct row row[MAX_ROWS];
    const int n = make_rows(r, row);
    fprintf(out, "\n## osp bench gpu\n\n");
    print_head(out, r);
    fprintf(out, "\n| ratio | value | acceptance | reached | moonshot | reached |\n"
                 "|---|---|---|---|---|---|\n");
    for (int i = 0; i < n; i++) print_row(out, r, &row[i]);
    fprintf(out,
            "\n| part | case | side | seconds (least-most, runs) | speed | MFU of %g | peak GB "
            "| error |\n|---|---|---|---|---|---|---|---|\n",
            plan_chip.peak_tflops);
    for (int i = 0; i < r->num_results; i++) print_result(out, r, &r->result[i]);
    for (int i = 0; i < r->num_cases; i++)
        if (*r->missing[i])
            fprintf(out, "| %c | %s | | %s | | | | |\n", r->cases[i].part, r->cases[i].name,
                    r->missing[i]);
}

void gpu_log_text(FILE *out, const struct gpu_report *r)
{
    fprintf(out, "\n<!-- append to docs/gpu-log.md -->\n");
    gpu_table(out, r);
}
