/* Real runs of `osp rl` for tests: a base, its configuration, its metrics. */
#ifndef TESTS_RL_PROCESS_H
#define TESTS_RL_PROCESS_H
#include "tests/process.h"
enum { EPOCHS = 4 };
extern const struct process_opts plain_rl;
/* Makes the base once. False: the test is skipped, or has failed. */
bool rl_ready(void);
void write_text(const char *name, const char *text); /* test_dir()/NAME */
char *rl_yaml(const char *run, const char *algo);    /* what rl_run runs: test_dir()/RUN.yaml */
/* Post-training of the base into test_dir()/NAME; exit code. said: its output; may be NULL. */
int rl_run(const char *name, const char *algo, const struct process_opts *o, char **said);
/* The same, expected to end well. */
bool rl_calm(const char *name, const char *algo, const struct process_opts *o);
/* Mix-GRPO into test_dir()/NAME with this key=value is a configuration error that says so. */
void rl_refuse(const char *name, const char *set, const char *says);
/* The last value of a key at an epoch; NaN: there is none. */
double rl_metric(const char *name, int epoch, const char *key);
/* How many lines of an epoch have it, without those that a resume has made void. */
int rl_metric_lines(const char *name, int epoch, const char *key);
/* Rewards, losses, norms, KL and clip limit of these epochs are there, once, in both runs and agree
 * to 1e-6, evaluations too, where eval_freq (0: none) asks for them; the window is the same: one
 * run on other ranks, in fp64, so that no pixel is rounded to another byte. */
void rl_same_metrics(const char *name, const char *want, int first, int last, int eval_freq);
/* The newest checkpoints of both runs hold the same: adapters, EMA and moments to `most` of the
 * largest element of their tensor, clip state to `most`, counters, epoch and the description of the
 * run exactly. */
void rl_same_state(const char *name, const char *want, double most);
#endif
