/* Every way a rank can be lost, through the real program: the whole job ends within seconds, with
 * one line that names the cause and the documented code, and the next start goes on to the same
 * bits. Faults are planted by OSP_FAULT (core/fault.h). */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/process.h"

enum { ITERATIONS = 12 };
static const struct process_opts plain;

/* The undisturbed run, once. */
static bool calm(void)
{
    static int rc = -1;
    if (rc >= 0) return rc == 0;
    char *yaml = process_yaml("calm", ITERATIONS), *log = io_path("%s/calm.log", test_dir());
    rc = process_run(yaml, log, &plain, NULL);
    char *text = process_log(log);
    EXPECT(rc == 0, "the undisturbed run ends with %d: %s", rc, text);
    free(text);
    free(log);
    free(yaml);
    return rc == 0;
}

struct death {
    const char *name, *fault, *set;
    int rc;
    const char *says, *too; /* both in the log; too may be NULL */
};

/* Where messages do not match, Open MPI may spoil its own heap (libnbc) before it returns the
 * error: then the rank ends by SIGABRT, which is told with its place as well. */
static int expected_code(const struct death *d, int rc, const char *text)
{
    const bool spoilt = strstr(text, "NBC_Progress: an error") && strstr(text, "signal 6, SIGABRT");
    return d->rc == RC_HANG && spoilt && rc == 128 + SIGABRT ? rc : d->rc;
}

static void one_death(const struct death *d)
{
    char *yaml = process_yaml(d->name, ITERATIONS),
         *log = io_path("%s/%s.log", test_dir(), d->name),
         *codes = io_path("%s/%s.code", test_dir(), d->name),
         *env = io_path("OSP_EXIT_FILE=%s", codes);
    const struct process_opts o = {
        .fault = d->fault, .sets = {"comm_deadline_s=2", d->set}, .env = {env}};
    double seconds = 0;
    const int rc = process_run(yaml, log, &o, &seconds);
    char *text = process_log(log), *code = process_log(codes);
    const int want = expected_code(d, rc, text);
    EXPECT(rc == want, "%s: exit code %d, expected %d: %s", d->name, rc, want, text);
    EXPECT(strstr(text, d->says), "%s: \"%s\" is not in: %s", d->name, d->says, text);
    EXPECT(!d->too || strstr(text, d->too), "%s: \"%s\" is not in: %s", d->name, d->too, text);
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    EXPECT(strstr(text, host), "%s: \"%s\" is not in: %s", d->name, host, text);
    EXPECT(seconds < 20, "%s: %.1f s until the job ended", d->name, seconds);
    /* a killed rank cannot leave its code; the others may be faster than the launcher */
    EXPECT(atoi(code) == want || (d->rc == 137 && (!code[0] || atoi(code) == RC_HANG)),
           "%s: the exit file says \"%s\"", d->name, code);
    pid_t left[4];
    EXPECT(process_ranks(yaml, left, 4) == 0, "%s: a rank is left", d->name);
    char *again = io_path("%s/%s.again.log", test_dir(), d->name);
    const int second = process_run(yaml, again, &plain, NULL);
    char *said = process_log(again);
    EXPECT(second == 0 && strstr(said, "resumed from"), "%s: the next start: %d, %s", d->name,
           second, said);
    EXPECT(process_diff("calm", d->name) == 0, "%s: other bits than the undisturbed run", d->name);
    printf("    %s: exit code %d after %.1f s\n", d->name, rc, seconds);
    free(said);
    free(again);
    free(code);
    free(text);
    free(env);
    free(codes);
    free(log);
    free(yaml);
}

static void test_process(struct comm *world)
{
    (void)world;
    if (!process_ready() || !calm()) return;
    static const struct death list[] = {
        {"kill", "step@1:8:kill", NULL, 137, "process rank 1 with PID",
         "exited on signal 9 (Killed)"},
        {"kill_zero", "step@0:8:kill", NULL, 137, "process rank 0 with PID",
         "exited on signal 9 (Killed)"},
        {"segv", "step@1:8:segv", NULL, 139, "[rank 1/2 ", "ended by signal 11, SIGSEGV"},
        {"segv_zero", "step@0:8:segv", NULL, 139, "[rank 0/2 ", "ended by signal 11, SIGSEGV"},
        {"exit", "step@1:8:exit", NULL, RC_SOFTWARE, "[rank 1/2 ",
         "left by exit() before its work was done | while training step 7"},
        {"exit_zero", "step@0:8:exit", NULL, RC_SOFTWARE, "[rank 0/2 ",
         "left by exit() before its work was done | while training step 7"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) one_death(&list[i]);
}

static void test_hang(struct comm *world)
{
    (void)world;
    if (!process_ready() || !calm()) return;
    static const struct death list[] = {
        {"stop", "step@1:8:stop", NULL, RC_HANG, "a rank is missing: rank 1 (", "(stopped, "},
        {"stopped_zero", "step@0:8:stop", NULL, RC_HANG, "[rank 1/2 ",
         "a rank is missing: rank 0 ("},
        {"hang", "step@1:8:hang", NULL, RC_HANG, "on axis fsdp (2 ranks), in embed",
         "has not reached it; it is at #"},
        {"data", "data@1:14:hang", NULL, RC_HANG, "[rank 0/2 ", ", in waiting for data"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) one_death(&list[i]);
}

/* What is said depends on which message of which size meets which; the code never does. */
static void test_left_out(struct comm *world)
{
    (void)world;
    if (!process_ready() || !calm()) return;
    static const struct death list[] = {
        {"skip_one", "comm@1:290", NULL, RC_HANG, "[rank ", NULL},
        {"skip_two", "comm@1:291", NULL, RC_HANG, "[rank ", NULL},
        {"skip_three", "comm@1:299", NULL, RC_HANG, "[rank ", NULL},
        {"skip_checked", "comm@1:290", "check_comm=true", RC_SOFTWARE,
         "ranks disagree on axis fsdp: its rank ", "begins #"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) one_death(&list[i]);
}

/* Before there is a configuration, a deadline, or another rank that answers. */
static void test_start(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    static const struct {
        const char *fault, *says;
    } list[] = {{"start@1:1:stop", "a rank is missing: rank 1 ("},
                {"comm@1:1", "the start of MPI did not end in time"}};
    for (int i = 0; i < 2; i++) {
        char *yaml = process_yaml("start", ITERATIONS),
             *log = io_path("%s/start%d.log", test_dir(), i);
        const struct process_opts o = {.fault = list[i].fault,
                                       .sets = {"comm_deadline_s=2"},
                                       .env = {"OSP_START_DEADLINE_S=4"}};
        double seconds = 0;
        const int rc = process_run(yaml, log, &o, &seconds);
        char *text = process_log(log);
        EXPECT(rc == RC_HANG && strstr(text, list[i].says), "%s: exit code %d: %s", list[i].fault,
               rc, text);
        EXPECT(seconds < 20, "%.1f s", seconds);
        free(text);
        free(log);
        free(yaml);
    }
}

/* Four ranks, two axes: whoever waits, one line is said, and it names the rank that is the cause.
 */
static void test_one_line(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    static const char *const size[] = {"fsdp_size=2", "fsdp_size=4"};
    for (int i = 0; i < 2; i++) {
        char *yaml = process_yaml("four", ITERATIONS),
             *log = io_path("%s/four%d.log", test_dir(), i);
        const struct process_opts o = {
            .fault = i ? "step@3:3:stop" : "step@1:3:hang",
            .sets = {"comm_deadline_s=3", "data_config.batch_size=1", size[i]},
            .ranks = 4};
        const int rc = process_run(yaml, log, &o, NULL);
        char *text = process_log(log);
        int lines = 0;
        for (const char *t = text; (t = strstr(t, "[rank ")); t++) lines++;
        EXPECT(rc == RC_HANG && lines == 1, "exit code %d, %d lines: %s", rc, lines, text);
        EXPECT(strstr(text, i ? "is missing: rank 3 (" : "is missing: rank 1 ("), "%s", text);
        struct err e = {0};
        char *dir = io_path("%s/four", test_dir());
        io_remove_tree(dir, &e);
        free(dir);
        free(text);
        free(log);
        free(yaml);
    }
}

/* A rank that ends while the launcher lives on (--kill-on-bad-exit=0 of srun): here the launcher is
 * the one that cannot act, being stopped. The others notice by themselves, before the deadline. */
static void test_gone(struct comm *world)
{
    (void)world;
    if (!process_ready()) return;
    char *yaml = process_yaml("gone", 100000), *log = io_path("%s/gone.log", test_dir()),
         *lines = io_path("%s/gone/metrics.jsonl", test_dir());
    const struct process_opts o = {.sets = {"save_interval=100000"}};
    const pid_t pid = process_start(yaml, log, &o);
    pid_t rank[4];
    int n = 0;
    for (int i = 0; i < 200 && !(io_exists(lines) && (n = process_ranks(yaml, rank, 4)) == 2); i++)
        process_nap(0.05);
    EXPECT(n == 2, "%d ranks", n);
    process_nap(2.5); /* each has heard of the other once */
    kill(pid, SIGSTOP);
    if (n) kill(rank[1], SIGKILL);
    /* its end is seen here; its last line, which goes through the launcher, after that */
    for (int i = 0; i < 300 && process_ranks(yaml, rank, 4); i++) process_nap(0.05);
    EXPECT(process_ranks(yaml, rank, 4) == 0, "the other rank waits on");
    kill(pid, SIGCONT);
    const int rc = process_end(pid);
    char *text = process_log(log);
    EXPECT(strstr(text, "is gone (its process has ended)") &&
               strstr(text, "It cannot come any more"),
           "%s", text);
    EXPECT(rc == 137 || rc == RC_HANG, "exit code %d", rc);
    process_wait_gone(yaml);
    free(text);
    free(lines);
    free(log);
    free(yaml);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "kill -9, SIGSEGV and exit(0) on either rank end the job, which then resumes",
         .run = test_process,
         .flags = TEST_SLOW},
        {.name = "a stopped or hanging rank is named, and the job resumes",
         .run = test_hang,
         .flags = TEST_SLOW},
        {.name = "a collective left out ends the job, which then resumes",
         .run = test_left_out,
         .flags = TEST_SLOW},
        {.name = "a rank lost at the start ends the job", .run = test_start, .flags = TEST_SLOW},
        {.name = "one rank of four is named by one line", .run = test_one_line, .flags = TEST_SLOW},
        {.name = "a rank that is gone is noticed before the deadline",
         .run = test_gone,
         .flags = TEST_SLOW},
    };
    /* mpirun waits this long twice before it kills the ranks that are left */
    setenv("OMPI_MCA_odls_base_sigkill_timeout", "0", 1);
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
