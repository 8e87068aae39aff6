#include "core/yaml_tree.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "core/err.h"

struct builder {
    struct ytree *t;
    int open[YAML_MAX_DEPTH], last[YAML_MAX_DEPTH]; /* containers and their newest child */
    int depth, documents;
};

static bool fail(struct ytree *t, yaml_mark_t at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static bool fail(struct ytree *t, yaml_mark_t at, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(t->error, sizeof t->error, fmt, ap);
    va_end(ap);
    t->line = (int)at.line + 1;
    t->column = (int)at.column + 1;
    return false;
}

/* A new node under the open container, or the root; -1 on error. */
static int add(struct builder *b, const yaml_event_t *ev, enum ynode_kind kind)
{
    struct ytree *t = b->t;
    if (t->n == YAML_MAX_NODES) {
        fail(t, ev->start_mark, "more than %d values", YAML_MAX_NODES);
        return -1;
    }
    const int at = t->n++;
    t->node[at] = (struct ynode){.kind = kind,
                                 .line = (int)ev->start_mark.line + 1,
                                 .column = (int)ev->start_mark.column + 1,
                                 .first = -1,
                                 .next = -1};
    if (b->depth == 0) {
        t->root = at;
    } else {
        int *last = &b->last[b->depth - 1];
        *(*last < 0 ? &t->node[b->open[b->depth - 1]].first : &t->node[*last].next) = at;
        *last = at;
    }
    return at;
}

static bool add_scalar(struct builder *b, const yaml_event_t *ev)
{
    if (ev->data.scalar.anchor)
        return fail(b->t, ev->start_mark,
                    "anchors (&name) are refused; "
                    "write the value out");
    if (ev->data.scalar.tag) return fail(b->t, ev->start_mark, "tags (!name) are refused");
    if (strlen((const char *)ev->data.scalar.value) != ev->data.scalar.length)
        return fail(b->t, ev->start_mark, "the text has a NUL character inside");
    const int at = add(b, ev, Y_SCALAR);
    if (at < 0) return false;
    b->t->node[at].plain = ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    b->t->node[at].text = strdup((const char *)ev->data.scalar.value);
    CHECK(b->t->node[at].text, "out of memory");
    return true;
}

static bool open_container(struct builder *b, const yaml_event_t *ev, enum ynode_kind kind)
{
    const bool list = kind == Y_LIST;
    if (list ? !!ev->data.sequence_start.anchor : !!ev->data.mapping_start.anchor)
        return fail(b->t, ev->start_mark, "anchors (&name) are refused; write the value out");
    if (list ? !!ev->data.sequence_start.tag : !!ev->data.mapping_start.tag)
        return fail(b->t, ev->start_mark, "tags (!name) are refused");
    if (b->depth == YAML_MAX_DEPTH)
        return fail(b->t, ev->start_mark, "nested deeper than %d levels", YAML_MAX_DEPTH);
    const int at = add(b, ev, kind);
    if (at < 0) return false;
    b->open[b->depth] = at;
    b->last[b->depth++] = -1;
    return true;
}

static bool take(struct builder *b, const yaml_event_t *ev)
{
    switch (ev->type) {
    case YAML_SCALAR_EVENT:
        return add_scalar(b, ev);
    case YAML_SEQUENCE_START_EVENT:
        return open_container(b, ev, Y_LIST);
    case YAML_MAPPING_START_EVENT:
        return open_container(b, ev, Y_MAP);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        b->depth--;
        return true;
    case YAML_ALIAS_EVENT:
        return fail(b->t, ev->start_mark, "aliases (*%s) are refused; write the value out",
                    (const char *)ev->data.alias.anchor);
    case YAML_DOCUMENT_START_EVENT:
        return !b->documents++ || fail(b->t, ev->start_mark, "a second document (---)");
    default:
        return true;
    }
}

/* libyaml names a place and a context; a reader error (bad UTF-8) only has a byte offset. */
static void syntax_error(struct ytree *t, const yaml_parser_t *p, const char *text, size_t size)
{
    yaml_mark_t at = p->problem_mark;
    if (p->error == YAML_READER_ERROR) {
        at.line = at.column = 0;
        for (size_t i = 0; i < p->problem_offset && i < size; i++) {
            at.column = text[i] == '\n' ? 0 : at.column + 1;
            at.line += text[i] == '\n';
        }
    }
    fail(t, at, "syntax error: %s%s%s", p->problem ? p->problem : "unknown", p->context ? " " : "",
         p->context ? p->context : "");
}

bool ytree_parse(struct ytree *t, const char *text, size_t size)
{
    *t = (struct ytree){.root = -1, .node = calloc(YAML_MAX_NODES, sizeof(struct ynode))};
    CHECK(t->node, "out of memory");
    if (size > YAML_MAX_BYTES)
        return fail(t, (yaml_mark_t){0}, "larger than %d bytes", YAML_MAX_BYTES);
    struct builder b = {.t = t};
    yaml_parser_t p;
    CHECK(yaml_parser_initialize(&p), "out of memory");
    yaml_parser_set_input_string(&p, (const unsigned char *)text, size);
    bool ok = true;
    for (bool end = false; ok && !end;) {
        yaml_event_t ev;
        if (!yaml_parser_parse(&p, &ev)) {
            syntax_error(t, &p, text, size);
            ok = false;
            break;
        }
        ok = take(&b, &ev);
        end = ev.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&ev);
    }
    yaml_parser_delete(&p);
    return ok;
}

void ytree_free(struct ytree *t)
{
    for (int i = 0; i < t->n; i++) free(t->node[i].text);
    free(t->node);
    *t = (struct ytree){.root = -1};
}

bool ynode_null(const struct ynode *n)
{
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    if (n->kind != Y_SCALAR || !n->plain) return false;
    for (int i = 0; i < 5; i++)
        if (strcmp(n->text, words[i]) == 0) return true;
    return false;
}
