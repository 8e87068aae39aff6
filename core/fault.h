/* Fault injection for tests: OSP_FAULT="name:n[:action]" (or fault_set) makes the n-th call of
 * fault_hit(name) act: "fail" (default; the caller reports an I/O error), "kill" (SIGKILL).
 * "io:n" counts every operation of core/io.h. Compiled always; costs one branch. */
#ifndef CORE_FAULT_H
#define CORE_FAULT_H
#include <stdbool.h>
void fault_set(const char *spec); /* NULL: none */
bool fault_hit(const char *name);
long fault_count(const char *name); /* calls seen since fault_set("name:0") */
#endif
