/* Copies between host and device through the two pinned buffers: every size around a buffer and
 * several, from and to any address, one after the other without a pause, with a device that copies
 * at once and one that does so as late as it may. */
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"

extern const struct dev_backend dev_cuda_emulated;
extern bool emulated_late;
extern const size_t emulated_stage;

static unsigned char pattern(size_t i, size_t seed)
{
    return (unsigned char)(i * 131 + (i >> 8) * 17 + seed * 59 + 1);
}

/* Two arrays in a row to the device, both back; the host's arrays change as soon as they may. */
static void both_ways(struct dev *d, size_t bytes, size_t offset)
{
    enum { GUARD = 32 };
    const size_t room = bytes + offset + 2 * GUARD;
    unsigned char *host = malloc(room), *back = malloc(room), *device[2];
    CHECK(host && back, "out of memory");
    for (size_t k = 0; k < 2; k++) {
        device[k] = dev_alloc(d, room);
        for (size_t i = 0; i < bytes; i++) host[GUARD + offset + i] = pattern(i, k);
        d->ops->from_host(d, device[k] + offset, host + GUARD + offset, bytes);
        memset(host, 0xEE, room);
    }
    for (size_t k = 0; k < 2; k++) {
        memset(back, 0x55, room);
        d->ops->to_host(d, back + GUARD + offset, device[k] + offset, bytes);
        size_t wrong = 0;
        for (size_t i = 0; i < room; i++) {
            const bool inside = i >= GUARD + offset && i < GUARD + offset + bytes;
            wrong += back[i] != (inside ? pattern(i - GUARD - offset, k) : 0x55);
        }
        EXPECT(wrong == 0, "%zu bytes at offset %zu, array %zu, %s: %zu are wrong", bytes, offset,
               k, emulated_late ? "late" : "at once", wrong);
    }
    d->ops->sync(d);
    for (int k = 0; k < 2; k++) dev_free(d, device[k]);
    free(host);
    free(back);
}

static void test_copies(struct comm *w)
{
    (void)w;
    const size_t s = emulated_stage;
    const size_t size[] = {0, 1, 7, s - 1, s, s + 1, 2 * s - 1, 2 * s, 2 * s + 1, 5 * s + 3};
    struct dev *d = dev_open(dev_cuda_emulated.name, DT_F32, 1);
    for (int late = 0; late < 2; late++) {
        emulated_late = late;
        for (size_t i = 0; i < sizeof size / sizeof *size; i++)
            for (size_t offset = 0; offset < 4; offset++) both_ways(d, size[i], offset);
    }
    emulated_late = false;
    dev_close(d);
}

int main(int argc, char **argv)
{
    dev_register(&dev_cuda_emulated);
    const struct test t[] = {
        {.name = "copies of all sizes arrive, both ways", .run = test_copies},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
