/* disk_dir.h - the folder of the disk tier: names of its files, leases, the lock of evictors.
 * Private to disk_store.
 *
 * Everything here works on a network file system that has only open with O_EXCL, rename, unlink and
 * modification times. "Now" is always the file system's clock, as the time that it gave to a file
 * this process has just touched, so hosts need not agree about the time.
 */
#ifndef KVCACHE_DISK_DIR_H
#define KVCACHE_DISK_DIR_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DISK_NAME_MAX = 160, DISK_WRITER_MAX = 96 };

enum disk_file {
    DISK_FILE_OTHER,
    DISK_FILE_OPEN,
    DISK_FILE_SEALED,
    DISK_FILE_DYING,
    DISK_FILE_LEASE
};

struct disk_dir {
    int fd;                       /* of the folder */
    char writer[DISK_WRITER_MAX]; /* this process's unique name */
    double lease_s;
    double clock_offset; /* file system's clock - this host's */
};

/* Makes the folder if need be, and the writer's lease (without segments). */
enum status disk_dir_open(const char *path, int rank, double lease_s, struct disk_dir *dir);
/* Removes the lease. */
void disk_dir_close(struct disk_dir *dir);

/* Seconds, the file system's clock as far as known. */
double disk_dir_now(const struct disk_dir *dir);

/* Name of this writer's segment `number`, or another suffix for an existing name. */
void disk_name_make(const struct disk_dir *dir, uint64_t model, uint32_t number,
                    char out[DISK_NAME_MAX]); /* ends in .open */
void disk_name_suffix(const char *name, const char *suffix, char out[DISK_NAME_MAX]);
/* What a name is; its model and writer (which may be NULL). */
enum disk_file disk_name_parse(const char *name, uint64_t *model, char writer[DISK_WRITER_MAX]);

/* Replaces the lease: the names of segments that this process reads. False on failure. One caller
 * at a time. */
bool disk_lease_write(struct disk_dir *dir, const char (*names)[DISK_NAME_MAX], size_t n);
/* Touches the lease and reads the file system's clock. */
bool disk_lease_renew(struct disk_dir *dir);
/* Whether a writer is alive: its lease is fresh (and, on this host, its process there). */
bool disk_writer_alive(const struct disk_dir *dir, const char *writer);
/* Whether any living process but this one leases the segment (name with any suffix). Unreadable
 * leases count as leases of everything. */
bool disk_segment_leased(const struct disk_dir *dir, const char *name);

/* The evictors' lock; false when somebody else has it. A lock older than lease_s is taken over. */
bool disk_lock_take(const struct disk_dir *dir);
void disk_lock_drop(const struct disk_dir *dir);

#endif
