#include "tests/h5.h"

#include <dirent.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"

long long h5_open(const char *path)
{
    const hid_t f = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    CHECK(f >= 0, "cannot open %s", path);
    return f;
}

void h5_close(long long file) { H5Fclose((hid_t)file); }

bool h5_has(long long file, const char *path)
{
    char part[512];
    snprintf(part, sizeof part, "%s", path);
    for (char *s = part + 1; *s; s++)
        if (*s == '/') {
            *s = 0;
            const bool there = H5Lexists((hid_t)file, part, H5P_DEFAULT) > 0;
            *s = '/';
            if (!there) return false;
        }
    return H5Lexists((hid_t)file, path, H5P_DEFAULT) > 0;
}

struct h5_array h5_read(long long file, const char *path)
{
    struct h5_array a = {.count = 1};
    CHECK(h5_has(file, path), "no dataset %s", path);
    const hid_t d = H5Dopen2((hid_t)file, path, H5P_DEFAULT);
    CHECK(d >= 0, "cannot open dataset %s", path);
    const hid_t s = H5Dget_space(d), t = H5Dget_type(d);
    hsize_t dim[8];
    a.ndim = H5Sget_simple_extent_ndims(s);
    CHECK(a.ndim <= 8, "%s has %d dimensions", path, a.ndim);
    H5Sget_simple_extent_dims(s, dim, NULL);
    for (int i = 0; i < a.ndim; i++) {
        a.dim[i] = (int64_t)dim[i];
        a.count *= a.dim[i];
    }
    a.stored_f64 = H5Tget_class(t) == H5T_FLOAT && H5Tget_size(t) == 8;
    a.v = calloc((size_t)a.count + 1, sizeof *a.v);
    CHECK(a.v && H5Dread(d, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, a.v) >= 0,
          "cannot read %s", path);
    H5Tclose(t);
    H5Sclose(s);
    H5Dclose(d);
    return a;
}

void h5_free(struct h5_array *a)
{
    free(a->v);
    a->v = NULL;
}

bool h5_has_attr(long long file, const char *object, const char *name)
{
    return H5Aexists_by_name((hid_t)file, object, name, H5P_DEFAULT) > 0;
}

double h5_attr(long long file, const char *object, const char *name)
{
    const hid_t a = H5Aopen_by_name((hid_t)file, object, name, H5P_DEFAULT, H5P_DEFAULT);
    CHECK(a >= 0, "%s has no attribute %s", object, name);
    double v[16] = {0};
    CHECK(H5Aread(a, H5T_NATIVE_DOUBLE, v) >= 0, "attribute %s of %s", name, object);
    H5Aclose(a);
    return v[0];
}

void h5_attr_text(long long file, const char *object, const char *name, char *out, int size)
{
    const hid_t a = H5Aopen_by_name((hid_t)file, object, name, H5P_DEFAULT, H5P_DEFAULT);
    CHECK(a >= 0, "%s has no attribute %s", object, name);
    const hid_t t = H5Aget_type(a);
    const size_t n = H5Tget_size(t);
    char *text = calloc(n + 1, 1);
    CHECK(text && H5Aread(a, t, text) >= 0, "attribute %s of %s", name, object);
    snprintf(out, (size_t)size, "%s", text);
    free(text);
    H5Tclose(t);
    H5Aclose(a);
}

struct visit {
    void (*f)(void *, const char *, bool);
    void *arg;
};

static herr_t on_link(hid_t group, const char *name, const H5L_info_t *info, void *arg)
{
    (void)info;
    const struct visit *v = arg;
    H5O_info_t o;
    if (H5Oget_info_by_name(group, name, &o, H5P_DEFAULT) < 0) return -1;
    v->f(v->arg, name, o.type == H5O_TYPE_GROUP);
    return 0;
}

void h5_each(long long file, const char *group, void (*f)(void *, const char *, bool), void *arg)
{
    struct visit v = {f, arg};
    const hid_t g = H5Gopen2((hid_t)file, group, H5P_DEFAULT);
    CHECK(g >= 0, "no group %s", group);
    H5Literate(g, H5_INDEX_NAME, H5_ITER_INC, NULL, on_link, &v);
    H5Gclose(g);
}

const char *golden_dir(void)
{
    const char *d = getenv("GOLDEN_DIR");
    return d && *d ? d : "tests/golden";
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int golden_files(const char *prefix, void (*f)(void *arg, long long file, const char *name),
                 void *arg)
{
    char *names[256];
    int n = 0;
    DIR *d = opendir(golden_dir());
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d)) && n < 256;) {
        const size_t len = strlen(e->d_name);
        if (strncmp(e->d_name, prefix, strlen(prefix)) == 0 && len > 3 &&
            strcmp(e->d_name + len - 3, ".h5") == 0)
            names[n++] = strdup(e->d_name);
    }
    closedir(d);
    qsort(names, (size_t)n, sizeof *names, by_name);
    for (int i = 0; i < n; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", golden_dir(), names[i]);
        const long long file = h5_open(path);
        f(arg, file, names[i]);
        h5_close(file);
        free(names[i]);
    }
    return n;
}
