/* What a checkpoint says about its model and data: enough to sample without the training YAML. */
#ifndef TRAIN_STORED_MODEL_H
#define TRAIN_STORED_MODEL_H
#include "model/config.h"
#include "parallel/checkpoint.h"
struct stored_model {
    struct model_config config;
    char *path; /* of the checkpoint */
    uint32_t identity;
    int64_t step, frames, height, width;
    double fps;
    char codec[32], text_codec[32];
};
void stored_model_read(struct stored_model *m, const struct ckpt *c, struct err *e);
void stored_model_free(struct stored_model *m);
#endif
