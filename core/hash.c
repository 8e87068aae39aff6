/* CRC-32C (Castagnoli, reflected 0x82F63B78), by the CPU's instruction where it has one, and
 * SHA-256 (FIPS 180-4). */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"

static uint32_t table[8][256]; /* table[k][b]: byte b followed by k zero bytes */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_tables(void)
{
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t c = b;
        for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0x82F63B78u : c >> 1;
        table[0][b] = c;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++)
            table[k][b] = table[k - 1][b] >> 8 ^ table[0][table[k - 1][b] & 255];
}

uint32_t io_crc32c_tables(uint32_t crc, const void *p, size_t n)
{
    const uint8_t *s = p;
    pthread_once(&once, make_tables);
    crc = ~crc;
    for (; n >= 8; n -= 8, s += 8) {
        crc ^= (uint32_t)s[0] | (uint32_t)s[1] << 8 | (uint32_t)s[2] << 16 | (uint32_t)s[3] << 24;
        crc = table[7][crc & 255] ^ table[6][crc >> 8 & 255] ^ table[5][crc >> 16 & 255] ^
              table[4][crc >> 24] ^ table[3][s[4]] ^ table[2][s[5]] ^ table[1][s[6]] ^
              table[0][s[7]];
    }
    while (n--) crc = crc >> 8 ^ table[0][(crc ^ *s++) & 255];
    return ~crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const void *p,
                                                               size_t n)
{
    const uint8_t *s = p;
    uint64_t c = (uint32_t)~crc;
    for (; n >= 8; n -= 8, s += 8) {
        uint64_t word;
        memcpy(&word, s, 8);
        c = _mm_crc32_u64(c, word);
    }
    while (n--) c = _mm_crc32_u8((uint32_t)c, *s++);
    return ~(uint32_t)c;
}

uint32_t io_crc32c(uint32_t crc, const void *p, size_t n)
{
    return __builtin_cpu_supports("sse4.2") ? crc32c_sse42(crc, p, n) : io_crc32c_tables(crc, p, n);
}
#else
uint32_t io_crc32c(uint32_t crc, const void *p, size_t n) { return io_crc32c_tables(crc, p, n); }
#endif

/* Product of two polynomials over GF(2) modulo that of the checksum; bit 31 is the constant. */
static uint32_t poly_mul(uint32_t a, uint32_t b)
{
    uint32_t sum = 0;
    for (int i = 31; i >= 0; i--) {
        if (a >> i & 1) sum ^= b;
        b = b >> 1 ^ (b & 1 ? 0x82F63B78u : 0); /* b *= x */
    }
    return sum;
}

/* Bytes that follow multiply what stands before them by x^8 each. */
uint32_t io_crc32c_join(uint32_t first, uint32_t second, uint64_t n)
{
    uint32_t power = 0x80000000u, square = 0x00800000u; /* 1, x^8 */
    for (; n; n >>= 1) {
        if (n & 1) power = poly_mul(power, square);
        square = poly_mul(square, square);
    }
    return poly_mul(power, first) ^ second;
}

static const uint32_t round_constant[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotr(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t h[8], const uint8_t *s)
{
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)s[4 * i] << 24 | (uint32_t)s[4 * i + 1] << 16 |
               (uint32_t)s[4 * i + 2] << 8 | s[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + (rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
               (rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(v, h, sizeof v);
    for (int i = 0; i < 64; i++) {
        const uint32_t t1 = v[7] + (rotr(v[4], 6) ^ rotr(v[4], 11) ^ rotr(v[4], 25)) +
                            ((v[4] & v[5]) ^ (~v[4] & v[6])) + round_constant[i] + w[i];
        const uint32_t t2 = (rotr(v[0], 2) ^ rotr(v[0], 13) ^ rotr(v[0], 22)) +
                            ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) h[i] += v[i];
}

static void sha256_start(uint32_t h[8])
{
    static const uint32_t first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(h, first, sizeof first);
}

/* The last left < 64 bytes of n, and the hash. */
static void sha256_end(uint32_t h[8], const uint8_t *s, size_t left, uint64_t n, uint8_t out[32])
{
    uint8_t tail[128] = {0};
    if (left) memcpy(tail, s, left);
    tail[left] = 0x80;
    const size_t len = left < 56 ? 64 : 128;
    for (int i = 0; i < 8; i++) tail[len - 1 - (size_t)i] = (uint8_t)(n * 8 >> 8 * i);
    for (size_t i = 0; i < len; i += 64) sha256_block(h, tail + i);
    for (int i = 0; i < 32; i++) out[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

void io_sha256(uint8_t out[32], const void *p, size_t n)
{
    uint32_t h[8];
    const uint8_t *s = p;
    size_t left = n;
    sha256_start(h);
    for (; left >= 64; left -= 64, s += 64) sha256_block(h, s);
    sha256_end(h, s, left, n, out);
}

void io_sha256_file(char hex[65], const char *path, struct err *e)
{
    enum { BLOCK = 1 << 18 }; /* a multiple of 64: only the last one may be shorter */
    FILE *f = fopen(path, "rb");
    uint8_t *s = malloc(BLOCK), out[32] = {0};
    CHECK(s, "out of memory");
    uint32_t h[8];
    uint64_t n = 0;
    size_t got = BLOCK;
    sha256_start(h);
    while (f && got == BLOCK) {
        got = fread(s, 1, BLOCK, f);
        n += got;
        for (size_t at = 0; at + 64 <= got; at += 64) sha256_block(h, s + at);
    }
    if (!f || ferror(f)) err_set(e, RC_IO, "cannot read \"%s\"", path);
    if (f) fclose(f);
    sha256_end(h, s + got / 64 * 64, f ? got % 64 : 0, n, out);
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", out[i]);
    free(s);
}
