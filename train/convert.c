/* Verb convert: makes one kind of checkpoint from others. One process, no MPI. */
#include "train/convert.h"

#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/io.h"

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

char *convert_folder(const char *out)
{
    char *dir = io_path("%s/checkpoints", out);
    if (io_exists(dir))
        err_stop(RC_CANTCREAT, "%s exists; choose a folder for the result that does not", dir);
    return dir;
}

struct lock convert_lock(struct comm *world, const char *out, const char *dir)
{
    struct lock lock = session_lock_output(world, out, "lock", "job");
    if (io_exists(dir)) {
        lock_release(&lock);
        err_stop(RC_CANTCREAT, "%s exists by now: another job has made it; choose another folder",
                 dir);
    }
    return lock;
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
