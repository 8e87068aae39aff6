#include "core/rng.h"

#include <math.h>

#include "core/err.h"

void philox(uint32_t out[4], const uint32_t counter[4], uint32_t k0, uint32_t k1)
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        const uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

struct rng_stream rng_open(struct rng_key key)
{
    const uint32_t counter[4] = {(uint32_t)key.item, (uint32_t)(key.item >> 32), key.step, key.use};
    uint32_t w[4];
    philox(w, counter, (uint32_t)key.seed, (uint32_t)(key.seed >> 32));
    return (struct rng_stream){w[0], w[1]};
}

static void quad(struct rng_stream s, uint64_t index, uint32_t w[4])
{
    const uint64_t q = index / 4;
    const uint32_t counter[4] = {(uint32_t)q, (uint32_t)(q >> 32), 0, 0};
    philox(w, counter, s.k0, s.k1);
}

uint32_t rng_word(struct rng_stream s, uint64_t index)
{
    uint32_t w[4];
    quad(s, index, w);
    return w[index % 4];
}

static double to_uniform(uint32_t w) { return ((double)w + 0.5) * 0x1p-32; }

double rng_uniform_at(struct rng_stream s, uint64_t index)
{
    return to_uniform(rng_word(s, index));
}

double rng_normal_at(struct rng_stream s, uint64_t index)
{
    uint32_t w[4];
    quad(s, index, w);
    const int pair = (int)(index % 4) / 2 * 2;
    const double r = sqrt(-2 * log(to_uniform(w[pair])));
    const double angle = 2 * M_PI * to_uniform(w[pair + 1]);
    return index % 2 ? r * sin(angle) : r * cos(angle);
}

uint64_t rng_hash(const char *text)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return h;
}

/* Four Feistel rounds on the smallest even number of bits that holds n; values outside 0..n-1
 * are walked on until they come back inside, which keeps it a permutation. */
uint64_t rng_permute(struct rng_key key, uint64_t index, uint64_t n)
{
    CHECK(index < n, "permutation index %llu of %llu", (unsigned long long)index,
          (unsigned long long)n);
    int half = 1;
    while (half < 32 && ((uint64_t)1 << (2 * half)) < n) half++;
    const uint64_t mask = ((uint64_t)1 << half) - 1;
    const struct rng_stream s = rng_open(key);
    uint64_t x = index;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint32_t round = 0; round < 4; round++) {
            const uint32_t counter[4] = {(uint32_t)right, (uint32_t)(right >> 32), round, 1};
            uint32_t w[4];
            philox(w, counter, s.k0, s.k1);
            const uint64_t next = left ^ (w[0] & mask);
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= n);
    return x;
}
