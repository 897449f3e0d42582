/* route_index.c - buckets of WAYS entries chosen by the hash; a popular page has one entry per
 * rank, in its bucket.
 */
#include "kvcache/route_index.h"

#include "kvcache/prefix_index.h"

#include <stdlib.h>
#include <string.h>

enum { WAYS = 8 };

struct route_entry {
    uint64_t tag;   /* hash.hi; the bucket comes from hash.lo */
    uint64_t stamp; /* when noted; 0 = empty */
    int32_t rank;
};

enum status route_index_init(struct route_index *ix, uint32_t entries, uint32_t page_tokens)
{
    memset(ix, 0, sizeof *ix);
    if (page_tokens < 1 || entries > 1u << 30)
        return error_set(ERR_BUG, "route index: %u entries, pages of %u tokens", entries,
                         page_tokens);
    ix->page_tokens = page_tokens;
    ix->n_buckets = 1;
    while (ix->n_buckets * WAYS < entries) ix->n_buckets *= 2;
    ix->entries = calloc((size_t)ix->n_buckets * WAYS, sizeof *ix->entries);
    if (!ix->entries)
        return error_set(ERR_RESOURCE, "no memory for a route index of %u entries", entries);
    return OK;
}

void route_index_free(struct route_index *ix)
{
    free(ix->entries);
    memset(ix, 0, sizeof *ix);
}

static struct route_entry *route_bucket(const struct route_index *ix, struct hash128 hash)
{
    return ix->entries + (size_t)(hash.lo & (ix->n_buckets - 1)) * WAYS;
}

void route_index_note(struct route_index *ix, struct hash128 hash, int rank)
{
    struct route_entry *bucket = route_bucket(ix, hash), *into = bucket;
    for (int i = 0; i < WAYS; i++) {
        struct route_entry *e = &bucket[i];
        if (e->stamp && e->tag == hash.hi && e->rank == rank) {
            into = e;
            break;
        }
        if (e->stamp < into->stamp) into = e;
    }
    *into = (struct route_entry){.tag = hash.hi, .stamp = ++ix->stamp, .rank = rank};
}

void route_index_note_prompt(struct route_index *ix, const int32_t *tokens, uint32_t n, int rank)
{
    struct hash128 hash = PAGE_HASH_ROOT;
    for (uint32_t i = 0; i < n / ix->page_tokens; i++) {
        hash = page_hash(tokens + (size_t)i * ix->page_tokens, ix->page_tokens, hash);
        route_index_note(ix, hash, rank);
    }
}

int route_index_match(const struct route_index *ix, const int32_t *tokens, uint32_t n, int n_ranks,
                      uint32_t *cached)
{
    memset(cached, 0, (size_t)n_ranks * sizeof *cached);
    struct hash128 hash = PAGE_HASH_ROOT;
    uint32_t most = n ? (n - 1) / ix->page_tokens : 0;
    int best = -1;
    for (uint32_t page = 0; page < most; page++) {
        uint32_t before = page * ix->page_tokens;
        bool any = false;
        hash = page_hash(tokens + before, ix->page_tokens, hash);
        const struct route_entry *bucket = route_bucket(ix, hash);
        for (int i = 0; i < WAYS; i++) {
            const struct route_entry *e = &bucket[i];
            if (!e->stamp || e->tag != hash.hi || e->rank < 0 || e->rank >= n_ranks) continue;
            if (cached[e->rank] != before) continue; /* an earlier page is missing there */
            cached[e->rank] = before + ix->page_tokens;
            any = true;
        }
        if (!any) break; /* nobody's run goes on */
    }
    for (int rank = 0; rank < n_ranks; rank++)
        if (cached[rank] && (best < 0 || cached[rank] > cached[best])) best = rank;
    return best;
}
