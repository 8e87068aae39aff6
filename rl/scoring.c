#include "rl/scoring.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "parallel/launch.h"
#include "rl/frames.h"
#include "rl/identity.h"
#include "rl/scorer_device.h"

static bool scores(const struct mesh *m) { return m->axis[AXIS_SEQ]->rank == 0; }

static char *text(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static char *text(const char *fmt, ...)
{
    va_list ap;
    char *out;
    va_start(ap, fmt);
    const int n = vasprintf(&out, fmt, ap);
    va_end(ap);
    CHECK(n >= 0, "out of memory");
    return out;
}

/* ---- opening ----------------------------------------------------------------------------------*/
static void choose_device(struct scoring *s, char device[SCORER_DEVICE], struct err *e)
{
    const int gpus = scorer_gpus("/dev", getenv("CUDA_VISIBLE_DEVICES"));
    memset(device, 0, SCORER_DEVICE);
    scorer_device(s->opts.reward->device, dev_local_rank(), gpus, device, e);
}

static void tell_devices(struct comm *world, const char device[SCORER_DEVICE])
{
    enum { SHOWN = 16 };
    char *all = calloc((size_t)world->size, SCORER_DEVICE), line[SHOWN * (SCORER_DEVICE + 16)] = "";
    CHECK(all, "out of memory");
    comm_gather_bytes(world, all, device, SCORER_DEVICE, "devices of the scorers");
    int shown = 0, more = 0;
    for (int r = 0; r < world->size; r++) {
        const char *d = all + (size_t)r * SCORER_DEVICE;
        const size_t n = strlen(line);
        if (!*d) continue; /* it does not score */
        if (shown++ < SHOWN)
            snprintf(line + n, sizeof line - n, "%srank %d on %s", n ? ", " : "", r, d);
        else
            more++;
    }
    log_info("scorers of %s%s", line, more ? ", ..." : "");
    free(all);
}

static void describe(struct scoring *s, const char *device)
{
    const struct reward_settings *r = s->opts.reward;
    const bool official = r->profile == 0;
    if (r->command)
        s->options = text("source_fps=%g\ndevice=%s\n", s->opts.fps, device);
    else
        s->options = text("videoalign_dir=%s\nbase_dir=%s\ntemplate=%s\nprofile=%s\ndevice=%s\n",
                          r->videoalign_dir, r->model_dir,
                          r->template_dir ? r->template_dir : r->videoalign_dir,
                          official ? "official" : "true_fps", device);
}

/* VideoAlign looks at few frames only; other scorers get all. */
static void choose_frames(struct scoring *s)
{
    const int total = (int)s->opts.frames;
    s->index = calloc((size_t)total + 1, sizeof *s->index);
    CHECK(s->index, "out of memory");
    if (s->opts.reward->command) {
        for (int i = 0; i < total; i++) s->index[s->num_index++] = i;
        return;
    }
    const double fps = s->opts.reward->profile == 0 ? 8 : s->opts.fps;
    s->num_index = frames_pick(total, fps, FRAMES_FPS, s->index, total);
    if (!s->num_index)
        err_stop(RC_CONFIG, "a clip of %d frame cannot be scored by VideoAlign", total);
}

/* A whole rollout batch finds a place, so that the next rollout begins beside its scores; at least
 * two clips of every scorer do. */
static int slots(const struct scoring_opts *o)
{
    const int64_t few = 2 * (o->reward->workers > 0 ? o->reward->workers : 1) + 2;
    return (int)(o->batch + 2 > few ? o->batch + 2 : few);
}

static struct reward *start(struct scoring *s, struct spawner *p, struct err *e)
{
    const struct reward_settings *w = s->opts.reward;
    struct comm *dp = s->mesh->axis[AXIS_DP];
    const struct reward_config c = {.command = s->opts.command,
                                    .workers = (int)w->workers,
                                    .slots = slots(&s->opts),
                                    .slot_bytes =
                                        (size_t)(s->num_index * s->opts.height * s->opts.width * 3),
                                    .log_dir = s->opts.log_dir,
                                    .first_log = dp->rank * (int)w->workers,
                                    .rank = dp->rank,
                                    .ranks = dp->size,
                                    .options = s->options,
                                    .start_s = w->start_s,
                                    .request_s = w->request_s,
                                    .score_limit = w->score_limit};
    struct reward *r = reward_open(p, &c, e);
    if (r && !reward_ready(r, e)) {
        reward_close(r);
        r = NULL;
    }
    return r;
}

/* The first failure of any rank, told by all. */
static void raise_first(struct comm *world, const struct err *mine)
{
    struct err *all = calloc((size_t)world->size, sizeof *all);
    CHECK(all, "out of memory");
    comm_gather_bytes(world, all, mine, sizeof *mine, "scorers");
    struct err first = {0};
    for (int r = 0; r < world->size && !first.code; r++) first = all[r];
    free(all);
    err_raise(&first);
}

/* Ranks have a GPU each; a scorer that says which one is not another scorer. */
static void without_device(char *lines)
{
    char *p = strncmp(lines, "device=", 7) ? strstr(lines, "\ndevice=") : lines;
    if (!p) return;
    p += *p == '\n';
    const char *end = p + strcspn(p, "\n");
    end += *end == '\n';
    memmove(p, end, strlen(end) + 1);
}

static void share_identity(struct scoring *s, struct comm *world)
{
    char said[8192] = "";
    if (s->reward) {
        s->dims = reward_dims(s->reward, s->name);
        char *id = reward_identity(s->reward);
        snprintf(said, sizeof said, "%s", id);
        free(id);
    }
    comm_broadcast_bytes(world, &s->dims, sizeof s->dims, 0, "scorers");
    comm_broadcast_bytes(world, s->name, sizeof s->name, 0, "scorers");
    char first[8192];
    memcpy(first, said, sizeof said);
    comm_broadcast_bytes(world, first, sizeof first, 0, "scorers");
    s->identity = strdup(first);
    CHECK(s->identity, "out of memory");
    without_device(first);
    without_device(said);
    struct err e = {0};
    char why[1024], notice[1024] = "";
    if (s->reward && !identity_same(first, said, why, notice, sizeof why))
        err_set(&e, RC_CONFIG, "the scorers of rank 0 and of this rank differ: %s", why);
    if (*notice) log_warn("scorers of rank 0 against those of this rank: %s", notice);
    raise_first(world, &e);
}

struct scoring *scoring_open(struct spawner *p, struct mesh *mesh, struct scoring_opts o)
{
    struct scoring *s = calloc(1, sizeof *s);
    CHECK(s, "out of memory");
    struct comm *world = mesh->axis[AXIS_WORLD];
    s->mesh = mesh;
    s->opts = o;
    char device[SCORER_DEVICE] = "";
    struct err e = {0};
    if (scores(mesh)) choose_device(s, device, &e);
    raise_first(world, &e);
    tell_devices(world, device);
    describe(s, device);
    choose_frames(s);
    if (scores(mesh)) {
        s->reward = start(s, p, &e);
        s->rgb = malloc((size_t)(3 * o.frames * o.height * o.width));
        CHECK(s->rgb, "out of memory");
    }
    raise_first(world, &e);
    share_identity(s, world);
    return s;
}

void scoring_close(struct scoring *s)
{
    if (!s) return;
    if (s->reward) reward_close(s->reward);
    free(s->identity);
    free(s->options);
    free(s->row);
    free(s->rgb);
    free(s->index);
    free(s);
}

/* ---- submitting -------------------------------------------------------------------------------*/
static struct score_row *add_row(struct scoring *s, struct group_entry entry)
{
    if (s->num_rows == s->room) {
        s->room = s->room ? 2 * s->room : 64;
        s->row = realloc(s->row, (size_t)s->room * sizeof *s->row);
        CHECK(s->row, "out of memory");
    }
    struct score_row *r = &s->row[s->num_rows++];
    memset(r, 0, sizeof *r); /* rows travel as bytes */
    r->entry = entry;
    snprintf(r->reason, sizeof r->reason, "no result yet");
    return r;
}

/* Collective: until every rank that scores has a slot, or can get none. All wait together, a second
 * at a time, so that nobody is found missing in a collective. False: a rank was asked to stop. */
static bool wait_slots(struct scoring *s, struct reward_slot **slot)
{
    *slot = NULL;
    for (;;) {
        if (s->reward && !*slot) *slot = reward_acquire(s->reward, 1);
        const bool wants = s->reward && !*slot && reward_state(s->reward) == REWARD_OK;
        double x[2] = {wants, launch_signal() != 0};
        comm_max_f64(s->mesh->axis[AXIS_WORLD], x, 2, "slots of the scorers");
        if (x[0] == 0) return true;
        if (x[1] == 0) continue;
        if (*slot) reward_drop(s->reward, *slot);
        return false;
    }
}

static void submit(struct scoring *s, struct reward_slot *slot, struct score_row *row,
                   const char *prompt)
{
    const struct scoring_opts *o = &s->opts;
    if (!slot) {
        snprintf(row->reason, sizeof row->reason, "no scorer is left");
        return;
    }
    frames_copy(slot->data, s->rgb, o->frames, o->height, o->width, s->index, s->num_index);
    const bool declared = o->reward->profile == 0 && !o->reward->command;
    const struct reward_clip clip = {.frames = s->num_index,
                                     .height = (int)o->height,
                                     .width = (int)o->width,
                                     .fps = declared ? 8 : o->fps,
                                     .total = (int)o->frames,
                                     .index = s->index};
    struct err e = {0};
    if (reward_submit(s->reward, slot, (uint64_t)row->entry.sample, prompt, &clip, &e)) return;
    reward_drop(s->reward, slot);
    snprintf(row->reason, sizeof row->reason, "%.120s", e.msg);
}

bool scoring_submit(struct scoring *s, struct group_entry entry, const char *prompt,
                    const float *latent)
{
    const struct scoring_opts *o = &s->opts;
    struct score_row *row = s->reward ? add_row(s, entry) : NULL;
    const double t0 = log_seconds();
    if (s->reward) o->codec->decode(s->rgb, latent, o->frames, o->height, o->width);
    const double t1 = log_seconds();
    struct reward_slot *slot;
    const bool go_on = wait_slots(s, &slot);
    s->decode_s += t1 - t0;
    s->wait_s += log_seconds() - t1;
    if (go_on && s->reward) submit(s, slot, row, prompt);
    return go_on;
}

const uint8_t *scoring_clip(const struct scoring *s) { return s->rgb; }

/* ---- collecting -------------------------------------------------------------------------------*/
static void take(struct scoring *s, const struct reward_result *r)
{
    for (int i = 0; i < s->num_rows; i++) {
        struct score_row *row = &s->row[i];
        if ((uint64_t)row->entry.sample != r->id) continue;
        row->valid = r->valid;
        memcpy(row->raw, r->raw, sizeof row->raw);
        memcpy(row->norm, r->norm, sizeof row->norm);
        snprintf(row->reason, sizeof row->reason, "%.120s", r->reason);
    }
}

static void poll_all(struct scoring *s)
{
    struct reward_result r[16];
    int n;
    do {
        n = reward_poll(s->reward, r, 16);
        for (int i = 0; i < n; i++) take(s, &r[i]);
    } while (n == 16);
}

enum scoring_state scoring_collect(struct scoring *s, double seconds, bool stop)
{
    double x[3] = {0, 0, stop};
    if (s->reward) {
        const double t0 = log_seconds();
        const enum reward_state state = reward_flush(s->reward, seconds);
        s->wait_s += log_seconds() - t0;
        poll_all(s);
        x[0] = state == REWARD_LATE;
        x[1] = state == REWARD_DEAD || reward_state(s->reward) == REWARD_DEAD;
    }
    comm_max_f64(s->mesh->axis[AXIS_WORLD], x, 3, "scores");
    return x[2] > 0   ? SCORING_STOP
           : x[1] > 0 ? SCORING_DEAD
           : x[0] > 0 ? SCORING_WAITS
                      : SCORING_DONE;
}

void scoring_give_up(struct scoring *s, const char *reason)
{
    if (!s->reward) return;
    reward_give_up(s->reward, reason);
    poll_all(s);
}

static int by_sample(const void *a, const void *b)
{
    const int64_t x = ((const struct score_row *)a)->entry.sample,
                  y = ((const struct score_row *)b)->entry.sample;
    return (x > y) - (x < y);
}

struct score_row *scoring_table(struct scoring *s, int64_t *n)
{
    struct comm *seq = s->mesh->axis[AXIS_SEQ], *dp = s->mesh->axis[AXIS_DP];
    int local = s->num_rows;
    comm_broadcast_bytes(seq, &local, sizeof local, 0, "scores");
    const size_t bytes = (size_t)local * sizeof(struct score_row);
    struct score_row *mine = calloc((size_t)local + 1, sizeof *mine),
                     *all = calloc((size_t)(local * dp->size) + 1, sizeof *all);
    CHECK(mine && all, "out of memory");
    if (s->reward) memcpy(mine, s->row, bytes);
    comm_broadcast_bytes(seq, mine, bytes, 0, "scores");
    comm_gather_bytes(dp, all, mine, bytes, "scores");
    free(mine);
    *n = (int64_t)local * dp->size;
    qsort(all, (size_t)*n, sizeof *all, by_sample);
    s->num_rows = 0;
    return all;
}
