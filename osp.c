/* osp: distributed training of sparse video diffusion transformers. The verb table. */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/log.h"
#include "rl/verb.h"
#include "train/verbs.h"

/* One verb for the files of both trainings. */
static int plan(int argc, char **argv)
{
    return verb_rl_owns(argc, argv) ? verb_rl_plan(argc, argv) : verb_plan(argc, argv);
}

/* Files of osp rl are shown with the values of their algorithm. */
static int show_config(int argc, char **argv)
{
    const bool named = argc > 0 && strcmp(argv[0], "rl") == 0;
    if (!named && !verb_rl_owns(argc, argv)) return verb_print_config(argc, argv);
    char flag[] = "--print-config", **args = calloc((size_t)argc + 1, sizeof *args);
    CHECK(args, "out of memory");
    if (argc) memcpy(args, argv, (size_t)argc * sizeof *args);
    args[argc] = flag;
    const int rc = verb_rl(argc + 1 - named, args + named);
    free(args);
    return rc;
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *usage, *what;
    bool alone; /* one process does it, and a second one would only get into its way */
} verbs[] = {
    {"train", verb_train, "train CONFIG [key=value ...]",
     "supervised fine-tuning; resumes by itself", false},
    {"rl", verb_rl, "rl CONFIG [key=value ...]", "post-training of adapters against a reward",
     false},
    {"sample", verb_sample, "sample CONFIG [key=value ...]",
     "prompts to mp4 files and a contact sheet", false},
    {"data", verb_data, "data CONFIG [key=value ...]",
     "video clips and captions to an HDF5 data set", false},
    {"convert", verb_convert, "convert merge BASE ADAPTER OUT", "folds adapters into their base",
     true},
    {"convert", verb_convert, "convert adapter PEFT_DIR BASE OUT",
     "makes adapters from a folder of peft", true},
    {"inspect", verb_inspect, "inspect RUN|CHECKPOINT", "what is in a checkpoint", true},
    {"diff", verb_diff, "diff CHECKPOINT CHECKPOINT", "compares two checkpoints tensor by tensor",
     true},
    {"plan", plan, "plan CONFIG [ranks=N] [key=value ...]",
     "memory, FLOPs and communication of a step, or of an epoch of rl", true},
    {"report", verb_report, "report RUN", "one self-contained HTML page of a run", true},
    {"print-config", show_config, "print-config [VERB] CONFIG [key=value ...]",
     "effective values with origins", true},
    {"bench", verb_bench, "bench [comm|gpu]",
     "speed of a block; of its communication; of a GPU beside PyTorch", false},
};
enum { NUM_VERBS = sizeof verbs / sizeof *verbs };

static int help(int code)
{
    FILE *f = code ? stderr : stdout;
    fprintf(f, "usage: osp VERB ...   (mpirun -n N osp VERB ... for several ranks)\n\n");
    for (int i = 0; i < NUM_VERBS; i++) fprintf(f, "  %-40s %s\n", verbs[i].usage, verbs[i].what);
    fprintf(f, "\nosp VERB --help, osp VERB --help-config, osp --version\n");
    return code;
}

/* Started by mpirun although one process does it all: the others leave, as if they had done their
 * part. Open MPI is content with ranks that never call it. */
static bool left_to_rank_0(const char *verb)
{
    const char *size = getenv("OMPI_COMM_WORLD_SIZE"), *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (!rank) rank = getenv("PMIX_RANK");
    if (rank && atoi(rank) > 0) {
        if (strcmp(verb, "convert") == 0) /* it writes: who meant it must not take it for done */
            fprintf(stderr, "osp convert: rank %s leaves it to rank 0 and does nothing\n", rank);
        return true;
    }
    if (size && atoi(size) > 1)
        log_warn_all("osp %s is one process: rank 0 of %s does it, the others have left", verb,
                     size);
    return false;
}

static int run(int i, int argc, char **argv)
{
    if (verbs[i].alone && left_to_rank_0(verbs[i].name)) return RC_OK;
    return verbs[i].run(argc, argv);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGXFSZ, SIG_IGN); /* a limit of file sizes is an error of write, told with the file */
    if (argc < 2) return help(RC_USAGE);
    if (strcmp(argv[1], "--version") == 0) {
        printf("osp %s\n%s\n", OSP_VERSION, OSP_BUILT_WITH);
        return RC_OK;
    }
    if (strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0) {
        if (argc == 2) return help(RC_OK);
        char flag[] = "--help";
        char *only[] = {flag, NULL};
        for (int i = 0; i < NUM_VERBS; i++)
            if (strcmp(argv[2], verbs[i].name) == 0) return verbs[i].run(1, only);
    }
    for (int i = 0; i < NUM_VERBS; i++)
        if (strcmp(argv[1], verbs[i].name) == 0) return run(i, argc - 2, argv + 2);
    fprintf(stderr, "osp: unknown verb \"%s\"\n", argv[1]);
    return help(RC_USAGE);
}
