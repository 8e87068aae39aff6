#include "rl/reward_wire.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"

/* ---- CRC-32, eight bytes at a time ---- */
static uint32_t crc_table[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void crc_fill(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
        crc_table[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++)
            crc_table[t][i] = crc_table[t - 1][i] >> 8 ^ crc_table[0][crc_table[t - 1][i] & 255];
}

static uint32_t load32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint32_t wire_crc32(uint32_t crc, const void *data, size_t n)
{
    pthread_once(&crc_once, crc_fill);
    const uint8_t *p = data;
    uint32_t c = ~crc;
    for (; n >= 8; n -= 8, p += 8) {
        const uint32_t a = c ^ load32(p), b = load32(p + 4);
        c = crc_table[7][a & 255] ^ crc_table[6][a >> 8 & 255] ^ crc_table[5][a >> 16 & 255] ^
            crc_table[4][a >> 24] ^ crc_table[3][b & 255] ^ crc_table[2][b >> 8 & 255] ^
            crc_table[1][b >> 16 & 255] ^ crc_table[0][b >> 24];
    }
    while (n--) c = c >> 8 ^ crc_table[0][(c ^ *p++) & 255];
    return ~c;
}

/* ---- bytes ---- */
void wire_add(struct wire_buf *b, const void *p, size_t n)
{
    if (b->at == b->size) b->at = b->size = 0;
    if (b->at) memmove(b->data, b->data + b->at, b->size -= b->at);
    b->at = 0;
    if (b->size + n > b->room) {
        b->room = 2 * (b->size + n);
        b->data = realloc(b->data, b->room);
        CHECK(b->data, "out of memory");
    }
    if (n) memcpy(b->data + b->size, p, n);
    b->size += n;
}

void wire_free(struct wire_buf *b)
{
    free(b->data);
    *b = (struct wire_buf){0};
}

static void put(uint8_t **p, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) *(*p)++ = (uint8_t)(v >> 8 * i);
}

static void put_f64(uint8_t **p, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, 8);
    put(p, bits, 8);
}

/* A reader that has run past its end gives zeros and remembers. */
struct reader {
    const uint8_t *p;
    size_t left;
    bool bad;
};

static const uint8_t *take_bytes(struct reader *r, size_t n)
{
    if (r->bad || n > r->left) {
        r->bad = true;
        return NULL;
    }
    r->p += n;
    r->left -= n;
    return r->p - n;
}

static uint64_t take(struct reader *r, int bytes)
{
    const uint8_t *p = take_bytes(r, (size_t)bytes);
    uint64_t v = 0;
    for (int i = 0; p && i < bytes; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static uint32_t take32(struct reader *r) { return (uint32_t)take(r, 4); }

static double take_f64(struct reader *r)
{
    const uint64_t bits = take(r, 8);
    double v;
    memcpy(&v, &bits, 8);
    return v;
}

/* ---- messages ---- */
static const char magic[4] = {'O', 'S', 'P', 'R'};

void wire_put(struct wire_buf *b, enum wire_type type, uint64_t id, const void *payload, size_t n)
{
    CHECK(n <= WIRE_MAX, "a message of %zu bytes", n);
    uint8_t h[WIRE_HEADER], *p = h + 4;
    memcpy(h, magic, 4);
    put(&p, WIRE_VERSION, 2);
    put(&p, type, 2);
    put(&p, n, 4);
    put(&p, 0, 4); /* flags */
    put(&p, id, 8);
    put(&p, wire_crc32(0, payload, n), 4);
    put(&p, wire_crc32(0, h, WIRE_HEADER - 4), 4);
    wire_add(b, h, sizeof h);
    wire_add(b, payload, n);
}

static const char *wrong_header(const uint8_t *h)
{
    struct reader r = {h + 4, WIRE_HEADER - 4, false};
    if (memcmp(h, magic, 4)) return "bytes that are no message";
    if (load32(h + WIRE_HEADER - 4) != wire_crc32(0, h, WIRE_HEADER - 4))
        return "a header with a wrong checksum";
    if (take(&r, 2) != WIRE_VERSION) return "another version of the protocol";
    const uint64_t type = take(&r, 2);
    if (type < WIRE_HELLO || type > WIRE_FATAL || (type > WIRE_PONG && type < WIRE_BYE))
        return "a message of unknown type";
    if (take32(&r) > WIRE_MAX) return "a message that is too long";
    return take32(&r) ? "unknown flags" : NULL;
}

int wire_take(struct wire_buf *b, struct wire_msg *m, const char **wrong)
{
    const size_t have = b->size - b->at;
    const uint8_t *h = b->data ? b->data + b->at : NULL;
    if (have < WIRE_HEADER) {
        *wrong = "bytes that are no message"; /* do not wait for the rest of garbage */
        return have && memcmp(h, magic, have < 4 ? have : 4) ? -1 : 0;
    }
    if ((*wrong = wrong_header(h))) return -1;
    const uint32_t size = load32(h + 8);
    if (have - WIRE_HEADER < size) return 0;
    *wrong = "a payload with a wrong checksum";
    if (load32(h + 24) != wire_crc32(0, h + WIRE_HEADER, size)) return -1;
    struct reader r = {h + 16, 8, false};
    *m = (struct wire_msg){(enum wire_type)(h[6] | h[7] << 8), take(&r, 8), h + WIRE_HEADER, size};
    b->at += WIRE_HEADER + size;
    *wrong = NULL;
    return 1;
}

/* ---- SCORE and RESULT ---- */
enum {
    SCORE_FIXED = 4 + 4 + 8 + 12 + 4 + 8 + 4 + 4 + 4 + 4,
    RESULT_FIXED = 4 + 4 + 4 + 4 + 12 + 4
};

void wire_put_score(struct wire_buf *b, uint64_t id, const struct wire_score *s)
{
    CHECK(s->num_index <= WIRE_INDICES && s->prompt_size <= WIRE_PROMPT, "a request too long");
    uint8_t msg[SCORE_FIXED + 4 * WIRE_INDICES + WIRE_PROMPT], *p = msg;
    put(&p, 1, 4); /* clips in this message */
    put(&p, s->slot, 4);
    put(&p, s->offset, 8);
    put(&p, s->frames, 4);
    put(&p, s->height, 4);
    put(&p, s->width, 4);
    put(&p, 0, 1); /* layout: THWC RGB8 */
    put(&p, s->resized, 1);
    put(&p, 0, 2);
    put_f64(&p, s->fps);
    put(&p, s->total, 4);
    put(&p, s->num_index, 4);
    for (uint32_t i = 0; i < s->num_index; i++) put(&p, s->index[i], 4);
    put(&p, s->crc, 4);
    put(&p, s->prompt_size, 4);
    if (s->prompt_size) memcpy(p, s->prompt, s->prompt_size);
    wire_put(b, WIRE_SCORE, id, msg, (size_t)(p - msg) + s->prompt_size);
}

bool wire_get_score(struct wire_score *s, const struct wire_msg *m)
{
    struct reader r = {m->data, m->size, m->type != WIRE_SCORE || !m->id};
    bool ok = take32(&r) == 1;
    s->slot = take32(&r);
    s->offset = take(&r, 8);
    s->frames = take32(&r);
    s->height = take32(&r);
    s->width = take32(&r);
    ok &= take(&r, 1) == 0;
    const uint64_t resized = take(&r, 1);
    s->resized = resized == 1;
    ok &= resized <= 1 && take(&r, 2) == 0;
    s->fps = take_f64(&r);
    s->total = take32(&r);
    s->num_index = take32(&r);
    ok &= s->num_index <= WIRE_INDICES && (!s->num_index || s->num_index == s->frames);
    for (uint32_t i = 0; ok && i < s->num_index; i++) s->index[i] = take32(&r);
    s->crc = take32(&r);
    s->prompt_size = take32(&r);
    ok &= s->prompt_size <= WIRE_PROMPT;
    s->prompt = ok ? (const char *)take_bytes(&r, s->prompt_size) : NULL;
    return ok && !r.bad && r.left == 0;
}

void wire_put_result(struct wire_buf *b, uint64_t id, const struct wire_result *s)
{
    CHECK(s->dims <= WIRE_DIMS, "%u dimensions", s->dims);
    uint8_t msg[RESULT_FIXED + 16 * WIRE_DIMS + 4 + WIRE_TEXT], *p = msg;
    const size_t text = strlen(s->text);
    uint32_t ms;
    memcpy(&ms, &s->ms, 4);
    put(&p, 1, 4);
    put(&p, s->status, 4);
    put(&p, s->crc, 4);
    put(&p, s->dims, 4);
    for (uint32_t i = 0; i < s->dims; i++) put_f64(&p, s->raw[i]);
    for (uint32_t i = 0; i < s->dims; i++) put_f64(&p, s->norm[i]);
    put(&p, s->frames_used, 4);
    put(&p, s->tokens, 4);
    put(&p, ms, 4);
    put(&p, text, 4);
    memcpy(p, s->text, text);
    wire_put(b, WIRE_RESULT, id, msg, (size_t)(p - msg) + text);
}

bool wire_get_result(struct wire_result *s, const struct wire_msg *m)
{
    struct reader r = {m->data, m->size, m->type != WIRE_RESULT || !m->id};
    *s = (struct wire_result){0};
    bool ok = take32(&r) == 1;
    const uint32_t status = take32(&r);
    s->status = (enum wire_status)status;
    s->crc = take32(&r);
    s->dims = take32(&r);
    ok &= status < WIRE_STATUSES && s->dims <= WIRE_DIMS;
    for (uint32_t i = 0; ok && i < s->dims; i++) s->raw[i] = take_f64(&r);
    for (uint32_t i = 0; ok && i < s->dims; i++) s->norm[i] = take_f64(&r);
    s->frames_used = take32(&r);
    s->tokens = take32(&r);
    const uint32_t ms = take32(&r), text = take32(&r);
    memcpy(&s->ms, &ms, 4);
    if (!ok || text > WIRE_TEXT) return false;
    const uint8_t *t = take_bytes(&r, text);
    size_t at;
    if (!t || r.left || !wire_printable((const char *)t, text, &at)) return false;
    memcpy(s->text, t, text);
    return true;
}

/* ---- text ---- */
/* Bytes of the character at s, 0 when it is none or a control character. */
static size_t character(const uint8_t *s, size_t n)
{
    static const uint32_t least[5] = {0, 0x20, 0x80, 0x800, 0x10000};
    const uint8_t c = s[0];
    const size_t len = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
    if (!len || len > n) return 0;
    uint32_t v = len == 1 ? c : c & (0x7fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        v = v << 6 | (s[i] & 0x3fu);
    }
    const bool surrogate = v >= 0xd800 && v < 0xe000,
               control = v == 0x7f || (v >= 0x80 && v < 0xa0);
    return v < least[len] || v > 0x10ffff || surrogate || control ? 0 : len;
}

bool wire_printable(const char *s, size_t n, size_t *at)
{
    for (size_t i = 0, len; i < n; i += len) {
        len = character((const uint8_t *)s + i, n - i);
        *at = i;
        if (!len) return false;
    }
    return true;
}

bool wire_lines(const struct wire_msg *m)
{
    const char *p = (const char *)m->data, *end = p + m->size;
    while (p < end) {
        const char *line = memchr(p, '\n', (size_t)(end - p));
        size_t at;
        if (!line || !wire_printable(p, (size_t)(line - p), &at)) return false;
        const char *eq = memchr(p, '=', (size_t)(line - p));
        if (!eq || eq == p) return false;
        p = line + 1;
    }
    return true;
}

bool wire_value(const struct wire_msg *m, const char *key, char *value, size_t room)
{
    const size_t len = strlen(key);
    const char *p = (const char *)m->data, *end = p + m->size;
    for (const char *line; p < end; p = line + 1) {
        line = memchr(p, '\n', (size_t)(end - p));
        if (!line) return false;
        if ((size_t)(line - p) <= len || p[len] != '=' || memcmp(p, key, len)) continue;
        const size_t n = (size_t)(line - p) - len - 1;
        if (n >= room) return false;
        memcpy(value, p + len + 1, n);
        value[n] = 0;
        return true;
    }
    return false;
}

/* ---- READY ---- */
static int split_names(char *text, char name[WIRE_DIMS][WIRE_NAME])
{
    int n = 0;
    char *rest = text;
    for (char *p; (p = strsep(&rest, ","));) {
        if (n == WIRE_DIMS || !*p || strlen(p) >= WIRE_NAME) return -1;
        for (const char *q = p; *q; q++)
            if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_", *q))
                return -1;
        strcpy(name[n++], p);
    }
    return n;
}

static int split_numbers(char *text, double *v)
{
    int n = 0;
    char *rest = text, *end;
    for (char *p; (p = strsep(&rest, ","));) {
        if (n == WIRE_DIMS || !*p) return -1;
        v[n] = strtod(p, &end);
        if (*end || !isfinite(v[n++])) return -1;
    }
    return n;
}

const char *wire_get_ready(struct wire_ready *r, const struct wire_msg *m)
{
    char names[WIRE_DIMS * WIRE_NAME] = "", test[512] = "";
    *r = (struct wire_ready){0};
    wire_value(m, "dims", names, sizeof names);
    r->dims = split_names(names, r->name);
    if (r->dims <= 0) return "its READY has no list of dimensions (dims=VQ,MQ,...)";
    if (wire_value(m, "selftest", test, sizeof test) && test[0])
        r->tests = split_numbers(test, r->selftest);
    if (r->tests != 0 && r->tests != r->dims)
        return "the self-test of its READY is not one number a dimension";
    return NULL;
}
