#include "core/program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"

/* Where the folder with scripts/ is, seen from the folder of the executable. Whoever installs the
 * program elsewhere than its scripts adds a line. */
static const char *const layouts[] = {
    "../..",    /* build/CONFIG/osp */
    "../../..", /* build/CONFIG/tests/test_x */
    "..",       /* bin/osp beside scripts/ */
    "."         /* osp and scripts/ in one folder */
};

char *program_tree(void)
{
    char exe[4096];
    const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = 0;
    char *slash = strrchr(exe, '/');
    if (!slash) return NULL;
    *slash = 0;
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        char *scripts = io_path("%s/%s/scripts", exe, layouts[i]);
        char *whole = realpath(scripts, NULL);
        free(scripts);
        if (!whole) continue;
        *strrchr(whole, '/') = 0;
        return whole;
    }
    return NULL;
}

char *program_find(const char *key, const char *path, struct err *e)
{
    if (io_exists(path)) return io_path("%s", path);
    if (path[0] == '/') {
        err_set(e, RC_NOINPUT, "%s: %s does not exist", key, path);
        return NULL;
    }
    char *tree = program_tree();
    char *file = tree ? io_path("%s/%s", tree, path) : NULL;
    if (file && io_exists(file)) {
        free(tree);
        return file;
    }
    char here[4096];
    if (!getcwd(here, sizeof here))
        snprintf(here, sizeof here, "(a working directory that is gone)");
    if (tree && strcmp(tree, here) == 0)
        err_set(e, RC_NOINPUT, "%s: %s does not exist; give its whole path", key, file);
    else
        err_set(e, RC_NOINPUT, "%s: %s is neither %s/%s nor %s; give its whole path", key, path,
                here, path, file ? file : "beside the program, which has no folder scripts/");
    free(file);
    free(tree);
    return NULL;
}
