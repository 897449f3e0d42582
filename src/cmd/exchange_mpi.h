/* exchange_mpi.h - struct exchange (cluster/exchange.h) over an MPI communicator.
 *
 * swap is one round of point-to-point messages: the first 32 KiB of every part travel in a message
 * of their own whose receive is always posted, so that small parts cost one latency.
 */
#ifndef CMD_EXCHANGE_MPI_H
#define CMD_EXCHANGE_MPI_H

#include "cluster/exchange.h"

/* Over MPI_COMM_WORLD. Release with exchange_mpi_free. */
enum status exchange_mpi_create(struct exchange *out);
void exchange_mpi_free(struct exchange *ex);

#endif
