/* The whole configuration of train, sample, plan and data: one struct, one schema table
 * (schema.c). Key names and nesting are the official ones where those exist (docs/spec/sft.md 5,
 * docs/spec/model.md 4). */
#ifndef TRAIN_SETTINGS_H
#define TRAIN_SETTINGS_H
#include "core/config.h"
#include "core/err.h"
#include "core/tensor.h"
#include "model/lora.h"
#include "rl/config.h"

enum grad_clip { CLIP_ADAPTIVE, CLIP_FIXED, CLIP_ADAPTIVE_CAPPED };
enum lr_kind { LR_CONSTANT, LR_COSINE };
enum device_choice { DEVICE_AUTO, DEVICE_REF, DEVICE_CPU, DEVICE_CUDA, DEVICE_NULL };
enum attention_choice { ATTENTION_AUTO, ATTENTION_BY_US };
enum { FSDP_AUTO = -1 }; /* fsdp_size: auto = world */

struct scheduler_config { /* scheduler_config.* */
    int scheduler_name;   /* flow_matching */
    bool use_dynamic_shifting, use_logitnorm_time_sampling;
    double shift, base_shift, max_shift, logit_mean, logit_std, guidance_scale;
    int64_t base_image_seq, max_image_seq, num_inference_steps;
};
struct data_config {                       /* data_config.* */
    int64_t batch_size, global_batch_size; /* per data rank; ours: whole, 0 = null */
    bool shuffle;
    int dataset_name;         /* wan_t2v (our HDF5 file), t2v_random (smoke test: needs smoke) */
    char *metafile_or_dir;    /* dataset_config.metafile_or_dir_path: the HDF5 data set */
    char *source;             /* dataset_config.source: meta JSON/CSV to build it from if absent */
    char *codec, *text_codec; /* dataset_config.codec, .text_codec: pixel, hash */
    int64_t sample_height, sample_width, sample_num_frames, sample_stride; /* stride 0 = null */
    int64_t window_stride; /* frames between windows of one clip; 0 = null: one window a clip */
    double train_fps, text_drop_ratio; /* train_fps 0 = null: by sample_stride */
    int64_t text_max_length;
};
struct optimizer_config {
    double lr, weight_decay, eps;
    struct cfg_reals betas;
};
struct lr_schedule {
    int kind; /* enum lr_kind */
    int64_t warmup_steps;
    double min_lr_ratio;
};
struct validation_config {
    int64_t interval, sigmas; /* every N steps (0: never); number of sigma buckets */
    int64_t samples;          /* held-out windows that are used, evenly spread; 0: all */
    double window;            /* share of every clip, at its end, that is never trained on */
};
struct checkpoint_config {
    int64_t keep_last, keep_every; /* keep_every: steps, 0 = none */
};
struct filter_config { /* `osp data`: docs/spec/sft.md 5.2 */
    double min_hxw, too_long_factor, max_h_div_w_ratio, min_h_div_w_ratio;
    double min_motion_value, max_motion_value, max_failure_rate;
};
struct data_job {                /* `osp data` */
    char *ann_txt_path;          /* official index file: "root,meta.json" lines */
    char *meta_path;             /* or one meta JSON/CSV; paths in it are relative to its folder */
    char *save_path;             /* the HDF5 data set to write */
    bool overwrite;              /* one that is there already, made from something else */
    struct filter_config filter; /* lets everything pass for the other verbs */
};
struct sample_config { /* `osp sample` (docs/spec/sft.md 5.3) */
    char *checkpoint;  /* run folder, checkpoint folder or its parent */
    char *prompt_txt;  /* file, a prompt per line, or the prompt itself */
    char *negative_prompt;
    bool use_ema;
    char *lora;   /* adapter checkpoint to use on the base; NULL: none */
    int lora_ema; /* 0 auto, 1 true, 2 false */
    bool lora_force_base;
    int64_t num_frames, height, width, batch_size, samples_per_prompt;
    double save_fps;
    bool batched_cfg;
    bool same_noise; /* noise by sample number only, the same for every prompt */
    char *compare;   /* data set: table of distances between samples and the clips of each prompt */
};
struct plan_config {
    int64_t ranks;
    double nvlink_gbps, ib_gbps;
};

struct settings {
    int model_name; /* osp_next, wan_t2v */
    int64_t seed;
    char *output_dir;
    int64_t training_iteration; /* optimizer steps */
    double max_seconds;         /* stop after so long by the clock, with a checkpoint; 0: never */
    int64_t fsdp_size, sp_size, skiparse_sp_size; /* fsdp_size: FSDP_AUTO */
    int64_t ddp_size;                             /* 0 = null: ranks / fsdp_size */
    bool use_sequence_parallel, use_skiparse_sequence_parallel;
    int reshard_after_forward; /* 0 null, 1 true, 2 false */
    int64_t explicit_prefetching_num_blocks;
    bool gradient_checkpointing;
    int recompute; /* enum recompute; -1: list in recompute_blocks, -2: not given */
    struct cfg_ints recompute_blocks;
    double memory_budget_gb; /* below 0: not given */
    int64_t gradient_accumulation_steps;
    double init_max_grad_norm;
    int grad_clip; /* enum grad_clip */
    int64_t log_interval, save_interval;
    int weight_dtype; /* 0 bf16, 1 fp32, 2 fp64 */
    int device;       /* enum device_choice */
    int attention;    /* enum attention_choice */
    bool deterministic_training;
    double ema_decay;
    int64_t ema_update_interval;
    bool ema_warmup, grad_scale_ref, check_comm, smoke;
    int64_t max_skipped_steps;
    double stop_before_end_s, comm_deadline_s;
    char *resume; /* auto, never or a path */
    struct model_config model;
    struct lora_config lora; /* rank 0: none */
    struct scheduler_config scheduler;
    struct data_config data;
    struct optimizer_config optimizer;
    struct lr_schedule lr_schedule;
    struct validation_config validation;
    struct checkpoint_config checkpoint;
    struct data_job job;
    struct sample_config sample;
    struct plan_config plan;
    struct rl_config rl;           /* `osp rl` (docs/spec/rl.md 4) */
    struct reward_settings reward; /* its scorers */
    int init_from;                 /* its base: 0 the averaged weights, 1 the raw ones */
};

enum settings_verb { SETTINGS_TRAIN, SETTINGS_DATA, SETTINGS_SAMPLE, SETTINGS_PLAN, SETTINGS_RL };
struct loaded_settings {
    struct settings s;
    enum settings_verb verb;
    struct cfg_origin *origin; /* one per row of the verb's schema */
    char *path;
};
/* The rows of one verb (train and plan share theirs). Keys of other verbs are in it as CFG_REFUSED
 * with a reason that names their verb, so one file cannot silently mean less than it says. */
const struct cfg_field *settings_schema(enum settings_verb verb, int *n);
/* The verb whose keys a file has: this one, unless another knows more of them. */
enum settings_verb settings_nearest(enum settings_verb verb, const char *path);
/* Whether a file that this verb refuses was written for another one: most of the keys that do not
 * belong here are keys of that verb. out: one line that names both verbs and how to run the file;
 * untouched when it is this verb's own. */
enum settings_whose {
    SETTINGS_OWN,
    SETTINGS_PARTLY_OTHER, /* the other verb would refuse it too, for less */
    SETTINGS_WHOLLY_OTHER  /* the other verb takes it as it is */
};
enum settings_whose settings_whose(enum settings_verb verb, const char *path, char *out,
                                   size_t size);
/* Loads, applies the cross-field rules that need no rank count, prints notices (rank 0) and stops
 * with RC_CONFIG and the list of all problems. */
void settings_load(struct loaded_settings *out, enum settings_verb verb, const char *path,
                   char *const *sets, int num_sets);
/* The rules that need the number of ranks (fsdp_size divides it, batch divides, ...). */
void settings_check_ranks(const struct loaded_settings *l, int ranks);
/* Problems that only files and ranks can show. settings_stop: "file:line:column: key: what".
 * settings_raise: an error whose message begins with "key: ", with that key's place put before it.
 * settings_push: failures are "while using file:line:column: key", until err_pop. */
_Noreturn void settings_stop(const struct loaded_settings *l, int code, const char *key,
                             const char *fmt, ...) __attribute__((format(printf, 4, 5)));
void settings_raise(const struct loaded_settings *l, const struct err *e);
void settings_push(const struct loaded_settings *l, const char *key);
/* What a number of this key means where the key has words; out is untouched otherwise. */
void settings_word(const char *key, int64_t value, char *out, size_t size);
char *settings_text(const struct loaded_settings *l, bool with_origins);
/* Values that differ from before are said to come from there ("rl.algo"). */
void settings_changed(struct loaded_settings *l, const struct settings *before, const char *from);
void settings_free(struct loaded_settings *l);
enum dtype settings_dtype(const struct settings *s); /* compute dtype */
#endif
