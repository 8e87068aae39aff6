#include "train/build.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/fault.h"
#include "core/io.h"
#include "core/log.h"
#include "data/build.h"
#include "data/dataset_same.h"
#include "parallel/launch.h"
#include "train/args.h"
#include "train/print_config.h"
#include "train/verbs.h"

static const char usage[] = "osp data CONFIG [key=value ...] [--print-config] [--help-config]\n"
                            "Reads clip descriptions (JSON, CSV or an index of them), filters, "
                            "decodes and encodes the clips\n"
                            "and writes one HDF5 data set with latents and text embeddings.";

static bool interrupted(void) { return launch_signal() != 0; }

/* While rank 0 builds, the others wait in small reductions, about two a second, that carry the wish
 * to stop of any rank to it. */
static struct {
    struct comm *world;
    double last;
    bool stop;
} build_poll;

static bool poll_others(double now, double done)
{
    fault_hit("poll");
    double x[2] = {launch_signal() != 0, done};
    comm_sum_f64(build_poll.world, x, 2, "data set is being built");
    build_poll.stop |= x[0] > 0;
    build_poll.last = now;
    return x[1] > 0;
}

static bool interrupted_anywhere(void)
{
    const double now = log_seconds();
    if (now - build_poll.last > 0.5) poll_others(now, 0);
    return build_poll.stop;
}

static struct data_build build_of(const struct settings *s)
{
    const struct filter_config *f = &s->job.filter;
    return (struct data_build){.ann_txt_path = s->job.ann_txt_path,
                               .meta_path = s->job.meta_path,
                               .save_path = s->job.save_path,
                               .overwrite = s->job.overwrite,
                               .codec = s->data.codec,
                               .text_codec = s->data.text_codec,
                               .filter = {.sample_height = s->data.sample_height,
                                          .sample_width = s->data.sample_width,
                                          .sample_num_frames = s->data.sample_num_frames,
                                          .train_fps = s->data.train_fps,
                                          .sample_stride = s->data.sample_stride,
                                          .min_hxw = f->min_hxw,
                                          .too_long_factor = f->too_long_factor,
                                          .max_h_div_w_ratio = f->max_h_div_w_ratio,
                                          .min_h_div_w_ratio = f->min_h_div_w_ratio,
                                          .min_motion_value = f->min_motion_value,
                                          .max_motion_value = f->max_motion_value},
                               .window_stride = s->data.window_stride,
                               .text_dim = s->model.text_dim,
                               .text_len = s->data.text_max_length,
                               .max_failure_rate = f->max_failure_rate,
                               .interrupted = interrupted};
}

/* A training configuration builds with filter rules that let its own source pass. */
static struct data_build build_for_training(const struct settings *s)
{
    struct data_build b = build_of(s);
    b.ann_txt_path = NULL;
    b.meta_path = s->data.source;
    b.save_path = s->data.metafile_or_dir;
    b.filter.min_hxw = (double)(s->data.sample_height * s->data.sample_width);
    b.filter.too_long_factor = 1e9;
    b.filter.max_h_div_w_ratio = 10;
    b.filter.min_h_div_w_ratio = 0.1;
    b.filter.min_motion_value = 0;
    b.filter.max_motion_value = 1e9;
    b.max_failure_rate = 0;
    b.keep_existing = true; /* another job may have built it since we looked */
    return b;
}

/* A data set that exists is used as it is; a configuration that says something else is wrong. */
static void require_same_data(const struct settings *s, const struct dataset *d)
{
    const struct data_config *g = &s->data;
    char *text = NULL;
    size_t size;
    FILE *report = open_memstream(&text, &size);
    CHECK(report, "out of memory");
    const struct dataset_spec asked = {.codec = g->codec,
                                       .text_codec = g->text_codec,
                                       .frames = g->sample_num_frames,
                                       .height = g->sample_height,
                                       .width = g->sample_width,
                                       .text_len = g->text_max_length,
                                       .fps = g->train_fps,
                                       .sample_stride = g->sample_stride,
                                       .window_stride = g->window_stride};
    const int problems = dataset_differs(report, d, &asked, "data_config.dataset_config.");
    fclose(report);
    if (problems)
        err_stop(RC_CONFIG,
                 "%s was made with other settings; change the keys, or name a new data set in "
                 "data_config.dataset_config.metafile_or_dir_path:%s",
                 d->path, text);
    free(text);
}

struct dataset *build_or_open(struct comm *world, const struct settings *s)
{
    struct err e = {0};
    const char *path = s->data.metafile_or_dir;
    if (s->data.dataset_name == 1)
        err_stop(RC_CONFIG,
                 "data_config.dataset_name: t2v_random (noise, which teaches nothing) is not "
                 "built; name a data set with wan_t2v");
    if (!path)
        err_stop(RC_CONFIG, "data_config.dataset_config.metafile_or_dir_path: name the data set "
                            "(made by osp data)");
    unsigned char build = world->rank == 0 && s->data.source && !io_exists(path);
    comm_broadcast_bytes(world, &build, sizeof build, 0, "is there a data set");
    build_poll.world = world;
    if (build && world->rank == 0) {
        struct data_build b = build_for_training(s);
        b.interrupted = interrupted_anywhere;
        build_dataset(&b, NULL, &e);
        poll_others(0, 1);
    } else if (build) {
        while (!poll_others(0, 0)) continue;
    } else if (world->rank == 0 && !io_exists(path)) {
        err_set(&e, RC_NOINPUT,
                "%s: no such data set; make it with osp data, or name its clips in "
                "data_config.dataset_config.source",
                path);
    }
    comm_broadcast_bytes(world, &e, sizeof e, 0, "data set");
    if (e.code == RC_PREEMPTED) {
        log_info("%s", e.msg);
        launch_leave(world, RC_PREEMPTED);
    }
    err_raise(&e);
    struct dataset *d = dataset_open(path, s->validation.window, &e);
    err_raise(&e);
    require_same_data(s, d);
    if (s->validation.interval > 0 && d->num_valid == 0)
        err_stop(RC_DATA,
                 "%s: no held-out windows to validate on; raise validation.window (%g) or set "
                 "validation.interval: 0",
                 path, s->validation.window);
    if (d->num_train == 0)
        err_stop(RC_DATA, "%s: no training windows; lower validation.window (%g) or window_stride",
                 path, s->validation.window);
    return d;
}

int verb_data(int argc, char **argv)
{
    struct args a;
    args_parse(&a, argc, argv, usage);
    args_no_rest(&a, usage);
    if (a.help_config || a.print_config) return print_config(SETTINGS_DATA, &a);
    if (!a.config) err_stop(RC_USAGE, "%s", usage);
    struct loaded_settings l;
    settings_load(&l, SETTINGS_DATA, a.config, a.sets, a.num_sets);
    launch_catch_signals();
    const struct data_build b = build_of(&l.s);
    struct err e = {0};
    build_dataset(&b, NULL, &e);
    err_raise(&e);
    settings_free(&l);
    args_free(&a);
    return RC_OK;
}
