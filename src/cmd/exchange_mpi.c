/* exchange_mpi.c - see exchange_mpi.h. */
#include "cmd/exchange_mpi.h"

#include <mpi.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_BYTES = 32 << 10, TAG_FIRST = 11, TAG_REST = 12 };

struct peer {
    char *out; /* [FIRST_BYTES] length, then the part's beginning */
    char *in;  /* [in_cap] */
    size_t in_cap;
};

struct links {
    MPI_Comm comm;
    int rank, size;
    struct peer *peer;    /* [size] */
    MPI_Request *request; /* [4 * size] */
};

static enum status failed(const char *what)
{
    return error_set(ERR_COMM, "study: %s failed: a rank or a link is gone", what);
}

static enum status first_round(struct links *l, const struct exchange_part *send)
{
    int n = 0;
    for (int q = 0; q < l->size; q++) {
        if (q == l->rank) continue;
        struct peer *p = &l->peer[q];
        uint64_t bytes = send[q].bytes;
        size_t head = bytes < FIRST_BYTES - sizeof bytes ? bytes : FIRST_BYTES - sizeof bytes;
        memcpy(p->out, &bytes, sizeof bytes);
        if (head) memcpy(p->out + sizeof bytes, send[q].data, head);
        if (MPI_Irecv(p->in, FIRST_BYTES, MPI_BYTE, q, TAG_FIRST, l->comm, &l->request[n++]) ||
            MPI_Isend(p->out, (int)(head + sizeof bytes), MPI_BYTE, q, TAG_FIRST, l->comm,
                      &l->request[n++]))
            return failed("a message");
    }
    return MPI_Waitall(n, l->request, MPI_STATUSES_IGNORE) ? failed("a message") : OK;
}

/* What did not fit into the first message. */
static enum status rest_round(struct links *l, const struct exchange_part *send,
                              struct exchange_part *recv)
{
    const size_t fits = FIRST_BYTES - sizeof(uint64_t);
    int n = 0;
    for (int q = 0; q < l->size; q++) {
        if (q == l->rank) continue;
        struct peer *p = &l->peer[q];
        uint64_t bytes;
        memcpy(&bytes, p->in, sizeof bytes);
        if (bytes > INT32_MAX || send[q].bytes > INT32_MAX)
            return failed("a message of over 2 GiB");
        if (bytes + sizeof bytes > p->in_cap) {
            char *bigger = realloc(p->in, bytes + sizeof bytes);
            if (!bigger) return error_set(ERR_RESOURCE, "study: no memory for a message");
            p->in = bigger;
            p->in_cap = bytes + sizeof bytes;
        }
        recv[q] = (struct exchange_part){p->in + sizeof bytes, bytes};
        if (bytes > fits && MPI_Irecv(p->in + FIRST_BYTES, (int)(bytes - fits), MPI_BYTE, q,
                                      TAG_REST, l->comm, &l->request[n++]))
            return failed("a message");
        if (send[q].bytes > fits &&
            MPI_Isend((const char *)send[q].data + fits, (int)(send[q].bytes - fits), MPI_BYTE, q,
                      TAG_REST, l->comm, &l->request[n++]))
            return failed("a message");
    }
    return MPI_Waitall(n, l->request, MPI_STATUSES_IGNORE) ? failed("a message") : OK;
}

static enum status swap(void *ctx, const struct exchange_part *send, struct exchange_part *recv)
{
    struct links *l = ctx;
    TRY(first_round(l, send));
    return rest_round(l, send, recv);
}

static enum status sum(void *ctx, int64_t *v, int n)
{
    struct links *l = ctx;
    if (MPI_Allreduce(MPI_IN_PLACE, v, n, MPI_INT64_T, MPI_SUM, l->comm)) return failed("a sum");
    return OK;
}

enum status exchange_mpi_create(struct exchange *out)
{
    struct links *l = calloc(1, sizeof *l);
    if (!l) return error_set(ERR_RESOURCE, "study: no memory");
    l->comm = MPI_COMM_WORLD;
    MPI_Comm_rank(l->comm, &l->rank);
    MPI_Comm_size(l->comm, &l->size);
    *out = (struct exchange){l->rank, l->size, l, swap, sum};
    l->peer = calloc((size_t)l->size, sizeof *l->peer);
    l->request = calloc(4 * (size_t)l->size, sizeof(MPI_Request));
    bool ok = l->peer && l->request;
    for (int q = 0; ok && q < l->size; q++) {
        l->peer[q].out = malloc(FIRST_BYTES);
        l->peer[q].in = malloc(FIRST_BYTES);
        l->peer[q].in_cap = FIRST_BYTES;
        ok = l->peer[q].out && l->peer[q].in;
    }
    if (ok) return OK;
    exchange_mpi_free(out);
    return error_set(ERR_RESOURCE, "study: no memory");
}

void exchange_mpi_free(struct exchange *ex)
{
    struct links *l = ex->ctx;
    if (!l) return;
    for (int q = 0; l->peer && q < l->size; q++) {
        free(l->peer[q].out);
        free(l->peer[q].in);
    }
    free(l->peer);
    free(l->request);
    free(l);
    memset(ex, 0, sizeof *ex);
}
