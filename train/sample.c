/* Verb sample: prompts to mp4 files, a contact sheet and a manifest. Items already in the manifest
 * with the same parameters are not made again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/fault.h"
#include "core/io.h"
#include "core/log.h"
#include "data/codec.h"
#include "data/dataset.h"
#include "data/video.h"
#include "model/flow.h"
#include "model/sampler.h"
#include "parallel/launch.h"
#include "train/adapter.h"
#include "train/args.h"
#include "train/print_config.h"
#include "train/compare.h"
#include "train/prompts.h"
#include "train/session.h"
#include "train/sheet.h"
#include "train/stored_model.h"
#include "train/verbs.h"

static const char usage[] =
    "osp sample CONFIG [key=value ...] [--print-config] [--help-config]\n"
    "Samples videos from a checkpoint: mp4 files, contact sheets (sheet.png, video_grid.mp4; rows\n"
    "are prompts, columns samples) and samples.json in output_dir.\n"
    "Run it again after an interruption: finished items are kept.";

enum { SHEET_BYTES = 256 << 20 }; /* of frames, while all videos are put into one */
struct sampling {
    struct loaded_settings l;
    struct prompts prompts;
    struct session *ses;
    struct ckpt *base, *adapter; /* until they are read */
    struct stored_model model;
    struct adapter_info lora;  /* rank 0: none */
    enum state_kind lora_kind; /* which of its weights */
    uint32_t lora_identity;
    const struct video_codec *codec;
    const struct text_codec *text_codec;
    struct sampler sampler;
    struct compare *compare; /* NULL: not asked for */
    double *sigma;
    int items, per_prompt;
    json_t *manifest; /* rank 0's, shared: what is done already */
    bool *todo;       /* [items] */
    double started;
    int done, pending;
};

/* Without guidance there is no second branch to compute. */
static bool guided(const struct sampling *s) { return s->l.s.scheduler.guidance_scale > 1; }
static bool batched(const struct sampling *s) { return guided(s) && s->l.s.sample.batched_cfg; }

static int prompt_of(const struct sampling *s, int item) { return item / s->per_prompt; }
static int seed_of(const struct sampling *s, int item) { return item % s->per_prompt; }

static char *item_path(const struct sampling *s, int item)
{
    return io_path("%s/video_%06d_%02d.mp4", s->l.s.output_dir, prompt_of(s, item),
                   seed_of(s, item));
}

/* Everything that decides the result of an item. */
static json_t *item_json(const struct sampling *s, int item)
{
    const struct settings *c = &s->l.s;
    json_t *j = json_pack(
        "{s:i, s:s, s:i, s:s, s:I, s:I, s:f, s:f, s:s, s:I, s:b, s:b, s:I, s:I, s:I}", "item", item,
        "prompt", s->prompts.text[prompt_of(s, item)], "sample", seed_of(s, item),
        "negative_prompt", c->sample.negative_prompt ? c->sample.negative_prompt : "", "seed",
        (json_int_t)c->seed, "steps", (json_int_t)c->scheduler.num_inference_steps, "shift",
        c->scheduler.shift, "guidance", c->scheduler.guidance_scale, "checkpoint", s->model.path,
        "checkpoint_step", (json_int_t)s->model.step, "ema", c->sample.use_ema, "same_noise",
        c->sample.same_noise, "frames", (json_int_t)s->model.frames, "height",
        (json_int_t)s->model.height, "width", (json_int_t)s->model.width);
    json_object_set_new(j, "checkpoint_crc", json_integer(s->model.identity));
    json_object_set_new(j, "save_fps", json_real(c->sample.save_fps));
    json_object_set_new(j, "weight_dtype", json_integer(c->weight_dtype));
    json_object_set_new(j, "codec", json_string(s->model.codec));
    if (s->lora.config.rank) {
        json_object_set_new(j, "lora", json_string(c->sample.lora));
        json_object_set_new(j, "lora_crc", json_integer(s->lora_identity));
        json_object_set_new(j, "lora_ema", json_boolean(s->lora_kind == STATE_LORA_EMA));
    }
    return j;
}

static char *manifest_path(const struct sampling *s)
{
    return io_path("%s/samples.json", s->l.s.output_dir);
}

/* Videos of more prompts than are asked for this time stay known, under the same names. */
static void keep_others(struct sampling *s, const json_t *old)
{
    const json_t *items = json_object_get(old, "items");
    if (json_integer_value(json_object_get(old, "samples_per_prompt")) != s->per_prompt) return;
    for (size_t i = (size_t)s->items; i < json_array_size(items); i++)
        json_array_append(s->manifest, json_array_get(items, i));
}

/* Rank 0 decides what is left to do. */
static void find_todo(struct sampling *s, struct comm *world)
{
    struct err e = {0};
    unsigned char *todo = calloc((size_t)s->items, 1);
    CHECK(todo, "out of memory");
    if (world->rank == 0) {
        io_mkdir(s->l.s.output_dir, &e);
        char *path = manifest_path(s);
        json_t *old = !e.code && io_exists(path) ? json_load_file(path, 0, NULL) : NULL;
        free(path);
        s->manifest = json_array();
        for (int i = 0; i < s->items; i++) {
            json_t *want = item_json(s, i),
                   *was = json_array_get(json_object_get(old, "items"), (size_t)i);
            char *video = item_path(s, i);
            const bool same =
                was && json_equal(json_object_get(was, "parameters"), want) && io_exists(video);
            todo[i] = !same;
            json_array_append_new(s->manifest, same ? json_deep_copy(was) : json_null());
            json_decref(want);
            free(video);
        }
        keep_others(s, old);
        if (old) json_decref(old);
    }
    comm_broadcast_bytes(world, &e, sizeof e, 0, "output folder");
    err_raise(&e);
    comm_broadcast_bytes(world, todo, (size_t)s->items, 0, "items");
    s->todo = calloc((size_t)s->items, sizeof *s->todo);
    CHECK(s->todo, "out of memory");
    for (int i = 0; i < s->items; i++) {
        s->todo[i] = todo[i];
        s->pending += todo[i];
    }
    free(todo);
}

/* sheet NULL: there is none of these items yet. */
static void write_manifest(struct sampling *s, bool complete, const struct sheet_shape *sheet)
{
    json_t *all = json_pack("{s:s, s:b, s:i, s:O}", "format", "osp-samples", "complete", complete,
                            "samples_per_prompt", s->per_prompt, "items", s->manifest);
    if (sheet)
        json_object_set_new(all, "sheet",
                            json_pack("{s:i, s:I, s:I}", "videos", s->items, "rows",
                                      (json_int_t)sheet->rows, "columns",
                                      (json_int_t)sheet->columns));
    char *text = json_dumps(all, JSON_INDENT(1) | JSON_REAL_PRECISION(17)),
         *path = manifest_path(s);
    CHECK(text, "the manifest cannot be encoded");
    struct err e = {0};
    io_write_file(path, text, strlen(text), &e);
    err_raise(&e);
    free(text);
    free(path);
    json_decref(all);
}

/* Text rows of the items of a pass, or of the negative prompt. */
static struct tensor text_rows(struct sampling *s, const int *item, int n, bool negative)
{
    struct ctx *c = &s->ses->ctx;
    const struct model_config *m = &s->ses->dit->config;
    const int64_t per = m->text_len * m->text_dim;
    float *rows = calloc((size_t)(per * n), sizeof *rows);
    double *wide = calloc((size_t)(per * n), sizeof *wide);
    CHECK(rows && wide, "out of memory");
    for (int i = 0; i < n; i++) {
        const char *negative_text = s->l.s.sample.negative_prompt;
        const char *text = negative ? (negative_text ? negative_text : "")
                                    : s->prompts.text[prompt_of(s, item[i])];
        s->text_codec->encode(rows + i * per, m->text_len, m->text_dim, text);
    }
    for (int64_t i = 0; i < per * n; i++) wide[i] = (double)rows[i];
    struct tensor t = arena_new(c->keep, ctx_compute(c), 2, DIMS(n * m->text_len, m->text_dim));
    dev_put_f64(c->dev, t, wide);
    free(rows);
    free(wide);
    return t;
}

/* All ranks agree to stop here: what is done is in the manifest, the rest is made next time. */
static void stop_if_asked(const struct sampling *s)
{
    fault_hit("sample");
    if (!launch_stop(s->ses->world)) return;
    log_info("stopped by a signal after %d of %d videos; run again to go on", s->done, s->pending);
    launch_leave(s->ses->world, RC_PREEMPTED);
}

static void on_step(void *arg, int step)
{
    const struct sampling *s = arg;
    stop_if_asked(s);
    const double share = (s->done + (double)step / (double)s->l.s.scheduler.num_inference_steps) /
                         (s->pending > 0 ? s->pending : 1);
    const double spent = log_seconds() - s->started;
    if (step % 5 == 0)
        log_progress("sampling %d of %d videos, step %d  ETA %.0f s", s->done + 1, s->pending, step,
                     share > 0 ? spent * (1 - share) / (share < 1 ? share : 1) : 0.0);
}

/* Decodes and writes one latent; its distances go into the comparison. */
static void finish_item(struct sampling *s, int item, const double *latent, int64_t n)
{
    const struct stored_model *m = &s->model;
    float *z = calloc((size_t)n, sizeof *z);
    uint8_t *rgb = malloc((size_t)(3 * m->frames * m->height * m->width));
    CHECK(z && rgb, "out of memory");
    for (int64_t i = 0; i < n; i++) z[i] = (float)latent[i];
    if (s->compare) compare_item(s->compare, item, z);
    s->codec->decode(rgb, z, m->frames, m->height, m->width);
    json_t *parameters = item_json(s, item);
    char *comment = json_dumps(parameters, JSON_COMPACT), *path = item_path(s, item);
    struct err e = {0};
    video_write(path, rgb, m->frames, m->height, m->width, s->l.s.sample.save_fps, comment, &e);
    err_raise(&e);
    json_decref(parameters);
    free(comment);
    free(path);
    free(rgb);
    free(z);
}

/* One pass over up to B items of this data rank; idle ranks (no item left) take part in it. */
static void run_pass(struct sampling *s, const int *item, const bool *own, int B)
{
    struct session *ses = s->ses;
    struct ctx *c = &ses->ctx;
    struct rng_key noise[64];
    CHECK(B <= 64, "batch of %d", B);
    for (int i = 0; i < B; i++)
        noise[i] = (struct rng_key){
            .seed = (uint64_t)s->l.s.seed,
            .use = RNG_SAMPLE,
            .step = (uint32_t)seed_of(s, item[i]),
            .item = s->l.s.sample.same_noise ? 0 : (uint64_t)prompt_of(s, item[i])};
    arena_release(c->keep, 0);
    const struct sampler_job job = {.sigma = s->sigma,
                                    .steps = (int)s->l.s.scheduler.num_inference_steps,
                                    .guidance = s->l.s.scheduler.guidance_scale,
                                    .text = text_rows(s, item, B, false),
                                    .null = guided(s) ? text_rows(s, item, B, true)
                                                      : (struct tensor){0},
                                    .noise = noise,
                                    .progress = on_step,
                                    .arg = s};
    struct tensor latent = sampler_run(&s->sampler, &job);
    comm_all_reduce(ses->mesh.axis[AXIS_SEQ], latent, "latents", NULL);
    const int64_t n = tensor_width(latent);
    double *host = malloc((size_t)(n * B) * sizeof *host);
    CHECK(host, "out of memory");
    dev_get_f64(ses->dev, host, latent);
    for (int i = 0; i < B; i++)
        if (own[i] && ses->mesh.axis[AXIS_SEQ]->rank == 0) finish_item(s, item[i], host + i * n, n);
    free(host);
}

static void record_done(struct sampling *s, struct comm *world, int first, int last,
                        const int *order)
{
    comm_barrier(world, "videos written");
    if (s->compare) compare_share(s->compare, world);
    if (world->rank == 0) {
        for (int k = first; k < last; k++) {
            json_t *entry = json_pack("{s:o}", "parameters", item_json(s, order[k]));
            if (s->compare)
                json_object_set_new(entry, "distances", compare_json(s->compare, order[k]));
            json_array_set_new(s->manifest, (size_t)order[k], entry);
        }
        write_manifest(s, last == s->pending, NULL);
    }
    s->done = last;
}

static void run_all(struct sampling *s, struct comm *world)
{
    const int B = (int)s->l.s.sample.batch_size, dp = s->ses->mesh.dp;
    const int rank = s->ses->mesh.axis[AXIS_DP]->rank;
    int *order = calloc((size_t)s->items + 1, sizeof *order), n = 0;
    CHECK(order, "out of memory");
    for (int i = 0; i < s->items; i++)
        if (s->todo[i]) order[n++] = i;
    s->started = log_seconds();
    for (int base = 0; base < n; base += dp * B) {
        int item[64];
        bool own[64];
        for (int i = 0; i < B; i++) {
            const int k = base + rank * B + i;
            own[i] = k < n;
            item[i] = order[own[i] ? k : base];
        }
        run_pass(s, item, own, B);
        record_done(s, world, base, base + dp * B < n ? base + dp * B : n, order);
        if (s->done < n) stop_if_asked(s);
    }
    free(order);
}

static void write_sheet(struct sampling *s)
{
    char **paths = calloc((size_t)s->items, sizeof *paths);
    CHECK(paths, "out of memory");
    for (int i = 0; i < s->items; i++) paths[i] = item_path(s, i);
    char *picture = io_path("%s/sheet.png", s->l.s.output_dir),
         *video = io_path("%s/video_grid.mp4", s->l.s.output_dir);
    const struct sheet_job job = {.path = paths,
                                  .count = s->items,
                                  .samples = s->per_prompt,
                                  .frames = s->model.frames,
                                  .height = s->model.height,
                                  .width = s->model.width,
                                  .fps = s->l.s.sample.save_fps,
                                  .picture = picture,
                                  .video = video,
                                  .budget = SHEET_BYTES};
    struct err e = {0};
    const struct sheet_shape sheet = sheet_write(&job, &e);
    err_raise(&e);
    write_manifest(s, true, &sheet);
    log_info("%d video%s in %s; contact sheet %s, all in one %s", s->items,
             s->items == 1 ? "" : "s", s->l.s.output_dir, picture, video);
    for (int i = 0; i < s->items; i++) free(paths[i]);
    free(paths);
    free(picture);
    free(video);
}

/* Sizes of the configuration that contradict the checkpoint are errors, not adjusted. */
static void require_size(const struct loaded_settings *l, const char *key, int64_t asked,
                         int64_t stored)
{
    if (asked && asked != stored)
        settings_stop(l, RC_CONFIG, key,
                      "%lld, but the checkpoint was trained with %lld; leave the key out",
                      (long long)asked, (long long)stored);
}

static enum state_kind base_kind(const struct settings *c)
{
    return c->sample.use_ema ? STATE_EMA : STATE_MASTER;
}

/* lora_ema: auto takes what there is. */
static enum state_kind adapter_kind(const struct settings *c, const struct ckpt *adapter)
{
    const bool averaged =
        c->sample.lora_ema == 1 || (c->sample.lora_ema == 0 && ckpt_has(adapter, STATE_LORA_EMA));
    return averaged ? STATE_LORA_EMA : STATE_LORA;
}

/* Reads what the adapters are, and that they belong to the weights of `base` in use. */
static struct ckpt *open_adapter(struct sampling *s, struct comm *world, const struct ckpt *base)
{
    const struct settings *c = &s->l.s;
    struct err e = {0};
    settings_push(&s->l, "lora");
    struct ckpt *k = ckpt_open(world, c->sample.lora, true);
    adapter_info_read(&s->lora, k, &e);
    err_raise(&e);
    s->lora_identity = ckpt_identity(k);
    s->lora_kind = adapter_kind(c, k);
    if (!ckpt_has(k, s->lora_kind))
        err_stop(RC_CONFIG, "lora_ema: %s holds no averaged adapters; set lora_ema: false",
                 ckpt_path(k));
    if (s->lora.base.kind != base_kind(c) && !c->sample.lora_force_base)
        err_stop(RC_CONFIG,
                 "use_ema: %s was made for the %s weights of its base; set use_ema: %s, or "
                 "lora_force_base: true",
                 ckpt_path(k), s->lora.base.kind == STATE_EMA ? "averaged" : "raw",
                 s->lora.base.kind == STATE_EMA ? "true" : "false");
    struct adapter_base have = adapter_base_of(base, base_kind(c));
    adapter_require_base(k, &s->lora, &have, c->sample.lora_force_base);
    adapter_base_free(&have);
    log_info("adapters of rank %lld, alpha %g: %s weights of %s (step %lld)",
             (long long)s->lora.config.rank, s->lora.config.alpha,
             s->lora_kind == STATE_LORA_EMA ? "averaged" : "raw", ckpt_path(k),
             (long long)ckpt_step(k));
    err_pop();
    return k;
}

/* What the checkpoint holds, and that it goes with the configuration. */
static void open_base(struct sampling *s, struct comm *world)
{
    struct settings *c = &s->l.s;
    struct err e = {0};
    settings_push(&s->l, "checkpoint");
    struct ckpt *k = s->base = ckpt_open(world, c->sample.checkpoint, true);
    if (!ckpt_has(k, STATE_MASTER) && ckpt_has(k, STATE_LORA))
        err_stop(RC_CONFIG, "%s holds adapters only; give it as lora, and their base as checkpoint",
                 ckpt_path(k));
    stored_model_read(&s->model, k, &e);
    err_raise(&e);
    err_pop();
    require_size(&s->l, "num_frames", c->sample.num_frames, s->model.frames);
    require_size(&s->l, "height", c->sample.height, s->model.height);
    require_size(&s->l, "width", c->sample.width, s->model.width);
    if (c->sample.use_ema && !ckpt_has(k, STATE_EMA))
        settings_stop(&s->l, RC_CONFIG, "use_ema", "%s holds no EMA weights; set use_ema: false",
                      ckpt_path(k));
    if (!(c->sample.save_fps > 0)) c->sample.save_fps = s->model.fps > 0 ? s->model.fps : 16;
}

/* What is to be sampled, and from what; nothing is written before all is found. */
static void open_inputs(struct sampling *s, struct comm *world)
{
    const struct settings *c = &s->l.s;
    struct err e = {0};
    prompts_read(&s->prompts, c->sample.prompt_txt, &e);
    settings_raise(&s->l, &e);
    if (s->prompts.n == 1 && strcmp(s->prompts.text[0], c->sample.prompt_txt) == 0)
        log_info("prompt_txt: there is no file \"%s\", so that is the prompt", s->prompts.text[0]);
    open_base(s, world);
    if (c->sample.lora) s->adapter = open_adapter(s, world, s->base);
}

static void open_model(struct sampling *s, struct comm *world)
{
    struct settings *c = &s->l.s;
    struct err e = {0};
    s->codec = video_codec_find(s->model.codec, &e);
    err_raise(&e);
    s->text_codec = text_codec_find(s->model.text_codec, &e);
    err_raise(&e);
    int64_t z[4];
    s->codec->shape(s->model.frames, s->model.height, s->model.width, z, &e);
    err_raise(&e);
    prompts_log_cut(&s->prompts, "prompt_txt", s->text_codec, s->model.config.text_len);
    c->model = s->model.config;
    log_info("model_config comes from %s; that of the YAML is not used", s->model.path);
    c->lora = s->lora.config;
    const int B = (int)c->sample.batch_size * (batched(s) ? 2 : 1);
    const struct session_shape shape = {
        .batch = B, .t = z[1], .h = z[2], .w = z[3], .channels = z[0], .batched = batched(s)};
    session_open(s->ses, c, world, shape, false);
    struct ckpt *lora = s->adapter;
    if (lora) adapter_require_targets(lora, &s->lora, s->ses->lora, &c->lora, "leave lora out");
    c->lora = (struct lora_config){0}; /* the texts are those of s->lora */
    ckpt_load(s->base, s->ses->fsdp, STATE_MASTER, base_kind(c));
    if (lora) adapter_load(lora, s->ses->lora, STATE_LORA, s->lora_kind);
    ckpt_close(lora);
    ckpt_close(s->base);
    s->base = s->adapter = NULL;
}

static void prepare(struct sampling *s, struct comm *world)
{
    const struct settings *c = &s->l.s;
    s->per_prompt = (int)c->sample.samples_per_prompt;
    s->items = s->prompts.n * s->per_prompt;
    open_model(s, world);
    const int steps = (int)c->scheduler.num_inference_steps;
    s->sigma = calloc((size_t)steps + 1, sizeof *s->sigma);
    CHECK(s->sigma, "out of memory");
    flow_sampling_sigmas(s->sigma, steps, c->scheduler.shift);
    const struct session_shape *z = &s->ses->shape;
    sampler_init(&s->sampler, &s->ses->ctx, s->ses->dit, (int)c->sample.batch_size, (int)z->t,
                 (int)z->h / 2, (int)z->w / 2, batched(s));
    find_todo(s, world);
    if (c->sample.compare)
        s->compare = compare_open(c->sample.compare, &s->prompts, s->items, s->manifest);
}

int verb_sample(int argc, char **argv)
{
    struct args a;
    args_parse(&a, argc, argv, usage);
    args_no_rest(&a, usage);
    if (a.help_config || a.print_config) return print_config(SETTINGS_SAMPLE, &a);
    if (!a.config) err_stop(RC_USAGE, "%s", usage);
    struct comm *world = launch_start(&argc, &argv);
    struct sampling s = {.ses = calloc(1, sizeof *s.ses)};
    CHECK(s.ses, "out of memory");
    session_settings(world, &s.l, SETTINGS_SAMPLE, a.config, a.sets, a.num_sets);
    struct lock lock = {.fd = -1};
    session_lock_output(world, &lock, false, s.l.s.output_dir, "sample.lock", "osp sample");
    open_inputs(&s, world);
    session_lock_output(world, &lock, true, s.l.s.output_dir, "sample.lock", "osp sample");
    prepare(&s, world);
    log_info("%d video%s asked for, %d to make: %lld steps, guidance %g, %s weights of step %lld",
             s.items, s.items == 1 ? "" : "s", s.pending,
             (long long)s.l.s.scheduler.num_inference_steps, s.l.s.scheduler.guidance_scale,
             s.l.s.sample.use_ema ? "EMA" : "raw", (long long)s.model.step);
    run_all(&s, world);
    if (world->rank == 0) write_sheet(&s);
    if (s.compare && world->rank == 0) compare_print(s.compare, s.per_prompt);
    compare_close(s.compare);
    sampler_free(&s.sampler);
    session_close(s.ses);
    free(s.ses);
    free(s.sigma);
    free(s.todo);
    if (s.manifest) json_decref(s.manifest);
    lock_release(&lock);
    prompts_free(&s.prompts);
    stored_model_free(&s.model);
    adapter_info_free(&s.lora);
    settings_free(&s.l);
    args_free(&a);
    launch_end(world);
    return RC_OK;
}
