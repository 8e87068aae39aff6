#include "core/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 4096 };
static _Thread_local int my_rank, my_size = 1;
/* Shared by the ranks and helpers that are threads of one process. */
static _Atomic enum log_level threshold = LOG_INFO;
static atomic_bool progress_open; /* a progress line without newline is on the terminal */

void log_identify(int rank, int size)
{
    my_rank = rank;
    my_size = size;
}

void log_set_level(enum log_level level) { threshold = level; }

double log_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void emit(int fd, const char *prefix, const char *end, const char *fmt, va_list ap)
{
    char line[LINE_BYTES];
    int n = snprintf(line, sizeof line, "%s", prefix);
    if (my_rank > 0) n += snprintf(line + n, sizeof line - (size_t)n, "[rank %d] ", my_rank);
    int w = vsnprintf(line + n, sizeof line - (size_t)n - 8, fmt, ap);
    n += w < LINE_BYTES - n - 9 ? w : LINE_BYTES - n - 9;
    n += snprintf(line + n, sizeof line - (size_t)n, "%s", end);
    ssize_t done = write(fd, line, (size_t)n);
    (void)done;
}

void log_line(enum log_level level, const char *fmt, ...)
{
    if (level < threshold || (my_rank > 0 && level < LOG_WARN)) return;
    const bool warning = level >= LOG_WARN_ALL;
    const char *prefix = warning ? "warning: " : "";
    if (atomic_exchange(&progress_open, false))
        prefix = warning ? "\nwarning: " : "\n"; /* whoever is first ends it */
    va_list ap;
    va_start(ap, fmt);
    emit(warning ? STDERR_FILENO : STDOUT_FILENO, prefix, "\n", fmt, ap);
    va_end(ap);
}

void log_progress(const char *fmt, ...)
{
    if (my_rank > 0 || threshold > LOG_INFO) return;
    /* mpirun gives ranks a terminal of its own, whatever its output goes to */
    const bool tty = isatty(STDOUT_FILENO) && !getenv("OMPI_COMM_WORLD_SIZE");
    va_list ap;
    va_start(ap, fmt);
    emit(STDOUT_FILENO, tty ? "\r\033[K" : "", tty ? "" : "\n", fmt, ap);
    va_end(ap);
    progress_open = tty;
}
