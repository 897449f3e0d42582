/* node.c */
#include "engine/node.h"

#include "engine/watch.h"
#include "transport/shm.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum status node_create(MPI_Comm world, struct node *n)
{
    memset(n, 0, sizeof *n);
    int world_rank = 0, first = 0;
    MPI_Comm_rank(world, &world_rank);
    MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, world_rank, MPI_INFO_NULL, &n->comm);
    MPI_Comm_set_name(n->comm, "host");
    MPI_Comm_rank(n->comm, &n->rank);
    MPI_Comm_size(n->comm, &n->size);
    first = n->rank == 0;
    MPI_Scan(&first, &n->index, 1, MPI_INT, MPI_SUM, world);
    n->index--;
    MPI_Bcast(&n->index, 1, MPI_INT, 0, n->comm);
    MPI_Allreduce(&first, &n->count, 1, MPI_INT, MPI_SUM, world);
    MPI_Allreduce(&n->size, &n->max_size, 1, MPI_INT, MPI_MAX, world);
    return OK;
}

enum status node_share(const struct node *n, const char *what, size_t bytes,
                       struct node_region *out)
{
    out->bytes = bytes;
    return agree(n->comm, shm_map(n->comm, what, true, &out->bytes, &out->base));
}

void node_unshare(struct node_region *r)
{
    shm_unmap(r->base, r->bytes);
    r->base = 0;
}

void node_free(struct node *n)
{
    if (n->size) MPI_Comm_free(&n->comm);
    memset(n, 0, sizeof *n);
}

enum status agree(MPI_Comm comm, enum status mine)
{
    int rank = 0, size = 1;
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    int first = mine == OK ? size : rank, lowest = size;
    watch_wait(WATCH_MEET);
    MPI_Allreduce(&first, &lowest, 1, MPI_INT, MPI_MIN, comm);
    watch_wait(WATCH_NO);
    if (lowest == size) return OK;
    struct {
        int status;
        char text[1500], host[64];
    } w;
    memset(&w, 0, sizeof w);
    if (rank == lowest) {
        w.status = (int)mine;
        snprintf(w.text, sizeof w.text, "%s", error_text());
        gethostname(w.host, sizeof w.host - 1);
    }
    MPI_Bcast(&w, (int)sizeof w, MPI_BYTE, lowest, comm);
    error_clear();
    if (lowest == 0) return error_set((enum status)w.status, "%s", w.text);
    return error_set((enum status)w.status, "rank %d on %s: %s", lowest, w.host, w.text);
}
