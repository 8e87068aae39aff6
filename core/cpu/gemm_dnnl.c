/* oneDNN (C API of version 2) for bf16 products on machines with bf16 units. Primitives are made
 * once per shape and kept in a cache that belongs to the device; they work in memory of the
 * caller, so threads may share them. */
#include "core/cpu/cpu.h"

#ifdef HAVE_DNNL
#include <dnnl.h>
#if DNNL_VERSION_MAJOR != 2
#undef HAVE_DNNL
#endif
#endif

#ifdef HAVE_DNNL
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct shape {
    int64_t m, n, k, lda, ldb, ldc;
    float beta;
    int trans_a, trans_b, dtype;
};
struct entry {
    struct shape shape;
    dnnl_memory_desc_t a, b, c, work;
    dnnl_primitive_t prim; /* NULL: oneDNN cannot do this shape */
};
struct dnnl_cache {
    dnnl_engine_t engine;
    pthread_mutex_t lock;
    struct entry **entry;
    int n, room;
};

static void must(dnnl_status_t s, const char *what)
{
    CHECK(s == dnnl_success, "oneDNN: %s: status %d", what, (int)s);
}

struct dnnl_cache *dnnl_cache_open(void)
{
    struct dnnl_cache *c = calloc(1, sizeof *c);
    CHECK(c, "out of memory");
    must(dnnl_engine_create(&c->engine, dnnl_cpu, 0), "engine");
    pthread_mutex_init(&c->lock, NULL);
    return c;
}

void dnnl_cache_close(struct dnnl_cache *c)
{
    for (int i = 0; i < c->n; i++) {
        if (c->entry[i]->prim) dnnl_primitive_destroy(c->entry[i]->prim);
        free(c->entry[i]);
    }
    free(c->entry);
    dnnl_engine_destroy(c->engine);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

bool dnnl_has_fast_bf16(void)
{
    return dnnl_get_effective_cpu_isa() >= dnnl_cpu_isa_avx512_core_bf16;
}

const char *dnnl_name(void) { return "oneDNN 2"; }

static void describe_matrix(dnnl_memory_desc_t *md, int64_t rows, int64_t cols, int64_t ld,
                            bool trans, dnnl_data_type_t t)
{
    const dnnl_dims_t dims = {rows, cols}, strides = {trans ? 1 : ld, trans ? ld : 1};
    must(dnnl_memory_desc_init_by_strides(md, 2, dims, t, strides), "memory descriptor");
}

static void build(struct dnnl_cache *c, struct entry *e)
{
    const struct shape *s = &e->shape;
    const dnnl_data_type_t t = s->dtype == DT_BF16 ? dnnl_bf16 : dnnl_f32;
    describe_matrix(&e->a, s->m, s->k, s->lda, s->trans_a, t);
    describe_matrix(&e->b, s->k, s->n, s->ldb, s->trans_b, t);
    describe_matrix(&e->c, s->m, s->n, s->ldc, false, dnnl_f32);
    dnnl_matmul_desc_t op;
    must(dnnl_matmul_desc_init(&op, &e->a, &e->b, NULL, &e->c), "matmul descriptor");
    dnnl_primitive_attr_t attr;
    must(dnnl_primitive_attr_create(&attr), "attributes");
    must(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user), "scratchpad");
    dnnl_post_ops_t post = NULL;
    if (s->beta != 0) {
        must(dnnl_post_ops_create(&post), "post-ops");
        must(dnnl_post_ops_append_sum(post, s->beta), "post-ops");
        must(dnnl_primitive_attr_set_post_ops(attr, post), "post-ops");
    }
    dnnl_primitive_desc_t pd;
    if (dnnl_primitive_desc_create(&pd, &op, attr, c->engine, NULL) == dnnl_success) {
        e->work = *dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
        must(dnnl_primitive_create(&e->prim, pd), "primitive");
        dnnl_primitive_desc_destroy(pd);
    }
    if (post) dnnl_post_ops_destroy(post);
    dnnl_primitive_attr_destroy(attr);
}

static const struct entry *lookup(struct dnnl_cache *c, const struct shape *s)
{
    pthread_mutex_lock(&c->lock);
    struct entry *found = NULL;
    for (int i = 0; i < c->n && !found; i++)
        if (memcmp(&c->entry[i]->shape, s, sizeof *s) == 0) found = c->entry[i];
    if (!found) {
        if (c->n == c->room) {
            c->room = c->room ? 2 * c->room : 64;
            c->entry = realloc(c->entry, (size_t)c->room * sizeof(struct entry *));
            CHECK(c->entry, "out of memory");
        }
        found = calloc(1, sizeof *found);
        CHECK(found, "out of memory");
        memcpy(&found->shape, s, sizeof *s);
        build(c, found);
        c->entry[c->n++] = found;
    }
    pthread_mutex_unlock(&c->lock);
    return found;
}

static const void *start_of(struct tensor t, int64_t row, int64_t col)
{
    return (const char *)t.data + (size_t)(row * tensor_ld(t) + col) * dtype_size(t.dtype);
}

bool dnnl_gemm_part(struct dnnl_cache *c, const struct gemm_part *p)
{
    const struct gemm_args *g = p->g;
    if (p->alpha != 1 || p->k == 0) return false;
    struct shape s;
    memset(&s, 0, sizeof s); /* compared as bytes */
    s.m = p->m;
    s.n = p->n;
    s.k = p->k;
    s.lda = tensor_ld(g->a);
    s.ldb = tensor_ld(g->b);
    s.ldc = p->ldc;
    s.beta = p->beta;
    s.trans_a = g->trans_a;
    s.trans_b = g->trans_b;
    s.dtype = (int)g->a.dtype;
    const struct entry *e = lookup(c, &s);
    if (!e->prim) return false;
    const void *a = g->trans_a ? start_of(g->a, 0, p->m0) : start_of(g->a, p->m0, 0);
    const void *b = g->trans_b ? start_of(g->b, p->n0, 0) : start_of(g->b, 0, p->n0);
    void *work = cpu_scratch(dnnl_memory_desc_get_size(&e->work));
    dnnl_stream_t stream;
    must(dnnl_stream_create(&stream, c->engine, dnnl_stream_default_flags), "stream");
    const dnnl_memory_desc_t *md[4] = {&e->a, &e->b, &e->c, &e->work};
    void *const data[4] = {(void *)(uintptr_t)a, (void *)(uintptr_t)b, p->c, work};
    const int name[4] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};
    dnnl_exec_arg_t args[4];
    for (int i = 0; i < 4; i++) {
        args[i].arg = name[i];
        must(dnnl_memory_create(&args[i].memory, md[i], c->engine, data[i]), "memory");
    }
    must(dnnl_primitive_execute(e->prim, stream, 4, args), "execution");
    must(dnnl_stream_wait(stream), "wait");
    for (int i = 0; i < 4; i++) dnnl_memory_destroy(args[i].memory);
    dnnl_stream_destroy(stream);
    free(work);
    return true;
}
#else
struct dnnl_cache *dnnl_cache_open(void) { return NULL; }
void dnnl_cache_close(struct dnnl_cache *c) { (void)c; }
bool dnnl_has_fast_bf16(void) { return false; }
const char *dnnl_name(void) { return "oneDNN: not in this build"; }
bool dnnl_gemm_part(struct dnnl_cache *c, const struct gemm_part *p)
{
    (void)c;
    (void)p;
    return false;
}
#endif
