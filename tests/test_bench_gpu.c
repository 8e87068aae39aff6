/* osp bench gpu as a user runs it, without a GPU: full size on the null device, where FLOPs and
 * bytes are counted, and tiny shapes on the CPU, alone and beside PyTorch. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/process.h"
#include "train/bench_gpu.h"

enum { SAID = 1 << 18 };

/* Exit code of "osp bench gpu REST"; what it prints on both streams goes to said [SAID]. */
static int bench(const char *rest, char *said)
{
    char *osp = process_program();
    char *cmd = io_path("%s bench gpu %s 2>&1 </dev/null", osp, rest);
    const int rc = test_command(cmd, said, SAID);
    free(cmd);
    free(osp);
    return rc;
}

static char *buffer(void)
{
    char *said = malloc(SAID);
    CHECK(said, "out of memory");
    return said;
}

/* The JSON lines among what was said. */
static json_t *lines_of(const char *said)
{
    json_t *all = json_array();
    for (const char *at = said; at && *at; at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL)
        if (*at == '{') {
            json_t *j = json_loads(at, JSON_DISABLE_EOF_CHECK, NULL);
            EXPECT(j, "no JSON: %.200s", at);
            if (j) json_array_append_new(all, j);
        }
    return all;
}

static const char *text(const json_t *j, const char *key)
{
    const char *t = json_string_value(json_object_get(j, key));
    return t ? t : "";
}

static double number(const json_t *j, const char *key)
{
    const json_t *x = json_object_get(j, key);
    return x ? json_number_value(x) : NAN;
}

/* Borrowed; NULL when the case was not measured on that side in that variant (NULL: any). */
static json_t *find(json_t *all, const char *name, const char *side, const char *variant)
{
    size_t i;
    json_t *j;
    json_array_foreach(all, i, j) if (!strcmp(text(j, "case"), name) &&
                                      !strcmp(text(j, "side"), side) &&
                                      (!variant || !strcmp(text(j, "variant"), variant))) return j;
    return NULL;
}

static bool near(double got, double want) { return fabs(got / want - 1) < 0.01; }

/* TFLOP worked out by hand from the formulas: linear 2 a product, attention 4 S S D, backward twice
 * and 2.5 times that. */
static const struct {
    const char *name;
    double flops, executed;
} counted[] = {
    {"gemm_5120x5120_y", 3.964, 3.964},
    {"gemm_13824x5120_dx", 10.702, 10.702},
    {"gemm_5120x13824_dw", 10.702, 10.702},
    {"attention_full_forward", 117.05, 117.05},
    {"attention_sparse_backward", 73.19, 73.19},
    {"14b_720p_full", 6523, 6523},
    {"14b_720p_sparse", 3715, 3715},
    {"14b_768p_full", 7291, 7291},
    {"14b_768p_sparse", 4095, 4095},
    {"1.3b_720p_full_step_recompute_all", 4281, 4281 + 1250},
    {"1.3b_720p_sparse_step_recompute_all", 2251, 2251 + 671},
    {"1.3b_720p_sparse_step_keep_attention", 2251, 2251 + 671 - 474},
    {"14b_720p_block_full_of_4", 137.05, 137.15},
    {"14b_720p_block_sparse_of_4", 60.24, 62.27},
    {"14b_480p_full", 1678, 1678},
    {"14b_480p_sparse", 1151, 1151},
    {"1.3b_480p_full_step_recompute_all", 950, 950 + 283},
    {"1.3b_480p_sparse_step_recompute_all", 568, 568 + 174},
};

static void counts(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    char *said = buffer();
    EXPECT(bench("device=null", said) == 0, "%s", said);
    json_t *all = lines_of(said);
    EXPECT(bench("device=null variant=short", said) == 0, "%s", said);
    json_t *brief = lines_of(said);
    EXPECT(json_array_size(all) == 24 && json_array_size(brief) == 6, "%zu and %zu cases",
           json_array_size(all), json_array_size(brief));
    json_array_extend(all, brief);
    for (size_t i = 0; i < sizeof counted / sizeof *counted; i++) {
        const json_t *j = find(all, counted[i].name, "plan", NULL);
        EXPECT(j, "%s is missing", counted[i].name);
        if (!j) continue;
        EXPECT(near(number(j, "flops"), 1e12 * counted[i].flops), "%s: %g FLOP", counted[i].name,
               number(j, "flops"));
        EXPECT(near(number(j, "executed"), 1e12 * counted[i].executed), "%s: %g executed",
               counted[i].name, number(j, "executed"));
    }
    /* 28.6 GB of weights and 5 to 9 tensors of 0.774 GB; 20 - 4 + 2 bytes a parameter */
    const double forward = number(find(all, "14b_720p_sparse", "plan", NULL), "bytes");
    EXPECT(forward > 28.6e9 + 5 * 0.774e9 && forward < 28.6e9 + 9 * 0.774e9, "%g bytes", forward);
    const double step =
        number(find(all, "1.3b_720p_sparse_step_recompute_all", "plan", NULL), "bytes");
    EXPECT(step > 18 * 1.419e9 + 30 * 0.232e9 && step < 18 * 1.419e9 + 75 * 0.232e9, "%g bytes",
           step);
    json_decref(all);
    json_decref(brief);
    free(said);
}

static void tiny(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    char *said = buffer();
    char *rest = io_path("device=cpu scale=tiny runs=3 out=%s/bench", test_dir());
    EXPECT(bench(rest, said) == 0, "%s", said);
    json_t *all = lines_of(said), *j;
    size_t i;
    EXPECT(json_array_size(all) == 24, "%zu lines", json_array_size(all));
    json_array_foreach(all, i, j)
    {
        const double s = number(j, "seconds");
        EXPECT(!strcmp(text(j, "side"), "osp") && number(j, "min") > 0 && s >= number(j, "min") &&
                   s <= number(j, "max") && number(j, "runs") == 3 && number(j, "bytes") > 0,
               "%s", text(j, "case"));
        EXPECT(!strcmp(text(j, "case"), "copy") ? number(j, "gb_s") > 0 : number(j, "tflops") > 0,
               "%s", text(j, "case"));
    }
    const json_t *sparse = find(all, "14b_720p_sparse", "osp", NULL);
    EXPECT(sparse && number(sparse, "products_s") > 0 && number(sparse, "attention_s") > 0,
           "no shares");
    EXPECT(strstr(said, "| 8 GPUs 720P sparse, 100 forwards, s | not measured here: one GPU |"),
           "%s", said);
    EXPECT(strstr(said, "(padded torch) | not measured |"), "%s", said);
    EXPECT(!strstr(said, "| yes |") && !strstr(said, "**no**"), "tiny shapes on a CPU are judged");
    char *table = io_path("%s/bench/bench_gpu.md", test_dir()),
         *log = io_path("%s/bench/gpu-log.md", test_dir());
    struct err e = {0};
    char *a = io_read_file(table, NULL, &e), *b = io_read_file(log, NULL, &e);
    EXPECT(!e.code && strstr(a, "| ratio | value |") && strstr(b, "append to docs/gpu-log.md"),
           "%s", e.msg);
    EXPECT(a && strstr(said, a), "the table on stdout is another");
    free(a);
    free(b);
    free(table);
    free(log);
    json_decref(all);
    EXPECT(bench("device=ref dtype=fp32 scale=tiny part=BDE runs=1", said) == 0, "%s", said);
    EXPECT(bench("device=ref dtype=fp32 scale=tiny variant=short runs=1", said) == 0, "%s", said);
    double ratio = 0;
    const char *row = strstr(said, "| full / sparse at 480P (1.46 in FLOPs) | ");
    EXPECT(row && sscanf(row + 42, "%lf | - | - | - | - |", &ratio) == 1 && ratio > 0.3, "%s",
           said);
    EXPECT(!strstr(said, "720P"), "rows that variant=short does not measure: %s", said);
    free(rest);
    free(said);
}

static void budget(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    char *said = buffer();
    /* a product of the judge fills 50 ms a run: the first one alone takes longer than the budget */
    EXPECT(bench("device=ref dtype=fp32 scale=tiny part=A runs=30 budget_s=1", said) == 0, "%s",
           said);
    json_t *all = lines_of(said);
    EXPECT(find(all, "copy", "osp", NULL) && json_array_size(all) < 5, "%zu measured",
           json_array_size(all));
    EXPECT(strstr(said, "attention_sparse_backward skipped: needs about") &&
               strstr(said, "of budget_s=1 are left"),
           "%s", said);
    json_decref(all);
    free(said);
}

static void mistakes(struct comm *world)
{
    (void)world;
    static const struct {
        const char *rest, *text;
        int code;
    } bad[] = {
        {"part=F", "cannot use \"part=F\"", RC_USAGE},
        {"variant=long", "cannot use \"variant=long\"", RC_USAGE},
        {"variant=short part=A", "variant=short has the parts B and D", RC_USAGE},
        {"dtype=fp64", "cannot use \"dtype=fp64\"", RC_USAGE},
        {"runs=1000", "cannot use \"runs=1000\"", RC_USAGE},
        {"budget_s=0", "cannot use \"budget_s=0\"", RC_USAGE},
        {"device=cpu compare=1", "compare=1 needs torch=PYTHON", RC_USAGE},
        {"device=null torch=python3", "device=null computes nothing", RC_USAGE},
        {"device=abacus", "abacus", RC_CONFIG},
        {"device=cpu scale=tiny torch=/bin/true script=/nowhere/x.py",
         "/nowhere/x.py is not there; give script=PATH", RC_NOINPUT},
        /* our side is measured, and the exit code says that the other was not */
        {"device=cpu scale=tiny part=E runs=1 torch=/bin/false", "the torch side has ended",
         RC_SOFTWARE},
        {"device=cpu scale=tiny part=E runs=1 torch=/nowhere/python", "torch=/nowhere/python: No",
         RC_SOFTWARE},
    };
    if (!process_ready()) return;
    char *said = buffer();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const int code = bench(bad[i].rest, said);
        EXPECT(code == bad[i].code && strstr(said, bad[i].text), "%s: %d %s", bad[i].rest, code,
               said);
    }
    free(said);
}

static const char *python(void)
{
    const char *py = process_python("torch; torch.nn.attention");
    if (!py)
        test_skip("no python with torch (python3 -m venv build/venv && build/venv/bin/pip install "
                  "torch==2.13.0)");
    return py;
}

/* The comparison is fair: the same weights, inputs, outputs and gradients, to f32. */
static void torch_agrees(struct comm *world)
{
    (void)world;
    const char *py = process_ready() ? python() : NULL;
    if (!py) return;
    char *said = buffer(),
         *rest = io_path("device=cpu scale=tiny dtype=fp32 runs=2 threads=1 torch=%s", py);
    EXPECT(bench(rest, said) == 0, "%s", said);
    json_t *all = lines_of(said), *j;
    size_t i, compared = 0;
    json_array_foreach(all, i, j)
    {
        EXPECT(number(j, "error") <= 1e-5, "%s %s: %g", text(j, "case"), text(j, "variant"),
               number(j, "error"));
        compared += !strcmp(text(j, "side"), "torch");
        EXPECT(number(j, "seconds") > 0 && number(j, "runs") == 2, "%s", text(j, "case"));
    }
    EXPECT(compared == 25 && json_array_size(all) == 49, "%zu compared, %zu lines", compared,
           json_array_size(all));
    static const char *const sparse[] = {"14b_720p_sparse", "1.3b_720p_sparse_step_recompute_all"};
    for (int k = 0; k < 2; k++)
        EXPECT(find(all, sparse[k], "torch", "padded") && find(all, sparse[k], "torch", "free"),
               "%s", sparse[k]);
    EXPECT(!strstr(said, "(padded torch) | not measured |"), "%s", said);
    json_decref(all);
    free(rest);
    free(said);
}

/* The same program, but one of its functions is wrong. */
static void run_lie(const char *py, const char *lie, const char *part, const char *said_as)
{
    char *said = buffer(), *script = io_path("%s/lie.py", test_dir());
    char *body = io_path("import os, sys\n"
                         "sys.path.insert(0, os.path.join(os.getcwd(), 'scripts'))\n"
                         "import bench_torch\n%s\nsys.exit(bench_torch.main())\n",
                         lie);
    struct err e = {0};
    io_write_file(script, body, strlen(body), &e);
    EXPECT(!e.code, "%s", e.msg);
    char *rest =
        io_path("device=cpu scale=tiny part=%s runs=1 torch=%s script=%s", part, py, script);
    EXPECT(bench(rest, said) == RC_SOFTWARE, "%s", said);
    EXPECT(strstr(said, said_as) && strstr(said, "(padded torch) | not measured |"), "%s", said);
    free(rest);
    free(body);
    free(script);
    free(said);
}

static void torch_lies(struct comm *world)
{
    (void)world;
    const char *py = process_ready() ? python() : NULL;
    if (!py) return;
    run_lie(py, "bench_torch.model.rope = lambda x, place: x", "B",
            "ratios of those cases are left out");
    /* fast, but never compared */
    run_lie(py,
            "def broken(*_):\n    raise ValueError('no comparison today')\n"
            "bench_torch.Bench.check = broken",
            "B", "no comparison today");
    run_lie(py, "bench_torch.Bench.run = lambda self, handle: os._exit(3)", "E",
            "the torch side has ended");
    run_lie(py, "", "E sdpa=abacus", "there are default, cudnn, flash, fa3");
}

/* ---- the clock, on a device whose work is done only when somebody waits for it ----------------
 */

enum { NAP_MS = 10 };
static int pending;

static void late_gemm(struct dev *d, const struct gemm_args *a)
{
    (void)d;
    (void)a;
    pending++;
}
static void late_sync(struct dev *d)
{
    (void)d;
    if (pending) process_nap(1e-3 * NAP_MS * pending);
    pending = 0;
}

static void clock_waits(struct comm *world)
{
    (void)world;
    struct dev *dev = dev_open("ref", DT_F32, 1);
    struct dev_ops late = *dev->ops;
    const struct dev_ops *real = dev->ops;
    struct gpu_case c = {.part = 'A', .kind = GPU_GEMM, .rows = 3, .out = 4, .in = 5};
    struct gpu_work w = gpu_open(dev, &c, (struct gpu_arenas){0});
    late.gemm = late_gemm;
    late.sync = late_sync;
    dev->ops = &late;
    pending = 3; /* work of somebody before does not count */
    const double one = gpu_seconds(&w, 1), many = gpu_seconds(&w, 10);
    EXPECT(one > 0.9e-3 * NAP_MS && one < 1.9e-3 * NAP_MS, "one run: %g s", one);
    EXPECT(many > 0.9e-3 * NAP_MS && many < 1.9e-3 * NAP_MS, "of ten: %g s", many);
    const struct gpu_shares s = gpu_profile(&w);
    EXPECT(s.products > 0.9e-3 * NAP_MS && s.attention == 0 && s.rest < 0.9e-3 * NAP_MS, "%g %g %g",
           s.products, s.attention, s.rest);
    EXPECT(dev->ops == &late, "the profile left its table behind");
    dev->ops = real;
    gpu_close(&w);
    dev_close(dev);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "FLOPs and bytes of the full size are those worked out by hand", .run = counts},
        {.name = "tiny shapes are measured on the CPU and the judge", .run = tiny},
        {.name = "what does not fit into the budget is skipped and named",
         .run = budget,
         .flags = TEST_SLOW},
        {.name = "mistakes are named", .run = mistakes},
        {.name = "the clock waits for the device", .run = clock_waits},
        {.name = "PyTorch computes the same outputs and gradients",
         .run = torch_agrees,
         .flags = TEST_SLOW},
        {.name = "a wrong other side leaves no ratio", .run = torch_lies, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
