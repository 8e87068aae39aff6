/* Start and end of a run: MPI, the rank's name in errors and logs, signals, and the ways a rank can
 * be lost. A signal on any rank (SIGINT, SIGTERM, SIGUSR1, SIGUSR2) only sets a flag; the flag
 * travels with the reduction of every step, and with launch_stop in every other loop that takes
 * longer than about a second, so that all ranks stop at the same place with a checkpoint. A second
 * SIGINT ends at once.
 * Between launch_start and launch_end every other way out is an error with one line and a code:
 * a fatal signal (core/crash.h), exit() in the middle, an error inside MPI. */
#ifndef PARALLEL_LAUNCH_H
#define PARALLEL_LAUNCH_H
#include "parallel/watchdog.h"
/* Starts MPI when there is a launcher or none is needed; catches signals; returns the world. */
struct comm *launch_start(int *argc, char ***argv);
void launch_end(struct comm *world);
/* Collective: the process ends here, in order, with this code; for places without a way back. */
_Noreturn void launch_leave(struct comm *world, int code);
struct watchdog *launch_watchdog(void); /* of this process; NULL: one rank, or none started */
int launch_signal(void);                /* the signal asked for by anyone on this rank; 0: none */
/* Collective: whether any rank was asked to stop. */
bool launch_stop(struct comm *world);
void launch_catch_signals(void); /* for verbs without MPI; launch_start does it */
struct launch_place {
    uint64_t host;   /* the same on all ranks of a host */
    int rank, ranks; /* among those */
};
struct launch_place launch_place(struct comm *world); /* collective */
int launch_local_ranks(struct comm *world);           /* its ranks */
#endif
