/* `osp bench gpu`: speed of the hot operations, of whole forward passes and training steps, and of
 * one block at the load of a cluster, on one device, and beside PyTorch (scripts/bench_torch.py).
 *
 *   cases   what there is to measure: sizes only                          bench_gpu_cases.c
 *   work    a case opened on a device, ready to run again and again       bench_gpu_ops.c, _model.c
 *   plan    the same work on the null device: FLOPs and bytes, counted    bench_gpu_plan.c
 *   timing  clock around runs, share of the products by op                bench_gpu_time.c
 *   torch   the other side, a child process that is told line by line     bench_gpu_torch.c
 *   table   ratios against what is aimed at                               bench_gpu_table.c
 *
 * All random numbers come from the counters of core/rng.h, so that the other side draws the same
 * weights and inputs by itself; nothing is ever zero. */
#ifndef TRAIN_BENCH_GPU_H
#define TRAIN_BENCH_GPU_H
#include <jansson.h>

#include "core/arena.h"
#include "core/dev.h"
#include "model/config.h"

enum { GPU_MAX_CASES = 64, GPU_MAX_RUNS = 100, GPU_MAX_SIDES = 8, GPU_SEED = 1 };
enum gpu_kind { GPU_COPY, GPU_GEMM, GPU_ATTENTION, GPU_FORWARD, GPU_STEP, GPU_BLOCK };
enum gpu_product { PRODUCT_Y, PRODUCT_DX, PRODUCT_DW }; /* y = x W', dx = dy W, dW = dy' x */
struct gpu_case {
    char part; /* 'A' to 'E' */
    char name[64];
    enum gpu_kind kind;
    int64_t bytes;                      /* copy: of one side */
    enum gpu_product product;           /* gemm: x [rows, in], W [out, in] */
    int64_t rows, out, in;              /* ... */
    bool backward;                      /* attention: its backward pass */
    int heads, head_dim, num_lens;      /* over num_lens sequences */
    int32_t lens[4];                    /* ... */
    struct model_config model;          /* forward, step, block; one sample */
    int t, h, w;                        /* token grid */
    enum recompute policy;              /* step, block */
    int ssp, sp;                        /* block: load of rank 0 of ssp * sp */
    int runs, warm;                     /* timed runs; calls before them */
    double flops, attn_flops, executed; /* filled by gpu_plan, see there */
    double plan_bytes;                  /* ... */
};
struct gpu_options {
    char device[16], dtype[16], part[16], variant[8], scale[8], sdpa[64];
    int64_t budget_s, runs, threads;
    bool cases, compare; /* only list them; only compare the outputs, no clock */
    const char *torch, *script, *out;
};
/* Cases of the parts and the variant in o, in the order they run; returns their number. */
int gpu_cases(const struct gpu_options *o, struct gpu_case *list);
/* The case cut down for the comparison of outputs: the same widths, few blocks with every way
 * between their kinds, a small grid. */
struct gpu_case gpu_check_case(const struct gpu_case *c);
json_t *gpu_case_json(const struct gpu_case *c, const char *dtype);
bool gpu_sparse(const struct gpu_case *c);
bool gpu_has_model(const struct gpu_case *c);

/* An open case: buffers, weights, inputs. */
struct gpu_work {
    struct dev *dev;
    const struct gpu_case *c;
    struct gpu_ops_work *ops;     /* copy, gemm, attention */
    struct gpu_model_work *model; /* forward, step, block */
};
/* dry: on the null device, to count; otherwise arenas are as large as gpu_plan found. */
struct gpu_arenas {
    size_t keep, tmp;
};
struct gpu_work gpu_open(struct dev *dev, const struct gpu_case *c, struct gpu_arenas a);
void gpu_close(struct gpu_work *w);
void gpu_warm(struct gpu_work *w);  /* everything compiled and chosen; cheaper than a run */
void gpu_ready(struct gpu_work *w); /* before each timed run, not timed */
void gpu_run(struct gpu_work *w);
/* Results of the last run as raw little-endian float32, one file each, for the other side: "out",
 * "dx", "grad.NAME". Tokens are in the plain order (t, row, column), latents are [C,T,H,W]. */
void gpu_dump(struct gpu_work *w, const char *folder);

/* Runs the case on the null device. flops: what the model needs: forward + backward without any
 * recompute, attention's backward pass as 2.5 forward passes, a block at the load of one of n ranks
 * as 1/n of the whole block; executed: what runs, with recompute; bytes:
 * states and the peaks of both arenas. Returns the size of the arenas. */
struct gpu_arenas gpu_plan(struct gpu_case *c, enum dtype compute);

/* Seconds of `inner` runs, device idle before and after, divided by inner. */
double gpu_seconds(struct gpu_work *w, int inner);
/* How many runs fill 50 ms. */
int gpu_inner(struct gpu_work *w);
struct gpu_shares { /* seconds of one run */
    double products, attention, rest;
};
/* One run with the clock around every matrix product and every attention. */
struct gpu_shares gpu_profile(struct gpu_work *w);

/* The parts of gpu_open and the others. */
struct gpu_ops_work *gpu_ops_open(struct dev *dev, const struct gpu_case *c);
void gpu_ops_run(struct gpu_ops_work *w);
void gpu_ops_dump(struct gpu_ops_work *w, const char *folder);
void gpu_ops_close(struct gpu_ops_work *w);
struct gpu_model_work *gpu_model_open(struct dev *dev, const struct gpu_case *c,
                                      struct gpu_arenas a);
void gpu_model_warm(struct gpu_model_work *w);
void gpu_model_ready(struct gpu_model_work *w);
void gpu_model_run(struct gpu_model_work *w);
void gpu_model_dump(struct gpu_model_work *w, const char *folder);
void gpu_model_close(struct gpu_model_work *w);
struct gpu_arenas gpu_model_peaks(const struct gpu_model_work *w);
/* item-th normal tensor of the bench, by element. */
void gpu_normal(struct dev *dev, struct tensor x, uint64_t item, double std);
double gpu_normal_at(uint64_t item, uint64_t index);
/* Tensor of a device as float32 into folder/name.f32, rows permuted: row r of the file is
 * row[r] of x; row NULL: as they are. */
void gpu_write(struct dev *dev, struct tensor x, const int64_t *row, const char *folder,
               const char *name);

/* The other side. NULL where it does not start: e says why. */
struct gpu_torch;
struct gpu_torch *gpu_torch_open(const struct gpu_options *o, struct err *e);
void gpu_torch_close(struct gpu_torch *t);
/* Sends request (stolen), waits for the answer at most so long; an answer {"error": ...}, a dead
 * child and silence are errors (NULL). */
json_t *gpu_torch_ask(struct gpu_torch *t, json_t *request, double seconds, struct err *e);

/* One finished measurement. */
struct gpu_result {
    const struct gpu_case *c;
    char side[8];     /* "osp", "torch" */
    char variant[16]; /* torch: full, padded, free; ours: "" */
    char sdpa[16];    /* torch: backend of attention */
    double median, min, max;
    int runs;
    double bytes;             /* peak on the device; negative: not known */
    double error;             /* against the other side, by norm; negative: not compared */
    struct gpu_shares shares; /* ours, forward only; rest = 0: not measured */
};
struct gpu_report {
    const struct gpu_options *o;
    const struct gpu_case *cases;
    int num_cases;
    struct gpu_result result[GPU_MAX_CASES * GPU_MAX_SIDES];
    int num_results;
    char missing[GPU_MAX_CASES][160]; /* by case: why it was not measured; "": it was */
    double limit;                     /* of the errors */
    bool wrong;                       /* some output differs by more */
    char about[256], torch_about[256], commit[64], command[512];
};
json_t *gpu_result_json(const struct gpu_result *r);
void gpu_print(json_t *j); /* one line on stdout; steals j */
void gpu_table(FILE *out, const struct gpu_report *r);
/* The text to append to docs/gpu-log.md. */
void gpu_log_text(FILE *out, const struct gpu_report *r);
/* Measures all cases of r into it; RC_SOFTWARE when outputs differ or the other side failed. */
int gpu_measure(struct gpu_report *r, struct dev *dev, struct gpu_case *cases);
#endif
