/* node.c */
#include "engine/node.h"

#include "core/host_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
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

/* The first rank makes and sizes a file without a name, so that nothing is left behind whoever dies;
 * its pages are reserved at once: too little memory is an error here and not a SIGBUS later. */
static enum status make_region(const char *what, size_t bytes, int *fd)
{
    *fd = memfd_create("moebatch", MFD_CLOEXEC);
    if (*fd < 0)
        return error_set(ERR_RESOURCE, "cannot create shared memory: %s", strerror(errno));
    int err = ftruncate(*fd, (off_t)bytes) ? errno : posix_fallocate(*fd, 0, (off_t)bytes);
    if (err == 0) return OK;
    return error_set(ERR_RESOURCE,
                     "%s, shared by the ranks of a host, needs %.2f GiB; %.2f GiB are free (%s)",
                     what, (double)bytes / (1 << 30),
                     (double)host_memory_available() / (1 << 30), strerror(err));
}

enum status node_share(const struct node *n, const char *what, size_t bytes,
                       struct node_region *out)
{
    struct {
        int pid, fd;
        unsigned long long bytes;
    } at = {0, 0, bytes ? bytes : 1};
    char path[64];
    int fd = -1;
    enum status st = OK;
    out->base = 0;
    if (n->rank == 0) {
        st = make_region(what, (size_t)at.bytes, &fd);
        at.pid = (int)getpid();
        at.fd = fd;
    }
    MPI_Bcast(&at, (int)sizeof at, MPI_BYTE, 0, n->comm);
    out->bytes = (size_t)at.bytes;
    st = agree(n->comm, st);
    if (st == OK && n->rank != 0) {
        snprintf(path, sizeof path, "/proc/%d/fd/%d", at.pid, at.fd);
        fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0)
            st = error_set(ERR_RESOURCE, "cannot open %s, memory that process %d shares: %s", path,
                           at.pid, strerror(errno));
    }
    if (st == OK) {
        out->base = mmap(0, out->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (out->base == MAP_FAILED) {
            out->base = 0;
            st = error_set(ERR_RESOURCE, "cannot map %zu bytes of shared memory", out->bytes);
        }
    }
    st = agree(n->comm, st);
    if (fd >= 0) close(fd);
    return st;
}

void node_unshare(struct node_region *r)
{
    if (r->base) munmap(r->base, r->bytes);
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
    MPI_Allreduce(&first, &lowest, 1, MPI_INT, MPI_MIN, comm);
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
