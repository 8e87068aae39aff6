/* Verb convert: makes one kind of checkpoint from others. One process, no MPI. */
#include <string.h>

#include "core/err.h"

#include "train/args.h"
#include "train/merge.h"
#include "train/verbs.h"

static const char usage[] =
    "osp convert merge BASE ADAPTER OUT [--ema] [--force-base]\n"
    "Folds the adapters of a LoRA run into the weights they were made for: W + alpha/r B A. OUT "
    "is\n"
    "a run folder that osp sample and osp train (resume: OUT) open. --ema: the averaged adapters;\n"
    "--force-base: although they were made for other weights.";

int verb_convert(int argc, char **argv)
{
    struct args a;
    args_parse(&a, argc, argv, usage);
    if (!a.config || strcmp(a.config, "merge") || a.num_rest != 3 || a.num_sets)
        err_stop(RC_USAGE, "%s", usage);
    const struct merge_job job = {.base = a.rest[0],
                                  .adapter = a.rest[1],
                                  .out = a.rest[2],
                                  .ema = a.ema,
                                  .force_base = a.force_base};
    merge_adapter(&job);
    args_free(&a);
    return RC_OK;
}
