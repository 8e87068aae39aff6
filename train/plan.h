/* What a training step costs, without running it: the dry run for all ranks of one sequence group,
 * and an estimate of the time from a table of rates. Pure functions of the settings. */
#ifndef TRAIN_PLAN_H
#define TRAIN_PLAN_H
#include <jansson.h>
#include <stdio.h>

#include "train/args.h"
#include "train/dryrun.h"
#include "train/session.h"

/* Rates of one H200 that the estimate assumes: what good kernels reach on it, not its peak. */
struct chip {
    const char *name;
    double memory_gb, peak_tflops; /* dense bf16 */
    double linear_tflops, attn_fwd_tflops, attn_bwd_tflops;
    double row_tb_s; /* bytes of the row ops */
    int per_node;
    double near_us, far_us; /* latency of a hop of a collective: in the node, between nodes */
};
extern const struct chip plan_chip;

struct plan_cost {
    int ranks, dp, num_micro;
    int64_t global_batch;
    struct session_shape shape;
    struct dryrun_in in;
    int level;              /* of recompute: auto (train/fit.h) */
    struct dryrun_out rank; /* of the rank that needs the most memory */
    int64_t rows_least, rows_most, tokens;
    /* FLOPs of one sample */
    double linear, attention;         /* forward */
    double model, megatron, executed; /* forward and backward */
    double replicated; /* what the ranks of a sample do beyond one rank's work, as a part of it */
    /* bytes that the largest rank sends in a step */
    struct comm_count comm[AXIS_COUNT][COMM_KINDS];
    /* estimate, seconds */
    double compute_s, rows_s, sequence_s, fsdp_s, replica_s, step_s;
    double gathers_s; /* of fsdp_s */
    bool waits;       /* no gather is started ahead: the step waits for each */
};
struct session_shape plan_latent(const struct settings *s, int dp);
void plan_cost(const struct settings *s, int ranks, struct plan_cost *out);
/* One forward pass of one sample on each data rank, as in sampling: time and communication only. */
void plan_forward(const struct settings *s, int ranks, struct plan_cost *out);
int plan_axis_size(const struct plan_cost *c, enum axis a);
int plan_axis_near(const struct plan_cost *c, enum axis a); /* its ranks in one node */
bool plan_axis_in_node(const struct plan_cost *c, enum axis a);
/* Pieces of the above: seconds of the matrix products and attention of one micro-batch; all
 * estimates of c from its counts. */
double plan_matrix_seconds(const struct dryrun_phase *forward, const struct dryrun_phase *backward);
void plan_estimate(const struct settings *s, struct plan_cost *c, double matrix, double row_bytes);
/* osp plan ranks=A..B: a line for each power-of-two multiple of A up to B. */
void plan_scaling(FILE *out, const struct settings *s, int from, int to, bool forward);
const char *plan_axis_name(enum axis a);
const char *plan_kind_name(enum comm_kind k);
double plan_axis_seconds(const struct settings *s, const struct plan_cost *c, enum axis a);
/* Parts of the pages, for other plans. */
const char *plan_grouped(int64_t v, char out[32]); /* 14288491584 -> "14,288,491,584" */
char *plan_schedule(const struct model_config *m); /* "F F T G ...": kinds of blocks; malloc'ed */
double plan_unit(double v, const char **letter);   /* the largest of M, G, T, P below v */
void plan_print_memory(FILE *out, const struct dryrun_out *o);
json_t *plan_memory_json(const struct dryrun_out *o);
json_t *plan_comm_json(const struct plan_cost *c);
/* ranks=N is short for plan.ranks=N: the overrides of a in full; free with plan_keys_free. */
char **plan_keys(const struct args *a);
void plan_keys_free(char **sets, int n);
void plan_print(FILE *out, const struct settings *s, const struct plan_cost *c);
void plan_print_json(FILE *out, const struct settings *s, const struct plan_cost *c);
#endif
