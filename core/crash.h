/* A fatal signal (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT) writes one line first: which rank on
 * which host got which signal, and what it was doing. Then the signal does what it always does, so
 * that core dumps, debuggers and the launcher's exit code (128 + n) stay as they are. Not under the
 * address and thread sanitizers, which report more. */
#ifndef CORE_CRASH_H
#define CORE_CRASH_H
#include <stddef.h>
/* where (may be NULL) adds more on what this process is doing; it must be safe in a handler. */
void crash_catch(void (*where)(char *text, size_t size));
/* For handlers and for other threads' lines: appends text, or a number, always terminated. */
void crash_add(char *line, size_t size, const char *text);
void crash_add_number(char *line, size_t size, unsigned long long n);
#endif
