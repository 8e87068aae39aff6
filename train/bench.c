/* Verb bench; here: one transformer block forward and backward on random data, at the width of
 * the 1.3B model. One JSON line per measurement, for scripts/bench_block.py and for eyes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "core/log.h"
#include "model/dit.h"
#include "parallel/fsdp.h"
#include "train/args.h"
#include "train/bench.h"
#include "train/verbs.h"

static const char usage[] =
    "osp bench [dtype=fp32|bf16|fp64] [device=cpu] [threads=2] [t=6 h=16 w=16] [ratio=1|2|3]\n"
    "          [dim=1536] [ffn=8960] [heads=12] [text=512] [runs=3] [out=FOLDER]\n"
    "One block forward and backward. ratio 1: full attention; above: Skiparse sub-sequences.\n"
    "out: writes inputs, weights and results as raw float32 for a comparison.\n\n"
    "mpirun -n N osp bench comm [t=21 h=45 w=80] [ratio=2] [dim=1536] [heads=12] [dtype=fp32]\n"
    "          [runs=5]          (or without mpirun: ranks=N, counts only)\n"
    "What a sparse block sends under Ulysses, SSP, both, and all-gather + reshard: calls, bytes,\n"
    "time. Exit code 70 when a count differs from its formula (docs/parallelism.md).\n\n"
    "osp bench gpu [part=...] [torch=PYTHON] ...: a whole GPU, beside PyTorch; its own --help.";

static const struct bench block_defaults = {"fp32", "cpu", 0,  6,   16, 16, 1,
                                            1536,   8960,  12, 512, 3,  0,  NULL};
/* 720 x 1280 x 81 at the width of the 1.3B model */
static const struct bench comm_defaults = {"fp32", "cpu", 0,  21,  45, 80, 2,
                                           1536,   8960,  12, 512, 5,  0,  NULL};

enum dtype bench_dtype(const struct bench *b)
{
    return strcmp(b->dtype, "bf16") == 0   ? DT_BF16
           : strcmp(b->dtype, "fp64") == 0 ? DT_F64
                                           : DT_F32;
}

static void parse(struct bench *b, const struct args *a)
{
    const struct {
        const char *key;
        int64_t *value;
    } numbers[] = {
        {"threads", &b->threads}, {"t", &b->t},       {"h", &b->h},        {"w", &b->w},
        {"ratio", &b->ratio},     {"dim", &b->dim},   {"ffn", &b->ffn},    {"heads", &b->heads},
        {"text", &b->text},       {"runs", &b->runs}, {"ranks", &b->ranks}};
    for (int i = 0; i < a->num_sets; i++) {
        const char *s = a->sets[i], *v = strchr(s, '=') + 1;
        const size_t n = (size_t)(v - s) - 1;
        bool known = false;
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
            if (strlen(numbers[k].key) == n && strncmp(s, numbers[k].key, n) == 0) {
                char *end;
                *numbers[k].value = strtoll(v, &end, 10);
                known = *v && !*end && (*numbers[k].value > 0 || numbers[k].value == &b->threads);
            }
        if (n == 5 && strncmp(s, "dtype", n) == 0)
            known = snprintf(b->dtype, sizeof b->dtype, "%s", v) < 16 &&
                    (!strcmp(v, "fp32") || !strcmp(v, "bf16") || !strcmp(v, "fp64"));
        if (n == 6 && strncmp(s, "device", n) == 0)
            known = snprintf(b->device, sizeof b->device, "%s", v) < 16;
        if (n == 3 && strncmp(s, "out", n) == 0) b->out = v, known = true;
        if (!known) err_stop(RC_USAGE, "bench: cannot use \"%s\"\n%s", s, usage);
    }
}

struct block_bench {
    struct dev *dev;
    struct mesh mesh;
    struct dit *dit;
    struct fsdp *fsdp;
    struct shape_plan *plan;
    struct arena keep, tmp;
    struct ctx ctx;
    struct tensor x, y, dy, dx, text, e0;
    double forward_s, backward_s, cpu_s; /* cpu_s: of both, of all threads */
};

static struct tensor random_tensor(struct block_bench *k, enum dtype t, int64_t rows, int64_t cols,
                                   uint64_t item, double std)
{
    struct tensor x = dev_tensor(k->dev, t, 2, DIMS(rows, cols));
    k->dev->ops->rng_normal(
        k->dev, x, rng_open((struct rng_key){.seed = 1, .use = RNG_TEST, .item = item}), 0, std);
    return x;
}

static void open_bench(struct block_bench *k, const struct bench *b, struct comm *world)
{
    const enum dtype T = bench_dtype(b);
    struct model_config m = {.dim = b->dim,
                             .ffn_dim = b->ffn,
                             .freq_dim = 256,
                             .in_dim = 16,
                             .out_dim = 16,
                             .num_heads = b->heads,
                             .num_layers = 2,
                             .text_len = b->text,
                             .text_dim = 64,
                             .eps = 1e-6,
                             .skiparse_dim = 1,
                             .skiparse_model_type =
                                 b->ratio > 1 ? SKIPARSE_DUAL_END : SKIPARSE_FULL,
                             .sparse_ratio = b->ratio};
    k->dev = dev_open(b->device, T, (int)b->threads);
    comm_device(world, k->dev);
    mesh_init(&k->mesh, world, (struct mesh_degrees){1, 1, 1});
    k->dit = dit_new(k->dev, &m, RECOMPUTE_NONE, NULL, 1024);
    k->fsdp = fsdp_new(k->dev, &k->mesh, k->dit->unit, 2,
                       (struct fsdp_opts){.optimizer = true, .no_moments = true});
    fsdp_init_params(k->fsdp, 1);
    k->plan = plan_shape(k->dev, &k->mesh, &m, 1, (int)b->t, (int)b->h, (int)b->w, (int)b->text);
    const int64_t R = k->plan->stage[0].layout->rows;
    const size_t unit = (size_t)R * (size_t)b->dim * dtype_size(T),
                 text = (size_t)(b->text * b->dim * 16);
    arena_init(&k->keep, k->dev,
               unit * 16 + unit * 3 * (size_t)(b->ffn / b->dim + 1) + text + (1 << 22), "keep");
    arena_init(&k->tmp, k->dev,
               unit * 10 + unit * 2 * (size_t)(b->ffn / b->dim + 1) + text + (1 << 22), "tmp");
    k->ctx = (struct ctx){.dev = k->dev,
                          .mesh = &k->mesh,
                          .hooks = fsdp_hooks(k->fsdp),
                          .keep = &k->keep,
                          .tmp = &k->tmp};
    k->x = random_tensor(k, T, R, b->dim, 1, 1);
    k->dy = random_tensor(k, T, R, b->dim, 2, 1);
    k->text = random_tensor(k, T, b->text, b->dim, 3, 1);
    k->e0 = random_tensor(k, dtype_state(T), 1, 6 * b->dim, 4, 0.1);
    k->y = dev_tensor(k->dev, T, 2, k->x.dim);
    k->dx = dev_tensor(k->dev, T, 2, k->x.dim);
}

static void run_block(struct block_bench *k)
{
    struct ctx *c = &k->ctx;
    const struct block *b = &k->dit->block[0];
    const struct cond cond = {k->text, k->e0};
    const struct block_run run = {.stage = &k->plan->stage[0],
                                  .rope = &k->dit->rope,
                                  .full = k->plan->kind[0] == BLOCK_FULL,
                                  .policy = RECOMPUTE_NONE,
                                  .keep_any = true};
    struct block_saved saved = {0};
    arena_release(&k->keep, 0);
    arena_release(&k->tmp, 0);
    struct cond_grad dcond = {.text = ctx_zeros(c, c->keep, ctx_state(c), 2, k->text.dim),
                              .e0 = ctx_zeros(c, c->keep, ctx_state(c), 2, k->e0.dim)};
    fsdp_zero_grads(k->fsdp);
    const clock_t c0 = clock();
    const double t0 = log_seconds();
    unit_enter(c->hooks, 1, PASS_FORWARD);
    block_forward(c, b, &run, &saved, k->y, k->x, NULL, &cond);
    unit_leave(c->hooks, 1, PASS_FORWARD);
    const double t1 = log_seconds();
    k->dev->ops->copy(k->dev, k->dx.data, k->dy.data, tensor_bytes(k->dy));
    unit_enter(c->hooks, 1, PASS_BACKWARD);
    block_backward(c, b, &run, &saved, k->dx, (struct tail_grad){0}, k->x, &cond, &dcond);
    unit_leave(c->hooks, 1, PASS_BACKWARD);
    k->dev->ops->sync(k->dev);
    k->forward_s = t1 - t0;
    k->backward_s = log_seconds() - t1;
    k->cpu_s = (double)(clock() - c0) / CLOCKS_PER_SEC;
}

static void dump(const char *dir, const char *name, struct dev *dev, struct tensor t)
{
    const int64_t n = tensor_count(t);
    double *x = malloc((size_t)n * sizeof *x);
    float *f = malloc((size_t)n * sizeof *f);
    CHECK(x && f, "out of memory");
    dev_get_f64(dev, x, t);
    for (int64_t i = 0; i < n; i++) f[i] = (float)x[i];
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.f32", dir, name);
    FILE *out = fopen(path, "wb");
    if (!out || fwrite(f, sizeof *f, (size_t)n, out) != (size_t)n || fclose(out))
        err_stop(RC_IO, "%s: cannot be written", path);
    free(x);
    free(f);
}

struct dump_arg {
    const char *dir, *kind;
    struct dev *dev;
};

static void dump_param(void *arg, const struct piece *p)
{
    const struct dump_arg *a = arg;
    if (strncmp(p->param->name, "blocks.0.", 9)) return;
    char name[128];
    snprintf(name, sizeof name, "%s.%s", a->kind, p->param->name + 9);
    dump(a->dir, name, a->dev, p->data);
}

static void dump_all(struct block_bench *k, const char *dir)
{
    const struct {
        const char *name;
        struct tensor t;
    } list[] = {{"x", k->x},   {"dy", k->dy}, {"text", k->text},
                {"e0", k->e0}, {"y", k->y},   {"dx", k->dx}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        dump(dir, list[i].name, k->dev, list[i].t);
    struct dump_arg a = {dir, "param", k->dev};
    fsdp_each_piece(k->fsdp, STATE_MASTER, dump_param, &a);
    a.kind = "grad";
    fsdp_each_piece(k->fsdp, STATE_GRAD, dump_param, &a);
    const struct layout *l = k->plan->stage[0].layout;
    char path[4096];
    snprintf(path, sizeof path, "%s/pos.i16", dir);
    FILE *out = fopen(path, "wb");
    if (!out || fwrite(l->pos, 6, (size_t)l->rows, out) != (size_t)l->rows || fclose(out))
        err_stop(RC_IO, "%s: cannot be written", path);
}

int verb_bench(int argc, char **argv)
{
    struct args a;
    struct bench b;
    const bool gpu = argc > 0 && strcmp(argv[0], "gpu") == 0;
    args_parse(&a, argc, argv, gpu ? bench_gpu_usage : usage);
    if (gpu) {
        args_no_rest(&a, bench_gpu_usage);
        const int rc = bench_gpu(&a, argc, argv);
        args_free(&a);
        return rc;
    }
    const bool comm = a.config && strcmp(a.config, "comm") == 0;
    if ((a.config && !comm) || a.num_rest) err_stop(RC_USAGE, "%s", usage);
    b = comm ? comm_defaults : block_defaults;
    parse(&b, &a);
    if (comm) {
        const int rc = bench_comm(&b, argc, argv);
        args_free(&a);
        return rc;
    }
    struct comm *world = comm_self(NULL);
    struct block_bench *k = calloc(1, sizeof *k);
    CHECK(k, "out of memory");
    open_bench(k, &b, world);
    for (int i = 0; i < b.runs; i++) {
        run_block(k);
        struct rusage u;
        getrusage(RUSAGE_SELF, &u);
        printf("{\"bench\": \"block\", \"dtype\": \"%s\", \"tokens\": %lld, \"ratio\": %lld, "
               "\"run\": %d, "
               "\"forward_s\": %.4f, \"backward_s\": %.4f, \"total_s\": %.4f, \"cpu_s\": %.4f, "
               "\"peak_rss_mb\": %.0f}\n",
               b.dtype, (long long)k->x.dim[0], (long long)b.ratio, i, k->forward_s, k->backward_s,
               k->forward_s + k->backward_s, k->cpu_s, (double)u.ru_maxrss / 1024);
    }
    if (b.out) dump_all(k, b.out);
    arena_free(&k->keep);
    arena_free(&k->tmp);
    struct tensor *own[] = {&k->x, &k->y, &k->dy, &k->dx, &k->text, &k->e0};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) dev_free(k->dev, own[i]->data);
    plan_free(k->plan);
    fsdp_free(k->fsdp);
    dit_free(k->dit, k->dev);
    mesh_free(&k->mesh);
    comm_free(world);
    dev_close(k->dev);
    free(k);
    args_free(&a);
    return RC_OK;
}
