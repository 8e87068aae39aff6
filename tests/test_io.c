/* core/io, core/hash, core/fault: known answers, and a fault at every operation. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/fault.h"
#include "core/io.h"
#include "tests/check.h"

enum { COUNT = 3000 };

static void test_crc(struct comm *world)
{
    (void)world;
    const uint8_t zero[32] = {0};
    EXPECT(io_crc32c(0, "123456789", 9) == 0xE3069283u, "%08x", io_crc32c(0, "123456789", 9));
    EXPECT(io_crc32c(0, zero, 32) == 0x8A9136AAu, "%08x", io_crc32c(0, zero, 32));
    EXPECT(io_crc32c_tables(0, "123456789", 9) == 0xE3069283u, "tables");
    EXPECT(io_crc32c(0, "", 0) == 0, "nothing");
    uint8_t x[COUNT];
    for (int i = 0; i < COUNT; i++) x[i] = (uint8_t)(i * 7 + i / 13);
    for (int from = 0; from < 9; from++)
        for (int n = 0; n < 40; n++)
            EXPECT(io_crc32c(5, x + from, (size_t)n) == io_crc32c_tables(5, x + from, (size_t)n),
                   "from %d, %d bytes", from, n);
    const uint32_t whole = io_crc32c(0, x, COUNT);
    for (size_t cut = 0; cut <= COUNT; cut += 111)
        EXPECT(io_crc32c(io_crc32c(0, x, cut), x + cut, COUNT - cut) == whole, "cut %zu", cut);
}

static void expect_sha(const char *text, size_t n, const char *want)
{
    uint8_t h[32];
    char got[65];
    io_sha256(h, text, n);
    for (int i = 0; i < 32; i++) snprintf(got + 2 * i, 3, "%02x", h[i]);
    EXPECT(strcmp(got, want) == 0, "%zu bytes: %s", n, got);
}

/* A file read in blocks has the hash of its bytes. */
static void expect_file_sha(const char *text, size_t n)
{
    struct err e = {0};
    uint8_t h[32];
    char got[65], want[65], *path = io_path("%s/hashed", test_dir());
    io_write_file(path, text, n, &e);
    io_sha256_file(got, path, &e);
    io_sha256(h, text, n);
    for (int i = 0; i < 32; i++) snprintf(want + 2 * i, 3, "%02x", h[i]);
    EXPECT(!e.code && strcmp(got, want) == 0, "%zu bytes: %s", n, got);
    free(path);
}

static void test_sha(struct comm *world)
{
    (void)world;
    expect_sha("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    expect_sha("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    expect_sha("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
               "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *a = malloc(1000000);
    memset(a, 'a', 1000000);
    expect_sha(a, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    for (int i = 0; i < 1000000; i++) a[i] = (char)(i * 7 + i / 64);
    const int sizes[] = {0, 55, 64, 100, 262143, 262144, 262300, 524288};
    for (int i = 0; i < 8; i++) expect_file_sha(a, (size_t)sizes[i]);
    struct err e = {0};
    char hex[65];
    io_sha256_file(hex, "/nowhere/x", &e);
    EXPECT(e.code == RC_IO && strstr(e.msg, "/nowhere/x"), "%s", e.msg);
    free(a);
}

static void expect_file(const char *path, const char *want)
{
    struct err e = {0};
    size_t n;
    char *got = io_read_file(path, &n, &e);
    EXPECT(got && strcmp(got, want) == 0 && n == strlen(want), "%s: %s", path, got ? got : e.msg);
    free(got);
}

static void test_files(struct comm *world)
{
    (void)world;
    struct err e = {0};
    char *dir = io_path("%s/a/b/c", test_dir()), *file = io_path("%s/f", dir);
    io_mkdir(dir, &e);
    io_mkdir(dir, &e);
    EXPECT(!e.code && io_exists(dir), "%s", e.msg);
    io_write_file(file, "one", 3, &e);
    expect_file(file, "one");
    io_write_file(file, "", 0, &e);
    expect_file(file, "");
    EXPECT(!e.code, "%s", e.msg);
    char *link = io_path("%s/link", dir);
    EXPECT(symlink("/", link) == 0, "symlink");
    EXPECT(io_free_bytes(dir, &e) > 0, "free space");
    char *top = io_path("%s/a", test_dir());
    io_remove_tree(top, &e);
    EXPECT(!e.code && !io_exists(top) && io_exists("/tmp"), "%s", e.msg);
    io_remove_tree(top, &e);
    EXPECT(!e.code, "removing what is not there: %s", e.msg);
    char *none = io_read_file(file, NULL, &e);
    EXPECT(!none && e.code == RC_NOINPUT && strstr(e.msg, "No such file"), "%s", e.msg);
    EXPECT(strstr(e.msg, file), "%s", e.msg);
    io_write_file(file, "x", 1, &e);
    EXPECT(e.code == RC_NOINPUT, "the first error is kept: %s", e.msg);
    free(dir);
    free(file);
    free(link);
    free(top);
}

static void write_bad(void *path) { io_write_file(path, "x", 1, NULL); }
static void bad_fault(void *spec) { fault_set(spec); }

static void test_stop(struct comm *world)
{
    (void)world;
    expect_stop("cannot create \"/nowhere/f.tmp\": No such file", RC_CANTCREAT, write_bad,
                "/nowhere/f");
    expect_stop("expected name[@rank]:n", RC_USAGE, bad_fault, "io");
    expect_stop("expected name[@rank]:n", RC_USAGE, bad_fault, "io:3:explode");
    expect_stop("expected name[@rank]:n", RC_USAGE, bad_fault, "io@one:3");
    fault_set("step@1:1"); /* another rank's */
    EXPECT(!fault_hit("step"), "a fault of rank 1 hits rank 0");
    fault_set("step@0:1");
    EXPECT(fault_hit("step"), "a fault of rank 0 does not hit it");
    fault_set(NULL);
}

/* Every operation of a replacement fails once: the old content stays, or, once renamed, the new. */
static void test_fault_each(struct comm *world)
{
    (void)world;
    static const char *const op[] = {"io_open", "io_write", "io_fsync", "io_rename", "io_fsync"};
    static const char *const says[] = {"create", "write", "fsync", "rename", "fsync"};
    struct err e = {0};
    char *file = io_path("%s/each", test_dir()), *tmp = io_path("%s.tmp", file);
    fault_set("io:0");
    io_write_file(file, "old", 3, &e);
    EXPECT(fault_count("io") == 5 && !e.code, "%ld operations", fault_count("io"));
    for (int i = 0; i < 5; i++) {
        for (int full = 0; full < 2; full++) {
            char spec[64];
            snprintf(spec, sizeof spec, "io:%d%s", i + 1, full ? ":enospc" : "");
            fault_set(spec);
            e = (struct err){0};
            io_write_file(file, "new", 3, &e);
            EXPECT(e.code == (i == 0 && !full ? RC_CANTCREAT : RC_IO), "%s: %d", spec, e.code);
            EXPECT(strstr(e.msg, says[i]), "%s: %s", spec, e.msg);
            EXPECT(strstr(e.msg, i < 4 ? file : test_dir()), "%s: %s", spec, e.msg);
            EXPECT(strstr(e.msg, full ? "No space left on device" : "Input/output error"), "%s",
                   e.msg);
            fault_set(NULL);
            expect_file(file, i < 4 ? "old" : "new");
            EXPECT(!io_exists(tmp), "%s: temporary file is left", spec);
            io_write_file(file, "old", 3, &(struct err){0});
        }
        char own[64];
        snprintf(own, sizeof own, "%s:%d", op[i], i == 4 ? 2 : 1);
        fault_set(own);
        e = (struct err){0};
        io_write_file(file, "old", 3, &e);
        EXPECT(e.code && strstr(e.msg, says[i]), "%s: %s", own, e.msg);
        fault_set(NULL);
    }
    free(file);
    free(tmp);
}

static void test_fault_tree(struct comm *world)
{
    (void)world;
    char *dir = io_path("%s/t/u", test_dir()), *file = io_path("%s/f", dir);
    char *top = io_path("%s/t", test_dir());
    struct err e = {0};
    fault_set("io_mkdir:1");
    io_mkdir(dir, &e);
    EXPECT(e.code == RC_CANTCREAT && strstr(e.msg, top), "%s", e.msg);
    fault_set(NULL);
    io_mkdir(dir, &(struct err){0});
    io_write_file(file, "1", 1, &(struct err){0});
    for (int i = 1; i <= 3; i++) { /* file, u, t */
        char spec[32];
        snprintf(spec, sizeof spec, "io_unlink:%d", 1);
        fault_set(spec);
        e = (struct err){0};
        io_remove_tree(i == 1 ? file : i == 2 ? dir : top, &e);
        EXPECT(e.code == RC_IO && strstr(e.msg, "remove"), "%d: %s", i, e.msg);
        EXPECT(io_exists(file), "file is gone at %d", i);
    }
    fault_set(NULL);
    io_remove_tree(top, &e);
    EXPECT(!io_exists(top), "tree is left");
    free(dir);
    free(file);
    free(top);
}

static void test_kill_each(struct comm *world)
{
    (void)world;
    char *file = io_path("%s/kill", test_dir());
    for (int i = 1; i <= 5; i++) {
        io_write_file(file, "old", 3, NULL);
        fflush(stdout);
        const pid_t pid = fork();
        if (pid == 0) {
            char spec[32];
            snprintf(spec, sizeof spec, "io:%d:kill", i);
            fault_set(spec);
            io_write_file(file, "new", 3, NULL);
            _exit(0);
        }
        int status = 0;
        EXPECT(waitpid(pid, &status, 0) == pid, "waitpid");
        EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "%d: status %x", i, status);
        expect_file(file, i < 5 ? "old" : "new");
    }
    free(file);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {.name = "CRC-32C gives the known answers, in one piece or several", .run = test_crc},
        {.name = "SHA-256 gives the known answers", .run = test_sha},
        {.name = "files are written, read and removed", .run = test_files},
        {.name = "without a struct err a failure stops the program", .run = test_stop},
        {.name = "a failure at each operation leaves old or new content", .run = test_fault_each},
        {.name = "mkdir and remove report failures", .run = test_fault_tree},
        {.name = "a kill at each operation leaves old or new content", .run = test_kill_each},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
