#include "core/cuda/staging.h"

#include <stdint.h>
#include <string.h>

#include "core/dev.h"

/* Bytes of the part that begins after `done`. */
static size_t part(const struct staging *s, size_t bytes, size_t done)
{
    return bytes - done < s->size ? bytes - done : s->size;
}

static void make_buffers(struct dev *d, struct staging *s)
{
    CHECK(s->size > 0, "pinned buffers without a size");
    for (int i = 0; i < 2; i++)
        if (!s->buffer[i]) s->buffer[i] = cuda_pinned(d, s->size);
}

/* By several threads: one core moves a fraction of what the bus does. */
static void host_copy(const struct dev *d, char *dst, const char *src, size_t bytes)
{
    enum { SLICE = 1 << 20, MOST_THREADS = 4 };
    const int64_t slices = (int64_t)((bytes + SLICE - 1) / SLICE);
    const int most = d->threads < MOST_THREADS ? d->threads : MOST_THREADS;
    const int threads = slices < most ? (int)slices : most;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads > 0 ? threads : 1) if (threads > 1)
#endif
    for (int64_t i = 0; i < slices; i++) {
        const size_t at = (size_t)i * SLICE, left = bytes - at;
        memcpy(dst + at, src + at, left < SLICE ? left : SLICE);
    }
}

void staged_from_host(struct dev *d, struct staging *s, void *dst, const void *src, size_t bytes)
{
    if (bytes) make_buffers(d, s);
    for (size_t done = 0; done < bytes; s->turn ^= 1) {
        const size_t n = part(s, bytes, done);
        char *buffer = s->buffer[s->turn];
        if (s->sent[s->turn]) cuda_wait_mark(d, s->turn);
        host_copy(d, buffer, (const char *)src + done, n);
        cuda_copy_async(d, (char *)dst + done, buffer, n, true);
        cuda_mark(d, s->turn);
        s->sent[s->turn] = true;
        done += n;
    }
}

/* Part k of an array, into the buffer of its turn. The stream does one thing after the other: what
 * was sent from that buffer before has arrived by then. */
static void fetch(struct dev *d, struct staging *s, const char *src, size_t bytes, size_t k)
{
    const size_t first = k * s->size;
    cuda_copy_async(d, s->buffer[k % 2], src + first, part(s, bytes, first), false);
    cuda_mark(d, (int)(k % 2));
}

void staged_to_host(struct dev *d, struct staging *s, void *dst, const void *src, size_t bytes)
{
    if (!bytes) return;
    make_buffers(d, s);
    fetch(d, s, src, bytes, 0);
    for (size_t k = 0; k * s->size < bytes; k++) {
        if ((k + 1) * s->size < bytes) fetch(d, s, src, bytes, k + 1);
        cuda_wait_mark(d, (int)(k % 2));
        host_copy(d, (char *)dst + k * s->size, s->buffer[k % 2], part(s, bytes, k * s->size));
    }
    s->sent[0] = s->sent[1] = false; /* the last wait was for all that came before it, too */
}
