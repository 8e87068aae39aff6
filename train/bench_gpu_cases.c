/* What `osp bench gpu` measures. Full scale: the shapes of the 14B and the 1.3B model at 81 frames
 * (docs/spec/model.md 1.1); scale=tiny: the same list on shapes for a test. */
#include <stdio.h>
#include <string.h>

#include "model/plan.h"
#include "train/bench_gpu.h"

struct shapes { /* of a scale */
    struct model_config large, small;
    int g720[3], g768[3], g480[3];
    int64_t copy_bytes;
};

static struct model_config model_of(int64_t dim, int64_t ffn, int64_t heads, int64_t layers)
{
    return (struct model_config){.dim = dim,
                                 .ffn_dim = ffn,
                                 .freq_dim = 256,
                                 .in_dim = 16,
                                 .out_dim = 16,
                                 .num_heads = heads,
                                 .num_layers = layers,
                                 .text_len = 512,
                                 .text_dim = 4096,
                                 .eps = 1e-6,
                                 .skiparse_dim = 1,
                                 .skiparse_model_type = SKIPARSE_DUAL_END,
                                 .sparse_ratio = 2,
                                 .num_full_blocks = 8};
}

static struct shapes full_shapes(void)
{
    return (struct shapes){.large = model_of(5120, 13824, 40, 40),
                           .small = model_of(1536, 8960, 12, 30),
                           .g720 = {21, 45, 80},
                           .g768 = {21, 48, 80},
                           .g480 = {21, 30, 52},
                           .copy_bytes = (int64_t)4 << 30};
}

static struct shapes tiny_shapes(void)
{
    struct shapes s = {.large = model_of(96, 160, 4, 4),
                       .small = model_of(64, 112, 2, 4),
                       .g720 = {3, 6, 8}, /* rows that padding would round up, as 45 */
                       .g768 = {2, 8, 8},
                       .g480 = {2, 6, 4},
                       .copy_bytes = 1 << 20};
    struct model_config *m[] = {&s.large, &s.small};
    for (int i = 0; i < 2; i++) {
        m[i]->freq_dim = 32;
        m[i]->text_len = 16;
        m[i]->text_dim = 24;
        m[i]->num_full_blocks = 2;
    }
    return s;
}

bool gpu_has_model(const struct gpu_case *c) { return c->kind >= GPU_FORWARD; }
bool gpu_sparse(const struct gpu_case *c) { return gpu_has_model(c) && plan_ratio(&c->model) > 1; }

struct list {
    const struct gpu_options *o;
    struct shapes s;
    struct gpu_case *c;
    int n;
    struct gpu_case unwanted; /* takes what nobody asked for */
};

static bool wanted(const struct list *l, char part)
{
    return strcmp(l->o->part, "all") == 0 || strchr(l->o->part, part);
}

static struct gpu_case *add(struct list *l, char part, enum gpu_kind kind, int runs)
{
    if (!wanted(l, part)) return &l->unwanted;
    CHECK(l->n < GPU_MAX_CASES, "more than %d cases", GPU_MAX_CASES);
    struct gpu_case *c = &l->c[l->n++];
    *c = (struct gpu_case){.part = part, .kind = kind, .runs = runs, .warm = 1};
    if (l->o->runs) c->runs = (int)l->o->runs;
    return c;
}

static void name(struct gpu_case *c, const char *a, const char *b, const char *d)
{
    snprintf(c->name, sizeof c->name, "%s%s%s", a, b, d);
}

static void add_gemms(struct list *l)
{
    static const char *const product[] = {"y", "dx", "dw"};
    const struct model_config *m = &l->s.large;
    const int *g = l->s.g720;
    const int64_t shape[3][2] = {{m->dim, m->dim}, {m->ffn_dim, m->dim}, {m->dim, m->ffn_dim}};
    for (int i = 0; i < 3; i++)
        for (int p = 0; p < 3; p++) {
            struct gpu_case *c = add(l, 'A', GPU_GEMM, 5);
            c->product = (enum gpu_product)p;
            c->rows = (int64_t)g[0] * g[1] * g[2];
            c->out = shape[i][0];
            c->in = shape[i][1];
            snprintf(c->name, sizeof c->name, "gemm_%lldx%lld_%s", (long long)c->out,
                     (long long)c->in, product[p]);
        }
}

/* Full: one sequence of all tokens; sparse: the four of a token block. */
static void add_attention(struct list *l)
{
    const struct model_config *m = &l->s.large;
    const struct grid g = {l->s.g720[0], l->s.g720[1], l->s.g720[2], 2, 2};
    for (int sparse = 0; sparse < 2; sparse++)
        for (int back = 0; back < 2; back++) {
            struct gpu_case *c = add(l, 'A', GPU_ATTENTION, 5);
            c->backward = back;
            c->heads = (int)m->num_heads;
            c->head_dim = (int)(m->dim / m->num_heads);
            c->num_lens = sparse ? 4 : 1;
            c->lens[0] = (int32_t)grid_tokens(g);
            for (int q = 0; q < 4 && sparse; q++)
                c->lens[q] = (int32_t)layout_seq_rows(g, PHASE_TOKEN, (struct part){1, 0, 1, 0}, q);
            name(c, "attention", sparse ? "_sparse" : "_full", back ? "_backward" : "_forward");
        }
}

static struct gpu_case *add_model(struct list *l, char part, enum gpu_kind kind, bool large,
                                  const int *grid, bool sparse, int runs)
{
    struct gpu_case *c = add(l, part, kind, runs);
    c->model = large ? l->s.large : l->s.small;
    if (!sparse) c->model.skiparse_model_type = SKIPARSE_FULL;
    c->t = grid[0];
    c->h = grid[1];
    c->w = grid[2];
    c->ssp = c->sp = 1;
    return c;
}

static void add_forwards(struct list *l, char part, const char *size, const int *grid, int full,
                         int sparse)
{
    for (int s = 0; s < 2; s++) {
        struct gpu_case *c = add_model(l, part, GPU_FORWARD, true, grid, s, s ? sparse : full);
        name(c, "14b_", size, s ? "_sparse" : "_full");
    }
}

static void add_steps(struct list *l, const char *size, const int *grid, int full, int sparse)
{
    for (int s = 0; s < 2; s++)
        for (int keep = 1; keep >= 0; keep--) {
            struct gpu_case *c = add_model(l, 'D', GPU_STEP, false, grid, s, s ? sparse : full);
            c->policy = keep ? RECOMPUTE_ATTENTION : RECOMPUTE_ALL;
            name(c, "1.3b_", size, s ? "_sparse" : "_full");
            strcat(c->name, keep ? "_step_keep_attention" : "_step_recompute_all");
        }
}

/* One block forward and backward as one rank of four sees it, all products kept: under Ulysses for
 * a full block, under SSP for a sparse one. */
static void add_blocks(struct list *l)
{
    for (int s = 0; s < 2; s++) {
        struct gpu_case *c = add_model(l, 'E', GPU_BLOCK, true, l->s.g720, s, 5);
        c->model.num_layers = 2;
        c->model.num_full_blocks = 0;
        c->policy = RECOMPUTE_GEMM;
        c->ssp = s ? 4 : 1;
        c->sp = s ? 1 : 4;
        name(c, "14b_720p_block", s ? "_sparse" : "_full", "_of_4");
    }
}

int gpu_cases(const struct gpu_options *o, struct gpu_case *out)
{
    const bool tiny = strcmp(o->scale, "tiny") == 0, brief = strcmp(o->variant, "short") == 0;
    struct list l = {.o = o, .s = tiny ? tiny_shapes() : full_shapes(), .c = out};
    if (brief) {
        add_forwards(&l, 'B', "480p", l.s.g480, 3, 4);
        add_steps(&l, "480p", l.s.g480, 3, 4);
        return l.n;
    }
    struct gpu_case *copy = add(&l, 'A', GPU_COPY, 5);
    copy->bytes = l.s.copy_bytes;
    name(copy, "copy", "", "");
    add_gemms(&l);
    add_attention(&l);
    add_forwards(&l, 'B', "720p", l.s.g720, 2, 4);
    /* what the table needs most comes first: a budget that ends early costs the least */
    add_steps(&l, "720p", l.s.g720, 2, 3);
    add_blocks(&l);
    add_forwards(&l, 'C', "768p", l.s.g768, 1, 2);
    return l.n;
}

struct gpu_case gpu_check_case(const struct gpu_case *c)
{
    struct gpu_case k = *c;
    k.runs = 1;
    k.warm = 0;
    k.plan_bytes = 0;
    k.bytes = c->bytes < 1 << 20 ? c->bytes : 1 << 20;
    k.rows = c->rows < 500 ? c->rows : 500; /* not a multiple of any tile */
    for (int i = 0; i < k.num_lens; i++) k.lens[i] = c->lens[i] % 700 + 37;
    k.ssp = k.sp = 1;
    if (!gpu_has_model(c)) return k;
    /* 6 and 45 rows both leave two of P*P = 4 to pad, 6 of 8 columns */
    k.t = c->t < 3 ? c->t : 3;
    k.h = c->h % 4 ? 6 : 8;
    k.w = 8;
    if (c->kind == GPU_BLOCK) return k;
    if (!gpu_sparse(c)) {
        k.model.num_layers = 2;
        return k;
    }
    /* every way from one kind of block to another: full, token, group, token, group, full; the
     * gradients of a step weigh gigabytes: full, token, group, token */
    k.model.num_layers = c->kind == GPU_STEP ? 4 : 6;
    k.model.full_block_indices = (struct cfg_ints){.n = 2, .v = {0, c->kind == GPU_STEP ? 0 : 5}};
    return k;
}

static json_t *model_json(const struct model_config *m)
{
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f}", "dim", (json_int_t)m->dim, "ffn",
                     (json_int_t)m->ffn_dim, "heads", (json_int_t)m->num_heads, "layers",
                     (json_int_t)m->num_layers, "freq", (json_int_t)m->freq_dim, "in",
                     (json_int_t)m->in_dim, "out", (json_int_t)m->out_dim, "text",
                     (json_int_t)m->text_len, "text_dim", (json_int_t)m->text_dim, "eps", m->eps);
}

static const char *kind_name(enum gpu_kind k)
{
    static const char *const names[] = {"copy", "gemm", "attention", "forward", "step", "block"};
    return names[k];
}

static void put_model(json_t *j, const struct gpu_case *c)
{
    enum block_kind kind[MAX_BLOCKS];
    struct err e = {0};
    if (!plan_blocks(&c->model, kind, &e)) err_raise(&e);
    char blocks[MAX_BLOCKS + 1] = "";
    const int n = c->kind == GPU_BLOCK ? 1 : (int)c->model.num_layers;
    for (int i = 0; i < n; i++) blocks[i] = "FTG"[kind[i]];
    json_object_set_new(j, "model", model_json(&c->model));
    json_object_set_new(j, "blocks", json_string(blocks));
    json_object_set_new(j, "ratio", json_integer(plan_ratio(&c->model)));
    json_object_set_new(j, "grid", json_pack("[i,i,i]", c->t, c->h, c->w));
    json_object_set_new(j, "parts", json_pack("{s:i,s:i}", "ssp", c->ssp, "sp", c->sp));
    json_object_set_new(j, "recompute",
                        json_string(c->policy == RECOMPUTE_ALL         ? "all"
                                    : c->policy == RECOMPUTE_ATTENTION ? "attention"
                                                                       : "gemm"));
}

json_t *gpu_case_json(const struct gpu_case *c, const char *dtype)
{
    static const char *const product[] = {"y", "dx", "dw"};
    json_t *j = json_pack("{s:s%, s:s, s:s, s:s, s:i, s:i, s:i}", "part", &c->part, (size_t)1,
                          "case", c->name, "kind", kind_name(c->kind), "dtype", dtype, "seed",
                          GPU_SEED, "runs", c->runs, "warm", c->warm);
    CHECK(j, "out of memory");
    json_object_set_new(j, "flops", json_real(c->flops));
    if (c->kind == GPU_COPY) json_object_set_new(j, "bytes", json_integer(c->bytes));
    if (c->kind == GPU_GEMM) {
        json_object_set_new(j, "product", json_string(product[c->product]));
        json_object_set_new(
            j, "shape",
            json_pack("[I,I,I]", (json_int_t)c->rows, (json_int_t)c->out, (json_int_t)c->in));
    }
    if (c->kind == GPU_ATTENTION) {
        json_t *lens = json_array();
        for (int i = 0; i < c->num_lens; i++) json_array_append_new(lens, json_integer(c->lens[i]));
        json_object_set_new(j, "lens", lens);
        json_object_set_new(j, "heads", json_integer(c->heads));
        json_object_set_new(j, "head_dim", json_integer(c->head_dim));
        json_object_set_new(j, "backward", json_boolean(c->backward));
    }
    if (gpu_has_model(c)) put_model(j, c);
    return j;
}
