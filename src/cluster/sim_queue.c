/* sim_queue.c - requests in order of arrival, in a ring that grows. */
#include "cluster/sim_internal.h"

#include <stdlib.h>

enum status sim_queue_grow(struct sim_queue *q)
{
    uint32_t cap = q->cap ? 2 * q->cap : 64;
    struct sim_request *bigger = malloc(cap * sizeof *bigger);
    if (!bigger)
        return error_set(ERR_RESOURCE, "the simulation needs %zu more bytes of memory",
                         cap * sizeof *bigger);
    for (uint32_t i = 0; i < q->n; i++) bigger[i] = *sim_queue_at(q, i);
    free(q->r);
    q->r = bigger;
    q->cap = cap;
    q->head = 0;
    return OK;
}
