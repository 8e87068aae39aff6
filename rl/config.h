/* What a post-training run is: the official rl_config keys (docs/spec/rl.md 4) and ours. A value
 * that depends on the algorithm is 0 ("auto") or negative (null) until algo_resolve has run. */
#ifndef RL_CONFIG_H
#define RL_CONFIG_H
#include <stdbool.h>
#include <stdint.h>

#include "core/config.h"
enum rl_algo {
    ALGO_MIX_GRPO,        /* OSP-Next: the first sde_steps steps, fixed */
    ALGO_MIX_GRPO_WINDOW, /* MixGRPO: a window that moves */
    ALGO_MIX_GRPO_FLASH,  /* the same, the rest of the steps by DPM-Solver++ on a coarser grid */
    ALGO_FLOW_GRPO,       /* all steps stochastic */
    ALGO_FLOW_GRPO_FAST,  /* one or two stochastic steps at a random place, before it one path */
    ALGO_DANCE_GRPO,
    ALGO_NFT /* DiffusionNFT: forward process, no stochastic steps */
};
struct rl_config {
    int algo; /* enum rl_algo; the one key that switches between algorithms */
    double shift;
    int64_t num_epochs, steps, sde_steps; /* num_inference_steps; sde_steps -1: by algorithm */
    double fraction;                      /* timestep_fraction; negative: by algorithm */
    double guidance;
    char *negative_prompt; /* of the unconditional branch */
    int cfg_grad;          /* 0 cond: through the conditional branch only, 1 both */
    int64_t members;       /* G: num_image_per_prompt */
    int64_t sample_batch, train_batch, batches, inner_epochs;
    double clip_range, adv_clip_max, kl_beta;
    bool group_stats, global_std; /* per_prompt_stat_tracking */
    char *prompt_file, *eval_prompt_file;
    int64_t height, width, frames;
    int64_t eval_epochs, eval_steps, eval_samples; /* 0 epochs: never */
    /* ours */
    int shuffle_steps; /* 0 auto, 1 no, 2 yes: a random order of the trained steps per sample */
    int window;        /* 0 auto, else 1 + enum window_strategy */
    int64_t window_start, window_size, window_stride, window_iters, window_min_iters, window_limit;
    double window_rate;
    int64_t window_from;
    bool roll_back;
    int g_rule;        /* 0 auto, else 1 + enum g_rule */
    double eta;        /* negative: by algorithm */
    int solver;        /* 0 auto, else 1 + enum ode_solver */
    double compress;   /* negative: by algorithm */
    int same_noise;    /* 0 auto, 1 no, 2 yes */
    int placement;     /* 0 scatter, 1 pack */
    int64_t ddof;      /* negative: by algorithm */
    double adv_eps;    /* negative: by algorithm */
    int adv_aggregate; /* enum adv_aggregate */
    bool merge_same_prompt;
    int64_t best_of;
    bool kl_on_zero_adv;
    struct {
        double beta, kl;
        int old_decay; /* 0: min(.001 n, .5); 1: 0 for 75 steps, then min(.0075 (n-75), .999) */
    } nft;
};
struct reward_settings {
    char *command; /* NULL: VideoAlign, when its folders are given */
    char *videoalign_dir, *model_dir, *template_dir, *device;
    int profile;                            /* 0 official, 1 true_fps */
    struct cfg_reals weights;               /* by dimension of the scorer */
    int64_t workers, min_group;             /* min_group 0: max(2, G-1) */
    double request_s, start_s, max_invalid; /* share of an epoch */
    double score_limit;                     /* a raw score beyond it is no score */
    int on_dead;                            /* 0 stop, 1 degrade: go on without updates */
};
#endif
