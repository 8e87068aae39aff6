#include "core/param.h"

#include <fnmatch.h>

int64_t param_count(const struct param *p)
{
    int64_t n = 1;
    for (int i = 0; i < p->ndim; i++) n *= p->dim[i];
    return n;
}

bool param_matches(const struct param *p, const char *pattern)
{
    return fnmatch(pattern, p->name, 0) == 0;
}
