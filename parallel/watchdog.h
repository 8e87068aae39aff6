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
/* Collective. deadline_s 0, or one rank: NULL, no watchdog. */
struct watchdog *watchdog_start(struct mesh *mesh, double deadline_s);
/* While one rank writes or verifies files and the others wait for it, the deadline is ten times
 * as long. */
void watchdog_files(struct watchdog *w, bool on);
void watchdog_stop(struct watchdog *w);
#endif
