/* The prompt files of post-training (docs/spec/rl.md 1.2, 6.9). */
#ifndef RL_PROMPT_FILE_H
#define RL_PROMPT_FILE_H
#include "train/prompts.h"
/* A prompt per line, blanks around it and blank lines dropped. Everything a scorer would refuse is
 * an error here, with key, file and line: no file, no UTF-8, control characters, too long, tokens
 * of the scorer (<|...|>); RC_NOINPUT, RC_DATA. */
void prompt_file_read(struct prompts *p, const char *key, const char *path, struct err *e);
#endif
