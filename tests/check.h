/* Test harness. A test is a function over a world communicator and the rank counts it wants;
 * ranks are threads (comm_thread). Started under mpirun, the program runs its TEST_MPI tests that
 * want this number of ranks, over MPI (scripts/run_tests.sh does both). Case names are
 * sentences. A failed expectation is recorded and the test goes on, so that one rank's failure
 * cannot leave the others inside a collective; the harness owns the exit code. The last line is
 * "N passed, N failed, N skipped". */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H
#include "core/dev.h"
#include "core/err.h"
#include "core/tensor.h"

struct comm;
enum {
    TEST_SLOW = 1, /* left out of make test-fast */
    TEST_MPI = 2   /* also over MPI, for each of its rank counts above 1 */
};
struct test {
    const char *name;
    void (*run)(struct comm *world);
    int ranks[5]; /* 0-terminated; all zero: one rank */
    unsigned flags;
};
/* Arguments: [-l] list, [-m] list the rank counts to run under mpirun, [-f] fast set only, [-v]
 * more lines, NAME-PART: only tests that contain it. */
int test_main(int argc, char **argv, const struct test *t, int n);
/* Reports the rest of the running test as skipped, with the reason. Call on all ranks. */
void test_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
bool test_fast(void);
bool test_verbose(void);
/* make campaign: everything, whatever it takes (environment: CAMPAIGN). */
bool test_campaign(void);
/* How many inputs a loop over damaged inputs takes: `usual`, or what FUZZ in the environment says.
 */
int64_t test_inputs(int64_t usual);
/* Adds to the counts of the summary (a golden file with many groups counts each). */
void test_note(const char *what, bool passed);
void test_note_skip(const char *what, const char *why);
int test_failures(void); /* failed expectations of the running case so far */

#define EXPECT(cond, ...) expect_true(!!(cond), __FILE__, __LINE__, #cond, __VA_ARGS__)
void expect_true(bool ok, const char *file, int line, const char *expr, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* max|a-b| / max|b| <= tol over n doubles; prints tensor, index, got, want and how many are off.
 * A NaN on either side fails. */
bool expect_close(const char *what, const double *got, const double *want, int64_t n, double tol);
/* |got - want| / |want|, by norm; NaN where both are 0, and wherever there is one. */
double norm_error(const double *got, const double *want, int64_t n);
double max_error(const double *got, const double *want, int64_t n, int64_t *worst);
/* Runs f(arg) expecting CHECK or err_stop with this text inside the message. */
void expect_stop(const char *text, int code, void (*f)(void *), void *arg);
/* Runs f(arg) and returns what it wrote to stdout and stderr, log lines of all levels included;
 * malloc'ed. For tests of one rank. */
char *test_output(void (*f)(void *), void *arg);
/* Runs a command line; the first size - 1 bytes of its stdout go to said. All of it is read, so
 * that the command never meets a closed pipe. Returns the exit code, 128 + signal when the shell
 * met one, or -1. */
int test_command(const char *cmd, char *said, size_t size);
/* A fresh folder under $TMPDIR, removed when the process ends. */
const char *test_dir(void);
#endif
