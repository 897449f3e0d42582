/* disk.h - the disk tier of a rank that prefills: fetches the cached prefixes of queued requests
 * while others compute, and hands new pages of prompts to the writer.
 *
 * Look-ups go to memory first (kvcache/prefix_index), then to disk (kvcache/disk_store). Pages from
 * disk go into free pages of the pool and, when all asked for have come, into the memory index,
 * where the request finds them when it is admitted: a page from disk and one computed here are the
 * same bits. Nothing here waits: a request whose pages are under way is passed over until they are
 * there, and after FETCH_PATIENCE_S is computed instead.
 *
 * Pages are borrowed from the pool by reference: those of a fetch until its request is admitted,
 * those to be written until the writer has copied them. struct rank_disk is owned by its rank.
 */
#ifndef ENGINE_DISK_H
#define ENGINE_DISK_H

#include "core/hash.h"
#include "core/status.h"
#include "kvcache/disk_store.h"

#include <stdbool.h>

struct rank;
struct rank_disk;
struct sequence;

/* fingerprint: of the checkpoint and all else that decides a page's bits. */
enum status rank_disk_open(struct rank *r, struct hash128 fingerprint);
/* Writes what is queued, seals, ends the threads; figures stay readable until rank_disk_free. */
void rank_disk_close(struct rank *r);
void rank_disk_free(struct rank *r);

/* A request has come: its prefix may be fetched. */
void rank_disk_arrived(struct rank *r, struct sequence *s);
/* Takes in what has been read and written, and begins fetches; cheap when nothing has changed. */
void rank_disk_poll(struct rank *r);
/* False while pages of the request are under way. */
bool rank_disk_ready(struct rank *r, struct sequence *s);
/* Admitted with `cached` pages found in memory: how many of these its fetch brought; the fetch's
 * pages are free to go. */
uint32_t rank_disk_admitted(struct rank *r, struct sequence *s, uint32_t cached);
/* Gives up pages that wait for requests not yet admitted (they stay in the memory index as long as
 * there is room); false when there are none. */
bool rank_disk_make_room(struct rank *r);
/* s has computed more of its prompt: its full pages may be written. */
void rank_disk_offer(struct rank *r, struct sequence *s);

/* Pages looked for on disk and not there, and the store's figures. */
uint64_t rank_disk_missed(const struct rank_disk *d);
void rank_disk_stats(const struct rank_disk *d, struct disk_stats *out);

#endif
