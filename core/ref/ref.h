/* Shared by the two precisions of the ref device: memory, formulas and ops on any dtype. */
#ifndef CORE_REF_REF_H
#define CORE_REF_REF_H
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/dev.h"
void *host_alloc(struct dev *d, size_t bytes);
void host_free(struct dev *d, void *p);
void host_copy(struct dev *d, void *dst, const void *src, size_t bytes);
void host_sync(struct dev *d);
double gelu(double z);
double gelu_slope(double z);
double noise_at(struct rng_key key, int64_t index);
/* Element of x [B,C,T,H,W] that feature f of row r holds; -1: padding. */
int64_t patch_element(struct tensor x, struct tensor pos, int64_t rows, int64_t r, int64_t f,
                      enum patch_order order);
void ref_sumsq(struct dev *d, struct tensor sum, const struct tensor *x, int n);
void ref_axpy(struct dev *d, struct tensor y, double a, struct tensor x);
void ref_scale(struct dev *d, struct tensor x, double a);
void ref_fill(struct dev *d, struct tensor x, double a);
void ref_cast(struct dev *d, struct tensor dst, struct tensor src);
const struct dev_ops *ref_ops_f32(void);
const struct dev_ops *ref_ops_f64(void);
#endif
