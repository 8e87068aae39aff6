/* Where the entries of a zip file lie (private to data/format*.c). Only what torch.save writes:
 * entries that are stored, not compressed, with or without zip64. */
#ifndef DATA_FORMAT_ZIP_H
#define DATA_FORMAT_ZIP_H
#include "data/format_impl.h"
struct zip_entry {
    char *name;
    int64_t offset, size; /* of its data, bytes of the file */
    int64_t begin;        /* of its local header */
};
struct zip {
    int n;
    struct zip_entry *entry; /* sorted by name */
};
/* Every entry is inside of the file and none overlaps another. False with the reason in e; z must
 * be freed all the same. */
bool zip_read(struct zip *z, const struct format *f, struct err *e);
const struct zip_entry *zip_find(const struct zip *z, const char *name); /* NULL: none */
void zip_free(struct zip *z);
#endif
