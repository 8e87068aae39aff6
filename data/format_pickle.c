/* The machine: values are nodes with numbers, the stack and the memo hold numbers. An instruction
 * makes at most one node, so that memory is at most a constant times the pickle. */
#include "data/format_pickle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { NONE, BOOLEAN, INTEGER, REAL, TEXT, TUPLE, DICT, GLOBAL, STORAGE, TENSOR };
static const char *const kind_name[] = {"None",      "a boolean",       "a number",     "a number",
                                        "a text",    "a tuple or list", "a dictionary", "a class",
                                        "a storage", "a tensor"};
enum call { CALL_DICT, CALL_TENSOR, CALL_PARAMETER, CALL_STORAGE };
static const struct known {
    const char *module, *name;
    enum call call;
    enum format_dtype dtype; /* CALL_STORAGE */
} globals[] = {
    {"collections", "OrderedDict", CALL_DICT, 0},
    {"torch._utils", "_rebuild_tensor_v2", CALL_TENSOR, 0},
    {"torch._utils", "_rebuild_parameter", CALL_PARAMETER, 0},
    {"torch", "FloatStorage", CALL_STORAGE, FORMAT_F32},
    {"torch", "HalfStorage", CALL_STORAGE, FORMAT_F16},
    {"torch", "BFloat16Storage", CALL_STORAGE, FORMAT_BF16},
    {"torch", "DoubleStorage", CALL_STORAGE, FORMAT_F64},
    {"torch", "LongStorage", CALL_STORAGE, FORMAT_I64},
    {"torch", "IntStorage", CALL_STORAGE, FORMAT_I32},
    {"torch", "ShortStorage", CALL_STORAGE, FORMAT_I16},
    {"torch", "CharStorage", CALL_STORAGE, FORMAT_I8},
    {"torch", "ByteStorage", CALL_STORAGE, FORMAT_U8},
    {"torch", "BoolStorage", CALL_STORAGE, FORMAT_BOOL},
};
enum { GLOBALS = sizeof globals / sizeof *globals };

struct list {
    uint32_t *v;
    size_t n, room;
};
struct node {
    enum kind kind;
    int64_t number;             /* BOOLEAN, INTEGER; GLOBAL: index of globals */
    struct pickle_text text;    /* TEXT */
    struct list items;          /* TUPLE; DICT: key, value, key, value, ... */
    struct pickle_tensor value; /* STORAGE: key, dtype, numel; TENSOR: all but the name */
};
#define MARK UINT32_MAX
#define UNSET (UINT32_MAX - 1)

struct machine {
    const struct format *f;
    struct err *e;
    const uint8_t *p;
    size_t n, at, op; /* next byte; where the instruction began */
    struct node *node;
    size_t num_nodes, room;
    struct list stack, memo;
};

static bool wrong(const struct machine *m, const char *why)
{
    return format_bad(m->f, m->e, "byte %zu of its pickle: %s", m->op, why);
}

static void append(struct list *l, uint32_t x)
{
    if (l->n == l->room) {
        l->room = l->room ? 2 * l->room : 16;
        l->v = realloc(l->v, l->room * sizeof *l->v);
        CHECK(l->v, "out of memory");
    }
    l->v[l->n++] = x;
}

/* ---- bytes, nodes, stack ---------------------------------------------------------------------*/
static bool take(struct machine *m, void *out, size_t n)
{
    if (n > m->n - m->at) return wrong(m, "it ends in the middle of an instruction");
    memset(out, 0, 8);
    memcpy(out, m->p + m->at, n);
    m->at += n;
    return true;
}

static bool take_text(struct machine *m, uint64_t n, struct pickle_text *t)
{
    if (n > m->n - m->at) return wrong(m, "it ends in the middle of a text");
    *t = (struct pickle_text){(const char *)m->p + m->at, (size_t)n};
    m->at += (size_t)n;
    return true;
}

static bool take_line(struct machine *m, struct pickle_text *t)
{
    const uint8_t *end = memchr(m->p + m->at, '\n', m->n - m->at);
    if (!end) return wrong(m, "it ends in the middle of a name");
    return take_text(m, (uint64_t)(end - (m->p + m->at)), t) && ++m->at;
}

/* Valid until the next push. */
static struct node *push(struct machine *m, enum kind kind)
{
    if (m->num_nodes == m->room) {
        m->room = m->room ? 2 * m->room : 256;
        m->node = realloc(m->node, m->room * sizeof *m->node);
        CHECK(m->node, "out of memory");
    }
    append(&m->stack, (uint32_t)m->num_nodes);
    m->node[m->num_nodes] = (struct node){.kind = kind};
    return &m->node[m->num_nodes++];
}

static bool push_number(struct machine *m, enum kind kind, int64_t x)
{
    push(m, kind)->number = x;
    return true;
}

static struct node *top(struct machine *m, size_t below)
{
    if (m->stack.n <= below || m->stack.v[m->stack.n - 1 - below] == MARK) {
        wrong(m, "it takes more from the stack than there is");
        return NULL;
    }
    return &m->node[m->stack.v[m->stack.n - 1 - below]];
}

/* Entries of the stack above the last mark, which is removed with them by cut(). */
static bool above_mark(struct machine *m, size_t *first)
{
    for (*first = m->stack.n; *first > 0; --*first)
        if (m->stack.v[*first - 1] == MARK) return true;
    return wrong(m, "a mark is missing");
}

static bool make_tuple(struct machine *m, size_t first, size_t keep)
{
    struct list items = {0};
    for (size_t i = first; i < m->stack.n; i++) {
        if (m->stack.v[i] == MARK) {
            free(items.v);
            return wrong(m, "it takes more from the stack than there is");
        }
        append(&items, m->stack.v[i]);
    }
    m->stack.n = keep;
    push(m, TUPLE)->items = items;
    return true;
}

static bool tuple_of(struct machine *m, size_t n)
{
    if (m->stack.n < n) return wrong(m, "it takes more from the stack than there is");
    return make_tuple(m, m->stack.n - n, m->stack.n - n);
}

static bool tuple_above_mark(struct machine *m)
{
    size_t first;
    return above_mark(m, &first) && make_tuple(m, first, first - 1);
}

/* Moves what is above stack[first] into the collection at stack[holder]; `keep` entries stay. */
static bool add_items(struct machine *m, enum kind kind, size_t first, size_t holder, size_t keep)
{
    struct node *to = m->stack.v[holder] == MARK ? NULL : &m->node[m->stack.v[holder]];
    if (!to || to->kind != kind) return wrong(m, "it fills something that is no collection");
    if (kind == DICT && (m->stack.n - first) % 2) return wrong(m, "a key has no value");
    for (size_t i = first; i < m->stack.n; i++) {
        if (m->stack.v[i] == MARK) return wrong(m, "it takes more from the stack than there is");
        append(&to->items, m->stack.v[i]);
    }
    m->stack.n = keep;
    return true;
}

static bool add_above_mark(struct machine *m, enum kind kind)
{
    size_t first;
    if (!above_mark(m, &first)) return false;
    if (first < 2) return wrong(m, "it takes more from the stack than there is");
    return add_items(m, kind, first, first - 2, first - 1);
}

static bool add_top(struct machine *m, enum kind kind, size_t n)
{
    if (m->stack.n < n + 1) return wrong(m, "it takes more from the stack than there is");
    const size_t first = m->stack.n - n;
    return add_items(m, kind, first, first - 1, first);
}

static bool memo_put(struct machine *m, uint64_t at)
{
    if (!top(m, 0)) return false;
    if (at > m->n) return wrong(m, "it remembers more than it has");
    while (m->memo.n <= at) append(&m->memo, UNSET);
    m->memo.v[at] = m->stack.v[m->stack.n - 1];
    return true;
}

static bool memo_get(struct machine *m, uint64_t at)
{
    if (at >= m->memo.n || m->memo.v[at] == UNSET)
        return wrong(m, "it recalls what it never remembered");
    append(&m->stack, m->memo.v[at]);
    return true;
}

/* ---- globals and calls -----------------------------------------------------------------------*/
static bool equals(const struct pickle_text *t, const char *text)
{
    return t->n == strlen(text) && memcmp(t->s, text, t->n) == 0;
}

/* For messages: cut, without control characters. */
static const char *shown(const struct pickle_text *t, char out[64])
{
    const size_t n = t->n < 63 ? t->n : 63;
    for (size_t i = 0; i < n; i++)
        out[i] = (unsigned char)t->s[i] < 32 || t->s[i] == 127 ? '?' : t->s[i];
    out[n] = 0;
    return out;
}

static bool find_global(struct machine *m, const struct pickle_text *module,
                        const struct pickle_text *name)
{
    char a[64], b[64];
    for (int i = 0; i < GLOBALS; i++)
        if (equals(module, globals[i].module) && equals(name, globals[i].name))
            return push_number(m, GLOBAL, i);
    return format_bad(m->f, m->e,
                      "its pickle asks for %s.%s, which a file of tensors does not need and which "
                      "is not called here; if you trust the file, load it in Python and save its "
                      "tensors with safetensors.torch.save_file",
                      shown(module, a), shown(name, b));
}

/* Item i of a tuple when it is of this kind; NULL: it is not. */
static const struct node *item(const struct machine *m, const struct node *tuple, size_t i,
                               enum kind kind)
{
    if (!tuple || tuple->kind != TUPLE || i >= tuple->items.n) return NULL;
    const struct node *x = &m->node[tuple->items.v[i]];
    return x->kind == kind ? x : NULL;
}

/* A tuple of at most FORMAT_MAXDIM whole numbers that are not negative; -1: it is not. */
static int numbers(const struct machine *m, const struct node *tuple, int64_t *out)
{
    if (tuple->items.n > FORMAT_MAXDIM) return -1;
    for (size_t i = 0; i < tuple->items.n; i++) {
        const struct node *x = item(m, tuple, i, INTEGER);
        if (!x || x->number < 0) return -1;
        out[i] = x->number;
    }
    return (int)tuple->items.n;
}

/* ("storage", class, key, location, elements) */
static bool make_storage(struct machine *m)
{
    const struct node *t = top(m, 0);
    if (!t) return false;
    const struct node *tag = item(m, t, 0, TEXT), *type = item(m, t, 1, GLOBAL),
                      *key = item(m, t, 2, TEXT), *where = item(m, t, 3, TEXT),
                      *n = item(m, t, 4, INTEGER);
    if (!tag || !equals(&tag->text, "storage") || !type || !key || !where || !n || n->number < 0 ||
        globals[type->number].call != CALL_STORAGE)
        return wrong(m, "a storage is described otherwise than torch.save does it");
    const struct pickle_tensor value = {
        .key = key->text, .dtype = globals[type->number].dtype, .numel = n->number};
    m->stack.n--;
    push(m, STORAGE)->value = value;
    return true;
}

/* (storage, first element, shape, strides, requires_grad, hooks) */
static bool make_tensor(struct machine *m, const struct node *args)
{
    const struct node *storage = item(m, args, 0, STORAGE), *first = item(m, args, 1, INTEGER),
                      *dim = item(m, args, 2, TUPLE), *stride = item(m, args, 3, TUPLE);
    if (!storage || !first || !dim || !stride || args->items.n < 6)
        return wrong(m, "a tensor is described otherwise than torch.save does it");
    struct pickle_tensor value = storage->value;
    value.first = first->number;
    value.ndim = numbers(m, dim, value.dim);
    if (value.first < 0 || value.ndim < 0 || numbers(m, stride, value.stride) != value.ndim)
        return format_bad(m->f, m->e,
                          "byte %zu of its pickle: the shape, strides or place of a tensor are "
                          "negative, or it has more than %d dimensions",
                          m->op, (int)FORMAT_MAXDIM);
    m->stack.n -= 2;
    push(m, TENSOR)->value = value;
    return true;
}

/* Below the arguments stands what is called. */
static bool reduce(struct machine *m)
{
    const struct node *args = top(m, 0), *called = args ? top(m, 1) : NULL;
    if (!called) return false;
    if (called->kind != GLOBAL || args->kind != TUPLE) return wrong(m, "it calls no function");
    switch (globals[called->number].call) {
    case CALL_DICT:
        if (args->items.n) return wrong(m, "an OrderedDict is made of something");
        m->stack.n -= 2;
        push(m, DICT);
        return true;
    case CALL_TENSOR:
        return make_tensor(m, args);
    case CALL_PARAMETER: {
        const struct node *data = item(m, args, 0, TENSOR);
        if (!data) return wrong(m, "a parameter is made of something that is no tensor");
        const struct pickle_tensor value = data->value;
        m->stack.n -= 2;
        push(m, TENSOR)->value = value;
        return true;
    }
    default:
        return wrong(m, "it calls a class of storages");
    }
}

/* Attributes of a dictionary (torch keeps the versions of modules there) mean nothing here. */
static bool build(struct machine *m)
{
    const struct node *to = top(m, 0) ? top(m, 1) : NULL;
    if (!to) return false;
    if (to->kind != DICT) return wrong(m, "it sets the attributes of something");
    m->stack.n--;
    return true;
}

/* ---- instructions ----------------------------------------------------------------------------*/
static bool push_text(struct machine *m, int length_bytes)
{
    uint64_t n;
    struct pickle_text t;
    if (!take(m, &n, (size_t)length_bytes) || !take_text(m, n, &t)) return false;
    push(m, TEXT)->text = t;
    return true;
}

static bool push_long(struct machine *m)
{
    uint64_t n, x;
    if (!take(m, &n, 1)) return false;
    if (n > 8) return wrong(m, "a number has more than 8 bytes");
    if (!take(m, &x, (size_t)n)) return false;
    if (n && n < 8 && x >> (8 * n - 1)) x |= ~0ull << 8 * n; /* its sign */
    return push_number(m, INTEGER, (int64_t)x);
}

static bool global_line(struct machine *m)
{
    struct pickle_text module, name;
    return take_line(m, &module) && take_line(m, &name) && find_global(m, &module, &name);
}

static bool global_stack(struct machine *m)
{
    const struct node *name = top(m, 0), *module = name ? top(m, 1) : NULL;
    if (!module) return false;
    if (name->kind != TEXT || module->kind != TEXT)
        return wrong(m, "the name of a class is no text");
    const struct pickle_text a = module->text, b = name->text;
    m->stack.n -= 2;
    return find_global(m, &a, &b);
}

/* Numbers, texts, the memo. */
static bool step_value(struct machine *m, uint8_t op)
{
    uint64_t x;
    switch (op) {
    case 'N':
        return push_number(m, NONE, 0);
    case 0x88:
    case 0x89:
        return push_number(m, BOOLEAN, op == 0x88);
    case 'K':
        return take(m, &x, 1) && push_number(m, INTEGER, (int64_t)x);
    case 'M':
        return take(m, &x, 2) && push_number(m, INTEGER, (int64_t)x);
    case 'J':
        return take(m, &x, 4) && push_number(m, INTEGER, (int32_t)x);
    case 'G':
        return take(m, &x, 8) && push_number(m, REAL, 0);
    case 0x8a:
        return push_long(m);
    case 'X':
    case 'T':
        return push_text(m, 4);
    case 0x8c:
    case 'U':
        return push_text(m, 1);
    case 'q':
        return take(m, &x, 1) && memo_put(m, x);
    case 'r':
        return take(m, &x, 4) && memo_put(m, x);
    case 0x94:
        return memo_put(m, m->memo.n);
    case 'h':
        return take(m, &x, 1) && memo_get(m, x);
    case 'j':
        return take(m, &x, 4) && memo_get(m, x);
    default: {
        char text[160];
        snprintf(text, sizeof text,
                 "instruction 0x%02x, which a file of tensors does not need and which is not "
                 "executed here",
                 op);
        return wrong(m, text);
    }
    }
}

/* Collections and calls. */
static bool step(struct machine *m, uint8_t op)
{
    uint64_t x;
    switch (op) {
    case 0x80: /* protocol */
        return take(m, &x, 1) && (x <= 5 || wrong(m, "another protocol"));
    case 0x95: /* frame */
        return take(m, &x, 8);
    case '(':
        append(&m->stack, MARK);
        return true;
    case '}':
        return push_number(m, DICT, 0);
    case ']':
    case ')':
        return push_number(m, TUPLE, 0);
    case 't':
        return tuple_above_mark(m);
    case 0x85:
    case 0x86:
    case 0x87:
        return tuple_of(m, op - 0x84u);
    case 's':
        return add_top(m, DICT, 2);
    case 'u':
        return add_above_mark(m, DICT);
    case 'a':
        return add_top(m, TUPLE, 1);
    case 'e':
        return add_above_mark(m, TUPLE);
    case 'c':
        return global_line(m);
    case 0x93:
        return global_stack(m);
    case 'Q':
        return make_storage(m);
    case 'R':
        return reduce(m);
    case 'b':
        return build(m);
    default:
        return step_value(m, op);
    }
}

static bool run(struct machine *m)
{
    for (;;) {
        m->op = m->at;
        if (m->at == m->n) return wrong(m, "it ends too early");
        const uint8_t op = m->p[m->at++];
        if (op == '.') return true;
        if (!step(m, op)) return false;
    }
}

static bool each_member(struct machine *m,
                        bool (*each)(void *arg, const struct pickle_tensor *t, struct err *e),
                        void *arg)
{
    const struct node *all = m->stack.n == 1 ? top(m, 0) : NULL;
    if (!all || all->kind != DICT)
        return m->e->code
                   ? false
                   : format_bad(m->f, m->e, "its pickle holds %s, not a dictionary of tensors",
                                all ? kind_name[all->kind] : "no single object");
    for (size_t i = 0; i < all->items.n; i += 2) {
        char text[64];
        const struct node *key = &m->node[all->items.v[i]], *v = &m->node[all->items.v[i + 1]];
        if (key->kind != TEXT)
            return format_bad(m->f, m->e, "a key of its dictionary is %s, not a text",
                              kind_name[key->kind]);
        if (v->kind != TENSOR)
            return format_bad(m->f, m->e,
                              "\"%s\" is %s, not a tensor: save one dictionary of tensors alone",
                              shown(&key->text, text), kind_name[v->kind]);
        struct pickle_tensor t = v->value;
        t.name = key->text;
        if (!each(arg, &t, m->e)) return false;
    }
    return true;
}

bool pickle_read(const struct format *f, const uint8_t *pickle, size_t n,
                 bool (*each)(void *arg, const struct pickle_tensor *t, struct err *e), void *arg,
                 struct err *e)
{
    struct machine m = {.f = f, .e = e, .p = pickle, .n = n};
    bool ok = run(&m);
    if (ok && m.at != m.n) ok = wrong(&m, "it goes on after its end");
    ok = ok && each_member(&m, each, arg);
    for (size_t i = 0; i < m.num_nodes; i++) free(m.node[i].items.v);
    free(m.node);
    free(m.stack.v);
    free(m.memo.v);
    return ok;
}
