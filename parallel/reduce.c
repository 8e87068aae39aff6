#include "parallel/reduce.h"

void reduce_parts(struct tensor dst, const void *const *parts, int num_parts, bool add)
{
    const int64_t n = tensor_count(dst);
    if (dst.dtype == DT_F64) {
        double *x = dst.data;
        for (int64_t i = 0; i < n; i++) {
            double s = add ? x[i] : 0;
            for (int r = 0; r < num_parts; r++) s += ((const double *)parts[r])[i];
            x[i] = s;
        }
    } else {
        float *x = dst.data;
        for (int64_t i = 0; i < n; i++) {
            double s = add ? (double)x[i] : 0;
            for (int r = 0; r < num_parts; r++) s += (double)((const float *)parts[r])[i];
            x[i] = (float)s;
        }
    }
}
