/* The directory of a zip file: its end record, the zip64 one where there is one, one header for
 * each entry, and the local header in front of each entry's data. Sizes and offsets come from the
 * directory; the local header only says where the data begin. */
#include "data/format_zip.h"

#include <stdlib.h>
#include <string.h>

enum { END = 22, LOCATOR = 20, END64 = 56, HEADER = 46, LOCAL = 30, MAX_NAME = 4096 };

static uint64_t get(const uint8_t *p, int n)
{
    uint64_t x = 0;
    memcpy(&x, p, (size_t)n);
    return x;
}

struct directory {
    int64_t at, size, entries;
    int64_t end; /* where the end records begin: all entries are in front of it */
};

/* The end record stands last, followed by a comment of at most 65535 bytes. */
static bool find_end(const struct format *f, int64_t *at, uint8_t end[END], struct err *e)
{
    const int64_t most = END + 65535, n = f->size < most ? f->size : most;
    uint8_t *tail = malloc((size_t)n + 1);
    CHECK(tail, "out of memory");
    bool ok = format_bytes(f, f->size - n, tail, (size_t)n, e), found = false;
    for (int64_t i = n - END; ok && !found && i >= 0; i--)
        if (memcmp(tail + i, "PK\5\6", 4) == 0 &&
            get(tail + i + 20, 2) == (uint64_t)(n - END - i)) {
            memcpy(end, tail + i, END);
            *at = f->size - n + i;
            found = true;
        }
    free(tail);
    return ok && (found || format_bad(f, e,
                                      "is no zip file as torch.save writes it, or a truncated one: "
                                      "its directory is missing"));
}

/* torch writes the zip64 record always, whether the plain one could hold the numbers or not: where
 * its locator stands in front of the end record, it counts. */
static bool find_end64(const struct format *f, struct directory *d, bool needed, struct err *e)
{
    uint8_t locator[LOCATOR] = {0}, end[END64] = {0};
    const int64_t last = d->end - LOCATOR - END64;
    if (last >= 0 && !format_bytes(f, d->end - LOCATOR, locator, LOCATOR, e)) return false;
    if (memcmp(locator, "PK\6\7", 4))
        return !needed || format_bad(f, e, "its zip64 directory is missing");
    const uint64_t at = get(locator + 8, 8);
    if (at > (uint64_t)last) return format_bad(f, e, "its zip64 directory is missing");
    if (!format_bytes(f, (int64_t)at, end, END64, e)) return false;
    if (memcmp(end, "PK\6\6", 4)) return format_bad(f, e, "its zip64 directory is damaged");
    d->end = (int64_t)at;
    d->entries = (int64_t)get(end + 32, 8);
    d->size = (int64_t)get(end + 40, 8);
    d->at = (int64_t)get(end + 48, 8);
    return true;
}

static bool find_directory(const struct format *f, struct directory *d, struct err *e)
{
    uint8_t end[END] = {0};
    if (!find_end(f, &d->end, end, e)) return false;
    d->entries = (int64_t)get(end + 10, 2);
    d->size = (int64_t)get(end + 12, 4);
    d->at = (int64_t)get(end + 16, 4);
    const bool large = d->entries == 0xffff || d->size == 0xffffffff || d->at == 0xffffffff;
    if (!find_end64(f, d, large, e)) return false;
    if (d->at < 0 || d->size < 0 || d->at > d->end || d->size != d->end - d->at)
        return format_bad(f, e, "its zip directory does not end where it should");
    if (d->entries < 1 || d->entries > d->size / HEADER)
        return format_bad(f, e, "its zip directory of %lld bytes has %lld entries",
                          (long long)d->size, (long long)d->entries);
    return true;
}

/* Takes the 64-bit fields that stand in for those of 32 bits that are all ones. */
static bool read_extra(const uint8_t *p, size_t n, uint64_t *field[3])
{
    while (n >= 4) {
        const size_t id = get(p, 2), size = get(p + 2, 2);
        if (size > n - 4) return false;
        if (id == 1) {
            size_t at = 0;
            for (int i = 0; i < 3; i++) {
                if (*field[i] != 0xffffffff) continue;
                if (at + 8 > size) return false;
                *field[i] = get(p + 4 + at, 8);
                at += 8;
            }
            return true;
        }
        p += 4 + size;
        n -= 4 + size;
    }
    return *field[0] != 0xffffffff && *field[1] != 0xffffffff && *field[2] != 0xffffffff;
}

/* One header of the directory, n bytes being left of it; returns its length, 0 on error. */
static size_t read_header(const struct format *f, const struct directory *d, const uint8_t *p,
                          size_t n, struct zip_entry *z, struct err *e)
{
    if (n < HEADER || memcmp(p, "PK\1\2", 4))
        return format_bad(f, e, "its zip directory is damaged");
    const size_t name = get(p + 28, 2), extra = get(p + 30, 2), comment = get(p + 32, 2),
                 all = HEADER + name + extra + comment;
    if (all > n || name == 0 || name > MAX_NAME || memchr(p + HEADER, 0, name))
        return format_bad(f, e, "its zip directory is damaged");
    z->name = strndup((const char *)p + HEADER, name);
    CHECK(z->name, "out of memory");
    if (get(p + 8, 2) & 1) return format_bad(f, e, "its entry \"%s\" is encrypted", z->name);
    if (get(p + 10, 2))
        return format_bad(
            f, e, "its entry \"%s\" is compressed (method %u), which torch.save does not do",
            z->name, (unsigned)get(p + 10, 2));
    uint64_t stored = get(p + 20, 4), size = get(p + 24, 4), begin = get(p + 42, 4);
    if (!read_extra(p + HEADER + name, extra, (uint64_t *[3]){&size, &stored, &begin}))
        return format_bad(f, e, "its entry \"%s\" has damaged zip64 fields", z->name);
    if (stored != size || size > (uint64_t)d->at || begin > (uint64_t)d->at - size)
        return format_bad(f, e, "its entry \"%s\" would lie outside of the file", z->name);
    z->size = (int64_t)size;
    z->begin = (int64_t)begin;
    return all;
}

static bool read_local(const struct format *f, const struct directory *d, struct zip_entry *z,
                       struct err *e)
{
    uint8_t p[LOCAL], name[MAX_NAME];
    const size_t n = strlen(z->name);
    if (z->begin > d->at - LOCAL - (int64_t)n)
        return format_bad(f, e, "its entry \"%s\" would lie outside of the file", z->name);
    if (!format_bytes(f, z->begin, p, LOCAL, e) || !format_bytes(f, z->begin + LOCAL, name, n, e))
        return false;
    if (memcmp(p, "PK\3\4", 4) || get(p + 26, 2) != n || memcmp(name, z->name, n))
        return format_bad(f, e, "its entry \"%s\" does not begin where the directory says",
                          z->name);
    z->offset = z->begin + LOCAL + (int64_t)n + (int64_t)get(p + 28, 2);
    if (z->offset > d->at - z->size)
        return format_bad(f, e, "its entry \"%s\" would lie outside of the file", z->name);
    return true;
}

static int by_begin(const void *a, const void *b)
{
    const struct zip_entry *x = a, *y = b;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct zip_entry *)a)->name, ((const struct zip_entry *)b)->name);
}

static bool require_apart(struct zip *z, const struct format *f, struct err *e)
{
    qsort(z->entry, (size_t)z->n, sizeof *z->entry, by_begin);
    for (int i = 1; i < z->n; i++)
        if (z->entry[i].begin < z->entry[i - 1].offset + z->entry[i - 1].size)
            return format_bad(f, e, "its entries \"%s\" and \"%s\" overlap", z->entry[i - 1].name,
                              z->entry[i].name);
    qsort(z->entry, (size_t)z->n, sizeof *z->entry, by_name);
    for (int i = 1; i < z->n; i++)
        if (strcmp(z->entry[i - 1].name, z->entry[i].name) == 0)
            return format_bad(f, e, "it has two entries \"%s\"", z->entry[i].name);
    return true;
}

bool zip_read(struct zip *z, const struct format *f, struct err *e)
{
    struct directory d;
    *z = (struct zip){0};
    if (!find_directory(f, &d, e)) return false;
    uint8_t *p = malloc((size_t)d.size);
    z->entry = calloc((size_t)d.entries, sizeof *z->entry);
    CHECK(p && z->entry, "out of memory");
    bool ok = format_bytes(f, d.at, p, (size_t)d.size, e);
    size_t at = 0;
    while (ok && z->n < d.entries) {
        struct zip_entry *one = &z->entry[z->n++];
        const size_t n = read_header(f, &d, p + at, (size_t)d.size - at, one, e);
        ok = n && read_local(f, &d, one, e);
        at += n;
    }
    if (ok && at != (size_t)d.size) ok = format_bad(f, e, "its zip directory is damaged");
    free(p);
    return ok && require_apart(z, f, e);
}

const struct zip_entry *zip_find(const struct zip *z, const char *name)
{
    const struct zip_entry key = {.name = (char *)(uintptr_t)name};
    return z->n ? bsearch(&key, z->entry, (size_t)z->n, sizeof *z->entry, by_name) : NULL;
}

void zip_free(struct zip *z)
{
    for (int i = 0; i < z->n; i++) free(z->entry[i].name);
    free(z->entry);
    *z = (struct zip){0};
}
