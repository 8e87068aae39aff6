#include "rl/scorer_device.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As CUDA reads the list: it ends at the first entry that is none. */
static int listed(const char *visible)
{
    int n = 0;
    for (const char *p = visible; *p && *p != '-' && *p != ','; n++) {
        p += strcspn(p, ",");
        p += *p == ',';
    }
    return strcmp(visible, "NoDevFiles") == 0 ? 0 : n;
}

int scorer_gpus(const char *dev, const char *visible)
{
    const char *told = getenv("OSP_GPUS");
    if (told && *told) {
        char *end;
        const long n = strtol(told, &end, 10);
        if (*end || n < 0 || n > 1024)
            err_stop(RC_CONFIG, "OSP_GPUS: \"%s\" in the environment is no number of GPUs", told);
        return (int)n;
    }
    int n = 0;
    DIR *d = opendir(dev);
    for (struct dirent *e; d && (e = readdir(d));)
        n += strncmp(e->d_name, "nvidia", 6) == 0 && e->d_name[6] &&
             !e->d_name[6 + strspn(e->d_name + 6, "0123456789")];
    if (d) closedir(d);
    const int most = visible ? listed(visible) : n;
    return most < n ? most : n;
}

/* "cuda:N" */
static bool numbered(const char *text)
{
    const size_t n = strncmp(text, "cuda:", 5) ? 0 : strspn(text + 5, "0123456789");
    return n > 0 && n < 6 && !text[5 + n];
}

bool scorer_device(const char *asked, int local_rank, int gpus, char out[SCORER_DEVICE],
                   struct err *e)
{
    const bool cuda = asked ? strcmp(asked, "cuda") == 0 : gpus > 0;
    if (cuda && gpus <= 0)
        err_set(e, RC_CONFIG,
                "reward.device: cuda, but no GPU is found here (files /dev/nvidia*, "
                "CUDA_VISIBLE_DEVICES); cpu works, slowly; cuda:0 insists");
    else if (cuda)
        snprintf(out, SCORER_DEVICE, "cuda:%d", local_rank % gpus);
    else if (!asked || strcmp(asked, "cpu") == 0 || numbered(asked))
        snprintf(out, SCORER_DEVICE, "%s", asked ? asked : "cpu");
    else
        err_set(e, RC_CONFIG, "reward.device: \"%s\" is none of cpu, cuda, cuda:N, null", asked);
    return e->code == 0;
}
