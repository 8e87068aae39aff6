/* A thread that ends the process when a collective takes longer than its deadline, with a line that
 * says which one, on which axis, since when: waiting for ever helps nobody (exit code 86). It
 * touches neither MPI nor NCCL; the launcher ends the other ranks. */
#ifndef PARALLEL_WATCHDOG_H
#define PARALLEL_WATCHDOG_H
#include "parallel/mesh.h"
struct watchdog;
/* deadline_s 0: NULL, no watchdog. */
struct watchdog *watchdog_start(struct mesh *mesh, double deadline_s);
/* While one rank writes or verifies files and the others wait for it, the deadline is ten times
 * as long. */
void watchdog_files(struct watchdog *w, bool on);
void watchdog_stop(struct watchdog *w);
#endif
