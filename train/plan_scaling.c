/* osp plan ranks=A..B: how a job scales, a line for each number of ranks. */
#include <stdio.h>

#include "train/plan.h"

/* The settings as they can run on this many ranks. What had to give way is marked: s the shards
 * span all ranks, b the batch is what batch_size gives. */
static struct settings fit(const struct settings *s, int ranks, char marks[4])
{
    struct settings t = *s;
    int n = 0;
    if (t.fsdp_size != FSDP_AUTO && ranks % t.fsdp_size) {
        t.fsdp_size = FSDP_AUTO;
        marks[n++] = 's';
    }
    const struct mesh_degrees d = session_degrees(&t, ranks);
    const int64_t dp = ranks / (d.ssp * d.sp), batch = t.data.batch_size ? t.data.batch_size : 1;
    if (dp && t.data.global_batch_size && t.data.global_batch_size % (dp * batch)) {
        t.data.global_batch_size = 0;
        t.data.batch_size = batch;
        marks[n++] = 'b';
    }
    marks[n] = 0;
    return t;
}

static void head(FILE *out, bool forward)
{
    if (forward)
        fprintf(out, "one forward pass\n%6s %5s %4s %4s %8s %8s %9s %9s\n", "ranks", "data", "ssp",
                "sp", "compute", "exchange", "seconds", "speed-up");
    else
        fprintf(out,
                "one training step\n%6s %5s %4s %4s %5s %6s %8s %8s %8s %9s %10s %6s %10s %7s\n",
                "ranks", "data", "ssp", "sp", "fsdp", "batch", "compute", "exchange", "fsdp",
                "step s", "samples/h", "MFU", "efficiency", "GB");
}

static void row(FILE *out, const struct plan_cost *c, const char *marks, bool forward,
                double *first)
{
    const struct mesh_degrees *d = &c->in.degrees;
    const double per_rank = (double)c->global_batch / c->step_s / c->ranks;
    const double compute = c->compute_s + c->rows_s;
    if (!*first) *first = forward ? c->step_s : per_rank;
    fprintf(out, "%6d %5d %4d %4d ", c->ranks, c->dp, d->ssp, d->sp);
    if (forward)
        fprintf(out, "%8.3f %8.4f %9.3f %9.2f\n", compute, c->sequence_s, c->step_s,
                *first / c->step_s);
    else
        fprintf(out, "%5d %6lld %8.3f %8.4f %8.3f %9.3f %10.0f %5.1f%% %9.1f%% %7.1f %s\n", d->fsdp,
                (long long)c->global_batch, compute, c->sequence_s, c->fsdp_s, c->step_s,
                3600 * (double)c->global_batch / c->step_s,
                100 * c->model * per_rank / (1e12 * plan_chip.peak_tflops), 100 * per_rank / *first,
                1e-9 * (double)dryrun_bytes(&c->rank), marks);
}

void plan_scaling(FILE *out, const struct settings *s, int from, int to, bool forward)
{
    double first = 0;
    bool gave_way = false;
    head(out, forward);
    for (int64_t ranks = from; ranks <= to; ranks *= 2) {
        char marks[4] = "";
        const struct settings t = fit(s, (int)ranks, marks);
        const struct mesh_degrees d = session_degrees(&t, (int)ranks);
        if (ranks % (d.ssp * d.sp)) {
            fprintf(out, "%6lld  %d ranks a sample do not divide them\n", (long long)ranks,
                    d.ssp * d.sp);
            continue;
        }
        struct plan_cost c;
        (forward ? plan_forward : plan_cost)(&t, (int)ranks, &c);
        row(out, &c, marks, forward, &first);
        gave_way |= *marks && !forward;
    }
    if (gave_way)
        fprintf(out,
                "s: fsdp_size %lld does not divide the ranks, sharded over all of them;\n"
                "b: global_batch_size %lld does not, one batch_size on each data rank\n",
                (long long)s->fsdp_size, (long long)s->data.global_batch_size);
    fprintf(out,
            "%s: linear %.0f, attention %.0f and %.0f TFLOP/s, row ops %.1f TB/s, %g GB/s in a "
            "node of %d, %g GB/s a rank between nodes\n",
            plan_chip.name, plan_chip.linear_tflops, plan_chip.attn_fwd_tflops,
            plan_chip.attn_bwd_tflops, plan_chip.row_tb_s, s->plan.nvlink_gbps, plan_chip.per_node,
            s->plan.ib_gbps);
}
