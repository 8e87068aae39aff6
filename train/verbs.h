/* The verbs of the program. Each returns an exit code. Those that run the model start MPI. */
#ifndef TRAIN_VERBS_H
#define TRAIN_VERBS_H
int verb_train(int argc, char **argv);
int verb_sample(int argc, char **argv);
int verb_data(int argc, char **argv);
int verb_convert(int argc, char **argv);
int verb_inspect(int argc, char **argv);
int verb_diff(int argc, char **argv);
int verb_plan(int argc, char **argv);
int verb_report(int argc, char **argv);
int verb_print_config(int argc, char **argv);
int verb_bench(int argc, char **argv);
#endif
