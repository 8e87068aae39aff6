/* The reward bridge: its messages, and what happens to clips and processes when scorers do what
 * they should not. */
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
#include "rl/reward_spawn.h"
#include "rl/reward_wire.h"
#include "tests/check.h"
#include "tests/fake_scorer.h"
#include "tests/process.h"

static struct spawner *spawner;
static char self[512]; /* this program */

/* ---- messages ---------------------------------------------------------------------------------
 */
static struct wire_score sample_score(void)
{
    return (struct wire_score){.slot = 3,
                               .offset = (uint64_t)1 << 33,
                               .frames = 3,
                               .height = 7,
                               .width = 9,
                               .resized = true,
                               .fps = 16,
                               .total = 81,
                               .num_index = 3,
                               .index = {0, 40, 80},
                               .crc = 0xdeadbeef,
                               .prompt_size = 8,
                               .prompt = "h\xc3\xa9llo \xe4"};
}

static void put_both(struct wire_buf *b)
{
    const struct wire_score s = sample_score();
    const struct wire_result r = {.status = WIRE_OK,
                                  .crc = 5,
                                  .dims = 3,
                                  .raw = {1, -2, 0.1},
                                  .norm = {3, 4, 5},
                                  .frames_used = 20,
                                  .tokens = 2520,
                                  .ms = 1.5f,
                                  .text = "fine"};
    wire_put_score(b, 12, &s);
    wire_put_result(b, 13, &r);
    wire_put(b, WIRE_READY, 0, "dims=VQ,MQ\nscorer=a=b\nempty=\n", 29);
}

static void round_trip(struct comm *world)
{
    (void)world;
    EXPECT(wire_crc32(0, "123456789", 9) == 0xcbf43926u, "CRC-32 of 123456789");
    EXPECT(wire_crc32(wire_crc32(0, "1234", 4), "56789", 5) == 0xcbf43926u, "CRC-32 in two parts");
    struct wire_buf b = {0};
    struct wire_msg m;
    struct wire_score s;
    struct wire_result r;
    const char *wrong;
    const struct wire_score want = sample_score();
    put_both(&b);
    EXPECT(wire_take(&b, &m, &wrong) == 1 && m.id == 12 && wire_get_score(&s, &m), "SCORE");
    EXPECT(s.slot == 3 && s.offset == want.offset && s.frames == 3 && s.height == 7 &&
               s.width == 9 && s.resized && s.fps == 16 && s.total == 81 && s.num_index == 3 &&
               s.index[1] == 40 && s.index[2] == 80 && s.crc == want.crc && s.prompt_size == 8 &&
               memcmp(s.prompt, want.prompt, 8) == 0,
           "SCORE differs");
    EXPECT(wire_take(&b, &m, &wrong) == 1 && m.id == 13 && wire_get_result(&r, &m), "RESULT");
    EXPECT(r.status == WIRE_OK && r.crc == 5 && r.dims == 3 && r.raw[1] == -2 && r.norm[2] == 5 &&
               r.frames_used == 20 && r.tokens == 2520 && r.ms == 1.5f && !strcmp(r.text, "fine"),
           "RESULT differs");
    char v[8];
    EXPECT(wire_take(&b, &m, &wrong) == 1 && wire_lines(&m), "READY");
    EXPECT(wire_value(&m, "scorer", v, 8) && !strcmp(v, "a=b"), "%s", v);
    EXPECT(wire_value(&m, "empty", v, 8) && !v[0], "%s", v);
    EXPECT(!wire_value(&m, "dim", v, 8) && !wire_value(&m, "dims", v, 5), "%s", v);
    EXPECT(wire_take(&b, &m, &wrong) == 0, "a message too many");
    wire_free(&b);
}

static void byte_by_byte(struct comm *world)
{
    (void)world;
    struct wire_buf all = {0}, b = {0};
    struct wire_msg m;
    const char *wrong;
    put_both(&all);
    int n = 0;
    for (size_t i = 0; i < all.size; i++) {
        wire_add(&b, all.data + i, 1);
        const int got = wire_take(&b, &m, &wrong);
        EXPECT(got >= 0, "byte %zu: %s", i, wrong);
        n += got;
    }
    EXPECT(n == 3 && b.at == b.size, "%d messages", n);
    wire_free(&all);
    wire_free(&b);
}

static int all_messages(struct wire_buf *b, bool *readable)
{
    struct wire_msg m;
    struct wire_score s;
    struct wire_result r;
    const char *wrong;
    int got, n = 0;
    char v[64];
    *readable = true;
    while ((got = wire_take(b, &m, &wrong)) > 0) {
        n++;
        if (m.type == WIRE_SCORE) *readable &= wire_get_score(&s, &m);
        if (m.type == WIRE_RESULT) *readable &= wire_get_result(&r, &m);
        if (m.type != WIRE_SCORE && m.type != WIRE_RESULT && wire_lines(&m))
            wire_value(&m, "dims", v, sizeof v);
    }
    EXPECT(got == 0 || wrong, "an error without a reason");
    return got < 0 ? -1 : n;
}

/* Every single bit; then lengths that lie, under correct checksums. */
static void damaged(struct comm *world)
{
    (void)world;
    struct wire_buf good = {0};
    bool readable;
    put_both(&good);
    for (size_t bit = 0; bit < 8 * good.size; bit++) {
        struct wire_buf b = {0};
        wire_add(&b, good.data, good.size);
        b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        EXPECT(all_messages(&b, &readable) == -1, "bit %zu of byte %zu unnoticed", bit % 8,
               bit / 8);
        wire_free(&b);
    }
    uint64_t rng = 1;
    const int64_t inputs = test_inputs(20000);
    for (int64_t i = 0; i < inputs; i++) {
        uint8_t p[300];
        struct wire_buf b = {0};
        rng = rng * 6364136223846793005u + 1442695040888963407u;
        const uint32_t size = (uint32_t)(rng >> 33) % 300;
        struct wire_msg m;
        const char *wrong;
        size_t at = 0;
        wire_add(&b, good.data, good.size);
        wire_take(&b, &m, &wrong);
        if (i % 2) wire_take(&b, &m, &wrong);
        const uint32_t keep = m.size < size ? m.size : size;
        memcpy(p, m.data, keep);
        for (uint32_t k = keep; k < size; k++) p[k] = (uint8_t)(rng >> k % 50);
        for (int k = 0; k < (int)(i % 4) && size; k++)
            p[(rng >> (7 * k)) % size] = (uint8_t)(rng >> (40 + k));
        struct wire_buf c = {0};
        wire_put(&c, m.type, m.id, p, size); /* correct checksums over nonsense */
        all_messages(&c, &readable);
        wire_printable((const char *)p, size, &at);
        wire_free(&b);
        wire_free(&c);
    }
    wire_free(&good);
}

static void exact_lengths(struct comm *world)
{
    (void)world;
    struct wire_buf b = {0};
    struct wire_msg m;
    struct wire_score s;
    struct wire_result r;
    const char *wrong;
    put_both(&b);
    wire_take(&b, &m, &wrong);
    for (uint32_t n = 0, all = m.size; n <= all + 1; n++) {
        m.size = n; /* one byte beyond: the next message's */
        EXPECT(wire_get_score(&s, &m) == (n == all), "SCORE of %u bytes", n);
    }
    wire_take(&b, &m, &wrong);
    for (uint32_t n = 0, all = m.size; n <= all + 1; n++) {
        m.size = n;
        EXPECT(wire_get_result(&r, &m) == (n == all), "RESULT of %u bytes", n);
    }
    wire_free(&b);
    const struct {
        const char *text;
        bool fine;
    } text[] = {{"plain", true},
                {"h\xc3\xa9", true},
                {"\xf0\x9f\x8e\xac", true},
                {"a\nb", false},
                {"\x7f", false},
                {"\xc2\x85", false},
                {"\xc0\xaf", false},
                {"\xe0\x80\xaf", false},
                {"\xed\xa0\x80", false},
                {"\xf4\x90\x80\x80", false},
                {"\xc3", false},
                {"\xff", false}};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        size_t at;
        EXPECT(wire_printable(text[i].text, strlen(text[i].text), &at) == text[i].fine, "text %zu",
               i);
    }
}

static void words(struct comm *world)
{
    (void)world;
    char text[] = " python3  'a b'.py --x=\"c  d\" ''\te ", *w[8], open_quote[] = "a 'b",
         many[] = "a b c d e f g h";
    EXPECT(spawner_words(text, w, 8) == 5 && !strcmp(w[0], "python3") && !strcmp(w[1], "a b.py") &&
               !strcmp(w[2], "--x=c  d") && !strcmp(w[3], "") && !strcmp(w[4], "e") && !w[5],
           "words");
    EXPECT(spawner_words(open_quote, w, 8) == -1, "a quote without its end");
    EXPECT(spawner_words(many, w, 8) == -1, "too many words");
}

/* ---- the bridge -------------------------------------------------------------------------------
 */
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

/* NULL after a failed expectation. */
static struct reward *start(const struct reward_config *c)
{
    struct err e = {0};
    struct reward *r = reward_open(spawner, c, &e);
    EXPECT(r, "%s", e.msg);
    if (!r) return NULL;
    EXPECT(reward_ready(r, &e), "%s", e.msg);
    return r;
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
    fake_scores(want, prompt, p, BYTES);
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
        struct reward *r = start(&c);
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
    enum { FAULTS = sizeof fault / sizeof *fault };
    struct reward_config c = config("once", 2);
    c.max_deaths = 3; /* one may be of the clip before, answered already */
    struct reward *r = start(&c);
    if (!r) return;
    char prompt[FAULTS][300];
    for (int i = 0; i < FAULTS; i++) {
        snprintf(prompt[i], sizeof prompt[i], "%s %s/once_%s", fault[i], test_dir(), fault[i]);
        submit(r, (uint64_t)i, prompt[i]);
    }
    EXPECT(reward_flush(r, 60) == REWARD_OK, "flush");
    struct reward_result d[FAULTS + 1];
    const int n = reward_poll(r, d, FAULTS + 1);
    EXPECT(n == FAULTS, "%d results", n);
    for (int i = 0; i < n; i++)
        EXPECT(right_scores(&d[i], prompt[d[i].id]), "%s: %s", fault[d[i].id], d[i].reason);
    const struct reward_stats s = reward_stats(r);
    EXPECT(s.scored == FAULTS && s.violations >= 5 && s.restarts >= 10, "%d, %d", (int)s.violations,
           (int)s.restarts);
    reward_close(r);
    EXPECT(alive("once") == 0, "scorers are left");
}

static void expect_invalid(const char *prompt, const char *reason, int attempts)
{
    struct reward_config c = config("always", 1);
    c.ping_s = 0.1;
    c.request_s = 0.5;
    struct reward *r = start(&c);
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
    expect_invalid("late", "2 scorers died of it; the last: it took more than 0.5 s for one clip",
                   2);
    expect_invalid("hang", "2 scorers died of it; the last: it did not answer for 0.3 s", 2);
    expect_invalid("nan", "3 attempts failed; the last: its scores are not finite", 3);
    expect_invalid("huge", "a score is beyond all bounds", 3);
    expect_invalid("crc", "it has seen other frames than were sent", 3);
    expect_invalid("bad", "not my kind of prompt", 1);
}

static void expect_no_start(const char *mode, int code, const char *text)
{
    struct reward_config c = config(mode, 1);
    struct err e = {0};
    c.start_s = 0.5;
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

static void no_worker_left(struct comm *world)
{
    (void)world;
    struct reward_config c = config("dying", 2);
    c.max_restarts = 1;
    c.max_deaths = c.max_attempts = 100;
    struct reward *r = start(&c);
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
    submit(r, 3, "late");
    EXPECT(reward_flush(r, 20) == REWARD_DEAD, "no end is seen");
    reward_close(r);
    reward_release(other);
    EXPECT(alive("orphan") == 0, "scorers outlive their parent");
}

static void waiting(struct comm *world)
{
    (void)world;
    struct reward_config c = config("wait", 1);
    c.slots = 2;
    struct reward *r = start(&c);
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

/* 5% of many clips go wrong at their first attempt. */
static void storm(struct comm *world)
{
    (void)world;
    static const char *const fault[] = {"crash", "exit", "garbage", "nan", "crc",
                                        "twice", "half", "after",   "oom", "flip"};
    const int clips = test_fast() ? 400 : test_campaign() ? 10000 : 2000;
    struct reward_config c = config("many", 3);
    c.max_restarts = 1 << 20;
    c.max_deaths = c.max_attempts = 5; /* neighbours of a crash are tried again too */
    struct reward *r = start(&c);
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
    struct reward *r = start(&c);
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
                "grep -E '^(SigIgn|SigBlk|NoNewPrivs)' /proc/$$/status\nulimit -c\numask\n"
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

/* ---- the Python side --------------------------------------------------------------------------
 */
static void simple_scorer(struct comm *world)
{
    (void)world;
    if (system("python3 -c 'import mmap, socket; socket.recv_fds' >/dev/null 2>&1") != 0) {
        test_skip("no python3 (3.9 or newer)");
        return;
    }
    struct reward_config c = config("x", 2);
    c.command = "python3 scripts/simple_scorer.py";
    c.slot_bytes = 4 * 16 * 16 * 3;
    c.request_s = 20;
    struct reward *r = start(&c);
    if (!r) return;
    static const struct {
        const char *prompt;
        uint8_t rgb[3];
        double ta;
    } cases[] = {{"A bright white room", {255, 255, 255}, 1},
                 {"a dark room", {255, 255, 255}, -1},
                 {"Dark, at night", {0, 0, 0}, 1},
                 {"something red", {255, 0, 0}, 1},
                 {"something blue", {255, 0, 0}, -1},
                 {"yellow", {255, 255, 0}, 1},
                 {"a still life", {9, 9, 9}, 1},
                 {"nothing known", {9, 9, 9}, 0}};
    enum { CASES = sizeof cases / sizeof *cases };
    const struct reward_clip four = {.frames = 4, .height = 16, .width = 16, .fps = 8};
    for (int i = 0; i < CASES; i++) {
        struct err e = {0};
        struct reward_slot *s = reward_acquire(r, 30);
        EXPECT(s, "no slot");
        for (size_t k = 0; s && k < 4 * 16 * 16 * 3; k++) s->data[k] = cases[i].rgb[k % 3];
        EXPECT(s && reward_submit(r, s, (uint64_t)i, cases[i].prompt, &four, &e), "%s", e.msg);
    }
    struct reward_result d[CASES];
    EXPECT(reward_flush(r, 30) == REWARD_OK && reward_poll(r, d, CASES) == CASES, "results");
    for (int i = 0; i < CASES; i++)
        EXPECT(d[i].valid && fabs(d[i].raw[2] - cases[d[i].id].ta) < 1e-12 && d[i].raw[0] == -1 &&
                   d[i].raw[1] == 0,
               "%s: %g %g %g %s", cases[d[i].id].prompt, d[i].raw[0], d[i].raw[1], d[i].raw[2],
               d[i].reason);
    reward_close(r);
}

/* The last line a command wrote is its verdict. */
static void run_python(const char *python, const char *which)
{
    char *cmd = io_path("%s tests/scorers.py %s 2>&1", python, which);
    FILE *p = popen(cmd, "r");
    char line[1024], tail[4096] = "";
    while (p && fgets(line, sizeof line, p)) {
        const size_t n = strlen(tail), more = strlen(line);
        if (n + more >= sizeof tail) memmove(tail, tail + n / 2, n - n / 2 + 1);
        if (strlen(tail) + more < sizeof tail) strcat(tail, line);
    }
    const int status = p ? pclose(p) : -1;
    EXPECT(status == 0, "%s", cmd);
    if (status) printf("%s", tail);
    free(cmd);
}

static const char *python_with(const char *modules)
{
    static const char *const list[] = {"build/venv/bin/python", "build/venv-test/bin/python",
                                       "python3"};
    for (int i = 0; i < 3; i++) {
        char *cmd = io_path("%s -c 'import %s' >/dev/null 2>&1", list[i], modules);
        const int rc = system(cmd);
        free(cmd);
        if (rc == 0) return list[i];
    }
    return NULL;
}

static void python_rules(struct comm *world)
{
    (void)world;
    const char *py = python_with("sys; sys.version_info >= (3, 9) or sys.exit(1)");
    if (py)
        run_python(py, "");
    else
        test_skip("no python3 (3.9 or newer)");
}

static const char *python_model(void)
{
    const char *py = python_with("torch, transformers, safetensors, tokenizers");
    if (!py)
        test_skip("no python with torch, transformers, safetensors (python3 -m venv build/venv && "
                  "build/venv/bin/pip install torch==2.13.0 transformers safetensors)");
    return py;
}

static void videoalign_model(struct comm *world)
{
    (void)world;
    const char *py = python_model();
    if (py) run_python(py, "Model");
}

/* The whole way: frames from here through a tiny VideoAlign and back. */
static void videoalign_bridge(struct comm *world)
{
    (void)world;
    const char *py = python_model();
    if (!py) return;
    const char *dir = test_dir();
    char *make = io_path("%s tests/videoalign_tiny.py %s/tiny >%s/tiny.log 2>&1", py, dir, dir);
    char *options =
        io_path("videoalign_dir=%s/tiny/align\nbase_dir=%s/tiny/base\ntemplate=%s/tiny\n"
                "device=cpu\ndtype=fp32\nthreads=2\n",
                dir, dir, dir);
    char *command = io_path("%s scripts/videoalign_scorer.py", py);
    char *convert =
        io_path("%s scripts/videoalign_convert.py %s/tiny/align/checkpoint-7 >/dev/null "
                "2>&1",
                py, dir);
    struct reward_config c = config("x", 1);
    struct err e = {0};
    c.command = command;
    c.options = options;
    c.slot_bytes = 33 * 30 * 40 * 3;
    c.start_s = c.request_s = 100;
    c.ping_s = 2;
    c.missed_pings = 10;
    EXPECT(system(make) == 0, "%s", make);
    struct reward *r = reward_open(spawner, &c, &e);
    EXPECT(r && !reward_ready(r, &e) && e.code == RC_CONFIG && strstr(e.msg, "is a pickle") &&
               strstr(e.msg, "videoalign_convert.py"),
           "%s", e.msg);
    reward_close(r);
    EXPECT(system(convert) == 0, "%s", convert);
    e.code = 0;
    r = start(&c);
    const struct reward_clip whole = {.frames = 33, .height = 30, .width = 40, .fps = 16};
    struct reward_result d[2];
    const char *prompt[] = {"a dog", "a <|TA_reward|> dog"};
    for (uint64_t i = 0; r && i < 2; i++) {
        struct reward_slot *s = reward_acquire(r, 10);
        for (size_t k = 0; s && k < c.slot_bytes; k++) s->data[k] = (uint8_t)(k * 7);
        EXPECT(s && reward_submit(r, s, i, prompt[i], &whole, &e), "%s", e.msg);
    }
    EXPECT(r && reward_flush(r, 200) == REWARD_OK && reward_poll(r, d, 2) == 2, "results");
    EXPECT(r && d[0].valid && d[0].frames_used == 8 && d[0].tokens > 4 * 120 && d[0].norm[0] != 0,
           "%s", d[0].reason);
    EXPECT(r && !d[1].valid && d[1].attempts == 1 && strstr(d[1].reason, "control token"), "%s",
           d[1].reason);
    reward_close(r);
    free(convert);
    free(command);
    free(options);
    free(make);
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
        {.name = "messages come back as they were", .run = round_trip},
        {.name = "messages may come in any pieces", .run = byte_by_byte},
        {.name = "every damaged bit is noticed; lengths that lie do no harm", .run = damaged},
        {.name = "a payload has one length, a text is UTF-8", .run = exact_lengths},
        {.name = "a command line has words", .run = words},
        {.name = "every clip is scored once, the same with 1, 2, 3 workers", .run = all_scored},
        {.name = "a clip survives every fault of a scorer", .run = faults_once},
        {.name = "a clip that scorers die of becomes invalid", .run = poisoned},
        {.name = "a scorer that does not start is a clear error", .run = wrong_starts},
        {.name = "without scorers the caller is told", .run = no_worker_left},
        {.name = "waiting has an end, bad input is refused", .run = waiting},
        {.name = "many clips, many faults, all scored", .run = storm},
        {.name = "close leaves nothing behind", .run = no_leftovers},
        {.name = "a scorer sees little of the trainer", .run = surroundings},
        {.name = "kill -9 of the trainer ends its scorers", .run = parent_killed},
        {.name = "the simple scorer scores", .run = simple_scorer},
        {.name = "the scorers' rules, in Python", .run = python_rules},
        {.name = "VideoAlign on a tiny random model", .run = videoalign_model, .flags = TEST_SLOW},
        {.name = "VideoAlign through the bridge", .run = videoalign_bridge, .flags = TEST_SLOW},
    };
    const int rc = test_main(argc, argv, tests, sizeof tests / sizeof *tests);
    reward_release(spawner);
    return rc;
}
