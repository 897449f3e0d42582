/* disk_store.h - the disk tier of the KV cache: pages of prompts in a folder that any number of
 * ranks and jobs share at once, without a server and without file locks.
 *
 * The folder holds
 *   kv-MODEL-WRITER-NUMBER.open   a segment that its one writer is filling
 *   kv-MODEL-WRITER-NUMBER.seg    a sealed one (fsync, close, rename), never changed again
 *   kv-MODEL-WRITER-NUMBER.dying  one that somebody is evicting
 *   WRITER.lease                  a living process and the segments it reads; renewed, else expired
 *   evict.lock                    whoever makes room or seals just now; expires too
 * MODEL is the fingerprint's first half; models share a folder and its bound, not its pages. The
 * index lives in memory and comes from the segments' tables; another job's segments are found by
 * looking at the folder again now and then. A segment whose writer is gone is read record by
 * record, sealed and kept by the first that notices. All sealed segments together stay within
 * `bytes`.
 *
 * Room is made by whole segments, the one whose pages are worth least first (disk_index_age); those
 * of its pages that are younger than half of its oldest one's age are written again.
 *
 * A reader leases a segment before it opens it; whoever evicts renames it first and looks at the
 * leases then: so either the reader does not find it (a miss) or the lease is seen. Every read
 * page is checked (checksum, hash, token ids); what is wrong in any way is a miss and is forgotten.
 *
 * Two threads do all file operations: one reads and writes pages, the other seals, evicts and looks
 * at the folder. The caller's calls only look into memory and never wait for a disk. Ownership: the
 * store owns its buffers and threads; a page to be written or read is the caller's and must stay
 * (and, when written, not change) until its event has come.
 */
#ifndef KVCACHE_DISK_STORE_H
#define KVCACHE_DISK_STORE_H

#include "core/status.h"
#include "kvcache/disk_format.h"

#include <stdbool.h>
#include <stdint.h>

struct disk_store_config {
    const char *dir;        /* made if it is not there (its parent must be) */
    uint64_t bytes;         /* bound of the sealed segments */
    uint64_t segment_bytes; /* of a full segment; 0: the store's choice */
    struct disk_shape shape;
    int rank;       /* for names alone */
    const char *io; /* back-end, see disk_io_open; NULL: the best */
    double lease_s; /* a lease this old has expired; 0: 60 */
    double scan_s;  /* between looks at the folder; 0: 5 */
    /* Called by the store's thread: bytes [at, at + bytes) of a page between the caller's memory
     * and the store's. A page that fails its check in the end may have been scattered. */
    void (*gather)(void *arg, int32_t page, size_t at, size_t bytes, char *out);
    void (*scatter)(void *arg, int32_t page, size_t at, size_t bytes, const char *in);
    void *arg;
};

/* A page to read or write. */
struct disk_page {
    struct disk_key key;
    const int32_t *tokens; /* [page_tokens], copied */
    int32_t page;          /* the caller's number of it */
    uint64_t user;         /* comes back in the event */
};

enum disk_event_kind {
    DISK_EVENT_READ, /* the page is there */
    DISK_EVENT_MISS, /* it could not be read, or was not what was asked for */
    DISK_EVENT_TAKEN /* a page to be written has been copied: its memory is free again */
};

struct disk_event {
    enum disk_event_kind kind;
    int32_t page;
    uint64_t user;
};

struct disk_stats {
    uint64_t pages, segments; /* in the index now */
    uint64_t found_at_start;  /* pages */
    uint64_t folder_bytes;    /* of sealed segments, all models */
    uint64_t read_pages, read_bytes;
    uint64_t missed_pages; /* were in the index, but could not be read */
    uint64_t bad_pages;    /* of these: read, but not as they were written */
    uint64_t written_pages, written_bytes;
    uint64_t dropped_pages; /* not kept: the writer behind, the disk full, or all else leased */
    uint64_t evicted_pages, evicted_segments, adopted_segments;
    uint64_t moved_pages; /* of evicted segments, too young to go: written again */
    const char *io;       /* back-end */
    bool direct;          /* with O_DIRECT */
    unsigned depth;       /* reads and writes at once */
};

struct disk_store;

enum status disk_store_open(const struct disk_store_config *config, struct disk_store **out);
/* Writes what is queued, seals, ends the threads. Events that have not been taken are lost. last:
 * the closing figures, may be NULL. */
void disk_store_close(struct disk_store *store, struct disk_stats *last);

/* How many of chain[from .. n) are there before the first that is not. */
uint32_t disk_store_match(struct disk_store *store, const struct hash128 *chain, uint32_t from,
                          uint32_t n);
/* Whether the page is there or on its way there. */
bool disk_store_has(struct disk_store *store, struct hash128 hash);
/* A request has found the first `hits` of its `total` full pages, wherever, and computed the
 * others. */
void disk_store_touch(struct disk_store *store, const struct hash128 *chain, uint32_t hits,
                      uint32_t total);

/* Queues a read; one READ or MISS event follows. False without memory: no event. */
bool disk_store_read(struct disk_store *store, const struct disk_page *page);
/* Queues a write; one TAKEN event follows. False: there already, or the writer is behind (dropped):
 * no event. */
bool disk_store_write(struct disk_store *store, const struct disk_page *page);
/* Takes up to n events; 0 costs next to nothing. */
uint32_t disk_store_poll(struct disk_store *store, struct disk_event *events, uint32_t n);

void disk_store_stats(struct disk_store *store, struct disk_stats *out);
/* Looks at the folder now and waits until that is done; for tests and benchmarks. */
void disk_store_rescan(struct disk_store *store);
/* Seals the open segment and waits until it is; for tests and benchmarks. */
void disk_store_seal(struct disk_store *store);

#endif
