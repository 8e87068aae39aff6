#include "data/hdf.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/io.h"

enum { MAX_RANK = 5, MAX_TEXT = 1 << 16, CHUNK_ITEMS = 4096 };
pthread_mutex_t hdf_lock = PTHREAD_MUTEX_INITIALIZER;

/* After a failed write (disk full) HDF5 1.10 cannot close the file, and its own clean-up at exit
 * then crashes, which would replace our message and exit code. Every file is closed explicitly, so
 * that clean-up is switched off; this works only before the library's first use. */
__attribute__((constructor)) static void no_exit_handler(void) { H5dont_atexit(); }

/* ---- errors -----------------------------------------------------------------------------------*/
void hdf_quiet(void) { H5Eset_auto2(H5E_DEFAULT, NULL, NULL); }

/* The text of one entry; of a long system report only the reason. */
static herr_t innermost(unsigned n, const H5E_error2_t *one, void *out)
{
    (void)n;
    char *text = out;
    if (!one->desc || !one->desc[0]) return 0;
    const char *why = strstr(one->desc, "error message = '");
    snprintf(text, 256, "%s", why ? why + 17 : one->desc);
    text[strcspn(text, why ? "'\n" : "\n")] = 0;
    return 0;
}

void hdf_err(struct err *e, int code, const char *path, const char *doing)
{
    char text[256] = "";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, innermost, text);
    err_set(e, code, "%s: %s%s%s%s", path, doing, text[0] ? " (" : "", text, text[0] ? ")" : "");
}

static bool bad(const struct hdf *h, const char *name, const char *what, struct err *e)
{
    char doing[256];
    snprintf(doing, sizeof doing, "damaged data set: %s %s", name, what);
    hdf_err(e, RC_DATA, h->path, doing);
    return false;
}

static bool unwritten(const struct hdf *h, const char *name, struct err *e)
{
    char doing[256];
    snprintf(doing, sizeof doing, "cannot write %s", name);
    hdf_err(e, RC_IO, h->path, doing);
    return false;
}

/* ---- files ------------------------------------------------------------------------------------*/
/* A file under its final name never changes, so readers need no lock (and some cluster file systems
 * have none); a writer takes one where it can. */
static hid_t access_list(bool lock)
{
    const hid_t p = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(p, H5F_LIBVER_V110, H5F_LIBVER_LATEST);
    H5Pset_fclose_degree(p, H5F_CLOSE_STRONG);
#if H5_VERSION_GE(1, 10, 7)
    H5Pset_file_locking(p, lock, true);
#else
    (void)lock;
#endif
    return p;
}

bool hdf_create(struct hdf *h, const char *path, struct err *e)
{
    hdf_quiet();
    const hid_t p = access_list(true);
    *h = (struct hdf){.file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, p), .path = path};
    H5Pclose(p);
    if (h->file < 0) hdf_err(e, RC_CANTCREAT, path, "cannot create the file");
    return h->file >= 0;
}

bool hdf_open(struct hdf *h, const char *path, struct err *e)
{
    hdf_quiet();
    *h = (struct hdf){.file = -1, .path = path};
    struct stat st;
    if (stat(path, &st) != 0) {
        err_set(e, errno == ENOENT ? RC_NOINPUT : RC_IO, "%s: %s", path, strerror(errno));
        return false;
    }
    if (!S_ISREG(st.st_mode)) {
        err_set(e, RC_DATA, "%s: not a regular file", path);
        return false;
    }
    h->bytes = st.st_size;
    const hid_t p = access_list(false);
    h->file = H5Fopen(path, H5F_ACC_RDONLY, p);
    H5Pclose(p);
    if (h->file < 0) hdf_err(e, RC_DATA, path, "not an HDF5 file, or damaged, or cut off");
    return h->file >= 0;
}

bool hdf_close(struct hdf *h, struct err *e)
{
    hdf_quiet();
    const bool ok = h->file < 0 || H5Fclose(h->file) >= 0;
    h->file = -1;
    if (!ok && !e->code) hdf_err(e, RC_IO, h->path, "cannot write the end of the file");
    return ok;
}

bool hdf_group(const struct hdf *h, const char *name, struct err *e)
{
    const hid_t g = H5Gcreate2(h->file, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    if (g < 0) return unwritten(h, name, e);
    H5Gclose(g);
    return true;
}

/* ---- attributes -------------------------------------------------------------------------------*/
static hid_t text_type(size_t n)
{
    const hid_t t = H5Tcopy(H5T_C_S1);
    H5Tset_size(t, n ? n : 1);
    H5Tset_strpad(t, H5T_STR_NULLPAD);
    H5Tset_cset(t, H5T_CSET_UTF8);
    return t;
}

static bool put_attribute(const struct hdf *h, const char *object, const char *name, hid_t type,
                          const void *v, struct err *e)
{
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t a = H5Acreate_by_name(h->file, object, name, type, space, H5P_DEFAULT, H5P_DEFAULT,
                                      H5P_DEFAULT);
    bool ok = a >= 0 && H5Awrite(a, type, v) >= 0;
    if (!ok) unwritten(h, name, e);
    if (a >= 0) H5Aclose(a);
    H5Sclose(space);
    return ok;
}

bool hdf_put_text(const struct hdf *h, const char *object, const char *name, const char *v,
                  struct err *e)
{
    const hid_t t = text_type(strlen(v));
    const bool ok = put_attribute(h, object, name, t, v, e);
    H5Tclose(t);
    return ok;
}

bool hdf_put_int(const struct hdf *h, const char *object, const char *name, int64_t v,
                 struct err *e)
{
    return put_attribute(h, object, name, H5T_NATIVE_INT64, &v, e);
}

bool hdf_put_real(const struct hdf *h, const char *object, const char *name, double v,
                  struct err *e)
{
    return put_attribute(h, object, name, H5T_NATIVE_DOUBLE, &v, e);
}

/* An attribute with one value of this class. */
static hid_t open_attribute(const struct hdf *h, const char *object, const char *name,
                            H5T_class_t class, struct err *e)
{
    if (H5Aexists_by_name(h->file, object, name, H5P_DEFAULT) <= 0) {
        char what[128];
        snprintf(what, sizeof what, "has no attribute \"%s\"", name);
        bad(h, object, what, e);
        return -1;
    }
    const hid_t a = H5Aopen_by_name(h->file, object, name, H5P_DEFAULT, H5P_DEFAULT);
    if (a >= 0) {
        const hid_t t = H5Aget_type(a), s = H5Aget_space(a);
        const bool ok =
            t >= 0 && s >= 0 && H5Tget_class(t) == class && H5Sget_simple_extent_npoints(s) == 1;
        if (t >= 0) H5Tclose(t);
        if (s >= 0) H5Sclose(s);
        if (ok) return a;
        H5Aclose(a);
    }
    bad(h, name, "is not an attribute of the expected type", e);
    return -1;
}

bool hdf_get_text(const struct hdf *h, const char *object, const char *name, char *out, size_t room,
                  struct err *e)
{
    const hid_t a = open_attribute(h, object, name, H5T_STRING, e);
    if (a < 0) return false;
    const hid_t t = H5Aget_type(a);
    const size_t n = H5Tget_size(t);
    bool ok = H5Tis_variable_str(t) == 0 && n < room;
    memset(out, 0, room);
    ok = ok && H5Aread(a, t, out) >= 0;
    if (!ok) bad(h, name, "cannot be read", e);
    H5Tclose(t);
    H5Aclose(a);
    return ok;
}

static bool get_number(const struct hdf *h, const char *object, const char *name, H5T_class_t class,
                       hid_t type, void *v, struct err *e)
{
    const hid_t a = open_attribute(h, object, name, class, e);
    if (a < 0) return false;
    const bool ok = H5Aread(a, type, v) >= 0;
    if (!ok) bad(h, name, "cannot be read", e);
    H5Aclose(a);
    return ok;
}

bool hdf_get_int(const struct hdf *h, const char *object, const char *name, int64_t *v,
                 struct err *e)
{
    return get_number(h, object, name, H5T_INTEGER, H5T_NATIVE_INT64, v, e);
}

bool hdf_get_real(const struct hdf *h, const char *object, const char *name, double *v,
                  struct err *e)
{
    return get_number(h, object, name, H5T_FLOAT, H5T_NATIVE_DOUBLE, v, e);
}

/* ---- writing arrays ---------------------------------------------------------------------------*/
static bool put_array(const struct hdf *h, const char *name, hid_t type, bool deflate,
                      const void *v, int64_t n, struct err *e)
{
    const hsize_t dim = (hsize_t)n, chunk = n < CHUNK_ITEMS ? (hsize_t)n : CHUNK_ITEMS;
    const hid_t space = H5Screate_simple(1, &dim, NULL), p = H5Pcreate(H5P_DATASET_CREATE);
    if (n > 0) {
        H5Pset_chunk(p, 1, &chunk);
        if (deflate) H5Pset_deflate(p, 4);
        H5Pset_fletcher32(p);
    }
    const hid_t d = H5Dcreate2(h->file, name, type, space, H5P_DEFAULT, p, H5P_DEFAULT);
    bool ok = d >= 0 && (n == 0 || H5Dwrite(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, v) >= 0);
    if (!ok) unwritten(h, name, e);
    if (d >= 0) H5Dclose(d);
    H5Pclose(p);
    H5Sclose(space);
    return ok;
}

bool hdf_put_ints(const struct hdf *h, const char *name, const int64_t *v, int64_t n, struct err *e)
{
    return put_array(h, name, H5T_NATIVE_INT64, false, v, n, e);
}

bool hdf_put_texts(const struct hdf *h, const char *name, char *const *v, int64_t n, struct err *e)
{
    size_t width = 1;
    for (int64_t i = 0; i < n; i++) {
        if (strlen(v[i]) > width) width = strlen(v[i]);
    }
    CHECK(width <= MAX_TEXT, "%s: text of %zu bytes", name, width);
    char *all = calloc((size_t)n + 1, width);
    CHECK(all, "out of memory");
    for (int64_t i = 0; i < n; i++) memcpy(all + (size_t)i * width, v[i], strlen(v[i]));
    const hid_t t = text_type(width);
    const bool ok = put_array(h, name, t, true, all, n, e);
    H5Tclose(t);
    free(all);
    return ok;
}

hid_t hdf_rows(const struct hdf *h, const char *name, int rank, const int64_t *dim,
               const int64_t *chunk, struct err *e)
{
    hsize_t now[MAX_RANK], most[MAX_RANK], piece[MAX_RANK];
    for (int i = 0; i < rank; i++) {
        now[i] = (hsize_t)dim[i];
        most[i] = i ? (hsize_t)dim[i] : H5S_UNLIMITED;
        piece[i] = (hsize_t)chunk[i];
    }
    const hid_t space = H5Screate_simple(rank, now, most), p = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(p, rank, piece);
    H5Pset_fletcher32(p);
    const hid_t d = H5Dcreate2(h->file, name, H5T_NATIVE_FLOAT, space, H5P_DEFAULT, p, H5P_DEFAULT);
    if (d < 0) unwritten(h, name, e);
    H5Pclose(p);
    H5Sclose(space);
    return d;
}

/* Selects rows [first, first+rows) in the file; returns the spaces of file and memory. */
static bool select_rows(hid_t set, int64_t first, int64_t rows, hid_t *file, hid_t *memory)
{
    hsize_t dim[MAX_RANK], start[MAX_RANK] = {(hsize_t)first};
    *file = H5Dget_space(set);
    *memory = -1;
    const int rank = H5Sget_simple_extent_dims(*file, dim, NULL);
    if (rank < 1 || first < 0 || rows < 1 || (hsize_t)(first + rows) > dim[0]) return false;
    dim[0] = (hsize_t)rows;
    *memory = H5Screate_simple(rank, dim, NULL);
    return H5Sselect_hyperslab(*file, H5S_SELECT_SET, start, NULL, dim, NULL) >= 0;
}

bool hdf_append(const struct hdf *h, hid_t set, int64_t first, int64_t rows, const float *v,
                struct err *e)
{
    hsize_t dim[MAX_RANK];
    hid_t file = H5Dget_space(set), memory = -1;
    H5Sget_simple_extent_dims(file, dim, NULL);
    H5Sclose(file);
    dim[0] = (hsize_t)(first + rows);
    bool ok = H5Dset_extent(set, dim) >= 0;
    ok = ok && select_rows(set, first, rows, &file, &memory) &&
         H5Dwrite(set, H5T_NATIVE_FLOAT, memory, file, H5P_DEFAULT, v) >= 0;
    if (!ok) unwritten(h, "a sample", e);
    if (memory >= 0) {
        H5Sclose(memory);
        H5Sclose(file);
    }
    return ok;
}

/* ---- reading arrays ---------------------------------------------------------------------------*/
/* Deflate shrinks at most about 1030 times: an array that claims more is damaged. */
static bool plausible(const struct hdf *h, int64_t n, size_t width)
{
    return width > 0 && n >= 0 && n <= (h->bytes * 1100 + (1 << 20)) / (int64_t)width;
}

/* Opens a one-dimensional array and checks its class and length. */
static hid_t open_array(const struct hdf *h, const char *name, H5T_class_t class, int64_t want,
                        int64_t *n, size_t *width, struct err *e)
{
    const hid_t d = H5Dopen2(h->file, name, H5P_DEFAULT);
    if (d < 0) {
        bad(h, name, "cannot be opened", e);
        return -1;
    }
    const hid_t t = H5Dget_type(d), s = H5Dget_space(d);
    hsize_t dim = 0;
    *width = t >= 0 ? H5Tget_size(t) : 0;
    bool ok = t >= 0 && s >= 0 && H5Tget_class(t) == class && *width > 0 && *width <= MAX_TEXT &&
              (class != H5T_STRING || H5Tis_variable_str(t) == 0) &&
              H5Sget_simple_extent_ndims(s) == 1 && H5Sget_simple_extent_dims(s, &dim, NULL) == 1;
    *n = dim < ((hsize_t)1 << 48) ? (int64_t)dim : -1;
    ok = ok && plausible(h, *n, *width) && (want < 0 || *n == want);
    if (t >= 0) H5Tclose(t);
    if (s >= 0) H5Sclose(s);
    if (ok) return d;
    bad(h, name, "has the wrong type or length", e);
    H5Dclose(d);
    return -1;
}

int64_t *hdf_get_ints(const struct hdf *h, const char *name, int64_t n, int64_t *got, struct err *e)
{
    size_t width;
    int64_t have;
    const hid_t d = open_array(h, name, H5T_INTEGER, n, &have, &width, e);
    if (d < 0) return NULL;
    int64_t *v = calloc((size_t)have + 1, sizeof *v);
    CHECK(v, "out of memory");
    if (have && H5Dread(d, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, v) < 0) {
        bad(h, name, "cannot be read", e);
        free(v);
        v = NULL;
    }
    H5Dclose(d);
    if (v && n < 0) *got = have;
    return v;
}

char **hdf_get_texts(const struct hdf *h, const char *name, int64_t n, int64_t *got, struct err *e)
{
    size_t width;
    int64_t have;
    const hid_t d = open_array(h, name, H5T_STRING, n, &have, &width, e);
    if (d < 0) return NULL;
    char *all = calloc((size_t)have + 1, width);
    CHECK(all, "out of memory");
    const hid_t t = H5Dget_type(d);
    const bool ok = have == 0 || H5Dread(d, t, H5S_ALL, H5S_ALL, H5P_DEFAULT, all) >= 0;
    if (!ok) bad(h, name, "cannot be read", e);
    H5Tclose(t);
    H5Dclose(d);
    char **v = NULL;
    if (ok) { /* one block: pointers, then the texts */
        size_t bytes = ((size_t)have + 1) * sizeof *v;
        for (int64_t i = 0; i < have; i++) bytes += strnlen(all + (size_t)i * width, width) + 1;
        v = calloc(1, bytes);
        CHECK(v, "out of memory");
        char *p = (char *)(v + have + 1);
        for (int64_t i = 0; i < have; i++) {
            const size_t m = strnlen(all + (size_t)i * width, width);
            v[i] = memcpy(p, all + (size_t)i * width, m);
            p += m + 1;
        }
        if (n < 0) *got = have;
    }
    free(all);
    return v;
}

void hdf_free_texts(char **v) { free(v); }

hid_t hdf_open_rows(const struct hdf *h, const char *name, int rank, int64_t *dim, struct err *e)
{
    const hid_t d = H5Dopen2(h->file, name, H5P_DEFAULT);
    if (d < 0) {
        bad(h, name, "cannot be opened", e);
        return -1;
    }
    const hid_t t = H5Dget_type(d), s = H5Dget_space(d);
    hsize_t have[MAX_RANK] = {0};
    bool ok = t >= 0 && s >= 0 && H5Tget_class(t) == H5T_FLOAT && H5Tget_size(t) == 4 &&
              H5Sget_simple_extent_ndims(s) == rank &&
              H5Sget_simple_extent_dims(s, have, NULL) == rank;
    int64_t total = 4;
    for (int i = 0; ok && i < rank; i++) {
        ok = have[i] < ((hsize_t)1 << 40) && (have[i] == 0 || total <= h->bytes / (int64_t)have[i]);
        dim[i] = (int64_t)have[i];
        total *= dim[i];
    }
    if (t >= 0) H5Tclose(t);
    if (s >= 0) H5Sclose(s);
    if (ok) return d;
    bad(h, name, "has the wrong type or shape, or is larger than the file", e);
    H5Dclose(d);
    return -1;
}

bool hdf_read_rows(const struct hdf *h, hid_t set, const char *name, int64_t first, int64_t rows,
                   float *out, struct err *e)
{
    hid_t file, memory;
    const bool ok = select_rows(set, first, rows, &file, &memory) &&
                    H5Dread(set, H5T_NATIVE_FLOAT, memory, file, H5P_DEFAULT, out) >= 0;
    if (!ok) {
        char what[96];
        snprintf(what, sizeof what, "rows %lld to %lld cannot be read", (long long)first,
                 (long long)(first + rows - 1));
        bad(h, name, what, e);
    }
    if (file >= 0) H5Sclose(file);
    if (memory >= 0) H5Sclose(memory);
    return ok;
}
