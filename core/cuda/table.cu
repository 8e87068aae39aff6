#include "core/cuda/cuda.h"

#ifdef CUDA_EMULATE
#define NAME "cuda-emulated"
#else
#define NAME "cuda"
#endif

const struct dev_ops cuda_ops = {
    .name = NAME,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .copy = cuda_copy,
    .to_host = cuda_to_host,
    .from_host = cuda_from_host,
    .sync = cuda_sync,
    .gemm = cuda_gemm,
    .attn_fwd = cuda_attn_fwd,
    .attn_bwd = cuda_attn_bwd,
    .norm_rope_fwd = cuda_norm_rope_fwd,
    .norm_rope_bwd = cuda_norm_rope_bwd,
    .ln_fwd = cuda_ln_fwd,
    .ln_bwd = cuda_ln_bwd,
    .gate_add_fwd = cuda_gate_add_fwd,
    .gate_add_bwd = cuda_gate_add_bwd,
    .gelu_fwd = cuda_gelu_fwd,
    .gelu_bwd = cuda_gelu_bwd,
    .silu_fwd = cuda_silu_fwd,
    .silu_bwd = cuda_silu_bwd,
    .sinusoid = cuda_sinusoid,
    .rows_gather = cuda_rows_gather,
    .bcast_add = cuda_bcast_add,
    .colsum_add = cuda_colsum_add,
    .patch_rows = cuda_patch_rows,
    .unpatch_rows = cuda_unpatch_rows,
    .flow_rows = cuda_flow_rows,
    .flow_loss = cuda_flow_loss,
    .sample_step = cuda_sample_step,
    .solver_step = cuda_solver_step,
    .transition_sums = cuda_transition_sums,
    .transition_grad = cuda_transition_grad,
    .nft_sums = cuda_nft_sums,
    .nft_grad = cuda_nft_grad,
    .adamw = cuda_adamw,
    .sumsq = cuda_sumsq,
    .axpy = cuda_axpy,
    .scale = cuda_scale,
    .fill = cuda_fill,
    .cast = cuda_cast,
    .rng_normal = cuda_rng_normal,
    .rng_uniform = cuda_rng_uniform,
    .dropout = cuda_dropout,
};
