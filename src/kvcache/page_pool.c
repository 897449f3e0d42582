/* page_pool.c - a stack of free pages and a count per page. */
#include "kvcache/page_pool.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum status page_pool_init(struct page_pool *pool, uint32_t pages)
{
    memset(pool, 0, sizeof *pool);
    if (pages > INT32_MAX) return error_set(ERR_BUG, "page pool: %u pages", pages);
    pool->free_list = malloc(((size_t)pages + 1) * sizeof *pool->free_list);
    pool->refs = calloc((size_t)pages + 1, sizeof *pool->refs);
    if (!pool->free_list || !pool->refs) {
        page_pool_free(pool);
        return error_set(ERR_RESOURCE, "no memory to count %u KV pages", pages);
    }
    pool->pages = pool->n_free = pages;
    for (uint32_t i = 0; i < pages; i++) pool->free_list[i] = (int32_t)(pages - 1 - i);
    return OK;
}

void page_pool_free(struct page_pool *pool)
{
    free(pool->free_list);
    free(pool->refs);
    memset(pool, 0, sizeof *pool);
}

bool page_pool_alloc(struct page_pool *pool, uint32_t n, int32_t *out)
{
    if (n > pool->n_free) return false;
    for (uint32_t i = 0; i < n; i++) {
        out[i] = pool->free_list[--pool->n_free];
        pool->refs[out[i]] = 1;
    }
    return true;
}

void page_pool_ref(struct page_pool *pool, int32_t page)
{
    assert(page >= 0 && (uint32_t)page < pool->pages && pool->refs[page] > 0);
    pool->refs[page]++;
}

bool page_pool_unref(struct page_pool *pool, int32_t page)
{
    assert(page >= 0 && (uint32_t)page < pool->pages && pool->refs[page] > 0);
    if (--pool->refs[page] > 0) return false;
    pool->free_list[pool->n_free++] = page;
    return true;
}

void page_pool_unref_all(struct page_pool *pool, const int32_t *pages, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) page_pool_unref(pool, pages[i]);
}
