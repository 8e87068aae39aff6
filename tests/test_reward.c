/* The reward bridge: what happens to clips and processes when scorers do what they should not. */
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "core/rng.h"
#include "rl/reward.h"
#include "tests/check.h"
#include "tests/fake_scorer.h"
#include "tests/process.h"

static struct spawner *spawner;
static char self[512]; /* this program */

/* ---- the bridge ---- */
enum { FRAMES = 2, SIDE = 8, BYTES = FRAMES * SIDE * SIDE * 3 };
static const struct reward_clip clip = {.frames = FRAMES, .height = SIDE, .width = SIDE, .fps = 8};

static struct reward_config config(const char *mode, int workers)
{
    static char command[600];
    snprintf(command, sizeof command, "'%s' --scorer %s", self, mode);
    return (struct reward_config){.command = command,
                                  .workers = workers,
                                  .slot_bytes = BYTES,
                                  .log_dir = test_dir(),
                                  .start_s = 20,
                                  .ping_s = 0.3,
                                  .request_s = 3,
                                  .backoff_s = 0.01,
                                  .backoff_max_s = 0.05,
                                  .max_restarts = 1000};
}

static void paint(uint8_t *p, uint64_t id)
{
    for (int i = 0; i < BYTES; i++) p[i] = (uint8_t)(id * 37 + (uint64_t)i * (id % 5 + 1));
}

static bool submit(struct reward *r, uint64_t id, const char *prompt)
{
    struct err e = {0};
    struct reward_slot *s = reward_acquire(r, 30);
    EXPECT(s, "no slot for clip %d", (int)id);
    if (!s) return false;
    paint(s->data, id);
    const bool ok = reward_submit(r, s, id, prompt, &clip, &e);
    EXPECT(ok, "%s", e.msg);
    return ok;
}

static bool right_scores(const struct reward_result *d, const char *prompt)
{
    uint8_t p[BYTES];
    double want[3];
    paint(p, d->id);
    fake_scores(want, prompt, p, FRAMES, BYTES);
    return d->valid && memcmp(want, d->raw, sizeof want) == 0 &&
           memcmp(want, d->norm, sizeof want) == 0;
}

/* Whether a process with this mode of the fake scorer is alive; zombies are none. */
static int alive(const char *mode)
{
    int n = 0;
    DIR *d = opendir("/proc");
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[300], text[2048] = "";
        if (atoi(e->d_name) <= 0) continue;
        snprintf(path, sizeof path, "/proc/%s/cmdline", e->d_name);
        FILE *f = fopen(path, "r");
        const size_t len = f ? fread(text, 1, sizeof text - 1, f) : 0;
        if (f) fclose(f);
        for (size_t i = 0; i + 1 < len; i++)
            if (!text[i]) text[i] = ' ';
        char want[600];
        snprintf(want, sizeof want, "%s --scorer %s", self, mode);
        n += strcmp(text, want) == 0;
    }
    if (d) closedir(d);
    return n;
}

static int shm_files(void)
{
    int n = 0;
    DIR *d = opendir("/dev/shm");
    for (struct dirent *e; d && (e = readdir(d));) n += strstr(e->d_name, "osp-reward") != NULL;
    if (d) closedir(d);
    return n;
}

static void all_scored(struct comm *world)
{
    (void)world;
    enum { CLIPS = 60 };
    double first[CLIPS][3];
    for (int workers = 1; workers <= 3; workers++) {
        const struct reward_config c = config("fine", workers);
        struct reward *r = fake_start(spawner, &c);
        if (!r) return;
        char name[REWARD_DIMS][REWARD_NAME], *who = reward_identity(r);
        EXPECT(reward_dims(r, name) == 3 && !strcmp(name[0], "VQ") && !strcmp(name[2], "TA"),
               "dimensions");
        EXPECT(!strcmp(who, "dims=VQ,MQ,TA\nselftest=0.5,0.25,0.125\nscorer=fake\n"), "%s", who);
        free(who);
        int seen[CLIPS] = {0}, got = 0;
        struct reward_result d[CLIPS];
        for (uint64_t i = 0; i < CLIPS; i++) submit(r, i, "a h\xc3\xa9ron");
        EXPECT(reward_flush(r, 30) == REWARD_OK, "flush");
        for (int n; (n = reward_poll(r, d + got, 7)) > 0;) got += n;
        EXPECT(got == CLIPS, "%d results", got);
        for (int i = 0; i < got; i++) {
            seen[d[i].id]++;
            EXPECT(right_scores(&d[i], "a h\xc3\xa9ron"), "clip %d: %s", (int)d[i].id, d[i].reason);
            if (workers == 1) memcpy(first[d[i].id], d[i].raw, sizeof *first);
            EXPECT(memcmp(first[d[i].id], d[i].raw, sizeof *first) == 0, "%d workers", workers);
        }
        for (int i = 0; i < CLIPS; i++) EXPECT(seen[i] == 1, "clip %d: %d times", i, seen[i]);
        const struct reward_stats s = reward_stats(r);
        EXPECT(s.submitted == CLIPS && s.scored == CLIPS && !s.invalid && !s.restarts &&
                   !s.queued && !s.in_flight && s.ready_workers == workers,
               "statistics");
        reward_close(r);
        EXPECT(alive("fine") == 0, "%d scorers are left", alive("fine"));
    }
    EXPECT(shm_files() == 0, "files in /dev/shm");
}

/* Every fault once: the clip is scored by the next attempt. (A scorer that is killed for one clip
 * may have begun the next: not every fault shows each time.) */
static void faults_once(struct comm *world)
{
    (void)world;
    static const char *const fault[] = {"crash", "exit",  "garbage", "unasked", "config", "nolines",
                                        "again", "fatal", "flood",   "nan",     "inf",    "huge",
                                        "crc",   "dims",  "id",      "oom",     "twice",  "flip",
                                        "long",  "half",  "after",   "hang",    "stop",   "late"};
    enum { FAULTS = sizeof fault / sizeof *fault, SLOW = 3 };
    const int faults = FAULTS - (test_fast() ? SLOW : 0);
    struct reward_config c = config("once", 2);
    c.max_deaths = 3; /* one may be of the clip before, answered already */
    struct reward *r = fake_start(spawner, &c);
    if (!r) return;
    char prompt[FAULTS][300];
    for (int i = 0; i < faults; i++) {
        snprintf(prompt[i], sizeof prompt[i], "%s %s/once_%s", fault[i], test_dir(), fault[i]);
        submit(r, (uint64_t)i, prompt[i]);
    }
    EXPECT(reward_flush(r, 60) == REWARD_OK, "flush");
    struct reward_result d[FAULTS + 1];
    const int n = reward_poll(r, d, FAULTS + 1);
    EXPECT(n == faults, "%d results", n);
    for (int i = 0; i < n; i++)
        EXPECT(right_scores(&d[i], prompt[d[i].id]), "%s: %s", fault[d[i].id], d[i].reason);
    struct reward_stats s = reward_stats(r);
    /* the last of each of the two may not have its turn yet */
    for (int i = 0; i < 500 && s.restarts < 10; i++) {
        usleep(10000);
        s = reward_stats(r);
    }
    EXPECT(s.scored == faults && s.violations >= 5 && s.restarts >= 10, "%d, %d, %d", (int)s.scored,
           (int)s.violations, (int)s.restarts);
    reward_close(r);
    EXPECT(alive("once") == 0, "scorers are left");
}

static void expect_invalid(const char *prompt, const char *reason, int attempts)
{
    struct reward_config c = config("always", 1);
    c.ping_s = 0.1;
    c.request_s = 0.5;
    struct reward *r = fake_start(spawner, &c);
    if (!r) return;
    submit(r, 7, prompt);
    submit(r, 8, "fine");
    submit(r, 9, "fine");
    EXPECT(reward_flush(r, 30) == REWARD_OK, "flush");
    struct reward_result d[4];
    const int n = reward_poll(r, d, 4);
    EXPECT(n == 3, "%d results", n);
    for (int i = 0; i < n; i++)
        if (d[i].id != 7)
            EXPECT(right_scores(&d[i], "fine"), "%s", d[i].reason);
        else
            EXPECT(!d[i].valid && strstr(d[i].reason, reason) && d[i].attempts == attempts &&
                       d[i].raw[0] == 0,
                   "%s: %d attempts, %s", prompt, d[i].attempts, d[i].reason);
    reward_close(r);
}

static void poisoned(struct comm *world)
{
    (void)world;
    expect_invalid("crash", "2 scorers died of it; the last: it closed its connection", 2);
    if (!test_fast())
        expect_invalid("late",
                       "2 scorers died of it; the last: it took more than 0.5 s for one clip", 2);
    expect_invalid("hang", "2 scorers died of it; the last: it did not answer for 0.3 s", 2);
    expect_invalid("nan", "3 attempts failed; the last: its scores are not finite", 3);
    expect_invalid("huge", "a score is beyond reward.score_limit 100", 3);
    expect_invalid("crc", "it has seen other frames than were sent", 3);
    expect_invalid("bad", "not my kind of prompt", 1);
}

static void expect_no_start(const char *mode, int code, const char *text)
{
    struct reward_config c = config(mode, 1);
    struct err e = {0};
    c.start_s = strcmp(mode, "silent") ? 20 : 0.5;
    struct reward *r = reward_open(spawner, &c, &e);
    EXPECT(r, "%s", e.msg);
    if (!r) return;
    EXPECT(!reward_ready(r, &e) && e.code == code && strstr(e.msg, text), "%s: %d %s", mode, e.code,
           e.msg);
    reward_close(r);
    EXPECT(alive(mode) == 0, "%s: scorers are left", mode);
}

static void wrong_starts(struct comm *world)
{
    (void)world;
    expect_no_start("exit3", RC_CONFIG, "exit code 3");
    expect_no_start("fatal", RC_NOINPUT, "/weights: no such folder");
    expect_no_start("silent", RC_CONFIG, "it was not ready 0.5 s after its start");
    expect_no_start("noise", RC_CONFIG, "it sent bytes that are no message");
    expect_no_start("nonce", RC_CONFIG, "a HELLO that does not answer this CONFIG");
    expect_no_start("nodims", RC_CONFIG, "no list of dimensions");
    struct reward_config c = config("x", 1);
    struct err e = {0};
    c.command = "/no/such/program x";
    struct reward *r = reward_open(spawner, &c, &e);
    EXPECT(r && !reward_ready(r, &e) && strstr(e.msg, "exit code 127") &&
               strstr(e.msg, "/reward_0.log"),
           "%s", e.msg);
    reward_close(r);
    char *log = io_path("%s/reward_0.log", test_dir());
    char *text = process_log(log);
    EXPECT(strstr(text, "cannot run \"/no/such/program\": No such file"), "%s", text);
    free(text);
    free(log);
    e.code = 0;
    c.command = "  ";
    EXPECT(!reward_open(spawner, &c, &e) && e.code == RC_CONFIG && strstr(e.msg, "is empty"), "%s",
           e.msg);
    e.code = 0;
    c.command = "x";
    c.options = "no line";
    EXPECT(!reward_open(spawner, &c, &e) && strstr(e.msg, "key=value"), "%s", e.msg);
    /* two that disagree: the second is not used */
    c = config("odd", 2);
    e.code = 0;
    r = reward_open(spawner, &c, &e);
    EXPECT(r && !reward_ready(r, &e) && strstr(e.msg, "its self-test gives other scores"), "%s",
           e.msg);
    reward_close(r);
}

/* What the next start would meet too: no restart, and the log's last lines in the message. */
static void no_use_again(struct comm *world)
{
    (void)world;
    static const char tail[] =
        "ends with: reading the model |  of /weights | folder /weights/7: no such model";
    char prompt[400], log[300];
    snprintf(log, sizeof log, "%s/reward_0.log ", test_dir());
    expect_no_start("leave78", RC_CONFIG, tail);
    expect_no_start("leave78", RC_CONFIG, log);
    expect_no_start("leave66", RC_NOINPUT, tail);
    expect_no_start("leave77", RC_CONFIG, "exit code 77");
    static const char *const kinds[] = {"leave64", "leave66", "leave77", "leave78",
                                        "wrong",   "leave70", "leave65"};
    for (int i = test_fast() ? 3 : 0; i < (test_fast() ? 6 : 7); i++) {
        const struct reward_config c = config("useless", 2);
        struct reward *r = fake_start(spawner, &c);
        if (!r) return;
        snprintf(prompt, sizeof prompt, "%s %s/once_%s", kinds[i], test_dir(), kinds[i]);
        submit(r, 1, prompt);
        EXPECT(reward_flush(r, 20) == REWARD_OK, "flush");
        for (int k = 0; k < 200 && !reward_stats(r).lost_workers && !reward_stats(r).restarts; k++)
            process_nap(0.01);
        struct reward_result d[2];
        EXPECT(reward_poll(r, d, 2) == 1 && right_scores(&d[0], prompt), "%s", d[0].reason);
        const struct reward_stats s = reward_stats(r);
        EXPECT(s.lost_workers == (i < 5) && s.restarts == (i >= 5), "%s: %d lost, %d restarts",
               kinds[i], s.lost_workers, (int)s.restarts);
        reward_close(r);
    }
    EXPECT(alive("useless") == 0, "scorers are left");
}

static void no_worker_left(struct comm *world)
{
    (void)world;
    struct reward_config c = config("dying", 2);
    c.max_restarts = 1;
    c.max_deaths = c.max_attempts = 100;
    struct reward *r = fake_start(spawner, &c);
    if (!r) return;
    submit(r, 1, "fine");
    EXPECT(reward_flush(r, 20) == REWARD_OK, "flush");
    submit(r, 2, "crash");
    EXPECT(reward_flush(r, 20) == REWARD_DEAD && reward_state(r) == REWARD_DEAD, "it lives");
    EXPECT(!reward_acquire(r, 20), "a slot without scorers");
    struct reward_result d[4];
    EXPECT(reward_poll(r, d, 4) == 1 && d[0].id == 1 && d[0].valid, "the score from before");
    EXPECT(reward_give_up(r, "no scorer") == 1 && reward_poll(r, d, 4) == 1 && d[0].id == 2 &&
               !d[0].valid && !strcmp(d[0].reason, "no scorer"),
           "what was not scored");
    const struct reward_stats s = reward_stats(r);
    EXPECT(s.restarts == 2 && s.lost_workers == 2 && s.ready_workers == 0, "%d restarts",
           (int)s.restarts);
    reward_close(r);
    /* the process that starts them is killed */
    struct err e = {0};
    struct spawner *other = reward_prepare(&e);
    c = config("orphan", 2);
    r = reward_open(other, &c, &e);
    EXPECT(r && reward_ready(r, &e), "%s", e.msg);
    kill(*(pid_t *)((char *)other + sizeof(int)), SIGKILL);
    for (int i = 0; i < 400 && reward_state(r) == REWARD_OK; i++) process_nap(0.05);
    EXPECT(reward_state(r) == REWARD_DEAD && !reward_acquire(r, 20), "no end is seen");
    reward_close(r);
    reward_release(other);
    for (int i = 0; i < 100 && alive("orphan"); i++) process_nap(0.05);
    EXPECT(alive("orphan") == 0, "scorers outlive their parent");
}

static void waiting(struct comm *world)
{
    (void)world;
    struct reward_config c = config("wait", 1);
    c.request_s = 1;
    c.slots = 2;
    struct reward *r = fake_start(spawner, &c);
    struct reward_result d[4];
    struct err e = {0};
    if (!r) return;
    submit(r, 1, "late");
    submit(r, 2, "fine");
    double t = log_seconds();
    EXPECT(!reward_acquire(r, 0.2), "a third slot");
    EXPECT(log_seconds() - t >= 0.2, "did not wait");
    t = log_seconds();
    EXPECT(reward_flush(r, 0.2) == REWARD_LATE && log_seconds() - t < 1, "flush");
    t = log_seconds();
    EXPECT(reward_poll(r, d, 4) == 0 && log_seconds() - t < 0.1, "poll");
    EXPECT(reward_stats(r).wait_s >= 0.4, "%g", reward_stats(r).wait_s);
    EXPECT(reward_give_up(r, "the epoch is over") == 2 && reward_flush(r, 0) == REWARD_OK, "flush");
    EXPECT(reward_poll(r, d, 4) == 2 && !d[0].valid && !d[1].valid, "results");
    submit(r, 1, "fine"); /* in a slot that becomes free when the scorer is killed */
    EXPECT(reward_flush(r, 20) == REWARD_OK && reward_poll(r, d, 4) == 1 &&
               right_scores(&d[0], "fine"),
           "%s", d[0].reason);
    /* input that is refused leaves the slot with its owner */
    struct reward_slot *s = reward_acquire(r, 1);
    struct reward_clip big = clip, zero = clip, fast = clip, odd = clip;
    const int index[FRAMES] = {1, 0};
    big.height = 4000, zero.frames = 0, fast.fps = NAN, odd.index = index;
    static const char *const text[] = {"does not fit into a slot", "a clip of 0 frames",
                                       "nan frames per second", "frame 1 of the clip is number 0"};
    const struct reward_clip *bad[] = {&big, &zero, &fast, &odd};
    for (int i = 0; i < 4; i++) {
        e.code = 0;
        EXPECT(!reward_submit(r, s, 5, "x", bad[i], &e) && strstr(e.msg, text[i]), "%s", e.msg);
    }
    e.code = 0;
    EXPECT(!reward_submit(r, s, 5, "a\tb", &clip, &e) && strstr(e.msg, "byte 2 of the prompt"),
           "%s", e.msg);
    char *big_prompt = calloc(1, REWARD_PROMPT + 2);
    memset(big_prompt, 'a', REWARD_PROMPT + 1);
    e.code = 0;
    EXPECT(!reward_submit(r, s, 5, big_prompt, &clip, &e) && strstr(e.msg, "at most 16384"), "%s",
           e.msg);
    free(big_prompt);
    e.code = 0;
    paint(s->data, 5);
    EXPECT(reward_submit(r, s, 5, "fine", &clip, &e), "%s", e.msg);
    s = reward_acquire(r, 5);
    EXPECT(!reward_submit(r, s, 5, "fine", &clip, &e) && strstr(e.msg, "submitted before"), "%s",
           e.msg);
    reward_drop(r, s);
    reward_close(r);
}

/* VQ of these frames is about a half. */
static void limit(struct comm *world)
{
    (void)world;
    for (int i = 0; i < 2; i++) {
        struct reward_config c = config("limit", 1);
        c.score_limit = i ? 1000 : 0.01;
        struct reward *r = fake_start(spawner, &c);
        struct reward_result d[2];
        if (!r) return;
        submit(r, 1, i ? "huge" : "fine");
        EXPECT(reward_flush(r, 20) == REWARD_OK && reward_poll(r, d, 2) == 1, "results");
        EXPECT(i ? d[0].valid && d[0].raw[0] == 101
                 : !d[0].valid && strstr(d[0].reason, "beyond reward.score_limit 0.01"),
               "%d: %s", i, d[0].reason);
        reward_close(r);
    }
}

/* 5% of many clips go wrong at their first attempt. */
static void storm(struct comm *world)
{
    (void)world;
    static const char *const fault[] = {"crash", "exit", "garbage", "nan", "crc",
                                        "twice", "half", "after",   "oom", "flip"};
    const int clips = test_fast() ? 200 : test_campaign() ? 10000 : 2000;
    struct reward_config c = config("many", 3);
    c.max_restarts = 1 << 20;
    c.max_deaths = c.max_attempts = 5; /* neighbours of a crash are tried again too */
    struct reward *r = fake_start(spawner, &c);
    if (!r) return;
    char *seen = calloc((size_t)clips, 1), prompt[300];
    int got = 0, wrong = 0;
    struct reward_result d[16];
    for (int i = 0; i < clips || reward_flush(r, 0.01) != REWARD_DEAD;) {
        if (i < clips) {
            snprintf(prompt, sizeof prompt, "%s %s/many_%d", i % 20 ? "fine" : fault[i / 20 % 10],
                     test_dir(), i);
            submit(r, (uint64_t)i, i % 20 ? "fine" : prompt);
            i++;
        }
        for (int n; (n = reward_poll(r, d, 16)) > 0; got += n)
            for (int k = 0; k < n; k++) {
                wrong += !d[k].valid || seen[d[k].id]++;
                if (!d[k].valid) EXPECT(false, "clip %d: %s", (int)d[k].id, d[k].reason);
            }
        if (got == clips) break;
    }
    EXPECT(got == clips && !wrong, "%d of %d, %d wrong", got, clips, wrong);
    if (test_verbose()) printf("    %d clips, %d restarts\n", clips, (int)reward_stats(r).restarts);
    free(seen);
    reward_close(r);
    EXPECT(alive("many") == 0, "scorers are left");
}

static int open_files(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d)) n++;
    if (d) closedir(d);
    return n;
}

/* A scorer that writes 40 MB and has a child of its own; then everything is as before. */
static void no_leftovers(struct comm *world)
{
    (void)world;
    const int before = open_files();
    struct reward_config c = config("child", 1);
    c.first_log = 5;
    c.request_s = 30;
    struct reward *r = fake_start(spawner, &c);
    if (!r) return;
    submit(r, 1, "talk");
    EXPECT(reward_flush(r, 60) == REWARD_OK, "flush");
    EXPECT(alive("child") == 2, "%d processes", alive("child"));
    submit(r, 2, "slow"); /* closed in the middle of it */
    reward_close(r);
    EXPECT(alive("child") == 0, "%d processes are left", alive("child"));
    EXPECT(open_files() == before, "%d descriptors, %d before", open_files(), before);
    EXPECT(waitpid(-1, NULL, WNOHANG) == 0, "a child that has ended"); /* the spawner lives */
    char *log = io_path("%s/reward_5.log", test_dir()), *text = process_log(log);
    const size_t n = strlen(text);
    EXPECT(n > (16 << 20) && n < (17 << 20) && strstr(text + n - 60, "this log is full"),
           "a log of %zu bytes", n);
    free(text);
    free(log);
}

/* What a scorer sees of the trainer. */
static void surroundings(struct comm *world)
{
    (void)world;
    char *script = io_path("%s/look.sh", test_dir()), *log = io_path("%s/reward_9.log", test_dir());
    char *text =
        io_path("ls /proc/$$/fd >%s/fds; tr '\\n' , <%s/fds; echo\nreadlink /proc/$$/fd/0\n"
                "grep -E '^(SigIgn|SigBlk|NoNewPrivs)' /proc/self/status\nulimit -c\numask\n"
                "env | grep -c '^OMPI_\\|^SECRET'\nenv | grep -E '^(EXTRA|HF_HUB_OFFLINE)='\n"
                "ps -o pgid= -p $$ | grep -qw $$ && echo own group\nexit 1\n",
                test_dir(), test_dir());
    struct err e = {0};
    io_write_file(script, text, strlen(text), &e);
    free(text);
    setenv("SECRET", "x", 1);
    struct spawner *p = reward_prepare(&e); /* a new one has this environment */
    struct reward_config c = config("x", 1);
    char *command = io_path("sh %s", script);
    const char *const env[] = {"EXTRA=1", NULL};
    c.command = command;
    c.first_log = 9;
    c.env = env;
    struct reward *r = reward_open(p, &c, &e);
    EXPECT(r && !reward_ready(r, &e), "ready");
    reward_close(r);
    reward_release(p);
    unsetenv("SECRET");
    char *said = process_log(log);
    EXPECT(strstr(said, "/dev/null\n") && strstr(said, "SigBlk:\t0000000000000000") &&
               strstr(said, "SigIgn:\t0000000000000000") && strstr(said, "NoNewPrivs:\t1") &&
               strstr(said, "\n0077\n0\n") && strstr(said, "EXTRA=1") &&
               strstr(said, "HF_HUB_OFFLINE=1") && strstr(said, "own group"),
           "%s", said);
    /* 10 and 11 are the shell's own */
    EXPECT(strstr(said, "0,1,10,11,2,3,\n") == said || strstr(said, "0,1,10,2,3,\n") == said,
           "descriptors: %s", said);
    free(said);
    free(command);
    free(script);
    free(log);
}

/* The trainer is killed: no process of its remains. */
static void parent_killed(struct comm *world)
{
    (void)world;
    char *cmd = io_path("'%s' --parent", self);
    FILE *f = popen(cmd, "r");
    char line[64] = "";
    free(cmd);
    EXPECT(f && fgets(line, sizeof line, f) && atoi(line) > 0, "it did not start: %s", line);
    EXPECT(alive("left") == 2, "%d scorers", alive("left"));
    if (atoi(line) > 0) kill((pid_t)atoi(line), SIGKILL);
    pclose(f); /* sees the end of the pipe: nothing holds it open */
    for (int i = 0; i < 100 && alive("left"); i++) process_nap(0.05);
    EXPECT(alive("left") == 0, "%d scorers are left", alive("left"));
}

static int be_parent(void)
{
    struct err e = {0};
    struct spawner *p = reward_prepare(&e);
    struct reward_config c = config("left", 2);
    c.rank = 1; /* quiet: the first line is the pid */
    c.ranks = 2;
    struct reward *r = reward_open(p, &c, &e);
    if (!r || !reward_ready(r, &e)) {
        printf("0 %s\n", e.msg);
        return 1;
    }
    printf("%d\n", (int)getpid());
    fflush(stdout);
    for (;;) pause();
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--scorer")) fake_scorer(argv[2]);
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    if (argc == 2 && !strcmp(argv[1], "--parent")) return be_parent();
    struct err e = {0};
    if (!(argc == 2 && !strcmp(argv[1], "-m"))) spawner = reward_prepare(&e);
    err_raise(&e);
    const struct test tests[] = {
        {.name = "every clip is scored once, the same with 1, 2, 3 workers", .run = all_scored},
        {.name = "a clip survives every fault of a scorer", .run = faults_once},
        {.name = "a clip that scorers die of becomes invalid", .run = poisoned},
        {.name = "a scorer that does not start is a clear error", .run = wrong_starts},
        {.name = "a scorer that cannot start is not tried again", .run = no_use_again},
        {.name = "without scorers the caller is told", .run = no_worker_left},
        {.name = "waiting has an end, bad input is refused", .run = waiting},
        {.name = "reward.score_limit is the largest score to believe", .run = limit},
        {.name = "many clips, many faults, all scored", .run = storm},
        {.name = "close leaves nothing behind", .run = no_leftovers},
        {.name = "a scorer sees little of the trainer", .run = surroundings},
        {.name = "kill -9 of the trainer ends its scorers", .run = parent_killed},
    };
    const int rc = test_main(argc, argv, tests, sizeof tests / sizeof *tests);
    reward_release(spawner);
    return rc;
}
