#include "tests/wire_damage.h"

#include <stdio.h>
#include <string.h>

#include "rl/reward_worker.h"

enum { MESSAGES = 6 };

/* ---- chance -----------------------------------------------------------------------------------*/
static uint64_t state;

void draw_from(int64_t number) { state = (uint64_t)number * 0xd1342543de82ef95u; }

static uint64_t draw(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint32_t below(uint32_t n) { return (uint32_t)(draw() >> 32) % n; }

static uint32_t odd_number(void)
{
    static const uint32_t list[] = {0,
                                    1,
                                    2,
                                    3,
                                    4,
                                    7,
                                    8,
                                    9,
                                    31,
                                    32,
                                    33,
                                    255,
                                    256,
                                    511,
                                    512,
                                    513,
                                    1023,
                                    1024,
                                    1025,
                                    16383,
                                    16384,
                                    16385,
                                    65535,
                                    65536,
                                    WIRE_MAX - 1,
                                    WIRE_MAX,
                                    WIRE_MAX + 1,
                                    0x7fffffff,
                                    0x80000000,
                                    0xfffffff0,
                                    0xffffffff,
                                    0x7ff80000,
                                    0x7ff00000,
                                    0x00800000};
    return below(4) ? list[below(sizeof list / sizeof *list)] : (uint32_t)draw();
}

/* ---- whole messages ---------------------------------------------------------------------------*/
static double any_double(void)
{
    static const double list[] = {0, -0.0, 1, -1, 0.5, 100, 101, 1e308, 5e-324};
    if (below(2)) return list[below(sizeof list / sizeof *list)];
    const uint64_t bits = draw(); /* any, and so NaN and infinity */
    double v;
    memcpy(&v, &bits, 8);
    return v;
}

static void put_result(struct wire_buf *b, uint64_t id)
{
    static const char *const text[] = {"",     "fine", "h\xc3\xa9ron", "\xf0\x9f\x8e\xac no",
                                       "\x7f", "\xc3"};
    struct wire_result r = {.status = (enum wire_status)below(WIRE_STATUSES), .ms = 1.5f};
    r.crc = (uint32_t)draw(); /* one draw a statement: their order is the input */
    r.dims = below(WIRE_DIMS + 1);
    r.frames_used = odd_number();
    r.tokens = odd_number();
    for (uint32_t i = 0; i < r.dims; i++) r.raw[i] = any_double(), r.norm[i] = any_double();
    if (below(20) == 0)
        memset(r.text, 'a', WIRE_TEXT);
    else
        strcpy(r.text, text[below(below(8) ? 4 : 6)]); /* the last two are refused */
    wire_put_result(b, id, &r);
}

static void put_score(struct wire_buf *b)
{
    static char prompt[WIRE_PROMPT];
    struct wire_score s = {.slot = below(9), .prompt = prompt};
    s.offset = draw();
    s.offset >>= below(64);
    s.frames = 1 + below(below(40) ? 9 : WIRE_INDICES);
    s.height = odd_number();
    s.width = odd_number();
    s.resized = below(2);
    s.fps = any_double();
    s.total = odd_number();
    s.crc = (uint32_t)draw();
    s.prompt_size = below(below(40) ? 50 : WIRE_PROMPT + 1);
    for (uint32_t i = 0; i < s.prompt_size; i++) prompt[i] = (char)('a' + i % 26);
    s.num_index = below(2) ? s.frames : 0;
    for (uint32_t i = 0; i < s.num_index; i++) s.index[i] = i;
    wire_put_score(b, 1 + below(3), &s);
}

/* Payloads that agree with themselves, and go a little beyond what is allowed. */
static uint8_t raw[4 * WIRE_INDICES + WIRE_PROMPT + 200];
static size_t raw_size;

static void add(uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) raw[raw_size++] = (uint8_t)(v >> 8 * i);
}

static void put_long_result(struct wire_buf *b, uint64_t id)
{
    raw_size = 0;
    add(below(8) ? 1 : below(3), 4);
    add(below(WIRE_STATUSES + 1), 4);
    add(draw(), 4);
    const uint32_t dims = below(WIRE_DIMS + 3);
    add(dims, 4);
    for (uint32_t i = 0; i < 2 * dims; i++) add(draw(), 8);
    add(draw(), 8);
    add(0, 4);
    const uint32_t text = below(2) ? below(9) : WIRE_TEXT - 2 + below(9);
    add(text, 4);
    memset(raw + raw_size, 'a', text);
    wire_put(b, WIRE_RESULT, id, raw, raw_size + text);
}

static void put_long_score(struct wire_buf *b, uint64_t id)
{
    const uint32_t frames = below(2) ? below(9) : WIRE_INDICES - 2 + below(5);
    const uint32_t prompt = below(2) ? below(9) : WIRE_PROMPT - 2 + below(5);
    raw_size = 0;
    add(below(8) ? 1 : below(3), 4);
    add(draw(), 4);
    add(draw(), 8);
    add(frames, 4);
    add(draw(), 8);
    add(below(8) == 0, 1);
    add(below(3), 1);
    add(below(8) == 0, 2);
    add(draw(), 8);
    add(draw(), 4);
    add(frames, 4);
    for (uint32_t i = 0; i < frames; i++) add(i, 4);
    add(draw(), 4);
    add(prompt, 4);
    memset(raw + raw_size, 'a', prompt);
    wire_put(b, WIRE_SCORE, id, raw, raw_size + prompt);
}

static void put_text(struct wire_buf *b, enum wire_type type)
{
    static const char *const key[] = {"dims", "selftest", "nonce", "code", "text", "pid", "x"};
    static const char *const value[] = {
        "VQ,MQ,TA",
        "VQ",
        "A,B,C,D,E,F,G,H",
        "A,B,C,D,E,F,G,H,I",
        "A,,B",
        "",
        "0.5,1,2",
        "1e999",
        "nan",
        "1,2,3,4,5,6,7,8,9",
        "78",
        "66",
        "70",
        "-9",
        "99999999999999",
        "0000000000001234",
        "1235",
        "a=b=c",
        "h\xc3\xa9",
        "\xff",
        "a value that is longer than the room for codes and nonces and names of dimensions"};
    char text[2048 + WORKER_INFO] = "";
    size_t n = 0;
    if (type == WIRE_READY && below(4)) n = (size_t)sprintf(text, "dims=VQ,MQ\nselftest=1,-2.5\n");
    if (type == WIRE_HELLO && below(4)) n = (size_t)sprintf(text, "nonce=%016x\n", DAMAGE_NONCE);
    for (uint32_t k = below(5); k; k--) {
        const char *name = key[below(7)];
        n += (size_t)sprintf(text + n, "%s=%s\n", name, value[below(sizeof value / sizeof *value)]);
    }
    if (below(40) == 0 && n) { /* about as long as the trainer keeps */
        const size_t to = WORKER_INFO - 4 + below(8);
        memset(text + n, '=', to - n);
        text[to - 1] = '\n';
        text[n] = 'x';
        n = to;
    }
    if (below(30) == 0 && n) n--; /* the last line has no end */
    wire_put(b, type, type == WIRE_PONG ? DAMAGE_PING : 0, text, n);
}

void put_stream(struct wire_buf *b, enum scene scene)
{
    static const enum wire_type any[] = {WIRE_HELLO, WIRE_READY, WIRE_PONG, WIRE_FATAL,
                                         WIRE_CONFIG};
    if (scene == AT_START) {
        put_text(b, WIRE_HELLO);
        put_text(b, WIRE_READY);
    }
    uint64_t id = 1;
    for (uint32_t n = 1 + below(MESSAGES); n; n--) {
        const uint32_t k = below(12);
        if (below(24) == 0)
            put_long_result(b, id);
        else if (below(24) == 0)
            put_long_score(b, id);
        else if (scene == AT_WORK && k < 8)
            put_result(b, id++);
        else if (k < 5)
            put_result(b, 1 + below(3));
        else if (k < 7)
            put_score(b);
        else
            put_text(b, any[k - 7]);
    }
    const uint32_t last = below(16);
    if (last < 2) wire_put(b, last ? WIRE_PING : WIRE_BYE, last, "", 0);
}

/* ---- damage -----------------------------------------------------------------------------------*/
static uint32_t load32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void store32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> 8 * i);
}

/* Where a message of the stream begins; its payload's length. The stream is still whole. */
static uint8_t *pick(struct wire_buf *b, uint32_t *size)
{
    uint8_t *at[2 * MESSAGES + 4], *p = b->data, *end = b->data + b->size;
    uint32_t n = 0;
    while (end - p >= WIRE_HEADER && n < 2 * MESSAGES + 4) {
        const uint32_t bytes = load32(p + 8);
        if (bytes > (size_t)(end - p) - WIRE_HEADER) break;
        at[n++] = p;
        p += WIRE_HEADER + bytes;
    }
    if (!n) return NULL;
    p = at[below(n)];
    *size = load32(p + 8);
    return p;
}

static void mend(uint8_t *h, uint32_t size)
{
    store32(h + 24, wire_crc32(0, h + WIRE_HEADER, size));
    store32(h + 28, wire_crc32(0, h, WIRE_HEADER - 4));
}

static void change_size(struct wire_buf *b, uint8_t *h, uint32_t size, uint32_t to)
{
    uint8_t bytes[WIRE_PROMPT + 8 * WIRE_INDICES];
    const size_t at = (size_t)(h - b->data), rest = b->size - at - WIRE_HEADER - size;
    if (rest > sizeof bytes) return;
    memcpy(bytes, h + WIRE_HEADER + size, rest);
    b->size = at + WIRE_HEADER + (to < size ? to : size);
    for (uint32_t i = size; i < to; i++) wire_add(b, &(uint8_t){(uint8_t)draw()}, 1);
    h = b->data + at;
    store32(h + 8, to);
    mend(h, to);
    wire_add(b, bytes, rest);
}

/* Fields that lie, under right checksums. */
static void damage_fields(struct wire_buf *b)
{
    uint32_t size, at;
    uint8_t *h = pick(b, &size);
    if (!h) return;
    switch (below(6)) {
    case 0: /* the header's own */
        at = 4 + below(20);
        if (below(2))
            h[at] = (uint8_t)odd_number();
        else
            store32(h + at / 4 * 4, odd_number());
        store32(h + 28, wire_crc32(0, h, WIRE_HEADER - 4));
        break;
    case 1: /* the payload's length, and the payload with it */
        change_size(b, h, size, below(3) ? below(2 * size + 9) : size + below(3));
        break;
    case 2: /* bytes of it */
        for (uint32_t k = 1 + below(4); k && size; k--) {
            at = below(size);
            h[WIRE_HEADER + at] = (uint8_t)draw();
        }
        mend(h, size);
        break;
    default: /* numbers of it */
        at = size < 4 ? 0 : below(size / 4) * 4;
        if (size >= 4) store32(h + WIRE_HEADER + at, odd_number());
        mend(h, size);
    }
}

static void damage_bytes(struct wire_buf *b)
{
    for (uint32_t k = 1 + below(8); k; k--) {
        const uint32_t at = below((uint32_t)b->size);
        if (below(2))
            b->data[at] ^= (uint8_t)(1u << below(8));
        else
            b->data[at] = (uint8_t)odd_number();
    }
}

/* The head of one stream, the tail of another one. */
static void glue(struct wire_buf *b)
{
    struct wire_buf other = {0};
    put_stream(&other, (enum scene)below(3));
    b->size = below((uint32_t)b->size + 1);
    const size_t from = below((uint32_t)other.size + 1);
    wire_add(b, other.data + from, other.size - from);
    wire_free(&other);
}

static void cut(struct wire_buf *b)
{
    const size_t at = below((uint32_t)b->size);
    const size_t n = below((uint32_t)(b->size - at) + 1);
    memmove(b->data + at, b->data + at + n, b->size - at - n);
    b->size -= n;
}

static void random_stream(struct wire_buf *b)
{
    b->size = 0;
    if (below(2)) wire_add(b, "OSPR\1", 6); /* and the second byte of the version */
    for (uint32_t n = below(200); n; n--) wire_add(b, &(uint8_t){(uint8_t)draw()}, 1);
    if (b->size < WIRE_HEADER || below(2)) return;
    store32(b->data + 8, below(300));
    b->data[6] = (uint8_t)(1 + below(11)), b->data[7] = 0;
    store32(b->data + 12, 0);
    store32(b->data + 28, wire_crc32(0, b->data, WIRE_HEADER - 4));
}

bool damage(struct wire_buf *b)
{
    const uint32_t how = below(16);
    if (how < 2) return false;
    if (how < 9)
        for (uint32_t k = 1 + below(3); k; k--) damage_fields(b);
    else if (how < 11)
        damage_bytes(b);
    else if (how < 13)
        glue(b);
    else if (how < 14)
        cut(b);
    else
        random_stream(b);
    return true;
}
