/* nap.h - lets the idle loops of libraries really sleep when there are more ranks than cores.
 *
 * Open MPI waits by spinning: MPI_Init and MPI_Finalize around usleep(100), everything else around
 * sched_yield() when told to yield. With 88 ranks on a core these loops take the processor
 * from the few ranks that have something to do. nap.c defines sched_yield and usleep; a definition
 * in the executable comes before libc's for every library (the linker exports it, because libc has
 * the same name: no -rdynamic needed), so that Open MPI calls these. Until nap_enable
 * they do exactly what libc's do.
 *
 * It trades latency (up to a few ms per wait) for throughput: only for oversubscribed nodes.
 */
#ifndef CORE_NAP_H
#define CORE_NAP_H

#include <stdbool.h>

/* ranks_per_core > 1: idle loops sleep, longer the more ranks share a core; else they do not. */
void nap_enable(double ranks_per_core);

/* Between the start and the end of a job every MPI call is a poll that must return at once, and the
 * program's own waits sleep: naps in the library's progress loop would only delay both. */
void nap_hold(bool hold);

#endif
