/* disk_io_uring.c - io_uring through liburing: one system call submits, none waits for what is
 * already there. A kernel or a container that forbids it makes open fail, and the threads serve.
 */
#include "kvcache/disk_io.h"

#ifdef HAVE_LIBURING

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

struct disk_io {
    struct io_uring ring;
    char *base; /* memory that the kernel has pinned once for all requests */
    size_t bytes;
};

static struct disk_io *uring_open(unsigned depth)
{
    struct disk_io *io = calloc(1, sizeof *io);
    if (!io) return NULL;
    if (io_uring_queue_init(depth, &io->ring, 0) == 0) return io;
    free(io);
    return NULL;
}

static void uring_close(struct disk_io *io)
{
    io_uring_queue_exit(&io->ring);
    free(io);
}

/* Where pinned memory is limited this fails, and every request pins its own. */
static void uring_memory(struct disk_io *io, void *base, size_t bytes)
{
    struct iovec all = {base, bytes};
    if (bytes > (size_t)1 << 30 || io_uring_register_buffers(&io->ring, &all, 1) != 0) return;
    io->base = base;
    io->bytes = bytes;
}

/* The ring has room for `depth` requests and nobody has more under way. */
static void uring_submit(struct disk_io *io, struct disk_io_request *r)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
    char *p = r->buffer;
    bool pinned = io->base && p >= io->base && p + r->bytes <= io->base + io->bytes;
    if (pinned && r->write)
        io_uring_prep_write_fixed(sqe, r->fd, p, (unsigned)r->bytes, r->offset, 0);
    else if (pinned)
        io_uring_prep_read_fixed(sqe, r->fd, p, (unsigned)r->bytes, r->offset, 0);
    else if (r->write)
        io_uring_prep_write(sqe, r->fd, r->buffer, (unsigned)r->bytes, r->offset);
    else
        io_uring_prep_read(sqe, r->fd, r->buffer, (unsigned)r->bytes, r->offset);
    io_uring_sqe_set_data(sqe, r);
    io_uring_submit(&io->ring);
}

/* A transfer may come back in parts: the rest goes out again. */
static bool finished(struct disk_io *io, struct disk_io_request *r, int result)
{
    if (result <= 0 || (size_t)result >= r->bytes) {
        r->result = result < 0 ? result : (size_t)result < r->bytes ? -EIO : 0;
        if (result == -EINTR || result == -EAGAIN) {
            uring_submit(io, r);
            return false;
        }
        return true;
    }
    r->buffer = (char *)r->buffer + result;
    r->bytes -= (size_t)result;
    r->offset += (uint64_t)result;
    uring_submit(io, r);
    return false;
}

static struct disk_io_request *uring_wait(struct disk_io *io, long timeout_us)
{
    struct __kernel_timespec limit = {timeout_us / 1000000, timeout_us % 1000000 * 1000};
    for (;;) {
        struct io_uring_cqe *cqe = NULL;
        if (io_uring_peek_cqe(&io->ring, &cqe) != 0 &&
            (timeout_us == 0 || io_uring_wait_cqe_timeout(&io->ring, &cqe, &limit) != 0))
            return NULL;
        struct disk_io_request *r = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&io->ring, cqe);
        if (r && finished(io, r, result)) return r;
    }
}

static const struct disk_io_backend uring = {
    .name = "io_uring",
    .open = uring_open,
    .close = uring_close,
    .memory = uring_memory,
    .submit = uring_submit,
    .wait = uring_wait,
};

const struct disk_io_backend *disk_io_uring(void)
{
    return &uring;
}

#else

const struct disk_io_backend *disk_io_uring(void)
{
    return 0;
}

#endif
