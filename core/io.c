#include "core/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/fault.h"

/* Reports errno of "cannot <what> <path>". */
static void fail(struct err *e, int code, const char *what, const char *path)
{
    const int why = errno;
    struct err one = {0};
    if (why == ENOSPC || why == EDQUOT) code = RC_IO;
    err_set(&one, code, "cannot %s \"%s\": %s", what, path, strerror(why));
    if (!e) err_raise(&one);
    if (e->code == 0) *e = one;
}

static bool faulty(const char *own) { return fault_hit("io") || fault_hit(own); }

char *io_path(const char *fmt, ...)
{
    char *s = NULL;
    va_list ap;
    va_start(ap, fmt);
    const int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    CHECK(n >= 0, "out of memory");
    return s;
}

int io_open_write(const char *path, struct err *e)
{
    int fd = -1;
    if (!faulty("io_open")) fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) fail(e, RC_CANTCREAT, "create", path);
    return fd;
}

void io_pwrite(int fd, const void *p, size_t n, off_t at, const char *path, struct err *e)
{
    const char *from = p;
    if (faulty("io_write")) {
        fail(e, RC_IO, "write", path);
        return;
    }
    while (n > 0) {
        const ssize_t w = pwrite(fd, from, n, at);
        if (w < 0 && errno == EINTR) continue;
        if (w == 0) errno = EIO;
        if (w <= 0) {
            fail(e, RC_IO, "write", path);
            return;
        }
        from += w;
        at += w;
        n -= (size_t)w;
    }
}

void io_fsync(int fd, const char *path, struct err *e)
{
    if (faulty("io_fsync") || fsync(fd) != 0) fail(e, RC_IO, "fsync", path);
}

void io_fsync_path(const char *path, struct err *e)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        fail(e, RC_IO, "open for fsync", path);
        return;
    }
    io_fsync(fd, path, e);
    close(fd);
}

void io_rename(const char *from, const char *to, struct err *e)
{
    if (!faulty("io_rename") && rename(from, to) == 0) return;
    const int why = errno;
    char *both = io_path("%s\" to \"%s", from, to);
    errno = why;
    fail(e, RC_IO, "rename", both);
    free(both);
}

static bool is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

void io_mkdir(const char *path, struct err *e)
{
    if (is_dir(path)) return;
    char *copy = io_path("%s", path);
    char *parent = dirname(copy);
    struct err own = {0};
    if (strcmp(parent, path) != 0 && strcmp(parent, ".") != 0 && strcmp(parent, "/") != 0)
        io_mkdir(parent, e ? &own : NULL);
    free(copy);
    if (own.code) {
        if (e->code == 0) *e = own;
        return;
    }
    if (faulty("io_mkdir") || mkdir(path, 0777) != 0) {
        if (errno == EEXIST && is_dir(path)) return; /* another rank was faster */
        fail(e, RC_CANTCREAT, "create directory", path);
    }
}

void io_unlink(const char *path, struct err *e)
{
    if (faulty("io_unlink") || unlink(path) != 0) fail(e, RC_IO, "remove", path);
}

static void remove_children(const char *path, struct err *e)
{
    DIR *d = opendir(path);
    if (!d) {
        fail(e, RC_IO, "list", path);
        return;
    }
    for (struct dirent *x; (x = readdir(d)) && e->code == 0;) {
        if (strcmp(x->d_name, ".") == 0 || strcmp(x->d_name, "..") == 0) continue;
        char *child = io_path("%s/%s", path, x->d_name);
        io_remove_tree(child, e);
        free(child);
    }
    closedir(d);
}

void io_remove_tree(const char *path, struct err *e)
{
    struct stat st;
    struct err own = {0};
    if (lstat(path, &st) != 0) {
        if (errno != ENOENT) fail(&own, RC_IO, "remove", path);
    } else if (!S_ISDIR(st.st_mode)) {
        io_unlink(path, &own);
    } else {
        remove_children(path, &own);
        if (own.code == 0 && (faulty("io_unlink") || rmdir(path) != 0))
            fail(&own, RC_IO, "remove directory", path);
    }
    if (!own.code) return;
    if (!e) err_raise(&own);
    if (e->code == 0) *e = own;
}

void io_write_file(const char *path, const void *p, size_t n, struct err *e)
{
    struct err own = {0};
    char *tmp = io_path("%s.tmp", path);
    const int fd = io_open_write(tmp, &own);
    if (fd >= 0) {
        io_pwrite(fd, p, n, 0, tmp, &own);
        if (!own.code) io_fsync(fd, tmp, &own);
        if (close(fd) != 0 && !own.code) fail(&own, RC_IO, "close", tmp);
        if (!own.code) io_rename(tmp, path, &own);
        if (own.code) unlink(tmp); /* best effort: the old file is still there */
    }
    if (!own.code) {
        char *copy = io_path("%s", path);
        io_fsync_path(dirname(copy), &own);
        free(copy);
    }
    free(tmp);
    if (!own.code) return;
    if (!e) err_raise(&own);
    if (e->code == 0) *e = own;
}

/* The rest of fd, or NULL with errno set. Files that grow or have no size are fine. */
static char *slurp(int fd, size_t *n)
{
    size_t used = 0, room = 65536;
    char *buf = malloc(room + 1);
    CHECK(buf, "out of memory");
    for (;;) {
        if (used == room) {
            room *= 2;
            buf = realloc(buf, room + 1);
            CHECK(buf, "out of memory reading %zu bytes", room);
        }
        const ssize_t r = read(fd, buf + used, room - used);
        if (r < 0 && errno == EINTR) continue;
        if (r < 0) {
            const int why = errno;
            free(buf);
            errno = why;
            return NULL;
        }
        if (r == 0) break;
        used += (size_t)r;
    }
    buf[used] = 0;
    if (n) *n = used;
    return buf;
}

char *io_read_file(const char *path, size_t *n, struct err *e)
{
    if (n) *n = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        fail(e, RC_NOINPUT, "open", path);
        return NULL;
    }
    struct stat st;
    const bool folder = fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
    char *buf = folder ? NULL : slurp(fd, n);
    if (folder)
        err_set(e, RC_NOINPUT, "%s: is a folder", path);
    else if (!buf)
        fail(e, RC_IO, "read", path);
    close(fd);
    return buf;
}

bool io_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

uint64_t io_free_bytes(const char *path, struct err *e)
{
    struct statvfs s;
    if (fault_hit("io_space")) return 0; /* a full disk */
    if (statvfs(path, &s) != 0) {
        fail(e, RC_IO, "ask for free space on", path);
        return 0;
    }
    return (uint64_t)s.f_bavail * s.f_frsize;
}
