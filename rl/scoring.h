/* From clean latents to a table of scores that all ranks hold (docs/spec/rl.md 1.8, 1.9, 6). The
 * first rank of every sequence axis decodes, submits and collects; scoring runs beside whatever the
 * trainer does next. */
#ifndef RL_SCORING_H
#define RL_SCORING_H
#include "data/codec.h"
#include "parallel/mesh.h"
#include "rl/config.h"
#include "rl/groups.h"
#include "rl/reward.h"
struct score_row {
    struct group_entry entry;
    bool valid;
    double raw[REWARD_DIMS], norm[REWARD_DIMS];
    char reason[128]; /* why it is not valid */
};
struct scoring_opts {
    const struct reward_settings *reward;
    const char *command; /* of scorer_command; yours until the close */
    const struct video_codec *codec;
    int64_t frames, height, width;
    double fps;
    int64_t batch; /* clips of this rank between two rollouts */
    const char *log_dir;
};
struct scoring {
    struct mesh *mesh;
    struct scoring_opts opts;
    struct reward *reward; /* NULL on ranks that do not score */
    int dims;
    char name[REWARD_DIMS][REWARD_NAME];
    char *identity; /* of the scorer; the same on all ranks */
    char *options;
    struct score_row *row; /* submitted since the last table */
    int num_rows, room;
    uint8_t *rgb;            /* a decoded clip */
    int *index, num_index;   /* frames a scorer is given */
    double wait_s, decode_s; /* so far */
};
/* Collective: starts the scorers and waits for them; stops with what they said. p: of
 * reward_prepare; used on ranks that score. */
struct scoring *scoring_open(struct spawner *p, struct mesh *mesh, struct scoring_opts o);
void scoring_close(struct scoring *s);
/* Collective, equally often on all ranks. latent [C,T,H,W] of one sample; returns when the clips of
 * all ranks are with their scorers. A refused prompt, or no scorer left, is an invalid row. False:
 * a rank was asked to stop meanwhile, and nothing was submitted. */
bool scoring_submit(struct scoring *s, struct group_entry entry, const char *prompt,
                    const float *latent);
/* The clip that was submitted last: uint8 [3,F,H,W], until the next one; NULL: not on this rank. */
const uint8_t *scoring_clip(const struct scoring *s);
enum scoring_state {
    SCORING_DONE,
    SCORING_WAITS,
    SCORING_STOP,
    SCORING_DEAD /* a data rank has no scorer left; rows may be without score */
};
/* Collective: takes what has come, waits at most so long. stop: this rank wants to end; then all
 * see SCORING_STOP. */
enum scoring_state scoring_collect(struct scoring *s, double seconds, bool stop);
/* Collective: what has no score is invalid from here on. */
void scoring_give_up(struct scoring *s, const char *reason);
/* Collective: every row of every data rank since the last table, by sample number; malloc'ed. Every
 * data rank must have submitted equally many. */
struct score_row *scoring_table(struct scoring *s, int64_t *n);
#endif
