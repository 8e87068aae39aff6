/* A scorer in C for tests: the test program started again with "--scorer MODE" as its command. The
 * first word of a prompt says how it misbehaves with that clip ("crash", "hang", ...), a second one
 * names a file: then it does so only once, for whoever creates the file. "storm" writes the file
 * that OSP_REWARD_STORM names: a start for every byte of it ends as soon as it is ready. */
#ifndef TESTS_FAKE_SCORER_H
#define TESTS_FAKE_SCORER_H
#include <stdint.h>

#include "rl/reward.h"
_Noreturn void fake_scorer(const char *mode);
/* What it answers for a clip that it does not spoil (docs/spec/rl.md 6.11): VQ mean luma / 255 with
 * the weights 299, 587, 114; MQ mean |difference| of neighbouring frames / 255; TA the CRC-32 of
 * frames and prompt, mapped to [-1, 1). */
void fake_scores(double raw[3], const char *prompt, const uint8_t *rgb, uint64_t frames,
                 uint64_t bytes);
/* Scorers that are ready; NULL after a failed expectation. */
struct reward *fake_start(struct spawner *, const struct reward_config *);
#endif
