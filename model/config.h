/* What describes a diffusion transformer: the official model_config keys (docs/spec/model.md 4)
 * and ours for ablations. */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H
#include "core/config.h"
#include "core/tensor.h"

enum skiparse_type { SKIPARSE_FULL, SKIPARSE_DUAL_END };
enum pad_mode { PAD_NONE, PAD_REF };
enum recompute {                      /* what a block keeps from forward to backward */
                 RECOMPUTE_ALL,       /* its input only */
                 RECOMPUTE_ATTENTION, /* + attention output and log-sum-exp */
                 RECOMPUTE_GEMM,      /* + outputs of the large matrix products */
                 RECOMPUTE_NONE,      /* everything */
                 RECOMPUTE_AUTO       /* of a configuration: what fits (train/fit.h) */
};
struct model_config {
    int64_t dim, ffn_dim, freq_dim, in_dim, out_dim, num_heads, num_layers, text_len, text_dim;
    double eps;
    int skiparse_model_type; /* enum skiparse_type */
    int64_t sparse_ratio;    /* P */
    int64_t num_full_blocks;
    int skiparse_dim;                   /* 0: 1d, 1: 2d */
    bool skiparse_strict;               /* dual_end: the official rules on num_full_blocks */
    struct cfg_ints full_block_indices; /* explicit schedule; n = 0: by type */
    int pad_mode;                       /* enum pad_mode */
    bool timestep_bf16_round;
    char *pretrained; /* pretrained_model_dir_or_checkpoint */
};
#endif
