/* The one table of all keys. A row is: verbs, key, member, default, limits, help. Rows of one
 * section stand together. */
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/settings.h"

enum {
    T = 1 << SETTINGS_TRAIN,
    D = 1 << SETTINGS_DATA,
    S = 1 << SETTINGS_SAMPLE,
    P = 1 << SETTINGS_PLAN,
    R = 1 << SETTINGS_RL,
    TP = T | P,
    TPR = T | P | R,
    TSPR = T | S | P | R,
    ALL = T | D | S | P | R
};
struct row {
    unsigned verbs;
    struct cfg_field f;
};
#define AT(m) offsetof(struct settings, m)
#define BIG INFINITY
#define ROW_BOOL(v, k, m, d, h)                           \
    {                                                     \
        v, { k, CFG_BOOL, AT(m), d, 0, 0, NULL, h, 0, 0 } \
    }
#define ROW_INT(v, k, m, d, lo, hi, h)                     \
    {                                                      \
        v, { k, CFG_INT, AT(m), d, lo, hi, NULL, h, 0, 0 } \
    }
#define ROW_NULL0(v, k, m, d, h)                                \
    {                                                           \
        v, { k, CFG_INT, AT(m), d, 1, BIG, null_word, h, 0, 0 } \
    }
#define ROW_FPS(v, k, m, d, h)                                       \
    {                                                                \
        v, { k, CFG_REAL, AT(m), d, 0.01, 1000, null_word, h, 0, 0 } \
    }
#define ROW_REAL(v, k, m, d, lo, hi, h)                     \
    {                                                       \
        v, { k, CFG_REAL, AT(m), d, lo, hi, NULL, h, 0, 0 } \
    }
#define ROW_TEXT(v, k, m, d, h)                           \
    {                                                     \
        v, { k, CFG_TEXT, AT(m), d, 0, 0, NULL, h, 0, 0 } \
    }
#define ROW_ENUM(v, k, m, d, c, h)                     \
    {                                                  \
        v, { k, CFG_ENUM, AT(m), d, 0, 0, c, h, 0, 0 } \
    }
#define ROW_ONLY(v, k, d, h)                          \
    {                                                 \
        v, { k, CFG_ONLY, 0, d, 0, 0, NULL, h, 0, 0 } \
    }
#define ROW_IGNORED(v, k)                                      \
    {                                                          \
        v, { k, CFG_IGNORED, 0, "null", 0, 0, NULL, "", 0, 0 } \
    }
#define ROW_OLD(v, k, h)                                      \
    {                                                         \
        v, { k, CFG_REFUSED, 0, "null", 0, 0, NULL, h, 0, 0 } \
    }
#define WORDS(name, ...) static const char *const name[] = {__VA_ARGS__, NULL}

WORDS(auto_word, "auto");
WORDS(null_word, "null");
WORDS(model_names, "osp_next", "wan_t2v");
WORDS(reshards, "null", "true", "false");
WORDS(averages, "auto", "true", "false");
WORDS(recomputes, "all", "attention", "gemm", "none", "auto");
WORDS(clips, "adaptive", "fixed", "adaptive_capped");
WORDS(dtypes, "bf16|bfloat16", "fp32|float|float32", "fp64|double",
      "!fp16|float16: its range needs loss scaling, which is not built; use bf16");
WORDS(devices, "auto", "ref", "cpu", "cuda", "null");
WORDS(attentions, "auto", "own");
WORDS(skiparse_types, "full", "dual_end",
      "!uniform: it is not defined; list the full blocks in model_config.full_block_indices");
WORDS(skiparse_dims, "1d", "2d");
WORDS(pad_modes, "none", "ref");
WORDS(schedulers, "flow_matching");
WORDS(datasets, "wan_t2v", "t2v_random");
WORDS(lr_kinds, "constant", "cosine");

static const struct row general[] = {
    ROW_ENUM(TSPR, "model_name", model_name, "osp_next", model_names, "the kind of model"),
    ROW_INT(TSPR, "seed", seed, "42", 0, 9007199254740992.0, "of everything that is random"),
    ROW_TEXT(TSPR, "output_dir", output_dir, "./output", "folder for everything that is written"),
    ROW_INT(TP, "training_iteration", training_iteration, "1000000", 1, BIG, "optimizer steps"),
    ROW_REAL(TPR, "max_seconds", max_seconds, "0", 0, BIG,
             "stop after so long by the clock, with a checkpoint; 0: never"),
    {TSPR,
     {"fsdp_size", CFG_INT, AT(fsdp_size), "auto", 1, BIG, auto_word,
      "ranks that share one copy of the model; auto: all", FSDP_AUTO, 0}},
    ROW_NULL0(TSPR, "ddp_size", ddp_size, "null",
              "copies of the model; null: ranks / fsdp_size, and no other number is right"),
    ROW_BOOL(TSPR, "use_sequence_parallel", use_sequence_parallel, "false",
             "split sequences by heads (Ulysses)"),
    ROW_INT(TSPR, "sp_size", sp_size, "1", 1, 4096, "ranks per sequence, when switched on"),
    ROW_BOOL(TSPR, "use_skiparse_sequence_parallel", use_skiparse_sequence_parallel, "false",
             "split by sub-sequences (SSP)"),
    ROW_INT(TSPR, "skiparse_sp_size", skiparse_sp_size, "1", 1, 4096,
            "ranks per sample, when switched on"),
    ROW_ENUM(TSPR, "reshard_after_forward", reshard_after_forward, "null", reshards,
             "drop gathered weights after forward; null: as true (the official null keeps those of "
             "the root, which changes no result); false: keep all until backward"),
    ROW_INT(TSPR, "explicit_prefetching_num_blocks", explicit_prefetching_num_blocks, "0", 0, 64,
            "blocks whose weights are gathered ahead; 0: none, each gather is waited for (the "
            "official 0 still overlaps about one, which changes no result)"),
    ROW_BOOL(TPR, "gradient_checkpointing", gradient_checkpointing, "false",
             "official name of recompute: all"),
    {TPR,
     {"recompute", CFG_WORD_OR_INTS, AT(recompute), "null", 0, 127, recomputes,
      "what the backward pass computes again, or the blocks that recompute all; auto: as little as "
      "fits, block by block; null: as gradient_checkpointing says",
      0, AT(recompute_blocks)}},
    {TP,
     {"memory_budget_gb", CFG_REAL, AT(memory_budget_gb), "null", 1e-6, 1e6, null_word,
      "of a rank, for recompute: auto (10^9 bytes); null: 0.94 of what the GPU or 0.8 of what the "
      "host has free, the host's shared by its ranks; osp plan: 130",
      0, 0}},
    ROW_INT(TPR, "gradient_accumulation_steps", gradient_accumulation_steps, "1", 1, 65536,
            "micro-steps per optimizer step (follows from global_batch_size when that is given)"),
    ROW_REAL(TPR, "init_max_grad_norm", init_max_grad_norm, "1.0", 0, BIG,
             "gradient norm limit: the first one when adaptive"),
    ROW_ENUM(TPR, "grad_clip", grad_clip, "adaptive", clips, "how the limit moves"),
    ROW_BOOL(TP, "grad_scale_ref", grad_scale_ref, "false",
             "scale gradients as the reference does under sequence parallelism"),
    ROW_INT(TPR, "max_skipped_steps", max_skipped_steps, "10", 0, BIG,
            "steps with a non-finite loss or norm before the run stops"),
    ROW_INT(TP, "log_interval", log_interval, "1", 1, BIG, "steps between log lines"),
    ROW_INT(TP, "save_interval", save_interval, "1000", 1, BIG, "steps between checkpoints"),
    ROW_TEXT(TPR, "resume", resume, "auto", "auto (newest valid checkpoint), never, or a path"),
    ROW_ENUM(TSPR, "weight_dtype", weight_dtype, "bfloat16", dtypes, "type of the computation"),
    ROW_ENUM(
        TSPR, "device", device, "auto", devices,
        "where the computation runs; auto: cuda when every rank has a GPU of its own, else cpu"),
    ROW_ENUM(TSPR, "attention", attention, "auto", attentions,
             "auto: cuDNN for bf16 on GPUs where it is found; own: kernels of this program only"),
    ROW_REAL(TPR, "ema_decay", ema_decay, "0.9999", 0, 1, "average of the weights; 0: none"),
    ROW_INT(TPR, "ema_update_interval", ema_update_interval, "1", 1, BIG, "steps between updates"),
    ROW_BOOL(TP, "ema_warmup", ema_warmup, "false", "decay min(d, (1+n)/(10+n)) at update n"),
    ROW_BOOL(TSPR, "check_comm", check_comm, "false",
             "compare every collective across ranks first"),
    ROW_REAL(TSPR, "comm_deadline_s", comm_deadline_s, "600", 0, BIG,
             "seconds until a collective counts as hung; 0: never"),
    ROW_REAL(TPR, "stop_before_end_s", stop_before_end_s, "120", 0, BIG,
             "checkpoint and stop so long before the time limit of the job"),
    ROW_BOOL(TSPR, "deterministic_training", deterministic_training, "false",
             "equal bits from run to run on GPUs too, where that is slower"),
    ROW_BOOL(TP, "smoke", smoke, "false", "allow t2v_random: a run on noise that trains nothing"),
};

static const struct row sampling[] = {
    ROW_TEXT(S, "checkpoint", sample.checkpoint, NULL,
             "run folder, checkpoint folder or its parent"),
    ROW_TEXT(S, "prompt_txt", sample.prompt_txt, NULL,
             "file with a prompt per line (empty lines are empty prompts), or the prompt itself"),
    ROW_TEXT(S, "negative_prompt", sample.negative_prompt, "\"\"", "what guidance leads away from"),
    ROW_BOOL(S, "use_ema", sample.use_ema, "true", "averaged weights when the checkpoint has them"),
    ROW_TEXT(
        S, "lora", sample.lora, "null",
        "adapters of a LoRA run (run or checkpoint folder), used on the weights of checkpoint"),
    ROW_ENUM(S, "lora_ema", sample.lora_ema, "auto", averages,
             "averaged adapters; auto: where the adapters have averages"),
    ROW_BOOL(S, "lora_force_base", sample.lora_force_base, "false",
             "use the adapters although they were made for other weights"),
    ROW_NULL0(S, "num_frames", sample.num_frames, "null",
              "frames of a sample; null: as the checkpoint was trained"),
    ROW_NULL0(S, "height", sample.height, "null", "pixels; null: as the checkpoint was trained"),
    ROW_NULL0(S, "width", sample.width, "null", "pixels; null: as the checkpoint was trained"),
    ROW_REAL(S, "save_fps", sample.save_fps, "16", 0.01, 1000, "frames per second of the file"),
    ROW_INT(S, "batch_size", sample.batch_size, "1", 1, 32, "samples at a time"),
    ROW_INT(S, "samples_per_prompt", sample.samples_per_prompt, "1", 1, 65536,
            "samples that differ by their noise"),
    ROW_BOOL(S, "same_noise", sample.same_noise, "false",
             "noise by sample number only, the same for every prompt"),
    ROW_TEXT(S, "compare", sample.compare, "null",
             "data set: distances between samples and the clips of each prompt"),
    ROW_BOOL(S, "batched_cfg", sample.batched_cfg, "true",
             "both branches of guidance in one batch: faster, more memory"),
};

static const struct row filtering[] = {
    ROW_TEXT(D, "ann_txt_path", job.ann_txt_path, "null", "index file, \"root,meta.json\" a line"),
    ROW_TEXT(D, "meta_path", job.meta_path, "null", "one meta JSON or CSV file"),
    ROW_TEXT(D, "save_path", job.save_path, NULL, "the HDF5 data set to write"),
    ROW_BOOL(D, "overwrite", job.overwrite, "false",
             "replace a data set that is there and was made from other settings or clips"),
    ROW_INT(D, "sample_height", data.sample_height, "480", 4, 65536, "pixels"),
    ROW_INT(D, "sample_width", data.sample_width, "832", 4, 65536, "pixels"),
    ROW_INT(D, "sample_num_frames", data.sample_num_frames, "49", 1, 65536, "frames of a window"),
    ROW_FPS(D, "train_fps", data.train_fps, "16",
            "frames per second of a window; null: take every sample_stride-th frame"),
    ROW_NULL0(D, "sample_stride", data.sample_stride, "null",
              "source frames from one frame to the next, with train_fps: null only; null: 1"),
    ROW_NULL0(D, "window_stride", data.window_stride, "null",
              "frames between windows of a clip; null: one window"),
    ROW_TEXT(D, "codec", data.codec, "pixel", "from pixels to latents: pixel"),
    ROW_TEXT(D, "text_codec", data.text_codec, "hash", "from captions to vectors: hash"),
    ROW_INT(D, "text_dim", model.text_dim, "4096", 1, 65536, "length of a text vector"),
    ROW_INT(D, "text_max_length", data.text_max_length, "512", 1, 65536, "vectors of a caption"),
    ROW_REAL(D, "min_hxw", job.filter.min_hxw, "399360", 0, BIG, "least area of the source"),
    ROW_REAL(D, "too_long_factor", job.filter.too_long_factor, "5.0", 0, BIG,
             "longest clip, in windows"),
    ROW_REAL(D, "max_h_div_w_ratio", job.filter.max_h_div_w_ratio, "2.0", 0, BIG, "of the source"),
    ROW_REAL(D, "min_h_div_w_ratio", job.filter.min_h_div_w_ratio, "0.5", 0, BIG, "of the source"),
    ROW_REAL(D, "min_motion_value", job.filter.min_motion_value, "0.0", -BIG, BIG,
             "of the record's motion"),
    ROW_REAL(D, "max_motion_value", job.filter.max_motion_value, "1.0", -BIG, BIG,
             "of the record's motion"),
    ROW_REAL(D, "max_failure_rate", job.filter.max_failure_rate, "0.1", 0, 1,
             "share of clips that may fail to decode"),
};

#define M "model_config."
static const struct row model[] = {
    ROW_INT(TSPR, M "dim", model.dim, "2048", 2, 1 << 20, "width"),
    ROW_INT(TSPR, M "ffn_dim", model.ffn_dim, "8192", 1, 1 << 22, "width inside the MLP"),
    ROW_INT(TSPR, M "freq_dim", model.freq_dim, "256", 2, 65536, "width of the time features"),
    ROW_INT(TSPR, M "in_dim", model.in_dim, "16", 1, 4096, "latent channels"),
    ROW_INT(TSPR, M "out_dim", model.out_dim, "16", 1, 4096, "latent channels"),
    ROW_INT(TSPR, M "num_heads", model.num_heads, "16", 1, 4096, "attention heads"),
    ROW_INT(TSPR, M "num_layers", model.num_layers, "32", 1, 128, "blocks"),
    ROW_INT(TSPR, M "text_len", model.text_len, "512", 1, 65536, "text vectors the model sees"),
    ROW_INT(TSPR, M "text_dim", model.text_dim, "4096", 1, 65536, "length of a text vector"),
    ROW_REAL(TSPR, M "eps", model.eps, "1e-6", 1e-30, 1, "of the norms"),
    ROW_ONLY(TSPR, M "qk_norm", "true", "the model has no form without it"),
    ROW_ONLY(TSPR, M "cross_attn_norm", "true", "the model has no form without it"),
    ROW_ENUM(TSPR, M "skiparse_model_type", model.skiparse_model_type, "full", skiparse_types,
             "which blocks are sparse"),
    ROW_INT(TSPR, M "sparse_ratio", model.sparse_ratio, "1", 1, 64, "P: in 2d, 1/P^2 of the keys"),
    ROW_INT(TSPR, M "num_full_blocks", model.num_full_blocks, "0", 0, 128,
            "dual_end: full blocks, half at each end"),
    ROW_ENUM(TSPR, M "skiparse_dim", model.skiparse_dim, "2d", skiparse_dims, "sparse in 1d or 2d"),
    ROW_BOOL(TSPR, M "skiparse_strict", model.skiparse_strict, "true",
             "the official rules on num_full_blocks"),
    {TSPR,
     {M "full_block_indices", CFG_INTS, AT(model.full_block_indices), "[]", 0, 127, NULL,
      "the full blocks, one by one", 0, 0}},
    ROW_ENUM(TSPR, M "pad_mode", model.pad_mode, "none", pad_modes,
             "ref: pad the grid as the reference does"),
    ROW_BOOL(TSPR, M "timestep_bf16_round", model.timestep_bf16_round, "false",
             "round time to bf16: true for the released weights"),
    ROW_TEXT(TSPR, M "pretrained_model_dir_or_checkpoint", model.pretrained, "null",
             "weights to start from"),
    ROW_ONLY(TSPR, M "patch_size", "[1, 2, 2]", "the kernels are written for it"),
    ROW_ONLY(TSPR, M "window_size", "[-1, -1]", "windowed attention is not built"),
    ROW_ONLY(TSPR, M "model_type", "t2v", "only text to video is built"),
    ROW_ONLY(TSPR, M "quant", "null", "quantised training is not built"),
    ROW_ONLY(TSPR, M "quant_attn", "null", "quantised attention is not built"),
    ROW_IGNORED(TSPR, M "scale_max_forward"),
    ROW_IGNORED(TSPR, M "scale_max_backward"),
    ROW_ONLY(TSPR, M "lock_main_parameters", "false", "training a part of the model is not built"),
    ROW_IGNORED(TSPR, M "training_with_full"),
};

#define C "scheduler_config."
static const struct row scheduler[] = {
    ROW_ENUM(T | S | P, C "scheduler_name", scheduler.scheduler_name, "flow_matching", schedulers,
             ""),
    ROW_REAL(T | S | P, C "shift", scheduler.shift, "1.0", 1e-6, 1e6,
             "of the noise level, when it is not dynamic"),
    ROW_BOOL(T | S | P, C "use_dynamic_shifting", scheduler.use_dynamic_shifting, "false",
             "shift by the number of tokens"),
    ROW_INT(T | S | P, C "base_image_seq", scheduler.base_image_seq, "256", 1, BIG,
            "dynamic shift"),
    ROW_INT(T | S | P, C "max_image_seq", scheduler.max_image_seq, "4096", 1, BIG, "dynamic shift"),
    ROW_REAL(T | S | P, C "base_shift", scheduler.base_shift, "0.5", -BIG, BIG, "dynamic shift"),
    ROW_REAL(T | S | P, C "max_shift", scheduler.max_shift, "1.15", -BIG, BIG, "dynamic shift"),
    ROW_BOOL(TP, C "use_logitnorm_time_sampling", scheduler.use_logitnorm_time_sampling, "false",
             "draw noise levels from a logit-normal law"),
    ROW_REAL(TP, C "logit_mean", scheduler.logit_mean, "0", -BIG, BIG, "of that law"),
    ROW_REAL(TP, C "logit_std", scheduler.logit_std, "1", 1e-6, BIG, "of that law"),
    ROW_INT(S, C "num_inference_steps", scheduler.num_inference_steps, "50", 1, 100000, "steps"),
    ROW_REAL(S, C "guidance_scale", scheduler.guidance_scale, "0", 0, 1000,
             "classifier-free guidance when above 1"),
};

#define A "data_config."
#define B "data_config.dataset_config."
static const struct row data[] = {
    ROW_NULL0(TP, A "batch_size", data.batch_size, "1",
              "samples per data rank and pass; null: global_batch_size shared out in one pass"),
    ROW_NULL0(TP, A "global_batch_size", data.global_batch_size, "null",
              "samples per optimizer step of all ranks; accumulation follows"),
    ROW_ONLY(TP, A "drop_last", "true",
             "batches run over the end of an epoch, so no sample is dropped or repeated; leave the "
             "key out"),
    ROW_BOOL(TP, A "shuffle", data.shuffle, "true", "a new order every epoch"),
    ROW_ENUM(TP, A "dataset_name", data.dataset_name, "wan_t2v", datasets,
             "t2v_random: noise, for a smoke test"),
    ROW_IGNORED(TP, A "num_workers"),
    ROW_IGNORED(TP, A "pin_memory"),
    ROW_IGNORED(TP, A "sampler_name"),
    ROW_IGNORED(TP, A "collator_name"),
    ROW_IGNORED(TP, A "collator_config"),
    ROW_TEXT(TP, B "metafile_or_dir_path", data.metafile_or_dir, "null", "the HDF5 data set"),
    ROW_TEXT(TP, B "source", data.source, "null", "meta JSON/CSV to build it from when absent"),
    ROW_TEXT(TP, B "codec", data.codec, "pixel", "from pixels to latents: pixel"),
    ROW_TEXT(TP, B "text_codec", data.text_codec, "hash", "from captions to vectors: hash"),
    ROW_INT(TP, B "sample_height", data.sample_height, "480", 4, 65536, "pixels"),
    ROW_INT(TP, B "sample_width", data.sample_width, "832", 4, 65536, "pixels"),
    ROW_INT(TP, B "sample_num_frames", data.sample_num_frames, "49", 1, 65536, "frames"),
    ROW_FPS(TP, B "train_fps", data.train_fps, "16",
            "frames per second; null: take every sample_stride-th frame"),
    ROW_NULL0(TP, B "sample_stride", data.sample_stride, "null",
              "source frames from one frame to the next, with train_fps: null only; null: 1"),
    ROW_NULL0(TP, B "window_stride", data.window_stride, "null",
              "frames between windows of a clip; null: one window"),
    ROW_REAL(TP, B "text_drop_ratio", data.text_drop_ratio, "0.1", 0, 1,
             "share of samples with the empty caption"),
    ROW_INT(TP, B "text_max_length", data.text_max_length, "512", 1, 65536, "vectors of a caption"),
    ROW_IGNORED(TP, B "text_tokenizer_path"),
    ROW_IGNORED(TP, B "tokenizer_max_length"),
    ROW_IGNORED(TP, B "return_prompt_mask"),
    ROW_IGNORED(TP, B "timeout"),
};

#define L "lora_config."
static const struct row adapters[] = {
    ROW_INT(R, L "rank", lora.rank, "32", 1, 65536, "of the adapters"),
    ROW_REAL(R, L "alpha", lora.alpha, "64", 1e-6, 1e6, "the adapters' term is times alpha / rank"),
    {R,
     {L "target_modules", CFG_TEXTS, AT(lora.targets),
      "[self_attn.q, self_attn.k, self_attn.v, self_attn.o, cross_attn.q, cross_attn.k, "
      "cross_attn.v, cross_attn.o]",
      0, 0, NULL, "ends of module paths, or shell patterns for them", 0, 0}},
    ROW_TEXT(R, L "lora_path", lora.path, "null", "adapter checkpoint to start from"),
    ROW_REAL(R, L "dropout", lora.dropout, "0", 0, 0.99,
             "share of the adapters' inputs that is 0 in training (docs/lora.md)"),
};

static const struct row rest[] = {
    ROW_REAL(R, "optimizer_config.lr", optimizer.lr, "5e-4", 0, 1e3, "learning rate"),
    ROW_REAL(TP, "optimizer_config.lr", optimizer.lr, "1e-4", 0, 1e3, "peak learning rate"),
    ROW_REAL(TPR, "optimizer_config.weight_decay", optimizer.weight_decay, "1e-2", 0, 1e3,
             "decoupled"),
    {TPR,
     {"optimizer_config.betas", CFG_REALS, AT(optimizer.betas), "[0.9, 0.999]", 0, 1, NULL,
      "two decays", 0, 0}},
    ROW_REAL(TPR, "optimizer_config.eps", optimizer.eps, "1e-15", 1e-300, 1, "of the division"),
    ROW_ENUM(TP, "lr_schedule.kind", lr_schedule.kind, "constant", lr_kinds, "after the warm-up"),
    ROW_INT(TP, "lr_schedule.warmup_steps", lr_schedule.warmup_steps, "0", 0, BIG, "linear"),
    ROW_REAL(TP, "lr_schedule.min_lr_ratio", lr_schedule.min_lr_ratio, "0", 0, 1,
             "cosine: last rate over the peak"),
    ROW_INT(TP, "validation.interval", validation.interval, "0", 0, BIG, "steps; 0: never"),
    ROW_INT(TP, "validation.sigmas", validation.sigmas, "8", 1, 32, "noise levels"),
    ROW_INT(TP, "validation.samples", validation.samples, "0", 0, BIG, "held-out windows; 0: all"),
    ROW_REAL(
        TP, "validation.window", validation.window, "0", 0, 0.9,
        "share of every clip, at its end, that is never trained on; clips that share frames of "
        "one file count as one"),
    ROW_INT(TPR, "checkpoint.keep_last", checkpoint.keep_last, "3", 1, BIG, "newest that stay"),
    ROW_INT(TPR, "checkpoint.keep_every", checkpoint.keep_every, "0", 0, BIG,
            "steps whose multiples stay for good; 0: none"),
    ROW_INT(TPR, "plan.ranks", plan.ranks, "8", 1, 1 << 20, "ranks to plan for"),
    ROW_REAL(TPR, "plan.nvlink_gbps", plan.nvlink_gbps, "350", 1e-3, 1e6,
             "GB/s inside a node, each way"),
    ROW_REAL(TPR, "plan.ib_gbps", plan.ib_gbps, "46", 1e-3, 1e6, "GB/s between nodes, each way"),
    ROW_IGNORED(TSPR, "save_with_dcp_api"),
    ROW_IGNORED(TSPR, "model_cpu_offload"),
    ROW_IGNORED(TSPR, "encoder_cpu_offload"),
    ROW_ONLY(TSPR, "profiling", "false",
             "a trace that ends the run after a few steps is not built; set false, metrics.jsonl "
             "and osp bench have the times"),
    ROW_IGNORED(TSPR, "wandb_config"),
    ROW_IGNORED(TSPR, "vae_config"),
    ROW_IGNORED(TSPR, "text_encoder_config"),
    ROW_IGNORED(S, "pipeline_name"),
    ROW_IGNORED(S, "text_tokenizer_path"),
    ROW_IGNORED(D, "save_absolute_path"),
    ROW_OLD(ALL, "cp_size", "was renamed to sp_size"),
    ROW_OLD(ALL, "skiparse_cp_size", "was renamed to skiparse_sp_size"),
    ROW_OLD(ALL, "use_context_parallel", "was renamed to use_sequence_parallel"),
    ROW_OLD(ALL, "use_skiparse_context_parallel", "was renamed to use_skiparse_sequence_parallel"),
};

#include "train/schema_names.inc"
#include "train/schema_rl.inc"

/* ---- one table per verb -----------------------------------------------------------------------*/
#define GROUP(g)                      \
    {                                 \
        g, sizeof(g) / sizeof((g)[0]) \
    }
static const struct {
    const struct row *row;
    size_t n;
} groups[] = {GROUP(general), GROUP(sampling), GROUP(filtering), GROUP(model), GROUP(scheduler),
              GROUP(data),    GROUP(adapters), GROUP(policy),    GROUP(rest)};
enum { VERBS = 5, GROUPS = sizeof groups / sizeof groups[0], MAX_ROWS = 384 };
static struct cfg_field tables[VERBS][MAX_ROWS];
static int table_rows[VERBS];
static const char *const verb_names[VERBS] = {"osp train", "osp data", "osp sample", "osp plan",
                                              "osp rl"};
static const char *foreign[1 << VERBS]; /* reason, by the verbs that do have the key */

/* As a key or as a section ("checkpoint" is a path for sample and a section for train). */
static bool has(const struct cfg_field *table, int n, const char *key)
{
    const size_t len = strlen(key);
    for (int i = 0; i < n; i++) {
        const size_t own = strlen(table[i].key);
        if (strncmp(table[i].key, key, len) == 0 &&
            (table[i].key[len] == 0 || table[i].key[len] == '.'))
            return true;
        if (table[i].type == CFG_IGNORED && strncmp(table[i].key, key, own) == 0 && key[own] == '.')
            return true; /* a whole section that means nothing here */
    }
    return false;
}

/* Own rows first; then the keys of other verbs, which get a reason instead of "unknown key". */
static void build_verb(int verb)
{
    struct cfg_field *table = tables[verb];
    int n = 0;
    for (int pass = 0; pass < 2; pass++)
        for (size_t g = 0; g < GROUPS; g++)
            for (size_t i = 0; i < groups[g].n; i++) {
                const struct row *r = &groups[g].row[i];
                const bool own = r->verbs >> verb & 1;
                if (!r->verbs) continue;
                if (own == !!pass || (pass && has(table, n, r->f.key))) continue;
                CHECK(n < MAX_ROWS, "MAX_ROWS is too small");
                table[n++] = own ? r->f
                                 : (struct cfg_field){.key = r->f.key,
                                                      .type = CFG_REFUSED,
                                                      .fallback = "null",
                                                      .help = foreign[r->verbs]};
            }
    table_rows[verb] = n;
}

static void build(void)
{
    static char text[1 << VERBS][128];
    for (int mask = 1; mask < 1 << VERBS; mask++) {
        size_t n = (size_t)snprintf(text[mask], sizeof text[0],
                                    "does not belong here: it is a "
                                    "key of");
        for (int v = 0, first = 1; v < VERBS; v++)
            if (mask >> v & 1) {
                n += (size_t)snprintf(text[mask] + n, sizeof text[0] - n, "%s %s",
                                      first ? "" : " and", verb_names[v]);
                first = 0;
            }
        foreign[mask] = text[mask];
    }
    for (int v = 0; v < VERBS; v++) build_verb(v);
    cfg_other_names(other_names, sizeof other_names / sizeof *other_names);
}

const struct cfg_field *settings_schema(enum settings_verb verb, int *n)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, build);
    *n = table_rows[verb];
    return tables[verb];
}

/* ---- whose file is it? ------------------------------------------------------------------------*/
/* How a file reads with the keys of one verb. foreign: keys of it that only others have; first: the
 * first such row, or NULL. */
struct reading {
    int problems, foreign;
    const char *first;
};
static struct reading read_as(int verb, const char *path)
{
    int n;
    const struct cfg_field *schema = settings_schema((enum settings_verb)verb, &n);
    struct cfg_origin *origin = calloc((size_t)n, sizeof *origin);
    struct settings *s = calloc(1, sizeof *s);
    char *report, *notices;
    CHECK(origin && s, "out of memory");
    struct reading r = {0};
    r.problems = cfg_load(schema, n, s, origin, path, NULL, 0, &report, &notices);
    for (int i = 0; i < n; i++) {
        if (schema[i].type != CFG_REFUSED || origin[i].line == 0) continue;
        if (!r.first) r.first = schema[i].key;
        r.foreign++;
    }
    cfg_free(schema, n, s);
    free(report);
    free(notices);
    free(origin);
    free(s);
    return r;
}

/* The verb that knows more keys of it than *verb, if there is one. */
static struct reading nearest(enum settings_verb *verb, const char *path, struct reading best)
{
    static const enum settings_verb all[] = {SETTINGS_TRAIN, SETTINGS_DATA, SETTINGS_SAMPLE,
                                             SETTINGS_RL};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        const struct reading r = read_as((int)all[k], path);
        if (r.foreign >= best.foreign) continue;
        best = r;
        *verb = all[k];
    }
    return best;
}

enum settings_verb settings_nearest(enum settings_verb verb, const char *path)
{
    nearest(&verb, path, read_as((int)verb, path));
    return verb;
}

enum settings_whose settings_whose(enum settings_verb verb, const char *path, char *out,
                                   size_t size)
{
    enum settings_verb other = verb;
    const struct reading own = read_as((int)verb, path), best = nearest(&other, path, own);
    const char *name = other == verb ? NULL : verb_names[other];
    const bool whole = name && best.problems == 0;
    if (!whole && (!name || own.foreign < 3 || best.foreign * 3 > own.foreign)) return SETTINGS_OWN;
    char others[48] = "";
    if (own.foreign > 1) snprintf(others, sizeof others, " (and %d more)", own.foreign - 1);
    snprintf(out, size,
             "%s looks like a configuration of %s, not of %s, which has no key %s%s; to run it: "
             "%s%s %s",
             path, name, verb_names[verb], own.first, others,
             other == SETTINGS_DATA ? "" : "mpirun -n RANKS ", name, path);
    return whole ? SETTINGS_WHOLLY_OTHER : SETTINGS_PARTLY_OTHER;
}
