/* The HDF5 side of checkpoints: one file per rank with contiguous datasets whose bytes are written
 * by plain pwrite, and state.h5 with virtual datasets that show every tensor whole. */
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "parallel/checkpoint.h"

static hid_t h5_type(const char *dtype)
{
    return strcmp(dtype, "f64") == 0 ? H5T_IEEE_F64LE : H5T_IEEE_F32LE;
}

/* Groups of "optim/m/name" are made on the way. */
static hid_t link_props(void)
{
    const hid_t p = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(p, 1);
    return p;
}

static bool put_number(hid_t obj, const char *name, hid_t type, const void *v, int n)
{
    const hsize_t dim = (hsize_t)n;
    const hid_t s = n > 1 ? H5Screate_simple(1, &dim, NULL) : H5Screate(H5S_SCALAR);
    const hid_t a = H5Acreate2(obj, name, type, s, H5P_DEFAULT, H5P_DEFAULT);
    const bool ok = a >= 0 && H5Awrite(a, type, v) >= 0;
    H5Aclose(a);
    H5Sclose(s);
    return ok;
}

static bool put_text(hid_t obj, const char *name, const char *text)
{
    const hid_t t = H5Tcopy(H5T_C_S1), s = H5Screate(H5S_SCALAR);
    H5Tset_size(t, strlen(text) + 1);
    H5Tset_cset(t, H5T_CSET_UTF8);
    const hid_t a = H5Acreate2(obj, name, t, s, H5P_DEFAULT, H5P_DEFAULT);
    const bool ok = a >= 0 && H5Awrite(a, t, text) >= 0;
    H5Aclose(a);
    H5Sclose(s);
    H5Tclose(t);
    return ok;
}

static bool create_piece(hid_t file, hid_t links, hid_t create, struct ckpt_piece *p)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", ckpt_kind_name(p->kind), p->name);
    const hsize_t n = (hsize_t)p->count;
    const hid_t space = H5Screate_simple(1, &n, NULL);
    const hid_t d =
        H5Dcreate2(file, path, h5_type(dtype_name(p->dtype)), space, links, create, H5P_DEFAULT);
    bool ok = d >= 0 && put_number(d, "shape", H5T_NATIVE_INT64, p->dim, p->ndim) &&
              put_number(d, "first", H5T_NATIVE_INT64, &p->first, 1);
    const haddr_t at = ok ? H5Dget_offset(d) : HADDR_UNDEF;
    ok = ok && at != HADDR_UNDEF;
    p->offset = (int64_t)at;
    H5Dclose(d);
    H5Sclose(space);
    return ok;
}

void ckpt_h5_create(const char *path, struct ckpt_piece *piece, int n, struct err *e)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const hid_t links = link_props(), create = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_layout(create, H5D_CONTIGUOUS);
    H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(create, H5D_FILL_TIME_NEVER);
    bool ok = file >= 0;
    for (int i = 0; ok && i < n; i++) ok = create_piece(file, links, create, &piece[i]);
    H5Pclose(create);
    H5Pclose(links);
    if (file >= 0 && H5Fclose(file) < 0) ok = false;
    if (!ok)
        err_set(e, RC_IO,
                "%s: HDF5 cannot create the file (disk full, file size limit or no permission?)",
                path);
}

struct box {
    hsize_t start[TENSOR_MAXDIM], count[TENSOR_MAXDIM];
};

/* Cuts the flat range [first, first+count) of an array into boxes, in order. */
static int boxes(int ndim, const hsize_t *dim, hsize_t first, hsize_t count, int level,
                 struct box *b, struct box *out)
{
    hsize_t inner = 1;
    for (int i = level + 1; i < ndim; i++) inner *= dim[i];
    if (level == ndim - 1) {
        b->start[level] = first;
        b->count[level] = count;
        *out = *b;
        return 1;
    }
    int n = 0;
    while (count) {
        const hsize_t row = first / inner, into = first % inner;
        hsize_t take;
        if (into || count < inner) { /* part of one row */
            take = inner - into < count ? inner - into : count;
            b->start[level] = row;
            b->count[level] = 1;
            n += boxes(ndim, dim, into, take, level + 1, b, out + n);
        } else { /* whole rows */
            const hsize_t rows = count / inner;
            take = rows * inner;
            b->start[level] = row;
            b->count[level] = rows;
            for (int i = level + 1; i < ndim; i++) b->start[i] = 0, b->count[i] = dim[i];
            out[n++] = *b;
        }
        first += take;
        count -= take;
    }
    return n;
}

static bool map_piece(hid_t create, hid_t whole, int ndim, const hsize_t *dim, const json_t *piece,
                      const char *source)
{
    struct box cut[4 * TENSOR_MAXDIM], b;
    hsize_t at = 0;
    const hsize_t first = (hsize_t)json_integer_value(json_object_get(piece, "first"));
    const hsize_t count = (hsize_t)json_integer_value(json_object_get(piece, "count"));
    const char *file = json_string_value(json_object_get(piece, "file"));
    const int n = boxes(ndim, dim, first, count, 0, &b, cut);
    const hid_t flat = H5Screate_simple(1, &count, NULL);
    bool ok = true;
    for (int i = 0; ok && i < n; i++) {
        hsize_t size = 1;
        for (int k = 0; k < ndim; k++) size *= cut[i].count[k];
        H5Sselect_hyperslab(whole, H5S_SELECT_SET, cut[i].start, NULL, cut[i].count, NULL);
        H5Sselect_hyperslab(flat, H5S_SELECT_SET, &at, NULL, &size, NULL);
        ok = H5Pset_virtual(create, whole, file, source, flat) >= 0;
        at += size;
    }
    H5Sclose(flat);
    return ok;
}

static bool virtual_tensor(hid_t file, hid_t links, const json_t *t)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", json_string_value(json_object_get(t, "kind")),
             json_string_value(json_object_get(t, "name")));
    const json_t *shape = json_object_get(t, "shape"), *pieces = json_object_get(t, "pieces");
    const int ndim = (int)json_array_size(shape);
    hsize_t dim[TENSOR_MAXDIM];
    for (int i = 0; i < ndim; i++)
        dim[i] = (hsize_t)json_integer_value(json_array_get(shape, (size_t)i));
    const hid_t create = H5Pcreate(H5P_DATASET_CREATE), whole = H5Screate_simple(ndim, dim, NULL);
    bool ok = true;
    for (size_t i = 0; ok && i < json_array_size(pieces); i++)
        ok = map_piece(create, whole, ndim, dim, json_array_get(pieces, i), path);
    H5Sselect_all(whole);
    const hid_t d =
        ok ? H5Dcreate2(file, path, h5_type(json_string_value(json_object_get(t, "dtype"))), whole,
                        links, create, H5P_DEFAULT)
           : -1;
    ok = d >= 0;
    if (ok) H5Dclose(d);
    H5Sclose(whole);
    H5Pclose(create);
    return ok;
}

void ckpt_h5_state(const char *path, const json_t *tensors, const json_t *meta, struct err *e)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(fapl, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST); /* virtual datasets */
    const hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, fapl);
    const hid_t links = link_props();
    bool ok = file >= 0;
    for (size_t i = 0; ok && i < json_array_size(tensors); i++)
        ok = virtual_tensor(file, links, json_array_get(tensors, i));
    const hid_t g = ok ? H5Gcreate2(file, "meta", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT) : -1;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)meta, key, v)
    {
        if (!ok) break;
        if (json_is_string(v) && json_string_length(v) < 60000) {
            ok = put_text(g, key, json_string_value(v));
        } else if (json_is_number(v)) {
            const double x = json_number_value(v);
            ok = put_number(g, key, H5T_NATIVE_DOUBLE, &x, 1);
        } else {
            char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
            if (text && strlen(text) < 60000) ok = put_text(g, key, text);
            free(text);
        }
    }
    if (g >= 0) H5Gclose(g);
    H5Pclose(links);
    H5Pclose(fapl);
    if (file >= 0 && H5Fclose(file) < 0) ok = false;
    if (!ok) err_set(e, RC_IO, "%s: HDF5 cannot write the file", path);
}
