/* Damaged messages between trainer and scorers (rl/reward_wire.h), and what the trainer's side of a
 * connection (rl/reward_worker.h) makes of them. Input i depends on its number only. FUZZ: how many
 * inputs; FUZZ_SECONDS: instead, for so long; FUZZ_FIRST: number of the first one. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/log.h"
#include "core/rng.h"
#include "rl/reward_worker.h"
#include "tests/check.h"

enum { MESSAGES = 6, NONCE = 0x1234, PING_ID = 99, INPUT_ROOM = 1 << 16 };
static int64_t number; /* of the input, for whoever reads why it ended */

/* Called by the address sanitizer. */
void __asan_on_error(void);
void __asan_on_error(void) { fprintf(stderr, "FUZZ_FIRST=%lld FUZZ=1\n", (long long)number); }

/* ---- chance -----------------------------------------------------------------------------------*/
static uint64_t state;

static uint64_t draw(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint32_t below(uint32_t n) { return (uint32_t)(draw() >> 32) % n; }

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
    if (type == WIRE_HELLO && below(4)) n = (size_t)sprintf(text, "nonce=%016x\n", NONCE);
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
    wire_put(b, type, type == WIRE_PONG ? PING_ID : 0, text, n);
}

enum scene { AT_START, AT_WORK, ANYWHERE };

/* What a scorer says at its start, or when it has clips 1, 2, ...; or anything of both sides. */
static void put_stream(struct wire_buf *b, enum scene scene)
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

/* False: it is as it was. */
static bool damage(struct wire_buf *b)
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

/* ---- the parser -------------------------------------------------------------------------------*/
static struct {
    int64_t messages, results, scores, ready, refused, lost, scored, now_ready;
} seen;

/* What is read is written back to the same bytes. */
static bool same_bytes(const struct wire_msg *m, const struct wire_buf *again)
{
    return again->size == WIRE_HEADER + m->size &&
           (!m->size || memcmp(again->data + WIRE_HEADER, m->data, m->size) == 0);
}

static void read_payload(const struct wire_msg *m)
{
    struct wire_buf again = {0};
    struct wire_result r;
    struct wire_score s;
    struct wire_ready y;
    if (wire_get_result(&r, m)) {
        size_t at;
        seen.results++;
        EXPECT(memchr(r.text, 0, sizeof r.text), "input %lld: a text without end",
               (long long)number);
        wire_put_result(&again, m->id, &r);
        EXPECT(r.dims <= WIRE_DIMS && r.status < WIRE_STATUSES && same_bytes(m, &again) &&
                   wire_printable(r.text, strlen(r.text), &at),
               "input %lld: a RESULT reads otherwise than it was written", (long long)number);
    } else if (wire_get_score(&s, m)) {
        seen.scores++;
        wire_put_score(&again, m->id, &s);
        EXPECT(same_bytes(m, &again), "input %lld: a SCORE reads otherwise than it was written",
               (long long)number);
    }
    wire_free(&again);
    if (!wire_lines(m)) return;
    static const char *const key[] = {"dims", "selftest", "nonce", "code", "text", ""};
    for (int k = 0; k < 6; k++) {
        char value[64];
        const size_t room = 1 + (size_t)below(64);
        if (wire_value(m, key[k], value, room)) EXPECT(strlen(value) < room, "%s", key[k]);
    }
    if (wire_get_ready(&y, m)) return;
    seen.ready++;
    EXPECT(y.dims > 0 && y.dims <= WIRE_DIMS && (y.tests == 0 || y.tests == y.dims), "%d, %d",
           y.dims, y.tests);
}

struct outcome {
    int verdict, messages;
    uint32_t crc; /* of types, ids and payloads */
};

static void take_all(struct wire_buf *b, struct outcome *o, bool deep)
{
    struct wire_msg m;
    const char *wrong = NULL;
    while (o->verdict >= 0 && (o->verdict = wire_take(b, &m, &wrong)) > 0) {
        uint8_t *exact = malloc(m.size ? m.size : 1); /* so that a byte too far is noticed */
        CHECK(exact, "out of memory");
        memcpy(exact, m.data, m.size);
        m.data = exact;
        o->messages++;
        o->crc = wire_crc32(o->crc, &m.id, sizeof m.id);
        o->crc = wire_crc32(wire_crc32(o->crc, &m.type, sizeof m.type), exact, m.size);
        if (deep) read_payload(&m);
        free(exact);
    }
    EXPECT(o->verdict == 0 || wrong, "input %lld: an error without a reason", (long long)number);
    const size_t left = b->size - b->at;
    const uint8_t *p = left ? b->data + b->at : NULL;
    EXPECT(o->verdict < 0 || !left || memcmp(p, "OSPR", left < 4 ? left : 4) == 0,
           "input %lld: waits for the rest of garbage", (long long)number);
    EXPECT(o->verdict < 0 || left < WIRE_HEADER || load32(p + 8) <= WIRE_MAX,
           "input %lld: waits for a message that is too long", (long long)number);
}

/* In one piece of exactly its size, and then in any pieces into a buffer that all inputs share. */
static struct outcome parse(const struct wire_buf *b)
{
    static struct wire_buf shared;
    struct wire_buf exact = {malloc(b->size ? b->size : 1), 0, b->size, b->size};
    struct outcome whole = {0}, pieces = {0};
    CHECK(exact.data, "out of memory");
    if (b->size) memcpy(exact.data, b->data, b->size);
    take_all(&exact, &whole, true);
    wire_free(&exact);
    shared.at = shared.size = 0; /* as after a broken connection */
    for (size_t at = 0, n; at < b->size && pieces.verdict >= 0; at += n) {
        n = 1 + below(below(2) ? 8 : 600);
        if (n > b->size - at) n = b->size - at;
        wire_add(&shared, b->data + at, n);
        take_all(&shared, &pieces, false);
    }
    EXPECT(whole.verdict == pieces.verdict && whole.messages == pieces.messages &&
               whole.crc == pieces.crc,
           "input %lld: %d messages, verdict %d; in pieces %d, %d", (long long)number,
           whole.messages, whole.verdict, pieces.messages, pieces.verdict);
    seen.messages += whole.messages;
    seen.refused += whole.verdict < 0;
    return whole;
}

/* ---- the connection ---------------------------------------------------------------------------*/
static struct spawner *dead; /* there is nothing to kill */
static const struct worker_rules rules = {
    .start_s = 1e9, .ping_s = 1e9, .request_s = 1e9, .missed_pings = 3, .max_restarts = 5};

static void check_news(const struct worker *w, enum worker_news news, uint64_t id,
                       const struct wire_result *r, const uint64_t *flight, int flights)
{
    if (news == WORKER_SCORED) {
        seen.scored++;
        EXPECT(flights > 0 && id == flight[0] && w->num_flight == flights - 1 &&
                   r->dims <= WIRE_DIMS && w->state == WORKER_READY,
               "input %lld: a result out of nowhere", (long long)number);
    } else if (news == WORKER_NOW_READY) {
        seen.now_ready++;
        EXPECT(w->state == WORKER_READY && w->hello && memchr(w->info, 0, sizeof w->info),
               "input %lld: ready too early", (long long)number);
    } else if (news == WORKER_LOST) {
        seen.lost++;
        EXPECT(w->fd < 0 && w->state == WORKER_ENDING && w->why[0] && w->num_flight == flights &&
                   memcmp(w->flight, flight, (size_t)flights * sizeof *flight) == 0,
               "input %lld: lost, but not whole", (long long)number);
    }
}

static void all_news(struct worker *w)
{
    for (;;) {
        struct wire_result r;
        uint64_t id = 0, flight[WORKER_FLIGHT];
        const int flights = w->num_flight;
        memcpy(flight, w->flight, sizeof flight);
        const enum worker_news news = worker_next(w, 1, &id, &r);
        if (news == WORKER_NOTHING) return;
        check_news(w, news, id, &r, flight, flights);
    }
}

static void talk(const struct wire_buf *b, enum scene scene)
{
    int pair[2];
    struct worker w;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "no socket");
    worker_init(&w, &rules, dead, 3, "/no/such/log");
    w.fd = pair[0];
    w.state = (scene == ANYWHERE ? below(2) : scene == AT_START) ? WORKER_STARTING : WORKER_READY;
    w.hello = w.state == WORKER_READY;
    w.nonce = NONCE;
    w.since = w.pinged_at = w.head_since = 1;
    w.ping = below(2) ? PING_ID : 0;
    w.was_ready = below(2);
    w.num_flight = w.hello ? (int)below(WORKER_FLIGHT + 1) : 0;
    for (int i = 0; i < w.num_flight; i++) w.flight[i] = (uint64_t)(1 + i);
    const size_t most = b->size < INPUT_ROOM ? b->size : INPUT_ROOM;
    const size_t half = below(2) ? most : below((uint32_t)most + 1);
    for (int part = 0; part < 2 && w.fd >= 0; part++) {
        const size_t n = part ? most - half : half;
        if (n) CHECK(send(pair[1], b->data + (part ? half : 0), n, 0) == (ssize_t)n, "no room");
        all_news(&w);
    }
    close(pair[1]);
    all_news(&w);
    EXPECT(w.fd < 0, "input %lld: the end was not seen", (long long)number);
    worker_free(&w);
}

/* ---- the test ---------------------------------------------------------------------------------*/
static int frames_in(const struct wire_buf *b)
{
    int n = 0;
    for (size_t at = 0; at < b->size; n++) at += WIRE_HEADER + load32(b->data + at + 8);
    return n;
}

static void one_input(void)
{
    struct wire_buf b = {0};
    state = (uint64_t)number * 0xd1342543de82ef95u;
    const enum scene scene = (enum scene)below(3);
    put_stream(&b, scene);
    const bool damaged = damage(&b);
    const int frames = damaged ? 0 : frames_in(&b);
    const struct outcome o = parse(&b);
    EXPECT(damaged || (o.verdict == 0 && o.messages == frames),
           "input %lld: %d of %d whole messages, verdict %d", (long long)number, o.messages, frames,
           o.verdict);
    talk(&b, scene);
    wire_free(&b);
}

static void fuzz(struct comm *world)
{
    (void)world;
    struct err e = {0};
    const char *first = getenv("FUZZ_FIRST"), *seconds = getenv("FUZZ_SECONDS");
    const int64_t from = first ? atoll(first) : 0,
                  inputs = test_inputs(test_fast() ? 20000 : 50000);
    const double end = log_seconds() + (seconds ? atof(seconds) : 0);
    log_set_level(LOG_WARN + 1);
    dead = spawner_start(&e);
    err_raise(&e);
    kill(*(pid_t *)(void *)((char *)dead + sizeof(int)), SIGKILL);
    int64_t n = 0;
    for (; seconds ? log_seconds() < end : n < inputs; n++) {
        number = from + n;
        one_input();
    }
    spawner_stop(dead);
    log_set_level(LOG_WARN);
    printf("    inputs %lld to %lld: %lld messages, of them %lld RESULT, %lld SCORE, %lld READY; "
           "%lld streams refused; connections: %lld scores, %lld ready, %lld lost\n",
           (long long)from, (long long)(from + n - 1), (long long)seen.messages,
           (long long)seen.results, (long long)seen.scores, (long long)seen.ready,
           (long long)seen.refused, (long long)seen.scored, (long long)seen.now_ready,
           (long long)seen.lost);
    /* the damage goes deep: not all of it ends at a checksum */
    EXPECT(n < 1000 || (seen.results > n / 4 && seen.scores > n / 10 && seen.ready > n / 10 &&
                        seen.refused > n / 10 && seen.scored > n / 10 && seen.now_ready > n / 20),
           "too few of a kind");
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "damaged messages do no harm, whole ones come through", .run = fuzz},
    };
    return test_main(argc, argv, tests, 1);
}
