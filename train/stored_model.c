#include "train/stored_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int64_t take(const json_t *o, const char *key, const char *path, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_number(v) && !e->code)
        err_set(e, RC_DATA, "%s: the manifest does not say \"%s\"", path, key);
    return (int64_t)json_number_value(v);
}

static void take_text(const json_t *o, const char *key, char *out, size_t size, const char *path,
                      struct err *e)
{
    const char *v = json_string_value(json_object_get(o, key));
    if (!v && !e->code) err_set(e, RC_DATA, "%s: the manifest does not say \"%s\"", path, key);
    snprintf(out, size, "%s", v ? v : "");
}

void stored_model_read(struct stored_model *m, const struct ckpt *c, struct err *e)
{
    const char *p = ckpt_path(c);
    const json_t *s = json_object_get(ckpt_meta(c), "structure"),
                 *d = json_object_get(ckpt_meta(c), "data");
    *m = (struct stored_model){
        .path = strdup(p), .step = ckpt_step(c), .identity = ckpt_identity(c)};
    m->config = (struct model_config){
        .dim = take(s, "model_config.dim", p, e),
        .ffn_dim = take(s, "model_config.ffn_dim", p, e),
        .freq_dim = take(s, "model_config.freq_dim", p, e),
        .in_dim = take(s, "model_config.in_dim", p, e),
        .out_dim = take(s, "model_config.out_dim", p, e),
        .num_heads = take(s, "model_config.num_heads", p, e),
        .num_layers = take(s, "model_config.num_layers", p, e),
        .text_dim = take(s, "model_config.text_dim", p, e),
        .text_len = take(s, "model_config.text_len", p, e),
        .eps = json_number_value(json_object_get(s, "model_config.eps")),
        .skiparse_model_type = (int)take(s, "model_config.skiparse_model_type", p, e),
        .sparse_ratio = take(s, "model_config.sparse_ratio", p, e),
        .num_full_blocks = take(s, "model_config.num_full_blocks", p, e),
        .skiparse_dim = (int)take(s, "model_config.skiparse_dim", p, e)};
    const json_t *full = json_object_get(s, "model_config.full_block_indices");
    for (size_t i = 0; i < json_array_size(full) && i < CFG_MAX_ITEMS; i++)
        m->config.full_block_indices.v[m->config.full_block_indices.n++] =
            json_integer_value(json_array_get(full, i));
    m->frames = take(d, "frames", p, e);
    m->height = take(d, "height", p, e);
    m->width = take(d, "width", p, e);
    m->fps = json_number_value(json_object_get(d, "fps"));
    take_text(d, "codec", m->codec, sizeof m->codec, p, e);
    take_text(d, "text_codec", m->text_codec, sizeof m->text_codec, p, e);
    if (!e->code && !(m->config.eps > 0))
        err_set(e, RC_DATA, "%s: the manifest has no model_config.eps", p);
}

void stored_model_free(struct stored_model *m) { free(m->path); }
