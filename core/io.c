#include "core/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/fault.h"

/* Every operation is a place where a test can stop the world: "io" counts them all, the second
 * name only its own. A hit makes the operation fail as if the device had. */
static bool injected(const char *op, const char *path, struct err *e)
{
    const bool all = fault_hit("io"), own = fault_hit(op);
    if (!all && !own) return false;
    err_set(e, RC_IO, "%s: %s: injected fault", path, op);
    return true;
}

static void failed(struct err *e, const char *path, const char *op)
{
    const int code = errno;
    err_set(e, code == ENOENT ? RC_NOINPUT : RC_IO, "%s: cannot %s: %s%s", path, op, strerror(code),
            code == ENOSPC ? " (free space, or point output_dir elsewhere)" : "");
}

int io_open_write(const char *path, struct err *e)
{
    if (injected("io_open", path, e)) return -1;
    const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) failed(e, path, "create");
    return fd;
}

void io_pwrite(int fd, const void *p, size_t n, off_t at, const char *path, struct err *e)
{
    if (injected("io_pwrite", path, e)) {
        /* what a full disk leaves behind: half of the data */
        ssize_t w = pwrite(fd, p, n / 2, at);
        (void)w;
        return;
    }
    for (size_t done = 0; done < n;) {
        const ssize_t w = pwrite(fd, (const char *)p + done, n - done, at + (off_t)done);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) {
            if (w == 0) errno = ENOSPC;
            failed(e, path, "write");
            return;
        }
        done += (size_t)w;
    }
}

void io_fsync(int fd, const char *path, struct err *e)
{
    if (injected("io_fsync", path, e)) return;
    if (fsync(fd) != 0 && errno != EINVAL && errno != EROFS) failed(e, path, "fsync");
}

void io_fsync_path(const char *path, struct err *e)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        failed(e, path, "open for fsync");
        return;
    }
    io_fsync(fd, path, e);
    close(fd);
}

void io_rename(const char *from, const char *to, struct err *e)
{
    if (injected("io_rename", to, e)) return;
    if (rename(from, to) != 0) failed(e, to, "rename to");
}

void io_mkdir(const char *path, struct err *e)
{
    if (injected("io_mkdir", path, e)) return;
    char part[4096];
    if ((size_t)snprintf(part, sizeof part, "%s", path) >= sizeof part) {
        errno = ENAMETOOLONG;
        failed(e, path, "make folder");
        return;
    }
    for (char *s = part + 1;; s++) {
        const char c = *s;
        if (c != '/' && c != 0) continue;
        *s = 0;
        struct stat st;
        if (mkdir(part, 0777) != 0 &&
            (errno != EEXIST || stat(part, &st) != 0 || !S_ISDIR(st.st_mode))) {
            if (errno == EEXIST) errno = ENOTDIR;
            failed(e, part, "make folder");
            return;
        }
        *s = c;
        if (c == 0) return;
    }
}

void io_unlink(const char *path, struct err *e)
{
    if (injected("io_unlink", path, e)) return;
    if (unlink(path) != 0 && errno != ENOENT) failed(e, path, "remove");
}

void io_remove_tree(const char *path, struct err *e)
{
    struct stat st;
    if (lstat(path, &st) != 0) return;
    if (!S_ISDIR(st.st_mode)) {
        io_unlink(path, e);
        return;
    }
    DIR *d = opendir(path);
    if (!d) {
        failed(e, path, "open folder");
        return;
    }
    for (struct dirent *f; !e->code && (f = readdir(d));) {
        if (strcmp(f->d_name, ".") == 0 || strcmp(f->d_name, "..") == 0) continue;
        char *child = io_path("%s/%s", path, f->d_name);
        io_remove_tree(child, e);
        free(child);
    }
    closedir(d);
    if (!e->code && !injected("io_unlink", path, e) && rmdir(path) != 0) failed(e, path, "remove");
}

static char *parent_of(const char *path)
{
    char *p = strdup(path);
    if (!p) err_stop(RC_TEMP, "out of memory");
    char *slash = strrchr(p, '/');
    if (!slash) {
        free(p);
        return strdup(".");
    }
    *(slash == p ? slash + 1 : slash) = 0;
    return p;
}

void io_write_file(const char *path, const void *p, size_t n, struct err *e)
{
    char *tmp = io_path("%s.tmp", path), *parent = parent_of(path);
    const int fd = io_open_write(tmp, e);
    if (fd >= 0) {
        io_pwrite(fd, p, n, 0, tmp, e);
        if (!e->code) io_fsync(fd, tmp, e);
        if (close(fd) != 0 && !e->code) failed(e, tmp, "close");
    }
    if (!e->code) io_rename(tmp, path, e);
    if (!e->code) io_fsync_path(parent, e);
    if (e->code) unlink(tmp); /* best effort; the error that counts is already in e */
    free(parent);
    free(tmp);
}

char *io_read_file(const char *path, size_t *n, struct err *e)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        failed(e, path, "open");
        if (fd >= 0) close(fd);
        return NULL;
    }
    if (!S_ISREG(st.st_mode)) {
        err_set(e, RC_NOINPUT, "%s: not a file", path);
        close(fd);
        return NULL;
    }
    char *text = malloc((size_t)st.st_size + 1);
    if (!text) err_stop(RC_TEMP, "%s: out of memory for %lld bytes", path, (long long)st.st_size);
    size_t done = 0;
    while (done < (size_t)st.st_size) {
        const ssize_t r = read(fd, text + done, (size_t)st.st_size - done);
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) break;
        done += (size_t)r;
    }
    close(fd);
    if (done < (size_t)st.st_size) {
        err_set(e, RC_IO, "%s: read %zu of %lld bytes", path, done, (long long)st.st_size);
        free(text);
        return NULL;
    }
    text[done] = 0;
    if (n) *n = done;
    return text;
}

bool io_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

uint64_t io_free_bytes(const char *path, struct err *e)
{
    struct statvfs v;
    if (fault_hit("io_space")) return 0;
    if (statvfs(path, &v) != 0) {
        failed(e, path, "ask for free space");
        return 0;
    }
    return (uint64_t)v.f_bavail * v.f_frsize;
}

char *io_path(const char *fmt, ...)
{
    char *s = NULL;
    va_list ap;
    va_start(ap, fmt);
    const int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    if (n < 0) err_stop(RC_TEMP, "out of memory");
    return s;
}
