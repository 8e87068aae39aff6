#include "rl/prompt_file.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "rl/reward.h"
#include "rl/reward_wire.h"

static bool line_fine(const char *line, size_t n, struct err *e, const char *where)
{
    size_t at = 0;
    if (n > REWARD_PROMPT)
        err_set(e, RC_DATA, "%s: a prompt of %zu bytes; at most %d are possible", where, n,
                REWARD_PROMPT);
    else if (!wire_printable(line, n, &at))
        err_set(e, RC_DATA, "%s: byte %zu of the prompt is a control character or no UTF-8", where,
                at + 1);
    else if (memmem(line, n, "<|", 2) && memmem(line, n, "|>", 2))
        err_set(e, RC_DATA, "%s: <|...|> would be read as a token of the scorer", where);
    return !e->code;
}

static void add(struct prompts *p, const char *line, size_t n)
{
    p->text = realloc(p->text, (size_t)(p->n + 1) * sizeof *p->text);
    CHECK(p->text, "out of memory");
    p->text[p->n++] = strndup(line, n);
}

void prompt_file_read(struct prompts *p, const char *key, const char *path, struct err *e)
{
    *p = (struct prompts){0};
    size_t size;
    if (!io_exists(path)) {
        err_set(e, RC_NOINPUT, "%s: %s: no such file", key, path);
        return;
    }
    char *text = io_read_file(path, &size, e);
    if (!text) return;
    const char *at = text, *end = text + size;
    if (size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) at += 3; /* byte order mark */
    for (int line = 1; at < end && !e->code; line++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at)), *next = stop ? stop + 1 : end;
        if (!stop) stop = end;
        while (at < stop && isspace((unsigned char)*at)) at++;
        while (stop > at && isspace((unsigned char)stop[-1])) stop--;
        char where[512];
        snprintf(where, sizeof where, "%s: %s:%d", key, path, line);
        if (stop > at && line_fine(at, (size_t)(stop - at), e, where))
            add(p, at, (size_t)(stop - at));
        at = next;
    }
    free(text);
    if (!e->code && !p->n) err_set(e, RC_DATA, "%s: %s holds no prompt", key, path);
}
