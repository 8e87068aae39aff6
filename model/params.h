/* Declaring parameters: name, shape, flags and initialisation (docs/spec/model.md 1.2, 1.7). */
#ifndef MODEL_PARAMS_H
#define MODEL_PARAMS_H
#include "core/param.h"
enum { UNIT_MAX_PARAMS = 32 };
/* The unit's param array must hold UNIT_MAX_PARAMS entries; pointers to them stay valid. */
struct param *param_add(struct unit *u, const char *prefix, const char *name, unsigned flags,
                        enum init_kind init, double scale, int ndim, const int64_t *dim);
/* Xavier-uniform weight [out,in] and zero bias [out]; std > 0: normal weight instead. */
struct param *param_add_weight(struct unit *u, const char *prefix, const char *layer, int64_t out,
                               int64_t in, double std);
struct param *param_add_bias(struct unit *u, const char *prefix, const char *layer, int64_t out);
#endif
