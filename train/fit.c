#include "train/fit.h"

#include <stdio.h>
#include <string.h>

#include "model/plan.h"

enum { STEPS = RECOMPUTE_NONE - RECOMPUTE_ALL };

int fit_levels(const struct model_config *m) { return STEPS * (int)m->num_layers; }

/* Blocks by what recomputing them costs: full attention, then the others. */
static void by_cost(const struct model_config *m, int order[MAX_BLOCKS])
{
    enum block_kind kind[MAX_BLOCKS];
    struct err e = {0};
    int n = 0;
    if (!plan_blocks(m, kind, &e)) err_raise(&e);
    for (int full = 1; full >= 0; full--)
        for (int i = 0; i < m->num_layers; i++)
            if ((kind[i] == BLOCK_FULL) == full) order[n++] = i;
}

void fit_policies(const struct model_config *m, int level, enum recompute policy[MAX_BLOCKS])
{
    const int blocks = (int)m->num_layers, more = level % blocks;
    int order[MAX_BLOCKS];
    by_cost(m, order);
    for (int k = 0; k < blocks; k++)
        policy[order[k]] = (enum recompute)(level / blocks + (k < more));
}

static _Noreturn void fit_stop(const struct dryrun_out *least, size_t bytes)
{
    err_stop(RC_CONFIG,
             "recompute: auto: a rank needs %.3f GB even when every block recomputes everything "
             "(%.3f GB of states, %.3f GB of activations), and %.3f GB are there; take more ranks "
             "per sample (skiparse_sp_size, sp_size), more ranks in all, a smaller batch_size, or "
             "raise memory_budget_gb",
             1e-9 * (double)dryrun_bytes(least),
             1e-9 * (double)(dryrun_bytes(least) - least->keep_bytes - least->tmp_bytes),
             1e-9 * (double)(least->keep_bytes + least->tmp_bytes), 1e-9 * (double)bytes);
}

void fit_take(struct dryrun_in *in, int level)
{
    in->by_block = true;
    fit_policies(&in->model, level, in->policy);
}

static size_t need(struct dryrun_in *in, int level, struct dryrun_out *out)
{
    fit_take(in, level);
    dryrun(in, out);
    return dryrun_bytes(out);
}

int fit_level(const struct dryrun_in *of, size_t bytes, struct dryrun_out *out)
{
    struct dryrun_in in = *of;
    int fits = 0, beyond = fit_levels(&in.model) + 1;
    if (need(&in, 0, out) > bytes) fit_stop(out, bytes);
    while (beyond - fits > 1) {
        const int middle = (fits + beyond) / 2;
        if (need(&in, middle, out) <= bytes)
            fits = middle;
        else
            beyond = middle;
    }
    return fits;
}

size_t fit_host_bytes(void)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && !kib && fgets(line, sizeof line, f)) (void)sscanf(line, "MemAvailable: %llu", &kib);
    if (f) fclose(f);
    return (size_t)kib << 10;
}

void fit_describe(const struct model_config *m, const enum recompute *policy, char *out,
                  size_t size)
{
    static const char *const name[] = {"all recomputed", "attention kept", "matrix products kept",
                                       "all kept"};
    size_t n = 0;
    out[0] = 0;
    for (int p = RECOMPUTE_ALL; p <= RECOMPUTE_NONE; p++) {
        int blocks = 0;
        for (int i = 0; i < m->num_layers; i++) blocks += (int)policy[i] == p;
        if (blocks && n < size)
            n += (size_t)snprintf(out + n, size - n, "%s%d blocks: %s", n ? ", " : "", blocks,
                                  name[p]);
    }
}
