/* The one clean-up of captions and prompts: everything that becomes an embedding goes through it.
 */
#ifndef DATA_TEXT_H
#define DATA_TEXT_H
#include <stdbool.h>
/* Trimmed, with runs of white space and control characters as one space; malloc'ed. */
char *text_clean(const char *text);
bool text_is_utf8(const char *text);
#endif
