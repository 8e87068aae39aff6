/* `osp rl`; see train/verbs.h. */
#ifndef RL_VERB_H
#define RL_VERB_H
int verb_rl(int argc, char **argv);
#endif
