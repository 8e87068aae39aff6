#include "core/ref/ref.h"

#define REAL double
#define OPS table
#include "core/ref/ops.inc"

const struct dev_ops *ref_ops_f64(void) { return &table; }
