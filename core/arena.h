/* All activation memory: a stack allocator over one device block. Forward takes, backward gives
 * back in reverse; release never frees, it only moves the top down. The peak tells the dry run
 * how large the block must be. */
#ifndef CORE_ARENA_H
#define CORE_ARENA_H
#include "core/tensor.h"
struct dev;
/* Log2 of what a dry run reserves for an arena: addresses only, nothing is committed. The thread
 * sanitizer leaves few of them. */
#ifdef __SANITIZE_THREAD__
enum { DRY_ARENA_SHIFT = 34 };
#else
enum { DRY_ARENA_SHIFT = 43 };
#endif
struct arena {
    struct dev *dev;
    char *base;
    size_t size, top, peak;
    const char *name;
};
void arena_init(struct arena *a, struct dev *dev, size_t bytes, const char *name);
void arena_free(struct arena *a);
/* 256-byte aligned. Stops with both sizes when the block is too small. */
struct tensor arena_new(struct arena *a, enum dtype d, int ndim, const int64_t *dim);
struct tensor arena_like(struct arena *a, struct tensor t); /* same dtype and shape, contiguous */
size_t arena_mark(const struct arena *a);
void arena_release(struct arena *a, size_t mark);
#endif
