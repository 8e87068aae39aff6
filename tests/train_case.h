/* A small training run for tests: data set from the clips of the tree, settings from YAML text. */
#ifndef TESTS_TRAIN_CASE_H
#define TESTS_TRAIN_CASE_H
#include "data/build.h"
#include "train/resume.h"
struct train_case {
    struct loaded_settings l;
    struct dataset *data;
    struct session ses;
    struct trainer t;
};
/* Path of a data set with 4 frames of 16 x 16, made once per process. */
const char *train_case_data(void);
/* extra: further "key=value" overrides, NULL-terminated. */
void train_case_open(struct train_case *c, struct comm *world, const char *const *extra);
void train_case_close(struct train_case *c);
/* A whole run of two steps and a checkpoint; arg: one "key=value". For comm_thread_run. */
void train_case_save(struct comm *world, void *arg);
/* How that data set is built from the clips of the tree, at another path. */
struct data_build train_case_build(const char *path);
void train_case_steps(struct train_case *c, int n, double *loss);
#endif
