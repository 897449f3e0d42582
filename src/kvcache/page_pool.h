/* page_pool.h - the KV pages of a rank as numbers 0 .. pages-1 with reference counts.
 *
 * Knows nothing of what a page holds. A page is free (count 0) or has one reference per holder
 * (a request, the prefix index, a transfer). Every operation is O(1) per page. Wrong use (unref
 * of a free page) is a bug and asserts.
 */
#ifndef KVCACHE_PAGE_POOL_H
#define KVCACHE_PAGE_POOL_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct page_pool {
    uint32_t pages;
    uint32_t n_free;
    int32_t *free_list; /* [pages] a stack, its top at n_free - 1; owned */
    uint32_t *refs;     /* [pages]; owned */
};

enum status page_pool_init(struct page_pool *pool, uint32_t pages);
/* What it allocates. */
static inline size_t page_pool_bytes(uint32_t pages)
{
    return ((size_t)pages + 1) * (sizeof(int32_t) + sizeof(uint32_t));
}
void page_pool_free(struct page_pool *pool);

/* n pages with one reference each into out[n], or none at all and false. */
bool page_pool_alloc(struct page_pool *pool, uint32_t n, int32_t *out);
void page_pool_ref(struct page_pool *pool, int32_t page);
/* Drops one reference; true when the page became free. */
bool page_pool_unref(struct page_pool *pool, int32_t page);
void page_pool_unref_all(struct page_pool *pool, const int32_t *pages, uint32_t n);

static inline uint32_t page_pool_used(const struct page_pool *pool)
{
    return pool->pages - pool->n_free;
}

/* Pages for n tokens. */
static inline uint32_t pages_for(uint32_t tokens, uint32_t page_tokens)
{
    return tokens / page_tokens + (tokens % page_tokens != 0);
}

#endif
