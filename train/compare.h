/* Does text work? Distance (mean squared error of latents) between every sample and the training
 * windows of every prompt's clips; with the same noise for all prompts the sample of prompt p
 * should be nearest to the clips whose caption is p. */
#ifndef TRAIN_COMPARE_H
#define TRAIN_COMPARE_H
#include <jansson.h>

#include "parallel/comm.h"
#include "train/prompts.h"
struct compare;
/* Stops when a prompt is nobody's caption. manifest: distances of items that are done already. */
struct compare *compare_open(const char *data_set, const struct prompts *p, int items,
                             const json_t *manifest);
void compare_close(struct compare *c);
void compare_item(struct compare *c, int item, const float *latent);
void compare_share(struct compare *c, struct comm *world); /* sums what the ranks found */
json_t *compare_json(const struct compare *c, int item);
/* Table, and "own prompt nearest: k of n". */
void compare_print(const struct compare *c, int per_prompt);
#endif
