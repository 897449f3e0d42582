/* interrupt.c */
#include "engine/interrupt.h"

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t interrupt_signal;

static void on_signal(int sig)
{
    if (interrupt_signal != SIGTERM) interrupt_signal = sig;
}

void interrupt_install(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, 0);
    sigaction(SIGTERM, &action, 0);
    /* A peer that has left closes its connections: that is an error code of ours, not our end. mpirun
     * sees to this for its ranks, srun does not. */
    signal(SIGPIPE, SIG_IGN);
}

enum status interrupt_check(void)
{
    if (!interrupt_signal) return OK;
    return error_set(ERR_INTERRUPT,
                     "stopped by %s: what has finished is kept; continue with --resume",
                     interrupt_hurried() ? "SIGTERM" : "SIGUSR1");
}

bool interrupt_hurried(void)
{
    return interrupt_signal == SIGTERM;
}
