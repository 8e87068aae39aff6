/* A graph is a list of operations over tensors that know their number, shape and strides. The
 * engines match whole graphs: the order of the operations below is theirs, not ours. Building goes
 * on after an error as if nothing had happened, without calling the library; the first error stays.
 */
#include "core/cuda/cudnn.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cuda/cudnn_lib.h"

/* ---- descriptors ----------------------------------------------------------------------------- */

enum { MOST_DESCRIPTORS = 128, MOST_OPS = 24, MOST_ENGINES = 8 };
struct graph { /* what is built for a plan; the descriptors live as long as it */
    const struct library *lib;
    const struct sdpa_shape *shape;
    struct err *why;
    void *made[MOST_DESCRIPTORS], *op[MOST_OPS];
    int num_made, num_ops;
    int64_t next_uid;
};
struct plan {
    struct sdpa_shape shape;
    struct graph graph;
    struct err why; /* of a shape without a plan */
    void *chosen;
    int engines;
    int64_t workspace;
    struct plan *next;
};
struct cudnn {
    struct cudnn_lib lib;
    void *handle;      /* NULL: plans only, by the properties */
    struct graph base; /* owns the properties */
    void *properties;
    struct plan *plans;
};

/* Notes the first error, with the library's own words. */
static bool fine(struct graph *g, int status, const char *what)
{
    if (status == DNN_SUCCESS) return true;
    char text[512] = "";
    g->lib->GetLastErrorString(text, sizeof text);
    if (!g->why->code)
        err_set(g->why, RC_HARDWARE, "cuDNN: %s: %s%s%s", what, g->lib->GetErrorString(status),
                text[0] ? ": " : "", text);
    return false;
}

static void *make(struct graph *g, int type)
{
    void *d = NULL;
    if (g->why->code) return NULL;
    CHECK(g->num_made < MOST_DESCRIPTORS, "too many descriptors");
    if (!fine(g, g->lib->BackendCreateDescriptor(type, &d), "a descriptor")) return NULL;
    return g->made[g->num_made++] = d;
}

static void set(struct graph *g, void *d, int name, int type, int64_t n, const void *value)
{
    if (!g->why->code)
        fine(g, g->lib->BackendSetAttribute(d, name, type, n, value), "an attribute");
}

static void set_int(struct graph *g, void *d, int name, int type, int value)
{
    set(g, d, name, type, 1, &value);
}

static void set_part(struct graph *g, void *d, int name, void *part)
{
    set(g, d, name, DNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
}

static void *ready(struct graph *g, void *d, const char *what)
{
    if (!g->why->code) fine(g, g->lib->BackendFinalize(d), what);
    return d;
}

static void drop(struct graph *g)
{
    while (g->num_made) g->lib->BackendDestroyDescriptor(g->made[--g->num_made]);
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* Numbers of what has an address at run time: SDPA_Q + 1 .. SDPA_DV + 1, and these. */
enum { UID_LSE = 32, UID_SCALE, UID_ONE, UID_ROW_SUM, UID_DQ_SUM, UID_VIRTUAL = 64 };
enum place { DEVICE, VALUE, VIRTUAL };

static void *tensor(struct graph *g, int type, const int64_t dim[4], const int64_t stride[4],
                    enum place place, int64_t uid)
{
    const int64_t align = place == VALUE ? 4 : 16;
    const bool is_virtual = place == VIRTUAL, by_value = place == VALUE;
    void *t = make(g, DNN_BACKEND_TENSOR_DESCRIPTOR);
    if (!uid) uid = g->next_uid++;
    set_int(g, t, DNN_ATTR_TENSOR_DATA_TYPE, DNN_TYPE_DATA_TYPE, type);
    set(g, t, DNN_ATTR_TENSOR_DIMENSIONS, DNN_TYPE_INT64, 4, dim);
    set(g, t, DNN_ATTR_TENSOR_STRIDES, DNN_TYPE_INT64, 4, stride);
    set(g, t, DNN_ATTR_TENSOR_UNIQUE_ID, DNN_TYPE_INT64, 1, &uid);
    set(g, t, DNN_ATTR_TENSOR_BYTE_ALIGNMENT, DNN_TYPE_INT64, 1, &align);
    set(g, t, DNN_ATTR_TENSOR_IS_VIRTUAL, DNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(g, t, DNN_ATTR_TENSOR_IS_BY_VALUE, DNN_TYPE_BOOLEAN, 1, &by_value);
    return ready(g, t, "a tensor");
}

#define D4(a, b, c, d) ((const int64_t[4]){a, b, c, d})

/* One of the caller's, (batch, head, row, element) of bf16. */
static void *given(struct graph *g, enum sdpa_tensor t, enum place place)
{
    const struct sdpa_shape *s = g->shape;
    const int64_t *by = s->stride[t];
    const bool key = t == SDPA_K || t == SDPA_V || t == SDPA_DK || t == SDPA_DV;
    return tensor(g, DNN_DATA_BFLOAT16, D4(s->batch, s->heads, key ? s->k_len : s->q_len, s->dim),
                  D4(by[0], by[1], by[2], 1), place, place == VIRTUAL ? 0 : t + 1);
}

/* The same memory with rows and elements exchanged; keys and values only. */
static void *turned(struct graph *g, enum sdpa_tensor t)
{
    const struct sdpa_shape *s = g->shape;
    const int64_t *by = s->stride[t];
    return tensor(g, DNN_DATA_BFLOAT16, D4(s->batch, s->heads, s->dim, s->k_len),
                  D4(by[0], by[1], 1, by[2]), DEVICE, t + 1);
}

static void *number(struct graph *g, int64_t uid)
{
    return tensor(g, DNN_DATA_FLOAT, D4(1, 1, 1, 1), D4(1, 1, 1, 1), VALUE, uid);
}

/* A number per query, f32; uid 0: between operations. */
static void *column(struct graph *g, int64_t uid)
{
    const struct sdpa_shape *s = g->shape;
    return tensor(g, DNN_DATA_FLOAT, D4(s->batch, s->heads, s->q_len, 1),
                  D4(s->heads * s->q_len, s->q_len, 1, 1), uid ? DEVICE : VIRTUAL, uid);
}

/* Query by dim, f32, packed. */
static void *wide(struct graph *g, int64_t uid)
{
    const struct sdpa_shape *s = g->shape;
    const int64_t head = s->q_len * s->dim;
    return tensor(g, DNN_DATA_FLOAT, D4(s->batch, s->heads, s->q_len, s->dim),
                  D4(s->heads * head, head, s->dim, 1), uid ? DEVICE : VIRTUAL, uid);
}

/* Query by key, never in memory; or key by query over the same elements. */
static void *scores(struct graph *g)
{
    const struct sdpa_shape *s = g->shape;
    const int64_t head = s->q_len * s->k_len;
    return tensor(g, DNN_DATA_FLOAT, D4(s->batch, s->heads, s->q_len, s->k_len),
                  D4(s->heads * head, head, s->k_len, 1), VIRTUAL, 0);
}
static void *turned_scores(struct graph *g)
{
    const struct sdpa_shape *s = g->shape;
    const int64_t head = s->q_len * s->k_len;
    return tensor(g, DNN_DATA_BFLOAT16, D4(s->batch, s->heads, s->k_len, s->q_len),
                  D4(s->heads * head, head, 1, s->k_len), VIRTUAL, 0);
}

/* ---- operations; each returns its result ------------------------------------------------------
 */

static void *put(struct graph *g, void *op, const char *what, void *result)
{
    CHECK(g->num_ops < MOST_OPS, "too many operations");
    g->op[g->num_ops++] = ready(g, op, what);
    return result;
}

static void *matmul(struct graph *g, void *a, void *b, void *c)
{
    void *how = make(g, DNN_BACKEND_MATMUL_DESCRIPTOR);
    set_int(g, how, DNN_ATTR_MATMUL_COMP_TYPE, DNN_TYPE_DATA_TYPE, DNN_DATA_FLOAT);
    ready(g, how, "a product");
    void *op = make(g, DNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_part(g, op, DNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_part(g, op, DNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_part(g, op, DNN_ATTR_OPERATION_MATMUL_CDESC, c);
    set_part(g, op, DNN_ATTR_OPERATION_MATMUL_DESC, how);
    return put(g, op, "a product", c);
}

/* y = x mode b, element by element; b NULL: of x alone */
static void *pointwise(struct graph *g, int mode, void *x, void *b, void *y)
{
    void *how = make(g, DNN_BACKEND_POINTWISE_DESCRIPTOR);
    set_int(g, how, DNN_ATTR_POINTWISE_MODE, DNN_TYPE_POINTWISE_MODE, mode);
    set_int(g, how, DNN_ATTR_POINTWISE_MATH_PREC, DNN_TYPE_DATA_TYPE, DNN_DATA_FLOAT);
    ready(g, how, "arithmetic");
    void *op = make(g, DNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_part(g, op, DNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_part(g, op, DNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b) set_part(g, op, DNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    set_part(g, op, DNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    return put(g, op, "arithmetic", y);
}

static void *row_sum(struct graph *g, void *x, void *y)
{
    void *how = make(g, DNN_BACKEND_REDUCTION_DESCRIPTOR);
    set_int(g, how, DNN_ATTR_REDUCTION_OPERATOR, DNN_TYPE_REDUCTION_OPERATOR_TYPE,
            DNN_REDUCE_TENSOR_ADD);
    set_int(g, how, DNN_ATTR_REDUCTION_COMP_TYPE, DNN_TYPE_DATA_TYPE, DNN_DATA_FLOAT);
    ready(g, how, "a sum");
    void *op = make(g, DNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_part(g, op, DNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_part(g, op, DNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    set_part(g, op, DNN_ATTR_OPERATION_REDUCTION_DESC, how);
    return put(g, op, "a sum", y);
}

static void *reshape(struct graph *g, void *x, void *y)
{
    void *op = make(g, DNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_part(g, op, DNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_part(g, op, DNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    return put(g, op, "a view", y);
}

/* ---- the two graphs -------------------------------------------------------------------------- */

/* o = softmax(scale q k') v, and lse: one operation. */
static void build_forward(struct graph *g)
{
    void *q = given(g, SDPA_Q, DEVICE), *k = given(g, SDPA_K, DEVICE);
    void *v = given(g, SDPA_V, DEVICE), *o = given(g, SDPA_O, DEVICE);
    void *lse = column(g, UID_LSE), *scale = number(g, UID_SCALE);
    void *op = make(g, DNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    set_part(g, op, DNN_ATTR_OPERATION_SDPA_FWD_QDESC, q);
    set_part(g, op, DNN_ATTR_OPERATION_SDPA_FWD_KDESC, k);
    set_part(g, op, DNN_ATTR_OPERATION_SDPA_FWD_VDESC, v);
    set_part(g, op, DNN_ATTR_OPERATION_SDPA_FWD_ODESC, o);
    set_part(g, op, DNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, lse);
    set_part(g, op, DNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, scale);
    put(g, op, "attention", o);
}

/* With p = exp(scale q k' - lse) and d = row sums of d_o * o:
 * dv = p' d_o;  ds = scale p * (d_o v' - d);  dk = ds' q;  dq = ds k, added up in f32. */
static void build_backward(struct graph *g)
{
    void *q = given(g, SDPA_Q, DEVICE), *kt = turned(g, SDPA_K), *vt = turned(g, SDPA_V);
    void *o = given(g, SDPA_O, DEVICE), *d_o = given(g, SDPA_DO, DEVICE);
    void *dq = given(g, SDPA_DQ, DEVICE), *dk = given(g, SDPA_DK, DEVICE);
    void *dv = given(g, SDPA_DV, DEVICE), *lse = column(g, UID_LSE);
    void *scale = number(g, UID_SCALE), *one = number(g, UID_ONE);

    void *oo = pointwise(g, DNN_POINTWISE_MUL, d_o, o, wide(g, 0));
    void *sum = row_sum(g, oo, column(g, 0));
    void *d = pointwise(g, DNN_POINTWISE_MUL, sum, one, column(g, UID_ROW_SUM));

    void *s = matmul(g, q, kt, scores(g));
    s = pointwise(g, DNN_POINTWISE_MUL, s, scale, scores(g));
    s = pointwise(g, DNN_POINTWISE_SUB, s, lse, scores(g));
    void *p = pointwise(g, DNN_POINTWISE_EXP, s, NULL, scores(g));
    matmul(g, reshape(g, p, turned_scores(g)), d_o, dv);

    void *dp = matmul(g, d_o, vt, scores(g));
    dp = pointwise(g, DNN_POINTWISE_SUB, dp, d, scores(g));
    dp = pointwise(g, DNN_POINTWISE_MUL, dp, p, scores(g));
    void *ds = pointwise(g, DNN_POINTWISE_MUL, dp, scale, scores(g));
    matmul(g, reshape(g, ds, turned_scores(g)), q, dk);

    void *k = reshape(g, kt, given(g, SDPA_K, VIRTUAL));
    void *sums = matmul(g, ds, k, wide(g, UID_DQ_SUM));
    pointwise(g, DNN_POINTWISE_IDENTITY, sums, NULL, dq);
}

/* ---- plans ----------------------------------------------------------------------------------- */

/* Makes the plan of one engine configuration; an error is that of this engine only. */
static bool try_engine(struct cudnn *c, struct plan *p, void *config)
{
    struct graph *g = &p->graph;
    void *plan = make(g, DNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    int64_t n = 0;
    set_part(g, plan, DNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    if (c->handle)
        set(g, plan, DNN_ATTR_EXECUTION_PLAN_HANDLE, DNN_TYPE_HANDLE, 1, &c->handle);
    else
        set_part(g, plan, DNN_ATTR_EXECUTION_PLAN_DEVICEPROP, c->properties);
    ready(g, plan, "the plan of an engine");
    if (g->why->code) return false;
    fine(g,
         c->lib.call.BackendGetAttribute(plan, DNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                         DNN_TYPE_INT64, 1, &n, &p->workspace),
         "the workspace of an engine");
    if (g->why->code) return false;
    p->chosen = plan;
    return true;
}

/* Asks for engines in one mode of the heuristics and tries them in their order. */
static void ask(struct cudnn *c, struct plan *p, void *ops, int mode)
{
    struct graph *g = &p->graph;
    struct err refused = {0}, *first = g->why;
    g->why = &refused; /* the other mode may still have some */
    void *heur = make(g, DNN_BACKEND_ENGINEHEUR_DESCRIPTOR), *found[MOST_ENGINES];
    set_part(g, heur, DNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, ops);
    set_int(g, heur, DNN_ATTR_ENGINEHEUR_MODE, DNN_TYPE_HEUR_MODE, mode);
    if (!c->handle) set_part(g, heur, DNN_ATTR_ENGINEHEUR_DEVICEPROP, c->properties);
    ready(g, heur, "the choice of engines");
    int64_t n = 0;
    for (int i = 0; i < MOST_ENGINES; i++) found[i] = make(g, DNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (!refused.code)
        fine(g,
             c->lib.call.BackendGetAttribute(heur, DNN_ATTR_ENGINEHEUR_RESULTS,
                                             DNN_TYPE_BACKEND_DESCRIPTOR, MOST_ENGINES, &n, found),
             "the engines");
    p->engines += (int)n;
    for (int i = 0; i < n && !p->chosen; i++) {
        refused = (struct err){0};
        try_engine(c, p, found[i]);
    }
    g->why = first;
    if (refused.code && !first->code) *first = refused;
}

static void build(struct cudnn *c, struct plan *p)
{
    struct graph *g = &p->graph;
    *g = (struct graph){
        .lib = &c->lib.call, .shape = &p->shape, .why = &p->why, .next_uid = UID_VIRTUAL};
    if (p->shape.backward)
        build_backward(g);
    else
        build_forward(g);
    void *ops = make(g, DNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, ops, DNN_ATTR_OPERATIONGRAPH_OPS, DNN_TYPE_BACKEND_DESCRIPTOR, g->num_ops, g->op);
    if (c->handle) set(g, ops, DNN_ATTR_OPERATIONGRAPH_HANDLE, DNN_TYPE_HANDLE, 1, &c->handle);
    ready(g, ops, "the graph");
    if (p->why.code) return;
    ask(c, p, ops, DNN_HEUR_MODE_A);
    if (!p->chosen) ask(c, p, ops, DNN_HEUR_MODE_FALLBACK);
    if (!p->chosen && !p->why.code)
        err_set(&p->why, RC_HARDWARE, "cuDNN: no engine for this attention");
    const struct err said = p->why;
    if (!p->chosen && c->lib.no_compiler.code)
        err_set(&p->why, said.code, "%.500s; %.500s", c->lib.no_compiler.msg, said.msg);
    if (p->chosen) p->why = (struct err){0};
}

/* Also a shape that has no plan is built only once. */
static struct plan *plan_of(struct cudnn *c, const struct sdpa_shape *s)
{
    for (struct plan *p = c->plans; p; p = p->next)
        if (memcmp(&p->shape, s, sizeof *s) == 0) return p;
    struct plan *p = calloc(1, sizeof *p);
    CHECK(p, "out of memory");
    p->shape = *s;
    p->next = c->plans;
    c->plans = p;
    build(c, p);
    return p;
}

int cudnn_engines(struct cudnn *c, const struct sdpa_shape *s, struct err *why)
{
    const struct plan *p = plan_of(c, s);
    *why = p->why;
    return p->engines;
}

int64_t cudnn_workspace(struct cudnn *c, const struct sdpa_shape *s, struct err *why)
{
    const struct plan *p = plan_of(c, s);
    *why = p->why;
    return p->chosen ? p->workspace : -1;
}

/* ---- running --------------------------------------------------------------------------------- */

enum { MOST_POINTERS = SDPA_TENSORS + 5 };
struct pack {
    int64_t uid[MOST_POINTERS];
    void *at[MOST_POINTERS];
    int n;
};

static void point(struct pack *k, int64_t uid, void *at)
{
    k->uid[k->n] = uid;
    k->at[k->n++] = at;
}

bool cudnn_run(struct cudnn *c, const struct sdpa_shape *s, const struct sdpa_call *call,
               void *stream, struct err *why)
{
    struct plan *p = plan_of(c, s);
    *why = p->why;
    if (!p->chosen) return false;
    CHECK(c->handle, "a plan for a GPU that is not there cannot be run");
    float scale = call->scale, one = 1;
    struct pack k = {.n = 0};
    for (int t = 0; t < (s->backward ? SDPA_TENSORS : SDPA_FORWARD); t++)
        point(&k, t + 1, call->data[t]);
    point(&k, UID_LSE, call->lse);
    point(&k, UID_SCALE, &scale);
    if (s->backward) {
        point(&k, UID_ONE, &one);
        point(&k, UID_ROW_SUM, call->row_sum);
        point(&k, UID_DQ_SUM, call->dq_sum);
    }
    struct graph g = {.lib = &c->lib.call, .why = why};
    void *pack = make(&g, DNN_BACKEND_VARIANT_PACK_DESCRIPTOR), *room = call->workspace;
    set(&g, pack, DNN_ATTR_VARIANT_PACK_UNIQUE_IDS, DNN_TYPE_INT64, k.n, k.uid);
    set(&g, pack, DNN_ATTR_VARIANT_PACK_DATA_POINTERS, DNN_TYPE_VOID_PTR, k.n, k.at);
    set(&g, pack, DNN_ATTR_VARIANT_PACK_WORKSPACE, DNN_TYPE_VOID_PTR, 1, &room);
    ready(&g, pack, "the addresses");
    if (!why->code) fine(&g, c->lib.call.SetStream(c->handle, stream), "the stream");
    if (!why->code) fine(&g, c->lib.call.BackendExecute(c->handle, p->chosen, pack), "the start");
    drop(&g);
    return !why->code;
}

/* ---- opening --------------------------------------------------------------------------------- */

struct cudnn *cudnn_open(const char *properties, struct err *why)
{
    struct cudnn *c = calloc(1, sizeof *c);
    CHECK(c, "out of memory");
    *why = (struct err){0};
    cudnn_lib_open(&c->lib, why);
    struct graph *g = &c->base;
    *g = (struct graph){.lib = &c->lib.call, .why = why};
    if (!why->code && !properties) fine(g, c->lib.call.Create(&c->handle), "the start on this GPU");
    if (!why->code && properties) {
        c->properties = make(g, DNN_BACKEND_DEVICEPROP_DESCRIPTOR);
        set(g, c->properties, DNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, DNN_TYPE_CHAR,
            (int64_t)strlen(properties), properties);
        ready(g, c->properties, "the properties of a GPU");
    }
    g->why = NULL; /* the caller's */
    if (!why->code) return c;
    cudnn_close(c);
    return NULL;
}

void cudnn_close(struct cudnn *c)
{
    if (!c) return;
    for (struct plan *p = c->plans, *next; p; p = next) {
        next = p->next;
        drop(&p->graph);
        free(p);
    }
    drop(&c->base);
    if (c->handle) c->lib.call.Destroy(c->handle);
    if (c->lib.so) dlclose(c->lib.so);
    free(c);
}

int cudnn_version(const struct cudnn *c) { return (int)c->lib.call.GetVersion(); }
