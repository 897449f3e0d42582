/* route_index.h - the router's memory of which rank holds which prompt page: a hint.
 *
 * A bounded table of (page-chain hash, rank); in a full bucket the newest replaces the oldest. It
 * may be wrong both ways (the rank may have evicted the page; a note may have been dropped): the
 * rank's own prefix index decides, and results never depend on it.
 */
#ifndef KVCACHE_ROUTE_INDEX_H
#define KVCACHE_ROUTE_INDEX_H

#include "core/hash.h"
#include "core/status.h"

#include <stdint.h>

struct route_entry;

struct route_index {
    uint32_t page_tokens;
    uint32_t n_buckets;          /* a power of two */
    uint64_t stamp;              /* notes so far */
    struct route_entry *entries; /* [n_buckets, ways]; owned */
};

/* Room for at least `entries` notes (24 bytes each, rounded up to a power of two). */
enum status route_index_init(struct route_index *ix, uint32_t entries, uint32_t page_tokens);
void route_index_free(struct route_index *ix);

void route_index_note(struct route_index *ix, struct hash128 hash, int rank);
/* Notes every full page of a prompt. */
void route_index_note_prompt(struct route_index *ix, const int32_t *tokens, uint32_t n, int rank);

/* cached: [n_ranks] out, tokens that each rank is thought to hold from the start of the prompt,
 * whole pages, at most n - 1. Returns the rank with most (the lowest such), -1 if none has any. */
int route_index_match(const struct route_index *ix, const int32_t *tokens, uint32_t n, int n_ranks,
                      uint32_t *cached);

#endif
