/* prefix_index.c - entries by page number, found through a chained hash table, ordered in one LRU
 * list.
 *
 * Every lookup and insert walks a prompt from its first page and makes the pages it passes newest
 * from the last to the first, so a parent is always newer than its children and the oldest entry
 * of the list is a leaf. A page that somebody still uses is passed over by eviction, and so is
 * then its parent (n_children), which may be unused: a request whose own copy of the parent came
 * second keeps a child alive without it.
 */
#include "kvcache/prefix_index.h"

#include <stdlib.h>
#include <string.h>

enum { NONE = -1 };

struct prefix_entry {
    struct hash128 hash;
    int32_t parent; /* page of the page before, NONE for a first page */
    int32_t n_children;
    int32_t kept_children; /* scratch of prefix_index_evictable, 0 outside it */
    int32_t next;          /* in the hash bucket */
    int32_t older, newer;
    bool held; /* this page is in the index */
};

static uint32_t bucket_count(uint32_t pages)
{
    uint32_t n = 16;
    while (n < pages) n *= 2;
    return n;
}

size_t prefix_index_bytes(uint32_t pages, uint32_t page_tokens)
{
    return ((size_t)pages + 1) * (sizeof(struct prefix_entry) + page_tokens * sizeof(int32_t)) +
           bucket_count(pages) * sizeof(int32_t);
}

enum status prefix_index_init(struct prefix_index *ix, struct page_pool *pool, uint32_t page_tokens)
{
    memset(ix, 0, sizeof *ix);
    if (page_tokens < 1) return error_set(ERR_BUG, "prefix index: pages of 0 tokens");
    ix->pool = pool;
    ix->page_tokens = page_tokens;
    ix->n_buckets = bucket_count(pool->pages);
    size_t pages = (size_t)pool->pages + 1;
    ix->entries = calloc(pages, sizeof *ix->entries);
    ix->tokens = malloc(pages * page_tokens * sizeof *ix->tokens);
    ix->buckets = malloc(ix->n_buckets * sizeof *ix->buckets);
    if (!ix->entries || !ix->tokens || !ix->buckets) {
        free(ix->entries);
        free(ix->tokens);
        free(ix->buckets);
        memset(ix, 0, sizeof *ix);
        return error_set(ERR_RESOURCE, "no memory for the prefix index of %u pages", pool->pages);
    }
    memset(ix->buckets, 0xff, ix->n_buckets * sizeof *ix->buckets);
    ix->lru_oldest = ix->lru_newest = NONE;
    return OK;
}

void prefix_index_free(struct prefix_index *ix)
{
    for (int32_t page = ix->pool ? ix->lru_oldest : NONE; page != NONE;
         page = ix->entries[page].newer)
        page_pool_unref(ix->pool, page);
    free(ix->entries);
    free(ix->tokens);
    free(ix->buckets);
    memset(ix, 0, sizeof *ix);
}

static int32_t *bucket_of(const struct prefix_index *ix, struct hash128 hash)
{
    return &ix->buckets[hash.lo & (ix->n_buckets - 1)];
}

static int32_t *page_tokens_of(const struct prefix_index *ix, int32_t page)
{
    return ix->tokens + (size_t)page * ix->page_tokens;
}

static void lru_unlink(struct prefix_index *ix, int32_t page)
{
    struct prefix_entry *e = &ix->entries[page];
    *(e->older == NONE ? &ix->lru_oldest : &ix->entries[e->older].newer) = e->newer;
    *(e->newer == NONE ? &ix->lru_newest : &ix->entries[e->newer].older) = e->older;
}

static void lru_make_newest(struct prefix_index *ix, int32_t page)
{
    struct prefix_entry *e = &ix->entries[page];
    e->older = ix->lru_newest;
    e->newer = NONE;
    *(e->older == NONE ? &ix->lru_oldest : &ix->entries[e->older].newer) = page;
    ix->lru_newest = page;
}

/* The page and those before it, last first. */
static void lru_touch_chain(struct prefix_index *ix, int32_t page)
{
    for (; page != NONE; page = ix->entries[page].parent) {
        lru_unlink(ix, page);
        lru_make_newest(ix, page);
    }
}

/* The page with these tokens after `parent`; NONE. */
static int32_t find_page(const struct prefix_index *ix, struct hash128 hash, int32_t parent,
                         const int32_t *tokens)
{
    for (int32_t page = *bucket_of(ix, hash); page != NONE; page = ix->entries[page].next) {
        const struct prefix_entry *e = &ix->entries[page];
        if (e->hash.lo == hash.lo && e->hash.hi == hash.hi && e->parent == parent &&
            memcmp(page_tokens_of(ix, page), tokens, ix->page_tokens * sizeof *tokens) == 0)
            return page;
    }
    return NONE;
}

/* Pages matched, the last of them in *last. pages may be NULL. */
static uint32_t match_run(const struct prefix_index *ix, const int32_t *tokens, uint32_t n,
                          int32_t *pages, int32_t *last)
{
    struct hash128 hash = PAGE_HASH_ROOT;
    uint32_t most = n ? (n - 1) / ix->page_tokens : 0, found = 0;
    *last = NONE;
    for (; found < most; found++) {
        const int32_t *of_page = tokens + (size_t)found * ix->page_tokens;
        hash = page_hash(of_page, ix->page_tokens, hash);
        int32_t page = find_page(ix, hash, *last, of_page);
        if (page == NONE) break;
        if (pages) pages[found] = page;
        *last = page;
    }
    return found;
}

uint32_t prefix_index_lookup(struct prefix_index *ix, const int32_t *tokens, uint32_t n,
                             int32_t *pages)
{
    int32_t last;
    uint32_t found = match_run(ix, tokens, n, pages, &last);
    for (uint32_t i = 0; i < found; i++) page_pool_ref(ix->pool, pages[i]);
    lru_touch_chain(ix, last);
    ix->hit_tokens += (uint64_t)found * ix->page_tokens;
    ix->miss_tokens += n - (uint64_t)found * ix->page_tokens;
    return found;
}

uint32_t prefix_index_peek(const struct prefix_index *ix, const int32_t *tokens, uint32_t n)
{
    int32_t last;
    return match_run(ix, tokens, n, NULL, &last);
}

static void enter_page(struct prefix_index *ix, struct hash128 hash, int32_t parent,
                       const int32_t *tokens, int32_t page)
{
    int32_t *bucket = bucket_of(ix, hash);
    ix->entries[page] =
        (struct prefix_entry){.hash = hash, .parent = parent, .next = *bucket, .held = true};
    *bucket = page;
    memcpy(page_tokens_of(ix, page), tokens, ix->page_tokens * sizeof *tokens);
    if (parent != NONE) ix->entries[parent].n_children++;
    lru_make_newest(ix, page);
    page_pool_ref(ix->pool, page);
    ix->n_entries++;
}

uint32_t prefix_index_insert(struct prefix_index *ix, const int32_t *tokens, uint32_t n,
                             const int32_t *pages)
{
    struct hash128 hash = PAGE_HASH_ROOT;
    int32_t last = NONE;
    uint32_t entered = 0;
    for (uint32_t i = 0; i < n / ix->page_tokens; i++) {
        const int32_t *of_page = tokens + (size_t)i * ix->page_tokens;
        hash = page_hash(of_page, ix->page_tokens, hash);
        int32_t page = find_page(ix, hash, last, of_page);
        if (page == NONE) {
            page = pages[i];
            /* Never twice: a page in the index under other tokens is not this prompt's. */
            if (ix->entries[page].held) break;
            enter_page(ix, hash, last, of_page, page);
            entered++;
        }
        last = page;
    }
    lru_touch_chain(ix, last);
    return entered;
}

static void remove_page(struct prefix_index *ix, int32_t page)
{
    struct prefix_entry *e = &ix->entries[page];
    int32_t *at = bucket_of(ix, e->hash);
    while (*at != page) at = &ix->entries[*at].next;
    *at = e->next;
    if (e->parent != NONE) ix->entries[e->parent].n_children--;
    lru_unlink(ix, page);
    e->held = false;
    page_pool_unref(ix->pool, page);
    ix->n_entries--;
}

/* A leaf of the oldest chain is met before its parent, so one pass from the oldest frees whole
 * chains. */
uint32_t prefix_index_evict(struct prefix_index *ix, uint32_t n)
{
    uint32_t freed = 0;
    for (int32_t page = ix->lru_oldest, newer; page != NONE && freed < n; page = newer) {
        newer = ix->entries[page].newer;
        if (ix->entries[page].n_children > 0 || ix->pool->refs[page] > 1) continue;
        remove_page(ix, page);
        freed++;
    }
    ix->evicted_pages += freed;
    return freed;
}

bool prefix_index_alloc(struct prefix_index *ix, uint32_t n, int32_t *out)
{
    struct page_pool *pool = ix->pool;
    if (n > pool->n_free) {
        /* Not worth emptying the cache for a request that does not fit anyway. */
        if (n - pool->n_free > prefix_index_evictable(ix)) return false;
        prefix_index_evict(ix, n - pool->n_free);
    }
    return page_pool_alloc(pool, n, out);
}

/* Children are older than their parent, so each is judged before it. A page can go when nobody
 * else uses it and all its children can go: those that cannot are counted on the way up. */
uint32_t prefix_index_evictable(const struct prefix_index *ix)
{
    uint32_t evictable = 0;
    for (int32_t page = ix->lru_oldest; page != NONE; page = ix->entries[page].newer) {
        struct prefix_entry *e = &ix->entries[page];
        bool stays = ix->pool->refs[page] > 1 || e->kept_children > 0;
        if (!stays)
            evictable++;
        else if (e->parent != NONE)
            ix->entries[e->parent].kept_children++;
        e->kept_children = 0;
    }
    return evictable;
}
