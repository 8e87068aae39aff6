/* A folder of peft (https://github.com/huggingface/peft), as peft or the official OSP-Next code
 * writes it (docs/spec/rl.md 2.6): adapter_config.json, and adapter_model.safetensors or
 * adapter_model.bin with tensors called
 *   base_model.model.<module>.lora_{A|B}[.<adapter>].weight
 * What is not plain LoRA on linears, y = W x + (alpha/r) B A x, is refused by name. */
#ifndef TRAIN_PEFT_H
#define TRAIN_PEFT_H
#include <jansson.h>

#include "data/format.h"
struct peft_pair {
    char *module;                      /* "blocks.0.self_attn.q"; owned */
    const struct format_tensor *a, *b; /* [r,in], [out,r]; of tensors */
};
struct peft {
    char *config_path, *file; /* adapter_config.json, the file of tensors */
    char *text;               /* of adapter_config.json */
    json_t *config;
    struct format *tensors;
    int num_pairs;
    struct peft_pair *pair; /* sorted by module */
    char *adapter;          /* its name in the keys; NULL: the keys have none */
    int64_t rank;           /* of all pairs, at least 1 */
    double alpha;           /* above 0 */
};
/* Stops with the file, the key and the reason: RC_NOINPUT, RC_DATA, or RC_CONFIG for what we do not
 * compute. */
void peft_open(struct peft *p, const char *dir);
void peft_close(struct peft *p);
const struct peft_pair *peft_find(const struct peft *p, const char *module); /* NULL: none */
/* True: target_modules is a list that says which modules have adapters. */
bool peft_has_targets(const struct peft *p);
/* By target_modules, layers_to_transform and exclude_modules. */
bool peft_is_target(const struct peft *p, const char *module);
#endif
