#include "core/crash.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/err.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

static const struct {
    int sig;
    const char *name;
} fatal[] = {{SIGSEGV, "SIGSEGV (bad memory access)"},
             {SIGBUS, "SIGBUS (bad memory access, or a mapped file that shrank)"},
             {SIGFPE, "SIGFPE (bad arithmetic)"},
             {SIGILL, "SIGILL (an instruction this processor does not have)"},
             {SIGABRT, "SIGABRT (abort)"}};
enum { NUM_FATAL = sizeof fatal / sizeof *fatal };
static void (*tell_where)(char *text, size_t size);
static char stack[1 << 16]; /* the usual one may be the one that overflowed */

void crash_add(char *line, size_t size, const char *text)
{
    size_t n = strlen(line);
    while (*text && n + 1 < size) line[n++] = *text++;
    line[n] = 0;
}

void crash_add_number(char *line, size_t size, unsigned long long v)
{
    char digits[24] = "", *p = digits + sizeof digits - 1;
    *p = 0;
    do *--p = (char)('0' + v % 10);
    while (v /= 10);
    crash_add(line, size, p);
}

/* The handlers are gone when this runs (SA_RESETHAND), so the second signal ends the process. */
static void on_fatal(int sig)
{
    char text[1024] = "", line[4096];
    const char *name = "a fatal signal";
    for (int i = 0; i < NUM_FATAL; i++)
        if (fatal[i].sig == sig) name = fatal[i].name;
    crash_add(text, sizeof text, "ended by signal ");
    crash_add_number(text, sizeof text, (unsigned)sig);
    crash_add(text, sizeof text, ", ");
    crash_add(text, sizeof text, name);
    if (tell_where) tell_where(text, sizeof text);
    const size_t n = err_line(line, sizeof line, text);
    const ssize_t done = write(STDERR_FILENO, line, n);
    (void)done;
    err_leave_code(128 + sig);
    raise(sig);
}

void crash_catch(void (*where)(char *text, size_t size))
{
    tell_where = where;
    if (SANITIZED) return;
    const stack_t alt = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alt, NULL);
    struct sigaction a = {.sa_handler = on_fatal, .sa_flags = SA_RESETHAND | SA_ONSTACK};
    sigemptyset(&a.sa_mask);
    for (int i = 0; i < NUM_FATAL; i++) sigaction(fatal[i].sig, &a, NULL);
}
