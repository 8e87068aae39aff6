/* Which device the scorers of a rank compute on: reward.device, made explicit. Ranks of a host take
 * its GPUs in turn, as the cuda device of the training does. No CUDA is needed to know that. */
#ifndef RL_SCORER_DEVICE_H
#define RL_SCORER_DEVICE_H
#include <stdbool.h>

#include "core/err.h"
enum { SCORER_DEVICE = 32 };
/* How many GPUs a process sees: the files nvidia0, nvidia1, ... of the folder `dev` (/dev), at most
 * as many as `visible` (CUDA_VISIBLE_DEVICES; NULL: not set) lists. OSP_GPUS in the environment is
 * believed instead, for hosts where GPUs have no such files. */
int scorer_gpus(const char *dev, const char *visible);
/* asked: reward.device; NULL is "cuda" where there is a GPU, else "cpu"; "cuda" is the GPU of the
 * local rank. False: e says why it cannot be. */
bool scorer_device(const char *asked, int local_rank, int gpus, char out[SCORER_DEVICE],
                   struct err *e);
#endif
