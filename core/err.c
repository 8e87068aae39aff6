#include "core/err.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STACK_MAX = 16, STACK_TEXT = 160, LINE_MAX_BYTES = 4096 };

static _Thread_local struct {
    char prefix[96]; /* "[rank 1/2 host] " */
    void (*abort_all)(int);
    int depth;
    char stack[STACK_MAX][STACK_TEXT];
    struct err_trap *trap;
} self;
static char process[sizeof self.prefix]; /* for threads that are no rank of their own */

void err_identify(int rank, int size, void (*abort_all)(int code))
{
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    self.prefix[0] = 0;
    if (size > 1) snprintf(self.prefix, sizeof self.prefix, "[rank %d/%d %s] ", rank, size, host);
    self.abort_all = abort_all;
    if (abort_all) memcpy(process, self.prefix, sizeof process);
}

void err_push(const char *fmt, ...)
{
    if (self.depth < STACK_MAX) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(self.stack[self.depth], STACK_TEXT, fmt, ap);
        va_end(ap);
    }
    self.depth++;
}

void err_pop(void)
{
    if (self.depth > 0) self.depth--;
}

struct err_trap *err_set_trap(struct err_trap *t)
{
    struct err_trap *before = self.trap;
    self.trap = t;
    return before;
}

/* Appends to a fixed buffer, never past its end. */
static void put(char *buf, size_t *n, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void put(char *buf, size_t *n, const char *fmt, ...)
{
    if (*n >= LINE_MAX_BYTES - 1) return;
    va_list ap;
    va_start(ap, fmt);
    int w = vsnprintf(buf + *n, LINE_MAX_BYTES - *n, fmt, ap);
    va_end(ap);
    if (w > 0) *n += (size_t)w;
    if (*n > LINE_MAX_BYTES - 1) *n = LINE_MAX_BYTES - 1;
}

static void add(char *line, size_t size, size_t *n, const char *text)
{
    while (*text && *n + 1 < size) line[(*n)++] = *text++;
    line[*n] = 0;
}

size_t err_line(char *line, size_t size, const char *text)
{
    size_t n = 0;
    add(line, size - 1, &n, self.prefix[0] ? self.prefix : process);
    add(line, size - 1, &n, text);
    const int depth = self.depth < STACK_MAX ? self.depth : STACK_MAX;
    for (int i = depth - 1; i >= 0; i--) {
        add(line, size - 1, &n, " | while ");
        add(line, size - 1, &n, self.stack[i]);
    }
    add(line, size, &n, "\n");
    return n;
}

void err_leave_code(int code)
{
    const char *path = getenv("OSP_EXIT_FILE");
    const int fd = path ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666) : -1;
    if (fd < 0) return;
    const char text[4] = {(char)('0' + code / 100 % 10), (char)('0' + code / 10 % 10),
                          (char)('0' + code % 10), '\n'};
    struct stat st;
    /* empty: nobody was there, or who was has been ended before it could write */
    const bool first = fstat(fd, &st) == 0 && st.st_size == 0;
    const ssize_t w = first ? pwrite(fd, text, sizeof text, 0) : 0;
    (void)w;
    close(fd);
}

static _Noreturn void finish(int code, const char *text)
{
    char line[LINE_MAX_BYTES + 2];
    size_t n = err_line(line, sizeof line, text);
    if (self.trap) {
        struct err_trap *t = self.trap;
        self.trap = NULL;
        self.depth = 0;
        t->err.code = code;
        snprintf(t->err.msg, sizeof t->err.msg, "%.*s",
                 (int)(n - 1 < sizeof t->err.msg ? n - 1 : sizeof t->err.msg - 1), line);
        longjmp(t->jump, 1);
    }
    fflush(stdout);
    ssize_t w = write(STDERR_FILENO, line, n); /* one write: lines of ranks never mix */
    (void)w;
    err_leave_code(code);
    if (self.abort_all) self.abort_all(code);
    exit(code);
}

_Noreturn void err_fatal(const char *file, int line, const char *func, const char *expr,
                         const char *fmt, ...)
{
    char text[LINE_MAX_BYTES];
    size_t n = 0;
    put(text, &n, "%s:%d %s: ", file, line, func);
    va_list ap;
    va_start(ap, fmt);
    int w = vsnprintf(text + n, sizeof text - n, fmt, ap);
    va_end(ap);
    if (w > 0) n += (size_t)w;
    if (n > sizeof text - 1) n = sizeof text - 1;
    put(text, &n, " (%s)", expr);
    finish(RC_SOFTWARE, text);
}

_Noreturn void err_stop(int code, const char *fmt, ...)
{
    char text[LINE_MAX_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    finish(code, text);
}

void err_set(struct err *e, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    e->code = code;
}

void err_raise(const struct err *e)
{
    if (e->code) err_stop(e->code, "%s", e->msg);
}
