/* sim_wheel.c - requests by the step or epoch in which they are due.
 *
 * Linked lists of single requests cost a miss of the caches a request; here a bucket is a list of
 * chunks of CHUNK requests, read from front to back with the next chunk on its way. A bucket of the
 * coarse wheel stands for WHEEL_FINE steps, so that few places are written to at a time; when its
 * turn comes, its requests are dealt to the fine buckets. */
#include "cluster/sim_internal.h"

#include <stdlib.h>
#include <string.h>

enum status sim_pool_grow(struct sim_pool *p)
{
    uint32_t cap = p->cap ? p->cap + p->cap / 2 : 1 << 10;
    size_t bytes = (size_t)cap * CHUNK * sizeof *p->r;
    struct sim_request *bigger = aligned_alloc(64, bytes);
    if (!bigger) return error_set(ERR_RESOURCE, "the simulation needs %zu bytes of memory", bytes);
    if (p->r) memcpy(bigger, p->r, (size_t)p->cap * CHUNK * sizeof *p->r);
    free(p->r);
    p->r = bigger;
    uint32_t *links = realloc(p->next, cap * sizeof *links);
    if (!links) return error_set(ERR_RESOURCE, "no memory for %u chunks of requests", cap);
    p->next = links;
    p->cap = cap;
    return OK;
}

enum status sim_wheel_init(struct sim_wheel *w)
{
    w->fine = calloc(WHEEL_FINE + WHEEL_COARSE, sizeof *w->fine);
    w->coarse = w->fine + WHEEL_FINE;
    w->block = 0;
    return w->fine ? OK : error_set(ERR_RESOURCE, "no memory for a wheel of requests");
}

void sim_wheel_free(struct sim_wheel *w)
{
    free(w->fine);
}

enum status sim_wheel_open(struct sim_pool *p, struct sim_wheel *w, uint64_t at)
{
    w->block = at / WHEEL_FINE;
    struct sim_cursor c = sim_bucket_take(p, &w->coarse[w->block % WHEEL_COARSE]);
    struct sim_request r;
    while (sim_cursor_next(p, &c, &r)) {
        struct sim_request *to = sim_bucket_add(p, &w->fine[r.next % WHEEL_FINE]);
        if (!to) return ERR_RESOURCE;
        *to = r;
    }
    return OK;
}
