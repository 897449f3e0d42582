/* provenance.h - what every results file says about the program that wrote it; `run` and `study`
 * say it in the same words. */
#ifndef CMD_PROVENANCE_H
#define CMD_PROVENANCE_H

#include <stddef.h>

/* "Open MPI v4.1.4; HDF5 1.10.8 (built with 1.10.8); ..." */
void provenance_libraries(char *text, size_t bytes);

/* "moebatch" and the words of the command line; the caller frees it. NULL without memory. */
char *provenance_argv(int argc, char **argv);

/* "node1*8 node2*8": the hosts of MPI_COMM_WORLD in rank order, on rank 0; the caller frees it,
 * NULL on the others and without memory. Collective. */
char *provenance_hosts(void);

#endif
