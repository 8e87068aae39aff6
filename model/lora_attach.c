#include "model/lora_attach.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const lora_official_targets[] = {"self_attn.q",  "self_attn.k",  "self_attn.v",
                                             "self_attn.o",  "cross_attn.q", "cross_attn.k",
                                             "cross_attn.v", "cross_attn.o", NULL};

struct lora_config lora_make_config(int64_t rank, double alpha, const char *const *targets)
{
    struct lora_config c = {.rank = rank, .alpha = alpha};
    for (; targets[c.targets.n]; c.targets.n++) {
        CHECK(c.targets.n < CFG_MAX_ITEMS, "more than %d targets", (int)CFG_MAX_ITEMS);
        c.targets.v[c.targets.n] = (char *)(uintptr_t)targets[c.targets.n];
    }
    return c;
}

/* The name of a weight without ".weight". */
static void module_of(const struct param *w, char *out, size_t size)
{
    const size_t n = strlen(w->name), tail = strlen(".weight");
    CHECK(n > tail && strcmp(w->name + n - tail, ".weight") == 0, "%s is no weight", w->name);
    snprintf(out, size, "%.*s", (int)(n - tail), w->name);
}

/* The path itself or what follows one of its dots. */
static bool matches(const char *module, const char *pattern)
{
    for (const char *at = module; at; at = strchr(at, '.')) {
        if (*at == '.') at++;
        if (strcmp(at, pattern) == 0 || fnmatch(pattern, at, 0) == 0) return true;
    }
    return false;
}

/* Counts in hits[] which patterns match. */
static bool targeted(const struct lora_config *cfg, const char *module, int *hits)
{
    bool any = false;
    for (int i = 0; i < cfg->targets.n; i++)
        if (matches(module, cfg->targets.v[i])) {
            hits[i]++;
            any = true;
        }
    return any;
}

/* "blocks.0.self_attn.q, ..., blocks.0.ffn.2 (blocks 0 to 39)" */
static void list_modules(struct dit *d, char *out, size_t size)
{
    size_t n = 0;
    out[0] = 0;
    for (int id = 0; id < LINEAR_COUNT; id++) {
        const struct linear *l = block_linear(&d->block[0], (enum block_linear)id);
        for (int k = 0; k < l->parts && n < size; k++) {
            char module[64];
            module_of(&l->w[k], module, sizeof module);
            n += (size_t)snprintf(out + n, size - n, "%s%s", n ? ", " : "", module);
        }
    }
    if (n < size) snprintf(out + n, size - n, " (blocks 0 to %d)", d->num_blocks - 1);
}

static void require_hits(struct dit *d, const struct lora_config *cfg, const int *hits)
{
    char text[512] = "", have[512];
    size_t n = 0;
    for (int i = 0; i < cfg->targets.n && n < sizeof text; i++)
        if (!hits[i])
            n += (size_t)snprintf(text + n, sizeof text - n, "%s\"%s\"", n ? ", " : "",
                                  cfg->targets.v[i]);
    list_modules(d, have, sizeof have);
    if (cfg->targets.n == 0)
        err_stop(RC_CONFIG, "lora_config.target_modules: is empty; there are %s", have);
    if (n)
        err_stop(RC_CONFIG, "lora_config.target_modules: nothing is called %s; there are %s", text,
                 have);
}

static void require_rank(const struct lora_config *cfg, const char *module, int64_t out, int64_t in)
{
    const int64_t most = out < in ? out : in;
    if (cfg->rank > most)
        err_stop(RC_CONFIG,
                 "lora_config.rank: %lld is above %lld, the rank that %s [%lld,%lld] can have",
                 (long long)cfg->rank, (long long)most, module, (long long)out, (long long)in);
}

static struct param *add_param(struct lora *l, const char *module, const char *what, int64_t rows,
                               int64_t cols, int64_t offset)
{
    struct param *p = &l->param[l->num_params++];
    *p = (struct param){
        .ndim = 2, .dim = {rows, cols}, .flags = P_TRAINABLE | P_DECAY, .offset = offset};
    const int n = snprintf(p->name, sizeof p->name, "%s.%s.weight", module, what);
    CHECK(n < (int)sizeof p->name, "the name of an adapter of %s is too long", module);
    return p;
}

/* The pairs of one linear: all A side by side, then each B. */
static void add_adapter(struct lora *l, struct linear *lin, uint32_t number, const bool *on)
{
    struct adapter *a = &l->adapter[l->num_adapters++];
    const int64_t out = lin->w->dim[0], in = lin->w->dim[1], r = l->rank;
    *a = (struct adapter){.store = &l->store, .number = number, .in = in, .out = out};
    char module[64];
    for (int k = 0; k < lin->parts; k++)
        if (on[k]) a->part[a->pairs++] = k;
    a->a = l->count;
    for (int i = 0; i < a->pairs; i++) {
        module_of(&lin->w[a->part[i]], module, sizeof module);
        struct param *p = add_param(l, module, "lora_A", r, in, a->a + i * r * in);
        p->init = INIT_NORMAL;
        p->init_scale = 1 / (double)r;
        a->b[i] = a->a + a->pairs * r * in + i * out * r;
        add_param(l, module, "lora_B", out, r, a->b[i]);
    }
    const int64_t n = a->pairs * r * (in + out), align = 16; /* elements: whole cache lines */
    l->count += (n + align - 1) / align * align;
    lin->lora = a;
}

void lora_attach(struct lora *l, struct dit *d, const struct lora_config *cfg)
{
    int hits[CFG_MAX_ITEMS] = {0};
    const size_t most = (size_t)d->num_blocks * LINEAR_COUNT;
    l->adapter = calloc(most, sizeof *l->adapter);
    l->param = calloc(most * 2 * ADAPTER_PARTS, sizeof *l->param);
    CHECK(l->adapter && l->param, "out of memory");
    for (int b = 0; b < d->num_blocks; b++)
        for (int id = 0; id < LINEAR_COUNT; id++) {
            struct linear *lin = block_linear(&d->block[b], (enum block_linear)id);
            bool on[ADAPTER_PARTS] = {false}, any = false;
            CHECK(lin->parts <= ADAPTER_PARTS, "a linear of %d parts", lin->parts);
            for (int k = 0; k < lin->parts; k++) {
                char module[64];
                module_of(&lin->w[k], module, sizeof module);
                on[k] = targeted(cfg, module, hits);
                any = any || on[k];
                if (on[k]) require_rank(cfg, module, lin->w[k].dim[0], lin->w[k].dim[1]);
            }
            if (any) add_adapter(l, lin, (uint32_t)(b * LINEAR_COUNT + id), on);
        }
    require_hits(d, cfg, hits);
}
