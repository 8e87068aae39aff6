/* Verb convert: makes one kind of checkpoint from others. One process, no MPI. */
#include "train/convert.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/io.h"
#include "parallel/checkpoint_dir.h"
#include "train/args.h"
#include "train/import_adapter.h"
#include "train/merge.h"
#include "train/session.h"
#include "train/verbs.h"

static const char usage[] =
    "osp convert merge BASE ADAPTER OUT [--ema] [--force-base]\n"
    "Folds the adapters of a LoRA run into the weights they were made for: W + alpha/r B A. OUT "
    "is\n"
    "a run folder that osp sample and osp train (resume: OUT) open. --ema: the averaged adapters;\n"
    "--force-base: although they were made for other weights.\n"
    "\n"
    "osp convert adapter PEFT_DIR BASE OUT [--raw] [--force]\n"
    "Makes adapters from a folder of peft (adapter_config.json, adapter_model.safetensors or "
    ".bin),\n"
    "declared to be for the weights of BASE: the averaged ones where it has them, or with --raw "
    "the\n"
    "others. OUT is a run folder that osp sample (lora), osp convert merge and osp rl\n"
    "(lora_config.lora_path) open. --force: although pairs are missing.";

/* More than what a job that was stopped leaves behind, which ckpt_write removes. */
static bool in_use(const char *dir)
{
    DIR *d = opendir(dir);
    if (!d) return io_exists(dir);
    bool used = false;
    for (const struct dirent *i; !used && (i = readdir(d));)
        used = strcmp(i->d_name, ".") && strcmp(i->d_name, "..") &&
               strcmp(i->d_name, "iter_000000000.tmp");
    closedir(d);
    return used;
}

/* A checkpoint, or a folder whose entries are: for a folder around OUT only where a run rotates. */
static bool of_checkpoints(const char *dir, bool around)
{
    int n;
    struct err e = {0};
    const char *name = strrchr(dir, '/');
    json_t *manifest = ckpt_manifest(dir, &e); /* not any file of that name */
    const bool is_one = manifest != NULL;
    json_decref(manifest);
    if (is_one || (around && strcmp(name ? name + 1 : dir, "checkpoints") != 0)) return is_one;
    struct ckpt_skipped skipped;
    struct ckpt_entry *list = ckpt_list(dir, &n, &skipped);
    ckpt_list_free(list, n);
    free(skipped.text);
    return n > 0;
}

/* The folder that holds `path`, or would; NULL above the root. The caller frees it. */
static char *holder_of(const char *path)
{
    char *real = realpath(path, NULL), *name = real ? real : io_path("%s", path);
    char *slash = strrchr(name, '/');
    if (!slash) {
        free(name);
        return realpath(".", NULL);
    }
    if (!slash[1] && slash == name) { /* "/" */
        free(name);
        return NULL;
    }
    slash[slash == name] = 0;
    return name;
}

char *convert_folder(const char *out)
{
    char *dir = io_path("%s/checkpoints", out);
    if (!*out) err_stop(RC_USAGE, "OUT is empty; name a folder for the result");
    if (in_use(dir))
        err_stop(RC_CANTCREAT, "%s exists; choose a folder for the result that does not", dir);
    bool around = false;
    for (char *at = io_path("%s", out), *up; at; free(at), at = up, around = true) {
        if (of_checkpoints(at, around))
            err_stop(RC_CANTCREAT,
                     "%s holds the checkpoints of a run, which would be hidden or rotate the "
                     "result away; choose another folder",
                     at);
        up = holder_of(at);
    }
    return dir;
}

struct lock convert_lock(struct comm *world, const char *out, const char *dir)
{
    struct lock lock = {.fd = -1};
    session_lock_output(world, &lock, true, out, "lock", "osp convert");
    if (in_use(dir)) {
        lock_release(&lock);
        err_stop(RC_CANTCREAT, "%s exists by now: another job has made it; choose another folder",
                 dir);
    }
    return lock;
}

/* The result names the folders that it was made of, in JSON. */
static void require_utf8(const char *path)
{
    json_t *text = json_string(path);
    if (!text)
        err_stop(RC_USAGE,
                 "the path \"%s\" is not UTF-8, as the description of the result must be; rename "
                 "it or give a symbolic link",
                 path);
    json_decref(text);
}

int verb_convert(int argc, char **argv)
{
    struct args a;
    args_parse(&a, argc, argv, usage);
    const bool merge = a.config && strcmp(a.config, "merge") == 0,
               adapter = a.config && strcmp(a.config, "adapter") == 0;
    if ((!merge && !adapter) || a.num_rest != 3 || a.num_sets || (merge && (a.raw || a.force)) ||
        (adapter && (a.ema || a.force_base)))
        err_stop(RC_USAGE, "%s", usage);
    for (int i = 0; i < 3; i++) require_utf8(a.rest[i]);
    if (merge)
        merge_adapter(&(struct merge_job){.base = a.rest[0],
                                          .adapter = a.rest[1],
                                          .out = a.rest[2],
                                          .ema = a.ema,
                                          .force_base = a.force_base});
    else
        import_adapter(&(struct import_job){.peft = a.rest[0],
                                            .base = a.rest[1],
                                            .out = a.rest[2],
                                            .raw = a.raw,
                                            .force = a.force});
    args_free(&a);
    return RC_OK;
}
