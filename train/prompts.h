/* Prompts: one per line of a file, or the text itself when there is no such file. */
#ifndef TRAIN_PROMPTS_H
#define TRAIN_PROMPTS_H
#include <stdint.h>

#include "core/err.h"
struct text_codec;
struct prompts {
    int n;
    char **text;
    int *line; /* [n], of their file; NULL: prompt i stands in line i + 1 */
};
/* Blanks around a prompt and a byte order mark are dropped; an empty line is an empty prompt
 * (docs/spec/sft.md 5), and a notice says how many there are. RC_NOINPUT: no such file, or a
 * folder; RC_DATA with the line: no UTF-8, or a control character other than a tab. */
void prompts_read(struct prompts *p, const char *file_or_text, struct err *e);
/* A notice of the prompts whose text is longer than len rows of the codec, which are cut there;
 * nothing when there are none. source: how they are called ("prompt_txt: a.txt"). */
void prompts_log_cut(const struct prompts *p, const char *source, const struct text_codec *codec,
                     int64_t len);
void prompts_free(struct prompts *p);
#endif
