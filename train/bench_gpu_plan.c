/* FLOPs and bytes of a case: it is run on the null device, whose ops count. */
#include "train/bench_gpu.h"

struct counted {
    double flops, attn, bytes;
    struct gpu_arenas arenas;
};

static struct counted count(const struct gpu_case *c, enum dtype compute)
{
    struct dev *dev = dev_open("null", compute, 1);
    struct gpu_work w = gpu_open(dev, c, (struct gpu_arenas){0});
    const struct dev_counters before = dev->count;
    gpu_run(&w);
    const struct dev_counters *now = &dev->count;
    struct counted k = {.attn = now->attn_fwd_flops + now->attn_bwd_flops - before.attn_fwd_flops -
                                before.attn_bwd_flops,
                        .bytes = (double)now->bytes_now};
    k.flops = k.attn + now->gemm_flops - before.gemm_flops;
    if (w.model) {
        k.arenas = gpu_model_peaks(w.model);
        k.bytes -= 2 * (double)((size_t)1 << DRY_ARENA_SHIFT);
        k.bytes += (double)(k.arenas.keep + k.arenas.tmp);
    }
    gpu_close(&w);
    dev_close(dev);
    return k;
}

struct gpu_arenas gpu_plan(struct gpu_case *c, enum dtype compute)
{
    const struct counted k = count(c, compute);
    c->executed = k.flops;
    c->plan_bytes = k.bytes;
    /* what is useful: without recompute, and of a rank's load its even share of the whole, not what
     * all ranks repeat nor what the longest one does beyond it */
    const int ranks = gpu_has_model(c) ? c->ssp * c->sp : 1;
    struct gpu_case none = *c;
    none.policy = RECOMPUTE_NONE;
    none.ssp = none.sp = 1;
    const bool other = c->kind == GPU_STEP || c->kind == GPU_BLOCK;
    const struct counted model = other ? count(&none, compute) : k;
    c->flops = model.flops / ranks;
    c->attn_flops = model.attn / ranks;
    if (c->kind == GPU_COPY) c->flops = c->executed = 0;
    return k.arenas;
}
