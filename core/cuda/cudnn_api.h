/* What core/cuda/cudnn.c uses of cudnn.h, under names of our own (DNN_X is CUDNN_X): the library is
 * opened at run time, and its header is not needed to build. Where it is found, the values are
 * compared with it. */
#ifndef CORE_CUDA_CUDNN_API_H
#define CORE_CUDA_CUDNN_API_H
#include <stddef.h>
#include <stdint.h>

#define CONSTANTS(X)                               \
    X(STATUS_SUCCESS, 0)                           \
    X(DATA_FLOAT, 0)                               \
    X(DATA_BFLOAT16, 9)                            \
    X(TYPE_HANDLE, 0)                              \
    X(TYPE_DATA_TYPE, 1)                           \
    X(TYPE_BOOLEAN, 2)                             \
    X(TYPE_INT64, 3)                               \
    X(TYPE_VOID_PTR, 6)                            \
    X(TYPE_HEUR_MODE, 8)                           \
    X(TYPE_POINTWISE_MODE, 14)                     \
    X(TYPE_BACKEND_DESCRIPTOR, 15)                 \
    X(TYPE_REDUCTION_OPERATOR_TYPE, 18)            \
    X(TYPE_CHAR, 24)                               \
    X(HEUR_MODE_FALLBACK, 2)                       \
    X(HEUR_MODE_A, 3)                              \
    X(POINTWISE_MUL, 1)                            \
    X(POINTWISE_SUB, 9)                            \
    X(POINTWISE_EXP, 13)                           \
    X(POINTWISE_IDENTITY, 21)                      \
    X(REDUCE_TENSOR_ADD, 0)                        \
    X(BACKEND_POINTWISE_DESCRIPTOR, 0)             \
    X(BACKEND_ENGINECFG_DESCRIPTOR, 3)             \
    X(BACKEND_ENGINEHEUR_DESCRIPTOR, 4)            \
    X(BACKEND_EXECUTION_PLAN_DESCRIPTOR, 5)        \
    X(BACKEND_OPERATION_POINTWISE_DESCRIPTOR, 13)  \
    X(BACKEND_OPERATIONGRAPH_DESCRIPTOR, 15)       \
    X(BACKEND_VARIANT_PACK_DESCRIPTOR, 16)         \
    X(BACKEND_TENSOR_DESCRIPTOR, 17)               \
    X(BACKEND_MATMUL_DESCRIPTOR, 18)               \
    X(BACKEND_OPERATION_MATMUL_DESCRIPTOR, 19)     \
    X(BACKEND_REDUCTION_DESCRIPTOR, 21)            \
    X(BACKEND_OPERATION_REDUCTION_DESCRIPTOR, 22)  \
    X(BACKEND_OPERATION_RESHAPE_DESCRIPTOR, 31)    \
    X(BACKEND_DEVICEPROP_DESCRIPTOR, 38)           \
    X(BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR, 41)   \
    X(ATTR_POINTWISE_MODE, 0)                      \
    X(ATTR_POINTWISE_MATH_PREC, 1)                 \
    X(ATTR_ENGINEHEUR_MODE, 200)                   \
    X(ATTR_ENGINEHEUR_OPERATION_GRAPH, 201)        \
    X(ATTR_ENGINEHEUR_RESULTS, 202)                \
    X(ATTR_ENGINEHEUR_DEVICEPROP, 204)             \
    X(ATTR_EXECUTION_PLAN_HANDLE, 400)             \
    X(ATTR_EXECUTION_PLAN_ENGINE_CONFIG, 401)      \
    X(ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, 402)     \
    X(ATTR_EXECUTION_PLAN_DEVICEPROP, 407)         \
    X(ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, 750) \
    X(ATTR_OPERATION_POINTWISE_XDESC, 751)         \
    X(ATTR_OPERATION_POINTWISE_BDESC, 752)         \
    X(ATTR_OPERATION_POINTWISE_YDESC, 753)         \
    X(ATTR_OPERATIONGRAPH_HANDLE, 800)             \
    X(ATTR_OPERATIONGRAPH_OPS, 801)                \
    X(ATTR_TENSOR_BYTE_ALIGNMENT, 900)             \
    X(ATTR_TENSOR_DATA_TYPE, 901)                  \
    X(ATTR_TENSOR_DIMENSIONS, 902)                 \
    X(ATTR_TENSOR_STRIDES, 903)                    \
    X(ATTR_TENSOR_UNIQUE_ID, 906)                  \
    X(ATTR_TENSOR_IS_VIRTUAL, 907)                 \
    X(ATTR_TENSOR_IS_BY_VALUE, 908)                \
    X(ATTR_VARIANT_PACK_UNIQUE_IDS, 1000)          \
    X(ATTR_VARIANT_PACK_DATA_POINTERS, 1001)       \
    X(ATTR_VARIANT_PACK_WORKSPACE, 1003)           \
    X(ATTR_MATMUL_COMP_TYPE, 1500)                 \
    X(ATTR_OPERATION_MATMUL_ADESC, 1520)           \
    X(ATTR_OPERATION_MATMUL_BDESC, 1521)           \
    X(ATTR_OPERATION_MATMUL_CDESC, 1522)           \
    X(ATTR_OPERATION_MATMUL_DESC, 1523)            \
    X(ATTR_REDUCTION_OPERATOR, 1600)               \
    X(ATTR_REDUCTION_COMP_TYPE, 1601)              \
    X(ATTR_OPERATION_REDUCTION_XDESC, 1610)        \
    X(ATTR_OPERATION_REDUCTION_YDESC, 1611)        \
    X(ATTR_OPERATION_REDUCTION_DESC, 1612)         \
    X(ATTR_OPERATION_RESHAPE_XDESC, 2200)          \
    X(ATTR_OPERATION_RESHAPE_YDESC, 2201)          \
    X(ATTR_DEVICEPROP_JSON_REPRESENTATION, 2702)   \
    X(ATTR_OPERATION_SDPA_FWD_QDESC, 2800)         \
    X(ATTR_OPERATION_SDPA_FWD_KDESC, 2801)         \
    X(ATTR_OPERATION_SDPA_FWD_VDESC, 2802)         \
    X(ATTR_OPERATION_SDPA_FWD_ODESC, 2803)         \
    X(ATTR_OPERATION_SDPA_FWD_STATSDESC, 2804)     \
    X(ATTR_OPERATION_SDPA_FWD_SCALEDESC, 2805)

#define DECLARE(name, value) DNN_##name = value,
/* 9.15.0 gives wrong gradients where the length of the keys is no multiple of 128. */
enum { CONSTANTS(DECLARE) DNN_OLDEST = 91501, DNN_SUCCESS = DNN_STATUS_SUCCESS };
#if defined(HAVE_CUDNN_H)
#include <cudnn.h>
#define COMPARE(name, value) \
    _Static_assert((int)DNN_##name == (int)CUDNN_##name, "cudnn.h has another CUDNN_" #name);
CONSTANTS(COMPARE)
#endif

struct library {
    size_t (*GetVersion)(void);
    size_t (*GetCudartVersion)(void); /* of the CUDA it was built for: 13010 is 13.1 */
    const char *(*GetErrorString)(int status);
    void (*GetLastErrorString)(char *text, size_t size);
    int (*Create)(void **handle);
    int (*Destroy)(void *handle);
    int (*SetStream)(void *handle, void *stream);
    int (*BackendCreateDescriptor)(int type, void **d);
    int (*BackendDestroyDescriptor)(void *d);
    int (*BackendFinalize)(void *d);
    int (*BackendSetAttribute)(void *d, int name, int type, int64_t n, const void *value);
    int (*BackendGetAttribute)(void *d, int name, int type, int64_t most, int64_t *n, void *value);
    int (*BackendExecute)(void *handle, void *plan, void *pack);
};
#endif
