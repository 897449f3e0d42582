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

uint32_t sim_pool_take(struct sim_pool *p)
{
    uint32_t i = p->free_head;
    if (i) {
        p->free_head = p->next[i];
        return i;
    }
    if (p->used + 1 >= p->cap) {
        uint32_t cap = p->cap ? p->cap + p->cap / 2 : 1 << 14;
        struct sim_request *bigger = realloc(p->r, cap * sizeof *bigger);
        if (!bigger) {
            no_memory(cap * sizeof *bigger);
            return 0;
        }
        p->r = bigger;
        uint32_t *links = realloc(p->next, cap * sizeof *links);
        if (!links) {
            no_memory(cap * sizeof *links);
            return 0;
        }
        p->next = links;
        p->cap = cap;
    }
    return ++p->used;
}
