/* Counter-based random numbers (Philox4x32-10, Salmon et al. 2011): value = f(key, index). There
 * is no state to save or to skip, and 1 rank and 8 ranks draw the same numbers.
 *   stream key = first two words of Philox(counter = (item lo, item hi, step, use), key = seed)
 *   value i    = word i mod 4 of Philox(counter = (i/4 lo, i/4 hi, 0, 0), key = stream key)
 *   uniform    = (word + 0.5) * 2^-32
 *   normals    in pairs from words (0,1), (2,3): r = sqrt(-2 ln u0), r cos(2 pi u1), r sin(2 pi u1)
 * Integers are bit-equal on every device, normals to 1 float ulp. */
#ifndef CORE_RNG_H
#define CORE_RNG_H
#include <stdint.h>
enum rng_use {
    RNG_INIT,    /* item: FNV-1a of the parameter name; index: element of the full tensor */
    RNG_NOISE,   /* item: sample number of the stream; index: element in [C,T,H,W] */
    RNG_SIGMA,   /* item: sample number; index 0 */
    RNG_SHUFFLE, /* item: epoch; rl: step 1, pass over the prompts; step 2, rollout batch */
    RNG_SDE,     /* item: sample number; step 0: initial noise, i + 1: noise of step i */
    RNG_LORA,
    RNG_CAPTION, /* item: sample number; index 0: choice, 1: drop */
    RNG_WINDOW,  /* item: sample number, or step 1: rl epoch; index 0: start of the window */
    RNG_WORD,    /* hash text codec: item: FNV-1a of the word */
    RNG_VALID,   /* held-out noise: item: validation sample, step: sigma bucket */
    RNG_SAMPLE,  /* sampling noise: item: prompt number, step: sample of the prompt */
    RNG_TEST,
    RNG_UPDATE, /* post-training: order of units (item: epoch), of steps (item: sample) */
    RNG_DROPOUT /* item: sample number, step: trained step; index: element of a linear's input */
};
struct rng_key {
    uint64_t seed;
    uint32_t use, step;
    uint64_t item;
};
struct rng_stream {
    uint32_t k0, k1;
};
void philox(uint32_t out[4], const uint32_t counter[4], uint32_t k0, uint32_t k1);
struct rng_stream rng_open(struct rng_key key);
uint32_t rng_word(struct rng_stream s, uint64_t index);
double rng_uniform_at(struct rng_stream s, uint64_t index); /* in (0,1) */
double rng_normal_at(struct rng_stream s, uint64_t index);  /* before rounding to float */
uint64_t rng_hash(const char *text);                        /* FNV-1a, 64 bits */
/* Keyed permutation of 0..n-1: where index goes (cycle-walking Feistel network over Philox). */
uint64_t rng_permute(struct rng_key key, uint64_t index, uint64_t n);
#endif
