/* node.h - what ranks of one real host share: their number, the host's memory, a common region.
 *
 * Virtual nodes (ranks_per_node) are a matter of transport and placement; weights are shared by
 * whoever really shares memory.
 */
#ifndef ENGINE_NODE_H
#define ENGINE_NODE_H

#include "core/status.h"

#include <mpi.h>
#include <stddef.h>

struct node {
    MPI_Comm comm;    /* ranks of this host */
    int rank, size;   /* within the host */
    int index, count; /* number of this host in the job; hosts in all */
    int max_size;     /* most ranks on one host */
};

/* Memory that all ranks of a host map. */
struct node_region {
    void *base;
    size_t bytes;
};

/* Collective over world. */
enum status node_create(MPI_Comm world, struct node *n);
void node_free(struct node *n);
/* Collective over the host: a zeroed region that all its ranks map; the first rank's bytes count.
 * `what` names it in messages. */
enum status node_share(const struct node *n, const char *what, size_t bytes,
                       struct node_region *out);
void node_unshare(struct node_region *r);

/* Collective over comm: OK if every rank says OK. Otherwise every rank gets the status of the
 * lowest failing rank and its message, with rank and host added when it is not rank 0. */
enum status agree(MPI_Comm comm, enum status mine);

#endif
