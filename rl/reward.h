/* Scores for finished clips, from scorer processes that cannot hurt the training (docs/reward.md,
 * docs/spec/rl.md 6). A clip is written into a slot of shared memory, submitted, and its scores are
 * polled some time later; a thread of this module looks after the processes meanwhile: a scorer
 * that crashes, hangs, is stopped or talks nonsense is killed, its clips go to another one or wait
 * for its restart. Every submitted clip gets exactly one result; one that cannot be scored gets an
 * invalid one with the reason.
 *
 *     struct spawner *p = reward_prepare(&e);      before MPI_Init and CUDA, on the main thread
 *     struct reward *r = reward_open(p, &config, &e);
 *     if (reward_ready(r, &e)) ...                 waits until all scorers have loaded
 *     slot = reward_acquire(r, 60); fill slot->data; reward_submit(r, slot, id, prompt, &clip, &e);
 *     n = reward_poll(r, results, max);            never waits
 *     reward_flush(r, 600);                        until all are scored
 *     reward_close(r); reward_release(p);
 *
 * All calls are safe from several threads. REWARD_DEAD (no scorer is left) is for the trainer to
 * write a checkpoint and leave with RC_TEMP; nothing here ends the program. */
#ifndef RL_REWARD_H
#define RL_REWARD_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
enum { REWARD_DIMS = 8, REWARD_NAME = 32, REWARD_REASON = 512, REWARD_PROMPT = 16384 };

struct reward_config {   /* 0 and NULL: the default in brackets */
    const char *command; /* program and arguments; '...' and "..." keep blanks; no shell */
    int workers;         /* processes [1] */
    int slots;           /* clips in memory at a time [2 per worker + 2] */
    size_t slot_bytes;   /* of the largest clip; no default */
    const char *log_dir; /* reward_%d.log go there ["."] */
    int first_log;       /* number of the first worker; ranks that share log_dir differ [0] */
    int rank, ranks;     /* for log lines */
    const char *const
        *env;            /* NAME=VALUE, NULL-terminated, for the scorers; yours until the close */
    const char *options; /* "key=value\n" lines for the scorers (source_fps, ...) */
    double start_s;      /* until READY [600] */
    double ping_s;       /* between heartbeats [5] */
    int missed_pings;    /* silence of so many is an end [3] */
    double request_s;    /* for one clip, from when the scorer may begin [80] */
    int max_restarts;    /* within restart_window_s, then that worker is given up [5]; negative:
                            no limit */
    double restart_window_s, backoff_s, backoff_max_s; /* [600, 1, 60]; backoff_s negative: none */
    int max_attempts;                                  /* of one clip [3] */
    int max_deaths;     /* a clip that so many scorers died of is invalid [2] */
    double score_limit; /* a raw score beyond it is invalid [100] */
};

struct spawner;
struct reward;
/* Forks the small process that starts the scorers. NULL: e says why. */
struct spawner *reward_prepare(struct err *e);
/* Ends it and whatever scorers are left. NULL: nothing. */
void reward_release(struct spawner *p);
/* Starts the scorers; one at a time uses p. NULL: e says what is wrong with the configuration. */
struct reward *reward_open(struct spawner *p, const struct reward_config *c, struct err *e);
/* Waits until every scorer is ready. False: e has the reason, which at the first start is taken
 * for a mistake in the configuration. */
bool reward_ready(struct reward *r, struct err *e);
int reward_dims(const struct reward *r, char name[REWARD_DIMS][REWARD_NAME]); /* after ready */
/* What the scorers said about themselves, "key=value" lines without what differs by process: the
 * scale of the rewards depends on it, so it belongs into the checkpoint. malloc'ed. */
char *reward_identity(struct reward *r);

enum reward_state { REWARD_OK, REWARD_LATE, REWARD_DEAD };
struct reward_slot {
    uint8_t *data; /* uint8 RGB, [frames][height][width][3] */
    size_t bytes;
};
struct reward_clip {
    int frames, height, width;
    double fps;       /* of the source */
    int total;        /* frames of the source; 0: frames */
    const int *index; /* [frames] which of them these are; NULL: all, from the first */
    bool resized;     /* the frames have the scorer's size already */
};
/* A slot of the caller's; waits at most so long for one. NULL: none yet, or no scorer is left. */
struct reward_slot *reward_acquire(struct reward *r, double seconds);
/* Takes the slot. False: e says what is wrong with the input; the slot stays the caller's. An id
 * may come again once its result was polled. */
bool reward_submit(struct reward *r, struct reward_slot *slot, uint64_t id, const char *prompt,
                   const struct reward_clip *clip, struct err *e);
void reward_drop(struct reward *r, struct reward_slot *slot); /* unsubmitted, back */

struct reward_result {
    uint64_t id;
    bool valid;
    double raw[REWARD_DIMS], norm[REWARD_DIMS]; /* finite; zeros when not valid */
    char reason[REWARD_REASON];                 /* why it is not valid */
    int worker, attempts, frames_used, tokens;
    float ms;
};
/* Results since the last call, in the order in which they came. Never waits. */
int reward_poll(struct reward *r, struct reward_result *out, int max);
/* Waits until no submitted clip is without result. Call it with short times in a loop that looks at
 * signals. REWARD_LATE: some are missing still. */
enum reward_state reward_flush(struct reward *r, double seconds);
/* Gives an invalid result with this reason to every clip without one; returns how many. */
int reward_give_up(struct reward *r, const char *reason);
enum reward_state reward_state(struct reward *r); /* REWARD_OK or REWARD_DEAD */

struct reward_stats {
    int64_t submitted, scored, invalid, retries, restarts, violations;
    int queued, in_flight, ready_workers, lost_workers;
    double wait_s; /* that acquire and flush have waited */
    double busy_s; /* of all scorers */
};
struct reward_stats reward_stats(struct reward *r);
/* Scorers leave, or are killed after a moment; nothing is left of them. Clips without a result are
 * forgotten. */
void reward_close(struct reward *r);
#endif
