/* Sequence parallelism: for every way to spread samples over ranks (SSP, Ulysses, both; any
 * sharding and replication), the output, every parameter's gradient and its norm equal those of
 * one rank. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "tests/check.h"
#include "tests/problem.h"

#ifdef __SANITIZE_THREAD__
enum { UNDER_TSAN = 1 };
#else
enum { UNDER_TSAN = 0 };
#endif

struct shape_case {
    const char *name;
    int ratio, dims, t, h, w, heads, dim, layers, full_blocks;
    bool full_model, large; /* large: in the campaign only */
};
/* Odd grids, grids lower than P*P and lower than P (ranks without a token), heads that the ranks
 * do not divide, schedules that end in either phase. */
static const struct shape_case cases[] = {
    {"P 2, 2x5x6, full token group full", 2, 2, 2, 5, 6, 4, 24, 4, 2, false, false},
    {"P 2, 1x9x11, 3 heads", 2, 2, 1, 9, 11, 3, 24, 4, 2, false, false},
    {"P 2, 2x1x3 (H < P)", 2, 2, 2, 1, 3, 2, 24, 3, 0, false, false},
    {"P 3, 1x7x10, 6 heads", 3, 2, 1, 7, 10, 6, 24, 4, 2, false, false},
    {"P 4, 2x3x9 (H < P), 4 heads", 4, 2, 2, 3, 9, 4, 24, 4, 2, false, false},
    {"P 4, 1x9x16, 1 head", 4, 2, 1, 9, 16, 1, 24, 2, 0, false, false},
    {"1-D, P 4, 2x3x7, 2 heads", 4, 1, 2, 3, 7, 2, 24, 4, 2, false, false},
    {"full model, 1x5x7, 4 heads", 2, 2, 1, 5, 7, 4, 24, 2, 0, true, false},
    {"P 2, 1x45x80, 2 heads", 2, 2, 1, 45, 80, 2, 24, 3, 0, false, true},
    {"P 8, 1x45x80 (H < P*P), 3 heads", 8, 2, 1, 45, 80, 3, 24, 3, 0, false, true},
};
enum { NUM_CASES = sizeof cases / sizeof *cases, ONE_SAMPLE = 1000 };

static struct fixture_opts options(const struct shape_case *c, const char *device, enum dtype type)
{
    struct model_config m = fixture_model();
    m.dim = c->dim;
    m.num_heads = c->heads;
    m.num_layers = c->layers;
    m.sparse_ratio = c->ratio;
    m.skiparse_dim = c->dims == 1 ? 0 : 1;
    m.num_full_blocks = c->full_blocks;
    if (c->layers % 2) m.full_block_indices = (struct cfg_ints){1, {c->layers - 1}};
    if (c->full_model) m.skiparse_model_type = SKIPARSE_FULL;
    return (struct fixture_opts){.device = device,
                                 .compute = type,
                                 .model = m,
                                 .t = c->t,
                                 .h = c->h,
                                 .w = c->w,
                                 .room = c->large ? 8 : 1,
                                 .fsdp = {.optimizer = true}};
}

struct outcome {
    double loss, norm, *v, *grads;
    int64_t num_v, num_grads;
};

static void free_outcome(struct outcome *o)
{
    free(o->v);
    free(o->grads);
}

static double gradient_norm(struct fixture *f)
{
    double sum = 0;
    int n;
    const struct shard *s = fsdp_shards(f->fsdp, &n);
    for (int i = 0; i < n; i++) {
        const int64_t count = tensor_count(s[i].grad);
        double *g = calloc((size_t)count + 1, sizeof *g);
        dev_get_f64(f->dev, g, s[i].grad);
        for (int64_t k = 0; k < count; k++) sum += g[k] * g[k];
        free(g);
    }
    sum /= f->mesh.axis[AXIS_REPLICA]->size;
    comm_sum_f64(f->mesh.axis[AXIS_WORLD], &sum, 1, "norm");
    return sqrt(sum);
}

/* One step over `global` samples; v: the outputs of this data rank's samples. */
static struct outcome run_case(struct comm *world, struct fixture_opts o, int global)
{
    struct fixture f;
    struct outcome r = {0};
    const int dp = o.degrees.ssp ? world->size / (o.degrees.ssp * o.degrees.sp) : world->size;
    o.batch = global / dp;
    fixture_open(&f, world, &o);
    problem_fill_params(&f);
    struct problem p =
        problem_new(&o.model, f.mesh.axis[AXIS_DP]->rank * o.batch, o.batch, o.t, o.h, o.w);
    r.num_v = p.out_n;
    r.v = calloc((size_t)p.out_n, sizeof *r.v);
    struct step_io io = problem_io(&p, (double)global * ONE_SAMPLE);
    io.v = r.v;
    io.backward = true;
    r.loss = fixture_step(&f, &io);
    comm_sum_f64(world, &r.loss, 1, "loss");
    comm_sum_f64(f.mesh.axis[AXIS_SEQ], r.v, (int)r.num_v, "output");
    r.norm = gradient_norm(&f);
    r.grads = problem_grads(&f, &r.num_grads);
    problem_free(&p);
    fixture_close(&f);
    return r;
}

/* One step of one rank over `global` samples, on every rank. */
static struct outcome run_alone(struct comm *world, struct fixture_opts o, int global)
{
    struct outcome r = {0};
    if (world->rank == 0) {
        struct comm *alone = comm_self(NULL);
        r = run_case(alone, o, global);
        comm_free(alone);
    }
    comm_broadcast_bytes(world, &r.loss, sizeof r.loss, 0, "loss");
    comm_broadcast_bytes(world, &r.norm, sizeof r.norm, 0, "norm");
    r.v = problem_share(world, r.v, &r.num_v);
    r.grads = problem_share(world, r.grads, &r.num_grads);
    return r;
}

/* The worst distance over the parameters, each by its own norm, but not below `floor` of the norm
 * of all: what is exactly 0 in theory (key biases) is rounding on both sides. */
static double worst_gradient(const struct model_config *m, const struct outcome *a,
                             const struct outcome *b, double floor)
{
    struct dev *dev = dev_open("null", DT_F32, 1);
    struct dit *d = dit_new(dev, m, RECOMPUTE_ALL, NULL, 8);
    double worst = 0;
    int64_t at = 0;
    for (int u = 0; u < d->num_units; u++)
        for (int i = 0; i < d->unit[u].num_params; i++) {
            const int64_t n = param_count(&d->unit[u].param[i]);
            double diff = 0, size = 0;
            for (int64_t k = at; k < at + n; k++) {
                diff += (a->grads[k] - b->grads[k]) * (a->grads[k] - b->grads[k]);
                size += b->grads[k] * b->grads[k];
            }
            const double e = sqrt(diff) / fmax(sqrt(size), floor * b->norm);
            if (!(e <= worst)) worst = e;
            at += n;
        }
    dit_free(d, dev);
    dev_close(dev);
    return worst;
}

struct tally {
    int seen, runs, shared; /* shared: several ranks have the keys and values of a head */
    double worst_v, worst_g, worst_norm, worst_loss;
};

static void compare(struct comm *world, const struct fixture_opts *o, const struct outcome *want,
                    int global, double tol, const char *name, struct tally *t)
{
    const struct mesh_degrees *d = &o->degrees;
    const struct outcome got = run_case(world, *o, global);
    const int dp = world->size / (d->ssp * d->sp), me = world->rank / (d->ssp * d->sp);
    const double v = norm_error(got.v, want->v + me * (want->num_v / dp), got.num_v);
    const double floor = o->compute == DT_F64 ? 1e-6 : o->compute == DT_F32 ? 1e-3 : 0.05;
    const double g = worst_gradient(&o->model, &got, want, floor);
    const double norm = fabs(got.norm / want->norm - 1), loss = fabs(got.loss / want->loss - 1);
    EXPECT(v <= tol && g <= tol && norm <= tol && loss <= tol,
           "%s: ranks %d = data %d x ssp %d x sp %d, fsdp %d: output %.2g, gradients %.2g, norm "
           "%.2g, loss %.2g",
           name, world->size, dp, d->ssp, d->sp, d->fsdp, v, g, norm, loss);
    if (world->rank == 0 && (test_verbose() || test_campaign()))
        printf("    %-36s ranks %d: data %d x ssp %d x sp %d, fsdp %d x %d: output %.1e gradients "
               "%.1e norm %.1e\n",
               name, world->size, dp, d->ssp, d->sp, d->fsdp, world->size / d->fsdp, v, g, norm);
    t->runs++;
    if (o->model.num_heads % d->sp) t->shared++;
    t->worst_v = fmax(t->worst_v, v);
    t->worst_g = fmax(t->worst_g, g);
    t->worst_norm = fmax(t->worst_norm, norm);
    t->worst_loss = fmax(t->worst_loss, loss);
    struct outcome done = got;
    free_outcome(&done);
}

/* Every (S, U, fsdp) of this world; every `stride`-th of them. */
static void check_case(struct comm *world, const struct shape_case *c, const char *device,
                       enum dtype type, double tol, int stride, struct tally *t)
{
    struct fixture_opts o = options(c, device, type);
    const int W = world->size, P = c->ratio, global = c->large ? 2 : W;
    if (c->large && (!test_campaign() || W != 8 || UNDER_TSAN)) return;
    const int classes = c->full_model ? 1 : c->dims == 1 ? P : P * P;
    struct outcome want = {0};
    for (int S = 1; S <= W; S++)
        for (int U = 1; S * U <= W; U++)
            for (int F = 1; F <= W; F++) {
                if (W % (S * U) || W % F || classes % S || W / (S * U) > global) continue;
                const int number = t->seen++;
                if (c->large ? number % 4 != number / 4 % 4 : number % stride) continue;
                if (!want.v) want = run_alone(world, o, global);
                o.degrees = (struct mesh_degrees){S, U, F};
                const uint64_t mix = rng_hash((const char[]){'c', (char)('!' + number % 90),
                                                             (char)('!' + number / 90 % 90), 0});
                o.recompute = (enum recompute)(mix % 4);
                o.fsdp.prefetch = (int)(mix / 4 % 3);
                compare(world, &o, &want, global, tol, c->name, t);
            }
    free_outcome(&want);
}

static void check_all(struct comm *world, const char *device, enum dtype type, double tol,
                      int stride)
{
    struct tally t = {0};
    const double start = log_seconds();
    for (int i = 0; i < NUM_CASES; i++) check_case(world, &cases[i], device, type, tol, stride, &t);
    if (world->rank == 0)
        printf("    %s %s, %d ranks: %d combinations, worst: output %.1e, gradients %.1e, norm "
               "%.1e, loss %.1e (%.1f s)\n",
               device, dtype_name(type), world->size, t.runs, t.worst_v, t.worst_g, t.worst_norm,
               t.worst_loss, log_seconds() - start);
}

/* ---- counters --------------------------------------------------------------------------------*/
struct prediction {
    struct fixture *f;
    int rank, entries, exchanges;
};

static void equal_counts(void *arg, enum axis a, const struct comm_entry *want, int n)
{
    struct prediction *p = arg;
    const struct comm *c = p->f->mesh.axis[a];
    if (a == AXIS_WORLD) return; /* what the test itself sums */
    EXPECT(c->num_entries == n, "axis %s: %d entries, predicted %d", c->name, c->num_entries, n);
    for (int i = 0; i < n && i < c->num_entries; i++) {
        const struct comm_entry *got = &c->entry[i];
        EXPECT(got->kind == want[i].kind && strcmp(got->where, want[i].where) == 0 &&
                   got->count.calls == want[i].count.calls &&
                   got->count.bytes == want[i].count.bytes,
               "rank %d, axis %s: %s kind %d: %lld calls of %.0f bytes, predicted %s kind %d: %lld "
               "calls of %.0f bytes",
               p->rank, c->name, got->where, (int)got->kind, (long long)got->count.calls,
               got->count.bytes, want[i].where, (int)want[i].kind, (long long)want[i].count.calls,
               want[i].count.bytes);
        p->entries++;
        if (got->kind == COMM_EXCHANGE) p->exchanges++;
    }
}

/* The dry run of this rank predicts every collective of a real step, place by place. */
static void test_counts(struct comm *world)
{
    struct prediction p = {.rank = world->rank};
    for (int i = 0; i < NUM_CASES; i++)
        for (int S = 1; S <= world->size; S++) {
            const int classes =
                cases[i].dims == 1 ? cases[i].ratio : cases[i].ratio * cases[i].ratio;
            if (world->size % S || classes % S || cases[i].large || cases[i].full_model) continue;
            if (test_fast() && (i + S) % 3) continue;
            struct fixture_opts o = options(&cases[i], "ref", DT_F64);
            o.degrees = (struct mesh_degrees){S, world->size / S, S};
            o.recompute = (enum recompute)((i + S) % 4);
            o.batch = 2;
            struct fixture f;
            fixture_open(&f, world, &o);
            problem_fill_params(&f);
            struct problem in = problem_new(&o.model, 0, o.batch, o.t, o.h, o.w);
            for (int a = 0; a < AXIS_COUNT; a++) comm_reset_counts(f.mesh.axis[a]);
            struct step_io io = problem_io(&in, 1);
            io.backward = true;
            fixture_step(&f, &io);
            p.f = &f;
            struct dryrun_in d = fixture_dryrun(&o, world);
            d.on_comm = equal_counts;
            d.on_comm_arg = &p;
            struct dryrun_out out;
            dryrun(&d, &out);
            problem_free(&in);
            fixture_close(&f);
        }
    EXPECT(p.entries > (test_fast() ? 20 : 50) && p.exchanges > 10, "%d entries, %d exchanges",
           p.entries, p.exchanges);
    if (world->rank == 0)
        printf("    %d ranks: %d counts on rank 0, %d of them exchanges, equal to the dry run\n",
               world->size, p.entries, p.exchanges);
}

static int stride(void) { return test_campaign() ? 1 : test_fast() ? 23 : 3; }

static void test_f64(struct comm *world) { check_all(world, "ref", DT_F64, 1e-10, stride()); }

static bool cpu_has(enum dtype t)
{
    const bool there = dev_supports("cpu", t);
    if (UNDER_TSAN || !there)
        test_skip(there ? "the libraries of the cpu device are not instrumented" : "no cpu device");
    return there && !UNDER_TSAN;
}

static void test_f32(struct comm *world)
{
    if (!cpu_has(DT_F32)) return;
    check_all(world, "cpu", DT_F32, 1e-5, stride());
}

/* bf16, where ranks share the keys and values of a head. */
static void test_bf16(struct comm *world)
{
    static const int which[] = {1, 2, 5};
    if (!cpu_has(DT_BF16)) return;
    struct tally t = {0};
    for (int i = 0; i < 3; i++)
        check_case(world, &cases[which[i]], "cpu", DT_BF16, 1e-2, test_fast() ? 5 : 1, &t);
    EXPECT(t.shared > 0, "no layout shares heads");
    if (world->rank == 0)
        printf("    cpu bf16, %d ranks: %d combinations, %d share heads, worst: output %.1e, "
               "gradients %.1e, norm %.1e, loss %.1e\n",
               world->size, t.runs, t.shared, t.worst_v, t.worst_g, t.worst_norm, t.worst_loss);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "f64: any layout gives the gradients of one rank",
         .run = test_f64,
         .ranks = {2, 3, 4, 8},
         .flags = TEST_MPI},
        {.name = "f64: any layout gives the gradients of one rank, odd numbers of ranks",
         .run = test_f64,
         .ranks = {5, 6, 7},
         .flags = TEST_SLOW},
        {.name = "f32: any layout gives the gradients of one rank",
         .run = test_f32,
         .ranks = {2, 4, 6, 8},
         .flags = TEST_MPI},
        {.name = "bf16: any layout gives the gradients of one rank, up to rounding",
         .run = test_bf16,
         .ranks = {2, 4},
         .flags = TEST_MPI},
        {.name = "the dry run predicts every collective of a step, place by place",
         .run = test_counts,
         .ranks = {2, 4, 8},
         .flags = TEST_MPI},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
