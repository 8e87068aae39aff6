/* YAML file + "key=value" overrides + one schema table -> one C struct, with the origin of every
 * value. All problems are found and reported together, each with file:line:column, the key and a
 * suggestion; nothing is adjusted silently. Keys are dotted paths ("model_config.dim"). Overrides
 * split at the first '='; their values are YAML flow ("optimizer_config.betas=[0.9,0.95]") and go
 * through the same table; of two overrides of one key the later wins. */
#ifndef CORE_CONFIG_H
#define CORE_CONFIG_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

enum cfg_type {
    CFG_BOOL,         /* bool */
    CFG_INT,          /* int64_t */
    CFG_REAL,         /* double */
    CFG_TEXT,         /* char *, malloc'ed; null -> NULL */
    CFG_ENUM,         /* int: index into choices */
    CFG_REALS,        /* struct cfg_reals */
    CFG_INTS,         /* struct cfg_ints */
    CFG_TEXTS,        /* struct cfg_texts */
    CFG_WORD_OR_INTS, /* int: index into choices, -1: a list (struct cfg_ints at list_offset),
                       * -2: null */
    CFG_ONLY,         /* no member: nothing but the fallback is accepted; help says why */
    CFG_IGNORED,      /* no member: official key that means nothing here, with anything below it:
                       * accepted with one notice naming it */
    CFG_REFUSED       /* no member: never accepted; help is the reason ("was renamed to sp_size") */
};
enum { CFG_MAX_ITEMS = 128 };
struct cfg_reals {
    int n;
    double v[CFG_MAX_ITEMS];
};
struct cfg_ints {
    int n;
    int64_t v[CFG_MAX_ITEMS];
};
struct cfg_texts {
    int n;
    char *v[CFG_MAX_ITEMS];
};
/* One row per key: the only place where a key is written. */
struct cfg_field {
    const char *key;
    enum cfg_type type;
    size_t offset;        /* into the config struct */
    const char *fallback; /* YAML text of the default; NULL: the file must say it */
    double min, max;      /* for CFG_INT, CFG_REAL and their lists; both 0: no limit */
    /* NULL-terminated. "bf16|bfloat16": other spellings of one choice, the first is printed;
     * "!fp16: reason": known, and refused with the reason. CFG_INT, CFG_REAL: extra words, see
     * word. */
    const char *const *choices;
    const char *help;
    int64_t word;       /* value of choices[0] ("auto"), choices[1] is word - 1, ... */
    size_t list_offset; /* CFG_WORD_OR_INTS */
};
struct cfg_origin {
    const char *file; /* path, "default" or "command line" */
    int line, column; /* 1-based, of the value (0: default); command line: line = number of the
                       * argument */
    bool bad;         /* the value was refused, or may be hidden behind a key that was: do not
                       * judge others by it */
};
/* Fills out and origin[n]. Returns the number of problems; their text, a line each, is written to
 * *report (malloc'ed). Notices (ignored keys) are lines in *notices. path NULL: defaults only.
 * Stops with RC_NOINPUT when path is a folder. */
int cfg_load(const struct cfg_field *schema, int n, void *out, struct cfg_origin *origin,
             const char *path, char *const *sets, int num_sets, char **report, char **notices);
/* Rows of one section must stand together in the table (the text is nested). */
/* The effective configuration as YAML that cfg_load reads back, each line with its origin as a
 * comment when origin is not NULL. malloc'ed. */
char *cfg_text(const struct cfg_field *schema, int n, const void *cfg,
               const struct cfg_origin *origin);
/* Reads such a text (with or without origins) back, value by value, without a schema: begin with
 * .text set and the rest zero. */
struct cfg_line {
    const char *text; /* of the rest */
    char key[256];    /* the whole one: "model_config.dim" */
    const char *value;
    int len; /* of the value, as it is printed; without the origin */
};
bool cfg_next_line(struct cfg_line *line); /* false: no more */
/* The value of a whole key; malloc'ed, NULL: it is not there. */
char *cfg_line_of(const char *text, const char *key);
/* Table of all keys with type, default, range and help. malloc'ed. */
char *cfg_help(const struct cfg_field *schema, int n);
/* Words that other programs have for keys, last parts of what a user wrote, for suggestions. The
 * list stays the caller's and must outlive all loads. */
struct cfg_name {
    const char *word, *key;
};
void cfg_other_names(const struct cfg_name *v, int n);
void cfg_free(const struct cfg_field *schema, int n, void *cfg);
/* "file:line:column: key: " for messages of cross-field rules. */
void cfg_where(const struct cfg_field *schema, int n, const struct cfg_origin *origin,
               const char *key, char *out, size_t size);
/* False: a row that is called key, or begins with it when it ends in a dot, is bad. */
bool cfg_usable(const struct cfg_field *schema, int n, const struct cfg_origin *origin,
                const char *key);
#endif
