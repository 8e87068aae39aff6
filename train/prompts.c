#include "train/prompts.h"

#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"

static void add(struct prompts *p, const char *from, size_t n)
{
    while (n && isspace((unsigned char)from[0])) from++, n--;
    while (n && isspace((unsigned char)from[n - 1])) n--;
    p->text = realloc(p->text, (size_t)(p->n + 1) * sizeof *p->text);
    CHECK(p->text, "out of memory");
    p->text[p->n++] = strndup(from, n);
}

void prompts_read(struct prompts *p, const char *source, struct err *e)
{
    *p = (struct prompts){0};
    if (!source) {
        err_set(e, RC_CONFIG,
                "prompt_txt: name a file with one prompt per line, or give the prompt");
        return;
    }
    if (!io_exists(source)) {
        if (strchr(source, '/') || strstr(source, ".txt")) {
            err_set(e, RC_NOINPUT, "prompt_txt: %s: no such file", source);
            return;
        }
        add(p, source, strlen(source));
        return;
    }
    size_t n;
    char *text = io_read_file(source, &n, e);
    if (!text) return;
    for (char *line = text; *line;) {
        const size_t len = strcspn(line, "\n");
        add(p, line, len);
        line += len + (line[len] == '\n');
    }
    for (int i = 0; i < p->n && !e->code; i++) {
        json_t *word = json_string(p->text[i]); /* NULL where it is no UTF-8 */
        if (!word) err_set(e, RC_DATA, "prompt_txt: %s:%d: the line is not UTF-8", source, i + 1);
        json_decref(word);
    }
    if (strlen(text) != n) err_set(e, RC_DATA, "prompt_txt: %s holds a zero byte", source);
    free(text);
    if (!p->n) err_set(e, RC_DATA, "prompt_txt: %s is empty", source);
}

void prompts_free(struct prompts *p)
{
    for (int i = 0; i < p->n; i++) free(p->text[i]);
    free(p->text);
    *p = (struct prompts){0};
}
