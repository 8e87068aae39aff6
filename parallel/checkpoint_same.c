#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/checkpoint.h"

typedef void word_of(const char *name, int64_t value, char *out, size_t size);

static void show(const char *name, const json_t *v, word_of *word, char *out, size_t size)
{
    *out = 0;
    if (json_is_integer(v)) word(name, json_integer_value(v), out, size);
    if (*out) return;
    char *text = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT) : strdup("nothing");
    CHECK(text, "out of memory");
    snprintf(out, size, "%s", text);
    free(text);
}

void ckpt_require_same(const struct ckpt *c, const char *key, json_t *now, word_of *word)
{
    json_t *then = json_object_get(ckpt_meta(c), key), *v;
    char text[2048] = "";
    const char *name;
    json_object_foreach(now, name, v)
    {
        json_t *w = json_object_get(then, name);
        if (w && json_equal(v, w)) continue;
        char a[256], b[256];
        show(name, w, word, a, sizeof a);
        show(name, v, word, b, sizeof b);
        const size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "\n  %s: %s in the checkpoint, %s now", name, a,
                 b);
    }
    if (text[0])
        err_stop(RC_CONFIG, "%s does not belong to this configuration; use another output_dir:%s",
                 ckpt_path(c), text);
}

void ckpt_require_no_newer(struct comm *world, const char *dir, const char *how,
                           const struct ckpt *c, const char *unit)
{
    const int64_t newest = ckpt_newest_step(world, dir), start = c ? ckpt_step(c) : 0;
    if (newest == -2 && start == 0)
        err_stop(RC_CONFIG,
                 "resume: %s would start at %s 0, but %s holds checkpoints, which are damaged; "
                 "choose another output_dir, or move them away",
                 how, unit, dir);
    if (newest > start || (!c && newest != -1))
        err_stop(RC_CONFIG,
                 "resume: %s would start at %s %lld, but %s holds checkpoints up to %s %lld; "
                 "set resume: auto to go on from there, choose another output_dir, or move them "
                 "away",
                 how, unit, (long long)start, dir, unit, (long long)newest);
}

void ckpt_require_resumable(const struct ckpt *c, enum state_kind need, const char *how,
                            const char *output_dir)
{
    if (ckpt_has(c, need)) return;
    const bool model = ckpt_has(c, STATE_MASTER), named = strcmp(how, "auto") != 0;
    err_stop(RC_CONFIG, "%s: %s holds %s (%s %lld), which %s does not go on from; %s%s",
             named ? "resume" : "output_dir", named ? how : output_dir,
             model ? "a model of osp train" : "adapters of osp rl", model ? "step" : "epoch",
             (long long)ckpt_step(c), model ? "osp rl" : "osp train",
             named ? "set resume: auto" : "use another output_dir",
             model ? ", and name it as model_config.pretrained_model_dir_or_checkpoint to train "
                     "adapters for it"
                   : ", or merge them into a model (osp convert merge) and resume from that");
}

void ckpt_require_ema(const struct ckpt *c, enum state_kind kind, double decay, const char *or_else)
{
    if (decay <= 0 || ckpt_has(c, kind)) return;
    err_stop(RC_CONFIG,
             "ema_decay: 0 in %s, which holds no averages to go on with (%s), but %g now; set "
             "ema_decay: 0, or %s",
             ckpt_path(c), ckpt_kind_name(kind), decay, or_else);
}
