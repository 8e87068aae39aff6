/* What the trainer and a scorer process say to each other (docs/reward.md, docs/spec/rl.md 6.4):
 * messages of a 32-byte header and a payload of at most 1 MiB, little-endian, both with CRC-32.
 * SCORE and RESULT are binary; every other payload is text, one "key=value" per line. Pure: bytes
 * in, values out, no files and no clock. Nothing that arrives is trusted: every length is checked
 * before it is used, and what does not fit exactly is an error. */
#ifndef RL_REWARD_WIRE_H
#define RL_REWARD_WIRE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    WIRE_VERSION = 1,
    WIRE_HEADER = 32,      /* bytes */
    WIRE_MAX = 1 << 20,    /* bytes of a payload */
    WIRE_PROMPT = 1 << 14, /* bytes of a prompt */
    WIRE_TEXT = 512,       /* bytes of the reason in a result */
    WIRE_INDICES = 1024,   /* delivered frames with a source index */
    WIRE_DIMS = 8,         /* dimensions of a score */
    WIRE_NAME = 32         /* bytes of the name of one */
};
enum wire_type {
    WIRE_HELLO = 1, /* worker: protocol, pid, nonce echo */
    WIRE_CONFIG,    /* trainer: nonce, slots, options; carries the memory file */
    WIRE_READY,     /* worker: dims, self-test, what it runs */
    WIRE_SCORE,     /* trainer: one clip */
    WIRE_RESULT,    /* worker: its scores */
    WIRE_PING,
    WIRE_PONG,
    WIRE_BYE = 10, /* trainer: no more work, leave */
    WIRE_FATAL     /* worker: cannot go on; code, text */
};
enum wire_status { /* of a result */
                   WIRE_OK,
                   WIRE_BAD_INPUT,
                   WIRE_NOT_FINITE,
                   WIRE_NO_MEMORY,
                   WIRE_INTERNAL,
                   WIRE_STATUSES
};

/* Bytes on their way: [at, size) is pending. Zero is empty. */
struct wire_buf {
    uint8_t *data;
    size_t at, size, room;
};
void wire_add(struct wire_buf *b, const void *p, size_t n);
void wire_free(struct wire_buf *b);
/* Appends a whole message. */
void wire_put(struct wire_buf *b, enum wire_type type, uint64_t id, const void *payload, size_t n);
struct wire_msg {
    enum wire_type type;
    uint64_t id;         /* of the request; 0 otherwise */
    const uint8_t *data; /* inside the buffer, until the next call on it */
    uint32_t size;
};
/* 1: the next message; 0: not complete yet; -1: not this protocol, *wrong says why. */
int wire_take(struct wire_buf *b, struct wire_msg *m, const char **wrong);
/* CRC-32 of zlib; start with 0. */
uint32_t wire_crc32(uint32_t crc, const void *p, size_t n);

struct wire_score { /* uint8 RGB, [frames][height][width][3], at offset of the memory file */
    uint32_t slot;
    uint64_t offset;
    uint32_t frames, height, width;
    bool resized;                                   /* the frames have the scorer's size already */
    double fps;                                     /* of the source */
    uint32_t total, num_index, index[WIRE_INDICES]; /* frames of the source; which ones these are */
    uint32_t crc;                                   /* of the frames */
    uint32_t prompt_size;
    const char *prompt; /* UTF-8, not terminated */
};
void wire_put_score(struct wire_buf *b, uint64_t id, const struct wire_score *s);
bool wire_get_score(struct wire_score *s, const struct wire_msg *m); /* prompt points into m */

struct wire_result {
    enum wire_status status;
    uint32_t crc; /* of the frames as the scorer saw them */
    uint32_t dims;
    double raw[WIRE_DIMS], norm[WIRE_DIMS];
    uint32_t frames_used, tokens;
    float ms;
    char text[WIRE_TEXT + 1]; /* why there is no score; printable */
};
void wire_put_result(struct wire_buf *b, uint64_t id, const struct wire_result *r);
bool wire_get_result(struct wire_result *r, const struct wire_msg *m);

/* Text payloads. False: not lines of "key=value" in printable UTF-8. */
bool wire_lines(const struct wire_msg *m);
/* The value of a key of a payload that is wire_lines; false: absent, or longer than room - 1. */
bool wire_value(const struct wire_msg *m, const char *key, char *value, size_t room);
struct wire_ready {  /* what a scorer says of itself, as far as the trainer looks at it */
    int dims, tests; /* tests: numbers of the self-test; dims, or 0 for none */
    char name[WIRE_DIMS][WIRE_NAME];
    double selftest[WIRE_DIMS];
};
/* NULL, or what is wrong with a READY that is wire_lines. */
const char *wire_get_ready(struct wire_ready *r, const struct wire_msg *m);
/* Whole, shortest-form UTF-8 without control characters; *at is the first byte that is not. */
bool wire_printable(const char *s, size_t n, size_t *at);
#endif
