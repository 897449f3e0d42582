/* mpi_start.c - MPI_Init and MPI_Finalize for 1 to hundreds of ranks on a core.
 *
 * What the start of 176 ranks on two cores costs (Open MPI 4.1.4): spinning ranks take the cores
 * from mpirun, which serves them; then every rank asks PMIx about every other one, several
 * times, each a switch to another thread and back. So: idle loops sleep, and on a single node the
 * addresses of network transports are not exchanged. Needs Open MPI's environment; with other MPIs
 * nothing is changed. */
#include "cmd/mpi_start.h"

#include "core/clock.h"
#include "core/cpu.h"
#include "core/nap.h"

#include <mpi.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define END_LIMIT_S 5

/* Variables that mpirun gives each rank; 0 when there are none. */
static long env_long(const char *name)
{
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

/* Ranks of this node per core that they may use; 0 when not under mpirun. */
static double ranks_per_core(void)
{
    long ranks = env_long("OMPI_COMM_WORLD_LOCAL_SIZE");
    /* A bound rank sees only its own cores; mpirun does not bind two ranks to one. */
    long cores =
        env_long("OMPI_MCA_orte_bound_at_launch") ? sysconf(_SC_NPROCESSORS_ONLN) : cpu_count();
    return cores > 0 ? (double)ranks / (double)cores : 0;
}

static void prepare_many_ranks(double per_core)
{
    nap_enable(per_core);
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    if (env_long("OMPI_COMM_WORLD_LOCAL_SIZE") == env_long("OMPI_COMM_WORLD_SIZE")) {
        setenv("OMPI_MCA_pml", "ob1", 0);
        setenv("OMPI_MCA_btl", "self,vader", 0);
    }
}

/* ---- a start that hangs ---------------------------------------------------------------------- */

/* MPI_Init waits for every rank, and nobody else watches before it is through. */
struct start_watch {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool started, through;
    long limit_s;
};

static void *start_thread(void *arg)
{
    struct start_watch *w = arg;
    struct timespec until;
    char host[64] = "";
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += w->limit_s;
    pthread_mutex_lock(&w->mutex);
    while (!w->through && pthread_cond_timedwait(&w->wake, &w->mutex, &until) == 0) {}
    bool through = w->through;
    pthread_mutex_unlock(&w->mutex);
    if (through) return NULL;
    gethostname(host, sizeof host - 1);
    fprintf(stderr,
            "moebatch: rank %ld on %s: watchdog: MPI_Init has not returned after %ld s "
            "(MOEBATCH_START_LIMIT_S): some of the %ld ranks did not start, or hosts cannot reach "
            "each other\n",
            env_long("OMPI_COMM_WORLD_RANK"), host, w->limit_s, env_long("OMPI_COMM_WORLD_SIZE"));
    clock_sleep_us(1000000); /* for the others' lines: who is missing says nothing */
    _exit(ERR_COMM);
}

/* Signals stay the main thread's. */
static void start_watched(struct start_watch *w)
{
    sigset_t all, before;
    memset(w, 0, sizeof *w);
    w->limit_s = getenv("MOEBATCH_START_LIMIT_S") ? env_long("MOEBATCH_START_LIMIT_S") : 600;
    if (w->limit_s <= 0) return;
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->wake, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    w->started = pthread_create(&w->thread, NULL, start_thread, w) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void start_through(struct start_watch *w)
{
    if (!w->started) return;
    pthread_mutex_lock(&w->mutex);
    w->through = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->mutex);
}

enum status mpi_start(int *argc, char ***argv)
{
    double per_core = ranks_per_core();
    if (per_core > 1) prepare_many_ranks(per_core);
    int provided = MPI_THREAD_SINGLE;
    struct start_watch watch;
    start_watched(&watch);
    int failed = MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
    start_through(&watch);
    if (failed != MPI_SUCCESS) return error_set(ERR_COMM, "MPI_Init_thread failed");
    if (provided < MPI_THREAD_FUNNELED)
        return error_set(ERR_RESOURCE,
                         "this MPI library has no thread support: found level %d, expected "
                         "MPI_THREAD_FUNNELED (%d)",
                         provided, MPI_THREAD_FUNNELED);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    return OK;
}

static volatile sig_atomic_t end_status; /* for the handler alone */

static void end_by_force(int sig)
{
    (void)sig;
    _exit((int)end_status);
}

void mpi_end(enum status st)
{
    double per_core = ranks_per_core();
    if (st != OK) {
        end_status = (sig_atomic_t)st;
        signal(SIGALRM, end_by_force);
        alarm(END_LIMIT_S);
    }
    /* mpirun must hear of the end of MPI before it sees the process end, or it calls this a
     * crash. Among many ranks it needs the cores for that: stand back, and stay a moment. */
    if (per_core > 1 && nice(10) < 0) nap_enable(per_core);
    MPI_Finalize();
    if (per_core > 1) clock_sleep_us((long)(per_core * 10e3));
}
