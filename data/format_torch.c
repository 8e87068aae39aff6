/* Files of torch.save: the zip around the pickle and the storages. The zip is read here and not by
 * a library, because its entries are stored: all that is needed is where each begins, and a library
 * that hides this could not give ranges to pread. */
#include <stdlib.h>
#include <string.h>

#include "data/format_pickle.h"
#include "data/format_zip.h"

/* Reading a pickle takes up to 256 bytes of memory for each of its own; one name, type and shape of
 * a tensor are about 150 bytes of it. */
enum { MAX_PICKLE = 16 << 20, MAX_KEY = 256 };

struct torch_file {
    struct format *f;
    struct zip zip;
    const char *top; /* the folder of all entries, n bytes */
    size_t top_size;
};

static const struct zip_entry *entry(const struct torch_file *t, const char *folder,
                                     const char *name, size_t n)
{
    char path[5000];
    const size_t more = strlen(folder);
    if (t->top_size + more + n + 2 > sizeof path || memchr(name, 0, n)) return NULL;
    memcpy(path, t->top, t->top_size);
    memcpy(path + t->top_size, folder, more);
    memcpy(path + t->top_size + more, name, n);
    path[t->top_size + more + n] = 0;
    return zip_find(&t->zip, path);
}

/* Where the tensor lies in the file. */
static bool place(const struct torch_file *t, const struct pickle_tensor *p,
                  struct format_tensor *out, struct err *e)
{
    const struct format *f = t->f;
    const int64_t size = (int64_t)format_dtype_size(p->dtype);
    const struct zip_entry *z = entry(t, "/data/", p->key.s, p->key.n);
    int64_t bytes;
    if (!z || p->key.n > MAX_KEY)
        return format_bad(f, e, "the storage of \"%s\" is missing: no entry %.*s/data/%.*s",
                          out->name, (int)(t->top_size < 100 ? t->top_size : 100), t->top,
                          (int)(p->key.n < 40 ? p->key.n : 40), p->key.s);
    if (__builtin_mul_overflow(p->numel, size, &bytes) || bytes != z->size)
        return format_bad(
            f, e, "the storage of \"%s\" has %lld elements of type %s, but %lld bytes", out->name,
            (long long)p->numel, format_dtype_name(p->dtype), (long long)z->size);
    if (!format_count(out))
        return format_bad(f, e, "the shape of \"%s\" is larger than any memory", out->name);
    const int64_t span = format_span(out);
    if (span < 0 || p->first > p->numel || span > p->numel - p->first)
        return format_bad(f, e, "\"%s\" would lie outside of its storage", out->name);
    if (out->count > span)
        return format_bad(f, e,
                          "\"%s\" shows the same elements several times (an expanded view): save "
                          "tensor.contiguous()",
                          out->name);
    out->offset = z->offset + p->first * size;
    return true;
}

static bool add_tensor(void *arg, const struct pickle_tensor *p, struct err *e)
{
    const struct torch_file *t = arg;
    struct format_tensor *out = format_add(t->f, p->name.s, p->name.n, e);
    if (!out) return false;
    out->dtype = p->dtype;
    out->ndim = p->ndim;
    memcpy(out->dim, p->dim, sizeof out->dim);
    memcpy(out->stride, p->stride, sizeof out->stride);
    return place(t, p, out, e);
}

/* <top>/data.pkl, once. */
static const struct zip_entry *find_pickle(struct torch_file *t, struct err *e)
{
    static const char tail[] = "/data.pkl";
    const struct zip_entry *found = NULL;
    for (int i = 0; i < t->zip.n; i++) {
        const char *slash = strchr(t->zip.entry[i].name, '/');
        if (!slash || strcmp(slash, tail)) continue;
        if (found) {
            format_bad(t->f, e, "it has two pickles, \"%s\" and \"%s\"", found->name,
                       t->zip.entry[i].name);
            return NULL;
        }
        found = &t->zip.entry[i];
        t->top = found->name;
        t->top_size = (size_t)(slash - found->name);
    }
    if (!found) format_bad(t->f, e, "is a zip file, but not one of torch.save: it has no data.pkl");
    return found;
}

static bool require_order(const struct torch_file *t, struct err *e)
{
    char order[8] = {0};
    const struct zip_entry *z = entry(t, "/", "byteorder", 9);
    if (!z) return true; /* older than this entry: little */
    if (z->size < (int64_t)sizeof order &&
        !format_bytes(t->f, z->offset, order, (size_t)z->size, e))
        return false;
    return strcmp(order, "little") == 0 ||
           format_bad(t->f, e,
                      "its storages are not little-endian (byteorder \"%.7s\"): save it again on "
                      "a little-endian machine, or with safetensors",
                      strcmp(order, "big") ? "?" : order);
}

static bool read_pickle(struct torch_file *t, const struct zip_entry *z, struct err *e)
{
    if (z->size > MAX_PICKLE)
        return format_bad(t->f, e, "its pickle has %lld bytes: no file of tensors",
                          (long long)z->size);
    uint8_t *p = malloc((size_t)z->size + 1);
    CHECK(p, "out of memory");
    const bool ok = format_bytes(t->f, z->offset, p, (size_t)z->size, e) &&
                    pickle_read(t->f, p, (size_t)z->size, add_tensor, t, e);
    free(p);
    return ok;
}

/* Files of other forms get their own message; anything else is up to the zip reader. */
static bool require_zip(const struct format *f, struct err *e)
{
    uint8_t head[512] = {0};
    if (f->size == 0) return format_bad(f, e, "is empty");
    const size_t n = f->size < 512 ? (size_t)f->size : 512;
    if (!format_bytes(f, 0, head, n, e)) return false;
    if ((head[0] == 0x80 && head[1] >= 2 && head[1] <= 5) || memcmp(head + 257, "ustar", 5) == 0)
        return format_bad(
            f, e,
            "is in torch's form before the zip files of torch 1.6: load it with torch "
            "and save it again, or with safetensors.torch.save_file");
    return memcmp(head, "PK\3\4", 4) == 0 ||
           format_bad(f, e, "is no zip file, as torch.save writes them");
}

bool format_open_torch(struct format *f, struct err *e)
{
    struct torch_file t = {.f = f};
    if (!require_zip(f, e)) return false;
    bool ok = zip_read(&t.zip, f, e);
    const struct zip_entry *z = ok ? find_pickle(&t, e) : NULL;
    ok = z && require_order(&t, e) && read_pickle(&t, z, e);
    zip_free(&t.zip);
    return ok;
}
