#include "parallel/launch.h"

#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/log.h"

static volatile sig_atomic_t caught;

static int world_size = 1;

/* One rank has nobody to take along, and the user no need for MPI's notice. */
static void abort_all(int code)
{
    if (world_size == 1) _exit(code);
    MPI_Abort(MPI_COMM_WORLD, code);
}

struct comm *launch_start(int *argc, char ***argv)
{
    /* A program started without mpirun is one rank; it needs no daemon for that. */
    if (!getenv("OMPI_COMM_WORLD_SIZE") && !getenv("PMIX_RANK"))
        setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
    int provided = 0;
    MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided);
    struct comm *world = comm_mpi_world(NULL);
    world_size = world->size;
    err_identify(world->rank, world->size, abort_all);
    log_identify(world->rank, world->size);
    return world;
}

void launch_end(struct comm *world)
{
    comm_free(world);
    MPI_Finalize();
}

static void on_signal(int sig)
{
    if (sig == SIGINT && caught == SIGINT) _exit(128 + SIGINT);
    caught = sig;
}

void launch_catch_signals(void)
{
    const int list[] = {SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&a.sa_mask);
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) sigaction(list[i], &a, NULL);
}

int launch_signal(void) { return caught; }

int launch_local_ranks(struct comm *world)
{
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    const uint64_t mine = rng_hash(name);
    uint64_t *all = calloc((size_t)world->size, sizeof *all);
    CHECK(all, "out of memory");
    comm_gather_bytes(world, all, &mine, sizeof mine, "host names");
    int n = 0;
    for (int r = 0; r < world->size; r++) n += all[r] == mine;
    free(all);
    return n;
}
