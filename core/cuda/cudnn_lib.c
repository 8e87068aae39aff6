#include "core/cuda/cudnn_lib.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SYMBOL(name)                                  \
    {                                                 \
        "cudnn" #name, offsetof(struct library, name) \
    }
static const struct {
    const char *name;
    size_t at;
} symbols[] = {SYMBOL(GetVersion),
               SYMBOL(GetCudartVersion),
               SYMBOL(GetErrorString),
               SYMBOL(GetLastErrorString),
               SYMBOL(Create),
               SYMBOL(Destroy),
               SYMBOL(SetStream),
               SYMBOL(BackendFinalize),
               SYMBOL(BackendCreateDescriptor),
               SYMBOL(BackendSetAttribute),
               SYMBOL(BackendDestroyDescriptor),
               SYMBOL(BackendGetAttribute),
               SYMBOL(BackendExecute)};

/* cuDNN opens cuBLASLt and CUDA's runtime compiler (NVRTC) by their names when it looks for
 * engines. Without the first it ends the process; without the second it has hardly any engine. pip
 * puts them where the loader does not look: cuDNN finds them from there, but not NVRTC its own
 * second file. So they are opened before, and stay: what is loaded is found by its name. */

enum { MOST_PATH = 4096 };

/* The folder of the library that this is in. */
static void folder_of(void *symbol, char folder[MOST_PATH])
{
    Dl_info at;
    const bool known = dladdr(symbol, &at) && strchr(at.dli_fname, '/');
    snprintf(folder, MOST_PATH, "%s", known ? at.dli_fname : "./");
    *strrchr(folder, '/') = 0;
}

/* A file that is there and cannot be opened says more than one that is not. */
static void *try_open(const char *path, struct err *why)
{
    void *so = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    const char *said = so ? NULL : dlerror();
    if (said && (!why->code || access(path, F_OK) == 0)) err_set(why, RC_CONFIG, "%s", said);
    return so;
}

/* Loaded already or found by the loader; else in a folder, in pip's beside it, in the toolkit's. */
static void *open_needed(const char *name, const char *folder, int major, struct err *why)
{
    char cu[32], path[MOST_PATH + 128];
    snprintf(cu, sizeof cu, "../../cu%d/lib", major);
    const char *const at[] = {".", cu, "../../cublas/lib", "../../cuda_nvrtc/lib",
                              "/usr/local/cuda/lib64"};
    void *so = try_open(name, why);
    for (size_t i = 0; i < sizeof at / sizeof *at && !so; i++) {
        snprintf(path, sizeof path, "%s/%s/%s", at[i][0] == '/' ? "" : folder, at[i], name);
        so = try_open(path, why);
    }
    if (so) *why = (struct err){0};
    return so;
}

static void need_cublaslt(const char *folder, int major, struct err *why)
{
    struct err said = {0};
    char name[64];
    snprintf(name, sizeof name, "libcublasLt.so.%d", major);
    if (!open_needed(name, folder, major, &said))
        err_set(why, said.code,
                "cuDNN needs cuBLASLt of CUDA %d, which cannot be opened: %s; install it (pip: "
                "%s), or put its folder into LD_LIBRARY_PATH",
                major, said.msg, major < 13 ? "nvidia-cublas-cu12" : "nvidia-cublas");
}

/* OSP_NVRTC: the only folder that counts. */
static void need_nvrtc(const char *folder, int major, struct err *why)
{
    const char *named = getenv("OSP_NVRTC");
    struct err said = {0};
    char name[64], path[MOST_PATH];
    int (*version)(int *, int *), at[2] = {0, 0};
    snprintf(name, sizeof name, "libnvrtc.so.%d", major);
    snprintf(path, sizeof path, "%s/%s", named ? named : "", name);
    void *so = named ? try_open(path, &said) : open_needed(name, folder, major, &said);
    void *f = so ? dlsym(so, "nvrtcVersion") : NULL;
    if (so && !f) err_set(&said, RC_CONFIG, "%s has no nvrtcVersion", name);
    memcpy(&version, &f, sizeof version);
    if (f && version(&at[0], &at[1]) == 0) {
        folder_of(f, path);
        snprintf(name, sizeof name, "libnvrtc-builtins.so.%d.%d", at[0], at[1]);
        open_needed(name, path, major, &said);
    }
    if (said.code)
        err_set(why, said.code,
                "%sthe runtime compiler (NVRTC) of CUDA %d cannot be opened, and cuDNN needs it: "
                "%s; install it (pip: %s), or give its folder in OSP_NVRTC",
                named ? "OSP_NVRTC: " : "", major, said.msg,
                major < 13 ? "nvidia-cuda-nvrtc-cu12" : "nvidia-cuda-nvrtc");
}

void cudnn_lib_open(struct cudnn_lib *l, struct err *why)
{
    const char *named = getenv("OSP_CUDNN"), *file = named ? named : "libcudnn.so.9";
    l->so = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!l->so)
        err_set(why, RC_CONFIG,
                "%s; install cuDNN 9 (pip: nvidia-cudnn-cu13, nvidia-cublas, nvidia-cuda-nvrtc), "
                "or give its file in OSP_CUDNN",
                dlerror());
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols && !why->code; i++) {
        void *f = dlsym(l->so, symbols[i].name);
        if (!f) err_set(why, RC_CONFIG, "%s has no %s", file, symbols[i].name);
        memcpy((char *)&l->call + symbols[i].at, &f, sizeof f);
    }
    if (why->code) return;
    const int version = (int)l->call.GetVersion(), major = (int)l->call.GetCudartVersion() / 1000;
    if (version < DNN_OLDEST) {
        err_set(why, RC_CONFIG, "cuDNN %d.%d.%d is too old, 9.15.1 is needed", version / 10000,
                version / 100 % 100, version % 100);
        return;
    }
    char folder[MOST_PATH];
    folder_of(dlsym(l->so, "cudnnGetVersion"), folder);
    need_cublaslt(folder, major, why);
    if (!why->code) need_nvrtc(folder, major, getenv("OSP_NVRTC") ? why : &l->no_compiler);
}
