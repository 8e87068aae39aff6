/* The scorers in Python, alone (tests/scorers.py) and behind the bridge. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "rl/reward.h"
#include "tests/check.h"
#include "tests/fake_scorer.h"
#include "tests/process.h"

static struct spawner *spawner;

static struct reward_config config(int workers)
{
    return (struct reward_config){.workers = workers, .log_dir = test_dir()};
}

static void simple_scorer(struct comm *world)
{
    (void)world;
    if (system("python3 -c 'import mmap, socket; socket.recv_fds' >/dev/null 2>&1") != 0) {
        test_skip("no python3 (3.9 or newer)");
        return;
    }
    struct reward_config c = config(2);
    c.command = "python3 scripts/simple_scorer.py";
    c.slot_bytes = 4 * 16 * 16 * 3;
    c.request_s = 20;
    struct reward *r = fake_start(spawner, &c);
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

static void python_rules(struct comm *world)
{
    (void)world;
    const char *py = process_python("sys; sys.version_info >= (3, 9) or sys.exit(1)");
    if (py)
        run_python(py, "");
    else
        test_skip("no python3 (3.9 or newer)");
}

static void videoalign_model(struct comm *world)
{
    (void)world;
    const char *py = process_python_torch();
    if (py) run_python(py, "Model");
}

/* The whole way: frames from here through a tiny VideoAlign and back. */
static void videoalign_bridge(struct comm *world)
{
    (void)world;
    const char *py = process_python_torch();
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
    struct reward_config c = config(1);
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
    r = fake_start(spawner, &c);
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
    struct err e = {0};
    spawner = reward_prepare(&e);
    err_raise(&e);
    const struct test tests[] = {
        {.name = "the simple scorer scores", .run = simple_scorer},
        {.name = "the scorers' rules, in Python", .run = python_rules},
        {.name = "VideoAlign on a tiny random model", .run = videoalign_model, .flags = TEST_SLOW},
        {.name = "VideoAlign through the bridge", .run = videoalign_bridge, .flags = TEST_SLOW},
    };
    const int rc = test_main(argc, argv, tests, sizeof tests / sizeof *tests);
    reward_release(spawner);
    return rc;
}
