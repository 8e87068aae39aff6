/* One scorer process as the supervisor sees it: start, handshake, heartbeat, requests in flight,
 * end, start again. Used by one thread. Time is the supervisor's clock, in seconds. */
#ifndef RL_REWARD_WORKER_H
#define RL_REWARD_WORKER_H
#include "rl/reward_spawn.h"
#include "rl/reward_wire.h"

enum { WORKER_FLIGHT = 4, WORKER_DEATHS = 64, WORKER_WHY = 400, WORKER_INFO = 4096 };
enum worker_state {
    WORKER_OFF,      /* starts at retry_at */
    WORKER_STARTING, /* until READY */
    WORKER_READY,
    WORKER_ENDING, /* killed; until nothing of it is left */
    WORKER_GONE    /* not started again */
};
struct worker_rules {
    const char *command;
    const char *const *env;
    const char *options; /* "key=value\n" lines for CONFIG, or NULL */
    int memory;          /* the memory file of the frames, and its slots */
    uint64_t slot_bytes;
    uint32_t slots;
    double start_s, ping_s, request_s, restart_window_s, backoff_s, backoff_max_s;
    int missed_pings, max_restarts;
};
struct worker {
    const struct worker_rules *rules;
    struct spawner *spawner;
    int number; /* in messages and in the name of the log */
    char *log;  /* its path */
    enum worker_state state;
    uint64_t serial, nonce; /* of this start */
    int fd;                 /* -1: none */
    bool hello, fatal, was_ready, leaving;
    struct wire_buf in, out;
    double since, retry_at, pinged_at, head_since; /* since: of the state */
    uint64_t ping;                                 /* id; 0: none is on its way */
    uint64_t flight[WORKER_FLIGHT];                /* requests, oldest first */
    int num_flight;
    double deaths[WORKER_DEATHS]; /* when; a ring */
    int64_t num_deaths, scored, violations;
    double busy_s;          /* spent with requests */
    int fatal_code;         /* of its FATAL, or its exit code when a restart cannot help */
    long log_from;          /* bytes that were in the log before this start */
    char why[WORKER_WHY];   /* what went wrong last */
    char info[WORKER_INFO]; /* the lines of READY */
};
void worker_init(struct worker *w, const struct worker_rules *rules, struct spawner *spawner,
                 int number, const char *log);
/* Frees; the process is killed, and the caller waits for its end (worker_ended). */
void worker_free(struct worker *w);
/* A request for a worker that is WORKER_READY with num_flight < WORKER_FLIGHT. */
void worker_score(struct worker *w, uint64_t id, const struct wire_score *s, double now);
enum worker_news {
    WORKER_NOTHING,
    WORKER_NOW_READY, /* info is new */
    WORKER_SCORED,    /* *id has *result, and is out of flight */
    WORKER_LOST       /* it was killed, why says it; flight[] is for others, [0] was being scored */
};
/* Moves bytes and looks at the clock; call it until it says WORKER_NOTHING. */
enum worker_news worker_next(struct worker *w, double now, uint64_t *id,
                             struct wire_result *result);
/* Kills it, for a reason of the caller's; for_good: no restart. Requests in flight are dropped. */
void worker_fail(struct worker *w, double now, bool for_good, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The spawner reported an end. False: not this worker's. Call worker_next until it has no news
 * before, so that nothing the process said last is lost; requests in flight are dropped. */
bool worker_ended(struct worker *w, double now, uint64_t serial, int status);
/* The last lines that this start has printed, in one line: "a | b | c"; "nothing" for none. */
void worker_said(const struct worker *w, char *text, size_t size);
/* Asks it to leave, at close. */
void worker_bye(struct worker *w);
#endif
