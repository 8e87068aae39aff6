#include "model/rope.h"

#include <math.h>
#include <stdlib.h>

double rope_angle(int pos, int pair, int pairs_of_axis)
{
    return pos / pow(10000, (double)pair / pairs_of_axis);
}

void rope_init(struct rope *r, struct dev *dev, int head_dim, int max_pos)
{
    const int half = head_dim / 2, third = half / 3;
    const enum dtype S = dtype_state(dev->compute);
    *r = (struct rope){.pairs = {half - 2 * third, third, third}};
    for (int axis = 0; axis < 3; axis++) {
        const int n = r->pairs[axis];
        double *table = calloc((size_t)max_pos * (size_t)n * 2 + 1, sizeof *table);
        CHECK(table, "out of memory");
        double *sines = table + (size_t)max_pos * (size_t)n;
        for (int p = 0; p < max_pos; p++)
            for (int i = 0; i < n; i++) {
                table[p * n + i] = cos(rope_angle(p, i, n));
                sines[p * n + i] = sin(rope_angle(p, i, n));
            }
        r->cos[axis] = dev_tensor(dev, S, 2, DIMS(max_pos, n));
        r->sin[axis] = dev_tensor(dev, S, 2, DIMS(max_pos, n));
        dev_put_f64(dev, r->cos[axis], table);
        dev_put_f64(dev, r->sin[axis], sines);
        free(table);
    }
}

void rope_free(struct rope *r, struct dev *dev)
{
    for (int axis = 0; axis < 3; axis++) {
        if (r->cos[axis].data) dev_free(dev, r->cos[axis].data);
        if (r->sin[axis].data) dev_free(dev, r->sin[axis].data);
        r->cos[axis].data = r->sin[axis].data = NULL;
    }
}
