#include "train/prompts.h"

#include <ctype.h>
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
    free(text);
    if (!p->n) err_set(e, RC_DATA, "prompt_txt: %s is empty", source);
}

void prompts_free(struct prompts *p)
{
    for (int i = 0; i < p->n; i++) free(p->text[i]);
    free(p->text);
    *p = (struct prompts){0};
}
