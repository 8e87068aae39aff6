/* The small model with adapters that the tests of adapters share. */
#ifndef TESTS_LORA_CASE_H
#define TESTS_LORA_CASE_H
#include "core/rng.h"
#include "tests/fixture.h"
#include "tests/problem.h"
struct model_config lora_small_model(void); /* two blocks */
/* On ref in f64, batch 2, recompute gemm. */
struct fixture_opts lora_options(const struct model_config *m, const struct lora_config *lora);
/* Opened, weights and adapters filled with values that are not small. */
void lora_open_filled(struct fixture *f, struct comm *world, const struct fixture_opts *o);
struct lora_config lora_thinned(struct lora_config c, double dropout);
extern const struct rng_key lora_masks[3]; /* of samples 0, 1, 2 */
/* As little as adapters can be opened with: ref in f32, one sample of one frame, 2 x 2. */
struct fixture_opts lora_least(const struct model_config *m, const struct lora_config *lora);
#endif
