#include "core/dev.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/bf16.h"

enum { MAX_BACKENDS = 8 };
static const struct dev_backend *backends[MAX_BACKENDS] = {&dev_ref, &dev_cpu, &dev_null};
static int num_backends = 3;
static const char *names[MAX_BACKENDS + 2]; /* and cuda, and the end */

void dev_register(const struct dev_backend *b)
{
    CHECK(num_backends < MAX_BACKENDS, "too many devices");
    backends[num_backends++] = b;
}

/* ---- the cuda device lives in a shared object ---------------------------------------------- */

static const struct dev_backend *cuda_backend; /* both set once, by load_cuda */
static struct err cuda_absent;                 /* why there is none */
static const char lib_name[] = "libosp_cuda.so";

/* Looks beside the program and one folder up (build/CONFIG of a test in build/CONFIG/tests). */
static bool find_library(char *path, size_t size)
{
    char exe[4096];
    const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0) return false;
    exe[n] = 0;
    for (int up = 0; up < 2; up++) {
        char *slash = strrchr(exe, '/');
        if (!slash) return false;
        *slash = 0;
        const int len = snprintf(path, size, "%s/%s", exe, lib_name);
        if (len > 0 && (size_t)len < size && access(path, R_OK) == 0) return true;
    }
    return false;
}

static void load_cuda(void)
{
    char path[4200];
    if (!find_library(path, sizeof path)) {
        err_set(&cuda_absent, RC_CONFIG, "this build has no CUDA device; make CUDA=1");
        return;
    }
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        err_set(&cuda_absent, RC_SOFTWARE, "%s; make CUDA=1 again", dlerror());
        return;
    }
    dev_cuda_entry *entry = NULL;
    void *symbol = dlsym(lib, DEV_CUDA_SYMBOL);
    memcpy(&entry, &symbol, sizeof entry);
    if (!entry)
        err_set(&cuda_absent, RC_SOFTWARE, "%s: no " DEV_CUDA_SYMBOL, path);
    else
        cuda_backend = entry(DEV_CUDA_SIZES, &cuda_absent);
    if (!cuda_backend) dlclose(lib);
}

/* Once per process, when somebody asks for the cuda device or for the list. NULL: none. */
static const struct dev_backend *find_cuda(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load_cuda);
    return cuda_backend;
}

static const struct dev_backend *find(const char *name)
{
    for (int i = 0; i < num_backends; i++) /* with what dev_register added: a test's cuda, too */
        if (strcmp(backends[i]->name, name) == 0) return backends[i];
    return strcmp(name, "cuda") == 0 ? find_cuda() : NULL;
}

static void list_names(void)
{
    int n = 0;
    for (; n < num_backends; n++) names[n] = backends[n]->name;
    if (find_cuda()) names[n] = find_cuda()->name;
}

const char *const *dev_names(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, list_names);
    return names;
}

static int told_local_rank;
void dev_set_local_rank(int rank) { told_local_rank = rank; }

int dev_local_rank(void)
{
    static const char *const variables[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
                                            "PMI_LOCAL_RANK", "SLURM_LOCALID"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        const char *value = getenv(variables[i]);
        const int n = value && *value ? atoi(value) : -1;
        if (n >= 0) return n;
    }
    return told_local_rank;
}

bool dev_supports(const char *name, enum dtype compute)
{
    const struct dev_backend *b = find(name);
    return b && b->ops(compute);
}

int dev_units(const char *name)
{
    const struct dev_backend *b = find(name);
    return !b ? 0 : b->units ? b->units() : 1;
}

bool dev_unit_name(const char *name, char out[DEV_UNIT_NAME])
{
    const struct dev_backend *b = find(name);
    return b && b->unit_name && b->unit_name(out);
}

bool dev_broken(struct err *e)
{
    if (find("cuda") || cuda_absent.code == RC_CONFIG) return false;
    *e = cuda_absent;
    return true;
}

size_t dev_free_bytes(struct dev *d)
{
    const struct dev_backend *b = find(d->ops->name);
    return b && b->free_bytes ? b->free_bytes(d) : 0;
}

/* The table is made of pointers only, apart from its first member; each must be set. */
static void refuse_holes(const struct dev_ops *ops, const char *name)
{
    const size_t n = (sizeof *ops - offsetof(struct dev_ops, alloc)) / sizeof(void (*)(void));
    void (*const *slot)(void) =
        (void (*const *)(void))(const void *)((const char *)ops + offsetof(struct dev_ops, alloc));
    for (size_t i = 0; i < n; i++)
        CHECK(slot[i], "device %s: op number %zu of struct dev_ops (core/dev.h) is missing", name,
              i);
}

/* ---- memory -------------------------------------------------------------------------------- */

struct dev_block {
    void *p;
    size_t bytes;
    struct dev_block *next;
};

static void count_bytes(struct dev_counters *c, size_t more)
{
    c->bytes_now += more;
    if (c->bytes_now > c->bytes_peak) c->bytes_peak = c->bytes_now;
}

void *dev_alloc(struct dev *d, size_t bytes)
{
    struct dev_block *b = malloc(sizeof *b);
    CHECK(b, "out of memory");
    *b = (struct dev_block){d->ops->alloc(d, bytes), bytes, d->blocks};
    d->blocks = b;
    count_bytes(&d->count, bytes);
    return b->p;
}

void dev_free(struct dev *d, void *p)
{
    struct dev_block **at = &d->blocks;
    while (*at && (*at)->p != p) at = &(*at)->next;
    struct dev_block *b = *at;
    CHECK(b, "free of an address that was not allocated");
    *at = b->next;
    d->count.bytes_now -= b->bytes;
    d->ops->free(d, p);
    free(b);
}

void dev_own(struct dev *d, size_t bytes)
{
    if (bytes <= d->count.own_bytes) return;
    count_bytes(&d->count, bytes - d->count.own_bytes);
    d->count.own_bytes = bytes;
}

size_t dev_own_bytes(struct dev *d, const struct gemm_args *g, const struct attn_grad_args *a)
{
    const struct dev_backend *b = find(d->ops->name);
    return b && b->own_bytes ? b->own_bytes(d, g, a) : 0;
}

struct dev *dev_open(const char *name, enum dtype compute, int threads)
{
    const struct dev_backend *b = find(name);
    if (!b && strcmp(name, "cuda") == 0)
        err_stop(cuda_absent.code, "device cuda: %s", cuda_absent.msg);
    if (!b) {
        char list[128] = "";
        size_t n = 0;
        for (const char *const *k = dev_names(); *k && n < sizeof list; k++)
            n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", *k);
        err_stop(RC_CONFIG, "unknown device \"%s\"; this build has: %s", name, list);
    }
    const struct dev_ops *ops = b->ops(compute);
    if (!ops) err_stop(RC_CONFIG, "device %s does not support dtype %s", name, dtype_name(compute));
    refuse_holes(ops, name);
    struct dev *d = calloc(1, sizeof *d);
    CHECK(d, "out of memory");
    d->ops = ops;
    d->compute = compute;
    d->threads = threads;
    struct err e = {0};
    if (b->start && !b->start(d, &e)) err_raise(&e);
    return d;
}

void dev_close(struct dev *d)
{
    if (!d) return;
    const struct dev_backend *b = find(d->ops->name);
    if (b && b->stop) b->stop(d);
    for (struct dev_block *next; d->blocks; d->blocks = next) { /* not freed; the device is gone */
        next = d->blocks->next;
        free(d->blocks);
    }
    free(d);
}

const struct dev_queues *dev_queues_of(const struct dev *d)
{
    const struct dev_backend *b = find(d->ops->name);
    return b ? b->queues : NULL;
}

void dev_describe(struct dev *d, char *out, size_t size)
{
    const struct dev_backend *b = find(d->ops->name);
    if (b && b->describe)
        b->describe(d, out, size);
    else
        snprintf(out, size, "%s", d->ops->name);
}

void dev_check_quantum(double quantum)
{
    int exponent;
    CHECK(quantum > 0 && frexp(quantum, &exponent) == 0.5, "quantum %g is not a power of two",
          quantum);
}

void dev_check_dropout(const struct dropout_args *a)
{
    const int64_t rows = a->x.dim[0];
    CHECK(a->p >= 0 && a->p < 1, "dropout %g", a->p);
    CHECK(a->batch > 0 && rows % a->batch == 0 && a->x.ndim == 2 && a->out.ndim == 2 &&
              a->out.dim[0] == rows && a->out.dim[1] == a->x.dim[1],
          "dropout: [%lld,%lld] rows of %d samples", (long long)rows, (long long)a->x.dim[1],
          a->batch);
    CHECK(!a->pos.data ||
              (a->pos.dtype == DT_I16 && a->pos.dim[0] == rows && a->height > 0 && a->width > 0),
          "dropout: places of %lld rows in a grid of %d x %d", (long long)rows, a->height,
          a->width);
}

void dev_poison(struct dev *d, void *p, size_t bytes)
{
    if (!d->poison) return;
    const int64_t n = (int64_t)(bytes / sizeof(float));
    d->ops->fill(d, tensor_make(p, DT_F32, 1, &n), (double)__builtin_nanf(""));
}

struct tensor dev_tensor(struct dev *d, enum dtype t, int ndim, const int64_t *dim)
{
    struct tensor x = tensor_make(NULL, t, ndim, dim);
    x.data = dev_alloc(d, tensor_bytes(x) + 64);
    return x;
}

void dev_put(struct dev *d, struct tensor t, const void *host)
{
    CHECK(tensor_contiguous(t), "put to a strided tensor");
    d->ops->from_host(d, t.data, host, tensor_bytes(t));
}

void dev_get(struct dev *d, void *host, struct tensor t)
{
    CHECK(tensor_contiguous(t), "get from a strided tensor");
    d->ops->to_host(d, host, t.data, tensor_bytes(t));
}

void dev_put_f64(struct dev *d, struct tensor t, const double *host)
{
    const int64_t n = tensor_count(t);
    if (t.dtype == DT_F64) {
        dev_put(d, t, host);
        return;
    }
    float *f = malloc((size_t)(n ? n : 1) * sizeof *f);
    CHECK(f, "out of memory");
    for (int64_t i = 0; i < n; i++) f[i] = (float)host[i];
    if (t.dtype == DT_BF16) {
        uint16_t *h = malloc((size_t)(n ? n : 1) * sizeof *h);
        CHECK(h, "out of memory");
        for (int64_t i = 0; i < n; i++) h[i] = bf16_from(f[i]);
        dev_put(d, t, h);
        free(h);
    } else {
        CHECK(t.dtype == DT_F32, "put of doubles to %s", dtype_name(t.dtype));
        dev_put(d, t, f);
    }
    free(f);
}

void dev_get_f64(struct dev *d, double *host, struct tensor t)
{
    const int64_t n = tensor_count(t);
    if (t.dtype == DT_F64) {
        dev_get(d, host, t);
        return;
    }
    void *raw = malloc(tensor_bytes(t) + 8);
    CHECK(raw, "out of memory");
    dev_get(d, raw, t);
    if (t.dtype == DT_BF16)
        for (int64_t i = 0; i < n; i++) host[i] = (double)bf16_to(((uint16_t *)raw)[i]);
    else if (t.dtype == DT_F32)
        for (int64_t i = 0; i < n; i++) host[i] = (double)((float *)raw)[i];
    else
        CHECK(0, "get of doubles from %s", dtype_name(t.dtype));
    free(raw);
}
