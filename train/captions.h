/* What is recorded of the videos of a folder: samples.json of `osp sample`, prompts.json of an
 * evaluation of `osp rl` (rl/evaluate.c). For reports: a file that is damaged, or not ours, is a
 * warning, and the folder then has no captions. */
#ifndef TRAIN_CAPTIONS_H
#define TRAIN_CAPTIONS_H
#include <stdbool.h>
#include <stdint.h>

struct caption {
    char *file;     /* name in its folder */
    int64_t number; /* of the prompt, from 0 */
    char *prompt;   /* plain text, as everything here */
    char *text;     /* sample, and how it was made */
    double reward;  /* NaN: not recorded */
    bool small;     /* contact sheets enlarge it (GRID_CELL of data/grid.h) */
};
struct captions {
    struct caption *v;     /* [n], prompt by prompt */
    int64_t n, items;      /* items: with those that are not made yet */
    int64_t samples;       /* of a prompt */
    int64_t rows, columns; /* of the contact sheet; 0: there is none */
    int64_t shown;         /* on it: the first so many items */
};
/* Without such a file n = 0. Free what they fill. */
void captions_of_samples(struct captions *c, const char *folder);
void captions_of_evaluation(struct captions *c, const char *folder);
/* Whether two evaluations (their folders) have the same prompts. Quiet; unknown where one of them
 * has no prompts.json that can be read. */
enum captions_prompts { PROMPTS_UNKNOWN, PROMPTS_SAME, PROMPTS_DIFFER };
enum captions_prompts captions_compare(const char *folder, const char *other);
/* NULL: nothing is recorded of this file. */
const struct caption *captions_find(const struct captions *c, const char *file);
void captions_free(struct captions *c);
#endif
