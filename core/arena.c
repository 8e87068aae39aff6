#include "core/arena.h"

#include "core/dev.h"
#include "core/err.h"

enum { ALIGN = 256 };

void arena_init(struct arena *a, struct dev *dev, size_t bytes, const char *name)
{
    *a = (struct arena){.dev = dev, .size = bytes, .name = name};
    a->base = dev_alloc(dev, bytes ? bytes : ALIGN);
}

void arena_free(struct arena *a)
{
    if (a->base) dev_free(a->dev, a->base);
    a->base = NULL;
}

struct tensor arena_new(struct arena *a, enum dtype d, int ndim, const int64_t *dim)
{
    struct tensor t = tensor_make(NULL, d, ndim, dim);
    const size_t bytes = (tensor_bytes(t) + ALIGN - 1) / ALIGN * ALIGN;
    CHECK(a->top + bytes <= a->size, "arena %s: %zu bytes asked, %zu of %zu in use", a->name, bytes,
          a->top, a->size);
    t.data = a->base + a->top;
    a->top += bytes;
    if (a->top > a->peak) a->peak = a->top;
    return t;
}

struct tensor arena_like(struct arena *a, struct tensor t)
{
    return arena_new(a, t.dtype, t.ndim, t.dim);
}

size_t arena_mark(const struct arena *a) { return a->top; }

void arena_release(struct arena *a, size_t mark)
{
    CHECK(mark <= a->top, "arena %s: release to %zu above the top %zu", a->name, mark, a->top);
    if (mark < a->top) dev_poison(a->dev, a->base + mark, a->top - mark);
    a->top = mark;
}
