/* Reads the pickle of a torch file without executing it (private to data/format*.c). A pickle is a
 * program for a stack machine that may call anything. This machine knows the instructions that
 * build dictionaries, tuples, texts and numbers, and of calls only those that stand for a tensor:
 * collections.OrderedDict(), torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter, with
 * the storage classes of torch. It calls nothing; whatever else is asked for is refused by name. */
#ifndef DATA_FORMAT_PICKLE_H
#define DATA_FORMAT_PICKLE_H
#include "data/format_impl.h"
struct pickle_text { /* inside of the pickle, not terminated */
    const char *s;
    size_t n;
};
struct pickle_tensor {
    struct pickle_text name, key; /* of its storage: entry data/<key> */
    enum format_dtype dtype;
    int64_t numel; /* elements of the storage, not negative */
    int64_t first; /* element of the storage where the tensor begins, not negative */
    int ndim;      /* at most FORMAT_MAXDIM */
    int64_t dim[FORMAT_MAXDIM], stride[FORMAT_MAXDIM]; /* as they stand there */
};
/* One dictionary of text to tensor: calls each for every member, in order, until it returns false
 * (with e filled). n: bytes. False with the reason in e. */
bool pickle_read(const struct format *f, const uint8_t *pickle, size_t n,
                 bool (*each)(void *arg, const struct pickle_tensor *t, struct err *e), void *arg,
                 struct err *e);
#endif
