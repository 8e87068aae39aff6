/* The real program under mpirun, as tests start, hurt and watch it. */
#ifndef TESTS_PROCESS_H
#define TESTS_PROCESS_H
#include <stdbool.h>
#include <sys/types.h>
/* False, and the test is skipped, where mpirun or the program is missing. */
bool process_ready(void);
/* False, with the closing line of a program of which all is skipped, where videos are not decoded.
 */
bool process_video_ready(const char *what);
/* The first Python of the build folders' environments and python3 that imports these modules; NULL:
 * none. Relative to the repository root. */
const char *process_python(const char *modules);
const char *process_python_torch(void); /* the one for VideoAlign; NULL: the test is skipped */
char *process_program(void);            /* path of osp of this build */
/* test_dir()/RUN.yaml: a tiny training run into test_dir()/RUN on the data set of train_case. */
char *process_yaml(const char *run, int iterations);
struct process_opts {
    const char *fault;     /* OSP_FAULT; NULL: none */
    const char *sets[16];  /* key=value, NULL-terminated */
    const char *env[4];    /* NAME=VALUE, NULL-terminated */
    const char *mpirun[4]; /* further arguments of mpirun */
    const char *verb;      /* NULL: train */
    int ranks;             /* 0: 2 */
};
/* mpirun -n RANKS osp VERB YAML SETS..., output appended to log. */
pid_t process_start(const char *yaml, const char *log, const struct process_opts *o);
int process_end(pid_t pid); /* waits; exit code, or 128 + signal */
/* start and end; *seconds may be NULL */
int process_run(const char *yaml, const char *log, const struct process_opts *o, double *seconds);
/* Ranks of the run: processes with its YAML on their command line that are not mpirun. */
int process_ranks(const char *yaml, pid_t *rank, int max);
void process_wait_gone(const char *yaml); /* at most 10 s */
/* Processes that were started, by whatever way, with this text in their environment; their numbers
 * go to pid. */
int process_marked(const char *mark, pid_t *pid, int max);
/* 0: the newest checkpoints of test_dir()/a and b have equal bits. */
int process_diff(const char *a, const char *b);
/* Runs save(arg) in a child whose k-th operation of core/io.h meets the action ("kill", "fail").
 * True: it ended before that operation, so that all of them have been tried. */
bool process_fault(int k, const char *action, void (*save)(void *arg), void *arg);
char *process_log(const char *log); /* its text; "" when there is none */
void process_nap(double seconds);
#endif
