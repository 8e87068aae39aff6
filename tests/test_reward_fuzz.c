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
#include "rl/reward_worker.h"
#include "tests/check.h"
#include "tests/wire_damage.h"

enum { INPUT_ROOM = 1 << 16 };
static int64_t number; /* of the input, for whoever reads why it ended */

/* Called by the address sanitizer. */
void __asan_on_error(void);
void __asan_on_error(void) { fprintf(stderr, "FUZZ_FIRST=%lld FUZZ=1\n", (long long)number); }

static uint32_t load32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
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
    w.nonce = DAMAGE_NONCE;
    w.since = w.pinged_at = w.head_since = 1;
    w.ping = below(2) ? DAMAGE_PING : 0;
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
    all_news(&w); /* whoever looks into /proc/PID/fd at this moment holds the other end open */
    for (int i = 0; i < 2000 && w.fd >= 0; i++, all_news(&w)) usleep(1000);
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
    draw_from(number);
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
