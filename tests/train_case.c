#include "tests/train_case.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *data_path, *yaml_path;

static const char yaml[] =
    "seed: 7\nweight_dtype: fp32\ngrad_clip: fixed\nema_decay: 0.99\nema_warmup: true\n"
    "training_iteration: 1000\nlog_interval: 1\nsave_interval: 1000\n"
    "model_config: {dim: 32, ffn_dim: 48, freq_dim: 16, in_dim: 12, out_dim: 12, num_heads: 4,\n"
    "  num_layers: 4, text_len: 8, text_dim: 8, skiparse_model_type: dual_end, sparse_ratio: 2,\n"
    "  num_full_blocks: 2, skiparse_strict: false}\n"
    "data_config:\n  batch_size: null\n  global_batch_size: 8\n"
    "  dataset_config: {codec: pixel, text_codec: hash, sample_height: 16, sample_width: 16,\n"
    "    sample_num_frames: 4, train_fps: 8, window_stride: 4, text_max_length: 8}\n"
    "optimizer_config: {lr: 1e-3, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.01}\n"
    "validation: {interval: 0, sigmas: 4, samples: 4, window: 0.25}\n";

struct data_build train_case_build(const char *path)
{
    return (struct data_build){.meta_path = "tests/clips/clips.json",
                               .save_path = path,
                               .codec = "pixel",
                               .text_codec = "hash",
                               .window_stride = 4,
                               .text_dim = 8,
                               .text_len = 8,
                               .filter = {.sample_height = 16,
                                          .sample_width = 16,
                                          .sample_num_frames = 4,
                                          .train_fps = 8,
                                          .too_long_factor = 1e9,
                                          .max_h_div_w_ratio = 10,
                                          .min_h_div_w_ratio = 0.1,
                                          .max_motion_value = 1e9}};
}

const char *train_case_data(void)
{
    pthread_mutex_lock(&lock);
    if (!data_path) {
        struct err e = {0};
        data_path = io_path("%s/clips.h5", test_dir());
        yaml_path = io_path("%s/train.yaml", test_dir());
        io_write_file(yaml_path, yaml, sizeof yaml - 1, &e);
        const struct data_build b = train_case_build(data_path);
        if (!e.code) build_dataset(&b, NULL, &e);
        CHECK(!e.code, "the test data set: %s", e.msg);
    }
    pthread_mutex_unlock(&lock);
    return data_path;
}

void train_case_open(struct train_case *c, struct comm *world, const char *const *extra)
{
    memset(c, 0, sizeof *c);
    char *sets[32];
    int n = 0;
    sets[n++] = io_path("data_config.dataset_config.metafile_or_dir_path=%s", train_case_data());
    sets[n++] = io_path("output_dir=%s/run", test_dir());
    for (int i = 0; extra && extra[i]; i++) sets[n++] = strdup(extra[i]);
    settings_load(&c->l, SETTINGS_TRAIN, yaml_path, sets, n);
    settings_check_ranks(&c->l, world->size);
    for (int i = 0; i < n; i++) free(sets[i]);
    struct err e = {0};
    c->data = dataset_open(data_path, c->l.s.validation.window, &e);
    err_raise(&e);
    session_open(&c->ses, &c->l.s, world, trainer_shape(&c->l.s, c->data, world->size), true);
    trainer_init(&c->t, &c->ses, c->data);
    if (!resume_load(&c->t, &c->l)) fsdp_init_params(c->ses.fsdp, (uint64_t)c->l.s.seed);
    trainer_start(&c->t);
}

void train_case_close(struct train_case *c)
{
    trainer_free(&c->t);
    session_close(&c->ses);
    dataset_close(c->data);
    settings_free(&c->l);
}

void train_case_steps(struct train_case *c, int n, double *loss)
{
    for (int i = 0; i < n; i++) {
        const struct step_result r = trainer_step(&c->t, false, false);
        EXPECT(!r.skipped, "step %d was skipped", i);
        loss[i] = r.loss;
    }
}

void train_case_save(struct comm *world, void *arg)
{
    struct train_case *c = calloc(1, sizeof *c);
    const char *extra[] = {arg, NULL};
    train_case_open(c, world, extra);
    double loss[2];
    train_case_steps(c, 2, loss);
    resume_save(&c->t, &c->l);
    train_case_close(c);
    free(c);
}
