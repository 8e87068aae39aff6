/* What the other ranks are doing, asked over UDP, outside MPI.
 *
 * When a collective does not end, MPI cannot say who is missing, and neither can a rank that hangs
 * in it. Each rank therefore has a UDP port and a thread (the watchdog's) that answers "what are
 * you doing?" with one datagram: per axis the number and tag of the last collective begun, what it
 * waits in, and the block. A stopped, lost or unreachable process does not answer; that is the
 * finding.
 *
 * Why not a table in /dev/shm or files in output_dir: the first needs a second mechanism between
 * hosts and leaves files after a kill; the second puts a write per rank and second on the shared
 * file system, which is often what hangs. A socket needs neither, and leaves nothing. Traffic: each
 * rank asks one other rank per second, in turn, so that it knows who answers at all; all members of
 * an axis only when a collective there is late.
 *
 * Addresses are exchanged once, by a collective, at start: IPv4, all interfaces (or the networks
 * that reach nobody are simply never answered); ranks on this host use the loopback. Where UDP is
 * blocked between hosts the report says that a rank never answered, not that it is gone. A packet
 * carries the job's random key; others are dropped. No packet ever changes what a rank computes. */
#ifndef PARALLEL_PEERS_H
#define PARALLEL_PEERS_H
#include "parallel/mesh.h"

struct peer_axis {             /* as of `when`, a field of the datagram */
    uint64_t seq, waits_for;   /* begun so far; 0: waits in none */
    float waited;              /* seconds */
    int kind;                  /* of waits_for */
    char tag[40], waiting[40]; /* of the last one begun; of waits_for */
};
struct peer_state {
    char host[48], context[40];
    struct peer_axis axis[AXIS_COUNT];
};
struct peer {
    struct peer_state state; /* as of last_heard */
    double last_heard;       /* log_seconds(); 0: never */
    int refused;             /* asks since then that found its port closed: the process is gone */
    double first_refused;
};
struct peers;
/* Collective over the world. axis: AXIS_COUNT comms (NULL: none) whose state is told; the caller
 * may change the entries between calls. */
struct peers *peers_open(struct comm *world, struct comm *const *axis);
void peers_close(struct peers *);
int peers_fd(const struct peers *); /* readable: call peers_answer */
void peers_answer(struct peers *);  /* takes and answers all datagrams that are there */
void peers_ask(struct peers *, int rank);
void peers_tell_reported(struct peers *);    /* to all ranks: the cause has been said */
double peers_reported(const struct peers *); /* when another rank said so; 0: never */
const struct peer *peers_of(const struct peers *, int rank);
const char *peers_host(const struct peers *, int rank); /* known from the start */
#endif
