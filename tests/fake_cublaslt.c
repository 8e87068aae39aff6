/* A libcublasLt.so.13 of one call: cuDNN asks for its version when it starts, and ends the process
 * when there is none. Making plans for attention needs no more. */
#include <stddef.h>

size_t cublasLtGetVersion(void) { return 130100; }
