/* Shared by reward.c (the calls) and reward_queue.c (the thread that looks after the scorers). */
#ifndef RL_REWARD_IMPL_H
#define RL_REWARD_IMPL_H
#include <pthread.h>

#include "rl/reward.h"
#include "rl/reward_worker.h"

/* A slot is free, or of the caller, or holds a clip until its result; after reward_give_up a clip
 * that a scorer has is left to it until its answer or its end. */
enum slot_state { SLOT_FREE, SLOT_OF_CALLER, SLOT_QUEUED, SLOT_SENT, SLOT_LEFT };
struct slot {
    struct reward_slot pub; /* first, so that a pointer to it is one to the slot */
    enum slot_state state;
    uint64_t id, order; /* the caller's; position in the queue */
    uint64_t request;   /* on the wire, new for every attempt */
    struct wire_score clip;
    char *prompt;
    int attempts, deaths, worker; /* worker: the one that has or had it, -1 */
    char last[REWARD_REASON];     /* why the last attempt failed */
};
struct reward {
    struct worker_rules rules;
    int max_attempts, max_deaths, rank, ranks;
    double score_limit;
    char beyond[80]; /* what a score beyond it is called */
    char *command, *options;
    struct spawner *spawner;
    struct worker *worker;
    int num_workers;
    struct slot *slot;
    int num_slots;
    uint8_t *memory;
    size_t memory_bytes;
    int dims; /* 0: not known yet */
    char name[REWARD_DIMS][REWARD_NAME];
    double selftest[REWARD_DIMS];
    int num_selftest;
    struct reward_result *done;
    int num_done, room_done;
    uint64_t next_order, next_request;
    struct reward_stats stats;
    double paused, looked; /* the supervisor's clock stands while the process does */
    bool closing, dead;
    int wake; /* eventfd */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};
/* The thread. It alone touches the workers and their descriptors; everything under the lock. */
void *reward_supervise(void *r);
/* With the lock held. */
void reward_free_slot(struct reward *r, struct slot *s);
void reward_invalid(struct reward *r, struct slot *s, const char *reason); /* the slot stays */
#endif
