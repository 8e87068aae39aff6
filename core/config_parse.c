#include "core/config_parse.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool no(char *why, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static bool no(char *why, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, CFG_REASON_MAX, fmt, ap);
    va_end(ap);
    return false;
}

bool cfg_has_member(const struct cfg_field *f)
{
    return f->type != CFG_ONLY && f->type != CFG_IGNORED && f->type != CFG_REFUSED;
}

void cfg_number(char *out, size_t size, double v)
{
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, size, "%.*g", digits, v);
        if (strtod(out, NULL) == v) return;
    }
}

static bool expects(char *why, const char *what, const struct ynode *n)
{
    if (n->kind == Y_LIST) return no(why, "expects %s, not a list", what);
    if (n->kind == Y_MAP) return no(why, "expects %s, not a section", what);
    if (ynode_null(n)) return no(why, "expects %s, not null", what);
    return no(why, "expects %s, not %s\"%.80s\"", what, n->plain ? "" : "the text ", n->text);
}

/* ---- numbers ----------------------------------------------------------------------------------*/
static bool in_range(const struct cfg_field *f, double v, char *why)
{
    if (f->min == 0 && f->max == 0) return true;
    if (v >= f->min && v <= f->max) return true;
    char a[32], b[32], c[32];
    cfg_number(a, sizeof a, v);
    cfg_number(b, sizeof b, f->min);
    cfg_number(c, sizeof c, f->max);
    if (isinf(f->max)) return no(why, "%s is below the least value %s", a, b);
    return no(why, "%s is outside the range %s to %s", a, b, c);
}

static bool read_int(const struct cfg_field *f, const struct ynode *n, int64_t *out, char *why)
{
    const char *s = n->kind == Y_SCALAR && n->plain ? n->text : "";
    const char *d = s + (*s == '-' || *s == '+');
    if (!*d || strspn(d, "0123456789") != strlen(d)) return expects(why, "an integer", n);
    errno = 0;
    const long long v = strtoll(s, NULL, 10);
    if (errno) return no(why, "%.40s does not fit into 64 bits", s);
    if (!in_range(f, (double)v, why)) return false;
    *out = v;
    return true;
}

static bool read_real(const struct cfg_field *f, const struct ynode *n, double *out, char *why)
{
    const char *s = n->kind == Y_SCALAR && n->plain ? n->text : "";
    char *end = NULL;
    const double v = strtod(s, &end);
    /* no hexadecimal, no "nan", no "inf": strtod takes them all */
    const bool form = *s && strspn(s, "0123456789.eE+-") == strlen(s) && end && !*end;
    if (!form) return expects(why, "a number", n);
    if (!isfinite(v)) return no(why, "%.40s is not finite in double precision", s);
    if (!in_range(f, v, why)) return false;
    *out = v;
    return true;
}

/* ---- words ------------------------------------------------------------------------------------*/
/* Does text match one spelling of "a|b|c" or "!a|b: reason"? */
static bool spelled(const char *choice, const char *text)
{
    const size_t len = strlen(text);
    const char *s = choice + (*choice == '!');
    const char *end = *choice == '!' ? strstr(s, ": ") : NULL;
    if (!end) end = s + strlen(s);
    while (s <= end) {
        const char *bar = memchr(s, '|', (size_t)(end - s));
        const char *stop = bar ? bar : end;
        if ((size_t)(stop - s) == len && memcmp(s, text, len) == 0) return true;
        s = stop + 1;
    }
    return false;
}

/* null, true and false have several spellings in YAML; words are compared in one. */
static const char *word_of(const struct ynode *n)
{
    if (n->kind != Y_SCALAR) return NULL;
    if (ynode_null(n)) return "null";
    if (!n->plain) return n->text;
    if (strcmp(n->text, "True") == 0 || strcmp(n->text, "TRUE") == 0) return "true";
    if (strcmp(n->text, "False") == 0 || strcmp(n->text, "FALSE") == 0) return "false";
    return n->text;
}

static int find_choice(const char *const *choices, const char *word)
{
    for (int i = 0; choices && word && choices[i]; i++)
        if (spelled(choices[i], word)) return i;
    return -1;
}

static void list_choices(const char *const *choices, char *out, size_t size)
{
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; choices[i] && n < size; i++)
        if (choices[i][0] != '!')
            n += (size_t)snprintf(out + n, size - n, "%s%s", n ? ", " : "", choices[i]);
}

static bool read_choice(const struct cfg_field *f, const struct ynode *n, int *out, char *why)
{
    const char *word = word_of(n);
    const int at = find_choice(f->choices, word);
    if (at >= 0 && f->choices[at][0] != '!') {
        *out = at;
        return true;
    }
    if (at >= 0) {
        const char *reason = strstr(f->choices[at], ": ");
        return no(why, "%s is refused%s", word, reason ? reason : "");
    }
    char all[256], what[288];
    list_choices(f->choices, all, sizeof all);
    snprintf(what, sizeof what, "one of %s", all);
    return expects(why, what, n);
}

static bool read_bool(const struct ynode *n, bool *out, char *why)
{
    const char *word = n->kind == Y_SCALAR && n->plain ? word_of(n) : "";
    const bool yes = strcmp(word, "true") == 0;
    if (!yes && strcmp(word, "false") != 0) return expects(why, "true or false", n);
    *out = yes;
    return true;
}

static bool read_text(const struct ynode *n, char **out, char *why)
{
    if (n->kind != Y_SCALAR) return expects(why, "text", n);
    free(*out);
    *out = ynode_null(n) ? NULL : strdup(n->text);
    CHECK(ynode_null(n) || *out, "out of memory");
    return true;
}

/* ---- lists ------------------------------------------------------------------------------------*/
static bool read_list(const struct cfg_field *f, const struct ytree *t, int node, void *out,
                      char *why)
{
    const struct ynode *list = &t->node[node];
    const char *what = f->type == CFG_REALS   ? "a list of numbers"
                       : f->type == CFG_TEXTS ? "a list of texts"
                                              : "a list of integers";
    if (list->kind != Y_LIST) return expects(why, what, list);
    struct cfg_reals r = {0};
    struct cfg_ints z = {0};
    struct cfg_texts s = {0};
    int n = 0;
    bool ok = true;
    char item[CFG_REASON_MAX];
    for (int c = list->first; ok && c >= 0; c = t->node[c].next, n++) {
        if (n == CFG_MAX_ITEMS)
            ok = no(item, "only %d are allowed", CFG_MAX_ITEMS);
        else if (f->type == CFG_REALS)
            ok = read_real(f, &t->node[c], &r.v[n], item);
        else if (f->type == CFG_TEXTS)
            ok = read_text(&t->node[c], &s.v[n], item);
        else
            ok = read_int(f, &t->node[c], &z.v[n], item);
    }
    if (!ok) {
        for (int i = 0; i < CFG_MAX_ITEMS; i++) free(s.v[i]);
        return no(why, "item %d: %.400s", n, item);
    }
    r.n = z.n = s.n = n;
    const struct cfg_texts *old = f->type == CFG_TEXTS ? out : NULL;
    for (int i = 0; old && i < old->n; i++) free(old->v[i]);
    if (f->type == CFG_REALS)
        memcpy(out, &r, sizeof r);
    else if (f->type == CFG_TEXTS)
        memcpy(out, &s, sizeof s);
    else
        memcpy(out, &z, sizeof z);
    return true;
}

/* ---- values that only have one ----------------------------------------------------------------*/
static void flow_text(const struct ytree *t, int node, FILE *o)
{
    const struct ynode *n = &t->node[node];
    if (n->kind == Y_SCALAR) {
        fputs(word_of(n), o);
        return;
    }
    fputc(n->kind == Y_LIST ? '[' : '{', o);
    for (int c = n->first; c >= 0; c = t->node[c].next) {
        flow_text(t, c, o);
        if (t->node[c].next >= 0) fputs(", ", o);
    }
    fputc(n->kind == Y_LIST ? ']' : '}', o);
}

static bool read_only(const struct cfg_field *f, const struct ytree *t, int node, char *why)
{
    char *text = NULL;
    size_t size = 0;
    FILE *o = open_memstream(&text, &size);
    CHECK(o, "out of memory");
    flow_text(t, node, o);
    fclose(o);
    const bool same = strcmp(text, f->fallback) == 0;
    if (!same)
        no(why, "only %s is supported, not %.80s%s%s", f->fallback, text, f->help ? ": " : "",
           f->help ? f->help : "");
    free(text);
    return same;
}

void cfg_clear(const struct cfg_field *f, void *out)
{
    char *base = out;
    if (f->type == CFG_TEXT) {
        free(*(char **)(base + f->offset));
        *(char **)(base + f->offset) = NULL;
    } else if (f->type == CFG_TEXTS) {
        struct cfg_texts *s = (struct cfg_texts *)(base + f->offset);
        for (int i = 0; i < s->n; i++) free(s->v[i]);
        *s = (struct cfg_texts){0};
    }
}

/* A number, or a word that stands for one. */
static bool assign_number(const struct cfg_field *f, const struct ynode *n, void *out, char *why)
{
    const int word = find_choice(f->choices, word_of(n));
    if (word >= 0 && f->type == CFG_INT) *(int64_t *)out = f->word - word;
    if (word >= 0 && f->type == CFG_REAL) *(double *)out = (double)(f->word - word);
    if (word >= 0) return true;
    if (f->type == CFG_INT ? read_int(f, n, out, why) : read_real(f, n, out, why)) return true;
    if (f->choices && n->kind == Y_SCALAR) {
        char all[128];
        list_choices(f->choices, all, sizeof all);
        const size_t at = strlen(why);
        snprintf(why + at, CFG_REASON_MAX - at, " (or %s)", all);
    }
    return false;
}

static bool assign_word_or_ints(const struct cfg_field *f, char *base, const struct ytree *t,
                                int node, char *why)
{
    int *word = (int *)(base + f->offset);
    struct cfg_ints *list = (struct cfg_ints *)(base + f->list_offset);
    int choice = -2;
    if (t->node[node].kind == Y_LIST) {
        if (!read_list(f, t, node, list, why)) return false;
        *word = -1;
        return true;
    }
    if (!ynode_null(&t->node[node]) && !read_choice(f, &t->node[node], &choice, why)) {
        const size_t at = strlen(why);
        snprintf(why + at, CFG_REASON_MAX - at, " (or a list of integers)");
        return false;
    }
    *word = choice;
    list->n = 0;
    return true;
}

bool cfg_assign(const struct cfg_field *f, void *out, const struct ytree *t, int node,
                char why[CFG_REASON_MAX])
{
    char *at = (char *)out + f->offset;
    const struct ynode *n = &t->node[node];
    switch (f->type) {
    case CFG_BOOL:
        return read_bool(n, (bool *)at, why);
    case CFG_INT:
    case CFG_REAL:
        return assign_number(f, n, at, why);
    case CFG_TEXT:
        return read_text(n, (char **)at, why);
    case CFG_ENUM:
        return read_choice(f, n, (int *)at, why);
    case CFG_REALS:
    case CFG_INTS:
    case CFG_TEXTS:
        return read_list(f, t, node, at, why);
    case CFG_WORD_OR_INTS:
        return assign_word_or_ints(f, out, t, node, why);
    case CFG_ONLY:
        return read_only(f, t, node, why);
    case CFG_IGNORED:
        return true;
    case CFG_REFUSED:
        return no(why, "%s", f->help);
    }
    return no(why, "unknown type in the table");
}

/* ---- suggestions ------------------------------------------------------------------------------*/
enum { KEY_MAX = 120 };

static int distance(const char *a, const char *b)
{
    const int n = (int)strlen(a), m = (int)strlen(b);
    if (n > KEY_MAX || m > KEY_MAX) return KEY_MAX;
    int row[3][KEY_MAX + 1]; /* two rows back for swapped neighbours */
    for (int j = 0; j <= m; j++) row[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = row[i % 3], *up = row[(i - 1) % 3], *up2 = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = up[j - 1] + (a[i - 1] != b[j - 1]);
            if (up[j] + 1 < best) best = up[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            const bool swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swap && up2[j - 2] + 1 < best) best = up2[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[n % 3][m];
}

static const char *leaf(const char *key)
{
    const char *dot = strrchr(key, '.');
    return dot ? dot + 1 : key;
}

/* A typo of a whole key or of a section. */
static const char *near_key(const struct cfg_field *schema, int n, const char *key, int most,
                            char *buf, size_t size)
{
    const char *found = NULL;
    int best = most;
    for (int i = 0; i < n; i++) {
        if (schema[i].type == CFG_REFUSED) continue;
        const int d = distance(key, schema[i].key);
        if (d < best + !found) best = d, found = schema[i].key;
        for (const char *dot = strchr(schema[i].key, '.'); dot; dot = strchr(dot + 1, '.')) {
            char section[KEY_MAX + 1];
            snprintf(section, sizeof section, "%.*s", (int)(dot - schema[i].key), schema[i].key);
            const int ds = distance(key, section);
            if (ds >= best + !found) continue;
            best = ds;
            snprintf(buf, size, "%s", section);
            found = buf;
        }
    }
    return found;
}

/* The right word, or the beginning of one in the right section, or a typo of one in another. */
static const char *near_word(const struct cfg_field *schema, int n, const char *key, int most)
{
    const char *word = leaf(key), *begun = NULL, *typo = NULL;
    const size_t section = (size_t)(word - key), len = strlen(word);
    int nearest = most > 2 ? 3 : most; /* beyond */
    for (int i = 0; i < n; i++) {
        const char *other = leaf(schema[i].key);
        if (schema[i].type == CFG_REFUSED) continue;
        if (strcmp(word, other) == 0) return schema[i].key;
        if (!begun && len > 2 && strncmp(key, schema[i].key, section) == 0 &&
            (size_t)(other - schema[i].key) == section && strncmp(word, other, len) == 0)
            begun = schema[i].key;
        const int d = distance(word, other);
        if (d < nearest) nearest = d, typo = schema[i].key;
    }
    return begun ? begun : typo;
}

static const struct cfg_name *names;
static int num_names;

void cfg_other_names(const struct cfg_name *v, int n)
{
    names = v;
    num_names = n;
}

/* A word that other programs use, where this table has the key for it. */
static const char *other_name(const struct cfg_field *schema, int n, const char *key)
{
    const char *word = leaf(key);
    for (int k = 0; k < num_names; k++)
        for (int i = 0; i < n && strcmp(word, names[k].word) == 0; i++)
            if (cfg_has_member(&schema[i]) && strcmp(schema[i].key, names[k].key) == 0)
                return schema[i].key;
    return NULL;
}

const char *cfg_suggest(const struct cfg_field *schema, int n, const char *key, char *buf,
                        size_t size)
{
    const char *other = other_name(schema, n, key);
    if (other) return other;
    const int len = (int)strlen(leaf(key));
    int most = len / 3 > 2 ? len / 3 : 2; /* beyond this it is another word, not a typo */
    if (len <= most) most = len - 1;
    const char *found = near_key(schema, n, key, most, buf, size);
    return found ? found : near_word(schema, n, key, most);
}
