/* disk_state.h - the store's struct, shared by disk_store.c (the caller's side), disk_pages.c (the
 * thread that reads and writes pages), disk_keeper.c and disk_evict.c (the thread that looks after
 * the folder). Private to disk_store.
 *
 * One mutex guards index, segments' counters, queues and statistics; nobody holds it over a system
 * call that may wait for a disk. Segments are added and removed by the keeper alone, except that
 * the page thread makes the open one and hands it over when it is full.
 */
#ifndef KVCACHE_DISK_STATE_H
#define KVCACHE_DISK_STATE_H

#include "kvcache/disk_dir.h"
#include "kvcache/disk_index.h"
#include "kvcache/disk_io.h"
#include "kvcache/disk_store.h"

#include <pthread.h>

enum { DISK_EVENTS = 1024 };

struct disk_segment {
    char name[DISK_NAME_MAX]; /* as it was when last seen */
    bool open;                /* this store is filling or sealing it */
    bool foreign;             /* another model's: only its size and age count */
    bool gone;                /* no longer in the folder */
    uint64_t id;              /* hash of the name without suffix */
    uint64_t bytes;           /* of the file, sealed */
    double modified;          /* s, file system's clock; by anybody */
    double touched;           /* s, when this store last touched it */
    uint64_t seen;            /* number of the last look at the folder that met it */
    uint32_t live;            /* pages in the index */
    uint32_t slots;           /* records given out */
    uint32_t n_rows;          /* of rows */
    struct disk_row *rows;    /* [capacity, or as many as there are]; owned */
    int fd;                   /* -1: not open */
    uint32_t flying;          /* reads and writes under way */
    double leased_until;      /* s; 0: not leased */
    double used;              /* s, last read, for closing files */
};

struct disk_job {
    struct disk_io_request io; /* first: the back-end's pointer is the job's */
    struct disk_job *next;
    bool write;
    struct disk_key key;
    int32_t page;
    uint64_t user;
    uint32_t segment, slot;
    char *buffer;
    char *record;     /* [stride] of a page that is moved, owned; NULL: the caller's page */
    double last;      /* s, last use of a page that is moved */
    int32_t tokens[]; /* [page_tokens]; not of a page that is moved */
};

struct disk_jobs {
    struct disk_job *head, **tail;
    uint32_t n;
};

struct disk_store {
    struct disk_store_config c;
    struct disk_shape shape;
    size_t stride;
    uint32_t segment_slots; /* of a full segment */
    struct disk_dir dir;
    struct disk_io *io;
    const struct disk_io_backend *backend;
    bool direct;

    pthread_mutex_t mutex;
    pthread_mutex_t lease_mutex; /* over the writing of the lease */
    pthread_cond_t page_cond, keeper_cond, done_cond;
    pthread_t page_thread, keeper_thread;
    bool started, closing, pages_done;

    struct disk_index *index;
    struct disk_segment **segment; /* [n_segments], NULL: free number */
    uint32_t n_segments, cap_segments;
    uint32_t next_number; /* of this writer's next segment */
    int32_t open_segment; /* being filled, -1: none */
    int32_t sealing;      /* full, being sealed, -1: none */
    double open_since;    /* s */
    bool seal_wanted;     /* even if it is not full */
    bool moved_last;      /* pages were moved although the store is closing: not again */
    bool broken;          /* writing has failed: no more */

    struct disk_jobs reads, writes, flying;
    char *buffers;      /* [n_buffers][stride]; owned */
    char **free_buffer; /* [n_free] */
    uint32_t n_buffers, n_free, write_limit;
    uint32_t write_buffers; /* of them, writes under way */

    uint64_t looks, looks_wanted; /* at the folder: done, asked for */
    double next_scan, next_renew;
    bool lease_changed;

    struct disk_event *event; /* [cap_events] ring */
    uint32_t event_first, n_events, cap_events;
    uint32_t events_waiting; /* n_events, read without the mutex (atomic) */

    struct disk_stats stats;
};

/* ---- disk_store.c: under the mutex unless said otherwise ---- */
double disk_now(const struct disk_store *s);
struct disk_segment *disk_segment_new(struct disk_store *s, const char *name, uint32_t *number);
/* Forgets the segment and its pages. Nothing is under way in it. */
void disk_segment_forget(struct disk_store *s, uint32_t number);
/* Takes all its pages out of the index; the segment itself stays known. */
void disk_segment_unindex(struct disk_store *s, uint32_t number);
uint64_t disk_segment_id(const char *name);
void disk_put_event(struct disk_store *s, enum disk_event_kind kind, const struct disk_job *job);
/* Rewrites the lease from the segments that are leased now. Called without the mutex. */
bool disk_lease_now(struct disk_store *s);
/* Opens a file of the folder, with O_DIRECT where it works; no mutex needed. */
int disk_open_file(struct disk_store *s, const char *name, int flags);

/* Queues a page of an evicted segment to be written again; takes the record. */
void disk_queue_moved(struct disk_store *s, const struct disk_key *key, char *record, double last);

/* ---- disk_evict.c: the keeper's thread ---- */
/* The rows enter the index; under the mutex. */
void disk_index_rows(struct disk_store *s, uint32_t number, double when);
/* Of sealed segments; under the mutex. */
uint64_t disk_total_bytes(const struct disk_store *s);
/* Room for `need` more bytes beside `dying` ones that are just being evicted; holding the folder's
 * lock, after a look at it, without the mutex. */
bool disk_make_room(struct disk_store *s, uint64_t need, uint64_t dying);

/* ---- disk_keeper.c, for disk_evict.c ---- */
void *disk_blocks(size_t bytes); /* aligned for direct I/O; free() */
bool disk_read_all(int fd, void *out, size_t bytes, uint64_t at);

/* ---- threads ---- */
void *disk_pages_thread(void *store);
void *disk_keeper_thread(void *store);
/* First look at the folder, before the threads run. */
void disk_keeper_start(struct disk_store *s);

#endif
