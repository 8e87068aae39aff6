#include "core/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* False: whoever held the lock removed this file before we got it. */
static bool still_there(int fd, const char *path)
{
    struct stat a, b;
    return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_ino == b.st_ino &&
           a.st_dev == b.st_dev;
}

static void read_holder(int fd, char holder[32])
{
    char text[16] = "";
    const ssize_t n = pread(fd, text, sizeof text - 1, 0);
    const long pid = n > 0 ? atol(text) : 0;
    if (pid > 0)
        snprintf(holder, 32, "pid %ld", pid);
    else
        snprintf(holder, 32, "pid unknown");
}

/* -1: somebody else has it. */
static int try_once(const char *path, char holder[32], struct err *e)
{
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
        err_set(e, RC_CANTCREAT, "cannot create the lock file \"%s\": %s", path, strerror(errno));
        return -1;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
    if (errno == EWOULDBLOCK)
        read_holder(fd, holder);
    else
        err_set(e, RC_CANTCREAT, "cannot lock \"%s\": %s", path, strerror(errno));
    close(fd);
    return -1;
}

bool lock_take(struct lock *l, const char *path, char holder[32], struct err *e)
{
    l->path = NULL;
    while ((l->fd = try_once(path, holder, e)) >= 0 && !still_there(l->fd, path)) close(l->fd);
    if (l->fd < 0) return false;
    char pid[16];
    const int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
    if (ftruncate(l->fd, 0) != 0 || pwrite(l->fd, pid, (size_t)n, 0) != n) {
        err_set(e, RC_CANTCREAT, "cannot write the lock file \"%s\": %s", path, strerror(errno));
        close(l->fd);
        l->fd = -1;
        return false;
    }
    l->path = strdup(path);
    CHECK(l->path, "out of memory");
    return true;
}

void lock_release(struct lock *l)
{
    if (l->fd < 0) return;
    unlink(l->path); /* while it is held, so that nobody's new lock is removed */
    close(l->fd);
    free(l->path);
    *l = (struct lock){.fd = -1};
}
