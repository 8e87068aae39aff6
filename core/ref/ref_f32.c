#include "core/ref/ref.h"

#define REAL float
#define OPS table
#include "core/ref/ops.inc"

const struct dev_ops *ref_ops_f32(void) { return &table; }
