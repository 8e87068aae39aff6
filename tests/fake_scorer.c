#include "tests/fake_scorer.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "rl/reward_wire.h"
#include "tests/check.h"
#include "tests/process.h"

static struct wire_buf in, out;
static const uint8_t *memory;
static const char *mode;

static void flush(void)
{
    while (out.at < out.size) {
        const ssize_t n = send(3, out.data + out.at, out.size - out.at, MSG_NOSIGNAL);
        if (n <= 0) _exit(0);
        out.at += (size_t)n;
    }
}

static void lines(enum wire_type type, const char *text)
{
    wire_put(&out, type, 0, text, strlen(text));
    flush();
}

/* The memory file comes with the first byte. */
static void receive(struct wire_msg *m, int *fd)
{
    const char *wrong;
    int got;
    while ((got = wire_take(&in, m, &wrong)) == 0) {
        uint8_t bytes[65536];
        union {
            struct cmsghdr head;
            char bytes[CMSG_SPACE(sizeof(int))];
        } extra;
        struct iovec v = {bytes, sizeof bytes};
        struct msghdr h = {.msg_iov = &v,
                           .msg_iovlen = 1,
                           .msg_control = extra.bytes,
                           .msg_controllen = sizeof extra.bytes};
        const ssize_t n = recvmsg(3, &h, 0);
        if (n <= 0) _exit(0);
        const struct cmsghdr *c = CMSG_FIRSTHDR(&h);
        if (c && fd) memcpy(fd, CMSG_DATA(c), sizeof *fd);
        wire_add(&in, bytes, (size_t)n);
    }
    if (got < 0) _exit(99);
}

void fake_scores(double raw[3], const char *prompt, const uint8_t *p, uint64_t frames,
                 uint64_t bytes)
{
    const uint64_t one = bytes / frames; /* of a frame */
    uint64_t luma = 0, change = 0;
    for (uint64_t i = 0; i < bytes; i += 3) luma += 299u * p[i] + 587u * p[i + 1] + 114u * p[i + 2];
    for (uint64_t i = one; i < bytes; i++) change += (uint64_t)abs(p[i] - p[i - one]);
    const uint32_t hash = wire_crc32(wire_crc32(0, p, bytes), prompt, strlen(prompt));
    raw[0] = (double)luma / (255000.0 * (double)(bytes / 3));
    raw[1] = frames > 1 ? (double)change / (255.0 * (double)(bytes - one)) : 0;
    raw[2] = hash / 2147483648.0 - 1;
}

static void pongs_for_ever(void)
{
    for (;;) {
        struct wire_msg m;
        receive(&m, NULL);
        if (m.type == WIRE_PING) wire_put(&out, WIRE_PONG, m.id, "", 0);
        flush();
    }
}

/* This start and the next four end as soon as they are ready. */
static void begin_storm(void)
{
    const char *path = getenv("OSP_REWARD_STORM");
    const int fd = path ? open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600) : -1;
    if (fd < 0 || write(fd, "xxxx", 4) != 4) _exit(94);
    _exit(4);
}

static void in_a_storm(void)
{
    const char *path = getenv("OSP_REWARD_STORM");
    const int fd = path ? open(path, O_WRONLY) : -1;
    const off_t left = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    if (left > 0 && ftruncate(fd, left - 1) == 0) _exit(4);
    if (fd >= 0) close(fd);
}

static void random_bytes(void)
{
    uint64_t rng = (uint64_t)getpid();
    for (int i = 0; i < 5000; i++) {
        rng = rng * 6364136223846793005u + 1442695040888963407u;
        wire_add(&out, &(uint8_t){(uint8_t)(rng >> 56)}, 1);
    }
}

static void noise(void)
{
    uint8_t bytes[256];
    for (int i = 0; i < 256; i++) bytes[i] = (uint8_t)i;
    for (int i = 0; i < 256; i++) fwrite(bytes, 1, sizeof bytes, i % 2 ? stdout : stderr);
    puts("OSPR");
    fflush(stdout);
}

static _Noreturn void refuse(int code)
{
    puts("reading the model\n\tof /weights\nfolder /weights/7: no such model\n");
    fflush(stdout);
    _exit(code);
}

/* Things that never come to an answer, or are said before it. */
static void spoil(const char *how)
{
    if (!strcmp(how, "storm")) begin_storm();
    if (!strcmp(how, "random")) random_bytes();
    if (!strcmp(how, "noise")) noise();
    if (!strcmp(how, "tardy")) process_nap(0.1);
    if (!strcmp(how, "child") && fork() == 0) /* outlives it, and holds its socket */
        for (;;) pause();
    if (!strcmp(how, "crash") || !strcmp(how, "child")) abort();
    if (!strcmp(how, "exit")) _exit(3);
    if (!strncmp(how, "leave", 5)) refuse(atoi(how + 5));
    if (!strcmp(how, "wrong")) lines(WIRE_FATAL, "code=78\ntext=/weights: another model\n");
    if (!strcmp(how, "hang"))
        for (;;) pause();
    if (!strcmp(how, "stop")) raise(SIGSTOP);
    if (!strcmp(how, "late")) pongs_for_ever();
    if (!strcmp(how, "slow")) process_nap(0.3);
    if (!strcmp(how, "garbage")) wire_add(&out, "HTTP/1.1 500 Internal Server Error\r\n", 36);
    if (!strcmp(how, "unasked")) wire_put(&out, WIRE_PONG, 77, "", 0);
    if (!strcmp(how, "config")) wire_put(&out, WIRE_CONFIG, 0, "", 0);
    if (!strcmp(how, "nolines")) wire_put(&out, WIRE_PONG, 77, "x", 1);
    if (!strcmp(how, "again")) wire_put(&out, WIRE_READY, 0, "dims=A,B,C\n", 11);
    if (!strcmp(how, "fatal")) lines(WIRE_FATAL, "code=70\ntext=the device is lost\n");
    if (!strcmp(how, "talk"))
        for (int i = 0; i < 40000; i++) printf("%01000d\n", i); /* 40 MB into its log */
    if (!strcmp(how, "flood"))
        for (int i = 0; i < 100000; i++) {
            wire_put(&out, WIRE_PONG, 1, "", 0);
            flush();
        }
}

/* Correct checksums over whatever the message at the end of out says now. */
static void mend(void)
{
    uint8_t *h = out.data + out.at;
    const uint32_t payload = wire_crc32(0, h + WIRE_HEADER, out.size - out.at - WIRE_HEADER);
    for (int i = 0; i < 4; i++) h[24 + i] = (uint8_t)(payload >> 8 * i);
    const uint32_t head = wire_crc32(0, h, WIRE_HEADER - 4);
    for (int i = 0; i < 4; i++) h[28 + i] = (uint8_t)(head >> 8 * i);
}

static void cut_answer(size_t bytes)
{
    out.size = out.at + bytes;
    flush();
}

/* What is wrong with the bytes of an answer, the last thing in out. */
static void spoil_answer(const char *how, uint64_t id, const struct wire_result *r)
{
    uint8_t *p = out.data + out.at;
    if (!strcmp(how, "twice")) wire_put_result(&out, id, r);
    if (!strcmp(how, "flip")) p[WIRE_HEADER + 20] ^= 1; /* of the first score */
    if (!strcmp(how, "head")) p[16] ^= 1;
    if (!strcmp(how, "long")) p[10] = 0xff;
    if (!strcmp(how, "oversize")) p[10] = 0x10, p[8] = 1, mend(); /* 1 MiB and a bit */
    if (!strcmp(how, "count")) p[WIRE_HEADER] = 2, mend();
    if (!strcmp(how, "half")) {
        cut_answer(50);
        _exit(0);
    }
    if (!strcmp(how, "stall")) {
        cut_answer(50);
        for (;;) pause();
    }
    while (!strcmp(how, "trickle") && out.at < out.size) {
        if (send(3, out.data + out.at++, 1, MSG_NOSIGNAL) != 1) _exit(0);
        process_nap(0.0005);
    }
}

/* The prompt, and how it wants its clip to be spoiled: "" for not at all, or not any more. */
static void read_prompt(char prompt[WIRE_PROMPT + 1], char how[32], const struct wire_score *s)
{
    char once[256] = "";
    memcpy(prompt, s->prompt, s->prompt_size);
    prompt[s->prompt_size] = how[0] = 0;
    sscanf(prompt, "%31s %255s", how, once);
    if (once[0] != '/') return;
    const int fd = open(once, O_CREAT | O_EXCL | O_WRONLY, 0600);
    if (fd < 0)
        how[0] = 0;
    else
        close(fd);
}

/* Ends while a clip that wants it is still in the socket. */
static void leave_unread(void)
{
    static uint8_t bytes[65536];
    struct wire_buf b = {0};
    struct wire_msg m;
    struct wire_score s;
    const char *wrong;
    char prompt[WIRE_PROMPT + 1], how[32];
    const ssize_t n = in.at == in.size ? recv(3, bytes, sizeof bytes, MSG_PEEK) : 0;
    if (n > 0) wire_add(&b, bytes, (size_t)n);
    if (n > 0 && wire_take(&b, &m, &wrong) == 1 && m.type == WIRE_SCORE && wire_get_score(&s, &m) &&
        s.prompt_size > 7 && !memcmp(s.prompt, "unread ", 7)) {
        read_prompt(prompt, how, &s);
        if (how[0]) abort();
    }
    wire_free(&b);
}

static void answer(const struct wire_msg *m)
{
    struct wire_score s;
    char prompt[WIRE_PROMPT + 1], how[32];
    if (!wire_get_score(&s, m)) _exit(98);
    read_prompt(prompt, how, &s);
    const uint64_t bytes = (uint64_t)s.frames * s.height * s.width * 3;
    struct wire_result r = {.dims = 3, .crc = wire_crc32(0, memory + s.offset, bytes), .ms = 1};
    spoil(how);
    fake_scores(r.raw, prompt, memory + s.offset, s.frames, bytes);
    memcpy(r.norm, r.raw, sizeof r.norm);
    r.frames_used = s.frames;
    uint64_t id = m->id;
    if (!strcmp(how, "unread")) abort(); /* it came in one piece with the clip before */
    if (!strcmp(how, "nan")) r.raw[1] = NAN;
    if (!strcmp(how, "inf")) r.norm[2] = INFINITY;
    if (!strcmp(how, "huge")) r.raw[0] = 101;
    if (!strcmp(how, "crc")) r.crc++, r.raw[0] = r.norm[0] = 0.5; /* it saw other frames */
    if (!strcmp(how, "dims")) r.dims = 2;
    if (!strcmp(how, "id")) id += 1000;
    if (!strcmp(how, "bad")) r.status = WIRE_BAD_INPUT, strcpy(r.text, "not my kind of prompt");
    if (!strcmp(how, "oom")) r.status = WIRE_NO_MEMORY;
    flush();
    wire_put_result(&out, id, &r);
    spoil_answer(how, id, &r);
    flush();
    if (!strcmp(how, "after")) abort();
}

static void start(const char *nonce, int number, const char *device)
{
    char text[256];
    if (!strcmp(mode, "exit3")) _exit(3);
    if (!strncmp(mode, "leave", 5)) refuse(atoi(mode + 5));
    if (!strcmp(mode, "silent")) pause();
    if (!strcmp(mode, "noise")) wire_add(&out, "hello\n", 6);
    snprintf(text, sizeof text, "protocol=1\npid=%d\nnonce=%s\n", (int)getpid(),
             strcmp(mode, "nonce") ? nonce : "0");
    lines(WIRE_HELLO, text);
    if (!strcmp(mode, "fatal")) {
        lines(WIRE_FATAL, "code=66\ntext=/weights: no such folder\n");
        _exit(66);
    }
    if (!strcmp(mode, "child") && fork() == 0) /* a process of its own that outlives it */
        for (;;) pause();
    snprintf(text, sizeof text, "dims=%s\nselftest=%s\nscorer=fake\npid=%d\n%s%s%s",
             !strcmp(mode, "nodims") ? "A,,B" : "VQ,MQ,TA",
             !strcmp(mode, "odd") && number ? "0.5,0.25,0.126002" : "0.5,0.25,0.125", (int)getpid(),
             *device ? "device=" : "", device, *device ? "\n" : "");
    lines(WIRE_READY, text);
    in_a_storm();
}

_Noreturn void fake_scorer(const char *how)
{
    struct wire_msg m;
    int fd = -1;
    char nonce[32] = "", size[32] = "", number[16] = "", device[32] = "";
    mode = how;
    receive(&m, &fd);
    if (m.type != WIRE_CONFIG || !wire_lines(&m) || !wire_value(&m, "nonce", nonce, 32) ||
        !wire_value(&m, "memory", size, 32) || !wire_value(&m, "worker", number, 16))
        _exit(97);
    void *p = mmap(NULL, strtoull(size, NULL, 10), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p != MAP_FAILED) _exit(96); /* the trainer's memory is not ours to write */
    p = mmap(NULL, strtoull(size, NULL, 10), PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) _exit(95);
    memory = p;
    wire_value(&m, "device", device, sizeof device);
    if (*device) printf("I was told device=%s\n", device), fflush(stdout);
    start(nonce, atoi(number), device);
    for (;;) {
        leave_unread();
        receive(&m, NULL);
        if (m.type == WIRE_BYE) _exit(0);
        if (m.type == WIRE_PING && strcmp(mode, "deaf")) wire_put(&out, WIRE_PONG, m.id, "", 0);
        if (m.type == WIRE_SCORE) answer(&m);
        flush();
    }
}

struct reward *fake_start(struct spawner *spawner, const struct reward_config *c)
{
    struct err e = {0};
    struct reward *r = reward_open(spawner, c, &e);
    EXPECT(r, "%s", e.msg);
    if (!r) return NULL;
    EXPECT(reward_ready(r, &e), "%s", e.msg);
    return r;
}
