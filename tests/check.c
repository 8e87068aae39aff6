#include "tests/check.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/log.h"
#include "parallel/comm.h"
#include "parallel/launch.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int passed, failed, skipped;
static int case_failures, shown;
static bool case_skipped, fast_only, verbose;
static struct comm *mpi_world; /* NULL: ranks are threads */
static char case_reason[512];
static char dir[256];

bool test_fast(void) { return fast_only; }
bool test_verbose(void) { return verbose; }
bool test_campaign(void) { return getenv("CAMPAIGN") != NULL; }

int64_t test_inputs(int64_t usual)
{
    const char *n = getenv("FUZZ");
    return n && atoll(n) > 0 ? atoll(n) : usual;
}

void test_skip(const char *fmt, ...)
{
    pthread_mutex_lock(&lock);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(case_reason, sizeof case_reason, fmt, ap);
    va_end(ap);
    case_skipped = true;
    pthread_mutex_unlock(&lock);
}

void test_note(const char *what, bool ok)
{
    pthread_mutex_lock(&lock);
    if (ok)
        passed++;
    else
        failed++;
    printf("  %s %s\n", ok ? "ok  " : "FAIL", what);
    pthread_mutex_unlock(&lock);
}

int test_failures(void)
{
    pthread_mutex_lock(&lock);
    const int n = case_failures;
    pthread_mutex_unlock(&lock);
    return n;
}

void test_note_skip(const char *what, const char *why)
{
    pthread_mutex_lock(&lock);
    skipped++;
    printf("  skip %s: %s\n", what, why);
    pthread_mutex_unlock(&lock);
}

static void fail_line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void fail_line(const char *fmt, ...)
{
    pthread_mutex_lock(&lock);
    case_failures++;
    if (shown++ < 20) {
        va_list ap;
        va_start(ap, fmt);
        vprintf(fmt, ap);
        va_end(ap);
    }
    pthread_mutex_unlock(&lock);
}

void expect_true(bool ok, const char *file, int line, const char *expr, const char *fmt, ...)
{
    if (ok) return;
    char msg[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    fail_line("    %s:%d expected %s: %s\n", file, line, expr, msg);
}

double norm_error(const double *got, const double *want, int64_t n)
{
    double diff = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        diff += (got[i] - want[i]) * (got[i] - want[i]);
        size += want[i] * want[i];
    }
    return sqrt(diff / size);
}

double max_error(const double *got, const double *want, int64_t n, int64_t *worst)
{
    double top = 0, diff = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(got[i]) || !isfinite(want[i])) {
            if (worst) *worst = i;
            return INFINITY;
        }
        if (fabs(want[i]) > top) top = fabs(want[i]);
        if (fabs(got[i] - want[i]) > diff) {
            diff = fabs(got[i] - want[i]);
            at = i;
        }
    }
    if (worst) *worst = at;
    if (diff == 0) return 0;
    return top > 0 ? diff / top : INFINITY;
}

bool expect_close(const char *what, const double *got, const double *want, int64_t n, double tol)
{
    int64_t at = 0;
    const double e = max_error(got, want, n, &at);
    if (e <= tol) return true;
    fail_line("    %s: error %.3g > %.3g over %lld values; at %lld got %.17g want %.17g\n", what, e,
              tol, (long long)n, (long long)at, got[at], want[at]);
    return false;
}

void expect_stop(const char *text, int code, void (*f)(void *), void *arg)
{
    struct err_trap *t = calloc(1, sizeof *t);
    struct err_trap *volatile before = err_set_trap(t);
    if (setjmp(t->jump) == 0) {
        f(arg);
        fail_line("    expected a stop with \"%s\", but nothing stopped\n", text);
    } else {
        if (!strstr(t->err.msg, text))
            fail_line("    expected a stop with \"%s\", got \"%s\"\n", text, t->err.msg);
        if (t->err.code != code)
            fail_line("    stop \"%s\": exit code %d, expected %d\n", t->err.msg, t->err.code,
                      code);
    }
    err_set_trap(before);
    free(t);
}

static void remove_dir(void)
{
    char cmd[300];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    if (dir[0] && system(cmd) != 0) fprintf(stderr, "cannot remove %s\n", dir);
}

char *test_output(void (*f)(void *), void *arg)
{
    fflush(NULL);
    FILE *file = tmpfile();
    const int out = dup(1), err = dup(2);
    CHECK(file && dup2(fileno(file), 1) == 1 && dup2(fileno(file), 2) == 2, "redirection");
    log_set_level(LOG_INFO);
    f(arg);
    log_set_level(LOG_WARN);
    fflush(stdout);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);
    CHECK(fseek(file, 0, SEEK_END) == 0, "output");
    const long n = ftell(file);
    char *said = calloc((size_t)n + 1, 1);
    rewind(file);
    CHECK(said && fread(said, 1, (size_t)n, file) == (size_t)n, "output");
    fclose(file);
    return said;
}

int test_command(const char *cmd, char *said, size_t size)
{
    FILE *p = popen(cmd, "r");
    CHECK(p, "cannot run %s", cmd);
    said[fread(said, 1, size - 1, p)] = 0;
    char rest[4096];
    while (fread(rest, 1, sizeof rest, p) > 0) continue;
    const int status = pclose(p);
    return WIFEXITED(status)     ? WEXITSTATUS(status)
           : WIFSIGNALED(status) ? 128 + WTERMSIG(status)
                                 : -1;
}

const char *test_dir(void)
{
    pthread_mutex_lock(&lock);
    if (!dir[0]) {
        const char *base = getenv("TMPDIR");
        snprintf(dir, sizeof dir, "%s/osp-test-XXXXXX", base ? base : "/tmp");
        if (!mkdtemp(dir)) {
            perror(dir);
            exit(1);
        }
        atexit(remove_dir);
    }
    pthread_mutex_unlock(&lock);
    return dir;
}

static void run_body(struct comm *world, void *arg) { ((const struct test *)arg)->run(world); }

static void run_case(const struct test *t, int ranks)
{
    char name[256];
    snprintf(name, sizeof name,
             mpi_world   ? "%s [%d MPI ranks]"
             : ranks > 1 ? "%s [%d ranks]"
                         : "%s",
             t->name, ranks);
    case_failures = shown = 0;
    case_skipped = false;
    const double t0 = log_seconds();
    fflush(stdout);
    if (mpi_world) {
        t->run(mpi_world);
        double bad = case_failures;
        comm_sum_f64(mpi_world, &bad, 1, "verdict");
        case_failures = (int)bad;
    } else {
        comm_thread_run(ranks, run_body, (void *)(uintptr_t)t);
    }
    const double s = log_seconds() - t0;
    if (mpi_world && mpi_world->rank) return; /* rank 0 counts and tells */
    if (case_failures) {
        failed++;
        printf("  FAIL %s (%d expectations, %.2f s)\n", name, case_failures, s);
    } else if (case_skipped) {
        skipped++;
        printf("  skip %s: %s\n", name, case_reason);
    } else {
        passed++;
        printf("  ok   %s (%.2f s)\n", name, s);
    }
    fflush(stdout);
}

static bool wants(const struct test *t, int ranks)
{
    for (int k = 0; k < 5; k++)
        if (t->ranks[k] == ranks) return true;
    return false;
}

static void list_mpi_ranks(const struct test *tests, int n)
{
    for (int ranks = fast_only ? 4 : 2; ranks <= 16; ranks++) {
        bool any = false;
        for (int i = 0; i < n; i++)
            any |= (tests[i].flags & TEST_MPI) && wants(&tests[i], ranks) &&
                   !(fast_only && (tests[i].flags & TEST_SLOW));
        if (!any) continue;
        printf("%d\n", ranks);
        if (fast_only) return; /* one is enough */
    }
}

static void run_tests(const struct test *tests, int n, const char *part)
{
    for (int i = 0; i < n; i++) {
        const struct test *t = &tests[i];
        if (part && !strstr(t->name, part)) continue;
        if (fast_only && (t->flags & TEST_SLOW)) continue;
        if (mpi_world) {
            if ((t->flags & TEST_MPI) && wants(t, mpi_world->size)) run_case(t, mpi_world->size);
            continue;
        }
        if (!t->ranks[0]) run_case(t, 1);
        for (int k = 0; k < 5 && t->ranks[k]; k++) run_case(t, t->ranks[k]);
    }
}

int test_main(int argc, char **argv, const struct test *tests, int n)
{
    const char *part = NULL;
    fast_only = getenv("TEST_FAST") != NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-f") == 0)
            fast_only = true;
        else if (strcmp(argv[i], "-v") == 0)
            verbose = true;
        else if (strcmp(argv[i], "-l") == 0) {
            for (int k = 0; k < n; k++) printf("%s\n", tests[k].name);
            return 0;
        } else if (strcmp(argv[i], "-m") == 0) {
            list_mpi_ranks(tests, n);
            return 0;
        } else
            part = argv[i];
    }
    if (getenv("OMPI_COMM_WORLD_SIZE") && atoi(getenv("OMPI_COMM_WORLD_SIZE")) > 1)
        mpi_world = launch_start(&argc, &argv);
    log_set_level(LOG_WARN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    const bool tells = !mpi_world || mpi_world->rank == 0;
    if (tells) printf("%s\n", argv[0]);
    run_tests(tests, n, part);
    double bad = failed;
    if (mpi_world) {
        comm_sum_f64(mpi_world, &bad, 1, "verdict");
        launch_end(mpi_world);
    }
    if (tells) printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return bad > 0 ? 1 : 0;
}
