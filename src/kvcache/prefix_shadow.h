/* prefix_shadow.h - what a cache of so many pages would hit if prompts came in a given order: the
 * hashes of the pages it would hold, least recently used out, no contents. Two of them, one fed in
 * file order and one in the order of sending, tell what the order saves.
 *
 * A model of one cache of all prefill ranks together: it knows nothing of which rank holds a page
 * or of the pages that running requests keep busy. At most 2^16 pages are followed, so it holds at
 * most 2 MiB: of a larger cache a fixed share of all pages, chosen by hash, stands for all
 * (spatially hashed sampling: Waldspurger et al., FAST 2015), and counts are scaled up.
 */
#ifndef KVCACHE_PREFIX_SHADOW_H
#define KVCACHE_PREFIX_SHADOW_H

#include "core/hash.h"
#include "core/status.h"

#include <stdint.h>

struct shadow_page; /* prefix_shadow.c */

struct prefix_shadow {
    uint64_t hit_pages; /* so far, scaled */
    uint64_t rate;      /* one page of so many is followed */
    uint32_t capacity, used;
    struct shadow_page *page; /* [capacity]; owned */
    int32_t *bucket;          /* [n_buckets]; owned */
    uint32_t n_buckets;
    int32_t oldest, newest;
};

/* A cache of `pages` pages (none: it never hits). */
enum status prefix_shadow_init(struct prefix_shadow *s, uint64_t pages);
void prefix_shadow_free(struct prefix_shadow *s);

/* A prompt comes: its first `usable` pages may hit, all of them are in the cache afterwards. chain:
 * [pages] chained page hashes. */
void prefix_shadow_prompt(struct prefix_shadow *s, const struct hash128 *chain, int32_t pages,
                          int32_t usable);

#endif
