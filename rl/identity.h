/* Whether two descriptions of scorers ("key=value" lines, rl/reward.h) give the same rewards. */
#ifndef RL_IDENTITY_H
#define RL_IDENTITY_H
#include <stdbool.h>
#include <stddef.h>
/* Self-tests may differ by 1e-3 (docs/spec/rl.md 6.6); device and library versions (device, torch,
 * transformers, python) may differ, and are named in `notice`. False: `why` has the first line that
 * decides it. Both texts are at most size bytes. */
bool identity_same(const char *a, const char *b, char *why, char *notice, size_t size);
#endif
