/* sim_queue.c - growing containers of requests. */
#include "cluster/sim_internal.h"

#include <stdlib.h>
#include <string.h>

static enum status no_memory(size_t bytes)
{
    return error_set(ERR_RESOURCE, "the simulation needs %zu more bytes of memory", bytes);
}

enum status sim_queue_push(struct sim_queue *q, const struct sim_request *r)
{
    if (q->n == q->cap) {
        uint32_t cap = q->cap ? 2 * q->cap : 1024;
        struct sim_request *bigger = malloc(cap * sizeof *bigger);
        if (!bigger) return no_memory(cap * sizeof *bigger);
        for (uint32_t i = 0; i < q->n; i++) bigger[i] = *sim_queue_at(q, i);
        free(q->r);
        q->r = bigger;
        q->cap = cap;
        q->head = 0;
    }
    *sim_queue_at(q, q->n) = *r;
    q->n++;
    return OK;
}
