#include "data/rejected.h"

#include <string.h>

#include "data/hdf.h"

bool rejected_read(const char *data_set, struct rejected *r, struct err *e)
{
    memset(r, 0, sizeof *r);
    struct hdf h;
    pthread_mutex_lock(&hdf_lock);
    bool ok = hdf_open(&h, data_set, e);
    if (ok) {
        r->path = hdf_get_texts(&h, "/rejected/path", -1, &r->n, e);
        if (r->path) r->rule = hdf_get_texts(&h, "/rejected/rule", r->n, NULL, e);
        if (r->rule) r->detail = hdf_get_texts(&h, "/rejected/detail", r->n, NULL, e);
        ok = r->detail != NULL;
        struct err closing = {0}; /* the file was only read: nothing can be lost */
        hdf_close(&h, &closing);
    }
    pthread_mutex_unlock(&hdf_lock);
    if (!ok) rejected_free(r);
    return ok;
}

void rejected_free(struct rejected *r)
{
    if (r->path) hdf_free_texts(r->path);
    if (r->rule) hdf_free_texts(r->rule);
    if (r->detail) hdf_free_texts(r->detail);
    memset(r, 0, sizeof *r);
}
