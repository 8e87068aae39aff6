#include "core/config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/config_parse.h"
#include "core/yaml_tree.h"

enum { KEY_SIZE = 256 };
struct load {
    const struct cfg_field *schema;
    int n;
    void *out;
    struct cfg_origin *origin;
    bool *seen;  /* in the source that is being read */
    bool *given; /* in any source */
    const char *file;
    int arg, shift; /* command line: number of the argument, column where its value starts */
    const struct ytree *t;
    FILE *report, *notices;
    int problems, ignored;
};

/* Text from outside must not control the terminal. */
static void put_clean(FILE *o, const char *s)
{
    for (; *s; s++) fputc((unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s, o);
}

static void put_place(FILE *o, const struct cfg_origin *at)
{
    put_clean(o, at->file);
    if (at->line > 0) fprintf(o, ":%d:%d", at->line, at->column);
}

static struct cfg_origin place(const struct load *L, int line, int column)
{
    if (L->arg == 0) return (struct cfg_origin){L->file, line, column, false};
    return (struct cfg_origin){L->file, L->arg, line == 1 ? column + L->shift : column, false};
}

static void problem(struct load *L, int line, int column, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
static void problem(struct load *L, int line, int column, const char *key, const char *fmt, ...)
{
    char text[2 * CFG_REASON_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    const struct cfg_origin at = place(L, line, column);
    put_place(L->report, &at);
    fputs(": ", L->report);
    if (*key) {
        put_clean(L->report, key);
        fputs(": ", L->report);
    }
    put_clean(L->report, text);
    fputc('\n', L->report);
    L->problems++;
}

/* The row of a key, or the ignored row above it; -1: none. */
static int find(const struct load *L, const char *key)
{
    for (int i = 0; i < L->n; i++) {
        const char *k = L->schema[i].key;
        const size_t len = strlen(k);
        if (strcmp(k, key) == 0) return i;
        if (L->schema[i].type == CFG_IGNORED && strncmp(k, key, len) == 0 && key[len] == '.')
            return i;
    }
    return -1;
}

/* Rows whose values are unknown now. prefix "": the keys without a section; NULL: all. */
static void spoil(struct load *L, const char *prefix)
{
    const size_t len = prefix ? strlen(prefix) : 0;
    for (int i = 0; i < L->n; i++) {
        const char *k = L->schema[i].key;
        if (!prefix || (len ? strncmp(k, prefix, len) == 0 : !strchr(k, '.')))
            L->origin[i].bad = true;
    }
}

static bool is_section(const struct load *L, const char *key)
{
    const size_t len = strlen(key);
    for (int i = 0; i < L->n; i++)
        if (strncmp(L->schema[i].key, key, len) == 0 && L->schema[i].key[len] == '.') return true;
    return false;
}

static void unknown(struct load *L, const struct ynode *at, const char *key)
{
    char buf[KEY_SIZE];
    const char *near = cfg_suggest(L->schema, L->n, key, buf, sizeof buf);
    problem(L, at->line, at->column, key, "unknown key%s%s%s", near ? " (did you mean \"" : "",
            near ? near : "", near ? "\"?)" : "");
    char prefix[KEY_SIZE];
    const char *dot = strrchr(key, '.');
    snprintf(prefix, sizeof prefix, "%.*s", dot ? (int)(dot - key) + 1 : 0, key);
    spoil(L, prefix);
}

static void ignored(struct load *L, const struct ynode *at, const char *key)
{
    const struct cfg_origin o = place(L, at->line, at->column);
    fputs(L->ignored++ ? ", " : "these keys have no meaning here and are ignored: ", L->notices);
    put_clean(L->notices, key);
    fputs(" (", L->notices);
    put_place(L->notices, &o);
    fputs(")", L->notices);
}

static void one_value(struct load *L, int i, const char *key, int key_node, int value)
{
    const struct cfg_field *f = &L->schema[i];
    const struct ynode *k = &L->t->node[key_node], *v = &L->t->node[value];
    if (f->type == CFG_IGNORED) {
        ignored(L, k, key);
        return;
    }
    if (L->seen[i]) {
        const struct cfg_origin *first = &L->origin[i];
        problem(L, k->line, k->column, key, "given twice (first in line %d)", first->line);
        L->origin[i].bad = true;
        return;
    }
    char why[CFG_REASON_MAX];
    const bool ok = cfg_assign(f, L->out, L->t, value, why);
    const struct ynode *at = f->type == CFG_REFUSED ? k : v;
    if (!ok) problem(L, at->line, at->column, key, "%s", why);
    L->seen[i] = L->given[i] = true;
    L->origin[i] = place(L, v->line, v->column);
    L->origin[i].bad = !ok;
}

static void section(struct load *L, int map, const char *prefix);

/* key_node is where the key stands (an override's value stands for its key). */
static void entry(struct load *L, const char *key, int key_node, int value)
{
    const struct ynode *v = &L->t->node[value];
    const int i = find(L, key);
    if (i >= 0)
        one_value(L, i, key, key_node, value);
    else if (!is_section(L, key))
        unknown(L, &L->t->node[key_node], key);
    else if (v->kind == Y_MAP)
        section(L, value, key);
    else if (!ynode_null(v)) {
        problem(L, v->line, v->column, key, "is a section: expects nested keys, not %s",
                v->kind == Y_LIST ? "a list" : "a value");
        spoil(L, NULL);
    }
}

/* Is the same section written a second time in this map? (Values are checked by one_value.) */
static int earlier(const struct load *L, int map, int key_node)
{
    const struct ynode *n = L->t->node;
    for (int k = n[map].first; k != key_node; k = n[n[k].next].next)
        if (n[k].kind == Y_SCALAR && strcmp(n[k].text, n[key_node].text) == 0) return k;
    return -1;
}

static void section(struct load *L, int map, const char *prefix)
{
    const struct ynode *n = L->t->node;
    for (int k = n[map].first; k >= 0; k = n[n[k].next].next) {
        if (n[k].kind != Y_SCALAR) {
            problem(L, n[k].line, n[k].column, prefix, "a key must be one word");
            spoil(L, NULL);
            continue;
        }
        char key[KEY_SIZE];
        snprintf(key, sizeof key, "%s%s%s", prefix, *prefix ? "." : "", n[k].text);
        const int twice = is_section(L, key) ? earlier(L, map, k) : -1;
        if (twice < 0) {
            entry(L, key, k, n[k].next);
            continue;
        }
        problem(L, n[k].line, n[k].column, key, "given twice (first in line %d)", n[twice].line);
        spoil(L, NULL);
    }
}

static void source(struct load *L, const char *file, int arg, int shift)
{
    L->file = file;
    L->arg = arg;
    L->shift = shift;
    memset(L->seen, 0, (size_t)L->n + 1);
}

static void load_defaults(struct load *L)
{
    for (int i = 0; i < L->n; i++) {
        const struct cfg_field *f = &L->schema[i];
        L->origin[i] = (struct cfg_origin){"default", 0, 0, false};
        if (!cfg_has_member(f)) continue;
        if (f->type == CFG_TEXT) *(char **)((char *)L->out + f->offset) = NULL;
        if (f->type == CFG_TEXTS) ((struct cfg_texts *)((char *)L->out + f->offset))->n = 0;
        if (!f->fallback) continue;
        struct ytree t;
        char why[CFG_REASON_MAX];
        CHECK(ytree_parse(&t, f->fallback, strlen(f->fallback)), "default of %s: %s", f->key,
              t.error);
        if (t.root < 0) t.root = 0; /* "" reads as nothing: the first node is an empty null */
        if (t.n == 0)
            t.node[t.n++] =
                (struct ynode){.plain = true, .text = strdup(""), .first = -1, .next = -1};
        CHECK(cfg_assign(f, L->out, &t, t.root, why), "default of %s: %s", f->key, why);
        ytree_free(&t);
    }
}

static void load_text(struct load *L, const char *text, size_t size)
{
    struct ytree t;
    if (!ytree_parse(&t, text, size)) {
        problem(L, t.line, t.column, "", "%s", t.error);
        spoil(L, NULL);
    } else if (t.root >= 0 && !ynode_null(&t.node[t.root])) {
        L->t = &t;
        const struct ynode *root = &t.node[t.root];
        if (root->kind == Y_MAP) {
            section(L, t.root, "");
        } else {
            problem(L, root->line, root->column, "", "expects \"key: value\" lines");
            spoil(L, NULL);
        }
    }
    ytree_free(&t);
}

static void load_file(struct load *L, const char *path)
{
    source(L, path, 0, 0);
    FILE *in = fopen(path, "rb");
    char *text = malloc(YAML_MAX_BYTES + 2);
    CHECK(text, "out of memory");
    const size_t size = in ? fread(text, 1, YAML_MAX_BYTES + 1, in) : 0;
    if (in && !ferror(in)) {
        load_text(L, text, size);
    } else {
        problem(L, 0, 0, "", "cannot be read: %s", strerror(errno));
        spoil(L, NULL);
    }
    if (in) fclose(in);
    free(text);
}

/* One "key=value" of the command line. */
static void load_override(struct load *L, const char *set, int number)
{
    const char *eq = strchr(set, '=');
    source(L, "command line", number, eq ? (int)(eq - set) + 1 : 0);
    if (!eq || eq == set) {
        problem(L, 1, 1, "", "\"%.80s\" is not of the form key=value", set);
        spoil(L, NULL);
        return;
    }
    char key[KEY_SIZE];
    snprintf(key, sizeof key, "%.*s", (int)(eq - set), set);
    struct ytree t;
    if (!ytree_parse(&t, eq + 1, strlen(eq + 1))) {
        problem(L, t.line, t.column, key, "%s", t.error);
        spoil(L, NULL);
    } else {
        if (t.root < 0) { /* "key=": null */
            t.root = t.n++;
            t.node[t.root] = (struct ynode){
                .plain = true, .text = strdup(""), .line = 1, .column = 1, .first = -1, .next = -1};
        }
        L->t = &t;
        entry(L, key, t.root, t.root);
    }
    ytree_free(&t);
}

static void required(struct load *L, const char *path)
{
    source(L, path ? path : "no file", 0, 0);
    for (int i = 0; i < L->n; i++)
        if (cfg_has_member(&L->schema[i]) && !L->schema[i].fallback && !L->given[i]) {
            problem(L, 1, 1, L->schema[i].key, "is required: %s", L->schema[i].help);
            L->origin[i].bad = true;
        }
}

int cfg_load(const struct cfg_field *schema, int n, void *out, struct cfg_origin *origin,
             const char *path, char *const *sets, int num_sets, char **report, char **notices)
{
    struct stat st;
    if (path && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        err_stop(RC_NOINPUT, "configuration %s: is a folder; name a file in it", path);
    size_t size[2];
    struct load L = {.schema = schema, .n = n, .out = out, .origin = origin};
    L.report = open_memstream(report, &size[0]);
    L.notices = open_memstream(notices, &size[1]);
    L.seen = calloc((size_t)n + 1, 1);
    L.given = calloc((size_t)n + 1, 1);
    CHECK(L.report && L.notices && L.seen && L.given, "out of memory");
    load_defaults(&L);
    if (path) load_file(&L, path);
    for (int i = 0; i < num_sets; i++) load_override(&L, sets[i], i + 1);
    required(&L, path);
    if (L.ignored) fputc('\n', L.notices);
    fclose(L.report);
    fclose(L.notices);
    free(L.seen);
    free(L.given);
    return L.problems;
}

void cfg_free(const struct cfg_field *schema, int n, void *cfg)
{
    for (int i = 0; i < n; i++)
        if (cfg_has_member(&schema[i])) cfg_clear(&schema[i], cfg);
}

void cfg_where(const struct cfg_field *schema, int n, const struct cfg_origin *origin,
               const char *key, char *out, size_t size)
{
    for (int i = 0; i < n; i++) {
        if (strcmp(schema[i].key, key) != 0) continue;
        if (origin[i].line > 0)
            snprintf(out, size, "%s:%d:%d: %s: ", origin[i].file, origin[i].line, origin[i].column,
                     key);
        else
            snprintf(out, size, "%s: %s: ", origin[i].file, key);
        return;
    }
    snprintf(out, size, "%s: ", key);
}

bool cfg_usable(const struct cfg_field *schema, int n, const struct cfg_origin *origin,
                const char *key)
{
    const size_t len = strlen(key);
    const bool section = len && key[len - 1] == '.';
    for (int i = 0; i < n; i++) {
        const char *k = schema[i].key;
        if (origin[i].bad && (section ? strncmp(k, key, len) == 0 : strcmp(k, key) == 0))
            return false;
    }
    return true;
}
