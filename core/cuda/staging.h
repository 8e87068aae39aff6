/* Copies between ordinary host memory and the device, through two pinned buffers in turn: while one
 * travels at the speed of the bus, the host fills or empties the other. Host code in C; what is
 * asynchronous comes from cuda.cu, or from tests/cudasim in the tests. For one host thread of a
 * device at a time. */
#ifndef CORE_CUDA_STAGING_H
#define CORE_CUDA_STAGING_H
#include <stdbool.h>
#include <stddef.h>

struct dev;
struct staging {
    size_t size;     /* of a buffer */
    char *buffer[2]; /* made at the first copy; whoever owns the struct frees them */
    bool sent[2];    /* something from the host may still be on its way to the device */
    int turn;        /* of the next buffer to send */
};
/* Returns when src has been read; dst is written in the order of the device's stream. */
void staged_from_host(struct dev *d, struct staging *s, void *dst, const void *src, size_t bytes);
/* Returns when dst is written, and so after all the stream had to do before (not for 0 bytes). */
void staged_to_host(struct dev *d, struct staging *s, void *dst, const void *src, size_t bytes);

char *cuda_pinned(struct dev *d, size_t bytes);
/* On the device's stream; the host's side is pinned. */
void cuda_copy_async(struct dev *d, void *dst, const void *src, size_t bytes, bool to_device);
/* Event `which` (0 or 1) comes when the stream has got here; the host waits for it. */
void cuda_mark(struct dev *d, int which);
void cuda_wait_mark(struct dev *d, int which);
#endif
