/* A libcuda.so.1 that does nothing, so that cuDNN makes and compiles plans on a machine without a
 * driver: every call succeeds, handles are not NULL. cuInit fails as that of NVIDIA's stub does,
 * since the runtime compiler asks it for more than that otherwise. */
#include <stdint.h>
#include <string.h>

static int nothing(void) { return 0; }
static int some(void **handle)
{
    static int it;
    *handle = &it;
    return 0;
}

int cuInit(unsigned flags)
{
    (void)flags;
    return 34; /* CUDA_ERROR_STUB_LIBRARY */
}

int cuDriverGetVersion(int *version)
{
    *version = 13000;
    return 0;
}

int cuGetProcAddress_v2(const char *name, void **f, int version, uint64_t flags, int *found)
{
    static const struct {
        const char *name;
        void *f;
    } known[] = {{"cuInit", (void *)cuInit},
                 {"cuDriverGetVersion", (void *)cuDriverGetVersion},
                 {"cuGetProcAddress", (void *)cuGetProcAddress_v2},
                 {"cuGetProcAddress_v2", (void *)cuGetProcAddress_v2}};
    (void)version, (void)flags;
    *f = (void *)nothing;
    for (int i = 0; i < 4; i++)
        if (strcmp(name, known[i].name) == 0) *f = known[i].f;
    if (found) *found = 0;
    return 0;
}

int cuLibraryLoadData(void **library) { return some(library); }
int cuLibraryLoadFromFile(void **library) { return some(library); }
int cuLibraryGetKernel(void **kernel) { return some(kernel); }
int cuModuleLoadData(void **module) { return some(module); }
int cuModuleLoadDataEx(void **module) { return some(module); }
int cuModuleLoadFatBinary(void **module) { return some(module); }
int cuModuleGetFunction(void **function) { return some(function); }
int cuGetErrorString(int code, const char **text)
{
    (void)code;
    *text = "said by a driver that does nothing";
    return 0;
}

#define NOTHING(name) \
    int name(void) { return 0; }
NOTHING(cuCtxGetCurrent)
NOTHING(cuCtxGetDevice)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxPopCurrent)
NOTHING(cuCtxPushCurrent)
NOTHING(cuCtxSetCurrent)
NOTHING(cuDeviceGet)
NOTHING(cuDeviceGetAttribute)
NOTHING(cuDeviceGetCount)
NOTHING(cuDevicePrimaryCtxRelease)
NOTHING(cuDevicePrimaryCtxReset)
NOTHING(cuDevicePrimaryCtxRetain)
NOTHING(cuFuncGetAttribute)
NOTHING(cuFuncSetAttribute)
NOTHING(cuGetErrorName)
NOTHING(cuKernelGetAttribute)
NOTHING(cuKernelGetFunction)
NOTHING(cuKernelSetAttribute)
NOTHING(cuLaunchCooperativeKernel)
NOTHING(cuLaunchKernel)
NOTHING(cuLaunchKernelEx)
NOTHING(cuLibraryGetGlobal)
NOTHING(cuLibraryGetModule)
NOTHING(cuLibraryUnload)
NOTHING(cuLinkAddData)
NOTHING(cuLinkAddData_v2)
NOTHING(cuLinkAddFile)
NOTHING(cuLinkAddFile_v2)
NOTHING(cuLinkComplete)
NOTHING(cuLinkCreate)
NOTHING(cuLinkCreate_v2)
NOTHING(cuLinkDestroy)
NOTHING(cuMemcpyDtoH_v2)
NOTHING(cuModuleGetGlobal)
NOTHING(cuModuleGetGlobal_v2)
NOTHING(cuModuleUnload)
NOTHING(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NOTHING(cuOccupancyMaxPotentialClusterSize)
NOTHING(cuStreamGetCtx)
NOTHING(cuStreamSynchronize)
NOTHING(cuTensorMapEncodeTiled)
