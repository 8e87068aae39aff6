/* Devices and their table of ops. Model code calls only the functions below; nothing above core/
 * knows which device runs. Four tables: ref (naive loops in f32 and f64: the oracle), cpu
 * (default: f32, bf16), cuda, null (computes nothing: checks shapes, counts FLOPs and bytes).
 *
 * Types. T = compute dtype of activations and of the gathered weights (f64, f32 or bf16);
 * S = dtype_state(T) (f64 or f32) for statistics, modulation, gradients of parameters and losses.
 * Inside an op all arithmetic is at least f32, with one rounding at the end.
 * Conventions. Activation gradients are written (=), parameter gradients are added (+=).
 * A row belongs to batch sample b = row / (rows / B): the batch is the slowest dimension of every
 * layout. Outputs never alias inputs unless said. Reductions use an order that does not depend on
 * the number of threads. Formulas: docs/spec/model.md 1.4, 1.5, 1.8. */
#ifndef CORE_DEV_H
#define CORE_DEV_H
#include "core/err.h"
#include "core/rng.h"
#include "core/tensor.h"

struct dev;

/* gemm: c = alpha * op(a) op(b) + beta * c, then the epilogue. a, b: T; c: T or S. */
enum epilogue {
    EPI_NONE,
    EPI_BIAS, /* + bias[n] (dtype of b) */
    /* aux = c + bias (T, [m,n]); c = gelu_tanh(aux); aux data NULL: the same c (from cuBLASLt but
     * for the last bits: it may take another algorithm) */
    EPI_BIAS_GELU,
    EPI_DGELU,    /* c *= gelu_tanh'(aux) */
    EPI_BIAS_GRAD /* bias[m] += sum over k of op(a)[m,k] (S): with op(a) = dy', the bias gradient */
};
struct gemm_args {
    struct tensor c, a, b; /* 2-D, rows may be strided */
    bool trans_a, trans_b;
    double alpha, beta;
    enum epilogue epilogue;
    struct tensor bias, aux;
};

/* Attention runs over n independent pairs of row ranges (host arrays). Lengths may be 0 on either
 * side: a query without keys gives 0 and lse = -inf. */
struct seqs {
    int n;
    const int32_t *q_first, *q_len, *k_first, *k_len;
};
/* q, o: [q rows, heads, head_dim] T; k, v: [k rows, heads, head_dim] T, rows strided; head_dim
 * even, at most 256. lse: [q rows, heads] S, natural log of the sum of exp(scale * q.k). Rows of o
 * that no range covers are left alone. */
struct attn_args {
    struct tensor o, lse, q, k, v;
    const struct seqs *seqs;
    double scale;
};
/* dq, dk, dv are written for the covered rows (a key range may appear once only). */
struct attn_grad_args {
    struct tensor dq, dk, dv, d_o, o, lse, q, k, v;
    const struct seqs *seqs;
    double scale;
};

/* Rotary tables: cos and sin of pos * freq for each axis (t, row, column), [max_pos, pairs] S.
 * Pair p of a head = elements (2p, 2p+1); the first pairs[0] turn with t, then pairs[1] with the
 * row, pairs[2] with the column. */
struct rope {
    int pairs[3];
    struct tensor cos[3], sin[3];
};
/* out = rope(x * rstd * w): RMS norm over the whole row, then rotation per head.
 * x, out, dy, dx: [rows, C] T; w, dw: [C] S; rstd: [rows] S;
 * pos: [rows, 3] i16 (negative: no rotation of this row), data NULL: no rotation at all, and nobody
 * looks at heads.
 * out may be x. */
struct norm_rope_args {
    struct tensor out, rstd, x, w, pos;
    const struct rope *rope;
    int heads;
    double eps;
};
struct norm_rope_grad_args {
    struct tensor dx, dw, dy, x, rstd, w, pos;
    const struct rope *rope;
    int heads;
    double eps;
};

/* out = xhat * (one + scale[b]) + shift[b], xhat = (x - mean) * rstd over each row.
 * scale, shift: [B, C] S, rows may be strided; data NULL in both: out = xhat.
 * one = 1: modulation (AdaLN); one = 0 and B = 1: an affine LayerNorm. mean, rstd: [rows] S. */
struct ln_args {
    struct tensor out, mean, rstd, x, scale, shift;
    double one, eps;
};
struct ln_grad_args { /* dx =; dscale, dshift [B, C] S += (data NULL: not wanted) */
    struct tensor dx, dscale, dshift, dy, x, mean, rstd, scale;
    double one;
};
/* out = x + gate[b]*y, b the sample of out's row; out, x, y: [rows, C] T; gate [B, C] S, rows may
 * be strided, data NULL: 1. map i32 [rows of out]: row r of out is row map[r] of the sum, 0 where
 * map[r] < 0; data NULL: row r. Without a map out may be x. */
struct gate_add_args {
    struct tensor out, x, y, gate, map;
};
/* dx = dout in the order of x: its row r is row map[r] of dout, 0 where map[r] < 0; without a map
 * (data NULL) dx is dout and dx.data is not looked at. dy = gate[b]*dx;
 * dgate[b] += sum over rows of dx*y. dx, dy, y: [rows, C] T; dgate, gate: [B, C] S. */
struct gate_add_grad_args {
    struct tensor dy, dgate, dout, y, gate, dx, map;
};
/* Both of these give what the ops they stand for give one after the other, but read and write the
 * rows once. Scale and shift of the norm may be [1, C] beside a gate of B samples. */
struct gate_add_ln_args { /* gate_add_fwd({ln.x, x, y, gate, map}), then ln_fwd(ln) */
    struct tensor x, y, gate, map;
    struct ln_args ln; /* ln.x [rows, C] T: written; without a map ln.x may be x, ln.out may be y */
};
/* ln.dx += the result of ln_bwd(ln), rounded to T; then gate_add_bwd({dy, dgate, ln.dx, y, gate}).
 * So ln.dx brings the gradient that came past the norm, and holds that of the sum on return.
 * dy may be ln.dy. dy.data NULL: no second part (what was added had no gate: its gradient is
 * ln.dx). Column sums over all samples (dscale [1, C]) may differ in their last bits from ln_bwd's
 * when the gate has several samples: their partial sums end where a sample ends. */
struct gate_add_ln_grad_args {
    struct ln_grad_args ln;
    struct tensor dy, dgate, y, gate;
};

/* An optimizer step over flat shards that lie anywhere: clip, AdamW, EMA and wire copy in one pass
 * over all of them. */
struct update_shard { /* all [n]; p, m, v, g: S; ema: S or NULL; wire: T or NULL */
    struct tensor p, m, v, g, ema, wire;
    double weight_decay;
};
struct update_args {
    const struct update_shard *shard; /* [num_shards], host */
    int num_shards;
    double lr, beta1, beta2, eps;
    double bias1, bias2; /* 1 - beta^step */
    double grad_scale;   /* clip coefficient, applied to g on the fly */
    double ema_keep;     /* ema -= (1 - ema_keep) * (ema - p); negative: leave the EMA alone */
};

/* Which latent element a patch row holds. Row of C*4 values for patch (1,2,2) at (t,r,c):
 * PATCH_IN  (conv weight order): feature = ch*4 + dy*2 + dx
 * PATCH_OUT (head order):        feature = (dy*2 + dx)*C + ch */
enum patch_order { PATCH_IN, PATCH_OUT };

struct flow_args { /* x_t = s*noise + (1-s)*z in PATCH_IN order, target = noise - z in PATCH_OUT */
    struct tensor xt, target;    /* [rows, 4C]: xt T, target S */
    struct tensor z;             /* [B, C, T, H, W] S */
    struct tensor pos;           /* [rows, 3] i16; negative: padding, both rows are 0 */
    const double *sigma;         /* [B], host */
    const struct rng_key *noise; /* [B], host: index = element of [C,T,H,W] */
};

/* Sampler steps and policy objectives (docs/spec/rl.md 1.5, 1.12, 5.5, 5.6). Rows of one layout;
 * v = u + guidance * (c - u), not rounded to T; u.data NULL: v = c. Rows with pos < 0 are padding:
 * their outputs are 0 and they count nothing. */
struct solver_step_args {  /* next = cx*x + cv*v + ch*h + std*normal; then h = x - sigma*v */
    struct tensor next, x; /* [rows, 4C] S in PATCH_IN order; next may be x */
    struct tensor h;       /* the same, or data NULL; read only where ch is not 0 */
    struct tensor c, u;    /* [rows, 4C] T in PATCH_OUT order */
    struct tensor pos;     /* [rows, 3] i16 */
    int t, height, width;  /* of the latent: element = ((ch*t + f)*height + y)*width + x */
    double guidance, cx, cv, ch, sigma, std;
    const struct rng_key *noise; /* [B] host: index = element of [C,T,H,W]; NULL: none drawn */
    int batch;                   /* B */
};
struct transition_args { /* from x to next; mean = cx*x + cv*v, variance V, per sample of the batch
                          */
    struct tensor x, next;            /* [rows, 4C] S in PATCH_IN order */
    struct tensor c, u, ref_c, ref_u; /* [rows, 4C] T in PATCH_OUT order; ref_c.data NULL: no
                                         reference; with one, ref_u is there when u is */
    struct tensor pos;
    double guidance;
    int batch;
    const double *cx, *cv, *half_inv_v; /* [B] host; 1 / (2V), read by transition_sums only */
    double quantum; /* sums of a row are rounded to multiples of it, see transition_sums */
};
enum { TRANSITION_SUMS = 3, NFT_SUMS = 6 };
#define DEV_FINE 0x1p-32       /* of a quantum */
struct nft_args {              /* v+ = beta*v + (1-beta)*old, v- = (1+beta)*old - beta*v */
    struct tensor target;      /* [rows, 4C] S in PATCH_OUT order: noise - clean */
    struct tensor v, old, ref; /* [rows, 4C] T in PATCH_OUT order; ref.data NULL: none */
    struct tensor pos;
    double beta, quantum;
    int batch;
};

/* out = x / (1 - p) where element e of its sample is kept, else 0; add: out += that. Kept is what
 * draws word index(e) >= p * 2^32 of the sample's stream: bit-equal on every device, for every way
 * to spread rows over ranks. index(e) = first + token * n + column. */
struct dropout_args {
    struct tensor out, x; /* [rows, n] T or S; out may be x */
    /* [rows, 3] i16: token = (t * height + row) * width + column, negative: padding, all dropped;
     * data NULL: a row's place in its sample */
    struct tensor pos;
    int height, width; /* of the token grid */
    double p;          /* [0, 1) */
    uint64_t first;
    const struct rng_key *mask; /* [B], host */
    int batch;                  /* B */
    bool add;
};

struct dev_ops {
    const char *name;
    /* memory; the null device hands out addresses that must never be followed */
    void *(*alloc)(struct dev *, size_t bytes);
    void (*free)(struct dev *, void *);
    void (*copy)(struct dev *, void *dst, const void *src, size_t bytes);
    void (*to_host)(struct dev *, void *dst, const void *src, size_t bytes); /* waits */
    void (*from_host)(struct dev *, void *dst, const void *src, size_t bytes);
    void (*sync)(struct dev *);
    /* matrices and attention */
    void (*gemm)(struct dev *, const struct gemm_args *);
    void (*attn_fwd)(struct dev *, const struct attn_args *);
    void (*attn_bwd)(struct dev *, const struct attn_grad_args *);
    /* rows */
    void (*norm_rope_fwd)(struct dev *, const struct norm_rope_args *);
    void (*norm_rope_bwd)(struct dev *, const struct norm_rope_grad_args *);
    void (*ln_fwd)(struct dev *, const struct ln_args *);
    void (*ln_bwd)(struct dev *, const struct ln_grad_args *);
    void (*gate_add_fwd)(struct dev *, const struct gate_add_args *);
    void (*gate_add_bwd)(struct dev *, const struct gate_add_grad_args *);
    void (*gate_add_ln_fwd)(struct dev *, const struct gate_add_ln_args *);
    void (*gate_add_ln_bwd)(struct dev *, const struct gate_add_ln_grad_args *);
    void (*gelu_fwd)(struct dev *, struct tensor y, struct tensor x); /* tanh form; y may be x */
    void (*gelu_bwd)(struct dev *, struct tensor dx, struct tensor dy, struct tensor x);
    void (*silu_fwd)(struct dev *, struct tensor y, struct tensor x); /* y and x: T or S each */
    void (*silu_bwd)(struct dev *, struct tensor dx, struct tensor dy, struct tensor x);
    /* out [B,d] = [cos(t w_i), sin(t w_i)], w_i = 10000^(-i/(d/2)), in double; t: [B] host */
    void (*sinusoid)(struct dev *, struct tensor out, const double *t);
    /* out[r] = x[map[r]], 0 where map[r] < 0; map i32 [rows of out] */
    void (*rows_gather)(struct dev *, struct tensor out, struct tensor x, struct tensor map);
    /* out[b] = row + x[b]; row [1,n] or [n], x, out [B,n], S */
    void (*bcast_add)(struct dev *, struct tensor out, struct tensor row, struct tensor x);
    /* drow [n] += sum over rows of dx [B,n]; S */
    void (*colsum_add)(struct dev *, struct tensor drow, struct tensor dx);
    /* latents */
    void (*patch_rows)(struct dev *, struct tensor rows, struct tensor x, struct tensor pos,
                       enum patch_order);
    /* writes only the elements that the rows hold */
    void (*unpatch_rows)(struct dev *, struct tensor x, struct tensor rows, struct tensor pos,
                         enum patch_order);
    void (*flow_rows)(struct dev *, const struct flow_args *);
    /* sum [B] f64 += sum over the rows of sample b of (pred-target)^2; dout = 2*scale*(pred-target)
     * (data NULL: not wanted). Rows with pos < 0 count nothing and get 0. pred, dout: T; target: S
     */
    void (*flow_loss)(struct dev *, struct tensor sum, struct tensor dout, struct tensor pred,
                      struct tensor target, struct tensor pos, double scale);
    /* x [rows,4C] S in PATCH_IN order += dsigma * (u + guidance*(c-u)), c, u: T in PATCH_OUT order;
     * u.data NULL: no guidance, += dsigma * c */
    void (*sample_step)(struct dev *, struct tensor x, struct tensor c, struct tensor u,
                        double guidance, double dsigma);
    /* No term of a zero factor is added, so that std = 0 or ch = 0 is bit-equal to no noise and no
     * history. */
    void (*solver_step)(struct dev *, const struct solver_step_args *);
    /* sum [B, TRANSITION_SUMS] f64 += over the rows of sample b: (next-mean)^2/(2V),
     * (mean-ref_mean)^2/(2V) (0 without reference), and what rounding has left of the latter. Each
     * row is summed in f64 in the order of its features and rounded to a multiple of quantum (a
     * power of two; not finite: as it is), so that the sums are exact, whatever the layout and the
     * batch, as long as they stay below 2^52 quanta. What that leaves is rounded to DEV_FINE
     * quanta, and exact over 2^21 rows: a divergence is [1] + [2], and has its digits also where
     * that of a row is far below the quantum. */
    void (*transition_sums)(struct dev *, struct tensor sum, const struct transition_args *);
    /* g = policy[b]*(next-mean) + kl[b]*(v-ref_v), the second term only with a reference (kl may
     * be NULL without); dc = gc*g, du = gu*g (data NULL: not wanted); dc, du [rows, 4C] T in
     * PATCH_OUT order; policy, kl [B] host */
    void (*transition_grad)(struct dev *, struct tensor dc, struct tensor du,
                            const struct transition_args *, const double *policy, const double *kl,
                            double gc, double gu);
    /* sum [B, NFT_SUMS] f64 +=: |target - v+|, (target - v+)^2, |target - v-|, (target - v-)^2,
     * (v - ref)^2 (0 without reference), what rounding has left of it; as in transition_sums */
    void (*nft_sums)(struct dev *, struct tensor sum, const struct nft_args *);
    /* dv = plus[b]*(target - v+) + minus[b]*(target - v-) + kl[b]*(v - ref), the last term only
     * with a reference; dv [rows, 4C] T in PATCH_OUT order; plus, minus, kl [B] host */
    void (*nft_grad)(struct dev *, struct tensor dv, const struct nft_args *, const double *plus,
                     const double *minus, const double *kl);
    /* flat arrays */
    void (*update)(struct dev *, const struct update_args *);
    /* sum [1] f64 += the squares of all elements of n contiguous arrays (host list). Each array is
     * summed by itself, then they are added in their order: one call or n give the same. */
    void (*sumsq)(struct dev *, struct tensor sum, const struct tensor *x, int n);
    void (*axpy)(struct dev *, struct tensor y, double a,
                 struct tensor x); /* y += a*x; any dtypes */
    void (*scale)(struct dev *, struct tensor x, double a);
    void (*fill)(struct dev *, struct tensor x, double a);
    void (*cast)(struct dev *, struct tensor dst,
                 struct tensor src); /* same shape; may be strided */
    /* x[i] = mean + std * normal(stream, first + i), rounded to float, then to the dtype of x */
    void (*rng_normal)(struct dev *, struct tensor x, struct rng_stream, uint64_t first,
                       double std);
    void (*rng_uniform)(struct dev *, struct tensor x, struct rng_stream, uint64_t first, double lo,
                        double hi);
    void (*dropout)(struct dev *, const struct dropout_args *);
};

struct dev_counters { /* FLOPs (multiply-add = 2) and row_bytes are kept by the null device alone */
    double gemm_flops, attn_fwd_flops, attn_bwd_flops;
    double row_bytes;             /* read and written by the row ops */
    size_t bytes_now, bytes_peak; /* of dev_alloc, and own_bytes where the device says them */
    size_t own_bytes;             /* taken by the device itself, for good (see dev_backend) */
};
struct dev_block;
struct dev {
    const struct dev_ops *ops;
    enum dtype compute; /* T */
    int threads;
    bool poison;        /* fill released memory with NaN: a use after release cannot pass a test */
    bool own_attention; /* cuda: no library for it */
    bool deterministic; /* equal bits from run to run, whatever that costs (cuda; others always) */
    struct dev_counters count;
    struct dev_block *blocks; /* of dev_alloc */
    struct dev *stands_for;   /* null: whose own_bytes it counts; or NULL */
    void *impl;
};

/* name: ref, cpu, cuda, null. threads: 0 = OMP_NUM_THREADS or the cores of this rank. Stops with
 * the list of devices in this build when the name is unknown, the dtype is not supported, or the
 * table has a hole (which it names). */
struct dev *dev_open(const char *name, enum dtype compute, int threads);
void dev_close(struct dev *d);
/* Of this build and machine (cuda only with a usable GPU), NULL-terminated. */
const char *const *dev_names(void);
bool dev_supports(const char *name, enum dtype compute);
/* How many ranks of this host can have one of their own: GPUs that are seen; 1 for a device that is
 * the host itself; 0 where there is no such device. */
int dev_units(const char *name);
/* Which rank of its host this process is, as the launcher says (before MPI_Init, too), else as
 * dev_set_local_rank has said, else 0. Ranks of a host take its GPUs in turn. */
int dev_local_rank(void);
void dev_set_local_rank(int rank);
/* Which piece of hardware of this host dev_open would take here, one name for each: two ranks with
 * the same name would share it. False: the device has no such names. */
enum { DEV_UNIT_NAME = 48 };
bool dev_unit_name(const char *name, char out[DEV_UNIT_NAME]);
/* Whether something of the cuda device is here that cannot be used (a library of another build, a
 * driver that is too old): e says why. A machine or a build without any is in order. */
bool dev_broken(struct err *e);
/* What op g or a (the other is NULL) takes of d's own memory; 0: see dev_backend. */
size_t dev_own_bytes(struct dev *d, const struct gemm_args *g, const struct attn_grad_args *a);
/* Of its own memory, now; 0 for a device that computes in the host's. */
size_t dev_free_bytes(struct dev *d);
/* One line for the start banner: library, instruction set, threads. */
void dev_describe(struct dev *d, char *out, size_t size);

void *dev_alloc(struct dev *d, size_t bytes);
void dev_free(struct dev *d, void *p);
void dev_own(struct dev *d, size_t bytes); /* a device has taken so much for itself in all */
/* Stops unless quantum is a power of two. */
void dev_check_quantum(double quantum);
void dev_check_dropout(const struct dropout_args *a); /* shapes and range */
/* The least word that is kept: p * 2^32. */
static inline uint32_t dev_dropout_limit(double p) { return (uint32_t)(p * 0x1p32); }
void dev_poison(struct dev *d, void *p, size_t bytes);
struct tensor dev_tensor(struct dev *d, enum dtype t, int ndim, const int64_t *dim); /* allocates */
/* Host array of the same dtype to a contiguous tensor, and back. */
void dev_put(struct dev *d, struct tensor t, const void *host);
void dev_get(struct dev *d, void *host, struct tensor t);
/* Host doubles to any floating dtype (rounded), and back. */
void dev_put_f64(struct dev *d, struct tensor t, const double *host);
void dev_get_f64(struct dev *d, double *host, struct tensor t);

/* Queues of work beside the device's own, for transports between devices. A queue and an event are
 * what the device's library calls a stream and an event. */
struct dev_queues {
    void *(*open)(struct dev *);
    void (*close)(struct dev *, void *queue); /* its work is done */
    void *(*event)(struct dev *);
    void (*drop)(struct dev *, void *event);
    /* The event comes when the queue has done all it was given so far; queue NULL: the device's
     * own, which runs the ops. */
    void (*record)(struct dev *, void *event, void *queue);
    void (*await)(struct dev *, void *queue, void *event); /* what the queue gets now comes after */
    bool (*came)(struct dev *, void *event);               /* does not wait */
};
/* NULL: the device works in host memory, and its ops are done on return. */
const struct dev_queues *dev_queues_of(const struct dev *d);

/* How a device enters the table of dev.c. */
struct dev_backend {
    const char *name;
    const struct dev_ops *(*ops)(enum dtype compute); /* NULL: dtype not supported */
    bool (*start)(struct dev *d, struct err *e);      /* sets impl; may be NULL */
    void (*stop)(struct dev *d);
    void (*describe)(struct dev *d, char *out, size_t size);
    const struct dev_queues *queues;            /* NULL: see dev_queues_of */
    int (*units)(void);                         /* see dev_units; NULL: 1 */
    bool (*unit_name)(char out[DEV_UNIT_NAME]); /* see dev_unit_name; NULL: none */
    size_t (*free_bytes)(struct dev *);         /* NULL: the device is the host */
    /* What the device takes beside the arrays for an op, and keeps; g or a is NULL. NULL: not
     * known, or nothing that matters. */
    size_t (*own_bytes)(struct dev *, const struct gemm_args *g, const struct attn_grad_args *a);
};
extern const struct dev_backend dev_ref, dev_cpu, dev_null;
/* One more device, before the first dev_names (for tests); one named cuda takes the place of the
 * library below. */
void dev_register(const struct dev_backend *b);

/* The cuda device is in libosp_cuda.so beside the program, so that a program without a GPU needs
 * no CUDA library. It is opened when the device is asked for or listed. Its only symbol returns
 * the backend, or NULL with the reason: no usable GPU here, or a library of another build (the
 * sizes of the tables differ). */
#define DEV_CUDA_SYMBOL "osp_cuda_backend"
#define DEV_CUDA_SIZES (sizeof(struct dev_ops) + sizeof(struct dev_backend) + sizeof(struct dev))
typedef const struct dev_backend *dev_cuda_entry(size_t sizes, struct err *why);
#endif
