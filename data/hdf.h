/* Small helpers over HDF5 for the data set files (data only). Files are written in the 1.10 format,
 * whose metadata carries checksums, and arrays carry Fletcher-32 on top. Reading trusts nothing:
 * the size of an array is compared with the size of the file before memory is taken for it. */
#ifndef DATA_HDF_H
#define DATA_HDF_H
#include <hdf5.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
struct hdf {
    hid_t file;
    const char *path;
    int64_t bytes; /* size of the file */
};
extern pthread_mutex_t hdf_lock; /* held around every call of the library */
/* Silences the library's own error printing on this thread. */
void hdf_quiet(void);
/* err_set with the innermost message of the library. */
void hdf_err(struct err *e, int code, const char *path, const char *doing);

bool hdf_create(struct hdf *h, const char *path, struct err *e);
bool hdf_open(struct hdf *h, const char *path, struct err *e);
/* After hdf_create: false when anything could not be written. */
bool hdf_close(struct hdf *h, struct err *e);

bool hdf_group(const struct hdf *h, const char *name, struct err *e);
bool hdf_put_text(const struct hdf *h, const char *object, const char *name, const char *v,
                  struct err *e);
bool hdf_put_int(const struct hdf *h, const char *object, const char *name, int64_t v,
                 struct err *e);
bool hdf_put_real(const struct hdf *h, const char *object, const char *name, double v,
                  struct err *e);
bool hdf_put_ints(const struct hdf *h, const char *name, const int64_t *v, int64_t n,
                  struct err *e);
/* Fixed-length UTF-8 strings, as long as the longest. */
bool hdf_put_texts(const struct hdf *h, const char *name, char *const *v, int64_t n, struct err *e);
/* Float array that grows along its first dimension; dim[0] rows at first. */
hid_t hdf_rows(const struct hdf *h, const char *name, int rank, const int64_t *dim,
               const int64_t *chunk, struct err *e);
bool hdf_append(const struct hdf *h, hid_t set, int64_t first, int64_t rows, const float *v,
                struct err *e);

bool hdf_get_text(const struct hdf *h, const char *object, const char *name, char *out, size_t room,
                  struct err *e);
bool hdf_get_int(const struct hdf *h, const char *object, const char *name, int64_t *v,
                 struct err *e);
bool hdf_get_real(const struct hdf *h, const char *object, const char *name, double *v,
                  struct err *e);
/* n >= 0: the length it must have, and *got is not set; -1: any. NULL on error. */
int64_t *hdf_get_ints(const struct hdf *h, const char *name, int64_t n, int64_t *got,
                      struct err *e);
char **hdf_get_texts(const struct hdf *h, const char *name, int64_t n, int64_t *got, struct err *e);
void hdf_free_texts(char **v);
/* Opens a float array of this rank; its sizes in dim. */
hid_t hdf_open_rows(const struct hdf *h, const char *name, int rank, int64_t *dim, struct err *e);
bool hdf_read_rows(const struct hdf *h, hid_t set, const char *name, int64_t first, int64_t rows,
                   float *out, struct err *e);
#endif
