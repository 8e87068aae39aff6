/* A libcudnn.so.9 that runs operation graphs in host memory, by the meaning of their operations:
 * what core/cuda/cudnn.c builds is checked by its numbers, where the library itself only says
 * whether it knows the pattern. Descriptors keep what is set; the only engine takes every graph.
 * Like the library it ends the process when cuBLASLt is not loaded. */
#include <dlfcn.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/bf16.h"
#include "core/cuda/cudnn_api.h"

enum { BAD = 2000, MOST_ATTRIBUTES = 16, MOST_BYTES = 512, MOST_TENSORS = 64 };
struct attribute {
    int name, type;
    int64_t n;
    _Alignas(8) char value[MOST_BYTES];
};
struct descriptor {
    int type, num;
    bool final;
    struct attribute a[MOST_ATTRIBUTES];
    struct descriptor *graph; /* of an engine configuration */
};
struct tensor4 {
    int64_t uid, dim[4], stride[4], n;
    int type;
    bool is_virtual, by_value;
    double *x; /* in the order of the dimensions */
};
struct run {
    struct tensor4 t[MOST_TENSORS];
    int num;
    const struct descriptor *pack;
    const char *error;
};
static char last[256];

static int bad(const char *why)
{
    snprintf(last, sizeof last, "%s", why);
    return BAD;
}

/* ---- descriptors ----------------------------------------------------------------------------- */

static const struct attribute *find(const struct descriptor *d, int name)
{
    for (int i = 0; d && i < d->num; i++)
        if (d->a[i].name == name) return &d->a[i];
    return NULL;
}

static struct descriptor *part(const struct descriptor *d, int name)
{
    const struct attribute *a = find(d, name);
    return a ? *(struct descriptor *const *)(const void *)a->value : NULL;
}

static int64_t number(const struct descriptor *d, int name)
{
    const struct attribute *a = find(d, name);
    if (!a) return -1;
    if (a->type == DNN_TYPE_BOOLEAN) return *(const bool *)a->value;
    return a->type == DNN_TYPE_INT64 ? *(const int64_t *)(const void *)a->value
                                     : *(const int *)(const void *)a->value;
}

/* What a test wants it to be: its version, the CUDA it was built for, how many engines it has. */
static int setting(const char *name, int usual)
{
    const char *value = getenv(name);
    return value ? atoi(value) : usual;
}
size_t cudnnGetVersion(void) { return (size_t)setting("FAKE_CUDNN_VERSION", 91900); }
/* There is no CUDA 99: whether its libraries are found depends on the test alone. */
size_t cudnnGetCudartVersion(void) { return (size_t)setting("FAKE_CUDNN_CUDART", 99010); }
const char *cudnnGetErrorString(int status) { return status ? "FAKE_STATUS_BAD" : "SUCCESS"; }
void cudnnGetLastErrorString(char *text, size_t size) { snprintf(text, size, "%s", last); }
int cudnnCreate(void **handle)
{
    *handle = last;
    return 0;
}
int cudnnDestroy(void *handle) { return handle == last ? 0 : BAD; }
int cudnnSetStream(void *handle, void *stream)
{
    (void)stream;
    return handle == last ? 0 : BAD;
}

/* As the library does it where it needs cuBLASLt and does not find it. */
int cudnnBackendCreateDescriptor(int type, struct descriptor **d)
{
    if (type == DNN_BACKEND_ENGINEHEUR_DESCRIPTOR && !dlsym(RTLD_DEFAULT, "cublasLtGetVersion")) {
        fprintf(stderr, "Invalid handle. Cannot load symbol cublasLtGetVersion\n");
        abort();
    }
    *d = calloc(1, sizeof **d);
    (*d)->type = type;
    return 0;
}

int cudnnBackendDestroyDescriptor(struct descriptor *d)
{
    free(d);
    return 0;
}

int cudnnBackendSetAttribute(struct descriptor *d, int name, int type, int64_t n, const void *value)
{
    static const size_t sizes[] = {[DNN_TYPE_HANDLE] = 8,
                                   [DNN_TYPE_DATA_TYPE] = 4,
                                   [DNN_TYPE_BOOLEAN] = 1,
                                   [DNN_TYPE_INT64] = 8,
                                   [DNN_TYPE_VOID_PTR] = 8,
                                   [DNN_TYPE_HEUR_MODE] = 4,
                                   [DNN_TYPE_POINTWISE_MODE] = 4,
                                   [DNN_TYPE_BACKEND_DESCRIPTOR] = 8,
                                   [DNN_TYPE_REDUCTION_OPERATOR_TYPE] = 4};
    const size_t bytes = (size_t)n * sizes[type];
    if (d->final || d->num == MOST_ATTRIBUTES || !sizes[type] || bytes > MOST_BYTES)
        return bad("an attribute that cannot be set");
    if (type == DNN_TYPE_BACKEND_DESCRIPTOR)
        for (int64_t i = 0; i < n; i++) {
            const struct descriptor *p = ((struct descriptor *const *)value)[i];
            if (!p || (!p->final && p->type != DNN_BACKEND_ENGINECFG_DESCRIPTOR))
                return bad("a part that is not finished");
        }
    struct attribute *a = &d->a[d->num++];
    *a = (struct attribute){name, type, n, {0}};
    memcpy(a->value, value, bytes);
    return 0;
}

int cudnnBackendFinalize(struct descriptor *d)
{
    d->final = true;
    return 0;
}

int cudnnBackendGetAttribute(struct descriptor *d, int name, int type, int64_t most, int64_t *n,
                             void *value)
{
    (void)type, (void)most;
    *n = name == DNN_ATTR_ENGINEHEUR_RESULTS ? setting("FAKE_CUDNN_ENGINES", 1) : 1;
    if (name == DNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)
        *(int64_t *)value = 0;
    else if (name == DNN_ATTR_ENGINEHEUR_RESULTS)
        (*(struct descriptor **)value)->graph = part(d, DNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    else
        return bad("an unknown attribute");
    return 0;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static void *address(const struct run *r, int64_t uid)
{
    const struct attribute *u = find(r->pack, DNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    const struct attribute *p = find(r->pack, DNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    for (int64_t i = 0; u && p && i < u->n; i++)
        if (((const int64_t *)(const void *)u->value)[i] == uid)
            return ((void *const *)(const void *)p->value)[i];
    return NULL;
}

static int64_t offset(const struct tensor4 *t, int64_t i)
{
    int64_t at = 0;
    for (int k = 3; k >= 0; k--) {
        at += i % t->dim[k] * t->stride[k];
        i /= t->dim[k];
    }
    return at;
}

static struct tensor4 *need(struct run *r, const struct descriptor *d)
{
    static struct tensor4 none;
    const int64_t uid = number(d, DNN_ATTR_TENSOR_UNIQUE_ID);
    for (int i = 0; i < r->num; i++)
        if (r->t[i].uid == uid &&
            r->t[i].dim[2] ==
                ((const int64_t *)(const void *)find(d, DNN_ATTR_TENSOR_DIMENSIONS)->value)[2])
            return &r->t[i];
    if (!d || r->num == MOST_TENSORS) {
        r->error = "an operation without a tensor";
        return &none;
    }
    struct tensor4 *t = &r->t[r->num++];
    t->uid = uid;
    memcpy(t->dim, find(d, DNN_ATTR_TENSOR_DIMENSIONS)->value, sizeof t->dim);
    memcpy(t->stride, find(d, DNN_ATTR_TENSOR_STRIDES)->value, sizeof t->stride);
    t->type = (int)number(d, DNN_ATTR_TENSOR_DATA_TYPE);
    t->is_virtual = number(d, DNN_ATTR_TENSOR_IS_VIRTUAL) == 1;
    t->by_value = number(d, DNN_ATTR_TENSOR_IS_BY_VALUE) == 1;
    t->n = t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3];
    t->x = calloc((size_t)t->n, sizeof *t->x);
    return t;
}

/* The values of a tensor that an operation reads. */
static struct tensor4 *in(struct run *r, const struct descriptor *op, int name)
{
    struct tensor4 *t = need(r, part(op, name));
    const char *p = t->is_virtual ? NULL : address(r, t->uid);
    if (t->is_virtual || !t->n) return t;
    if (!p) r->error = "a tensor without an address";
    for (int64_t i = 0; p && i < t->n; i++)
        t->x[i] = t->type == DNN_DATA_FLOAT
                      ? (double)((const float *)(const void *)p)[offset(t, i)]
                      : (double)bf16_to(((const uint16_t *)(const void *)p)[offset(t, i)]);
    return t;
}

/* What an operation has written is rounded to its type and, if it has an address, put there. */
static void out(struct run *r, struct tensor4 *t)
{
    char *p = t->is_virtual ? NULL : address(r, t->uid);
    if (!t->is_virtual && (!p || t->by_value)) r->error = "a result without an address";
    for (int64_t i = 0; i < t->n; i++) {
        const float v = (float)t->x[i];
        t->x[i] = t->type == DNN_DATA_FLOAT ? (double)v : (double)bf16_to(bf16_from(v));
        if (p && t->type == DNN_DATA_FLOAT) ((float *)(void *)p)[offset(t, i)] = v;
        if (p && t->type != DNN_DATA_FLOAT) ((uint16_t *)(void *)p)[offset(t, i)] = bf16_from(v);
    }
}

/* Index in t, whose dimensions of size 1 repeat, of element i of `like`. */
static int64_t spread(const struct tensor4 *t, const struct tensor4 *like, int64_t i)
{
    int64_t at[4], k, index = 0;
    for (k = 3; k >= 0; k--) {
        at[k] = t->dim[k] == 1 ? 0 : i % like->dim[k];
        i /= like->dim[k];
    }
    for (k = 0; k < 4; k++) index = index * t->dim[k] + at[k];
    return index;
}

/* ---- operations ------------------------------------------------------------------------------ */

static void matmul(struct run *r, const struct descriptor *op)
{
    const struct tensor4 *a = in(r, op, DNN_ATTR_OPERATION_MATMUL_ADESC);
    const struct tensor4 *b = in(r, op, DNN_ATTR_OPERATION_MATMUL_BDESC);
    struct tensor4 *c = need(r, part(op, DNN_ATTR_OPERATION_MATMUL_CDESC));
    const int64_t m = c->dim[2], n = c->dim[3], k = a->dim[3];
    if (a->dim[2] != m || b->dim[2] != k || b->dim[3] != n) {
        r->error = "a product of matrices that do not fit";
        return;
    }
    for (int64_t i = 0; i < c->n; i++) {
        const int64_t batch = i / (m * n), row = i / n % m, col = i % n;
        c->x[i] = 0;
        for (int64_t j = 0; j < k; j++)
            c->x[i] += a->x[(batch * m + row) * k + j] * b->x[(batch * k + j) * n + col];
    }
    out(r, c);
}

static void pointwise(struct run *r, const struct descriptor *op)
{
    const struct descriptor *how = part(op, DNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    const int64_t mode = number(how, DNN_ATTR_POINTWISE_MODE);
    const struct tensor4 *x = in(r, op, DNN_ATTR_OPERATION_POINTWISE_XDESC), *b = NULL;
    if (mode == DNN_POINTWISE_MUL || mode == DNN_POINTWISE_SUB)
        b = in(r, op, DNN_ATTR_OPERATION_POINTWISE_BDESC);
    struct tensor4 *y = need(r, part(op, DNN_ATTR_OPERATION_POINTWISE_YDESC));
    for (int64_t i = 0; i < y->n; i++) {
        const double u = x->x[spread(x, y, i)], v = b ? b->x[spread(b, y, i)] : 0;
        y->x[i] = mode == DNN_POINTWISE_MUL   ? u * v
                  : mode == DNN_POINTWISE_SUB ? u - v
                  : mode == DNN_POINTWISE_EXP ? exp(u)
                                              : u;
    }
    out(r, y);
}

static void reduction(struct run *r, const struct descriptor *op)
{
    const struct tensor4 *x = in(r, op, DNN_ATTR_OPERATION_REDUCTION_XDESC);
    struct tensor4 *y = need(r, part(op, DNN_ATTR_OPERATION_REDUCTION_YDESC));
    memset(y->x, 0, (size_t)y->n * sizeof *y->x);
    for (int64_t i = 0; i < x->n; i++) y->x[spread(y, x, i)] += x->x[i];
    out(r, y);
}

/* The same memory under other dimensions and strides. */
static void reshape(struct run *r, const struct descriptor *op)
{
    const struct tensor4 *x = in(r, op, DNN_ATTR_OPERATION_RESHAPE_XDESC);
    struct tensor4 *y = need(r, part(op, DNN_ATTR_OPERATION_RESHAPE_YDESC));
    const int64_t most = offset(x, x->n - 1);
    double *memory = calloc((size_t)most + 1, sizeof *memory);
    if (x->n != y->n || offset(y, y->n - 1) != most) r->error = "a view of another size";
    for (int64_t i = 0; i < x->n && !r->error; i++) memory[offset(x, i)] = x->x[i];
    for (int64_t i = 0; i < y->n && !r->error; i++) y->x[i] = memory[offset(y, i)];
    free(memory);
    out(r, y);
}

static void attention(struct run *r, const struct descriptor *op)
{
    const struct tensor4 *q = in(r, op, DNN_ATTR_OPERATION_SDPA_FWD_QDESC);
    const struct tensor4 *k = in(r, op, DNN_ATTR_OPERATION_SDPA_FWD_KDESC);
    const struct tensor4 *v = in(r, op, DNN_ATTR_OPERATION_SDPA_FWD_VDESC);
    struct tensor4 *o = need(r, part(op, DNN_ATTR_OPERATION_SDPA_FWD_ODESC));
    struct tensor4 *lse = need(r, part(op, DNN_ATTR_OPERATION_SDPA_FWD_STATSDESC));
    const bool scaled = part(op, DNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC);
    const double scale = scaled ? in(r, op, DNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC)->x[0] : 1;
    const int64_t rows = q->dim[2], keys = k->dim[2], d = q->dim[3];
    for (int64_t i = 0; i < lse->n && !r->error; i++) {
        const double *qi = q->x + i * d, *kb = k->x + i / rows * keys * d;
        const double *vb = v->x + i / rows * keys * d;
        double sum = 0;
        memset(o->x + i * d, 0, (size_t)d * sizeof *o->x);
        for (int64_t j = 0; j < keys; j++) {
            double s = 0;
            for (int64_t x = 0; x < d; x++) s += qi[x] * kb[j * d + x];
            sum += exp(scale * s);
            for (int64_t x = 0; x < d; x++) o->x[i * d + x] += exp(scale * s) * vb[j * d + x];
        }
        for (int64_t x = 0; x < d; x++) o->x[i * d + x] /= sum;
        lse->x[i] = log(sum);
    }
    out(r, o);
    out(r, lse);
}

int cudnnBackendExecute(void *handle, struct descriptor *plan, struct descriptor *pack)
{
    const struct descriptor *config = part(plan, DNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    const struct attribute *ops = find(config->graph, DNN_ATTR_OPERATIONGRAPH_OPS);
    struct run r = {.pack = pack};
    if (handle != last || !ops) return bad("no handle or no operations");
    for (int64_t i = 0; i < ops->n && !r.error; i++) {
        const struct descriptor *op = ((struct descriptor *const *)(const void *)ops->value)[i];
        switch (op->type) {
        case DNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
            matmul(&r, op);
            break;
        case DNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
            pointwise(&r, op);
            break;
        case DNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
            reduction(&r, op);
            break;
        case DNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
            reshape(&r, op);
            break;
        case DNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR:
            attention(&r, op);
            break;
        default:
            r.error = "an unknown operation";
        }
    }
    for (int i = 0; i < r.num; i++) free(r.t[i].x);
    return r.error ? bad(r.error) : 0;
}
