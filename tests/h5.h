/* Reads HDF5 files for the golden tests: datasets as doubles, attributes, group listing. */
#ifndef TESTS_H5_H
#define TESTS_H5_H
#include <stdbool.h>
#include <stdint.h>
struct h5_array {
    int ndim;
    int64_t dim[8], count;
    bool stored_f64; /* the file holds float64 */
    double *v;
};
long long h5_open(const char *path);
void h5_close(long long file);
bool h5_has(long long file, const char *path);
/* malloc'ed values; CHECK when it is missing. */
struct h5_array h5_read(long long file, const char *path);
void h5_free(struct h5_array *a);
double h5_attr(long long file, const char *object, const char *name); /* number */
bool h5_has_attr(long long file, const char *object, const char *name);
void h5_attr_text(long long file, const char *object, const char *name, char *out, int size);
/* Calls f for every link of a group, in name order. */
void h5_each(long long file, const char *group,
             void (*f)(void *arg, const char *name, bool is_group), void *arg);
/* Calls f(arg, file, path, label) for every *.h5 of $GOLDEN_DIR whose name starts with prefix;
 * returns how many there were. */
int golden_files(const char *prefix, void (*f)(void *arg, long long file, const char *name),
                 void *arg);
const char *golden_dir(void);
#endif
