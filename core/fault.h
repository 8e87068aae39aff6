/* Fault injection for tests: OSP_FAULT="name:n[:action]" (or fault_set) makes the n-th call of
 * fault_hit(name) act: "fail" (default; errno becomes EIO and the caller reports an I/O error),
 * "enospc" (the same with ENOSPC), "kill" (SIGKILL). Only the n-th call acts, n = 0 only counts.
 * "io:n" counts every operation of core/io.h. Compiled always; costs one branch. */
#ifndef CORE_FAULT_H
#define CORE_FAULT_H
#include <stdbool.h>
void fault_set(const char *spec);   /* NULL: none */
bool fault_hit(const char *name);   /* true: fail now; errno says how */
long fault_count(const char *name); /* calls seen since fault_set("name:0") */
#endif
