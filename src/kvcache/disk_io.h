/* disk_io.h - reads and writes of whole aligned blocks, many at once: the one interface to the
 * file system's data path, so that another back-end (a parallel file system's own library) is one
 * more struct disk_io_backend.
 *
 * A queue belongs to one thread. Requests are the caller's memory until they come back from wait;
 * buffers are DISK_BLOCK-aligned, offsets and lengths multiples of DISK_BLOCK. A request that ended
 * short of its length has failed (-EIO), whatever the reason.
 */
#ifndef KVCACHE_DISK_IO_H
#define KVCACHE_DISK_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct disk_io_request {
    int fd;
    bool write;
    void *buffer;
    size_t bytes;
    uint64_t offset;
    int result;                   /* set by wait: 0, or -errno */
    struct disk_io_request *next; /* the back-end's while the request is under way */
};

struct disk_io; /* a back-end's queue */

struct disk_io_backend {
    const char *name;
    /* A queue for `depth` requests at once, or NULL when it does not work on this machine. */
    struct disk_io *(*open)(unsigned depth);
    void (*close)(struct disk_io *io); /* nothing is under way */
    /* Tells of memory that most buffers will lie in, before the first request; NULL: no use. */
    void (*memory)(struct disk_io *io, void *base, size_t bytes);
    void (*submit)(struct disk_io *io, struct disk_io_request *request);
    /* A finished request; NULL when none finished within timeout_us (0: only looks). */
    struct disk_io_request *(*wait)(struct disk_io *io, long timeout_us);
};

extern const struct disk_io_backend disk_io_threads; /* pread and pwrite in threads */
/* Linux's io_uring; NULL where the program was built without liburing. */
const struct disk_io_backend *disk_io_uring(void);

/* A queue of the named back-end ("io_uring", "threads"); NULL or "auto": io_uring if it works
 * here, else threads. *backend is the one chosen; NULL when out of memory or unknown. */
struct disk_io *disk_io_open(const char *name, unsigned depth,
                             const struct disk_io_backend **backend);

#endif
