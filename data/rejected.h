/* The clips a data set was built without, for reports (data/dataset.h: /rejected). */
#ifndef DATA_REJECTED_H
#define DATA_REJECTED_H
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
struct rejected {
    int64_t n;
    char **path, **rule, **detail;
};
bool rejected_read(const char *data_set, struct rejected *r, struct err *e);
void rejected_free(struct rejected *r);
#endif
