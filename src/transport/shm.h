/* shm.h - memory without a name that the processes of one host share.
 *
 * Unlike a file in /dev/shm it needs no clean-up after a crash and is not bound by the 64 MB that
 * containers give /dev/shm. Whoever maps a region unmaps it.
 */
#ifndef TRANSPORT_SHM_H
#define TRANSPORT_SHM_H

#include "core/status.h"

#include <mpi.h>
#include <stdbool.h>
#include <stddef.h>

/* Collective over comm, whose processes share a host: maps *bytes zeroed bytes into each; the first
 * process's number counts and is what *bytes then holds. reserve: the host gives the memory now, so
 * that too little is an error here and not a SIGBUS later. `what` names the region in messages.
 * ERR_RESOURCE on every process when one of them failed, each with its own message. */
enum status shm_map(MPI_Comm comm, const char *what, bool reserve, size_t *bytes, void **base);
void shm_unmap(void *base, size_t bytes);

#endif
