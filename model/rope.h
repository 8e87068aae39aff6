/* Rotary tables of docs/spec/model.md 1.5: of the head_dim/2 pairs c-2*(c/3) turn with t, c/3 with
 * the row, c/3 with the column; angles in double, cos and sin rounded once to S. */
#ifndef MODEL_ROPE_H
#define MODEL_ROPE_H
#include "core/dev.h"
void rope_init(struct rope *r, struct dev *dev, int head_dim, int max_pos);
void rope_free(struct rope *r, struct dev *dev);
double rope_angle(int pos, int pair, int pairs_of_axis);
#endif
