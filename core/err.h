/* How the program fails.
 *
 * A failure on one rank must end every rank, with one readable line that says who, where and
 * during what. Three tools:
 *   CHECK     a broken promise of the program (always compiled in); names file, line and condition;
 *   err_stop  a mistake of the user or of the machine (bad config, missing file, full disk): one
 *             clear sentence with the remedy, and the documented exit code;
 *   struct err  for the few places that have something better to do than to stop (report all
 *             config problems at once, try the checkpoint before, skip a broken clip).
 * Both CHECK and err_stop print the "while ..." stack and call the abort hook, which takes all
 * ranks along (MPI_Abort). All state here is per thread, so that ranks may be threads. */
#ifndef CORE_ERR_H
#define CORE_ERR_H
#include <setjmp.h>
#include <stddef.h>

/* Exit codes (sysexits where they exist; 75, 85, 86 and 88 are worth a requeue). */
enum exit_code {
    RC_OK = 0,
    RC_USAGE = 64,     /* wrong command line */
    RC_DATA = 65,      /* input file is damaged or contradicts itself */
    RC_NOINPUT = 66,   /* input file is missing */
    RC_SOFTWARE = 70,  /* a CHECK failed */
    RC_CANTCREAT = 73, /* output cannot be created */
    RC_IO = 74,        /* read or write error, disk full */
    RC_TEMP = 75,      /* temporary; a valid checkpoint exists */
    RC_CONFIG = 78,    /* configuration error */
    RC_PREEMPTED = 85, /* signal or time limit; checkpoint written */
    RC_HANG = 86,      /* hang or communicator failure */
    RC_NUMERIC = 87,   /* too many non-finite steps */
    RC_HARDWARE = 88   /* suspected hardware fault */
};

#define CHECK(cond, ...) \
    ((cond) ? (void)0 : err_fatal(__FILE__, __LINE__, __func__, #cond, __VA_ARGS__))
_Noreturn void err_fatal(const char *file, int line, const char *func, const char *expr,
                         const char *fmt, ...) __attribute__((format(printf, 5, 6)));
_Noreturn void err_stop(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Names this thread's rank in every message; abort_all(code) ends all ranks (NULL: exit). */
void err_identify(int rank, int size, void (*abort_all)(int code));
/* "[rank 1/2 host] text | while ... | while ...\n" into line, always terminated; returns its
 * length. Safe in a signal handler: copies only. */
size_t err_line(char *line, size_t size, const char *text);
/* Leaves the exit code in the file that OSP_EXIT_FILE names, unless one is there: some launchers
 * (srun) report the ranks they killed and not the one that failed. Safe in a signal handler. */
void err_leave_code(int code);
/* The "while ..." stack: err_push("loading step %d", n) ... err_pop(). */
void err_push(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void err_pop(void);

struct err {
    int code; /* 0: no error */
    char msg[1024];
};
void err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Stops with e's code and message when e holds an error. */
void err_raise(const struct err *e);

/* While a trap is set, CHECK and err_stop on this thread clear it, fill it and longjmp. Returns the
 * trap that was set before. For tests and for ranks that are threads. */
struct err_trap {
    jmp_buf jump;
    struct err err;
};
struct err_trap *err_set_trap(struct err_trap *t);
#endif
