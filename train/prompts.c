#include "train/prompts.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/log.h"
#include "data/codec.h"
#include "data/text.h"

enum { SHOWN_CUT = 8 };

static void add(struct prompts *p, const char *from, size_t n)
{
    while (n && isspace((unsigned char)from[0])) from++, n--;
    while (n && isspace((unsigned char)from[n - 1])) n--;
    p->text = realloc(p->text, (size_t)(p->n + 1) * sizeof *p->text);
    CHECK(p->text, "out of memory");
    p->text[p->n++] = strndup(from, n);
}

/* A tab is a blank; C1 is encoded as 0xc2 0x80 ... 0x9f. */
static bool has_control(const char *text)
{
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if ((*c < ' ' && *c != '\t') || *c == 0x7f || (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0))
            return true;
    return false;
}

static void read_lines(struct prompts *p, const char *source, const char *text, struct err *e)
{
    int empty = 0;
    if (strncmp(text, "\xef\xbb\xbf", 3) == 0) text += 3; /* byte order mark */
    for (const char *line = text; *line;) {
        const size_t len = strcspn(line, "\n");
        add(p, line, len);
        line += len + (line[len] == '\n');
    }
    for (int i = 0; i < p->n && !e->code; i++) {
        empty += !p->text[i][0];
        if (!text_is_utf8(p->text[i]))
            err_set(e, RC_DATA, "prompt_txt: %s:%d: the line is not UTF-8", source, i + 1);
        else if (has_control(p->text[i]))
            err_set(e, RC_DATA, "prompt_txt: %s:%d: the line holds a control character", source,
                    i + 1);
    }
    if (!e->code && !p->n) err_set(e, RC_DATA, "prompt_txt: %s is empty", source);
    if (!e->code && empty)
        log_info("prompt_txt: %s: %d empty line%s empty prompt%s", source, empty,
                 empty == 1 ? " is an" : "s are", empty == 1 ? "" : "s");
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
    if (!text) {
        const struct err why = *e;
        err_set(e, why.code, "prompt_txt: %s", why.msg);
        return;
    }
    if (strlen(text) != n)
        err_set(e, RC_DATA, "prompt_txt: %s holds a zero byte", source);
    else
        read_lines(p, source, text, e);
    free(text);
}

void prompts_log_cut(const struct prompts *p, const char *source, const struct text_codec *codec,
                     int64_t len)
{
    int cut = 0;
    size_t used = 0;
    char list[512] = "";
    for (int i = 0; i < p->n; i++) {
        const int64_t rows = codec->count(p->text[i]);
        if (rows <= len) continue;
        if (cut++ < SHOWN_CUT)
            used +=
                (size_t)snprintf(list + used, sizeof list - used, "%sline %d (%lld tokens)",
                                 used ? ", " : "", p->line ? p->line[i] : i + 1, (long long)rows);
    }
    if (cut)
        log_info("%s: %d of %d prompts %s longer than %lld tokens and %s cut: %s%s", source, cut,
                 p->n, cut == 1 ? "is" : "are", (long long)len, cut == 1 ? "is" : "are", list,
                 cut > SHOWN_CUT ? ", ..." : "");
}

void prompts_free(struct prompts *p)
{
    for (int i = 0; i < p->n; i++) free(p->text[i]);
    free(p->text);
    free(p->line);
    *p = (struct prompts){0};
}
