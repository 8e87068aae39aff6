/* Fault injection for tests: OSP_FAULT="name[@rank]:n[:action]" (or fault_set) makes the n-th call
 * of fault_hit(name), on that rank or on every one, act: "fail" (default; errno becomes EIO and the
 * caller reports an I/O error), "enospc" (the same with ENOSPC); a signal to itself ("kill",
 * "segv", "stop", "term", "int", "usr1", "usr2"); "exit" (exit(0)), "hang" (never returns), "slow"
 * (3 s). Only the n-th call acts, n = 0 only counts. "io" counts every operation of core/io.h,
 * "comm" collectives ("fail": this one is left out), "step" training steps, and so on: grep
 * fault_hit. Compiled always; costs one branch. */
#ifndef CORE_FAULT_H
#define CORE_FAULT_H
#include <stdbool.h>
void fault_rank(int rank);          /* who "@rank" means; 0 when never called */
void fault_set(const char *spec);   /* NULL: none */
bool fault_hit(const char *name);   /* true: fail now; errno says how */
long fault_count(const char *name); /* calls seen since fault_set("name:0") */
#endif
