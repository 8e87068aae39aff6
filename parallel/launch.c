#include "parallel/launch.h"

#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/crash.h"
#include "core/dev.h"
#include "core/fault.h"
#include "core/log.h"

static volatile sig_atomic_t caught;
static struct comm *world_of_process; /* from launch_start to launch_end */
static struct watchdog *watchdog;

/* One rank has nobody to take along, and the user no need for MPI's notice. */
static void abort_all(int code)
{
    const struct comm *w = world_of_process;
    world_of_process = NULL;
    if (!w || w->size == 1) _exit(code);
    MPI_Abort(MPI_COMM_WORLD, code);
}

static void where(char *text, size_t size) { comm_where(world_of_process, text, size); }

/* One line, the code, and out, without another call of MPI. */
static _Noreturn void leave_now(int code, const char *text)
{
    char line[4096];
    const size_t n = err_line(line, sizeof line, text);
    const ssize_t done = write(STDERR_FILENO, line, n);
    (void)done;
    err_leave_code(code);
    _exit(code);
}

/* exit() in the middle, with whatever code: the others would wait for this rank. */
static void on_exit_early(void)
{
    if (!world_of_process) return;
    char text[1024] = "left by exit() before its work was done";
    where(text, sizeof text);
    leave_now(RC_SOFTWARE, text);
}

/* MPI tells of messages cut short (ranks in different collectives) and of lost connections. Its
 * memory cannot be trusted after that, so MPI_Abort is not called. */
static void on_mpi_error(MPI_Comm *comm, int *code, ...)
{
    (void)comm;
    char text[MPI_MAX_ERROR_STRING + 1024] = "MPI: ";
    int len = 0;
    MPI_Error_string(*code, text + 5, &len);
    where(text, sizeof text);
    crash_add(text, sizeof text,
              "; if a message was truncated, the ranks are in different collectives, and "
              "--check-comm names them");
    leave_now(RC_HANG, text);
}

/* Until there is a watchdog: MPI_Init and the first exchange wait for all ranks. */
static void on_late_start(int sig)
{
    (void)sig;
    leave_now(RC_HANG, "the start of MPI did not end in time (OSP_START_DEADLINE_S, 600 s): a rank "
                       "did not start, or the hosts cannot reach each other");
}

static void start_deadline(void)
{
    const char *s = getenv("OSP_START_DEADLINE_S");
    struct sigaction a = {.sa_handler = on_late_start};
    sigemptyset(&a.sa_mask);
    sigaction(SIGALRM, &a, NULL);
    alarm(s ? (unsigned)atoi(s) : WATCHDOG_START_S);
}

struct comm *launch_start(int *argc, char ***argv)
{
    /* A program started without mpirun is one rank; it needs no daemon for that. */
    if (!getenv("OMPI_COMM_WORLD_SIZE") && !getenv("PMIX_RANK"))
        setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
    launch_catch_signals(); /* a signal at start-up must not end the rank either */
    start_deadline();
    int provided = 0;
    MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided);
    MPI_Errhandler handler;
    MPI_Comm_create_errhandler(on_mpi_error, &handler);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, handler); /* comms split from it inherit it */
    MPI_Errhandler_free(&handler);
    struct comm *world = comm_mpi_world(NULL);
    err_identify(world->rank, world->size, abort_all);
    log_identify(world->rank, world->size);
    fault_rank(world->rank);
    world_of_process = world;
    crash_catch(where); /* after MPI_Init, whose own handlers only add a backtrace */
    atexit(on_exit_early);
    watchdog = watchdog_start(world);
    dev_set_local_rank(launch_place(world).rank);
    alarm(0);
    fault_hit("start");
    return world;
}

void launch_end(struct comm *world)
{
    comm_barrier(world, "end"); /* so that who waits for a rank that does not come is watched */
    world_of_process = NULL;
    watchdog_rest(watchdog);
    comm_free(world);
    MPI_Finalize();
    watchdog_stop(watchdog);
    watchdog = NULL;
}

_Noreturn void launch_leave(struct comm *world, int code)
{
    launch_end(world);
    exit(code);
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

struct watchdog *launch_watchdog(void) { return watchdog; }
int launch_signal(void) { return caught; }

bool launch_stop(struct comm *world)
{
    double stop = caught != 0;
    comm_sum_f64(world, &stop, 1, "signals");
    return stop > 0;
}

struct launch_place launch_place(struct comm *world)
{
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    struct launch_place p = {.host = rng_hash(name)};
    uint64_t *all = calloc((size_t)world->size, sizeof *all);
    CHECK(all, "out of memory");
    comm_gather_bytes(world, all, &p.host, sizeof p.host, "host names");
    for (int r = 0; r < world->size; r++) {
        p.ranks += all[r] == p.host;
        p.rank += all[r] == p.host && r < world->rank;
    }
    free(all);
    return p;
}

int launch_local_ranks(struct comm *world) { return launch_place(world).ranks; }
