/* NCCL transport for tensors in device memory, bootstrapped over a transport for host memory, which
 * goes on to carry the host values. The library is opened when the first communicator of several
 * ranks is made: OSP_NCCL names its file, or libnccl.so.2 is looked for by the loader. */
#ifndef PARALLEL_COMM_NCCL_H
#define PARALLEL_COMM_NCCL_H
#include "parallel/comm.h"
/* Collective. The world keeps its address: its collectives of tensors now go over NCCL. */
void comm_nccl_enter(struct comm *world);
void comm_nccl_leave(struct comm *world);
#endif
