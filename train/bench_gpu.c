#include "train/bench_gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "train/args.h"
#include "train/bench.h"
#include "train/plan.h"

const char bench_gpu_usage[] =
    "osp bench gpu [part=all|A|BD|...] [variant=full|short] [device=cuda] [dtype=bf16|fp32]\n"
    "              [torch=PYTHON] [sdpa=cudnn,flash] [compare=1] [runs=N] [budget_s=600|180]\n"
    "              [out=FOLDER] [scale=full|tiny] [threads=N] [script=FILE] [cases=1]\n"
    "Speed of one device, and with torch= beside PyTorch (scripts/bench_torch.py, or script=), "
    "both\n"
    "in turn, after their outputs were compared on equal weights and inputs (compare=1: only "
    "that).\n"
    "Parts: A copy, matrix products, attention; B 14B forward 720P; C the same 768x1280; D 1.3B\n"
    "training step 720P; E one 14B block at the load of one rank of 4. variant=short (3 minutes):\n"
    "14B forward and 1.3B step at 480P. device=null: FLOPs and bytes, counted, of every case.\n"
    "sdpa: attention of PyTorch in B to E; A tries all it has. cases=1: the list of cases.\n"
    "A case that does not fit into what is left of budget_s is skipped, and named.\n"
    "\n"
    "A JSON line per measurement:\n"
    "  part, case, side (osp, torch, plan), variant and sdpa (of torch)\n"
    "  seconds (median), min, max, runs\n"
    "  flops: forward, or forward + backward without recompute with the backward pass of "
    "attention\n"
    "    as 2.5 forward passes, of a block its share of 4 ranks; executed: with recompute; both\n"
    "    counted by the dry run; flops_are: their convention. tflops = flops / seconds, mfu = "
    "tflops / 989\n"
    "  gb_s: of a copy, read and written\n"
    "  bytes: peak on the device\n"
    "  error: of outputs and gradients against the other side, by norm, on the same widths with "
    "few\n"
    "    blocks and a small grid\n"
    "  products_s, attention_s, elementwise: of a sparse forward pass, by one more run with the\n"
    "    device idle around each product; elementwise is what they leave of the median\n"
    "Then the table of ratios, also in FOLDER/bench_gpu.md; FOLDER/gpu-log.md is to be appended "
    "to\n"
    "docs/gpu-log.md. Exit code 70: outputs differ by more than 2e-2 (fp32: 1e-5), or the torch "
    "side\n"
    "failed.";

static void put_text(char *to, size_t size, const char *value, bool *known)
{
    const int n = snprintf(to, size, "%s", value);
    *known = n > 0 && (size_t)n < size;
}

static bool one_of(const char *value, const char *const *list)
{
    for (; *list; list++)
        if (strcmp(value, *list) == 0) return true;
    return false;
}

static bool put_number(int64_t *to, const char *value)
{
    char *end;
    *to = strtoll(value, &end, 10);
    return *value && !*end && *to > 0;
}

static bool set_option(struct gpu_options *o, const char *key, const char *v)
{
    bool known = false;
    if (!strcmp(key, "device")) put_text(o->device, sizeof o->device, v, &known);
    if (!strcmp(key, "sdpa")) put_text(o->sdpa, sizeof o->sdpa, v, &known);
    if (!strcmp(key, "dtype")) {
        put_text(o->dtype, sizeof o->dtype, v, &known);
        known = known && one_of(v, (const char *const[]){"bf16", "fp32", NULL});
    }
    if (!strcmp(key, "variant")) {
        put_text(o->variant, sizeof o->variant, v, &known);
        known = known && one_of(v, (const char *const[]){"full", "short", NULL});
    }
    if (!strcmp(key, "scale")) {
        put_text(o->scale, sizeof o->scale, v, &known);
        known = known && one_of(v, (const char *const[]){"full", "tiny", NULL});
    }
    if (!strcmp(key, "part")) {
        put_text(o->part, sizeof o->part, v, &known);
        known = known && (!strcmp(v, "all") || strspn(v, "ABCDE") == strlen(v));
    }
    if (!strcmp(key, "budget_s")) known = put_number(&o->budget_s, v);
    if (!strcmp(key, "runs")) known = put_number(&o->runs, v) && o->runs <= GPU_MAX_RUNS;
    if (!strcmp(key, "threads")) known = put_number(&o->threads, v);
    if (!strcmp(key, "cases")) known = o->cases = !strcmp(v, "1");
    if (!strcmp(key, "compare")) known = o->compare = !strcmp(v, "1");
    if (!strcmp(key, "torch")) o->torch = v, known = *v;
    if (!strcmp(key, "script")) o->script = v, known = *v;
    if (!strcmp(key, "out")) o->out = v, known = *v;
    return known;
}

static struct gpu_options parse(const struct args *a)
{
    struct gpu_options o = {
        .device = "cuda", .dtype = "bf16", .part = "all", .variant = "full", .scale = "full"};
    for (int i = 0; i < a->num_sets; i++) {
        const char *v = strchr(a->sets[i], '=');
        char key[32] = "";
        if (v - a->sets[i] < 32) memcpy(key, a->sets[i], (size_t)(v - a->sets[i]));
        if (!set_option(&o, key, v + 1))
            err_stop(RC_USAGE, "bench gpu: cannot use \"%s\"\n%s", a->sets[i], bench_gpu_usage);
    }
    if (!o.budget_s) o.budget_s = strcmp(o.variant, "short") == 0 ? 180 : 600;
    return o;
}

static enum dtype compute_of(const struct gpu_options *o)
{
    return strcmp(o->dtype, "bf16") == 0 ? DT_BF16 : DT_F32;
}

static void number(json_t *j, const char *key, double v)
{
    json_object_set_new(j, key, json_real(v));
}

json_t *gpu_result_json(const struct gpu_result *r)
{
    const struct gpu_case *c = r->c;
    json_t *j = json_pack("{s:s, s:s%, s:s, s:s}", "bench", "gpu", "part", &c->part, (size_t)1,
                          "case", c->name, "side", r->side);
    CHECK(j, "out of memory");
    if (*r->variant) json_object_set_new(j, "variant", json_string(r->variant));
    if (*r->sdpa) json_object_set_new(j, "sdpa", json_string(r->sdpa));
    if (r->runs) {
        number(j, "seconds", r->median);
        number(j, "min", r->min);
        number(j, "max", r->max);
        json_object_set_new(j, "runs", json_integer(r->runs));
    }
    if (c->kind == GPU_COPY && r->runs) number(j, "gb_s", 2e-9 * (double)c->bytes / r->median);
    if (c->kind != GPU_COPY) {
        number(j, "flops", c->flops);
        number(j, "executed", c->executed);
        if (c->kind == GPU_STEP || c->kind == GPU_BLOCK)
            json_object_set_new(j, "flops_are", json_string("3 products + 3.5 attention"));
        if (r->runs) {
            number(j, "tflops", 1e-12 * c->flops / r->median);
            number(j, "mfu", 1e-12 * c->flops / r->median / plan_chip.peak_tflops);
        }
    }
    if (r->bytes >= 0) number(j, "bytes", r->bytes);
    if (r->error >= 0) number(j, "error", r->error);
    if (r->shares.products > 0) {
        number(j, "products_s", r->shares.products);
        number(j, "attention_s", r->shares.attention);
        number(j, "elementwise", 1 - (r->shares.products + r->shares.attention) / r->median);
    }
    return j;
}

void gpu_print(json_t *j)
{
    char *text = json_dumps(j, JSON_REAL_PRECISION(6));
    CHECK(text, "a line that is no JSON");
    printf("%s\n", text);
    free(text);
    json_decref(j);
}

static int list_cases(const struct gpu_options *o, struct gpu_case *c, int n)
{
    for (int i = 0; i < n; i++) {
        gpu_plan(&c[i], compute_of(o));
        if (o->cases) {
            struct gpu_case k = gpu_check_case(&c[i]);
            json_t *j = gpu_case_json(&c[i], o->dtype);
            json_object_set_new(j, "check", gpu_case_json(&k, o->dtype));
            gpu_print(j);
        } else {
            const struct gpu_result r = {
                .c = &c[i], .side = "plan", .bytes = c[i].plan_bytes, .error = -1};
            gpu_print(gpu_result_json(&r));
        }
    }
    return RC_OK;
}

/* First line of what a command prints; "" when it prints nothing. */
static void first_line(char *out, size_t size, const char *command)
{
    FILE *p = popen(command, "r");
    *out = 0;
    if (p && fgets(out, (int)size, p)) out[strcspn(out, "\n")] = 0;
    if (p) pclose(p);
}

static void describe(struct gpu_report *r, struct dev *dev, int argc, char **argv)
{
    dev_describe(dev, r->about, sizeof r->about);
    first_line(r->commit, sizeof r->commit, "git rev-parse --short HEAD 2>/dev/null");
    if (!*r->commit) snprintf(r->commit, sizeof r->commit, "unknown");
    size_t n = (size_t)snprintf(r->command, sizeof r->command, "osp bench");
    for (int i = 0; i < argc && n < sizeof r->command; i++)
        n += (size_t)snprintf(r->command + n, sizeof r->command - n, " %s", argv[i]);
}

static void save(const struct gpu_report *r, const char *name,
                 void (*print)(FILE *, const struct gpu_report *))
{
    char *path = io_path("%s/%s", r->o->out, name), *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    CHECK(f, "out of memory");
    print(f, r);
    fclose(f);
    struct err e = {0};
    io_write_file(path, text, n, &e);
    err_raise(&e);
    free(text);
    free(path);
}

int bench_gpu(const struct args *a, int argc, char **argv)
{
    const struct gpu_options o = parse(a);
    struct gpu_report *r = calloc(1, sizeof *r);
    struct gpu_case *list = calloc(GPU_MAX_CASES, sizeof *list);
    CHECK(r && list, "out of memory");
    const int n = gpu_cases(&o, list);
    int rc = RC_OK;
    if (o.torch && !strcmp(o.device, "null"))
        err_stop(RC_USAGE,
                 "bench gpu: device=null computes nothing that torch=%s could be "
                 "compared with; leave one of them out",
                 o.torch);
    if (o.compare && !o.torch)
        err_stop(RC_USAGE, "bench gpu: compare=1 needs torch=PYTHON to compare with");
    if (n == 0)
        err_stop(RC_USAGE, "bench gpu: variant=short has the parts B and D\n%s", bench_gpu_usage);
    if (o.cases || !strcmp(o.device, "null")) {
        rc = list_cases(&o, list, n);
    } else {
        struct err e = {0};
        if (o.out) io_mkdir(o.out, &e);
        err_raise(&e);
        struct dev *dev = dev_open(o.device, compute_of(&o), (int)o.threads);
        *r = (struct gpu_report){.o = &o,
                                 .cases = list,
                                 .num_cases = n,
                                 .limit = compute_of(&o) == DT_F32 ? 1e-5 : 2e-2};
        describe(r, dev, argc, argv);
        rc = gpu_measure(r, dev, list);
        if (!o.compare) gpu_table(stdout, r);
        if (!o.compare && o.out) save(r, "bench_gpu.md", gpu_table);
        if (!o.compare && o.out) save(r, "gpu-log.md", gpu_log_text);
        dev_close(dev);
    }
    free(list);
    free(r);
    return rc;
}
