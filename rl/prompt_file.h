/* The prompt files of post-training (docs/spec/rl.md 1.2, 6.9). */
#ifndef RL_PROMPT_FILE_H
#define RL_PROMPT_FILE_H
#include <stdbool.h>
#include <stdint.h>

#include "train/prompts.h"
struct comm;
/* A prompt per line, blanks around it and blank lines dropped. Everything a scorer would refuse is
 * an error here, with key, file and line: no file, no UTF-8, control characters, too long, tokens
 * of the scorer (<|...|>); RC_NOINPUT, RC_DATA. */
void prompt_file_read(struct prompts *p, const char *key, const char *path, struct err *e);
uint64_t prompt_file_hash(const struct prompts *p); /* of the prompts in their order; 63 bits */
/* Collective: every rank reads its own file. False: RC_CONFIG with the ranks whose prompts are not
 * those of rank 0, the same on all ranks. */
bool prompt_file_same(struct comm *world, const struct prompts *p, const char *key,
                      const char *path, struct err *e);
#endif
