#include "tests/lora_case.h"

struct model_config lora_small_model(void)
{
    struct model_config m = fixture_model();
    m.num_layers = 2;
    return m;
}

struct fixture_opts lora_options(const struct model_config *m, const struct lora_config *lora)
{
    return (struct fixture_opts){.device = "ref",
                                 .compute = DT_F64,
                                 .model = *m,
                                 .recompute = RECOMPUTE_GEMM,
                                 .batch = 2,
                                 .t = 1,
                                 .h = 3,
                                 .w = 5,
                                 .fsdp = {.optimizer = true, .ema = true},
                                 .lora = lora};
}

void lora_open_filled(struct fixture *f, struct comm *world, const struct fixture_opts *o)
{
    fixture_open(f, world, o);
    problem_fill_params(f);
    if (f->lora) problem_fill_adapters(f);
}

struct lora_config lora_thinned(struct lora_config c, double dropout)
{
    c.dropout = dropout;
    return c;
}

const struct rng_key lora_masks[3] = {{.seed = 4, .use = RNG_DROPOUT, .step = 2, .item = 0},
                                      {.seed = 4, .use = RNG_DROPOUT, .step = 2, .item = 1},
                                      {.seed = 4, .use = RNG_DROPOUT, .step = 2, .item = 2}};

struct fixture_opts lora_least(const struct model_config *m, const struct lora_config *lora)
{
    struct fixture_opts o = lora_options(m, lora);
    o.compute = DT_F32;
    o.batch = 1;
    o.h = o.w = 2;
    o.recompute = RECOMPUTE_ALL;
    o.fsdp = (struct fsdp_opts){0};
    return o;
}
