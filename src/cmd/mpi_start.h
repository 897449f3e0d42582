/* mpi_start.h - starting and ending MPI so that many more ranks than cores behave. Only main.c
 * calls these.
 */
#ifndef CMD_MPI_START_H
#define CMD_MPI_START_H

#include "core/status.h"

/* MPI_Init_thread(FUNNELED). On an oversubscribed node it first lets idle loops sleep (core/nap.h)
 * and skips the parts of Open MPI's start that one node does not need; settings that the user made
 * (OMPI_MCA_*) win. A start that takes longer than MOEBATCH_START_LIMIT_S seconds (environment;
 * 600, 0: no limit) ends the process with ERR_COMM's code and a message: a rank is missing. */
enum status mpi_start(int *argc, char ***argv);

/* MPI_Finalize. With a failure (st != OK) the process is gone after 5 s even if a peer never
 * arrives. */
void mpi_end(enum status st);

#endif
