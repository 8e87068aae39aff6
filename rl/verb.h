/* `osp rl`, and `osp plan` of its files; see train/verbs.h. */
#ifndef RL_VERB_H
#define RL_VERB_H
#include <stdbool.h>
int verb_rl(int argc, char **argv);
int verb_rl_plan(int argc, char **argv);
/* Whether the configuration among these arguments is one of `osp rl`: it has a section rl or
 * rl_config. */
bool verb_rl_owns(int argc, char **argv);
#endif
