#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/checkpoint.h"

void ckpt_require_same(const struct ckpt *c, const char *key, json_t *now)
{
    json_t *then = json_object_get(ckpt_meta(c), key), *v;
    char text[2048] = "";
    const char *name;
    json_object_foreach(now, name, v)
    {
        json_t *w = json_object_get(then, name);
        if (w && json_equal(v, w)) continue;
        char *a = w ? json_dumps(w, JSON_ENCODE_ANY | JSON_COMPACT) : strdup("nothing");
        char *b = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        const size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "\n  %s: %s in the checkpoint, %s now", name, a,
                 b);
        free(a);
        free(b);
    }
    if (text[0])
        err_stop(RC_CONFIG, "%s does not belong to this configuration; use another output_dir:%s",
                 ckpt_path(c), text);
}
