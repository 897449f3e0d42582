/* exchange.h - how the parts of a simulation on several ranks meet, without mpi.h: cmd/ hands
 * cluster/ either exchange_serial() or one over MPI (cmd/exchange_mpi.h).
 *
 * Every call is collective: all ranks, the same order. Buffers that swap hands out belong to the
 * exchange and live until its next call.
 */
#ifndef CLUSTER_EXCHANGE_H
#define CLUSTER_EXCHANGE_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

struct exchange_part {
    const void *data;
    size_t bytes;
};

struct exchange {
    int rank, size;
    void *ctx;
    /* send[q] goes to rank q; recv[q] is what rank q sent here. The own part is not touched. */
    enum status (*swap)(void *ctx, const struct exchange_part *send, struct exchange_part *recv);
    /* v[i] becomes the sum over all ranks, on all ranks. */
    enum status (*sum)(void *ctx, int64_t *v, int n);
};

static inline enum status exchange_alone_swap(void *ctx, const struct exchange_part *send,
                                              struct exchange_part *recv)
{
    (void)ctx;
    (void)send;
    (void)recv;
    return OK;
}

static inline enum status exchange_alone_sum(void *ctx, int64_t *v, int n)
{
    (void)ctx;
    (void)v;
    (void)n;
    return OK;
}

/* One rank alone. */
static inline struct exchange exchange_serial(void)
{
    return (struct exchange){0, 1, NULL, exchange_alone_swap, exchange_alone_sum};
}

#endif
