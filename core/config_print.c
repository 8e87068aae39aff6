#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/config_parse.h"

/* ---- text that reads back ---------------------------------------------------------------------*/
/* Words that need no quotes: file names and the like, but nothing YAML gives a meaning to. */
static bool bare(const char *s)
{
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-";
    static const char *const words[] = {"null", "true", "false", "yes", "no",
                                        "on",   "off",  "y",     "n"};
    if (!*s || strspn(s, safe) != strlen(s)) return false;
    if (*s == '-' || *s == '.' || (*s >= '0' && *s <= '9')) return false;
    for (int i = 0; i < 9; i++)
        if (strcasecmp(s, words[i]) == 0) return false;
    return true;
}

/* One UTF-8 character; *len its bytes (1 for a stray byte). */
static unsigned decode(const unsigned char *s, int *len)
{
    const int want = *s < 0x80 ? 1 : *s >= 0xf0 ? 4 : *s >= 0xe0 ? 3 : *s >= 0xc0 ? 2 : 1;
    unsigned c = want == 1 ? *s : *s & (0xffu >> (want + 1));
    *len = 1;
    for (int i = 1; i < want; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0xfffd;
        c = c << 6 | (s[i] & 0x3f);
    }
    *len = want;
    return c;
}

static void put_text(FILE *o, const char *s)
{
    if (!s) {
        fputs("null", o);
        return;
    }
    if (bare(s)) {
        fputs(s, o);
        return;
    }
    fputc('"', o);
    for (int len; *s; s += len) {
        const unsigned c = decode((const unsigned char *)s, &len);
        const bool unprintable = c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x2028 ||
                                 c == 0x2029 || c == 0xfeff || (c & 0xfffe) == 0xfffe;
        if (c == '"' || c == '\\')
            fprintf(o, "\\%c", (char)c);
        else if (unprintable)
            fprintf(o, c > 0xffff ? "\\U%08X" : "\\u%04X", c);
        else
            fwrite(s, 1, (size_t)len, o);
    }
    fputc('"', o);
}

static void put_choice(FILE *o, const char *choice) { fwrite(choice, 1, strcspn(choice, "|"), o); }

static void put_real(FILE *o, double v)
{
    char text[40];
    cfg_number(text, sizeof text, v);
    fputs(text, o);
}

static void put_ints(FILE *o, const struct cfg_ints *z)
{
    fputc('[', o);
    for (int i = 0; i < z->n; i++) fprintf(o, "%s%lld", i ? ", " : "", (long long)z->v[i]);
    fputc(']', o);
}

/* True: v is one of the words. */
static bool put_word(FILE *o, const struct cfg_field *f, int64_t v)
{
    for (int i = 0; f->choices && f->choices[i]; i++)
        if (v == f->word - i) {
            put_choice(o, f->choices[i]);
            return true;
        }
    return false;
}

static void put_lists(FILE *o, const struct cfg_field *f, const char *at)
{
    const struct cfg_reals *r = (const void *)at;
    const struct cfg_texts *s = (const void *)at;
    if (f->type == CFG_INTS) {
        put_ints(o, (const void *)at);
        return;
    }
    const int n = f->type == CFG_REALS ? r->n : s->n;
    fputc('[', o);
    for (int i = 0; i < n; i++) {
        if (i) fputs(", ", o);
        if (f->type == CFG_REALS)
            put_real(o, r->v[i]);
        else
            put_text(o, s->v[i]);
    }
    fputc(']', o);
}

static void put_value(FILE *o, const struct cfg_field *f, const void *cfg)
{
    const char *at = (const char *)cfg + f->offset;
    const int word = f->type == CFG_ENUM || f->type == CFG_WORD_OR_INTS ? *(const int *)at : 0;
    switch (f->type) {
    case CFG_BOOL:
        fputs(*(const bool *)at ? "true" : "false", o);
        break;
    case CFG_INT:
        if (!put_word(o, f, *(const int64_t *)at))
            fprintf(o, "%lld", (long long)*(const int64_t *)at);
        break;
    case CFG_REAL:
        if (rint(*(const double *)at) != *(const double *)at || fabs(*(const double *)at) > 1e15 ||
            !put_word(o, f, (int64_t) * (const double *)at))
            put_real(o, *(const double *)at);
        break;
    case CFG_TEXT:
        put_text(o, *(char *const *)at);
        break;
    case CFG_ENUM:
        put_choice(o, f->choices[word]);
        break;
    case CFG_WORD_OR_INTS:
        if (word >= 0)
            put_choice(o, f->choices[word]);
        else if (word == -2)
            fputs("null", o);
        else
            put_ints(o, (const void *)((const char *)cfg + f->list_offset));
        break;
    default:
        put_lists(o, f, at);
        break;
    }
}

/* Headers of the sections of key that are not those of the key before; returns the depth. */
static int put_sections(FILE *o, const char *before, const char *key)
{
    int depth = 0;
    const char *start = key;
    bool same = true;
    for (const char *dot = strchr(key, '.'); dot; dot = strchr(start, '.')) {
        const size_t upto = (size_t)(dot - key) + 1;
        same = same && strncmp(before, key, upto) == 0;
        if (!same) fprintf(o, "%*s%.*s:\n", 2 * depth, "", (int)(dot - start), start);
        depth++;
        start = dot + 1;
    }
    return depth;
}

char *cfg_text(const struct cfg_field *schema, int n, const void *cfg,
               const struct cfg_origin *origin)
{
    char *text = NULL;
    size_t size = 0;
    FILE *o = open_memstream(&text, &size);
    CHECK(o, "out of memory");
    const char *before = "";
    for (int i = 0; i < n; i++) {
        const struct cfg_field *f = &schema[i];
        if (!cfg_has_member(f)) continue;
        const int depth = put_sections(o, before, f->key);
        const char *dot = strrchr(f->key, '.');
        fprintf(o, "%*s%s: ", 2 * depth, "", dot ? dot + 1 : f->key);
        put_value(o, f, cfg);
        if (origin) {
            fputs("  # ", o);
            for (const char *c = origin[i].file; *c; c++)
                fputc((unsigned char)*c < 0x20 ? '?' : *c, o);
            if (origin[i].line > 0) fprintf(o, ":%d:%d", origin[i].line, origin[i].column);
        }
        fputc('\n', o);
        before = f->key;
    }
    fclose(o);
    return text;
}

/* ---- and back ---------------------------------------------------------------------------------*/
/* The end of a printed value: texts are quoted where they hold anything but safe characters. */
static const char *value_end(const char *s)
{
    bool quoted = false;
    const char *end = s;
    for (; *s && *s != '\n'; s++) {
        if (!quoted && strncmp(s, "  # ", 4) == 0) break;
        if (quoted && *s == '\\' && s[1])
            s++;
        else if (*s == '"')
            quoted = !quoted;
        end = s + 1;
    }
    return end;
}

bool cfg_next_line(struct cfg_line *l)
{
    while (*l->text) {
        const char *s = l->text, *colon;
        const size_t indent = strspn(s, " "), n = strcspn(s, "\n");
        l->text = s + n + (s[n] == '\n');
        colon = memchr(s, ':', n);
        if (!colon) continue;
        /* two blanks are one section: what the key before has in front is kept up to there */
        size_t at = 0;
        for (size_t depth = 0; depth < indent / 2 && l->key[at]; depth++) {
            at += strcspn(l->key + at, ".");
            at += l->key[at] == '.';
        }
        const bool section = colon + 1 == s + n;
        snprintf(l->key + at, sizeof l->key - at, "%.*s%s", (int)(colon - s - (long)indent),
                 s + indent, section ? "." : "");
        if (section) continue;
        l->value = colon + 1 + (colon[1] == ' ');
        l->len = (int)(value_end(l->value) - l->value);
        return true;
    }
    return false;
}

char *cfg_line_of(const char *text, const char *key)
{
    struct cfg_line l = {.text = text};
    while (cfg_next_line(&l)) {
        if (strcmp(l.key, key)) continue;
        char *value = strndup(l.value, (size_t)l.len);
        CHECK(value, "out of memory");
        return value;
    }
    return NULL;
}

/* ---- help -------------------------------------------------------------------------------------*/
static void put_type(FILE *o, const struct cfg_field *f)
{
    static const char *const names[] = {[CFG_BOOL] = "true|false",
                                        [CFG_INT] = "integer",
                                        [CFG_REAL] = "number",
                                        [CFG_TEXT] = "text",
                                        [CFG_ENUM] = "",
                                        [CFG_REALS] = "list of numbers",
                                        [CFG_INTS] = "list of integers",
                                        [CFG_TEXTS] = "list of texts",
                                        [CFG_WORD_OR_INTS] = "list of integers",
                                        [CFG_ONLY] = "only ",
                                        [CFG_IGNORED] = "ignored",
                                        [CFG_REFUSED] = ""};
    fputs(names[f->type], o);
    if (f->type == CFG_ONLY) fputs(f->fallback, o);
    const char *sep = f->type == CFG_ENUM ? "" : "|";
    for (int i = 0; f->choices && f->choices[i]; i++) {
        if (f->choices[i][0] == '!') continue;
        fputs(sep, o);
        put_choice(o, f->choices[i]);
        sep = "|";
    }
    if (f->min == 0 && f->max == 0) return;
    fputs(", ", o);
    if (isinf(f->max)) fputs("at least ", o);
    put_real(o, f->min);
    if (isinf(f->max)) return;
    fputs(" to ", o);
    put_real(o, f->max);
}

char *cfg_help(const struct cfg_field *schema, int n)
{
    char *text = NULL;
    size_t size = 0;
    FILE *o = open_memstream(&text, &size);
    CHECK(o, "out of memory");
    for (int i = 0; i < n; i++) {
        const struct cfg_field *f = &schema[i];
        if (f->type == CFG_REFUSED || f->type == CFG_IGNORED) continue;
        fprintf(o, "%s\n    ", f->key);
        put_type(o, f);
        if (cfg_has_member(f)) {
            if (f->fallback)
                fprintf(o, "; default %s", *f->fallback ? f->fallback : "\"\"");
            else
                fputs("; required", o);
        }
        fprintf(o, "\n    %s\n", f->help ? f->help : "");
    }
    fputs("accepted and ignored:", o);
    for (int i = 0; i < n; i++)
        if (schema[i].type == CFG_IGNORED) fprintf(o, " %s", schema[i].key);
    fputc('\n', o);
    fclose(o);
    return text;
}
