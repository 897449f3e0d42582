/* prefix_index.h - which full pages of prompts this rank still holds, by the tokens before them.
 *
 * A page is found by the hash of its tokens chained to the hash of the page before it; its token
 * ids are kept and compared, and its parent must be the page just matched, so a match is exact
 * whatever the hash does. Only full pages computed by prefill may be inserted: the caller's
 * promise. The index holds one pool reference per page; a page that only the index holds may be
 * evicted, least recently used first and never before its children (a child without its parent
 * is useless).
 *
 * Ownership: the pool is borrowed and outlives the index. No page's contents are touched.
 */
#ifndef KVCACHE_PREFIX_INDEX_H
#define KVCACHE_PREFIX_INDEX_H

#include "core/hash.h"
#include "core/status.h"
#include "kvcache/page_pool.h"

#include <stdint.h>

/* The hash of a full page; prev = the hash of the page before it, PAGE_HASH_ROOT for the first. */
#define PAGE_HASH_ROOT ((struct hash128){0, 0})
static inline struct hash128 page_hash(const int32_t *tokens, uint32_t page_tokens,
                                       struct hash128 prev)
{
    return hash128(tokens, (size_t)page_tokens * sizeof *tokens, prev);
}

struct prefix_entry; /* prefix_index.c */

struct prefix_index {
    struct page_pool *pool; /* borrowed */
    uint32_t page_tokens;
    uint32_t n_entries;   /* pages held */
    uint64_t hit_tokens;  /* of lookups: found */
    uint64_t miss_tokens; /* of lookups: to be computed */
    uint64_t evicted_pages;
    struct prefix_entry *entries; /* [pool->pages], by page number; owned */
    int32_t *tokens;              /* [pool->pages, page_tokens]; owned */
    int32_t *buckets;             /* [n_buckets] heads of hash chains; owned */
    uint32_t n_buckets;
    int32_t lru_oldest, lru_newest;
};

enum status prefix_index_init(struct prefix_index *ix, struct page_pool *pool,
                              uint32_t page_tokens);
/* What it allocates. */
size_t prefix_index_bytes(uint32_t pages, uint32_t page_tokens);
/* Gives back the index's references. */
void prefix_index_free(struct prefix_index *ix);

/* The longest run of cached full pages at the start of the prompt that leaves at least one of its
 * n tokens to compute. Writes their numbers to pages[], room for n / page_tokens, and takes one
 * reference on each for the caller (page_pool_unref later). Returns the pages; the cached tokens
 * are pages * page_tokens. Counts hits and misses. */
uint32_t prefix_index_lookup(struct prefix_index *ix, const int32_t *tokens, uint32_t n,
                             int32_t *pages);
/* The same answer without references, counters or a change of the LRU order. */
uint32_t prefix_index_peek(const struct prefix_index *ix, const int32_t *tokens, uint32_t n);

/* Enters the full pages of tokens[0..n): pages[i] holds tokens i * page_tokens onwards. Those
 * already there stay as they are (the caller's page remains private to it). May be called again
 * with a longer n as chunks finish. Returns the pages newly entered. */
uint32_t prefix_index_insert(struct prefix_index *ix, const int32_t *tokens, uint32_t n,
                             const int32_t *pages);

/* Frees up to n pages that only the index holds; returns how many. */
uint32_t prefix_index_evict(struct prefix_index *ix, uint32_t n);

/* page_pool_alloc that evicts when the free pages do not suffice; none and false if even that is
 * not enough. */
bool prefix_index_alloc(struct prefix_index *ix, uint32_t n, int32_t *out);

/* Pages that evicting everything possible would free. */
uint32_t prefix_index_evictable(const struct prefix_index *ix);

#endif
