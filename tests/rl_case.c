#include "tests/rl_case.h"

#include <stdlib.h>
#include <string.h>

void rl_case_open(struct rl_case *r, struct comm *world, const struct policy_case_opts *o)
{
    memset(r, 0, sizeof *r);
    policy_case_open(&r->c, world, o);
    struct fixture *f = &r->c.f;
    r->set = (struct settings){.seed = CASE_SEED,
                               .gradient_accumulation_steps = 1,
                               .grad_clip = CLIP_FIXED,
                               .max_skipped_steps = 3,
                               .ema_update_interval = 1,
                               .rl = r->c.rl,
                               .optimizer = {.lr = 1e-2, .eps = 1e-8, .betas = {2, {0.9, 0.99}}}};
    r->ses = (struct session){.set = &r->set,
                              .world = world,
                              .mesh = f->mesh,
                              .dev = f->dev,
                              .dit = f->dit,
                              .lora = f->lora,
                              .fsdp = f->fsdp,
                              .ctx = f->ctx};
    arena_init(&r->ses.tmp, f->dev, 1 << 16, "tmp");
    r->run = (struct rl_run){.set = &r->set,
                             .world = world,
                             .ses = &r->ses,
                             .policy = r->c.p,
                             .saved_epoch = -1,
                             .batch = calloc((size_t)r->c.rl.batches, sizeof *r->run.batch)};
    r->run.policy.cfg = &r->set.rl;
    clip_init(&r->run.state.adapter.clip, 1);
}

void rl_case_close(struct rl_case *r)
{
    rl_case_forget(r);
    free(r->run.batch);
    arena_free(&r->ses.tmp);
    policy_case_close(&r->c);
}

void rl_case_rollouts(struct rl_case *r, const struct step_plan *plan, float *latent)
{
    const int64_t B = r->set.rl.sample_batch, D = r->run.policy.elements;
    const bool nft = r->set.rl.algo == ALGO_NFT;
    if (nft) lora_use(r->ses.lora, STATE_LORA_OLD);
    for (int64_t b = 0; b < r->set.rl.batches; b++) {
        struct group_entry entry[64];
        for (int64_t i = 0; i < B; i++)
            entry[i] = groups_entry(&r->run.policy.groups, r->run.state.epoch, b, r->c.first + i);
        rollout_run(&r->run.policy, plan, entry, nft, (struct rollout_hooks){0}, &r->run.batch[b],
                    latent ? latent + b * B * D : NULL);
    }
    if (nft) lora_use(r->ses.lora, STATE_LORA);
}

void rl_case_forget(struct rl_case *r)
{
    for (int64_t b = 0; b < r->set.rl.batches; b++) trajectory_free(&r->run.batch[b]);
}

/* [batch][entry over all data ranks] */
static struct sample_gain *gains_of(struct rl_case *r, const double *score)
{
    const struct rl_config *c = &r->set.rl;
    const struct reward_settings none = {.command = NULL};
    const struct adv_config a = algo_advantage(c, &none, 1);
    const int64_t E = c->sample_batch * r->ses.mesh.dp, n = E * c->batches;
    struct adv_member *m = calloc((size_t)n, sizeof *m);
    struct adv_out *out = calloc((size_t)n, sizeof *out);
    struct sample_gain *g = calloc((size_t)n, sizeof *g);
    for (int64_t i = 0; i < n; i++) {
        const struct group_entry e =
            groups_entry(&r->run.policy.groups, r->run.state.epoch, i / E, i % E);
        m[i] = (struct adv_member){e.group, e.prompt, true, {score[i]}};
    }
    advantages(&a, m, n, out, &r->scores);
    for (int64_t i = 0; i < n; i++)
        g[i] = (struct sample_gain){out[i].advantage, out[i].weight, true};
    free(m);
    free(out);
    return g;
}

double rl_case_epoch(struct rl_case *r, double (*f)(const struct policy *p, const float *latent))
{
    const struct rl_config *c = &r->set.rl;
    const int64_t B = c->sample_batch, D = r->run.policy.elements, E = B * r->ses.mesh.dp;
    const struct step_plan plan = algo_step_plan(c, CASE_SEED, r->run.state.epoch);
    float *latent = calloc((size_t)(c->batches * B * D), sizeof *latent);
    double *score = calloc((size_t)(E * c->batches), sizeof *score);
    rl_case_rollouts(r, &plan, latent);
    for (int64_t i = 0; i < c->batches * B; i++)
        score[i / B * E + r->c.first + i % B] = f(&r->run.policy, latent + i * D);
    comm_sum_f64(r->ses.mesh.axis[AXIS_DP], score, (int)(E * c->batches), "scores");
    struct sample_gain *gain = gains_of(r, score);
    r->updates = run_updates(&r->run, &plan, gain);
    rl_case_forget(r);
    r->run.state.epoch++;
    free(gain);
    free(score);
    free(latent);
    return r->scores.mean;
}
