/* sim_preempt.c - a decode rank's KV pages do not suffice: the youngest requests' pages go to host
 * memory and come back when there is room, as the engine does it; nothing is computed again. The
 * engine frees pages one request at a time; here down to the high-water mark at once, so that it
 * happens rarely. The copies take no time of a step: a request of 5,000 tokens is 0.35 GB, 7 ms
 * of a 50 GB/s host link beside steps of 50 ms. */
#include "cluster/sim_internal.h"

#include <stdlib.h>

static enum status keep(struct sim *s, size_t *n, const struct sim_request *r)
{
    if (*n == s->scratch_cap) {
        size_t cap = s->scratch_cap ? 2 * s->scratch_cap : 4096;
        struct sim_request *bigger = realloc(s->scratch, cap * sizeof *bigger);
        if (!bigger) return error_set(ERR_RESOURCE, "no memory to move %zu requests out", cap);
        s->scratch = bigger;
        s->scratch_cap = cap;
    }
    s->scratch[(*n)++] = *r;
    return OK;
}

/* All requests of the unit, off its wheel. */
static enum status take_all(struct sim *s, struct decode_unit *u, size_t *n)
{
    for (int b = 0; b < WHEEL_FINE + WHEEL_COARSE; b++) {
        struct sim_cursor c = sim_bucket_take(&s->pool, &u->wheel.fine[b]);
        struct sim_request r;
        while (sim_cursor_next(&s->pool, &c, &r)) TRY(keep(s, n, &r));
    }
    return OK;
}

static int oldest_first(const void *a, const void *b)
{
    const struct sim_request *x = a, *y = b;
    return (x->arrival > y->arrival) - (x->arrival < y->arrival);
}

/* Behind all older ones. */
static enum status to_host(struct sim_queue *q, const struct sim_request *r)
{
    TRY(sim_queue_push(q, r));
    for (uint32_t i = q->n - 1; i > 0 && sim_queue_at(q, i - 1)->arrival > r->arrival; i--) {
        *sim_queue_at(q, i) = *sim_queue_at(q, i - 1);
        *sim_queue_at(q, i - 1) = *r;
    }
    return OK;
}

enum status decode_rank_preempt(struct sim *s, struct decode_unit *u, int rank)
{
    const struct decode_limits *l = &u->balance.limits;
    int64_t room = (int64_t)(l->high_water * l->pages);
    size_t n = 0;
    TRY(take_all(s, u, &n));
    qsort(s->scratch, n, sizeof *s->scratch, oldest_first);
    for (; n > 0; n--) { /* from the youngest; the oldest of a rank always goes on */
        struct sim_request *r = &s->scratch[n - 1];
        const struct decode_rank *k = &u->rank[rank];
        uint64_t due = r->next;
        int64_t used = k->kv_tokens_q10 / (1024 * WORKLOAD_PAGE_TOKENS) + k->running / 2;
        bool out = (r->cached_pages & DECODE_RANK) == rank && k->running > 1 && used > room;
        if (!out) {
            TRY(sim_wheel_put(&s->pool, &u->wheel, due, r));
            continue;
        }
        decode_request_stop(s, u, r, (int64_t)(due - u->step));
        u->on_host++;
        u->waiting_pages += decode_request_load(s, r) - s->pages_per_request;
        s->count[SIM_PREEMPTED]++;
        TRY(to_host(&u->rank[rank].host, r));
    }
    return OK;
}
