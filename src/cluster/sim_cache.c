/* sim_cache.c - the prefix cache as pages by second of last use. An entry (a conversation) whose
 * last use lies before the oldest second kept is gone. Each rank holds its share of every
 * second; only their sums mean something, and a share may be negative. */
#include "cluster/sim_internal.h"

void sim_cache_lookup(struct sim *s, struct sim_request *r)
{
    if (r->touch && r->touch - 1 < s->cache_oldest) {
        s->count[SIM_CACHE_LOST]++;
        r->touch = 0;
        r->cached_pages = 0;
    }
}

void sim_cache_touch(struct sim *s, struct sim_request *r, double t)
{
    int64_t second = (int64_t)t, pages = r->prompt / WORKLOAD_PAGE_TOKENS;
    if (second >= s->cache_seconds) second = s->cache_seconds - 1;
    if (r->touch && r->touch - 1 >= s->cache_oldest) {
        s->cache[r->touch - 1] -= r->cached_pages;
        s->cache_pages -= r->cached_pages;
    }
    s->cache[second] += pages;
    s->cache_pages += pages;
    r->touch = (uint32_t)second + 1;
}

void sim_cache_head(struct sim *s)
{
    s->head[HEAD_CACHE] = s->cache_pages;
    for (int i = 0; i < CACHE_AHEAD; i++) {
        int64_t second = s->cache_oldest + i;
        s->head[HEAD_OLDEST + i] = second < s->cache_seconds ? s->cache[second] : 0;
    }
}

void sim_cache_evict(struct sim *s)
{
    int64_t total = s->view[HEAD_CACHE];
    if (s->cfg->cache_pages <= 0) return;
    for (int i = 0; i < CACHE_AHEAD && (double)total > s->cfg->cache_pages; i++) {
        if (s->cache_oldest + 1 >= (int64_t)s->t1) return; /* what is in use stays */
        total -= s->view[HEAD_OLDEST + i];
        s->cache_pages -= s->cache[s->cache_oldest];
        s->cache[s->cache_oldest++] = 0;
    }
}
