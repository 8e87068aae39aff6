/* Many clips, one in twenty of them faulty, on 8 ranks that each have a bridge of their own, as the
 * ranks of `osp rl` have (docs/spec/rl.md 6.11). The last rank's scorer is in Python. Settings:
 * 0.3 s for a clip, no pause before a restart, no limit of restarts. Scores are computed here once
 * more, not by what the fake scorer uses. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "parallel/launch.h"
#include "rl/reward.h"
#include "tests/check.h"
#include "tests/fake_scorer.h"
#include "tests/process.h"

enum { RANKS = 8, ROUNDS = 10, EVERY = 20, FRAMES = 3, SIDE = 8, BYTES = FRAMES * SIDE * SIDE * 3 };
#define NOBODY "nobody is left for this clip"
static const struct reward_clip clip = {.frames = FRAMES, .height = SIDE, .width = SIDE, .fps = 8};

/* docs/spec/rl.md 6.11: crash before reading ... restart storm, in its order, and relatives. */
static const char *const kinds[] = {
    "unread",   "crash",  "after",   "exit",  "hang",  "stop",  "late",    "slow",    "tardy",
    "nan",      "inf",    "huge",    "dims",  "count", "crc",   "flip",    "head",    "long",
    "oversize", "random", "garbage", "noise", "oom",   "half",  "stall",   "trickle", "storm",
    "twice",    "id",     "unasked", "again", "fatal", "flood", "nolines", "config",  "child"};
/* With the default limits: what kills a scorer, and what makes an attempt void. */
static const char *const deadly[] = {"crash", "exit", "half", "garbage", "count", "head", "child"};
static const char *const empty[] = {"nan", "inf", "huge", "crc", "dims", "oom"};
static const char *const kinds_of_python[] = {"crash", "late",  "half",  "nan",   "dims",
                                              "exit",  "oom",   "count", "noise", "random",
                                              "stop",  "tardy", "raise", "slow"};

static struct spawner *prepared[RANKS]; /* before MPI; one of them where ranks are processes */
static char self[512];
static bool mpi;

/* ---- what is asked, and what has to come ------------------------------------------------------*/
struct share { /* of one rank */
    int rank, first, n;
    bool python;
    bool limits;            /* the second test */
    char dir[256], tag[64]; /* the same folder on all ranks; a word of the scorers' command line */
    struct reward *r;
    char *seen; /* [n] results */
    int submitted, got, refused;
    int given_up;       /* clips that no scorer was left for */
    double end;         /* when patience ends */
    const char *env[2]; /* for the scorers */
};

static struct share share_of(struct comm *world)
{
    const int all = test_campaign() ? 10000 : test_fast() ? 760 : 1500;
    const int python = all * 3 / 80, each = (all - python) / (RANKS - 1);
    struct share s = {.rank = world->rank, .python = world->rank == RANKS - 1};
    const int odd = all - python - each * (RANKS - 1); /* the first rank's */
    s.n = s.python ? python : each + (s.rank ? 0 : odd);
    s.first = s.rank ? each * s.rank + odd : 0;
    snprintf(s.dir, sizeof s.dir, "%s", world->rank ? "" : test_dir());
    comm_broadcast_bytes(world, s.dir, sizeof s.dir, 0, "folder");
    snprintf(s.tag, sizeof s.tag, "osp-ranks.%d.%d", (int)getpid(), s.rank);
    s.seen = calloc((size_t)s.n, 1);
    s.end = log_seconds() + 60 + 0.05 * all;
    return s;
}

static const char *fault_of(const struct share *s, int i)
{
    enum { C = sizeof kinds / sizeof *kinds, P = sizeof kinds_of_python / sizeof *kinds_of_python };
    const int g = s->first + i, k = g / EVERY;
    if (g % EVERY != 7) return NULL;
    return s->python ? kinds_of_python[k % P] : kinds[k % C];
}

/* Refused by every scorer, and not tried again. */
static bool hopeless(const struct share *s, int i) { return (s->first + i) % 50 == 30; }

/* ---- the same with the default limits ---------------------------------------------------------*/
enum { PER_RANK = 60, WORKER_ENDS = 6 /* more than 5 in ten minutes */ };
enum pool { STAYS, SHRINKS, ENDS };
static enum pool pool_of(const struct share *s) { return (enum pool)(s->rank % 3); }
static int workers_of(enum pool p) { return p == SHRINKS ? 2 : 1; }
/* Ends of scorers: 4 are borne, 11 are one too many for one of two, 6 for one. */
static int ends_of(enum pool p) { return (const int[]){4, 2 * WORKER_ENDS - 1, WORKER_ENDS}[p]; }

enum fate {
    FINE,
    ONCE,   /* a scorer dies of it, another does not */
    POISON, /* every scorer dies of it: after 2 of them it is invalid */
    VOID,   /* no scorer has scores for it: invalid after 3 attempts */
    REFUSED /* not tried again */
};
static enum fate fate_of(const struct share *s, int i)
{
    const enum pool p = pool_of(s);
    const int poisons = (const int[]){1, 5, 3}[p], onces = ends_of(p) - 2 * poisons;
    if (i % 9 == 4) return VOID;
    if (i % 9 == 7) return REFUSED;
    if (i % 3 || i < 20) return FINE;
    const int k = (i - 20) / 3; /* 0, 1, ...: the deadly ones, a few clips apart */
    return k < onces ? ONCE : k < onces + poisons ? POISON : FINE;
}

static void fated_prompt(const struct share *s, int i, char prompt[400])
{
    const char *death = deadly[(s->first + i) % (int)(sizeof deadly / sizeof *deadly)],
               *none = empty[(s->rank + i / 9) % (int)(sizeof empty / sizeof *empty)];
    switch (fate_of(s, i)) {
    case FINE:
        snprintf(prompt, 400, "a heron, %d", s->first + i);
        break;
    case ONCE:
        snprintf(prompt, 400, "%s %s/limit_%d", death, s->dir, s->first + i);
        break;
    case POISON:
        snprintf(prompt, 400, "%s always, %d", death, s->first + i);
        break;
    case VOID:
        snprintf(prompt, 400, "%s always, %d", none, s->first + i);
        break;
    case REFUSED:
        snprintf(prompt, 400, "bad input %d", s->first + i);
        break;
    }
}

/* True: this result has to be one without scores, and says why. */
static bool fated(struct share *s, int i, const struct reward_result *d)
{
    static const struct {
        int attempts;
        const char *says;
    } want[] = {[POISON] = {2, "2 scorers died of it"},
                [VOID] = {3, "3 attempts failed"},
                [REFUSED] = {1, "not my kind"}};
    const enum fate f = fate_of(s, i);
    const bool lost = pool_of(s) == ENDS && !d->valid && strstr(d->reason, NOBODY);
    s->given_up += lost;
    if (lost) return true;
    if (f == FINE || f == ONCE) return false;
    s->refused++;
    EXPECT(!d->valid && d->attempts == want[f].attempts && strstr(d->reason, want[f].says),
           "rank %d, clip %d: valid %d, %d attempts: %s", s->rank, i, d->valid, d->attempts,
           d->reason);
    return true;
}

static void prompt_of(const struct share *s, int i, char prompt[400])
{
    if (s->limits) {
        fated_prompt(s, i, prompt);
        return;
    }
    const char *fault = fault_of(s, i);
    if (fault)
        snprintf(prompt, 400, "%s %s/once_%d", fault, s->dir, s->first + i);
    else
        snprintf(prompt, 400, hopeless(s, i) ? "bad input %d" : "a h\xc3\xa9ron, %d", s->first + i);
}

static void paint(uint8_t *p, const struct share *s, int i)
{
    uint64_t v = (uint64_t)(s->first + i) * 0x9e3779b97f4a7c15u + 1;
    for (int k = 0; k < BYTES; k++) {
        v = v * 6364136223846793005u + 1442695040888963407u;
        p[k] = (uint8_t)(v >> 56);
    }
}

/* Bit by bit. */
static uint32_t crc_of(uint32_t crc, const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++) crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
    }
    return crc;
}

static void want_scores(double want[3], const struct share *s, int i)
{
    enum { FRAME = SIDE * SIDE * 3 };
    uint8_t p[BYTES];
    char prompt[400];
    long luma = 0, change = 0;
    paint(p, s, i);
    prompt_of(s, i, prompt);
    for (int k = 0; k < BYTES; k++) luma += (const int[]){299, 587, 114}[k % 3] * (long)p[k];
    for (int k = 0; k + FRAME < BYTES; k++) change += labs((long)p[k] - (long)p[k + FRAME]);
    want[0] = (double)luma / (255000.0 * FRAMES * SIDE * SIDE);
    want[1] = (double)change / (255.0 * (FRAMES - 1) * FRAME);
    const uint32_t frames = crc_of(~0u, p, BYTES);
    want[2] = ~crc_of(frames, (const uint8_t *)prompt, strlen(prompt)) / 2147483648.0 - 1;
}

static void check_result(struct share *s, const struct reward_result *d)
{
    const int i = (int)d->id - s->first;
    const bool known = d->id >= (uint64_t)s->first && i < s->submitted;
    EXPECT(known && !s->seen[i], "rank %d: clip %d again, or never asked", s->rank, (int)d->id);
    if (!known) return;
    double want[3];
    want_scores(want, s, i);
    const char *fault = s->limits ? NULL : fault_of(s, i);
    s->seen[i] = 1;
    s->got++;
    if (s->limits && fated(s, i, d)) return;
    if (!s->limits && !fault && hopeless(s, i)) {
        s->refused++;
        EXPECT(!d->valid && d->attempts > 0 && strstr(d->reason, "not my kind"), "clip %d: %s",
               (int)d->id, d->reason);
        return;
    }
    EXPECT(d->valid, "rank %d, clip %d (%s): %s", s->rank, (int)d->id, fault ? fault : "honest",
           d->reason);
    EXPECT(!d->valid || (memcmp(want, d->raw, sizeof want) == 0 &&
                         memcmp(want, d->norm, sizeof want) == 0 && d->frames_used == FRAMES),
           "rank %d, clip %d (%s): %.17g %.17g %.17g, not %.17g %.17g %.17g", s->rank, (int)d->id,
           fault ? fault : "honest", d->raw[0], d->raw[1], d->raw[2], want[0], want[1], want[2]);
}

static void poll_results(struct share *s)
{
    struct reward_result d[8];
    for (int n; (n = reward_poll(s->r, d, 8)) > 0;)
        for (int k = 0; k < n; k++) check_result(s, &d[k]);
}

static bool submit_next(struct share *s)
{
    struct err e = {0};
    char prompt[400];
    struct reward_slot *slot = reward_acquire(s->r, s->end - log_seconds());
    if (!slot && s->limits && pool_of(s) == ENDS && reward_state(s->r) == REWARD_DEAD) return false;
    EXPECT(slot, "rank %d: no slot for clip %d of %d", s->rank, s->submitted, s->n);
    if (!slot) return false;
    paint(slot->data, s, s->submitted);
    prompt_of(s, s->submitted, prompt);
    const uint64_t id = (uint64_t)(s->first + s->submitted++);
    const bool ok = reward_submit(s->r, slot, id, prompt, &clip, &e);
    EXPECT(ok, "%s", e.msg);
    return ok;
}

/* ---- what is left -----------------------------------------------------------------------------*/
static int entries(const char *dir, const char *with)
{
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) n += strstr(e->d_name, with) != NULL;
    if (d) closedir(d);
    return n;
}

static int open_files(void) { return entries("/proc/self/fd", ""); }

/* Mappings of shared clips, and descriptors of them. */
static int shared_memory(void)
{
    char *maps = process_log("/proc/self/maps"), link[300];
    int n = entries("/dev/shm", "osp-reward");
    for (const char *p = maps; (p = strstr(p, "osp-reward")); p++) n++;
    free(maps);
    DIR *d = opendir("/proc/self/fd");
    for (struct dirent *e; d && (e = readdir(d));) {
        char *path = io_path("/proc/self/fd/%s", e->d_name);
        const ssize_t len = readlink(path, link, sizeof link - 1);
        link[len > 0 ? len : 0] = 0;
        n += strstr(link, "osp-reward") != NULL;
        free(path);
    }
    if (d) closedir(d);
    return n;
}

static int parent_of(const char *pid)
{
    char *path = io_path("/proc/%s/stat", pid), *text = process_log(path), *p = strrchr(text, ')');
    int parent = 0;
    if (p) sscanf(p, ") %*c %d", &parent);
    free(text);
    free(path);
    return parent;
}

static pid_t pid_of(const struct spawner *p) /* its second member */
{
    return *(const pid_t *)(const void *)((const char *)p + sizeof(int));
}

static bool scorer_of(const char *pid, const char *tag)
{
    char *path = io_path("/proc/%s/cmdline", pid), line[2048] = "";
    FILE *f = fopen(path, "r");
    const size_t n = f ? fread(line, 1, sizeof line - 1, f) : 0;
    if (f) fclose(f);
    free(path);
    return n && memmem(line, n, tag, strlen(tag));
}

/* Scorers of a rank, or children of the process that starts them; zombies count. */
static int processes(const struct share *s, const struct spawner *p)
{
    int n = 0;
    DIR *d = opendir("/proc");
    for (struct dirent *e; d && (e = readdir(d));)
        n += atoi(e->d_name) > 0 &&
             (parent_of(e->d_name) == pid_of(p) || scorer_of(e->d_name, s->tag));
    if (d) closedir(d);
    return n;
}

/* With every result taken, every slot can be had, and no more. */
static void all_slots_free(struct share *s, int slots)
{
    struct reward_slot *slot[64];
    int n = 0;
    while (n < slots && (slot[n] = reward_acquire(s->r, 0))) n++;
    EXPECT(n == slots && !reward_acquire(s->r, 0), "rank %d: %d of %d slots", s->rank, n, slots);
    while (n--) reward_drop(s->r, slot[n]);
}

/* ---- the run ----------------------------------------------------------------------------------*/
static void open_bridge(struct share *s, struct spawner *p, int workers, int slots)
{
    char *command = s->python ? io_path("python3 tests/mock_scorer.py %s", s->tag)
                              : io_path("'%s' --scorer %s", self, s->tag);
    const struct reward_config c = {.command = command,
                                    .workers = workers,
                                    .slots = slots,
                                    .slot_bytes = BYTES,
                                    .log_dir = s->dir,
                                    .first_log = 4 * s->rank,
                                    .rank = s->rank,
                                    .ranks = RANKS,
                                    .env = s->env,
                                    .start_s = 60,
                                    .request_s = 0.3,
                                    .ping_s = 0.1,
                                    .backoff_s = -1,
                                    .max_restarts = -1,
                                    .max_attempts = 30, /* the machine is short of cores */
                                    .max_deaths = 30};
    s->r = fake_start(p, &c);
    free(command);
}

/* All ranks meet in every round, as they do after every rollout batch of `osp rl`. */
static void score_all(struct comm *world, struct share *s)
{
    bool fine = s->r;
    for (int round = 1; round <= ROUNDS; round++) {
        while (fine && s->submitted < s->n * round / ROUNDS) {
            fine = submit_next(s);
            poll_results(s);
        }
        double bad = !fine;
        comm_sum_f64(world, &bad, 1, "round");
    }
    if (!s->r) return;
    while (reward_flush(s->r, 0.1) == REWARD_LATE && log_seconds() < s->end) poll_results(s);
    poll_results(s);
    EXPECT(s->got == s->n, "rank %d: %d results for %d clips", s->rank, s->got, s->n);
}

static void close_bridge(struct share *s, struct spawner *p, int slots)
{
    if (!s->r) return;
    all_slots_free(s, slots);
    const struct reward_stats t = reward_stats(s->r);
    EXPECT(t.submitted == s->n && t.scored + t.invalid == s->n && t.invalid == s->refused &&
               !t.queued && !t.in_flight && !t.lost_workers,
           "rank %d: %d submitted, %d scored, %d invalid, %d refused, %d queued, %d in flight",
           s->rank, (int)t.submitted, (int)t.scored, (int)t.invalid, s->refused, t.queued,
           t.in_flight);
    if (test_verbose())
        printf("    rank %d: %d clips, %d retries, %d restarts, %d violations\n", s->rank, s->n,
               (int)t.retries, (int)t.restarts, (int)t.violations);
    reward_close(s->r);
    EXPECT(processes(s, p) == 0, "rank %d: %d scorers are left", s->rank, processes(s, p));
}

/* Every fault has come to pass: the scorer that misbehaved has left its file. */
static void all_faults_fired(const struct share *s)
{
    int planned = 0, fired = 0;
    for (int i = 0; i < s->n; i++) {
        char *path = io_path("%s/once_%d", s->dir, s->first + i);
        planned += fault_of(s, i) != NULL;
        fired += fault_of(s, i) && access(path, F_OK) == 0;
        free(path);
    }
    EXPECT(planned == fired && (planned || s->python), "rank %d: %d of %d faults", s->rank, fired,
           planned);
}

static void storm(struct comm *world)
{
    struct share s = share_of(world);
    struct spawner **p = &prepared[mpi ? 0 : s.rank];
    char *set = io_path("OSP_REWARD_STORM=%s/storm_%d", s.dir, s.rank);
    const int workers = 1 + (s.rank % 2 && !s.python), slots = 2 * workers + 2;
    const bool counts = mpi || s.rank == 0; /* descriptors belong to the process */
    s.env[0] = set;
    comm_barrier(world, "nobody has a folder open");
    const int files = counts ? open_files() : 0;
    comm_barrier(world, "files were counted");
    open_bridge(&s, *p, workers, slots);
    score_all(world, &s);
    close_bridge(&s, *p, slots);
    comm_barrier(world, "all are closed");
    if (counts) EXPECT(open_files() == files, "%d descriptors, %d before", open_files(), files);
    comm_barrier(world, "files were counted again");
    EXPECT(shared_memory() == 0, "rank %d: shared memory is left", s.rank);
    all_faults_fired(&s);
    comm_barrier(world, "all were counted");
    reward_release(*p);
    *p = NULL;
    comm_barrier(world, "all are released");
    if (counts)
        EXPECT(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "rank %d: a child is left",
               s.rank);
    free(set);
    free(s.seen);
}

/* ---- the run with the default limits ----------------------------------------------------------*/
/* Only the pauses before a restart are shorter than the default, 1, 2, 4 ... 60 s. */
static void open_limited(struct share *s, struct spawner *p, int workers, int slots)
{
    char *command = io_path("'%s' --scorer %s", self, s->tag);
    const struct reward_config c = {.command = command,
                                    .workers = workers,
                                    .slots = slots,
                                    .slot_bytes = BYTES,
                                    .log_dir = s->dir,
                                    .first_log = 100 + 4 * s->rank,
                                    .rank = s->rank,
                                    .ranks = RANKS,
                                    .backoff_s = 0.05,
                                    .backoff_max_s = 0.2};
    s->r = fake_start(p, &c);
    free(command);
}

static void score_limited(struct comm *world, struct share *s)
{
    bool fine = s->r;
    while (fine && s->submitted < s->n) {
        fine = submit_next(s);
        poll_results(s);
    }
    if (s->r) {
        enum reward_state state = REWARD_LATE;
        while ((state = reward_flush(s->r, 0.1)) == REWARD_LATE && log_seconds() < s->end)
            poll_results(s);
        EXPECT((state == REWARD_DEAD) == (pool_of(s) == ENDS) && state != REWARD_LATE,
               "rank %d: state %d", s->rank, (int)state);
        reward_give_up(s->r, NOBODY);
        poll_results(s);
        EXPECT(s->got == s->submitted, "rank %d: %d results for %d clips", s->rank, s->got,
               s->submitted);
    }
    comm_barrier(world, "all are scored");
}

static void check_limited(struct share *s)
{
    const enum pool p = pool_of(s);
    const int lost = p != STAYS;
    struct reward_stats t = reward_stats(s->r);
    for (int i = 0; i < 100 && t.restarts + t.lost_workers < ends_of(p); i++) {
        process_nap(0.05); /* a scorer that died last is still being buried */
        t = reward_stats(s->r);
    }
    EXPECT(t.lost_workers == lost && t.restarts == ends_of(p) - lost,
           "rank %d: %d lost, %d restarts for %d ends", s->rank, t.lost_workers, (int)t.restarts,
           ends_of(p));
    EXPECT(t.invalid == s->refused + s->given_up && t.scored == s->got - t.invalid && !t.queued &&
               !t.in_flight,
           "rank %d: %d scored, %d invalid of %d, %d by design, %d given up", s->rank,
           (int)t.scored, (int)t.invalid, s->got, s->refused, s->given_up);
    EXPECT(p == ENDS ? s->given_up > 0 && s->submitted < s->n : s->submitted == s->n,
           "rank %d: %d of %d submitted, %d given up", s->rank, s->submitted, s->n, s->given_up);
    if (test_verbose())
        printf("    rank %d: %d clips, %d scored, %d invalid, %d given up, %d restarts, %d lost\n",
               s->rank, s->got, (int)t.scored, s->refused, s->given_up, (int)t.restarts,
               t.lost_workers);
}

static void limits(struct comm *world)
{
    struct share s = share_of(world);
    struct spawner **p = &prepared[mpi ? 0 : s.rank];
    const bool counts = mpi || s.rank == 0;
    s.limits = true;
    s.python = false;
    s.n = PER_RANK;
    s.first = PER_RANK * s.rank;
    free(s.seen);
    s.seen = calloc(PER_RANK, 1);
    CHECK(s.seen, "out of memory");
    const int workers = workers_of(pool_of(&s)), slots = 2 * workers + 2;
    comm_barrier(world, "nobody has a folder open");
    const int files = counts ? open_files() : 0;
    comm_barrier(world, "files were counted");
    open_limited(&s, *p, workers, slots);
    score_limited(world, &s);
    if (s.r) {
        check_limited(&s);
        if (pool_of(&s) != ENDS) all_slots_free(&s, slots);
        reward_close(s.r);
        EXPECT(processes(&s, *p) == 0, "rank %d: %d scorers are left", s.rank, processes(&s, *p));
    }
    comm_barrier(world, "all are closed");
    if (counts) EXPECT(open_files() == files, "%d descriptors, %d before", open_files(), files);
    comm_barrier(world, "files were counted again");
    EXPECT(shared_memory() == 0, "rank %d: shared memory is left", s.rank);
    free(s.seen);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--scorer")) fake_scorer(argv[2]);
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    mpi = size && atoi(size) > 1;
    struct err e = {0};
    const bool lists =
        argc >= 2 && (!strcmp(argv[argc - 1], "-m") || !strcmp(argv[argc - 1], "-l"));
    for (int i = 0; i < (lists ? 0 : mpi ? 1 : RANKS); i++) prepared[i] = reward_prepare(&e);
    err_raise(&e);
    const struct test tests[] = {
        {"default limits: poison is flagged, pools shrink and end", limits, {RANKS}, TEST_MPI},
        {"8 ranks, one clip in twenty goes wrong, all are scored right", storm, {RANKS}, TEST_MPI}};
    const int rc = test_main(argc, argv, tests, 2);
    for (int i = 0; i < RANKS; i++) reward_release(prepared[i]);
    return rc;
}
