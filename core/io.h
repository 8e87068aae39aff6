/* The file operations that must not lose data. Every one can be made to fail or to kill the
 * process at its n-th call (core/fault.h; names "io" for all, "io_open", "io_write", "io_fsync",
 * "io_rename", "io_mkdir", "io_unlink" for one kind), which is how the tests walk through every
 * moment of a save. A failure is put into e, which keeps the first one, so that a sequence may be
 * checked once at its end; with e = NULL it stops the program. The message names operation, path
 * and reason; the code is RC_IO, RC_NOINPUT (no such file to read) or RC_CANTCREAT. */
#ifndef CORE_IO_H
#define CORE_IO_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/err.h"
int io_open_write(const char *path, struct err *e); /* creates or truncates; -1 on error */
void io_pwrite(int fd, const void *p, size_t n, off_t at, const char *path, struct err *e);
void io_fsync(int fd, const char *path, struct err *e);
void io_fsync_path(const char *path, struct err *e); /* file or directory */
void io_rename(const char *from, const char *to, struct err *e);
void io_mkdir(const char *path, struct err *e); /* parents too; existing is fine */
void io_unlink(const char *path, struct err *e);
void io_remove_tree(const char *path, struct err *e); /* links are removed, not followed */
/* Whole small files. write: temporary name, fsync, rename, fsync of the directory. */
void io_write_file(const char *path, const void *p, size_t n, struct err *e);
char *io_read_file(const char *path, size_t *n, struct err *e); /* malloc'ed, 0-terminated */
bool io_exists(const char *path);
uint64_t io_free_bytes(const char *path, struct err *e); /* of the file system path is on */
/* core/hash.c */
uint32_t io_crc32c(uint32_t crc, const void *p, size_t n); /* start with 0 */
/* The checksum of two runs of bytes, one after the other, from theirs; n: bytes of the second. */
uint32_t io_crc32c_join(uint32_t first, uint32_t second, uint64_t n);
uint32_t io_crc32c_tables(uint32_t crc, const void *p, size_t n); /* the same without SSE4.2 */
void io_sha256(uint8_t out[32], const void *p, size_t n);
void io_sha256_file(char hex[65], const char *path, struct err *e); /* block by block */
/* "a/b" from printf arguments; malloc'ed */
char *io_path(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
#endif
