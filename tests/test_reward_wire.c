/* The messages between trainer and scorers. */
#include <string.h>

#include "rl/reward_spawn.h"
#include "rl/reward_wire.h"
#include "tests/check.h"

static struct wire_score sample_score(void)
{
    return (struct wire_score){.slot = 3,
                               .offset = (uint64_t)1 << 33,
                               .frames = 3,
                               .height = 7,
                               .width = 9,
                               .resized = true,
                               .fps = 16,
                               .total = 81,
                               .num_index = 3,
                               .index = {0, 40, 80},
                               .crc = 0xdeadbeef,
                               .prompt_size = 8,
                               .prompt = "h\xc3\xa9llo \xe4"};
}

static void put_both(struct wire_buf *b)
{
    const struct wire_score s = sample_score();
    const struct wire_result r = {.status = WIRE_OK,
                                  .crc = 5,
                                  .dims = 3,
                                  .raw = {1, -2, 0.1},
                                  .norm = {3, 4, 5},
                                  .frames_used = 20,
                                  .tokens = 2520,
                                  .ms = 1.5f,
                                  .text = "fine"};
    wire_put_score(b, 12, &s);
    wire_put_result(b, 13, &r);
    wire_put(b, WIRE_READY, 0, "dims=VQ,MQ\nscorer=a=b\nempty=\n", 29);
}

static void round_trip(struct comm *world)
{
    (void)world;
    EXPECT(wire_crc32(0, "123456789", 9) == 0xcbf43926u, "CRC-32 of 123456789");
    EXPECT(wire_crc32(wire_crc32(0, "1234", 4), "56789", 5) == 0xcbf43926u, "CRC-32 in two parts");
    struct wire_buf b = {0};
    struct wire_msg m;
    struct wire_score s;
    struct wire_result r;
    const char *wrong;
    const struct wire_score want = sample_score();
    put_both(&b);
    EXPECT(wire_take(&b, &m, &wrong) == 1 && m.id == 12 && wire_get_score(&s, &m), "SCORE");
    EXPECT(s.slot == 3 && s.offset == want.offset && s.frames == 3 && s.height == 7 &&
               s.width == 9 && s.resized && s.fps == 16 && s.total == 81 && s.num_index == 3 &&
               s.index[1] == 40 && s.index[2] == 80 && s.crc == want.crc && s.prompt_size == 8 &&
               memcmp(s.prompt, want.prompt, 8) == 0,
           "SCORE differs");
    EXPECT(wire_take(&b, &m, &wrong) == 1 && m.id == 13 && wire_get_result(&r, &m), "RESULT");
    EXPECT(r.status == WIRE_OK && r.crc == 5 && r.dims == 3 && r.raw[1] == -2 && r.norm[2] == 5 &&
               r.frames_used == 20 && r.tokens == 2520 && r.ms == 1.5f && !strcmp(r.text, "fine"),
           "RESULT differs");
    char v[8];
    EXPECT(wire_take(&b, &m, &wrong) == 1 && wire_lines(&m), "READY");
    EXPECT(wire_value(&m, "scorer", v, 8) && !strcmp(v, "a=b"), "%s", v);
    EXPECT(wire_value(&m, "empty", v, 8) && !v[0], "%s", v);
    EXPECT(!wire_value(&m, "dim", v, 8) && !wire_value(&m, "dims", v, 5), "%s", v);
    EXPECT(wire_take(&b, &m, &wrong) == 0, "a message too many");
    wire_free(&b);
}

static void byte_by_byte(struct comm *world)
{
    (void)world;
    struct wire_buf all = {0}, b = {0};
    struct wire_msg m;
    const char *wrong;
    put_both(&all);
    int n = 0;
    for (size_t i = 0; i < all.size; i++) {
        wire_add(&b, all.data + i, 1);
        const int got = wire_take(&b, &m, &wrong);
        EXPECT(got >= 0, "byte %zu: %s", i, wrong);
        n += got;
    }
    EXPECT(n == 3 && b.at == b.size, "%d messages", n);
    wire_free(&all);
    wire_free(&b);
}

static int all_messages(struct wire_buf *b, bool *readable)
{
    struct wire_msg m;
    struct wire_score s;
    struct wire_result r;
    const char *wrong;
    int got, n = 0;
    char v[64];
    *readable = true;
    while ((got = wire_take(b, &m, &wrong)) > 0) {
        n++;
        if (m.type == WIRE_SCORE) *readable &= wire_get_score(&s, &m);
        if (m.type == WIRE_RESULT) *readable &= wire_get_result(&r, &m);
        if (m.type != WIRE_SCORE && m.type != WIRE_RESULT && wire_lines(&m))
            wire_value(&m, "dims", v, sizeof v);
    }
    EXPECT(got == 0 || wrong, "an error without a reason");
    return got < 0 ? -1 : n;
}

/* Every single bit; then lengths that lie, under correct checksums. */
static void damaged(struct comm *world)
{
    (void)world;
    struct wire_buf good = {0};
    bool readable;
    put_both(&good);
    for (size_t bit = 0; bit < 8 * good.size; bit++) {
        struct wire_buf b = {0};
        wire_add(&b, good.data, good.size);
        b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        EXPECT(all_messages(&b, &readable) == -1, "bit %zu of byte %zu unnoticed", bit % 8,
               bit / 8);
        wire_free(&b);
    }
    uint64_t rng = 1;
    const int64_t inputs = test_inputs(20000);
    for (int64_t i = 0; i < inputs; i++) {
        uint8_t p[300];
        struct wire_buf b = {0};
        rng = rng * 6364136223846793005u + 1442695040888963407u;
        const uint32_t size = (uint32_t)(rng >> 33) % 300;
        struct wire_msg m;
        const char *wrong;
        size_t at = 0;
        wire_add(&b, good.data, good.size);
        wire_take(&b, &m, &wrong);
        if (i % 2) wire_take(&b, &m, &wrong);
        const uint32_t keep = m.size < size ? m.size : size;
        memcpy(p, m.data, keep);
        for (uint32_t k = keep; k < size; k++) p[k] = (uint8_t)(rng >> k % 50);
        for (int k = 0; k < (int)(i % 4) && size; k++)
            p[(rng >> (7 * k)) % size] = (uint8_t)(rng >> (40 + k));
        struct wire_buf c = {0};
        wire_put(&c, m.type, m.id, p, size); /* correct checksums over nonsense */
        all_messages(&c, &readable);
        wire_printable((const char *)p, size, &at);
        wire_free(&b);
        wire_free(&c);
    }
    wire_free(&good);
}

static void exact_lengths(struct comm *world)
{
    (void)world;
    struct wire_buf b = {0};
    struct wire_msg m;
    struct wire_score s;
    struct wire_result r;
    const char *wrong;
    put_both(&b);
    wire_take(&b, &m, &wrong);
    for (uint32_t n = 0, all = m.size; n <= all + 1; n++) {
        m.size = n; /* one byte beyond: the next message's */
        EXPECT(wire_get_score(&s, &m) == (n == all), "SCORE of %u bytes", n);
    }
    wire_take(&b, &m, &wrong);
    for (uint32_t n = 0, all = m.size; n <= all + 1; n++) {
        m.size = n;
        EXPECT(wire_get_result(&r, &m) == (n == all), "RESULT of %u bytes", n);
    }
    wire_free(&b);
    const struct {
        const char *text;
        bool fine;
    } text[] = {{"plain", true},
                {"h\xc3\xa9", true},
                {"\xf0\x9f\x8e\xac", true},
                {"a\nb", false},
                {"\x7f", false},
                {"\xc2\x85", false},
                {"\xc0\xaf", false},
                {"\xe0\x80\xaf", false},
                {"\xed\xa0\x80", false},
                {"\xf4\x90\x80\x80", false},
                {"\xc3", false},
                {"\xff", false}};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        size_t at;
        EXPECT(wire_printable(text[i].text, strlen(text[i].text), &at) == text[i].fine, "text %zu",
               i);
    }
}

static void words(struct comm *world)
{
    (void)world;
    char text[] = " python3  'a b'.py --x=\"c  d\" ''\te ", *w[8], open_quote[] = "a 'b",
         many[] = "a b c d e f g h";
    EXPECT(spawner_words(text, w, 8) == 5 && !strcmp(w[0], "python3") && !strcmp(w[1], "a b.py") &&
               !strcmp(w[2], "--x=c  d") && !strcmp(w[3], "") && !strcmp(w[4], "e") && !w[5],
           "words");
    EXPECT(spawner_words(open_quote, w, 8) == -1, "a quote without its end");
    EXPECT(spawner_words(many, w, 8) == -1, "too many words");
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "messages come back as they were", .run = round_trip},
        {.name = "messages may come in any pieces", .run = byte_by_byte},
        {.name = "every damaged bit is noticed; lengths that lie do no harm", .run = damaged},
        {.name = "a payload has one length, a text is UTF-8", .run = exact_lengths},
        {.name = "a command line has words", .run = words},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
