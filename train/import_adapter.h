/* A folder of peft becomes an adapter checkpoint (docs/spec/rl.md 2.6). */
#ifndef TRAIN_IMPORT_ADAPTER_H
#define TRAIN_IMPORT_ADAPTER_H
#include <stdbool.h>
struct import_job {
    const char *peft; /* folder with adapter_config.json and adapter_model.safetensors or .bin */
    const char *base; /* run or checkpoint: the weights that the adapter is declared to be for */
    const char *out;  /* run folder to make: checkpoints/iter_000000000 in it */
    bool raw;         /* the adapter is for the raw weights of a base that has averaged ones too */
    bool force;       /* although pairs are missing */
};
/* One process. The result (kind lora, no EMA, a state at zero) opens in `osp sample` (lora),
 * `osp convert merge` and `osp rl` (lora_config.lora_path); its manifest says what it was made of.
 * Memory: all adapters. Everything is checked before anything is written; stops with the reason. */
void import_adapter(const struct import_job *job);
#endif
