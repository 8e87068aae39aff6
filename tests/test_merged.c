/* Adapters folded into their base against adapters beside it, where the products are in bf16
 * (docs/spec/rl.md 2.7): the same function, rounded at other places. test_adapter.c has f32. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/problem.h"
#include "train/adapter.h"
#include "train/merge.h"

static struct fixture_opts options(const char *device, enum dtype type,
                                   const struct lora_config *lora, struct mesh_degrees degrees)
{
    struct fixture_opts o = {.device = device,
                             .compute = type,
                             .model = fixture_model(),
                             .batch = 1,
                             .t = 2,
                             .h = 4,
                             .w = 6,
                             .degrees = degrees,
                             .fsdp = {.optimizer = true},
                             .lora = lora};
    o.model.num_full_blocks = 2;
    return o;
}

static struct lora_config adapters(void)
{
    static const char *const every[] = {"*", NULL};
    return lora_make_config(4, 8, every);
}

static char *folder(const char *name) { return io_path("%s/%s", test_dir(), name); }

/* test_dir()/base, /adapter on it, and /merged of both, in f32, by one rank. */
static void make_checkpoints(void)
{
    struct comm *alone = comm_self(NULL);
    char *base = folder("base"), *dir = folder("adapter"), *out = folder("merged");
    const struct lora_config cfg = adapters();
    struct fixture f;
    struct err e = {0};
    struct fixture_opts o = options("ref", DT_F32, NULL, (struct mesh_degrees){1, 1, 1});
    fixture_open(&f, alone, &o);
    problem_fill_params(&f);
    struct ckpt_snapshot *s = ckpt_snapshot(f.fsdp, &f.mesh, 1u << STATE_MASTER);
    json_t *meta = json_pack("{s:i, s:s}", "step", 1, "config", "a: 1\n");
    ckpt_write(alone, &(struct ckpt_place){.dir = base}, s, meta, &e);
    err_raise(&e);
    ckpt_snapshot_free(s);
    fixture_close(&f);
    o.lora = &cfg;
    fixture_open(&f, alone, &o);
    problem_fill_adapters(&f);
    struct ckpt *c = ckpt_open(alone, base, true);
    struct adapter_base b = adapter_base_of(c, STATE_MASTER);
    adapter_save(f.lora, &cfg, &f.mesh, &(struct ckpt_place){.dir = dir}, &b,
                 &(struct adapter_state){.step = 1}, 1u << STATE_LORA, meta, &e);
    err_raise(&e);
    merge_adapter(&(struct merge_job){.base = base, .adapter = dir, .out = out});
    adapter_base_free(&b);
    ckpt_close(c);
    fixture_close(&f);
    json_decref(meta);
    comm_free(alone);
    char *texts[] = {base, dir, out};
    for (int i = 0; i < 3; i++) free(texts[i]);
}

/* The whole output, on every rank, of a model from a folder. */
static double *output(struct comm *world, const struct fixture_opts *o, const char *from,
                      int64_t *n)
{
    struct fixture f;
    char *path = folder(from), *dir = folder("adapter");
    fixture_open(&f, world, o);
    struct ckpt *c = ckpt_open(world, path, true);
    ckpt_load(c, f.fsdp, STATE_MASTER, STATE_MASTER);
    ckpt_close(c);
    if (f.lora) {
        c = ckpt_open(world, dir, true);
        adapter_load(c, f.lora, STATE_LORA, STATE_LORA);
        ckpt_close(c);
    }
    struct problem p = problem_new(&o->model, 0, 1, o->t, o->h, o->w);
    struct step_io io = problem_io(&p, 1);
    double *v = calloc((size_t)p.out_n, sizeof *v);
    io.v = v;
    fixture_step(&f, &io);
    comm_sum_f64(f.mesh.axis[AXIS_SEQ], v, (int)p.out_n, "output");
    *n = p.out_n;
    problem_free(&p);
    fixture_close(&f);
    free(dir);
    free(path);
    return v;
}

/* A rounding to bf16 is 2^-9 / sqrt(3) = 1.1e-3 of a value in the mean square; along the way
 * through four blocks, ten products each, they add up as squares: 1.1e-3 * sqrt(40) = 7e-3 of the
 * output. Beside and folded are rounded at different places: sqrt(2) of that. */
static const double one_path = 8e-3, two_paths = 1e-2;

static void compare(struct comm *world, struct mesh_degrees degrees)
{
    const struct lora_config cfg = adapters();
    const struct fixture_opts beside = options("cpu", DT_BF16, &cfg, degrees),
                              folded = options("cpu", DT_BF16, NULL, degrees),
                              exact = options("ref", DT_F32, NULL, degrees);
    int64_t n;
    double *a = output(world, &beside, "base", &n), *b = output(world, &folded, "merged", &n),
           *base = output(world, &folded, "base", &n), *want = output(world, &exact, "merged", &n);
    const double gap = norm_error(a, b, n), ea = norm_error(a, want, n),
                 eb = norm_error(b, want, n), effect = norm_error(base, want, n);
    if (world->rank == 0 && test_verbose())
        printf("    ssp %d x sp %d, fsdp %d: beside to folded %.2e; to f32: beside %.2e, folded "
               "%.2e, the base %.2f\n",
               degrees.ssp, degrees.sp, degrees.fsdp, gap, ea, eb, effect);
    EXPECT(gap < two_paths && ea < one_path && eb < one_path,
           "ssp %d x sp %d, fsdp %d: beside to folded %.2e; to f32: beside %.2e, folded %.2e",
           degrees.ssp, degrees.sp, degrees.fsdp, gap, ea, eb);
    EXPECT(effect > 0.5, "the adapters change %.2g of the output only", effect);
    double *all[] = {a, b, base, want};
    for (int i = 0; i < 4; i++) free(all[i]);
}

static void test_bf16(struct comm *world)
{
    static const struct mesh_degrees layout[] = {{1, 1, 2}, {2, 1, 2}, {1, 2, 1}};
    if (!dev_supports("cpu", DT_BF16)) {
        test_skip("no cpu device in bf16");
        return;
    }
    char *merged = folder("merged");
    if (world->rank == 0 && !io_exists(merged)) make_checkpoints();
    comm_barrier(world, "checkpoints");
    free(merged);
    if (world->size == 1) compare(world, (struct mesh_degrees){1, 1, 1});
    for (int i = 0; i < 3 && world->size == 2; i++) compare(world, layout[i]);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {{.name = "bf16: adapters folded in give the output of adapters "
                                          "beside",
                                  .run = test_bf16,
                                  .ranks = {1, 2}}};
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
