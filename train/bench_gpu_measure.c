/* The loop of `osp bench gpu`: a case at a time, outputs compared first, then both sides in turn.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "train/bench_gpu.h"

struct side { /* one variant of PyTorch's */
    char variant[16], sdpa[16];
    bool timed; /* false: compared only */
    int handle;
    double error, bytes, seconds[GPU_MAX_RUNS];
    int runs;
};
struct measuring {
    struct gpu_report *r;
    struct dev *dev;
    struct gpu_torch *torch;
    struct gpu_case *cases;
    char backends[4][16]; /* of PyTorch's attention */
    int num_backends;
    double started, rate[2], opening; /* FLOP/s of the two sides; longest start of a torch case */
    bool failed;
};

static double left(const struct measuring *m)
{
    return m->started + (double)m->r->o->budget_s - log_seconds();
}

static const char *dtype(const struct measuring *m) { return m->r->o->dtype; }

/* An error of one request is noted and the side lives on; one that is dead or mute is given up. */
static json_t *ask(struct measuring *m, struct gpu_case *c, json_t *request)
{
    struct err e = {0};
    const double most = left(m) > 0 ? left(m) + 60 : 60;
    json_t *j = gpu_torch_ask(m->torch, request, most, &e);
    if (j) return j;
    m->failed = true;
    log_warn("%s: %s", c ? c->name : "start", e.msg);
    if (c) snprintf(m->r->missing[c - m->cases], sizeof m->r->missing[0], "%.150s", e.msg);
    if (e.code != RC_SOFTWARE) {
        gpu_torch_close(m->torch);
        m->torch = NULL;
    }
    return NULL;
}

static void hello(struct measuring *m)
{
    json_t *j = ask(m, NULL, json_pack("{s:s}", "cmd", "hello"));
    if (!j) return;
    snprintf(m->r->torch_about, sizeof m->r->torch_about, "%s",
             json_string_value(json_object_get(j, "about")));
    size_t i;
    json_t *name;
    json_array_foreach(json_object_get(j, "sdpa"), i, name) if (m->num_backends < 4)
        snprintf(m->backends[m->num_backends++], 16, "%s", json_string_value(name));
    json_decref(j);
}

static void add_side(struct side *s, int *n, const char *variant, const char *sdpa, bool timed)
{
    CHECK(*n < GPU_MAX_SIDES - 1, "too many variants");
    s[*n] = (struct side){.timed = timed, .handle = -1, .error = -1, .bytes = -1};
    snprintf(s[*n].variant, sizeof s->variant, "%s", variant);
    snprintf(s[(*n)++].sdpa, sizeof s->sdpa, "%s", sdpa);
}

/* Which forms of PyTorch a case meets. The padded one is the paper's; that without padding, for
 * honesty, where it is other work: not on a grid that needs no padding. PyTorch always recomputes
 * whole blocks: its step is timed beside one of ours with another policy only where the table has
 * that ratio. */
static int sides_of(const struct measuring *m, const struct gpu_case *c, struct side *s)
{
    int n = 0;
    const bool sparse = gpu_sparse(c), kept = c->kind == GPU_STEP && c->policy != RECOMPUTE_ALL;
    const bool brief = strcmp(m->r->o->variant, "short") == 0;
    if (!m->torch) return 0;
    if (c->kind == GPU_COPY || c->kind == GPU_GEMM) add_side(s, &n, "", "", true);
    for (int k = 0; k < m->num_backends && c->kind == GPU_ATTENTION; k++)
        add_side(s, &n, "", m->backends[k], true);
    char list[64];
    snprintf(list, sizeof list, "%s", *m->r->o->sdpa ? m->r->o->sdpa : m->backends[0]);
    for (char *save, *b = strtok_r(list, ",", &save); b && gpu_has_model(c);
         b = strtok_r(NULL, ",", &save)) {
        const bool block = c->kind == GPU_BLOCK;
        if (!sparse || !block) add_side(s, &n, sparse ? "padded" : "full", b, sparse || !kept);
        if (sparse && (block || (c->h % 4 && !kept && !brief))) add_side(s, &n, "free", b, true);
    }
    return n;
}

/* Same weights, same inputs, the case cut down: how far the results are apart. */
static void compare(struct measuring *m, struct gpu_case *c, struct side *s, int n)
{
    if (!n) return;
    struct err e = {0};
    char *folder = m->r->o->out
                       ? io_path("%s/check", m->r->o->out)
                       : io_path("%s/osp-bench-%d", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp",
                                 (int)getpid());
    io_mkdir(folder, &e);
    err_raise(&e);
    struct gpu_case k = gpu_check_case(c);
    const struct gpu_arenas arenas = gpu_plan(&k, m->dev->compute);
    struct gpu_work w = gpu_open(m->dev, &k, arenas);
    gpu_ready(&w);
    gpu_run(&w);
    m->dev->ops->sync(m->dev);
    gpu_dump(&w, folder);
    gpu_close(&w);
    for (int i = 0; i < n && m->torch; i++) {
        json_t *j = ask(m, c,
                        json_pack("{s:s, s:o, s:s, s:s, s:s}", "cmd", "check", "case",
                                  gpu_case_json(&k, dtype(m)), "variant", s[i].variant, "sdpa",
                                  s[i].sdpa, "folder", folder));
        if (!j) continue;
        s[i].error = json_number_value(json_object_get(j, "error"));
        const bool wrong = !(s[i].error <= m->r->limit);
        if (wrong || m->r->o->compare)
            log_line(wrong ? LOG_WARN : LOG_INFO, "%s %s %s: outputs differ by %.2e%s (%s)",
                     c->name, s[i].variant, s[i].sdpa, s[i].error, wrong ? ", too much" : "",
                     json_string_value(json_object_get(j, "worst")));
        m->r->wrong |= wrong;
        json_decref(j);
    }
    io_remove_tree(folder, &e);
    err_raise(&e);
    free(folder);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct gpu_result *add_result(struct measuring *m, const struct gpu_case *c,
                                     const char *side, double *seconds, int runs)
{
    struct gpu_report *r = m->r;
    struct gpu_result *x = &r->result[r->num_results++];
    *x = (struct gpu_result){.c = c, .runs = runs, .bytes = -1, .error = -1};
    snprintf(x->side, sizeof x->side, "%s", side);
    qsort(seconds, (size_t)runs, sizeof *seconds, by_value);
    x->min = seconds[0];
    x->max = seconds[runs - 1];
    x->median = (seconds[(runs - 1) / 2] + seconds[runs / 2]) / 2;
    return x;
}

static void open_torch(struct measuring *m, struct gpu_case *c, struct side *s, int n)
{
    for (int i = 0; i < n && m->torch; i++) {
        if (!s[i].timed) continue;
        const double t0 = log_seconds();
        json_t *j =
            ask(m, c,
                json_pack("{s:s, s:o, s:s, s:s}", "cmd", "open", "case", gpu_case_json(c, dtype(m)),
                          "variant", s[i].variant, "sdpa", s[i].sdpa));
        if (!j) continue;
        s[i].handle = (int)json_integer_value(json_object_get(j, "handle"));
        const double took = log_seconds() - t0;
        if (took > m->opening) m->opening = took;
        json_decref(j);
    }
}

static void run_torch(struct measuring *m, struct gpu_case *c, struct side *s)
{
    if (!m->torch || s->handle < 0) return;
    json_t *j = ask(m, c, json_pack("{s:s, s:i}", "cmd", "run", "handle", s->handle));
    if (!j) {
        s->handle = -1;
        return;
    }
    s->seconds[s->runs++] = json_number_value(json_object_get(j, "seconds"));
    s->bytes = json_number_value(json_object_get(j, "bytes"));
    json_decref(j);
}

static void finish_torch(struct measuring *m, struct gpu_case *c, struct side *s, int n)
{
    for (int i = 0; i < n; i++) {
        if (!s[i].runs) continue;
        struct gpu_result *x = add_result(m, c, "torch", s[i].seconds, s[i].runs);
        snprintf(x->variant, sizeof x->variant, "%s", s[i].variant);
        snprintf(x->sdpa, sizeof x->sdpa, "%s", s[i].sdpa);
        x->bytes = s[i].bytes;
        x->error = s[i].error;
        if (c->executed > 0) m->rate[1] = c->executed / x->median;
        gpu_print(gpu_result_json(x));
    }
    json_t *j = m->torch ? ask(m, c, json_pack("{s:s}", "cmd", "close")) : NULL;
    json_decref(j);
}

static void print_comparison(const struct gpu_case *c, const struct side *s, int n)
{
    for (int i = 0; i < n; i++) {
        struct gpu_result x = {.c = c, .side = "torch", .bytes = -1, .error = s[i].error};
        snprintf(x.variant, sizeof x.variant, "%s", s[i].variant);
        snprintf(x.sdpa, sizeof x.sdpa, "%s", s[i].sdpa);
        gpu_print(gpu_result_json(&x));
    }
}

static void measure(struct measuring *m, struct gpu_case *c, struct gpu_arenas arenas)
{
    struct side *s = calloc(GPU_MAX_SIDES, sizeof *s);
    CHECK(s, "out of memory");
    const int n = sides_of(m, c, s);
    compare(m, c, s, n);
    if (m->r->o->compare) {
        print_comparison(c, s, n);
        free(s);
        return;
    }
    const size_t before = dev_free_bytes(m->dev);
    struct gpu_work w = gpu_open(m->dev, c, arenas);
    for (int i = 0; i < c->warm; i++) gpu_warm(&w);
    const int inner = gpu_inner(&w);
    const size_t after = dev_free_bytes(m->dev);
    open_torch(m, c, s, n);
    double seconds[GPU_MAX_RUNS];
    for (int k = 0; k < c->runs; k++) {
        gpu_ready(&w);
        seconds[k] = gpu_seconds(&w, inner);
        for (int i = 0; i < n; i++) run_torch(m, c, &s[i]);
    }
    struct gpu_result *x = add_result(m, c, "osp", seconds, c->runs);
    x->bytes = before > after ? (double)(before - after) : c->plan_bytes;
    for (int i = 0; i < n; i++)
        if (s[i].error > x->error) x->error = s[i].error;
    if (c->executed > 0) m->rate[0] = c->executed / x->median;
    if (c->kind == GPU_FORWARD && gpu_sparse(c)) x->shares = gpu_profile(&w);
    gpu_close(&w);
    gpu_print(gpu_result_json(x));
    finish_torch(m, c, s, n);
    free(s);
}

/* Seconds that a case will take, by the rates of the cases before; 0: nothing known yet. */
static double estimate(const struct measuring *m, const struct gpu_case *c)
{
    struct side s[GPU_MAX_SIDES];
    if (!(m->rate[0] > 0)) return 0;
    const int n = sides_of(m, c, s);
    const double runs = c->runs + (gpu_has_model(c) ? 0.3 : 1), profile = gpu_sparse(c) ? 1 : 0;
    double sum = (runs + profile) * c->executed / m->rate[0];
    for (int i = 0; i < n && m->rate[1] > 0; i++)
        if (s[i].timed) sum += runs * c->executed / m->rate[1] + m->opening;
    return sum;
}

static bool fits(struct measuring *m, struct gpu_case *c)
{
    const double need = estimate(m, c);
    char *why = m->r->missing[c - m->cases];
    if (need <= left(m) && left(m) > 0) return true;
    snprintf(why, sizeof m->r->missing[0],
             "skipped: needs about %.0f s at the %.0f and %.0f TF/s of the cases before, %.0f of "
             "budget_s=%lld are left",
             need, 1e-12 * m->rate[0], 1e-12 * m->rate[1], left(m) > 0 ? left(m) : 0,
             (long long)m->r->o->budget_s);
    log_warn("%s %s", c->name, why);
    return false;
}

int gpu_measure(struct gpu_report *r, struct dev *dev, struct gpu_case *cases)
{
    struct measuring m = {.r = r, .dev = dev, .cases = cases, .started = log_seconds()};
    log_info("%s", r->about);
    if (r->o->torch) {
        struct err e = {0};
        m.torch = gpu_torch_open(r->o, &e);
        err_raise(&e);
        hello(&m);
        if (m.torch) log_info("%s", r->torch_about);
    }
    for (int i = 0; i < r->num_cases; i++) {
        const struct gpu_arenas arenas = gpu_plan(&cases[i], dev->compute);
        if (fits(&m, &cases[i])) measure(&m, &cases[i], arenas);
    }
    log_info("%.0f s of budget_s=%lld", log_seconds() - m.started, (long long)r->o->budget_s);
    gpu_torch_close(m.torch);
    return r->wrong || m.failed ? RC_SOFTWARE : RC_OK;
}
