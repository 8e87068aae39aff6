/* Choosing the targets of LoRA and laying out their tensors (private to model/lora*.c). */
#ifndef MODEL_LORA_ATTACH_H
#define MODEL_LORA_ATTACH_H
#include "model/lora.h"
/* Fills adapters, parameters and count of l, and hangs the adapters into d's linears. */
void lora_attach(struct lora *l, struct dit *d, const struct lora_config *cfg);
#endif
