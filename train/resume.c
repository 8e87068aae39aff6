#include "train/resume.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/fault.h"
#include "core/io.h"
#include "core/log.h"
#include "parallel/checkpoint.h"
#include "train/print_config.h"

/* What a checkpoint and a model must share to be the same run. */
static json_t *structure_of(const struct trainer *t)
{
    const struct model_config *m = &t->ses->set->model;
    json_t *full = json_array();
    for (int i = 0; i < m->full_block_indices.n; i++)
        json_array_append_new(full, json_integer(m->full_block_indices.v[i]));
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:i, s:I, s:I, s:i, s:o, s:I, s:s, "
        "s:I}",
        "model_config.dim", (json_int_t)m->dim, "model_config.ffn_dim", (json_int_t)m->ffn_dim,
        "model_config.freq_dim", (json_int_t)m->freq_dim, "model_config.in_dim",
        (json_int_t)m->in_dim, "model_config.out_dim", (json_int_t)m->out_dim,
        "model_config.num_heads", (json_int_t)m->num_heads, "model_config.num_layers",
        (json_int_t)m->num_layers, "model_config.text_dim", (json_int_t)m->text_dim,
        "model_config.text_len", (json_int_t)m->text_len, "model_config.eps", m->eps,
        "model_config.skiparse_model_type", m->skiparse_model_type, "model_config.sparse_ratio",
        (json_int_t)m->sparse_ratio, "model_config.num_full_blocks", (json_int_t)m->num_full_blocks,
        "model_config.skiparse_dim", m->skiparse_dim, "model_config.full_block_indices", full,
        "seed", (json_int_t)t->ses->set->seed, "state_dtype", dtype_name(ctx_state(&t->ses->ctx)),
        "data_set", (json_int_t)(t->data->hash >> 1));
}

static json_t *state_json(const struct trainer_state *s)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:{s:f, s:f, s:f, s:f, s:f, s:i}}",
                     "step", (json_int_t)s->step, "skipped_in_row", (json_int_t)s->skipped_in_row,
                     "cursor", (json_int_t)s->cursor, "adam_steps", (json_int_t)s->adam_steps,
                     "ema_updates", (json_int_t)s->ema_updates, "skipped", (json_int_t)s->skipped,
                     "seconds", s->seconds, "clip", "mean", s->clip.mean, "var", s->clip.var,
                     "limit", s->clip.limit, "decay", s->clip.decay, "init_max", s->clip.init_max,
                     "started", s->clip.started);
}

static json_t *meta_of(const struct trainer *t, const struct loaded_settings *l)
{
    const struct session *s = t->ses;
    char *text = settings_text(l, false);
    const struct dataset *d = t->data;
    json_t *data = json_pack("{s:s, s:s, s:f, s:I, s:I, s:I}", "codec", d->codec, "text_codec",
                             d->text_codec, "fps", d->fps, "frames", (json_int_t)d->frames,
                             "height", (json_int_t)d->height, "width", (json_int_t)d->width);
    json_t *meta = json_pack("{s:I, s:o, s:o, s:o, s:s, s:{s:i, s:i, s:i, s:i}, s:s}", "step",
                             (json_int_t)t->state.step, "state", state_json(&t->state), "structure",
                             structure_of(t), "data", data, "config", text, "layout", "ranks",
                             s->world->size, "fsdp_size", s->mesh.degrees.fsdp, "skiparse_sp_size",
                             s->mesh.degrees.ssp, "sp_size", s->mesh.degrees.sp, "stage", "sft");
    CHECK(meta, "the checkpoint's description cannot be built");
    free(text);
    return meta;
}

void resume_save(struct trainer *t, const struct loaded_settings *l)
{
    struct session *s = t->ses;
    const double t0 = log_seconds();
    err_push("saving step %lld", (long long)t->state.step);
    fault_hit("save");
    const unsigned kinds = 1u << STATE_MASTER | 1u << STATE_M | 1u << STATE_V |
                           (s->set->ema_decay > 0 ? 1u << STATE_EMA : 0);
    struct ckpt_snapshot *snap = ckpt_snapshot(s->fsdp, &s->mesh, kinds);
    char *dir = io_path("%s/checkpoints", s->set->output_dir);
    const struct ckpt_place place = {dir, s->set->checkpoint.keep_last,
                                     s->set->checkpoint.keep_every};
    json_t *meta = meta_of(t, l);
    struct err e = {0};
    watchdog_files(s->watchdog, true);
    ckpt_write(s->world, &place, snap, meta, &e);
    watchdog_files(s->watchdog, false);
    if (e.code) err_stop(RC_IO, "%s; the checkpoint before it is untouched", e.msg);
    log_info("saved %s/iter_%09lld (%.2f s)", dir, (long long)t->state.step, log_seconds() - t0);
    json_decref(meta);
    ckpt_snapshot_free(snap);
    free(dir);
    err_pop();
}

static double number(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_number(v)) err_stop(RC_DATA, "the checkpoint's state has no number \"%s\"", key);
    return json_number_value(v);
}

static int64_t integer(const json_t *o, const char *key) { return (int64_t)number(o, key); }

/* Older checkpoints do not say it. */
static int64_t skipped_in_row(const json_t *o)
{
    return json_object_get(o, "skipped_in_row") ? integer(o, "skipped_in_row") : 0;
}

static void take_state(struct trainer_state *s, const json_t *o)
{
    const json_t *c = json_object_get(o, "clip");
    *s = (struct trainer_state){.cursor = integer(o, "cursor"),
                                .step = integer(o, "step"),
                                .ema_updates = integer(o, "ema_updates"),
                                .adam_steps = integer(o, "adam_steps"),
                                .skipped = integer(o, "skipped"),
                                .skipped_in_row = skipped_in_row(o),
                                .seconds = number(o, "seconds")};
    s->clip = (struct clip){.mean = number(c, "mean"),
                            .var = number(c, "var"),
                            .limit = number(c, "limit"),
                            .decay = number(c, "decay"),
                            .init_max = number(c, "init_max"),
                            .started = (int)number(c, "started")};
}

/* What was held out stays so. Older checkpoints say it in the text of their configuration alone. */
static void require_window(const struct ckpt *c, const struct settings *s)
{
    const char *text = json_string_value(json_object_get(ckpt_meta(c), "config"));
    char *then = text ? cfg_line_of(text, "validation.window") : NULL;
    if (then && fabs(strtod(then, NULL) - s->validation.window) > 1e-9)
        err_stop(
            RC_CONFIG,
            "validation.window: %s in the checkpoint, %g now: windows that were trained on would "
            "count as held out; use another output_dir",
            then, s->validation.window);
    free(then);
}

bool resume_load(struct trainer *t, const struct loaded_settings *l)
{
    struct session *s = t->ses;
    const char *how = s->set->resume ? s->set->resume : "auto";
    char *dir = io_path("%s/checkpoints", s->set->output_dir);
    struct ckpt *c = NULL;
    watchdog_files(s->watchdog, true);
    if (strcmp(how, "auto") == 0)
        c = ckpt_latest(s->world, dir);
    else if (strcmp(how, "never"))
        c = ckpt_open(s->world, how, true);
    watchdog_files(s->watchdog, false);
    if (strcmp(how, "auto")) ckpt_require_no_newer(s->world, dir, how, c, "step");
    free(dir);
    if (!c) return false;
    ckpt_require_resumable(c, STATE_MASTER, how, s->set->output_dir);
    err_push("resuming from %s", ckpt_path(c));
    json_t *structure = structure_of(t);
    require_window(c, s->set);
    ckpt_require_same(c, "structure", structure, settings_word);
    json_decref(structure);
    ckpt_require_ema(c, STATE_EMA, s->set->ema_decay, "use another output_dir");
    config_log_changes(l, json_string_value(json_object_get(ckpt_meta(c), "config")));
    ckpt_load(c, s->fsdp, STATE_MASTER, STATE_MASTER);
    if (!json_object_get(ckpt_meta(c), "provenance")) {
        ckpt_load(c, s->fsdp, STATE_M, STATE_M);
        ckpt_load(c, s->fsdp, STATE_V, STATE_V);
    } else {
        log_info("%s is merged and holds no moments: they begin at 0", ckpt_path(c));
    }
    if (s->set->ema_decay > 0) ckpt_load(c, s->fsdp, STATE_EMA, STATE_EMA);
    const double init_max = t->state.clip.init_max;
    take_state(&t->state, json_object_get(ckpt_meta(c), "state"));
    t->state.clip.init_max = init_max;
    log_info("resumed from %s at step %lld", ckpt_path(c), (long long)t->state.step);
    ckpt_close(c);
    err_pop();
    return true;
}
