/* The process that starts scorers. It is forked off before MPI_Init and before the first call of
 * CUDA, when that is safe, has one thread, and holds nothing of the trainer; every start and
 * restart goes through it. It is the parent of the scorers: it collects their ends, kills their
 * whole process groups, copies what they print into their log files (up to a limit), and when the
 * trainer is gone, however it went, it kills them all and leaves.
 * A scorer gets: descriptor 3, the socket; no other one but 0 to 2; its own process group; default
 * signal handlers; death with its parent; no core file, umask 077, no new privileges; and of the
 * environment only the list in reward_spawn.c. */
#ifndef RL_REWARD_SPAWN_H
#define RL_REWARD_SPAWN_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
enum { SPAWN_MAX = 64, SPAWN_COMMAND = 8192 }; /* scorers alive at a time; bytes of a command */
struct spawner;
/* On a thread that outlives it. NULL: e says why. */
struct spawner *spawner_start(struct err *e);
/* Kills what is left of the scorers, waits for the process, frees. */
void spawner_stop(struct spawner *s);
/* Starts a command line (words split at blanks, '...' and "..." keep them; no shell). socket
 * becomes descriptor 3; the caller still closes its own. env adds NAME=VALUE, NULL-terminated, or
 * NULL. Returns the serial number of this start; 0: the spawner is gone or the command too long. */
uint64_t spawner_run(struct spawner *s, const char *command, const char *log,
                     const char *const *env, int socket);
/* SIGKILL to its process group; nothing when it has ended. */
void spawner_kill(struct spawner *s, uint64_t serial);
/* 1: the scorer `serial` has ended with this wait status and nothing of it is left; 0: no news;
 * -1: the spawner is gone. Never waits. */
int spawner_next(struct spawner *s, uint64_t *serial, int *status);
int spawner_fd(const struct spawner *s); /* readable when there is news */
/* Words of a command line, NULL-terminated, pointing into text, which is changed; -1: too many, or
 * a quote without its end. */
int spawner_words(char *text, char **word, int max);
#endif
