/* From counts to seconds: compute at stated rates, links at stated rates (docs/scaling.md). */
#include <math.h>

#include "train/plan.h"

/* Ranks are numbered node by node, the last mesh factor fastest. */
int plan_axis_size(const struct plan_cost *c, enum axis a)
{
    const struct mesh_degrees *d = &c->in.degrees;
    switch (a) {
    case AXIS_DP:
        return c->dp;
    case AXIS_SSP:
        return d->ssp;
    case AXIS_SP:
        return d->sp;
    case AXIS_SEQ:
        return d->ssp * d->sp;
    case AXIS_FSDP:
        return d->fsdp;
    case AXIS_REPLICA:
        return c->ranks / d->fsdp;
    default:
        return c->ranks;
    }
}

static int stride_of(const struct plan_cost *c, enum axis a)
{
    const struct mesh_degrees *d = &c->in.degrees;
    return a == AXIS_SSP ? d->sp : a == AXIS_DP ? d->sp * d->ssp : a == AXIS_REPLICA ? d->fsdp : 1;
}

int plan_axis_near(const struct plan_cost *c, enum axis a)
{
    const int n = plan_axis_size(c, a), per = plan_chip.per_node / stride_of(c, a);
    return n < per ? n : per > 1 ? per : 1;
}

bool plan_axis_in_node(const struct plan_cost *c, enum axis a)
{
    return plan_axis_near(c, a) == plan_axis_size(c, a);
}

/* Rings (gathers, scatters, sums): all bytes pass every link of the ring; the rings of a node leave
 * it by as many network cards as it has ranks on the axis. Exchanges: every peer gets its part, the
 * near and the far ones at the same time. */
static double kind_seconds(const struct settings *s, const struct plan_cost *c, enum axis a,
                           enum comm_kind k)
{
    const int n = plan_axis_size(c, a), near = plan_axis_near(c, a);
    const struct comm_count *count = &c->comm[a][k];
    if (n < 2 || count->calls == 0) return 0;
    const double nvlink = 1e9 * s->plan.nvlink_gbps, ib = 1e9 * s->plan.ib_gbps;
    const double hops = (double)n / near - 1, calls = (double)count->calls;
    if (k == COMM_EXCHANGE) {
        const double far = (double)(n - near) / (n - 1);
        return fmax(count->bytes * (1 - far) / nvlink, count->bytes * far / ib) +
               1e-6 * calls * (near < n ? plan_chip.far_us : plan_chip.near_us);
    }
    const double link = near == n ? nvlink : fmin(nvlink, near * ib);
    return count->bytes / link +
           1e-6 * calls * (hops * plan_chip.far_us + (n - 1 - hops) * plan_chip.near_us);
}

double plan_axis_seconds(const struct settings *s, const struct plan_cost *c, enum axis a)
{
    double sum = 0;
    for (int k = 0; k < COMM_KINDS; k++) sum += kind_seconds(s, c, a, (enum comm_kind)k);
    return sum;
}

/* The backward phase holds what is recomputed; attention beyond 2.5 forwards is that. */
double plan_matrix_seconds(const struct dryrun_phase *f, const struct dryrun_phase *b)
{
    const double backward = fmin(b->attn_flops, 2.5 * f->attn_flops);
    return 1e-12 * ((f->gemm_flops + b->gemm_flops) / plan_chip.linear_tflops +
                    (f->attn_flops + b->attn_flops - backward) / plan_chip.attn_fwd_tflops +
                    backward / plan_chip.attn_bwd_tflops);
}

void plan_estimate(const struct settings *s, struct plan_cost *c, double matrix, double row_bytes)
{
    c->compute_s = c->num_micro * matrix;
    c->rows_s = c->num_micro * 1e-12 * row_bytes / plan_chip.row_tb_s;
    c->sequence_s = plan_axis_seconds(s, c, AXIS_SP) + plan_axis_seconds(s, c, AXIS_SSP) +
                    plan_axis_seconds(s, c, AXIS_SEQ);
    c->fsdp_s = plan_axis_seconds(s, c, AXIS_FSDP);
    c->replica_s = plan_axis_seconds(s, c, AXIS_REPLICA);
    double busy = c->compute_s + c->rows_s;
    /* gathers and scatters run beside the blocks; the exchanges of a sequence stand between them,
     * and so do the gathers when none is started ahead */
    c->gathers_s = kind_seconds(s, c, AXIS_FSDP, COMM_ALL_GATHER);
    c->waits = c->in.fsdp.prefetch == 0 && c->gathers_s > 0;
    if (c->waits) busy += c->gathers_s;
    c->step_s = fmax(busy + c->sequence_s, c->fsdp_s) + c->replica_s;
}
