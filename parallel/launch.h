/* Start and end of a run: MPI, the rank's name in errors and logs, signals. A signal only sets a
 * flag; the flag travels with the reduction of every step, so that all ranks stop at the same step
 * with a checkpoint. A second SIGINT ends at once. */
#ifndef PARALLEL_LAUNCH_H
#define PARALLEL_LAUNCH_H
#include "parallel/comm.h"
/* Starts MPI when there is a launcher or none is needed; returns the world. */
struct comm *launch_start(int *argc, char ***argv);
void launch_end(struct comm *world);
int launch_signal(void); /* the signal asked for by anyone on this rank; 0: none */
void launch_catch_signals(void);
int launch_local_ranks(struct comm *world); /* ranks on this host */
#endif
