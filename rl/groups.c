#include "rl/groups.h"

enum { STEP_PROMPTS = 1, STEP_SCATTER }; /* of RNG_SHUFFLE; 0 is the loader's */

bool groups_check(const struct groups_config *c, struct err *e)
{
    const long long all = (long long)(c->dp * c->batch), members = (long long)c->members,
                    prompts = (long long)c->num_prompts;
    if (members < 1 || c->batch < 1 || c->batches < 1 || c->dp < 1) {
        err_set(e, RC_CONFIG,
                "rl_config.num_image_per_prompt, sample_batch_size and num_batches_per_epoch must "
                "be 1 or more");
        return false;
    }
    if (all % members) {
        err_set(e, RC_CONFIG,
                "rl_config.num_image_per_prompt: %lld, but a rollout batch has %lld samples "
                "(sample_batch_size %lld on %lld data ranks): no whole groups; change one of the "
                "two",
                members, all, (long long)c->batch, (long long)c->dp);
        return false;
    }
    if (prompts < all / members) {
        err_set(
            e, RC_CONFIG,
            "rl_config.prompt_file: it has %lld prompts and a rollout batch takes %lld "
            "different ones; add prompts, lower sample_batch_size or raise num_image_per_prompt",
            prompts, all / members);
        return false;
    }
    return true;
}

struct group_entry groups_entry(const struct groups_config *c, int64_t epoch, int64_t b, int64_t i)
{
    const int64_t size = c->dp * c->batch, m = size / c->members;
    CHECK(epoch >= 0 && b >= 0 && b < c->batches && i >= 0 && i < size,
          "entry %lld of %lld in batch %lld of %lld", (long long)i, (long long)size, (long long)b,
          (long long)c->batches);
    const int64_t number = epoch * c->batches + b, per_pass = c->num_prompts / m;
    const struct rng_key pass = {.seed = c->seed,
                                 .use = RNG_SHUFFLE,
                                 .step = STEP_PROMPTS,
                                 .item = (uint64_t)(number / per_pass)};
    const struct rng_key scatter = {
        .seed = c->seed, .use = RNG_SHUFFLE, .step = STEP_SCATTER, .item = (uint64_t)number};
    const int64_t at = c->scatter ? (int64_t)rng_permute(scatter, (uint64_t)i, (uint64_t)size) : i;
    const int64_t k = at / c->members, group = number * m + k;
    const uint64_t line = (uint64_t)(number % per_pass * m + k);
    return (struct group_entry){.group = group,
                                .prompt =
                                    (int64_t)rng_permute(pass, line, (uint64_t)c->num_prompts),
                                .member = at % c->members,
                                .sample = group * c->members + at % c->members};
}

/* What all members have in common is that of member 0. */
static struct rng_key noise(const struct groups_config *c, const struct group_entry *g,
                            uint32_t step, bool common)
{
    return (struct rng_key){.seed = c->seed,
                            .use = RNG_SDE,
                            .step = step,
                            .item = (uint64_t)(common ? g->group * c->members : g->sample)};
}

struct rng_key groups_initial_noise(const struct groups_config *c, const struct group_entry *g,
                                    bool shared)
{
    return noise(c, g, 0, shared || c->same_noise);
}

struct rng_key groups_step_noise(const struct groups_config *c, const struct group_entry *g,
                                 int step, bool shared)
{
    CHECK(step >= 0, "noise of step %d", step);
    return noise(c, g, (uint32_t)step + 1, shared);
}
