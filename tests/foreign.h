/* Makes files of safetensors and torch byte by byte, right or wrong as a test wants them. */
#ifndef TESTS_FOREIGN_H
#define TESTS_FOREIGN_H
#include "data/format.h"
struct bytes {
    uint8_t *p;
    size_t n, room;
};
void bytes_add(struct bytes *b, const void *p, size_t n);
void bytes_text(struct bytes *b, const char *text);    /* without its 0 */
void bytes_number(struct bytes *b, uint64_t x, int n); /* n bytes, little endian */
void bytes_free(struct bytes *b);
/* test_dir()/name; malloc'ed path. */
char *bytes_write(const struct bytes *b, const char *name);
/* This file, written as test_dir()/name, cannot be opened: RC_DATA, with its path and this text. */
void foreign_refused(const struct bytes *b, const char *name, const char *text);

struct foreign { /* a tensor to write */
    const char *name;
    enum format_dtype dtype;
    int ndim;
    int64_t dim[FORMAT_MAXDIM];
    const double *x; /* [product of dim], row-major */
};
int64_t foreign_count(const struct foreign *t);
/* The elements as they stand in a file (rounded to the type). */
void foreign_encode(struct bytes *b, const struct foreign *t);

/* ---- safetensors -----------------------------------------------------------------------------*/
void safetensors_raw(struct bytes *b, const char *header, const struct bytes *data);
void safetensors_file(struct bytes *b, const struct foreign *t, int n);

/* ---- zip -------------------------------------------------------------------------------------*/
enum { /* what is wrong with an entry or the directory */
       ZIP_COMPRESSED = 1,
       ZIP_ENCRYPTED = 2,
       ZIP_WRONG_LOCAL = 4, /* the local header has another name */
       ZIP_FAR = 8,         /* the directory says it lies behind the file */
       ZIP_LONG = 16,       /* the directory says it is longer than the file */
       ZIP_AGAIN = 32,      /* stands twice in the directory */
       ZIP_PLAIN = 64,      /* end: no zip64 record */
       ZIP_COMMENT = 128,   /* end: with a comment */
       ZIP_LONGER = 512,    /* the directory says it reaches into the directory */
       ZIP_BIG = 256        /* its size and place stand in the zip64 fields */
};
struct zip_out {
    struct bytes all, directory;
    int entries;
};
void zip_add(struct zip_out *z, const char *name, const void *p, size_t n, unsigned wrong);
void zip_end(struct zip_out *z, unsigned wrong); /* z->all is the file */
void zip_out_free(struct zip_out *z);

/* ---- pickle ----------------------------------------------------------------------------------*/
void pickle_global(struct bytes *b, const char *module, const char *name);
void pickle_text(struct bytes *b, const char *text);
void pickle_int(struct bytes *b, int64_t x);
/* A tuple of whole numbers. */
void pickle_ints(struct bytes *b, const int64_t *x, int n);
/* Pushes a tensor: storage class "FloatStorage", key "0", numel, first element, shape, strides. */
struct pickled {
    const char *storage, *key;
    int64_t numel, first;
    int ndim;
    int64_t dim[16], stride[16];
};
void pickle_tensor(struct bytes *b, const struct pickled *t);
/* <top>/data.pkl, <top>/byteorder, <top>/data/<i> with every tensor in order. */
void torch_file(struct bytes *b, const struct foreign *t, int n);
const char *torch_storage(enum format_dtype d); /* "FloatStorage" */
#endif
