/* A thread that ends the process (exit code 86) when a collective takes longer than its deadline,
 * with a line that says which one, in which block, since when, and who is missing: it asks the
 * other ranks of the axis (parallel/peers.h). Of those that wait, one reports: the lowest rank of
 * the axis whose missing ranks are not just waiting for somebody else. A member whose process is
 * gone is noticed after seconds, whatever the deadline. The thread touches neither MPI nor NCCL;
 * the launcher ends the other ranks, and their own watchdogs do where it cannot. */
#ifndef PARALLEL_WATCHDOG_H
#define PARALLEL_WATCHDOG_H
#include "parallel/mesh.h"
struct watchdog;
enum {
    WATCHDOG_START_S = 600
}; /* deadline until the configuration is read; comm_deadline_s' default */
/* Collective; looks at the world's comm only. NULL for one rank; all calls below take NULL. */
struct watchdog *watchdog_start(struct comm *world);
void watchdog_deadline(struct watchdog *w, double s); /* 0: none */
/* Looks at all axes. NULL: at the world's comm only, before the mesh is freed. */
void watchdog_mesh(struct watchdog *w, const struct mesh *mesh);
/* While one rank writes or verifies files and the others wait for it, the deadline is ten times
 * as long. */
void watchdog_files(struct watchdog *w, bool on);
/* Looks at nothing any more, and still tells others that this process is alive. */
void watchdog_rest(struct watchdog *w);
void watchdog_stop(struct watchdog *w);
#endif
