/* disk_index.h - which pages a cache of bounded size holds, and which goes next: hash table and
 * eviction, nothing else. No I/O, no clock, no MPI: the disk tier (disk_store), the trace replay of
 * `moebatch bench kv --trace` and a simulator call the same code.
 *
 * A page is named by the 128-bit hash of all tokens up to its end (kvcache/prefix_index.h,
 * page_hash) and knows the page before it. Pages of a prompt form a chain and prompts a forest; a
 * page without its parent cannot be reached, so only leaves are evicted. Time is a number that the
 * caller counts in whatever unit he likes, never going back.
 *
 * The caller bounds the cache: while disk_index_count() is above his limit he removes
 * disk_index_victim().
 */
#ifndef KVCACHE_DISK_INDEX_H
#define KVCACHE_DISK_INDEX_H

#include "core/hash.h"
#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

/* DISK_POLICY_BEST is what the disk tier uses: see disk_index.c. */
enum disk_policy { DISK_POLICY_LRU, DISK_POLICY_BEST };

struct disk_index;

enum status disk_index_create(enum disk_policy policy, struct disk_index **out);
void disk_index_free(struct disk_index *ix);

uint32_t disk_index_count(const struct disk_index *ix);

/* The page's number, below disk_index_slots(), or -1. */
int32_t disk_index_find(const struct disk_index *ix, struct hash128 hash);
/* How many pages of the chain are there before the first that is not. */
uint32_t disk_index_match(const struct disk_index *ix, const struct hash128 *chain, uint32_t n);

/* A request of `total` full pages has found the first `hits` of them, here or anywhere, and
 * computed the others. Pages of its chain that are not here are skipped. */
void disk_index_touch(struct disk_index *ix, const struct hash128 *chain, uint32_t hits,
                      uint32_t total, double now);

/* Enters a page; parent: the hash of the page before (PAGE_HASH_ROOT for a first page), which
 * need not be there (yet). place: two numbers for the caller's own use (where the page lies).
 * The page's number; -1 when it is there already, -2 without memory. */
int32_t disk_index_insert(struct disk_index *ix, struct hash128 hash, struct hash128 parent,
                          uint32_t place, uint32_t slot, double now);
/* The page lies elsewhere now. */
void disk_index_move(struct disk_index *ix, int32_t page, uint32_t place, uint32_t slot);
void disk_index_remove(struct disk_index *ix, int32_t page);

/* The page that the policy would give up first, -1 when there is none. */
int32_t disk_index_victim(const struct disk_index *ix, double now);
/* The same order as a number: time since the last use, divided by how likely pages of its kind are
 * to be used again. The oldest in this sense goes first. */
double disk_index_age(const struct disk_index *ix, int32_t page, double now);

/* A prompt of n full pages goes through a cache of `capacity` pages (0: no bound): what is there is
 * found, the rest is entered, and the policy's victims go. Returns the pages found. For replays. */
uint32_t disk_index_replay(struct disk_index *ix, const struct hash128 *chain, uint32_t n,
                           uint32_t capacity, double now);

double disk_index_last(const struct disk_index *ix, int32_t page); /* time of the last use */
uint32_t disk_index_place(const struct disk_index *ix, int32_t page);
uint32_t disk_index_slot(const struct disk_index *ix, int32_t page);
struct hash128 disk_index_hash(const struct disk_index *ix, int32_t page);

#endif
