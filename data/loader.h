/* Batches for training. The order is a keyed permutation per epoch (core/rng.h rng_permute, use
 * RNG_SHUFFLE, item = epoch): sample number g of the stream is train[permute(g mod n)] of epoch
 * g / n, whatever the number of ranks; the only state is the cursor. Step s consumes samples
 * [s*GB, (s+1)*GB); sample g goes to data rank g mod dp. Caption choice and drop are keyed by g
 * (RNG_CAPTION). One thread reads ahead into two buffers. */
#ifndef DATA_LOADER_H
#define DATA_LOADER_H
#include <stdbool.h>

#include "data/dataset.h"
struct batch {
    int n;
    uint64_t *sample; /* [n] stream number g: keys noise and sigma */
    int64_t *index;   /* [n] sample of the data set */
    float *latent;    /* [n, C, T, H, W] */
    float *text;      /* [n, text_len, text_dim] */
};
struct loader_opts {
    uint64_t seed;
    int dp_rank, dp_size;
    int64_t batch_size, global_batch, text_len;
    double text_drop_ratio;
    bool shuffle;
    bool (*give_up)(double waited_s); /* asked while a batch does not come; may be NULL */
};
struct loader;
/* cursor: first sample number of the next step (step * global_batch). */
struct loader *loader_open(struct dataset *d, struct loader_opts o, uint64_t cursor);
void loader_close(struct loader *l);
/* The next micro-batch of this rank; global_batch/(dp*batch_size) of them make a step. The arrays
 * belong to the loader until the next call. Stops with RC_DATA when the data set cannot be read,
 * with RC_TEMP when give_up says so. */
const struct batch *loader_next(struct loader *l);
double loader_wait_seconds(const struct loader *l); /* spent waiting for the thread, in total */
/* Which sample of the data set stream number g is. */
int64_t loader_sample(const struct dataset *d, uint64_t seed, bool shuffle, uint64_t g);
#endif
