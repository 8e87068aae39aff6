/* Prompts: one per line of a file, or the text itself when there is no such file. */
#ifndef TRAIN_PROMPTS_H
#define TRAIN_PROMPTS_H
#include "core/err.h"
struct prompts {
    int n;
    char **text;
};
void prompts_read(struct prompts *p, const char *file_or_text, struct err *e);
void prompts_free(struct prompts *p);
#endif
